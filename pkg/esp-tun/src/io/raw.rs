//! Raw sockets of ESP (IP protocol 50): datagrams without UDP around them. Several packets per system call, each with a header of its
//! own that the kernel writes, with fragments and path MTU as it has them for UDP.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use espalier_esp::PROTOCOL;
use espalier_esp::wire::ecn;
use nix::libc::{EACCES, EPERM, in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6,
    SockaddrLike, recvmmsg, sendmmsg, setsockopt, sockopt,
};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tracing::{info, warn};

use super::udp::enlarge;
use crate::tx::Batch;

/// Packets of one system call.
pub(crate) const MOST: usize = 64;

/// Bytes of a place to receive one packet in: the longest IP packet, and so much more that such places do not share the same few lines
/// of a processor's cache.
pub(crate) const SLOT: usize = 65_536 + 1_728;

/// Lets nothing in: BPF's `ret #0`.
const SHUT: [SockFilter; 1] = [SockFilter::new(0x06, 0, 0, 0)];

/// The raw sockets, one for each family of the underlay, or why there is none. Shut until there is an SA of raw ESP: a raw socket is given
/// a copy of every packet, also of those that are for the kernel or another program.
#[derive(Debug)]
pub struct RawSockets {
    v4: Result<Raw, String>,
    v6: Result<Raw, String>,
    /// Whether packets are let in, as far as is known.
    open: Mutex<Option<bool>>,
}

impl RawSockets {
    /// Opens what this process may open, in the calling thread's network namespace.
    #[must_use]
    pub fn open() -> Self {
        Self::resume([])
    }

    /// None, for this reason: every SA of raw ESP is refused with it.
    #[must_use]
    pub fn none(why: &str) -> Self {
        Self {
            v4: Err(why.to_owned()),
            v6: Err(why.to_owned()),
            open: Mutex::default(),
        }
    }

    /// Those that another process opened, by their descriptors, with the packets that wait in them; a family that has none is opened.
    #[must_use]
    pub fn resume(descriptors: impl IntoIterator<Item = OwnedFd>) -> Self {
        let (mut v4, mut v6) = (None, None);
        for socket in descriptors.into_iter().map(Socket::from) {
            match socket.domain() {
                Ok(Domain::IPV4) => v4 = Some(Raw { socket, v4: true }),
                Ok(Domain::IPV6) => v6 = Some(Raw { socket, v4: false }),
                other => warn!(?other, "a descriptor is no raw socket"),
            }
        }
        let sockets = Self {
            v4: v4.map_or_else(|| Raw::open(Domain::IPV4), Ok),
            v6: v6.map_or_else(|| Raw::open(Domain::IPV6), Ok),
            open: Mutex::default(),
        };
        for (family, socket) in [("IPv4", &sockets.v4), ("IPv6", &sockets.v6)] {
            match socket {
                Ok(_) => info!(family, "raw ESP can be had"),
                Err(why) => info!(family, why, "no raw ESP"),
            }
        }
        sockets
    }

    /// Each one that is there.
    pub fn iter(&self) -> impl Iterator<Item = &Raw> {
        [&self.v4, &self.v6]
            .into_iter()
            .filter_map(|s| s.as_ref().ok())
    }

    /// The one towards this address.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn towards(&self, remote: IpAddr) -> Result<&Raw, &str> {
        let socket = if remote.is_ipv4() { &self.v4 } else { &self.v6 };
        socket.as_ref().map_err(String::as_str)
    }

    /// Why there is none of IPv4 and none of IPv6, where that is so.
    pub(crate) fn missing(&self) -> [Option<String>; 2] {
        [&self.v4, &self.v6].map(|socket| socket.as_ref().err().cloned())
    }

    /// Lets packets in, or none any more.
    pub(crate) fn let_in(&self, wanted: bool) {
        let mut open = self.open.lock();
        if open.replace(wanted) == Some(wanted) {
            return;
        }
        for raw in self.iter() {
            let done = match wanted {
                true => raw.socket.detach_filter(),
                false => raw.socket.attach_filter(&SHUT),
            };
            match done {
                // It had no filter.
                Err(error) if wanted && error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    warn!(%error, wanted, "the filter of a raw socket; it is tried again with the next change");
                    *open = None;
                }
                Ok(()) => {}
            }
        }
    }
}

/// A raw socket of one family, on all addresses; without waiting.
#[derive(Debug)]
pub struct Raw {
    socket: Socket,
    v4: bool,
}

impl Raw {
    /// A socket that lets nothing in yet.
    fn open(domain: Domain) -> Result<Self, String> {
        open(domain).map_err(|cause| match cause.raw_os_error() {
            Some(EPERM | EACCES) => {
                "this process may not open raw sockets; give espalier-dataplane CAP_NET_RAW and start it again"
                    .to_owned()
            }
            _ => format!("opening a raw socket: {cause}"),
        })
    }

    /// Packets come with their IPv4 header; with nothing in front of ESP if not.
    pub(crate) fn is_v4(&self) -> bool {
        self.v4
    }

    pub(crate) fn receiver(&self) -> RawReceiver<'_> {
        // The kernel shortens the room for control messages to what it used, and nix does not lengthen it again: here it is always one
        // message of the same size, or none.
        let control = (!self.v4).then(|| nix::cmsg_space!(i32));
        RawReceiver {
            raw: self,
            headers: MultiHeaders::preallocate(MOST, control),
            received: Vec::with_capacity(MOST),
        }
    }
}

impl AsFd for Raw {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open(domain: Domain) -> io::Result<Raw> {
    let protocol = Protocol::from(i32::from(PROTOCOL));
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
    socket.attach_filter(&SHUT)?;
    let v4 = domain == Domain::IPV4;
    if !v4 {
        setsockopt(&socket, sockopt::Ipv6RecvTClass, &true)?;
    }
    enlarge(&socket)?;
    Ok(Raw { socket, v4 })
}

/// One packet that was received in the slot of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawReceived {
    /// Bytes: of the IPv4 header and ESP, or of ESP alone.
    pub(crate) len: usize,
    /// Of the IPv6 header; an IPv4 header is there to be read.
    pub(crate) ecn: u8,
}

/// Receives from a [`Raw`]; holds what one call needs.
pub(crate) struct RawReceiver<'r> {
    raw: &'r Raw,
    headers: MultiHeaders<()>,
    received: Vec<RawReceived>,
}

impl RawReceiver<'_> {
    /// What waits, as many packets as there are slots of [`SLOT`] bytes in `buffer`, up to [`MOST`].
    ///
    /// # Errors
    /// Those of the socket, [`io::ErrorKind::WouldBlock`] among them.
    pub(crate) fn recv(&mut self, buffer: &mut [u8]) -> io::Result<&[RawReceived]> {
        let mut slots = buffer.chunks_exact_mut(SLOT);
        let count = slots.len().min(MOST);
        let mut parts: [[IoSliceMut<'_>; 1]; MOST] =
            std::array::from_fn(|_| [IoSliceMut::new(slots.next().unwrap_or_default())]);
        let fd = self.raw.socket.as_raw_fd();
        let places = parts.iter_mut().take(count);
        let messages = recvmmsg(fd, &mut self.headers, places, MsgFlags::empty(), None)?;
        self.received.clear();
        for message in messages {
            let mut ecn = ecn::NOT_ECT;
            for control in message.cmsgs()? {
                if let ControlMessageOwned::Ipv6TClass(class) = control {
                    ecn = class as u8 & 3;
                }
            }
            let len = message.bytes;
            self.received.push(RawReceived { len, ecn });
        }
        Ok(&self.received)
    }
}

/// Sends by raw sockets; holds what one call needs, from the first one on.
#[derive(Default)]
pub(crate) struct RawSender {
    v4: Option<MultiHeaders<SockaddrIn>>,
    v6: Option<MultiHeaders<SockaddrIn6>>,
}

impl RawSender {
    /// Sends the first ones of a batch's datagrams by one call; how many, at least one.
    ///
    /// # Errors
    /// Those of the socket about the first one, [`io::ErrorKind::WouldBlock`] among them.
    pub(crate) fn send(&mut self, raw: &Raw, to: IpAddr, batch: &Batch<'_>) -> io::Result<usize> {
        match (batch.from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.send_v4(raw, (from, to), batch),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.send_v6(raw, (from, to), batch),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }

    fn send_v4(
        &mut self,
        raw: &Raw,
        (from, to): (Ipv4Addr, Ipv4Addr),
        batch: &Batch<'_>,
    ) -> io::Result<usize> {
        let address = |bits: u32| in_addr {
            s_addr: bits.to_be(),
        };
        let info = in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: address(from.to_bits()),
            ipi_addr: address(0),
        };
        let control = [
            ControlMessage::Ipv4PacketInfo(&info),
            ControlMessage::Ipv4Tos(&batch.ecn),
        ];
        let headers = self.v4.get_or_insert_with(|| {
            MultiHeaders::preallocate(MOST, Some(nix::cmsg_space!(in_pktinfo, u8)))
        });
        // Port 0: the socket's protocol.
        let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
        send(raw, headers, to, &control, batch)
    }

    fn send_v6(
        &mut self,
        raw: &Raw,
        (from, to): (Ipv6Addr, Ipv6Addr),
        batch: &Batch<'_>,
    ) -> io::Result<usize> {
        let info = in6_pktinfo {
            ipi6_addr: in6_addr {
                s6_addr: from.octets(),
            },
            ipi6_ifindex: 0,
        };
        let class = i32::from(batch.ecn);
        let control = [
            ControlMessage::Ipv6PacketInfo(&info),
            ControlMessage::Ipv6TClass(&class),
        ];
        let headers = self.v6.get_or_insert_with(|| {
            MultiHeaders::preallocate(MOST, Some(nix::cmsg_space!(in6_pktinfo, i32)))
        });
        let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
        send(raw, headers, to, &control, batch)
    }
}

fn send<S: SockaddrLike + Copy>(
    raw: &Raw,
    headers: &mut MultiHeaders<S>,
    to: S,
    control: &[ControlMessage<'_>],
    batch: &Batch<'_>,
) -> io::Result<usize> {
    let mut datagrams = batch.bytes.chunks(batch.segment.max(1));
    let count = datagrams.len().min(MOST);
    let parts: [[IoSlice<'_>; 1]; MOST] =
        std::array::from_fn(|_| [IoSlice::new(datagrams.next().unwrap_or_default())]);
    let (fd, flags) = (raw.socket.as_raw_fd(), MsgFlags::empty());
    let parts = parts.iter().take(count);
    let sent = sendmmsg(fd, headers, parts, [Some(to); MOST], control, flags)?;
    Ok(sent.count())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use espalier_testnet::isolated;

    use super::*;
    use crate::io::{Interest, stopper};
    use crate::tx::To;

    const PATHS: [(&str, &str); 2] = [("127.0.0.1", "127.0.0.2"), ("::1", "::1")];

    /// Whether there is IPv6 here.
    fn paths() -> impl Iterator<Item = (IpAddr, IpAddr)> {
        let v6 = UdpSocket::bind("[::1]:0").is_ok();
        let paths = PATHS.map(|(from, to)| (from.parse().unwrap(), to.parse::<IpAddr>().unwrap()));
        paths.into_iter().filter(move |(_, to)| to.is_ipv4() || v6)
    }

    fn send(
        sender: &mut RawSender,
        raw: &Raw,
        (from, to): (IpAddr, IpAddr),
        ecn: u8,
        bytes: &[u8],
    ) -> usize {
        let (segment, to_raw) = (100, To::Raw(to));
        let batch = Batch {
            from,
            to: to_raw,
            ecn,
            segment,
            bytes,
        };
        sender.send(raw, to, &batch).unwrap()
    }

    /// Source, ECN and ESP of so many packets.
    fn receive(receiver: &mut RawReceiver<'_>, count: usize) -> Vec<(Option<IpAddr>, u8, Vec<u8>)> {
        let (_stopper, stop) = stopper().unwrap();
        let (mut buffer, mut packets) = (vec![0; MOST * SLOT], Vec::new());
        while packets.len() < count {
            stop.wait(receiver.raw.as_fd(), Interest::Readable).unwrap();
            let v4 = receiver.raw.v4;
            let received = receiver.recv(&mut buffer).unwrap().to_vec();
            for (packet, slot) in received.iter().zip(buffer.chunks(SLOT)) {
                let bytes = &slot[..packet.len];
                packets.push(if v4 {
                    let place = espalier_esp::wire::ip::payload_v4(bytes, PROTOCOL).unwrap();
                    let source = IpAddr::from(*bytes[12..].first_chunk::<4>().unwrap());
                    (Some(source), ecn::of(bytes), bytes[place].to_vec())
                } else {
                    (None, packet.ecn, bytes.to_vec())
                });
            }
        }
        packets
    }

    #[test]
    fn a_batch_is_its_packets_with_their_mark_and_source() {
        isolated(
            "io::raw::tests::a_batch_is_its_packets_with_their_mark_and_source",
            || {
                espalier_testnet::set_up("lo").unwrap();
                let sockets = RawSockets::open();
                sockets.let_in(true);
                for path in paths() {
                    let raw = sockets.towards(path.1).unwrap();
                    let (mut sender, mut receiver) = (RawSender::default(), raw.receiver());
                    let parts: Vec<Vec<u8>> = (0..70_u8).map(|at| vec![at + 1; 100]).collect();
                    let mut bytes = parts.concat();
                    bytes.truncate(6950);
                    // More than one call takes; the control messages stay right from call to call.
                    for mark in [ecn::ECT_0, ecn::NOT_ECT, ecn::CE] {
                        let sent = send(&mut sender, raw, path, mark, &bytes);
                        assert_eq!(sent, MOST);
                        let rest = &bytes[sent * 100..];
                        assert_eq!(send(&mut sender, raw, path, mark, rest), 70 - MOST);
                        let received = receive(&mut receiver, 70);
                        for ((source, marked, esp), sent) in received.iter().zip(bytes.chunks(100))
                        {
                            assert!(source.is_none_or(|source| source == path.0));
                            assert_eq!((*marked, &esp[..]), (mark, sent));
                        }
                    }
                    let long = vec![7; 60_000];
                    let batch = Batch {
                        from: path.0,
                        to: To::Raw(path.1),
                        ecn: 0,
                        segment: long.len(),
                        bytes: &long,
                    };
                    assert_eq!(sender.send(raw, path.1, &batch).unwrap(), 1);
                    assert_eq!(receive(&mut receiver, 1)[0].2, long);
                }
            },
        );
    }

    #[test]
    fn nothing_is_let_in_before_it_is_wanted() {
        isolated(
            "io::raw::tests::nothing_is_let_in_before_it_is_wanted",
            || {
                espalier_testnet::set_up("lo").unwrap();
                let sockets = RawSockets::open();
                for path in paths() {
                    let raw = sockets.towards(path.1).unwrap();
                    let (mut sender, mut receiver) = (RawSender::default(), raw.receiver());
                    let mut came = |wanted: Option<bool>| {
                        wanted.into_iter().for_each(|wanted| sockets.let_in(wanted));
                        send(&mut sender, raw, path, 0, &[1; 100]);
                        let received = receiver.recv(&mut vec![0; SLOT]).map(<[_]>::len);
                        received.map_err(|error| error.kind())
                    };
                    assert_eq!(came(None), Err(ErrorKind::WouldBlock));
                    for _ in 0..2 {
                        assert_eq!(came(Some(true)), Ok(1));
                        assert_eq!(came(Some(true)), Ok(1), "again");
                        assert_eq!(came(Some(false)), Err(ErrorKind::WouldBlock));
                    }
                }
            },
        );
    }

    #[test]
    fn what_waits_in_a_socket_is_there_for_who_takes_it_over() {
        isolated(
            "io::raw::tests::what_waits_in_a_socket_is_there_for_who_takes_it_over",
            || {
                espalier_testnet::set_up("lo").unwrap();
                let before = RawSockets::open();
                before.let_in(true);
                let mut sender = RawSender::default();
                for path in paths() {
                    send(
                        &mut sender,
                        before.towards(path.1).unwrap(),
                        path,
                        0,
                        &[9; 100],
                    );
                }
                let copies = before
                    .iter()
                    .map(|raw| raw.as_fd().try_clone_to_owned().unwrap());
                let after = RawSockets::resume(copies.collect::<Vec<_>>());
                drop(before);
                after.let_in(true);
                for path in paths() {
                    let mut receiver = after.towards(path.1).unwrap().receiver();
                    assert_eq!(receive(&mut receiver, 1)[0].2, [9; 100]);
                }
            },
        );
    }

    #[test]
    fn a_socket_that_cannot_be_had_says_why() {
        let none = RawSockets::none("forbidden here");
        assert_eq!(none.iter().count(), 0);
        none.let_in(true);
        for (_, to) in PATHS {
            assert_eq!(
                none.towards(to.parse().unwrap()).unwrap_err(),
                "forbidden here"
            );
        }
        assert!(none.missing().iter().all(Option::is_some));
    }
}
