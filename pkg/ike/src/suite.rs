//! Algorithms of CHILD_SAs, as they are configured, put into proposals (RFC 7296 §3.3.2) and keyed (§2.17).

use crate::wire::{ProtocolId, Transform, TransformType, encr, integ};

/// HMAC with its truncated ICV, for AH and for ciphers without integrity of their own (RFC 4868).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Integrity {
    /// AUTH_HMAC_SHA2_256_128.
    HmacSha256,
    /// AUTH_HMAC_SHA2_384_192.
    HmacSha384,
    /// AUTH_HMAC_SHA2_512_256.
    HmacSha512,
}

/// ESP algorithms (RFC 4106, RFC 7634, RFC 4543, RFC 3602 with RFC 4868).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EspSuite {
    /// ENCR_AES_GCM_16 with a 256-bit key.
    Aes256Gcm16,
    /// ENCR_AES_GCM_16 with a 128-bit key.
    Aes128Gcm16,
    /// ENCR_CHACHA20_POLY1305.
    ChaCha20Poly1305,
    /// ENCR_NULL_AUTH_AES_GMAC with a 256-bit key: integrity only, nothing is encrypted.
    Aes256Gmac,
    /// ENCR_NULL_AUTH_AES_GMAC with a 128-bit key: integrity only, nothing is encrypted.
    Aes128Gmac,
    /// ENCR_AES_CBC with a 256-bit key, for gateways that have no AEAD.
    Aes256Cbc(Integrity),
    /// ENCR_AES_CBC with a 128-bit key, for gateways that have no AEAD.
    Aes128Cbc(Integrity),
}

/// Protocol and algorithms of a CHILD_SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChildSuite {
    /// Encapsulating Security Payload (RFC 4303).
    Esp(EspSuite),
    /// Authentication Header (RFC 4302): integrity only, and never within UDP.
    Ah(Integrity),
}

impl From<EspSuite> for ChildSuite {
    fn from(suite: EspSuite) -> Self {
        Self::Esp(suite)
    }
}

impl Integrity {
    fn transform(self) -> Transform {
        let id = match self {
            Self::HmacSha256 => integ::HMAC_SHA2_256_128,
            Self::HmacSha384 => integ::HMAC_SHA2_384_192,
            Self::HmacSha512 => integ::HMAC_SHA2_512_256,
        };
        Transform::new(TransformType::Integ, id)
    }

    /// Length of the key in bytes: that of the hash (RFC 4868 §2.1.1).
    #[must_use]
    pub fn key_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }
}

impl EspSuite {
    fn cipher(self) -> Transform {
        let encr = |id, bits| Transform::with_key_length(TransformType::Encr, id, bits);
        match self {
            Self::Aes256Gcm16 => encr(encr::AES_GCM_16, 256),
            Self::Aes128Gcm16 => encr(encr::AES_GCM_16, 128),
            Self::ChaCha20Poly1305 => Transform::new(TransformType::Encr, encr::CHACHA20_POLY1305),
            Self::Aes256Gmac => encr(encr::NULL_AUTH_AES_GMAC, 256),
            Self::Aes128Gmac => encr(encr::NULL_AUTH_AES_GMAC, 128),
            Self::Aes256Cbc(_) => encr(encr::AES_CBC, 256),
            Self::Aes128Cbc(_) => encr(encr::AES_CBC, 128),
        }
    }

    /// The separate integrity algorithm; `None` with those that have their own (RFC 7296 §3.3).
    #[must_use]
    pub fn integrity(self) -> Option<Integrity> {
        match self {
            Self::Aes256Cbc(integrity) | Self::Aes128Cbc(integrity) => Some(integrity),
            _ => None,
        }
    }

    /// Bytes of encryption key and salt (RFC 4106 §8.1, RFC 7634 §2, RFC 4543 §3.2, RFC 3602 §2.3).
    #[must_use]
    pub fn key_len(self) -> usize {
        match self {
            Self::Aes256Gcm16 | Self::ChaCha20Poly1305 | Self::Aes256Gmac => 32 + 4,
            Self::Aes128Gcm16 | Self::Aes128Gmac => 16 + 4,
            Self::Aes256Cbc(_) => 32,
            Self::Aes128Cbc(_) => 16,
        }
    }
}

impl ChildSuite {
    /// ESP or AH.
    pub(crate) fn protocol(self) -> ProtocolId {
        match self {
            Self::Esp(_) => ProtocolId::Esp,
            Self::Ah(_) => ProtocolId::Ah,
        }
    }

    /// What the content is encrypted with: `false` for AH and AES-GMAC, which are integrity only.
    #[must_use]
    pub fn encrypts(self) -> bool {
        !matches!(
            self,
            Self::Ah(_) | Self::Esp(EspSuite::Aes256Gmac | EspSuite::Aes128Gmac)
        )
    }

    /// Bytes of encryption key with salt, and of integrity key, per direction: the order in KEYMAT (RFC 7296 §2.17).
    #[must_use]
    pub fn key_lens(self) -> (usize, usize) {
        match self {
            Self::Esp(suite) => {
                let integrity = suite.integrity().map_or(0, Integrity::key_len);
                (suite.key_len(), integrity)
            }
            Self::Ah(integrity) => (0, integrity.key_len()),
        }
    }

    /// ENCR and INTEG, as far as there are any.
    pub(crate) fn transforms(self) -> Vec<Transform> {
        let (cipher, integrity) = match self {
            Self::Esp(suite) => (Some(suite.cipher()), suite.integrity()),
            Self::Ah(integrity) => (None, Some(integrity)),
        };
        cipher
            .into_iter()
            .chain(integrity.map(Integrity::transform))
            .collect()
    }

    /// Whether both may stand in one proposal, of which any ENCR may be combined with any INTEG.
    pub(crate) fn goes_with(self, other: Self) -> bool {
        match (self, other) {
            (Self::Esp(a), Self::Esp(b)) => a.integrity() == b.integrity(),
            (Self::Ah(_), Self::Ah(_)) => true,
            _ => false,
        }
    }
}
