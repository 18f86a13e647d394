//! The userspace data plane: pod packets from a TUN device, framed, sealed, sent in UDP or by raw sockets, and back.
//!
//! ```text
//!            TX thread, one per queue of the device               RX thread, one per socket
//!  TUN ──▶ io::PacketIo::recv                          io::Udp::recv ◀── UDP 4500
//!            │                                         io::Raw::recv ◀── IP protocol 50
//!            │ tx::seal                                   │ rx::judge
//!            │   pod CIDR → peer → active outbound SA     │   keepalive · IKE → relay → agent
//!            │   framing in front, trailer behind         │   SPI → inbound SA → replay, ICV
//!            │   AEAD in place                            │   framing off, addresses checked (S5)
//!            ▼                                            ▼
//!     io::Udp::send ──▶ UDP 4500         io::PacketIo::send ──▶ TUN
//!     io::Raw::send ──▶ IP protocol 50
//!                 ▲
//!                 └── IKE thread ◀── relay ◀── agent
//! ```
//!
//! The threads read one snapshot of the tables per packet and take no lock that another thread holds for long; [`Engine`]'s
//! operations build the next snapshot. Everything that touches a file descriptor is in [`io`]: batches of packets per system
//! call replace that module and leave the rest.

mod cipher;
mod control;
mod drops;
mod engine;
mod error;
mod inbox;
pub mod io;
mod lanes;
mod outgoing;
mod routes;
mod rx;
mod sa;
mod send;
mod several;
mod tables;
mod threads;
mod tx;

pub use engine::{Config, Engine, Report, check};
pub use error::Error;
pub use several::Several;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod order_tests;
#[cfg(test)]
mod path_tests;
#[cfg(test)]
mod raw_tests;
#[cfg(test)]
mod tunnel_tests;
