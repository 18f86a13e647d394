//! ESP in UDP (RFC 3948) at the socket: the kernel takes ESP out of what comes in, before anybody reads it.

use std::os::fd::AsFd;

use nix::libc::{self, IPPROTO_UDP, UDP_ENCAP};
use nix::sys::socket::setsockopt;
use nix::{setsockopt_impl, sockopt_impl};

use crate::error::Error;

/// `UDP_ENCAP_ESPINUDP` (linux/udp.h).
const ESP_IN_UDP: i32 = 2;

sockopt_impl!(
    /// `UDP_ENCAP`: what else than data comes in on a UDP socket.
    UdpEncap,
    SetOnly,
    IPPROTO_UDP,
    UDP_ENCAP,
    i32
);

/// Makes the kernel open ESP that comes in on a UDP socket; IKE messages (behind the non-ESP marker) and keepalives still come
/// up. For each family a socket of its own: on IPv6 this needs kernel 5.8.
///
/// # Errors
/// When the socket is not one of UDP or the kernel has no ESP in UDP.
pub fn take_esp_in_udp(socket: impl AsFd) -> Result<(), Error> {
    setsockopt(&socket, UdpEncap, &ESP_IN_UDP).map_err(|errno| {
        Error::io(
            "handing ESP in UDP to the kernel (UDP_ENCAP); it needs XFRM (CONFIG_XFRM) and, on IPv6, version 5.8",
            errno,
        )
    })
}
