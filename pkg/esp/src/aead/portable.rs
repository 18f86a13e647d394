use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Aes256Gcm};

use super::{Aead, Algorithm, NONCE_LEN, Refused};
use crate::error::KeyError;

/// AES-GCM in portable Rust: the reference for [`super::AwsLc`].
pub struct Portable(Cipher);

enum Cipher {
    Aes128(Box<Aes128Gcm>),
    Aes256(Box<Aes256Gcm>),
}

impl Aead for Portable {
    fn new(algorithm: Algorithm, key: &[u8]) -> Result<Self, KeyError> {
        let wrong_length = |_| algorithm.length_error(key.len());
        let cipher = match algorithm {
            Algorithm::Aes128Gcm16 => Cipher::Aes128(Box::new(
                Aes128Gcm::new_from_slice(key).map_err(wrong_length)?,
            )),
            Algorithm::Aes256Gcm16 => Cipher::Aes256(Box::new(
                Aes256Gcm::new_from_slice(key).map_err(wrong_length)?,
            )),
            Algorithm::ChaCha20Poly1305 => return Err(KeyError::Unsupported(algorithm.name())),
        };
        Ok(Self(cipher))
    }

    fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; 16], Refused> {
        let nonce = nonce.into();
        match &self.0 {
            Cipher::Aes128(cipher) => cipher.encrypt_inout_detached(&nonce, aad, in_out.into()),
            Cipher::Aes256(cipher) => cipher.encrypt_inout_detached(&nonce, aad, in_out.into()),
        }
        .map(Into::into)
        .map_err(|_| Refused)
    }

    fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
        icv: &[u8; 16],
    ) -> Result<(), Refused> {
        let (nonce, icv) = (nonce.into(), (*icv).into());
        match &self.0 {
            Cipher::Aes128(cipher) => {
                cipher.decrypt_inout_detached(&nonce, aad, in_out.into(), &icv)
            }
            Cipher::Aes256(cipher) => {
                cipher.decrypt_inout_detached(&nonce, aad, in_out.into(), &icv)
            }
        }
        .map_err(|_| Refused)
    }
}
