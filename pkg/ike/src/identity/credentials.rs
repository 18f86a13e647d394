//! This node's own certificate chain and private key.

use std::path::Path;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::{Zeroize, Zeroizing};

use super::verify::{self, VerifiedPeer};
use super::{IdentityError, TrustAnchors};
use crate::config::Identity;
use crate::crypto::{AuthError, PublicKey, SignatureScheme, SignedOctets, SigningKey};

/// A certificate chain (own certificate first) and its private key. Cheap to clone; the key is never printed.
#[derive(Clone, Debug)]
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: SigningKey,
    not_after: Duration,
}

impl Credentials {
    /// From the contents of PEM files: certificates, own first, and a PKCS#8 or SEC 1 key. The caller wipes `key_pem`.
    ///
    /// # Errors
    /// Broken PEM, an unsupported key, a key that belongs to another certificate.
    pub fn from_pem(chain_pem: &[u8], key_pem: &[u8]) -> Result<Self, IdentityError> {
        let chain = certificates("certificate", chain_pem)?;
        let mut key =
            PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| IdentityError::Pem {
                what: "private key",
                reason: error.to_string(),
            })?;
        let parsed = SigningKey::from_der(key.secret_der());
        key.zeroize();
        Self::new(chain, parsed?)
    }

    /// From PEM files.
    ///
    /// # Errors
    /// As [`Credentials::from_pem`]; a file that cannot be read is named.
    pub fn from_files(chain: &Path, key: &Path) -> Result<Self, IdentityError> {
        Self::from_pem(&read(chain)?, &read(key)?)
    }

    fn new(chain: Vec<CertificateDer<'static>>, key: SigningKey) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or(IdentityError::NoCertificate)?;
        let parsed = verify::parse(leaf)?;
        let certified = PublicKey::from_spki(parsed.tbs_certificate.subject_pki.raw)?;
        if certified.scheme() != key.scheme() || certified.raw() != key.public_raw() {
            return Err(IdentityError::KeyMismatch {
                subject: verify::printable(&parsed.subject().to_string()),
            });
        }
        let not_after = verify::since_epoch(parsed.validity().not_after.timestamp());
        Ok(Self {
            chain,
            key,
            not_after,
        })
    }

    /// DER certificates for CERT payloads (encoding 4), own first.
    pub fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.chain.iter().map(AsRef::as_ref)
    }

    /// The scheme that this node signs with: the peer must list its hash in SIGNATURE_HASH_ALGORITHMS.
    #[must_use]
    pub fn scheme(&self) -> SignatureScheme {
        self.key.scheme()
    }

    /// End of the own certificate's validity since the epoch, for status and renewal.
    #[must_use]
    pub fn not_after(&self) -> Duration {
        self.not_after
    }

    /// AUTH data of method 14 over this node's signed octets.
    ///
    /// # Errors
    /// [`AuthError::Signing`].
    pub fn sign(&self, octets: &SignedOctets) -> Result<Vec<u8>, AuthError> {
        self.key.sign_auth(octets)
    }

    /// Whether a peer with the same trust anchors would accept this node now: the same check on the own chain.
    ///
    /// # Errors
    /// As [`super::verify_peer`].
    pub fn check(
        &self,
        anchors: &TrustAnchors,
        own: &Identity,
        uid: Option<&str>,
        unix: Duration,
    ) -> Result<VerifiedPeer, IdentityError> {
        let chain: Vec<&[u8]> = self.chain().collect();
        super::verify_peer(anchors, &chain, own, uid, unix)
    }
}

/// All certificates of a PEM file, at least one.
pub(super) fn certificates(
    what: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| IdentityError::Pem {
        what,
        reason: error.to_string(),
    })?;
    if found.is_empty() {
        return Err(IdentityError::Pem {
            what,
            reason: "no CERTIFICATE section".into(),
        });
    }
    Ok(found)
}

/// A whole file, wiped after use since it may hold a key.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let error = |error: std::io::Error| IdentityError::File {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    std::fs::read(path).map(Zeroizing::new).map_err(error)
}
