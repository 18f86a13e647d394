//! CA certificates: one, and the set that nodes trust.

use std::time::Duration;

use espalier_ike::crypto::PublicKey;
use sha2::{Digest as _, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::{FromDer as _, Pem};

use crate::{PkiError, Validity, fingerprint, hex, since_epoch};

const LABEL: &str = "CERTIFICATE";

/// A CA's certificate that may sign nodes' certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    der: Vec<u8>,
    spki: Vec<u8>,
    subject: String,
    validity: Validity,
}

impl Anchor {
    /// Reads DER.
    ///
    /// # Errors
    /// [`PkiError::Malformed`], [`PkiError::NotCa`], [`PkiError::PublicKey`].
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let certificate = parse(der)?;
        let subject = certificate.subject().to_string();
        let usage = certificate.key_usage().ok().flatten();
        if !certificate.is_ca() || usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(PkiError::NotCa(subject));
        }
        let spki = certificate.tbs_certificate.subject_pki.raw.to_vec();
        PublicKey::from_spki(&spki).map_err(|_| PkiError::PublicKey("the CA's certificate"))?;
        Ok(Self {
            der: der.to_vec(),
            spki,
            subject,
            validity: validity(&certificate),
        })
    }

    /// The first certificate in `pem`.
    ///
    /// # Errors
    /// As [`Anchor::from_der`]; [`PkiError::Pem`].
    pub fn first_of(pem: &[u8]) -> Result<Self, PkiError> {
        let found = certificates("the CA's certificate", pem)?;
        // There is one at least.
        Self::from_der(found.first().map_or(&[], Vec::as_slice))
    }

    /// Its DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Its PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        pem(&self.der)
    }

    /// SHA-256 of its DER, in hex.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.der)
    }

    /// Its subject, such as `CN=Espalier CA 12345678`.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// From when until when.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// DER of its SubjectPublicKeyInfo.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Whether it is valid at `now`.
    ///
    /// # Errors
    /// [`PkiError::CaNotValid`].
    pub fn check_valid(&self, now: Duration) -> Result<(), PkiError> {
        if self.validity.contains(now) {
            return Ok(());
        }
        let certificate = parse(&self.der)?;
        Err(PkiError::CaNotValid {
            subject: self.subject.clone(),
            from: certificate.validity().not_before.to_string(),
            until: certificate.validity().not_after.to_string(),
        })
    }

    /// Whether it signed `certificate`.
    pub(crate) fn signed(&self, certificate: &X509Certificate<'_>) -> bool {
        parse(&self.der).is_ok_and(|own| {
            own.subject().as_raw() == certificate.issuer().as_raw()
                && certificate
                    .verify_signature(Some(&own.tbs_certificate.subject_pki))
                    .is_ok()
        })
    }
}

/// The CA certificates that nodes trust, the one made last first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle(Vec<Anchor>);

impl Bundle {
    /// Of these, without repeats.
    #[must_use]
    pub fn new(anchors: impl IntoIterator<Item = Anchor>) -> Self {
        let mut bundle = Self::default();
        for anchor in anchors {
            if !bundle.contains(&anchor.fingerprint()) {
                bundle.0.push(anchor);
            }
        }
        bundle
    }

    /// All certificates of `pem`, at least one.
    ///
    /// # Errors
    /// As [`Anchor::first_of`].
    pub fn read(pem: &[u8]) -> Result<Self, PkiError> {
        let found = certificates("the trust bundle", pem)?;
        let anchors: Result<Vec<_>, _> = found.iter().map(|der| Anchor::from_der(der)).collect();
        Ok(Self::new(anchors?))
    }

    /// In order.
    #[must_use]
    pub fn anchors(&self) -> &[Anchor] {
        &self.0
    }

    /// Whether a CA with this fingerprint is in it.
    #[must_use]
    pub fn contains(&self, fingerprint: &str) -> bool {
        self.0
            .iter()
            .any(|anchor| anchor.fingerprint() == fingerprint)
    }

    /// For `ca.crt`.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.iter().map(Anchor::pem).collect()
    }

    /// Tells bundles apart (MeshNode's status.certificate.trust): SHA-256, in hex, of the sorted fingerprints. Order and
    /// layout of the PEM do not matter.
    #[must_use]
    pub fn hash(&self) -> String {
        let mut fingerprints: Vec<String> = self.0.iter().map(Anchor::fingerprint).collect();
        fingerprints.sort();
        hex(&Sha256::digest(fingerprints.join("\n")))
    }
}

/// DER of all certificates in `pem`, at least one.
pub(crate) fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<Vec<u8>>, PkiError> {
    let wrong = |why: String| PkiError::Pem {
        what,
        why,
        expected: LABEL,
    };
    let mut found = Vec::new();
    for section in Pem::iter_from_buffer(pem) {
        let section = section.map_err(|error| wrong(error.to_string()))?;
        if section.label == LABEL {
            found.push(section.contents);
        }
    }
    if found.is_empty() {
        return Err(wrong("none found".into()));
    }
    Ok(found)
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PkiError> {
    let malformed = |why: String| PkiError::Malformed {
        what: "the certificate",
        why,
    };
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(malformed(format!("{} bytes after its end", rest.len()))),
        Err(error) => Err(malformed(error.to_string())),
    }
}

pub(crate) fn validity(certificate: &X509Certificate<'_>) -> Validity {
    Validity {
        from: since_epoch(certificate.validity().not_before.timestamp()),
        until: since_epoch(certificate.validity().not_after.timestamp()),
    }
}

/// RFC 7468.
fn pem(der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(LABEL, der), config)
}
