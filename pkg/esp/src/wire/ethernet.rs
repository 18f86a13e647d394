//! Ethernet II header inside VXLAN.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |               destination: the receiver's VTEP                |
//! +                               +-------------------------------+
//! |                               |  source: the sender's VTEP    |
//! +-------------------------------+                               +
//! |                                                               |
//! +-------------------------------+-------------------------------+
//! |  EtherType: 0800 or 86dd      |
//! +-------------------------------+
//! ```

use super::{be16, split};
use crate::error::FrameError;

/// Bytes of the header.
pub const LEN: usize = 14;

/// Ethernet II header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
    /// What follows.
    pub ether_type: EtherType,
}

/// What an Ethernet frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtherType {
    /// 0800.
    Ipv4,
    /// 86dd.
    Ipv6,
    /// Anything else, such as ARP.
    Unknown(u16),
}

impl From<u16> for EtherType {
    fn from(value: u16) -> Self {
        match value {
            0x0800 => Self::Ipv4,
            0x86dd => Self::Ipv6,
            other => Self::Unknown(other),
        }
    }
}

impl From<EtherType> for u16 {
    fn from(value: EtherType) -> Self {
        match value {
            EtherType::Ipv4 => 0x0800,
            EtherType::Ipv6 => 0x86dd,
            EtherType::Unknown(other) => other,
        }
    }
}

impl Header {
    /// Header and what follows it.
    ///
    /// # Errors
    /// [`FrameError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (header, rest) = split::<LEN>(bytes, "Ethernet")?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *header;
        let (destination, source) = ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]);
        Ok((
            Self {
                destination,
                source,
                ether_type: be16(header, 12).into(),
            },
            rest,
        ))
    }

    /// The header's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..6].copy_from_slice(&self.destination);
        out[6..12].copy_from_slice(&self.source);
        out[12..].copy_from_slice(&u16::from(self.ether_type).to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let header = Header {
            destination: [2, 1, 2, 3, 4, 5],
            source: [2, 9, 8, 7, 6, 5],
            ether_type: EtherType::Unknown(0x0806),
        };
        let bytes = header.emit();
        assert_eq!(hex::encode(bytes), "0201020304050209080706050806");
        assert_eq!(Header::parse(&bytes), Ok((header, &[][..])));
        assert!(Header::parse(&bytes[..13]).is_err());
    }
}
