//! ESP as pure functions over byte slices: seal, open, replay (RFC 4303, RFC 4106, RFC 7634), and what it protects.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |               Security Parameters Index (SPI)                 | \
//! +---------------------------------------------------------------+  | AAD, with ESN's high half
//! |               Sequence number, low 32 bits                    | /  between the two
//! +---------------------------------------------------------------+
//! |               IV: the 64-bit sequence number                  |
//! |                                                               |
//! +---------------------------------------------------------------+
//! |               payload: VXLAN framing or an IP packet          | \
//! +                               +-------------------------------+  |
//! |                               |  padding 1, 2, 3 (0 to 3 B)   |  | encrypted
//! +               +---------------+---------------+---------------+  |
//! |               |               |  pad length   |  next header  | /
//! +---------------------------------------------------------------+
//! |               ICV, 16 bytes                                   |
//! +---------------------------------------------------------------+
//! ```
//!
//! A sender frames a pod packet in place ([`framing`]) and seals it in place ([`OutboundSa`]); a receiver opens in place
//! ([`InboundSa`]) and parses the framing. Nothing allocates per packet, nothing panics on any input.

pub mod aead;
pub mod framing;
pub mod offload;
pub mod wire;

mod error;
mod inbound;
mod outbound;
mod replay;

pub use aead::Algorithm;
pub use error::{FrameError, KeyError, OpenError, SealError};
pub use inbound::{InboundSa, Opened};
pub use outbound::OutboundSa;
pub use replay::{MAX_WINDOW, ReplayError, ReplayWindow};

/// IP protocol number of ESP (RFC 4303 §2).
pub const PROTOCOL: u8 = 50;

/// Bytes in front of the payload: SPI, sequence number, IV.
pub const HEADER_LEN: usize = 16;

/// Bytes of the ICV at the end of a packet.
pub const ICV_LEN: usize = 16;

/// Most bytes that follow a payload: 3 of padding, pad length, next header, ICV.
pub const MAX_TRAILER_LEN: usize = 3 + 2 + ICV_LEN;

/// Next header values that occur inside ESP (IANA protocol numbers).
pub mod next_header {
    /// IPv4 in ESP: IPIP framing.
    pub const IPV4: u8 = 4;
    /// UDP: VXLAN framing.
    pub const UDP: u8 = 17;
    /// IPv6 in ESP: IPIP framing.
    pub const IPV6: u8 = 41;
    /// A dummy packet, to be discarded without a trace (RFC 4303 §2.6).
    pub const NONE: u8 = 59;
}

#[cfg(test)]
mod vectors;
