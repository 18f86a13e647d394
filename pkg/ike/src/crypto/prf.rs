//! Pseudo-random functions and prf+ (RFC 7296 §2.13, RFC 4868).

use aws_lc_rs::hmac;
use espalier_secret::SecretBytes;
use zeroize::Zeroizing;

use super::CryptoError;
use crate::wire;

/// A pseudo-random function. All are HMACs: their key may have any length and is used whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prf {
    /// PRF_HMAC_SHA2_256.
    HmacSha256,
    /// PRF_HMAC_SHA2_384.
    HmacSha384,
    /// PRF_HMAC_SHA2_512.
    HmacSha512,
}

impl Prf {
    /// The function of an IKEv2 transform ID of type 2 ([`wire::prf`]), if it is one of ours.
    #[must_use]
    pub fn from_transform_id(id: u16) -> Option<Self> {
        match id {
            wire::prf::HMAC_SHA2_256 => Some(Self::HmacSha256),
            wire::prf::HMAC_SHA2_384 => Some(Self::HmacSha384),
            wire::prf::HMAC_SHA2_512 => Some(Self::HmacSha512),
            _ => None,
        }
    }

    /// IKEv2 transform ID of type 2.
    #[must_use]
    pub fn transform_id(self) -> u16 {
        match self {
            Self::HmacSha256 => wire::prf::HMAC_SHA2_256,
            Self::HmacSha384 => wire::prf::HMAC_SHA2_384,
            Self::HmacSha512 => wire::prf::HMAC_SHA2_512,
        }
    }

    /// Length of the output in bytes, which is also the preferred key length (SK_d, SK_pi, SK_pr).
    #[must_use]
    pub fn output_len(self) -> usize {
        self.algorithm().tag_len()
    }

    /// `prf(key, parts[0] | parts[1] | …)`.
    #[must_use]
    pub fn compute(self, key: &[u8], parts: &[&[u8]]) -> SecretBytes {
        sign(&hmac::Key::new(self.algorithm(), key), parts)
    }

    /// The first `len` bytes of `prf+(key, seed[0] | seed[1] | …)`.
    ///
    /// # Errors
    /// [`CryptoError::TooMuchKeyMaterial`] beyond 255 blocks.
    pub fn plus(self, key: &[u8], seed: &[&[u8]], len: usize) -> Result<SecretBytes, CryptoError> {
        let most = 255 * self.output_len();
        if len > most {
            return Err(CryptoError::TooMuchKeyMaterial {
                asked: len,
                most,
                prf: self,
            });
        }
        let key = hmac::Key::new(self.algorithm(), key);
        // Capacity for whole blocks: a vector that grows leaves copies of key material behind.
        let mut out = Zeroizing::new(Vec::with_capacity(len + self.output_len()));
        let mut block = SecretBytes::default();
        for counter in 1..=u8::MAX {
            if out.len() >= len {
                break;
            }
            let counter = [counter];
            block = sign(&key, &[&[block.expose()], seed, &[&counter]].concat());
            out.extend_from_slice(block.expose());
        }
        Ok(SecretBytes::copy_from(out.get(..len).unwrap_or_default()))
    }

    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha384 => hmac::HMAC_SHA384,
            Self::HmacSha512 => hmac::HMAC_SHA512,
        }
    }
}

fn sign(key: &hmac::Key, parts: &[&[u8]]) -> SecretBytes {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    SecretBytes::copy_from(context.sign().as_ref())
}

#[cfg(test)]
mod tests;
