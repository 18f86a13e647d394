//! The capture socket.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::{RcvBufForce, RxqOvfl};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::CaptureError;
use crate::filter::{SNAP, program};

/// Which interfaces of the namespace are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// These, by index.
    Only(Vec<u32>),
    /// All, also those that come later, but not these and not the loopback device.
    AllBut(Vec<u32>),
}

/// What [`Reader::receive`] returns.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// A frame of a wanted interface, cut to 512 octets.
    Frame {
        /// Index of the interface.
        interface: u32,
        /// Its octets, from the Ethernet header on.
        bytes: &'a [u8],
    },
    /// A probe of [`Reader::probe`] with its number.
    Probe(u64),
    /// Something that was not asked for, or a signal: try again.
    Nothing,
    /// Nothing came in time.
    TimedOut,
}

/// An AF_PACKET socket of the namespace it was opened in.
#[derive(Debug)]
pub struct Reader {
    socket: Socket,
    probe: UdpSocket,
    interfaces: Interfaces,
    with_outgoing: bool,
    loopback: u32,
    dropped: u64,
    last_dropped: u32,
    buffer: Vec<u8>,
}

/// The index of the interface `name` in the calling thread's network namespace.
///
/// # Errors
/// There is none.
pub fn interface_index(name: &str) -> Result<u32, CaptureError> {
    if_nametoindex(name).map_err(|error| CaptureError::NoInterface {
        name: name.to_owned(),
        source: error.into(),
    })
}

impl Reader {
    /// Opens the socket in the calling thread's network namespace; frames are held from now on, up to about
    /// `receive_buffer` octets. `with_outgoing`: frames that this host sends count too; on a bridge's ports they
    /// would be counted twice.
    ///
    /// # Errors
    /// No CAP_NET_RAW, or no loopback device.
    pub fn open(
        interfaces: Interfaces,
        with_outgoing: bool,
        receive_buffer: usize,
    ) -> Result<Self, CaptureError> {
        let open =
            |step: &'static str| move |source: io::Error| CaptureError::Open { step, source };
        let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(open("opening the probe"))?;
        let port = probe
            .local_addr()
            .map_err(open("opening the probe"))?
            .port();
        let loopback = interface_index("lo")?;
        // Protocol 0 receives nothing; with ETH_P_ALL it would fill before the filter stands.
        let everything = i32::from((nix::libc::ETH_P_ALL as u16).to_be());
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(everything)))
            .map_err(open("opening a packet socket"))?;
        let filter = program(&interfaces, with_outgoing, loopback, port);
        socket
            .attach_filter(&filter)
            .map_err(open("attaching the filter"))?;
        // Beyond the system's limit for root; up to it without.
        if setsockopt(&socket, RcvBufForce, &receive_buffer).is_err() {
            let _ = socket.set_recv_buffer_size(receive_buffer);
        }
        setsockopt(&socket, RxqOvfl, &1)
            .map_err(|error| open("asking for the drop count")(error.into()))?;
        Ok(Self {
            socket,
            probe,
            interfaces,
            with_outgoing,
            loopback,
            dropped: 0,
            last_dropped: 0,
            buffer: vec![0; SNAP as usize],
        })
    }

    /// How long [`Self::receive`] waits.
    ///
    /// # Errors
    /// The kernel refuses the duration.
    pub fn set_timeout(&self, timeout: Duration) -> Result<(), CaptureError> {
        self.socket
            .set_read_timeout(Some(timeout))
            .map_err(CaptureError::Read)
    }

    /// A handle that sends probes through this reader's queue.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn probe(&self) -> Result<Probe, CaptureError> {
        let socket = self.probe.try_clone().map_err(CaptureError::Read)?;
        Ok(Probe { socket })
    }

    /// Frames that the kernel had dropped when the last returned one was queued.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The next frame or probe.
    ///
    /// # Errors
    /// The socket cannot be read, as when its interface is gone.
    pub fn receive(&mut self) -> Result<Received<'_>, CaptureError> {
        let mut space = cmsg_space!(u32);
        let mut slices = [io::IoSliceMut::new(&mut self.buffer)];
        let fd = self.socket.as_raw_fd();
        let message =
            match recvmsg::<LinkAddr>(fd, &mut slices, Some(&mut space), MsgFlags::empty()) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(Received::TimedOut),
                // ENETDOWN: an interface went down, the socket goes on.
                Err(Errno::EINTR | Errno::ENETDOWN) => return Ok(Received::Nothing),
                Err(error) => return Err(CaptureError::Read(error.into())),
            };
        let dropped = message
            .cmsgs()
            .ok()
            .into_iter()
            .flatten()
            .find_map(|cmsg| match cmsg {
                ControlMessageOwned::RxqOvfl(count) => Some(count),
                _ => None,
            });
        let (address, length) = (message.address, message.bytes);
        self.note_dropped(dropped);
        Ok(self.sort(address, length))
    }

    fn sort(&self, address: Option<LinkAddr>, length: usize) -> Received<'_> {
        const OUTGOING: u8 = 4;
        let Some(address) = address else {
            return Received::Nothing;
        };
        let bytes = self.buffer.get(..length).unwrap_or(&self.buffer);
        let interface = u32::try_from(address.ifindex()).unwrap_or_default();
        let outgoing = address.pkttype() == OUTGOING;
        if interface == self.loopback {
            return match outgoing {
                true => Received::Nothing,
                false => probe_number(bytes).map_or(Received::Nothing, Received::Probe),
            };
        }
        let wanted = match &self.interfaces {
            Interfaces::Only(wanted) => wanted.contains(&interface),
            Interfaces::AllBut(unwanted) => !unwanted.contains(&interface),
        };
        match wanted && (self.with_outgoing || !outgoing) {
            true => Received::Frame { interface, bytes },
            false => Received::Nothing,
        }
    }

    /// The kernel's count is cumulative, has 32 bits, and is left out while it is 0.
    fn note_dropped(&mut self, count: Option<u32>) {
        let count = count.unwrap_or(self.last_dropped);
        self.dropped += u64::from(count.wrapping_sub(self.last_dropped));
        self.last_dropped = count;
    }
}

/// Sends probes through a reader's queue, see [`Reader::probe`].
#[derive(Debug)]
pub struct Probe {
    socket: UdpSocket,
}

const PROBE_MAGIC: &[u8; 16] = b"espalier-probe\r\n";

impl Probe {
    /// Sends probe `number`.
    ///
    /// # Errors
    /// The loopback device is down.
    pub fn send(&self, number: u64) -> Result<(), CaptureError> {
        let to = self.socket.local_addr().map_err(CaptureError::Read)?;
        let datagram = [&PROBE_MAGIC[..], &number.to_be_bytes()].concat();
        let sent = self.socket.send_to(&datagram, to);
        sent.map(drop).map_err(CaptureError::Read)
    }
}

/// The number in a probe's frame: Ethernet 14, IPv4 20, UDP 8, then magic and number.
fn probe_number(frame: &[u8]) -> Option<u64> {
    let datagram = frame.get(42..66)?;
    let number = datagram.strip_prefix(&PROBE_MAGIC[..])?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}
