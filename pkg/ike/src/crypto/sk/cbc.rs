//! AES-CBC, then HMAC (RFC 7296 §3.14): IV (16) │ ciphertext │ ICV. The ICV covers the message from the IKE header to the
//! end of the ciphertext, and is checked before anything is decrypted: no padding oracle.

use aws_lc_rs::cipher::{
    AES_128, AES_256, Algorithm, DecryptingKey, DecryptionContext, EncryptingKey,
    EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use espalier_secret::SecretBytes;
use subtle::ConstantTimeEq;

use super::{CbcKey, SkCipher, SkIntegrity};
use crate::crypto::CryptoError;

/// Block of AES, and length of the IV.
pub(super) const BLOCK: usize = 16;

/// The keys of one direction.
#[derive(Clone)]
pub(super) struct Cbc {
    algorithm: &'static Algorithm,
    key: SecretBytes,
    mac: hmac::Key,
    icv_len: usize,
}

impl Cbc {
    /// From SK_e followed by SK_a. `None`: the length does not fit, or it is no CBC.
    pub(super) fn new(cipher: SkCipher, keymat: &[u8]) -> Option<Self> {
        let SkCipher::AesCbc(length, integrity) = cipher else {
            return None;
        };
        let algorithm = match length {
            CbcKey::Aes128 => &AES_128,
            CbcKey::Aes256 => &AES_256,
        };
        let hash = match integrity {
            SkIntegrity::HmacSha256 => hmac::HMAC_SHA256,
            SkIntegrity::HmacSha384 => hmac::HMAC_SHA384,
            SkIntegrity::HmacSha512 => hmac::HMAC_SHA512,
        };
        let (key, mac) = keymat.split_at_checked(cipher.keymat_len())?;
        (mac.len() == integrity.key_len()).then(|| Self {
            algorithm,
            key: SecretBytes::copy_from(key),
            mac: hmac::Key::new(hash, mac),
            icv_len: integrity.icv_len(),
        })
    }

    /// IV and ICV.
    pub(super) fn overhead(&self) -> usize {
        BLOCK + self.icv_len
    }

    /// Appends IV, ciphertext and ICV to `prefix`. `text` is whole blocks. The IV is the encrypted `counter`, unpredictable
    /// without the key (NIST SP 800-38A, appendix C).
    pub(super) fn seal(
        &self,
        counter: u64,
        prefix: &mut Vec<u8>,
        text: &mut [u8],
    ) -> Result<(), CryptoError> {
        let failed = |_| CryptoError::SkLimit("AES-CBC failed");
        let mut iv = (u128::from(counter)).to_be_bytes();
        let block = EncryptingKey::ecb(self.unbound()?).map_err(failed)?;
        block
            .less_safe_encrypt(&mut iv, EncryptionContext::None)
            .map_err(failed)?;
        let cbc = EncryptingKey::cbc(self.unbound()?).map_err(failed)?;
        let context = EncryptionContext::Iv128(FixedLength::from(iv));
        cbc.less_safe_encrypt(text, context).map_err(failed)?;
        prefix.extend_from_slice(&iv);
        prefix.extend_from_slice(text);
        let tag = hmac::sign(&self.mac, prefix);
        prefix.extend_from_slice(tag.as_ref().get(..self.icv_len).unwrap_or_default());
        Ok(())
    }

    /// The plaintext blocks of `body`, which `prefix` comes before.
    pub(super) fn open(&self, prefix: &[u8], body: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let least = self.overhead() + BLOCK;
        let too_short = CryptoError::SkTooShort {
            least,
            got: body.len(),
        };
        if body.len() < least {
            return Err(too_short);
        }
        let (sealed, icv) = body
            .split_at_checked(body.len() - self.icv_len)
            .ok_or_else(|| too_short.clone())?;
        let mut mac = hmac::Context::with_key(&self.mac);
        mac.update(prefix);
        mac.update(sealed);
        let tag = mac.sign();
        let expected = tag.as_ref().get(..self.icv_len).unwrap_or_default();
        if !bool::from(expected.ct_eq(icv)) {
            return Err(CryptoError::SkAuthentication);
        }
        let (iv, text) = sealed.split_first_chunk::<BLOCK>().ok_or(too_short)?;
        let mut text = text.to_vec();
        let failed = |_| CryptoError::SkAuthentication;
        let cbc = DecryptingKey::cbc(self.unbound()?).map_err(failed)?;
        let context = DecryptionContext::Iv128(FixedLength::from(*iv));
        cbc.decrypt(&mut text, context).map_err(failed)?;
        Ok(text)
    }

    fn unbound(&self) -> Result<UnboundCipherKey, CryptoError> {
        let wrong = |_| CryptoError::KeyLength {
            what: "SK_e",
            expected: self.key.len(),
            got: self.key.len(),
        };
        UnboundCipherKey::new(self.algorithm, self.key.expose()).map_err(wrong)
    }
}
