//! VXLAN header (RFC 7348 §5).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-----------------------------------------------+
//! |R|R|R|R|I|R|R|R|               reserved, 0                     |
//! +-+-+-+-+-+-+-+-+-------------------------------+---------------+
//! |               VXLAN Network Identifier (VNI)  |  reserved, 0  |
//! +-----------------------------------------------+---------------+
//! ```

use super::split;
use crate::error::FrameError;

/// Bytes of the header.
pub const LEN: usize = 8;

/// Flag I: the VNI is valid.
const VNI_VALID: u8 = 0x08;

/// VXLAN header with a valid VNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// VXLAN Network Identifier, 24 bits.
    pub vni: u32,
}

impl Header {
    /// Header and what follows it. Reserved bits are ignored (RFC 7348 §5).
    ///
    /// # Errors
    /// [`FrameError::Truncated`]; [`FrameError::Unexpected`] without the I flag.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let ([flags, _, _, _, v0, v1, v2, _], rest) = split::<LEN>(bytes, "VXLAN")?;
        if flags & VNI_VALID == 0 {
            let (expected, got) = (VNI_VALID.into(), u32::from(*flags));
            return Err(FrameError::Unexpected {
                field: "VXLAN flags",
                expected,
                got,
            });
        }
        Ok((
            Self {
                vni: u32::from_be_bytes([0, *v0, *v1, *v2]),
            },
            rest,
        ))
    }

    /// The header's bytes; bits of the VNI above 24 are cut off.
    #[must_use]
    pub fn emit(&self) -> [u8; LEN] {
        let [_, v0, v1, v2] = self.vni.to_be_bytes();
        [VNI_VALID, 0, 0, 0, v0, v1, v2, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let header = Header { vni: 4789 };
        let bytes = header.emit();
        assert_eq!(hex::encode(bytes), "080000000012b500");
        assert_eq!(Header::parse(&bytes), Ok((header, &[][..])));
        assert!(Header::parse(&bytes[..7]).is_err());
    }

    #[test]
    fn the_i_flag_must_be_set() {
        let refused = Header::parse(&[0xf7, 0, 0, 0, 0, 0, 1, 0]).unwrap_err();
        assert_eq!(
            refused,
            FrameError::Unexpected {
                field: "VXLAN flags",
                expected: 8,
                got: 0xf7
            }
        );
    }
}
