//! Which protection SK payloads have, and its transforms.

use crate::wire::{self, Transform, TransformType};

/// A protection for SK payloads: an AEAD, or AES-CBC with an integrity function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkCipher {
    /// ENCR_AES_GCM_16 with a 256-bit key.
    Aes256Gcm16,
    /// ENCR_AES_GCM_16 with a 128-bit key.
    Aes128Gcm16,
    /// ENCR_CHACHA20_POLY1305 (RFC 7634).
    ChaCha20Poly1305,
    /// ENCR_AES_CBC with a separate INTEG: for gateways that have no AEAD, see [`crate::IkePolicy`].
    AesCbc(CbcKey, SkIntegrity),
}

/// Key length of AES-CBC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CbcKey {
    /// 128 bits.
    Aes128,
    /// 256 bits.
    Aes256,
}

/// An integrity function for SK payloads (RFC 4868 §2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkIntegrity {
    /// AUTH_HMAC_SHA2_256_128.
    HmacSha256,
    /// AUTH_HMAC_SHA2_384_192.
    HmacSha384,
    /// AUTH_HMAC_SHA2_512_256.
    HmacSha512,
}

impl SkIntegrity {
    /// IKEv2 transform ID of type 3.
    #[must_use]
    pub fn transform_id(self) -> u16 {
        match self {
            Self::HmacSha256 => wire::integ::HMAC_SHA2_256_128,
            Self::HmacSha384 => wire::integ::HMAC_SHA2_384_192,
            Self::HmacSha512 => wire::integ::HMAC_SHA2_512_256,
        }
    }

    /// Bytes of key: the hash function's output (RFC 4868 §2.1.1).
    #[must_use]
    pub fn key_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }

    /// Bytes of ICV: half the hash function's output.
    pub(super) fn icv_len(self) -> usize {
        self.key_len() / 2
    }
}

impl SkCipher {
    /// IKEv2 transform of type 1: ID and key length attribute (in bits).
    #[must_use]
    pub fn transform(self) -> (u16, Option<u16>) {
        match self {
            Self::Aes256Gcm16 => (wire::encr::AES_GCM_16, Some(256)),
            Self::Aes128Gcm16 => (wire::encr::AES_GCM_16, Some(128)),
            Self::ChaCha20Poly1305 => (wire::encr::CHACHA20_POLY1305, None),
            Self::AesCbc(CbcKey::Aes256, _) => (wire::encr::AES_CBC, Some(256)),
            Self::AesCbc(CbcKey::Aes128, _) => (wire::encr::AES_CBC, Some(128)),
        }
    }

    /// The separate integrity function; `None` for AEADs.
    #[must_use]
    pub fn integrity(self) -> Option<SkIntegrity> {
        match self {
            Self::AesCbc(_, integrity) => Some(integrity),
            _ => None,
        }
    }

    /// All its transforms: ENCR, and INTEG where it has one.
    pub(crate) fn transforms(self) -> impl Iterator<Item = Transform> {
        let (id, key_length) = self.transform();
        let encr = Transform {
            key_length,
            ..Transform::new(TransformType::Encr, id)
        };
        let integ = self.integrity();
        let integ = integ.map(|integ| Transform::new(TransformType::Integ, integ.transform_id()));
        [encr].into_iter().chain(integ)
    }

    /// Bytes of SK_ei or SK_er: the key, with an AEAD followed by its salt (RFC 5282 §7.1, RFC 7634 §2).
    #[must_use]
    pub fn keymat_len(self) -> usize {
        match self {
            Self::Aes256Gcm16 | Self::ChaCha20Poly1305 => 32 + super::aead::SALT_LEN,
            Self::Aes128Gcm16 => 16 + super::aead::SALT_LEN,
            Self::AesCbc(CbcKey::Aes256, _) => 32,
            Self::AesCbc(CbcKey::Aes128, _) => 16,
        }
    }

    /// Bytes of SK_ai or SK_ar: none with an AEAD (RFC 5282 §7.1).
    #[must_use]
    pub fn integrity_key_len(self) -> usize {
        self.integrity().map_or(0, SkIntegrity::key_len)
    }
}
