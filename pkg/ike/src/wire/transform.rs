//! Transforms of a proposal and their attributes (RFC 7296 §3.3.2, §3.3.5).
//!
//! ```text
//! +--------------+--------------+------------------------------+
//! | Last 0/More 3|   RESERVED   |       Transform Length       |
//! +--------------+--------------+------------------------------+
//! |Transform Type|   RESERVED   |         Transform ID         |
//! +--------------+--------------+------------------------------+
//! |1| Attribute Type (15)       |          Value (2)           |   AF = 1, e.g. Key Length = 14
//! |0| Attribute Type (15)       |  Length (2), then the value  |   AF = 0
//! +-+---------------------------+------------------------------+
//! ```

use super::codec::{Reader, Writer};
use super::{Error, MAX_ATTRIBUTES};

wire_enum! {
    /// Transform types.
    pub enum TransformType: u8 {
        /// ENCR, see [`encr`].
        Encr = 1,
        /// PRF, see [`prf`].
        Prf = 2,
        /// INTEG, see [`integ`].
        Integ = 3,
        /// KE (formerly D-H), see [`kex`].
        Ke = 4,
        /// ESN (RFC 9827: Sequence Numbers), see [`esn`].
        Esn = 5,
        /// First additional key exchange (RFC 9370), see [`kex`].
        AddKe1 = 6,
        /// Second additional key exchange.
        AddKe2 = 7,
        /// Third additional key exchange.
        AddKe3 = 8,
        /// Fourth additional key exchange.
        AddKe4 = 9,
        /// Fifth additional key exchange.
        AddKe5 = 10,
        /// Sixth additional key exchange.
        AddKe6 = 11,
        /// Seventh additional key exchange.
        AddKe7 = 12,
    }
}

/// Transform IDs of ENCR.
pub mod encr {
    /// AES-CBC.
    pub const AES_CBC: u16 = 12;
    /// AES-GCM with a 16-byte ICV (RFC 4106, RFC 5282).
    pub const AES_GCM_16: u16 = 20;
    /// AES-GMAC, integrity only (RFC 4543).
    pub const NULL_AUTH_AES_GMAC: u16 = 21;
    /// ChaCha20-Poly1305 (RFC 7634).
    pub const CHACHA20_POLY1305: u16 = 28;
}

/// Transform IDs of PRF.
pub mod prf {
    /// HMAC-SHA2-256 (RFC 4868).
    pub const HMAC_SHA2_256: u16 = 5;
    /// HMAC-SHA2-384 (RFC 4868).
    pub const HMAC_SHA2_384: u16 = 6;
    /// HMAC-SHA2-512 (RFC 4868).
    pub const HMAC_SHA2_512: u16 = 7;
}

/// Transform IDs of INTEG.
pub mod integ {
    /// None: with AEAD ciphers.
    pub const NONE: u16 = 0;
    /// HMAC-SHA2-256-128 (RFC 4868).
    pub const HMAC_SHA2_256_128: u16 = 12;
    /// HMAC-SHA2-384-192 (RFC 4868).
    pub const HMAC_SHA2_384_192: u16 = 13;
    /// HMAC-SHA2-512-256 (RFC 4868).
    pub const HMAC_SHA2_512_256: u16 = 14;
}

/// Key exchange methods: transform IDs of KE and ADDKE, and the method of a KE payload.
pub mod kex {
    /// None: no (further) key exchange.
    pub const NONE: u16 = 0;
    /// ECP P-256 (RFC 5903).
    pub const P256: u16 = 19;
    /// ECP P-384 (RFC 5903).
    pub const P384: u16 = 20;
    /// X25519 (RFC 8031).
    pub const CURVE25519: u16 = 31;
    /// ML-KEM-512.
    pub const ML_KEM_512: u16 = 35;
    /// ML-KEM-768.
    pub const ML_KEM_768: u16 = 36;
    /// ML-KEM-1024.
    pub const ML_KEM_1024: u16 = 37;
}

/// Transform IDs of ESN.
pub mod esn {
    /// 32-bit sequence numbers.
    pub const NO: u16 = 0;
    /// 64-bit extended sequence numbers.
    pub const YES: u16 = 1;
}

/// Attribute format bit: the value stands in the attribute itself.
const SHORT: u16 = 0x8000;
const KEY_LENGTH: u16 = 14;

/// One choice of an algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Transform {
    /// Type.
    pub kind: TransformType,
    /// Algorithm, in the number space of the type.
    pub id: u16,
    /// Key Length in bits, for ciphers that have several.
    pub key_length: Option<u16>,
    /// Type of an attribute that is not understood: such a transform must not be chosen (RFC 7296 §3.3.6). Also set to 14
    /// by a Key Length that is repeated or badly formed.
    pub unknown_attribute: Option<u16>,
}

impl Transform {
    /// An algorithm without attributes.
    #[must_use]
    pub fn new(kind: TransformType, id: u16) -> Self {
        Self {
            kind,
            id,
            key_length: None,
            unknown_attribute: None,
        }
    }

    /// A cipher with a key length in bits.
    #[must_use]
    pub fn with_key_length(kind: TransformType, id: u16, bits: u16) -> Self {
        Self {
            key_length: Some(bits),
            ..Self::new(kind, id)
        }
    }

    /// Reads what follows the length field.
    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, Error> {
        let kind = r.u8()?.into();
        r.u8()?;
        let mut transform = Self::new(kind, r.u16()?);
        let mut attributes = 0;
        while !r.is_empty() {
            attributes += 1;
            if attributes > MAX_ATTRIBUTES {
                return Err(Error::TooMany {
                    what: "transform attributes",
                    limit: MAX_ATTRIBUTES,
                });
            }
            transform.take_attribute(&mut r)?;
        }
        Ok(transform)
    }

    fn take_attribute(&mut self, r: &mut Reader<'_>) -> Result<(), Error> {
        let (format, value) = (r.u16()?, r.u16()?);
        let (short, attribute) = (format & SHORT != 0, format & !SHORT);
        if !short {
            r.bytes(value.into())?;
        }
        if short && attribute == KEY_LENGTH && self.key_length.is_none() {
            self.key_length = Some(value);
        } else {
            self.unknown_attribute.get_or_insert(attribute);
        }
        Ok(())
    }

    /// Writes what follows the length field. The value of an unknown attribute is not kept: it is written empty.
    pub(super) fn emit(&self, w: &mut Writer) {
        w.u8(self.kind.into());
        w.u8(0);
        w.u16(self.id);
        if let Some(bits) = self.key_length {
            w.u16(SHORT | KEY_LENGTH);
            w.u16(bits);
        }
        if let Some(attribute) = self.unknown_attribute {
            w.u16(attribute & !SHORT);
            w.u16(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Transform, Error> {
        Transform::parse(Reader::new("transform", bytes))
    }

    fn emit(transform: Transform) -> Vec<u8> {
        let mut w = Writer::default();
        transform.emit(&mut w);
        w.into_vec()
    }

    #[test]
    fn reads_and_writes_key_length() {
        let bytes = [1, 0, 0, 20, 0x80, 14, 1, 0];
        let aes = Transform::with_key_length(TransformType::Encr, encr::AES_GCM_16, 256);
        assert_eq!(parse(&bytes), Ok(aes));
        assert_eq!(emit(aes), bytes);
    }

    #[test]
    fn reads_and_writes_without_attribute() {
        let x25519 = Transform::new(TransformType::Ke, kex::CURVE25519);
        assert_eq!(parse(&[4, 0, 0, 31]), Ok(x25519));
        assert_eq!(emit(x25519), [4, 0, 0, 31]);
        assert_eq!(parse(&[6, 0, 0, 36]).unwrap().kind, TransformType::AddKe1);
        assert_eq!(parse(&[12, 0, 0, 0]).unwrap().kind, TransformType::AddKe7);
    }

    #[test]
    fn attributes_not_understood_are_kept_in_mind() {
        let unknown = |bytes: &[u8]| parse(bytes).unwrap().unknown_attribute;
        assert_eq!(unknown(&[1, 0, 0, 20, 0x80, 15, 0, 1]), Some(15));
        assert_eq!(
            unknown(&[1, 0, 0, 20, 0, 99, 0, 2, 7, 7, 0x80, 14, 1, 0]),
            Some(99)
        );
        assert_eq!(
            unknown(&[1, 0, 0, 20, 0, 14, 0, 2, 1, 0]),
            Some(14),
            "Key Length as TLV"
        );
        let twice = parse(&[1, 0, 0, 20, 0x80, 14, 1, 0, 0x80, 14, 0, 128]).unwrap();
        assert_eq!(
            (twice.key_length, twice.unknown_attribute),
            (Some(256), Some(14))
        );
        assert_eq!(parse(&emit(twice)), Ok(twice));
    }

    #[test]
    fn cut_attributes_are_refused() {
        assert!(parse(&[1, 0, 0]).is_err());
        assert!(parse(&[1, 0, 0, 20, 0x80, 14, 1]).is_err());
        assert!(parse(&[1, 0, 0, 20, 0, 99, 0, 3, 7, 7]).is_err());
    }

    #[test]
    fn attributes_are_bounded() {
        let bytes = [vec![1, 0, 0, 20], [0, 99, 0, 0].repeat(9)].concat();
        assert!(matches!(
            parse(&bytes),
            Err(Error::TooMany { limit: 8, .. })
        ));
    }
}
