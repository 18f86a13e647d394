//! Encrypted payloads: SK (RFC 7296 §3.14) and SKF (RFC 7383 §2.5) with an AEAD (RFC 5282).
//!
//! ```text
//! IKE header │ generic header of SK │ [SKF: fragment number, total] │ IV (8) │ ciphertext: inner │ pad │ pad length │ ICV (16)
//! └──────────────────────── associated data ─────────────────────────┘
//! ```

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes128Gcm, Aes256Gcm, KeyInit};
use espalier_secret::SecretBytes;
use zeroize::Zeroizing;

use super::CryptoError;
use crate::wire::{self, Header, PayloadType};

/// Bytes that sealing adds to prefix and inner payloads: IV, pad length, ICV.
pub const SK_OVERHEAD: usize = IV_LEN + 1 + ICV_LEN;

/// Largest SK or SKF body: IKE header, generic header and SKF's fields come before it.
const MAX_BODY: usize = wire::MAX_MESSAGE - wire::HEADER_LEN - wire::PAYLOAD_HEADER_LEN - 4;
const SALT_LEN: usize = 4;
const IV_LEN: usize = 8;
const ICV_LEN: usize = 16;

/// An AEAD for SK payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkCipher {
    /// ENCR_AES_GCM_16 with a 256-bit key.
    Aes256Gcm16,
    /// ENCR_AES_GCM_16 with a 128-bit key.
    Aes128Gcm16,
}

impl SkCipher {
    /// The cipher of an IKEv2 transform of type 1: ID and key length attribute (in bits).
    #[must_use]
    pub fn from_transform(id: u16, key_length: Option<u16>) -> Option<Self> {
        match (id, key_length) {
            (wire::encr::AES_GCM_16, Some(256)) => Some(Self::Aes256Gcm16),
            (wire::encr::AES_GCM_16, Some(128)) => Some(Self::Aes128Gcm16),
            _ => None,
        }
    }

    /// IKEv2 transform of type 1: ID and key length attribute (in bits).
    #[must_use]
    pub fn transform(self) -> (u16, Option<u16>) {
        match self {
            Self::Aes256Gcm16 => (wire::encr::AES_GCM_16, Some(256)),
            Self::Aes128Gcm16 => (wire::encr::AES_GCM_16, Some(128)),
        }
    }

    /// Bytes of key and salt per direction (RFC 5282 §7.1).
    #[must_use]
    pub fn keymat_len(self) -> usize {
        match self {
            Self::Aes256Gcm16 => 32 + SALT_LEN,
            Self::Aes128Gcm16 => 16 + SALT_LEN,
        }
    }
}

/// Seals this end's messages. The IV is a counter, there is one sealer per key, and it cannot be cloned: no nonce repeats.
/// A retransmission is the same bytes again, never a second sealing.
pub struct Sealer {
    aead: Aead,
    next_iv: u64,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer")
            .field("next_iv", &self.next_iv)
            .finish_non_exhaustive()
    }
}

impl Sealer {
    /// From SK_ei or SK_er: key followed by salt.
    pub(super) fn new(cipher: SkCipher, keymat: &SecretBytes) -> Result<Self, CryptoError> {
        Ok(Self {
            aead: Aead::new(cipher, keymat)?,
            next_iv: 0,
        })
    }

    /// A whole message: `header` and one SK payload with `inner` in it, whose first payload is of type `first_inner`.
    ///
    /// # Errors
    /// [`CryptoError::SkLimit`] after 2⁶⁴ − 1 messages or when the message would exceed 2¹⁶ − 1 bytes.
    pub fn seal_message(
        &mut self,
        header: &Header,
        first_inner: PayloadType,
        inner: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let prefix = wire::emit_encrypted_prefix(header, first_inner, body_len(inner)?);
        self.seal(prefix, inner)
    }

    /// A message with fragment `number` of `total`. `first_inner` is the type of the first payload of the whole in
    /// fragment 1, else [`PayloadType::None`].
    ///
    /// # Errors
    /// As [`Sealer::seal_message`].
    pub fn seal_fragment(
        &mut self,
        header: &Header,
        first_inner: PayloadType,
        (number, total): (u16, u16),
        inner: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let prefix =
            wire::emit_fragment_prefix(header, first_inner, (number, total), body_len(inner)?);
        self.seal(prefix, inner)
    }

    /// `prefix` is all that comes before the IV: it is authenticated, and the result begins with it.
    fn seal(&mut self, mut prefix: Vec<u8>, inner: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let iv = self.take_iv()?;
        // RFC 5282 §3: an AEAD needs no padding, so the pad length is 0.
        let mut text = Zeroizing::new([inner, &[0]].concat());
        let icv = self.aead.seal(iv, &prefix, &mut text)?;
        for part in [&iv, text.as_slice(), &icv] {
            prefix.extend_from_slice(part);
        }
        Ok(prefix)
    }

    fn take_iv(&mut self) -> Result<[u8; IV_LEN], CryptoError> {
        let iv = self.next_iv;
        self.next_iv = iv
            .checked_add(1)
            .ok_or(CryptoError::SkLimit("IV counter ran out"))?;
        Ok(iv.to_be_bytes())
    }
}

/// Opens the other end's messages. Stateless: message IDs are the replay protection (RFC 7296 §2.2).
#[derive(Clone)]
pub struct Opener(Aead);

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener(redacted)")
    }
}

impl Opener {
    /// From SK_ei or SK_er: key followed by salt.
    pub(super) fn new(cipher: SkCipher, keymat: &SecretBytes) -> Result<Self, CryptoError> {
        Aead::new(cipher, keymat).map(Self)
    }

    /// The inner payloads of `datagram`, whose first `aad_len` bytes come before the IV. The encrypted payload is the last
    /// one: it ends where the datagram ends.
    ///
    /// # Errors
    /// Too short, not authentic, or a pad length beyond the plaintext.
    pub fn open(&self, datagram: &[u8], aad_len: usize) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let least = SK_OVERHEAD;
        let (aad, body) = datagram
            .split_at_checked(aad_len)
            .unwrap_or((datagram, &[]));
        let too_short = CryptoError::SkTooShort {
            least,
            got: body.len(),
        };
        if body.len() < least {
            return Err(too_short);
        }
        let (iv, rest) = body.split_first_chunk().ok_or(too_short.clone())?;
        let (text, tag) = rest.split_last_chunk().ok_or(too_short)?;
        let mut text = Zeroizing::new(text.to_vec());
        self.0.open(*iv, aad, &mut text, tag)?;
        strip_padding(text)
    }
}

fn body_len(inner: &[u8]) -> Result<usize, CryptoError> {
    let len = inner.len() + SK_OVERHEAD;
    if len > MAX_BODY {
        Err(CryptoError::SkLimit(
            "payloads do not fit into 65535 bytes, send less",
        ))
    } else {
        Ok(len)
    }
}

/// Content of the padding is the sender's choice (RFC 7296 §3.14): only its length is checked.
fn strip_padding(mut text: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let pad = usize::from(text.pop().unwrap_or_default());
    let kept = text.len().checked_sub(pad).ok_or(CryptoError::SkPadding {
        pad,
        plaintext: text.len(),
    })?;
    text.truncate(kept);
    Ok(text)
}

/// Nonce = salt (4) | IV (8), RFC 5282 §4.
#[derive(Clone)]
struct Aead {
    salt: Zeroizing<[u8; SALT_LEN]>,
    key: Key,
}

#[derive(Clone)]
enum Key {
    Aes256(Box<Aes256Gcm>),
    Aes128(Box<Aes128Gcm>),
}

impl Aead {
    fn new(cipher: SkCipher, keymat: &SecretBytes) -> Result<Self, CryptoError> {
        let wrong = || CryptoError::KeyLength {
            what: "SK_e",
            expected: cipher.keymat_len(),
            got: keymat.len(),
        };
        let (key, salt) = keymat
            .expose()
            .split_last_chunk::<SALT_LEN>()
            .ok_or_else(wrong)?;
        let key = match cipher {
            SkCipher::Aes256Gcm16 => Key::Aes256(Box::new(
                Aes256Gcm::new_from_slice(key).map_err(|_| wrong())?,
            )),
            SkCipher::Aes128Gcm16 => Key::Aes128(Box::new(
                Aes128Gcm::new_from_slice(key).map_err(|_| wrong())?,
            )),
        };
        Ok(Self {
            salt: Zeroizing::new(*salt),
            key,
        })
    }

    fn nonce(&self, iv: [u8; IV_LEN]) -> [u8; SALT_LEN + IV_LEN] {
        let [a, b, c, d] = *self.salt;
        let [e, f, g, h, i, j, k, l] = iv;
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }

    fn seal(
        &self,
        iv: [u8; IV_LEN],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; ICV_LEN], CryptoError> {
        let nonce = self.nonce(iv).into();
        let buffer = InOutBuf::from(text);
        let tag = match &self.key {
            Key::Aes256(key) => key.encrypt_inout_detached(&nonce, aad, buffer),
            Key::Aes128(key) => key.encrypt_inout_detached(&nonce, aad, buffer),
        };
        tag.map(Into::into)
            .map_err(|_| CryptoError::SkLimit("plaintext exceeds what AES-GCM allows"))
    }

    fn open(
        &self,
        iv: [u8; IV_LEN],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; ICV_LEN],
    ) -> Result<(), CryptoError> {
        let (nonce, tag) = (self.nonce(iv).into(), (*tag).into());
        let buffer = InOutBuf::from(text);
        let opened = match &self.key {
            Key::Aes256(key) => key.decrypt_inout_detached(&nonce, aad, buffer, &tag),
            Key::Aes128(key) => key.decrypt_inout_detached(&nonce, aad, buffer, &tag),
        };
        opened.map_err(|_| CryptoError::SkAuthentication)
    }
}

#[cfg(test)]
mod tests;
