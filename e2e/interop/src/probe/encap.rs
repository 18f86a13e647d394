//! Tells the kernel that a UDP socket carries ESP as well (RFC 3948): it takes the ESP packets, IKE messages come through.

use std::os::fd::{AsFd, AsRawFd as _};

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void};
use nix::sys::socket::{SetSockOpt, setsockopt};

/// linux/udp.h.
const UDP_ENCAP: c_int = 100;
/// linux/udp.h.
const UDP_ENCAP_ESPINUDP: c_int = 2;

#[derive(Clone, Copy)]
struct UdpEncap;

impl SetSockOpt for UdpEncap {
    type Val = c_int;

    #[allow(unsafe_code)]
    fn set<F: AsFd>(&self, socket: &F, value: &c_int) -> nix::Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        let value: *const c_int = value;
        // SAFETY: the descriptor is borrowed and so open; the kernel reads four bytes at `value`.
        let done = unsafe {
            libc::setsockopt(fd, libc::IPPROTO_UDP, UDP_ENCAP, value.cast::<c_void>(), 4)
        };
        Errno::result(done).map(drop)
    }
}

/// # Errors
/// The kernel has no ESP in UDP.
pub(super) fn carry_esp(socket: impl AsFd) -> nix::Result<()> {
    setsockopt(&socket, UdpEncap, &UDP_ENCAP_ESPINUDP)
}
