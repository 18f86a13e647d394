//! What IKEv2 computes: key exchange, key schedule, SK payloads, AUTH data. Nothing here decides anything.
//!
//! In the order in which a handshake uses it: [`kex`] and [`kem`] agree on secrets, [`schedule`] derives keys from it by [`prf`],
//! [`sk`] seals and opens messages with them, [`auth`] computes and checks AUTH payloads.

pub mod auth;
pub mod kem;
pub mod kex;
pub mod prf;
pub mod schedule;
pub mod sk;

pub use auth::{IntAuth, PublicKey, SignatureScheme, SignedOctets, SigningKey};
pub use kem::{Kem, KemKey};
pub use kex::{KexGroup, KeyExchange, SharedSecret};
pub use prf::Prf;
pub use schedule::{
    ChildKeymat, IkeKeys, IkeSuite, Nonces, RoleKeys, Secrets, SkD, SkE, SkP, SkeySeed, Spis,
    child_keymat,
};
pub use sk::{CbcKey, Opener, Sealer, SkCipher, SkIntegrity};

/// Why something could not be computed or did not verify. None of these carries a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// prf+ yields at most 255 blocks (RFC 7296 §2.13).
    #[error("prf+ was asked for {asked} bytes, {most} is the most that {prf:?} can give")]
    TooMuchKeyMaterial {
        /// Bytes wanted.
        asked: usize,
        /// 255 blocks.
        most: usize,
        /// By which function.
        prf: Prf,
    },
    /// A KE payload of the wrong length for its group (RFC 7296 §3.4).
    #[error(
        "public value of {group:?} has {got} bytes, expected {expected}: the peer's KE payload is malformed"
    )]
    PublicValueLength {
        /// Which group.
        group: KexGroup,
        /// What the group says.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// A public value that is no valid point, or of small order: the shared secret would be known to anyone.
    #[error(
        "public value of {0:?} was refused (not on the curve, or the shared secret would be all zero)"
    )]
    PublicValueRefused(KexGroup),
    /// The provider could not make a key.
    #[error("no {0:?} key could be made from the random generator's output")]
    KeyGeneration(KexGroup),
    /// A KE payload of the wrong length for its key encapsulation mechanism.
    #[error(
        "{what} of {kem:?} has {got} bytes, expected {expected}: the peer's KE payload is malformed"
    )]
    KemLength {
        /// Which mechanism.
        kem: Kem,
        /// Key or ciphertext.
        what: &'static str,
        /// What the mechanism says.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// A key that is none, or no randomness.
    #[error("{0:?} failed: the peer's key is not valid, or there is no randomness")]
    KemFailed(Kem),
    /// Key bytes of the wrong length.
    #[error("{what} has {got} bytes, expected {expected}")]
    KeyLength {
        /// Which key.
        what: &'static str,
        /// Wanted.
        expected: usize,
        /// Got.
        got: usize,
    },
    /// An SK payload too short for IV, pad length and ICV.
    #[error("encrypted payload has {got} bytes, at least {least} expected")]
    SkTooShort {
        /// IV, pad length and ICV.
        least: usize,
        /// What came.
        got: usize,
    },
    /// ICV mismatch: forged, damaged, or sealed with other keys.
    #[error("encrypted payload does not authenticate: damaged, forged, or sealed with other keys")]
    SkAuthentication,
    /// The pad length exceeds the plaintext (RFC 7296 §3.14).
    #[error("encrypted payload's pad length {pad} exceeds its {plaintext} bytes of plaintext")]
    SkPadding {
        /// Pad length octet.
        pad: usize,
        /// Bytes before it.
        plaintext: usize,
    },
    /// The message would not fit its length field, or the IV counter ran out.
    #[error("message cannot be sealed: {0}")]
    SkLimit(&'static str),
    /// AUTH data does not verify.
    #[error("AUTH payload refused: {0}")]
    Auth(#[from] AuthError),
}

/// Why an AUTH payload was refused (RFC 7296 §2.15, RFC 7427).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// A PSK that is too short to be safe against guessing.
    #[error(
        "pre-shared key has {got} bytes, at least {least} expected: make one with `espalier pki psk --out FILE`"
    )]
    PskTooShort {
        /// [`auth::MIN_PSK_LEN`].
        least: usize,
        /// Bytes given.
        got: usize,
    },
    /// The MAC differs.
    #[error("the peer's pre-shared key differs from ours: put the same key file on both nodes")]
    PskMismatch,
    /// RFC 7427 framing is broken.
    #[error("signature data is malformed: {0}")]
    Malformed(String),
    /// An AlgorithmIdentifier that is not byte for byte one of ours.
    #[error(
        "signature algorithm {0} is not supported: use ecdsa-with-SHA256 (P-256), ecdsa-with-SHA384 (P-384) or Ed25519"
    )]
    UnsupportedAlgorithm(String),
    /// The signature names another algorithm than the certificate's key is for.
    #[error("signature says {signed:?} but the certificate's key is for {certified:?}")]
    SchemeMismatch {
        /// In the AUTH payload.
        signed: SignatureScheme,
        /// In the certificate.
        certified: SignatureScheme,
    },
    /// The signature is wrong.
    #[error(
        "the signature does not fit the certificate's key: the peer does not hold the private key, or the handshake was altered"
    )]
    BadSignature,
    /// A public key that is none of ours.
    #[error(
        "the certificate's key is none of P-256, P-384 and Ed25519: issue a new one with `espalier pki issue`"
    )]
    UnsupportedKey,
    /// The provider failed to sign.
    #[error("signing failed")]
    Signing,
}

#[cfg(test)]
pub(crate) mod test_vectors;
