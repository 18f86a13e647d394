//! AEADs: IV (8) │ ciphertext │ ICV (16), nonce = salt (4) │ IV (RFC 5282 §4, RFC 7634 §2).

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes128Gcm, Aes256Gcm, KeyInit};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use espalier_secret::SecretBytes;

use super::SkCipher;
use crate::crypto::CryptoError;

pub(super) const SALT_LEN: usize = 4;
pub(super) const IV_LEN: usize = 8;
pub(super) const ICV_LEN: usize = 16;

/// Key and salt of one direction, as they were derived. What the cipher expands them to (over 600 bytes with AES) is made
/// anew for each message: an IKE SA lives for hours and says something every few seconds at most.
#[derive(Clone)]
pub(super) struct Aead {
    keymat: SecretBytes,
    cipher: SkCipher,
}

/// The expanded key.
enum Key {
    Aes256(Aes256Gcm),
    Aes128(Aes128Gcm),
    ChaCha(LessSafeKey),
}

impl Aead {
    /// `None`: the length does not fit, or it is no AEAD.
    pub(super) fn new(cipher: SkCipher, keymat: &[u8]) -> Option<Self> {
        let made = Self {
            keymat: SecretBytes::copy_from(keymat),
            cipher,
        };
        made.expand().map(|_| made)
    }

    fn expand(&self) -> Option<(Key, [u8; SALT_LEN])> {
        let (key, salt) = self.keymat.expose().split_last_chunk::<SALT_LEN>()?;
        let key = match self.cipher {
            SkCipher::Aes256Gcm16 => Key::Aes256(Aes256Gcm::new_from_slice(key).ok()?),
            SkCipher::Aes128Gcm16 => Key::Aes128(Aes128Gcm::new_from_slice(key).ok()?),
            SkCipher::ChaCha20Poly1305 => {
                let key = UnboundKey::new(&CHACHA20_POLY1305, key).ok()?;
                Key::ChaCha(LessSafeKey::new(key))
            }
            SkCipher::AesCbc(..) => return None,
        };
        Some((key, *salt))
    }

    /// The expanded key and the nonce for `iv`.
    fn prepare(&self, iv: [u8; IV_LEN]) -> Result<(Key, [u8; SALT_LEN + IV_LEN]), CryptoError> {
        let (key, [a, b, c, d]) = self.expand().ok_or(CryptoError::KeyLength {
            what: "SK_e",
            expected: self.cipher.keymat_len(),
            got: self.keymat.len(),
        })?;
        let [e, f, g, h, i, j, k, l] = iv;
        Ok((key, [a, b, c, d, e, f, g, h, i, j, k, l]))
    }

    /// Seals `text` in place; returns the ICV.
    pub(super) fn seal(
        &self,
        iv: [u8; IV_LEN],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; ICV_LEN], CryptoError> {
        let (key, nonce) = self.prepare(iv)?;
        let failed = CryptoError::SkLimit("plaintext exceeds what the cipher allows");
        let tag = match key {
            Key::Aes256(key) => {
                key.encrypt_inout_detached(&nonce.into(), aad, InOutBuf::from(text))
            }
            Key::Aes128(key) => {
                key.encrypt_inout_detached(&nonce.into(), aad, InOutBuf::from(text))
            }
            Key::ChaCha(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), text);
                let tag = tag.map_err(|_| failed.clone())?;
                return tag.as_ref().try_into().map_err(|_| failed);
            }
        };
        tag.map(Into::into).map_err(|_| failed)
    }

    /// Opens `text` in place.
    pub(super) fn open(
        &self,
        iv: [u8; IV_LEN],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; ICV_LEN],
    ) -> Result<(), CryptoError> {
        let (key, nonce) = self.prepare(iv)?;
        let opened = match key {
            Key::Aes256(key) => {
                let buffer = InOutBuf::from(text);
                key.decrypt_inout_detached(&nonce.into(), aad, buffer, &(*tag).into())
                    .is_ok()
            }
            Key::Aes128(key) => {
                let buffer = InOutBuf::from(text);
                key.decrypt_inout_detached(&nonce.into(), aad, buffer, &(*tag).into())
                    .is_ok()
            }
            Key::ChaCha(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place_separate_tag(nonce, Aad::from(aad), tag, text)
                    .is_ok()
            }
        };
        opened.then_some(()).ok_or(CryptoError::SkAuthentication)
    }
}
