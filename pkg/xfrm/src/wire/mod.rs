//! XFRM messages (linux/xfrm.h), as far as states are concerned. One file per message.
//!
//! ```text
//!  NEWSA  | xfrm_usersa_info 224 | attributes: algorithm and key, ENCAP, REPLAY_ESN_VAL, SA_DIR, SA_PCPU …
//!  GETSA  | xfrm_usersa_id    24 | attributes                               (also DELSA)
//!  EXPIRE | xfrm_user_expire 232 | attributes
//!  ACQUIRE| xfrm_user_acquire 280| attributes: TMPL
//!  attribute: | length, with this header, u16 | type u16 | value | padding to 4 |
//! ```
//!
//! `netlink-packet-xfrm` knows the fixed parts and is used for them. Attributes are encoded here: keys would be copied into
//! vectors that nobody wipes, newer attributes are missing, and messages that are too short panic.

pub(crate) mod acquire;
pub(crate) mod attr;
pub(crate) mod expire;
pub(crate) mod new_state;
pub(crate) mod policy;
pub(crate) mod state;
pub(crate) mod state_id;

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;

use espalier_netlink::Family;
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_xfrm::Address;
use netlink_packet_xfrm::constants::{
    AF_INET, AF_INET6, XFRM_MSG_GETPOLICY, XFRM_MSG_GETSA, XFRM_MSG_GETSADINFO,
};
use zeroize::Zeroizing;

/// Why a kernel's message cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Shorter than its fixed part.
    #[error("{what}: expected at least {expected} bytes, got {got}")]
    Truncated {
        /// Structure.
        what: &'static str,
        /// Its length.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// An attribute that is longer than what holds it, or shorter than its own header.
    #[error("an attribute announces {announced} bytes where {left} are left")]
    Attribute {
        /// Its length field.
        announced: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// Neither IPv4 nor IPv6.
    #[error("expected address family 2 (IPv4) or 10 (IPv6), got {0}")]
    Family(u16),
}

/// A message of the SAD. Wiped when dropped: it may hold a key.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    /// For people: what it is about.
    pub(crate) what: String,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// The family of the messages above: netlink's XFRM protocol without decoding.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sad {}

impl Family for Sad {
    const PROTOCOL: isize = netlink_sys::protocols::NETLINK_XFRM;
    const STRICT: bool = false;
    const SECRET: bool = true;
    type Message = Message;

    fn is_write(message_type: u16) -> bool {
        !matches!(
            message_type,
            XFRM_MSG_GETSA | XFRM_MSG_GETPOLICY | XFRM_MSG_GETSADINFO
        )
    }

    fn describe(message: &Message) -> String {
        message.what.clone()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Message({:#x}, {}, {} bytes, redacted)",
            self.kind,
            self.what,
            self.body.len()
        )
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        if let Some(place) = buffer.get_mut(..self.body.len()) {
            place.copy_from_slice(&self.body);
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self {
            kind: header.message_type,
            what: String::new(),
            body: Zeroizing::new(payload.to_vec()),
        })
    }
}

/// Fixed part and attributes of a message.
pub(crate) fn split<'a>(
    body: &'a [u8],
    length: usize,
    what: &'static str,
) -> Result<(&'a [u8], &'a [u8]), ParseError> {
    body.split_at_checked(length)
        .ok_or_else(|| ParseError::Truncated {
            what,
            expected: length,
            got: body.len(),
        })
}

pub(crate) fn family_of(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

pub(crate) fn address(family: u16, address: &Address) -> Result<IpAddr, ParseError> {
    match family {
        AF_INET => Ok(address.to_ipv4().into()),
        AF_INET6 => Ok(address.to_ipv6().into()),
        other => Err(ParseError::Family(other)),
    }
}

#[cfg(test)]
mod tests;
