//! File descriptors: one packet per system call, behind types that a batched version can replace.

mod tun;
mod udp;
mod wait;

pub use tun::Tun;
pub use udp::Udp;

pub(crate) use wait::{Interest, Stop, Stopper, stopper};

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

/// Where pod packets come from and go to: whole IP packets, one at a time, without waiting.
pub trait PacketIo: AsFd + Send + Sync + 'static {
    /// The next packet's length in bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none; any other error means that there will be none any more.
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Passes a packet on.
    ///
    /// # Errors
    /// The packet is lost.
    fn send(&self, packet: &[u8]) -> io::Result<()>;
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
