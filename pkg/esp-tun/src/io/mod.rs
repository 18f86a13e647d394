//! File descriptors: as many packets per system call as the kernel gives and takes.

mod raw;
mod tun;
mod udp;
mod wait;

pub use raw::{Raw, RawSockets};
pub use tun::Tun;
pub use udp::Udp;

pub(crate) use raw::{MOST, RawReceived, RawSender, SLOT};
pub(crate) use udp::Received;
pub(crate) use wait::{Interest, Patience, Stop, Stopper, is_ready, stopper};

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

pub use espalier_esp::offload::Offload;

/// Where pod packets come from and go to: whole IP packets, one at a time, without waiting. What counts as one packet may stand
/// for several, as [`PacketIo::offload`] says.
pub trait PacketIo: AsFd + Send + Sync + 'static {
    /// The next packet's length in bytes, its virtio header included if there are such headers.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none; any other error means that there will be none any more.
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Passes a packet on.
    ///
    /// # Errors
    /// The packet is lost.
    fn send(&self, packet: &[u8]) -> io::Result<()>;

    /// Passes on a packet that is in several places, one after the other.
    ///
    /// # Errors
    /// The packet is lost.
    fn send_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        match parts {
            [packet] => self.send(packet),
            _ => self.send(
                &parts
                    .iter()
                    .flat_map(|part| part.to_vec())
                    .collect::<Vec<_>>(),
            ),
        }
    }

    /// Whether packets are behind virtio headers, and which large ones are understood.
    fn offload(&self) -> Offload {
        Offload::None
    }
}

/// One end of a socket pair (non-blocking) in place of a TUN device: for tests without root.
impl PacketIo for UnixDatagram {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Self::recv(self, buffer)
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        Self::send(self, packet).map(|_| ())
    }
}
