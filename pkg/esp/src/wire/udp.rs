//! UDP header (RFC 768) and its checksum over IPv6 (RFC 8200 §8.1).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------------------------------+-------------------------------+
//! |  source port                  |  destination port             |
//! +-------------------------------+-------------------------------+
//! |  length, header included      |  checksum, 0: none (IPv4)     |
//! +-------------------------------+-------------------------------+
//! ```

use std::net::Ipv6Addr;

use super::{be16, checksum, split};
use crate::error::FrameError;
use crate::next_header;

/// Bytes of the header.
pub const LEN: usize = 8;

/// UDP header without its length, which is that of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

impl Header {
    /// Header and payload, the latter cut to what the length field says. The checksum is not looked at: inside ESP the ICV has
    /// vouched for every byte, and after a NAT it would not fit (RFC 3948 §3.1.2).
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when the length field says more than is there or less than a header.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (header, rest) = split::<LEN>(bytes, "UDP")?;
        let length = usize::from(be16(header, 4));
        let payload = length
            .checked_sub(LEN)
            .and_then(|len| rest.get(..len))
            .ok_or(FrameError::Truncated {
                header: "UDP",
                needed: length.max(LEN),
                got: bytes.len(),
            })?;
        Ok((
            Self {
                source: be16(header, 0),
                destination: be16(header, 2),
            },
            payload,
        ))
    }

    /// The header's bytes for a payload of `payload` bytes, checksum 0.
    ///
    /// # Errors
    /// [`FrameError::TooLong`].
    pub fn emit(&self, payload: usize) -> Result<[u8; LEN], FrameError> {
        let length =
            u16::try_from(LEN + payload).map_err(|_| FrameError::TooLong { len: LEN + payload })?;
        let mut out = [0; LEN];
        out[..2].copy_from_slice(&self.source.to_be_bytes());
        out[2..4].copy_from_slice(&self.destination.to_be_bytes());
        out[4..6].copy_from_slice(&length.to_be_bytes());
        Ok(out)
    }
}

/// Checksum of a datagram (header with checksum 0, then payload) between two IPv6 addresses; never 0, which would mean none.
#[must_use]
pub fn checksum_v6(source: Ipv6Addr, destination: Ipv6Addr, datagram: &[u8]) -> u16 {
    let (source, destination) = (source.into(), destination.into());
    let pseudo_header =
        checksum::pseudo_header(source, destination, next_header::UDP, datagram.len());
    checksum::field(pseudo_header + checksum::sum(datagram))
}

#[cfg(test)]
mod tests {
    use super::checksum::{fold, sum};
    use super::*;

    #[test]
    fn reads_what_it_writes_and_cuts_what_is_behind() {
        let header = Header {
            source: 50000,
            destination: 4789,
        };
        let mut bytes = header.emit(3).unwrap().to_vec();
        bytes.extend_from_slice(b"abcTFC");
        assert_eq!(hex::encode(&bytes[..8]), "c35012b5000b0000");
        assert_eq!(Header::parse(&bytes), Ok((header, &b"abc"[..])));
    }

    #[test]
    fn a_length_beyond_the_packet_or_below_the_header_is_refused() {
        for length in [0u8, 7, 9] {
            let bytes = [0, 1, 0, 2, 0, length, 0, 0];
            assert!(
                matches!(
                    Header::parse(&bytes),
                    Err(FrameError::Truncated { header: "UDP", .. })
                ),
                "{length}"
            );
        }
        assert_eq!(
            Header {
                source: 1,
                destination: 2
            }
            .emit(65_528),
            Err(FrameError::TooLong { len: 65_536 })
        );
    }

    #[test]
    fn the_sum_of_a_datagram_with_its_checksum_is_all_ones() {
        let (source, destination) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        for len in 0..40 {
            let mut datagram = Header {
                source: 7,
                destination: 9,
            }
            .emit(len)
            .unwrap()
            .to_vec();
            datagram.extend((0..len).map(|byte| byte as u8 ^ 0xa5));
            let checksum = checksum_v6(source, destination, &datagram);
            datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
            let pseudo =
                sum(&source.octets()) + sum(&destination.octets()) + datagram.len() as u64 + 17;
            assert_eq!(fold(pseudo + sum(&datagram)), 0xffff, "{len} bytes");
        }
    }
}
