//! A private key that is wiped when dropped and never printed.

use std::fmt;

use espalier_ike::crypto::PublicKey;
use espalier_secret::SecretBytes;
use rcgen::{KeyPair, PublicKeyData as _};
use zeroize::Zeroize as _;

use crate::PkiError;

/// A node's or a CA's key: ECDSA P-256 when made here; also P-384 and Ed25519 when read.
pub struct NodeKey(pub(crate) KeyPair);

impl NodeKey {
    /// Makes a key with the system's random bytes.
    ///
    /// # Errors
    /// [`PkiError::Making`].
    pub fn generate() -> Result<Self, PkiError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// Reads PKCS#8 or SEC 1 PEM; `what` is named in errors. The caller wipes `pem`.
    ///
    /// # Errors
    /// [`PkiError::PrivateKey`], [`PkiError::PublicKey`].
    pub fn from_pem(what: &'static str, pem: &[u8]) -> Result<Self, PkiError> {
        let text = std::str::from_utf8(pem).map_err(|_| PkiError::PrivateKey(what))?;
        let key = Self(KeyPair::from_pem(text).map_err(|_| PkiError::PrivateKey(what))?);
        PublicKey::from_spki(&key.spki()).map_err(|_| PkiError::PublicKey(what))?;
        Ok(key)
    }

    /// PKCS#8 in PEM.
    #[must_use]
    pub fn pem(&self) -> SecretBytes {
        let mut text = self.0.serialize_pem().into_bytes();
        let secret = SecretBytes::copy_from(&text);
        text.zeroize();
        secret
    }

    /// DER of the SubjectPublicKeyInfo.
    #[must_use]
    pub fn spki(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }
}

impl Drop for NodeKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(redacted)")
    }
}
