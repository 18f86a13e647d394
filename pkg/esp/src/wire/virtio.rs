//! The header that a TUN device with `IFF_VNET_HDR` puts in front of a packet (virtio 1.3 §5.1.6, without `num_buffers`), in
//! the machine's own byte order.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+-------------------------------+
//! |  flags        |  GSO type     |  bytes of all headers         |
//! +---------------+---------------+-------------------------------+
//! |  payload of each segment      |  where the checksum begins    |
//! +-------------------------------+-------------------------------+
//! |  its field, from there        |
//! +-------------------------------+
//! ```

use super::split;
use crate::error::FrameError;

/// Bytes of the header.
pub const LEN: usize = 10;

/// The checksum field holds the pseudo-header's sum only: the rest is to be added by who sends the packet on.
const NEEDS_CHECKSUM: u8 = 1;
/// The TCP flag CWR is on the first segment only. Says nothing that the flag itself does not.
const GSO_ECN: u8 = 0x80;

/// Which packets a large one stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams, over either.
    Udp,
}

/// What the header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The checksum is to be finished.
    pub needs_checksum: bool,
    /// Which packets it stands for; none: for itself.
    pub gso: Option<Gso>,
    /// Bytes of IP and transport header. A hint: nothing relies on it.
    pub header_len: u16,
    /// Bytes of payload of each segment but the last.
    pub segment: u16,
    /// Offset of the transport header.
    pub checksum_start: u16,
    /// Offset of the checksum field in it.
    pub checksum_offset: u16,
}

impl Header {
    /// Header and packet.
    ///
    /// # Errors
    /// [`FrameError::Truncated`]; [`FrameError::Unexpected`] for a GSO type that was never offered to the device.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (header, packet) = split::<LEN>(bytes, "virtio")?;
        let [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1] = *header;
        let gso = match gso & !GSO_ECN {
            0 => None,
            1 => Some(Gso::Tcp4),
            4 => Some(Gso::Tcp6),
            5 => Some(Gso::Udp),
            other => {
                return Err(FrameError::Unexpected {
                    field: "virtio GSO type",
                    expected: 0,
                    got: other.into(),
                });
            }
        };
        let header = Self {
            needs_checksum: flags & NEEDS_CHECKSUM != 0,
            gso,
            header_len: u16::from_ne_bytes([h0, h1]),
            segment: u16::from_ne_bytes([s0, s1]),
            checksum_start: u16::from_ne_bytes([c0, c1]),
            checksum_offset: u16::from_ne_bytes([o0, o1]),
        };
        Ok((header, packet))
    }

    /// The header's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; LEN] {
        let flags = if self.needs_checksum {
            NEEDS_CHECKSUM
        } else {
            0
        };
        let gso = match self.gso {
            None => 0,
            Some(Gso::Tcp4) => 1,
            Some(Gso::Tcp6) => 4,
            Some(Gso::Udp) => 5,
        };
        let [h0, h1] = self.header_len.to_ne_bytes();
        let [s0, s1] = self.segment.to_ne_bytes();
        let [c0, c1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for gso in [None, Some(Gso::Tcp4), Some(Gso::Tcp6), Some(Gso::Udp)] {
            let header = Header {
                needs_checksum: gso.is_some(),
                gso,
                header_len: 52,
                segment: 1356,
                checksum_start: 20,
                checksum_offset: 16,
            };
            let bytes = [&header.emit()[..], b"packet"].concat();
            assert_eq!(Header::parse(&bytes), Ok((header, &b"packet"[..])));
        }
        assert!(Header::parse(&[0; LEN - 1]).is_err());
    }

    #[test]
    fn what_was_not_offered_is_refused_and_ecn_is_no_type() {
        let mut bytes = Header::default().emit();
        bytes[1] = 3;
        assert!(matches!(
            Header::parse(&bytes),
            Err(FrameError::Unexpected {
                field: "virtio GSO type",
                ..
            })
        ));
        bytes[1] = 1 | GSO_ECN;
        assert_eq!(Header::parse(&bytes).unwrap().0.gso, Some(Gso::Tcp4));
    }
}
