//! Key exchange methods (RFC 7296 §2.12 and §3.4, RFC 8031, RFC 5903). Private keys live for one exchange.

use aws_lc_rs::agreement::{self, PrivateKey};
use espalier_secret::SecretBytes;
use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::CryptoError;
use crate::wire;

/// A scalar above the group's order is drawn with probability 2⁻³²; this many in a row mean a broken generator.
const DRAWS: usize = 8;
/// SEC 1 §2.3.3: what stands before an uncompressed point, and is left out in KE payloads (RFC 5903 §6.4).
const UNCOMPRESSED: u8 = 4;

/// A key exchange method (transform type 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KexGroup {
    /// CURVE25519.
    X25519,
    /// 256-bit random ECP group.
    P256,
    /// 384-bit random ECP group.
    P384,
}

impl KexGroup {
    /// The method of an IKEv2 transform ID of type 4 ([`wire::kex`]), if it is one of ours.
    #[must_use]
    pub fn from_transform_id(id: u16) -> Option<Self> {
        match id {
            wire::kex::CURVE25519 => Some(Self::X25519),
            wire::kex::P256 => Some(Self::P256),
            wire::kex::P384 => Some(Self::P384),
            _ => None,
        }
    }

    /// IKEv2 transform ID of type 4.
    #[must_use]
    pub fn transform_id(self) -> u16 {
        match self {
            Self::X25519 => wire::kex::CURVE25519,
            Self::P256 => wire::kex::P256,
            Self::P384 => wire::kex::P384,
        }
    }

    /// Length in bytes of the initiator's public value in a KE payload.
    #[must_use]
    pub fn public_len(self) -> usize {
        match self {
            Self::X25519 => 32,
            Self::P256 => 64,
            Self::P384 => 96,
        }
    }

    /// Length in bytes of a private key.
    fn private_len(self) -> usize {
        match self {
            Self::X25519 | Self::P256 => 32,
            Self::P384 => 48,
        }
    }

    fn algorithm(self) -> &'static agreement::Algorithm {
        match self {
            Self::X25519 => &agreement::X25519,
            Self::P256 => &agreement::ECDH_P256,
            Self::P384 => &agreement::ECDH_P384,
        }
    }
}

/// The initiator's half of a key exchange: used once, by value.
pub struct KeyExchange {
    group: KexGroup,
    private: PrivateKey,
    public: Vec<u8>,
}

impl std::fmt::Debug for KeyExchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyExchange")
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl KeyExchange {
    /// Makes a key from `rng`.
    ///
    /// # Errors
    /// [`CryptoError::KeyGeneration`] when the generator yields no valid scalar.
    pub fn generate(group: KexGroup, rng: &mut dyn CryptoRng) -> Result<Self, CryptoError> {
        let mut scalar = Zeroizing::new(vec![0; group.private_len()]);
        for _ in 0..DRAWS {
            rng.fill_bytes(&mut scalar);
            if let Ok(private) = PrivateKey::from_private_key(group.algorithm(), &scalar) {
                return Self::new(group, private);
            }
        }
        Err(CryptoError::KeyGeneration(group))
    }

    fn new(group: KexGroup, private: PrivateKey) -> Result<Self, CryptoError> {
        let public = private
            .compute_public_key()
            .map_err(|_| CryptoError::KeyGeneration(group))?;
        let public = match group {
            KexGroup::X25519 => public.as_ref(),
            KexGroup::P256 | KexGroup::P384 => public.as_ref().get(1..).unwrap_or_default(),
        };
        Ok(Self {
            group,
            public: public.to_vec(),
            private,
        })
    }

    /// Which method.
    #[must_use]
    pub fn group(&self) -> KexGroup {
        self.group
    }

    /// Data of this side's KE payload.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The shared secret with the data of the other side's KE payload.
    ///
    /// # Errors
    /// Wrong length, an invalid point, or an all-zero X25519 secret (RFC 7748 §6.1, RFC 8031 §4).
    pub fn agree(self, peer: &[u8]) -> Result<SharedSecret, CryptoError> {
        let encoded = encode_peer(self.group, peer)?;
        let key = agreement::UnparsedPublicKey::new(self.group.algorithm(), encoded);
        let refused = CryptoError::PublicValueRefused(self.group);
        agreement::agree(&self.private, key, refused.clone(), |secret| {
            // A point of P-256 or P-384 may well have x = 0; of X25519 only a point of small order gives it.
            if self.group == KexGroup::X25519 && bool::from(secret.ct_eq(&[0; 32])) {
                return Err(refused);
            }
            Ok(SharedSecret::copy_from(secret))
        })
    }
}

/// The responder's half in one step: the data of its KE payload and the shared secret.
///
/// # Errors
/// As [`KeyExchange::generate`] and [`KeyExchange::agree`].
pub fn respond(
    group: KexGroup,
    peer: &[u8],
    rng: &mut dyn CryptoRng,
) -> Result<(Vec<u8>, SharedSecret), CryptoError> {
    let own = KeyExchange::generate(group, rng)?;
    let public = own.public.clone();
    Ok((public, own.agree(peer)?))
}

/// g^ir: what a key exchange yields. Only the key schedule reads it.
#[derive(Clone, Debug)]
pub struct SharedSecret(SecretBytes);

impl SharedSecret {
    pub(super) fn expose(&self) -> &[u8] {
        self.0.expose()
    }

    pub(crate) fn copy_from(bytes: &[u8]) -> Self {
        Self(SecretBytes::copy_from(bytes))
    }
}

fn encode_peer(group: KexGroup, peer: &[u8]) -> Result<Vec<u8>, CryptoError> {
    if peer.len() != group.public_len() {
        return Err(CryptoError::PublicValueLength {
            group,
            expected: group.public_len(),
            got: peer.len(),
        });
    }
    Ok(match group {
        KexGroup::X25519 => peer.to_vec(),
        KexGroup::P256 | KexGroup::P384 => [&[UNCOMPRESSED], peer].concat(),
    })
}

#[cfg(test)]
mod tests;
