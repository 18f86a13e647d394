//! The ciphers behind ESP. [`AwsLc`] is the hot path; [`Portable`] is the reference that it is tested against.

mod aws_lc;
mod portable;

pub use aws_lc::AwsLc;
pub use portable::Portable;

use zeroize::Zeroize;

use crate::error::KeyError;

/// Bytes of a nonce: 4 of salt, 8 of IV (RFC 4106 §4, RFC 7634 §2).
pub const NONCE_LEN: usize = 12;

/// Bytes of the salt at the end of the key material.
pub const SALT_LEN: usize = 4;

/// The cipher refused: a wrong ICV, or input longer than the algorithm allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// An AEAD with a 16-byte ICV, keyed once, that works in place.
pub trait Aead: Sized + Send + Sync {
    /// Keys the cipher; `key` is without the salt.
    ///
    /// # Errors
    /// [`KeyError`] when the length does not fit or the algorithm is not there.
    fn new(algorithm: Algorithm, key: &[u8]) -> Result<Self, KeyError>;

    /// Encrypts `in_out` in place and returns the ICV.
    ///
    /// # Errors
    /// [`Refused`] when the input is longer than the algorithm allows.
    fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; 16], Refused>;

    /// Decrypts `in_out` in place. After an error its contents are undefined.
    ///
    /// # Errors
    /// [`Refused`] when the ICV does not match.
    fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
        icv: &[u8; 16],
    ) -> Result<(), Refused>;
}

/// ESP AEAD with a 16-byte ICV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// AES-128-GCM-16 (RFC 4106): 16-byte key.
    Aes128Gcm16,
    /// AES-256-GCM-16 (RFC 4106): 32-byte key.
    Aes256Gcm16,
    /// ChaCha20-Poly1305 (RFC 7634): 32-byte key.
    ChaCha20Poly1305,
}

impl Algorithm {
    /// Bytes of the key, without the salt.
    #[must_use]
    pub fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm16 => 16,
            Self::Aes256Gcm16 | Self::ChaCha20Poly1305 => 32,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm16 => "AES-128-GCM-16",
            Self::Aes256Gcm16 => "AES-256-GCM-16",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        }
    }

    /// What [`Aead::new`] says of a key of `got` bytes that should have another length.
    #[must_use]
    pub fn length_error(self, got: usize) -> KeyError {
        KeyError::Length {
            algorithm: self.name(),
            expected: self.key_len() + SALT_LEN,
            got,
        }
    }
}

/// A keyed cipher with its salt: what one direction of an SA needs.
pub(crate) struct SaltedKey<A> {
    cipher: A,
    salt: [u8; SALT_LEN],
}

impl<A: Aead> SaltedKey<A> {
    /// `material` is the key followed by the salt (RFC 4106 §8.1).
    pub(crate) fn new(algorithm: Algorithm, material: &[u8]) -> Result<Self, KeyError> {
        let (key, salt) = material
            .split_last_chunk::<SALT_LEN>()
            .filter(|(key, _)| key.len() == algorithm.key_len())
            .ok_or_else(|| algorithm.length_error(material.len()))?;
        Ok(Self {
            cipher: A::new(algorithm, key)?,
            salt: *salt,
        })
    }

    pub(crate) fn seal(
        &self,
        iv: [u8; 8],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; 16], Refused> {
        self.cipher.seal(self.nonce(iv), aad, in_out)
    }

    pub(crate) fn open(
        &self,
        iv: [u8; 8],
        aad: &[u8],
        in_out: &mut [u8],
        icv: &[u8; 16],
    ) -> Result<(), Refused> {
        self.cipher.open(self.nonce(iv), aad, in_out, icv)
    }

    fn nonce(&self, iv: [u8; 8]) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        nonce[..SALT_LEN].copy_from_slice(&self.salt);
        nonce[SALT_LEN..].copy_from_slice(&iv);
        nonce
    }
}

impl<A> Drop for SaltedKey<A> {
    fn drop(&mut self) {
        self.salt.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn key_material_of_the_wrong_length_is_named() {
        let error = SaltedKey::<AwsLc>::new(Algorithm::Aes256Gcm16, &[0; 32])
            .map(|_| ())
            .unwrap_err();
        assert_eq!(
            error,
            KeyError::Length {
                algorithm: "AES-256-GCM-16",
                expected: 36,
                got: 32
            }
        );
        assert!(SaltedKey::<AwsLc>::new(Algorithm::Aes128Gcm16, &[]).is_err());
    }

    #[test]
    fn the_reference_says_that_it_has_no_chacha20() {
        let error = Portable::new(Algorithm::ChaCha20Poly1305, &[0; 32])
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error, KeyError::Unsupported("ChaCha20-Poly1305"));
    }

    proptest! {
        #[test]
        fn the_hot_path_and_the_reference_agree(
            key in prop::array::uniform32(any::<u8>()),
            nonce in prop::array::uniform12(any::<u8>()),
            aad in prop::collection::vec(any::<u8>(), 8..=12),
            plain in prop::collection::vec(any::<u8>(), 0..600),
            short in any::<bool>(),
        ) {
            let (algorithm, key) = match short {
                true => (Algorithm::Aes128Gcm16, &key[..16]),
                false => (Algorithm::Aes256Gcm16, &key[..]),
            };
            let (hot, reference) = (AwsLc::new(algorithm, key).unwrap(), Portable::new(algorithm, key).unwrap());
            let (mut one, mut other) = (plain.clone(), plain.clone());
            let icv = hot.seal(nonce, &aad, &mut one).unwrap();
            prop_assert_eq!(icv, reference.seal(nonce, &aad, &mut other).unwrap());
            prop_assert_eq!(&one, &other);
            reference.open(nonce, &aad, &mut one, &icv).unwrap();
            hot.open(nonce, &aad, &mut other, &icv).unwrap();
            prop_assert_eq!(&one, &plain);
            prop_assert_eq!(&other, &plain);
        }
    }
}
