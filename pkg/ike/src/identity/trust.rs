//! Whom this node believes about others.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest;
use rustls_pki_types::{CertificateDer, TrustAnchor};

use super::verify::{self, printable};
use super::{IdentityError, credentials};

/// CA certificates. Several of them make a rotation: old and new are trusted until the old one is taken out.
#[derive(Clone, Debug, Default)]
pub struct TrustAnchors {
    anchors: Vec<Anchor>,
}

#[derive(Clone, Debug)]
pub(super) struct Anchor {
    pub(super) anchor: TrustAnchor<'static>,
    pub(super) subject: String,
    pub(super) not_before: Duration,
    pub(super) not_after: Duration,
}

impl TrustAnchors {
    /// From the contents of a PEM file with one or more CA certificates.
    ///
    /// # Errors
    /// Broken PEM, no certificate, a certificate that is no CA.
    pub fn from_pem(pem: &[u8]) -> Result<Self, IdentityError> {
        let mut anchors = Self::default();
        for certificate in credentials::certificates("trust anchor", pem)? {
            anchors.add_der(&certificate)?;
        }
        Ok(anchors)
    }

    /// From a PEM file.
    ///
    /// # Errors
    /// As [`TrustAnchors::from_pem`]; a file that cannot be read is named.
    pub fn from_file(path: &Path) -> Result<Self, IdentityError> {
        Self::from_pem(&credentials::read(path)?)
    }

    /// Adds one DER certificate.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`], [`IdentityError::AnchorNotCa`].
    pub fn add_der(&mut self, der: &[u8]) -> Result<(), IdentityError> {
        let parsed = verify::parse(der)?;
        let subject = printable(&parsed.subject().to_string());
        if !parsed.is_ca() {
            return Err(IdentityError::AnchorNotCa { subject });
        }
        let certificate = CertificateDer::from(der);
        let anchor = webpki::anchor_from_trusted_cert(&certificate)
            .map_err(|error| IdentityError::Malformed(error.to_string()))?
            .to_owned();
        let not_before = verify::since_epoch(parsed.validity().not_before.timestamp());
        let not_after = verify::since_epoch(parsed.validity().not_after.timestamp());
        self.anchors.push(Anchor {
            anchor,
            subject,
            not_before,
            not_after,
        });
        Ok(())
    }

    /// True when nobody is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// Data of a CERTREQ payload (RFC 7296 §3.7): SHA-1 of each anchor's SubjectPublicKeyInfo, as the RFC fixes it. They
    /// are look-up keys only, nothing is secured by them.
    #[must_use]
    pub fn certreq(&self) -> Vec<u8> {
        let hash = |anchor: &Anchor| {
            let spki = webpki::spki_for_anchor(&anchor.anchor);
            digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &spki)
        };
        self.anchors
            .iter()
            .flat_map(|anchor| hash(anchor).as_ref().to_vec())
            .collect()
    }

    pub(super) fn all(&self) -> &[Anchor] {
        &self.anchors
    }

    /// Subjects, for messages.
    pub(super) fn subjects(&self) -> String {
        let subjects: Vec<&str> = self
            .anchors
            .iter()
            .map(|anchor| anchor.subject.as_str())
            .collect();
        subjects.join("; ")
    }
}

impl Anchor {
    /// Path validation does not look at an anchor's validity; we do.
    pub(super) fn valid_at(&self, unix: Duration) -> bool {
        self.not_before <= unix && unix <= self.not_after
    }
}
