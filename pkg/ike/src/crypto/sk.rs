//! Encrypted payloads: SK (RFC 7296 §3.14) and SKF (RFC 7383 §2.5), with an AEAD (RFC 5282) or, for gateways that have none,
//! AES-CBC and HMAC.
//!
//! ```text
//! IKE header │ generic header of SK │ [SKF: fragment number, total] │ IV │ ciphertext: inner │ pad │ pad length │ ICV
//! └──────────── associated data (CBC: the ICV covers IV and ciphertext, too) ───────────┘
//! ```

mod aead;
mod cbc;
mod cipher;

use espalier_secret::SecretBytes;
use zeroize::Zeroizing;

use super::CryptoError;
use crate::wire::{self, Header, PayloadType};

use aead::{Aead, ICV_LEN, IV_LEN};
use cbc::{BLOCK, Cbc};
pub use cipher::{CbcKey, SkCipher, SkIntegrity};

/// Bytes that sealing with an AEAD adds to prefix and inner payloads: IV, pad length, ICV.
pub const SK_OVERHEAD: usize = IV_LEN + 1 + ICV_LEN;

/// Largest SK or SKF body: IKE header, generic header and SKF's fields come before it.
const MAX_BODY: usize = wire::MAX_MESSAGE - wire::HEADER_LEN - wire::PAYLOAD_HEADER_LEN - 4;

/// Seals this end's messages. The IV is a counter, there is one sealer per key, and it cannot be cloned: no nonce repeats.
/// A retransmission is the same bytes again, never a second sealing.
pub struct Sealer {
    protection: Protection,
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
    /// From SK_ei or SK_er (key followed by salt), or with CBC SK_e followed by SK_a.
    pub(super) fn new(cipher: SkCipher, keymat: &SecretBytes) -> Result<Self, CryptoError> {
        Ok(Self {
            protection: Protection::new(cipher, keymat)?,
            next_iv: 0,
        })
    }

    /// How many bytes of inner payloads fit into an SK or SKF body of at most `room` bytes; 0 where nothing does.
    #[must_use]
    pub fn inner_room(&self, room: usize) -> usize {
        match &self.protection {
            Protection::Aead(_) => room.saturating_sub(SK_OVERHEAD),
            Protection::Cbc(cbc) => {
                let blocks = room.saturating_sub(cbc.overhead()) / BLOCK;
                (blocks * BLOCK).saturating_sub(1)
            }
        }
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
        let body_len = self.protection.body_len(inner)?;
        let prefix = wire::emit_encrypted_prefix(header, first_inner, body_len);
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
        let body_len = self.protection.body_len(inner)?;
        let prefix = wire::emit_fragment_prefix(header, first_inner, (number, total), body_len);
        self.seal(prefix, inner)
    }

    /// `prefix` is all that comes before the IV: it is authenticated, and the result begins with it.
    fn seal(&mut self, mut prefix: Vec<u8>, inner: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let counter = self.take_iv()?;
        match &self.protection {
            Protection::Aead(aead) => {
                // RFC 5282 §3: an AEAD needs no padding, so the pad length is 0.
                let mut text = Zeroizing::new([inner, &[0]].concat());
                let iv = counter.to_be_bytes();
                let icv = aead.seal(iv, &prefix, &mut text)?;
                for part in [&iv, text.as_slice(), &icv] {
                    prefix.extend_from_slice(part);
                }
            }
            Protection::Cbc(cbc) => {
                let mut text = pad_to_blocks(inner);
                cbc.seal(counter, &mut prefix, &mut text)?;
            }
        }
        Ok(prefix)
    }

    fn take_iv(&mut self) -> Result<u64, CryptoError> {
        let iv = self.next_iv;
        self.next_iv = iv
            .checked_add(1)
            .ok_or(CryptoError::SkLimit("IV counter ran out"))?;
        Ok(iv)
    }
}

/// Opens the other end's messages. Stateless: message IDs are the replay protection (RFC 7296 §2.2).
#[derive(Clone)]
pub struct Opener(Protection);

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener(redacted)")
    }
}

impl Opener {
    /// As [`Sealer::new`].
    pub(super) fn new(cipher: SkCipher, keymat: &SecretBytes) -> Result<Self, CryptoError> {
        Protection::new(cipher, keymat).map(Self)
    }

    /// The inner payloads of `datagram`, whose first `aad_len` bytes come before the IV. The encrypted payload is the last
    /// one: it ends where the datagram ends.
    ///
    /// # Errors
    /// Too short, not authentic, or a pad length beyond the plaintext.
    pub fn open(&self, datagram: &[u8], aad_len: usize) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let (aad, body) = datagram
            .split_at_checked(aad_len)
            .unwrap_or((datagram, &[]));
        let text = match &self.0 {
            Protection::Aead(aead) => open_aead(aead, aad, body)?,
            Protection::Cbc(cbc) => Zeroizing::new(cbc.open(aad, body)?),
        };
        strip_padding(text)
    }
}

/// What protects SK payloads of one direction.
#[derive(Clone)]
enum Protection {
    Aead(Aead),
    Cbc(Box<Cbc>),
}

impl Protection {
    fn new(cipher: SkCipher, keymat: &SecretBytes) -> Result<Self, CryptoError> {
        let made = match cipher {
            SkCipher::AesCbc(..) => {
                Cbc::new(cipher, keymat.expose()).map(|cbc| Self::Cbc(Box::new(cbc)))
            }
            _ => Aead::new(cipher, keymat.expose()).map(Self::Aead),
        };
        made.ok_or(CryptoError::KeyLength {
            what: "SK_e",
            expected: cipher.keymat_len() + cipher.integrity_key_len(),
            got: keymat.len(),
        })
    }

    fn body_len(&self, inner: &[u8]) -> Result<usize, CryptoError> {
        let len = match self {
            Self::Aead(_) => inner.len() + SK_OVERHEAD,
            Self::Cbc(cbc) => cbc.overhead() + (inner.len() + 1).next_multiple_of(BLOCK),
        };
        if len > MAX_BODY {
            Err(CryptoError::SkLimit(
                "payloads do not fit into 65535 bytes, send less",
            ))
        } else {
            Ok(len)
        }
    }
}

fn open_aead(aead: &Aead, aad: &[u8], body: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let too_short = CryptoError::SkTooShort {
        least: SK_OVERHEAD,
        got: body.len(),
    };
    if body.len() < SK_OVERHEAD {
        return Err(too_short);
    }
    let (iv, rest) = body.split_first_chunk().ok_or(too_short.clone())?;
    let (text, tag) = rest.split_last_chunk().ok_or(too_short)?;
    let mut text = Zeroizing::new(text.to_vec());
    aead.open(*iv, aad, &mut text, tag)?;
    Ok(text)
}

/// The least padding (RFC 7296 §3.14), all zero, and its length.
fn pad_to_blocks(inner: &[u8]) -> Zeroizing<Vec<u8>> {
    let whole = (inner.len() + 1).next_multiple_of(BLOCK);
    let pad = whole - inner.len() - 1;
    let mut text = Zeroizing::new(Vec::with_capacity(whole));
    text.extend_from_slice(inner);
    text.resize(whole - 1, 0);
    text.push(u8::try_from(pad).unwrap_or_default());
    text
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

#[cfg(test)]
mod tests;
