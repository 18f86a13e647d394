//! Verification of a peer's certificate chain (RFC 5280 §6, RFC 4945 §5.1).

use std::time::Duration;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::aws_lc_rs::{ECDSA_P256_SHA256, ECDSA_P384_SHA384, ED25519};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::{Oid, oid};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::trust::Anchor;
use super::{IdentityError, TrustAnchors};
use crate::config::Identity;
use crate::crypto::{AuthError, PublicKey, SignedOctets};

/// Most certificates in a chain: a node's own, and three intermediates. More only cost time before the peer is known.
pub const MAX_CHAIN_LEN: usize = 4;
/// Most bytes in a chain: four ECDSA certificates have about 2 KiB, so there is room for long names and SANs.
pub const MAX_CHAIN_BYTES: usize = 16 * 1024;
/// Begins the URI SAN that binds a certificate to a Node object: `espalier://node/<name>/<uid>`.
pub const NODE_URI_PREFIX: &str = "espalier://node/";

/// id-kp-ipsecIKE (RFC 4945 §5.1.3.12), content octets of the OID.
const EKU_IPSEC_IKE: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x03\x11";
const EKU_IPSEC_IKE_OID: Oid<'_> = oid!(1.3.6.1.5.5.7.3.17);
/// For certificates, not for AUTH: no RSA, no SHA-1.
const CERTIFICATE_SIGNATURES: [&dyn SignatureVerificationAlgorithm; 3] =
    [ECDSA_P256_SHA256, ECDSA_P384_SHA384, ED25519];
/// A subject is the peer's text: only so much of it reaches messages and logs.
const MAX_PRINTED: usize = 128;

/// Proof that a chain leads to a trust anchor and that its first certificate is the expected node's. It does not prove
/// that the peer holds the private key: [`VerifiedPeer::verify_signature`] does.
#[derive(Clone, Debug)]
pub struct VerifiedPeer {
    identity: Identity,
    uid: Option<String>,
    key: PublicKey,
    not_after: Duration,
}

impl VerifiedPeer {
    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// UID of its Node, if the certificate has one.
    #[must_use]
    pub fn uid(&self) -> Option<&str> {
        self.uid.as_deref()
    }

    /// End of the certificate's validity since the epoch.
    #[must_use]
    pub fn not_after(&self) -> Duration {
        self.not_after
    }

    /// Checks the peer's AUTH data of method 14 over the peer's signed octets.
    ///
    /// # Errors
    /// Malformed data, another algorithm than the certificate's key is for, a wrong signature.
    pub fn verify_signature(&self, octets: &SignedOctets, data: &[u8]) -> Result<(), AuthError> {
        self.key.verify_auth(octets, data)
    }
}

/// Checks `chain` (DER, the peer's own certificate first) at the time `unix` (since the epoch): it leads to an anchor, is
/// made for IKE, and names `expected` in a DNS SAN. When `uid` is given and the certificate names UIDs, one must be `uid`.
///
/// # Errors
/// One [`IdentityError`] for each way to fail, with cause and remedy.
pub fn verify_peer(
    anchors: &TrustAnchors,
    chain: &[&[u8]],
    expected: &Identity,
    uid: Option<&str>,
    unix: Duration,
) -> Result<VerifiedPeer, IdentityError> {
    let leaf_der = check_bounds(anchors, chain)?;
    check_path(anchors, leaf_der, chain, unix)?;
    let leaf = parse(leaf_der)?;
    check_usage(&leaf)?;
    let names = Names::of(&leaf)?;
    names.check_dns(expected)?;
    let uid = names.check_uid(expected, uid)?;
    let key = PublicKey::from_spki(leaf.tbs_certificate.subject_pki.raw)?;
    let not_after = since_epoch(leaf.validity().not_after.timestamp());
    Ok(VerifiedPeer {
        identity: expected.clone(),
        uid,
        key,
        not_after,
    })
}

/// Cheap checks before anything is parsed.
fn check_bounds<'a>(anchors: &TrustAnchors, chain: &[&'a [u8]]) -> Result<&'a [u8], IdentityError> {
    if anchors.is_empty() {
        return Err(IdentityError::NoTrustAnchor);
    }
    if chain.len() > MAX_CHAIN_LEN {
        return Err(IdentityError::ChainTooLong {
            got: chain.len(),
            most: MAX_CHAIN_LEN,
        });
    }
    let bytes = chain.iter().map(|certificate| certificate.len()).sum();
    if bytes > MAX_CHAIN_BYTES {
        return Err(IdentityError::ChainTooLarge {
            got: bytes,
            most: MAX_CHAIN_BYTES,
        });
    }
    chain.first().copied().ok_or(IdentityError::NoCertificate)
}

fn check_path(
    anchors: &TrustAnchors,
    leaf_der: &[u8],
    chain: &[&[u8]],
    unix: Duration,
) -> Result<(), IdentityError> {
    let leaf_der = CertificateDer::from(leaf_der);
    let leaf = EndEntityCert::try_from(&leaf_der).map_err(malformed)?;
    let above: Vec<CertificateDer<'_>> = chain
        .iter()
        .skip(1)
        .map(|der| CertificateDer::from(*der))
        .collect();
    let valid: Vec<TrustAnchor<'static>> = anchors
        .all()
        .iter()
        .filter(|anchor| anchor.valid_at(unix))
        .map(|anchor| anchor.anchor.clone())
        .collect();
    let time = UnixTime::since_unix_epoch(unix);
    // If present: a CA above a node's certificate need not have an EKU. The node's own is required by check_usage.
    let usage = KeyUsage::required_if_present(EKU_IPSEC_IKE);
    leaf.verify_for_usage(
        &CERTIFICATE_SIGNATURES,
        &valid,
        &above,
        time,
        usage,
        None,
        None,
    )
    .map(drop)
    .map_err(|error| explain(error, anchors, chain, unix))
}

fn malformed(error: webpki::Error) -> IdentityError {
    IdentityError::Malformed(match error {
        webpki::Error::SignatureAlgorithmMismatch => {
            "its inner and outer signature algorithms differ: it was altered".into()
        }
        other => other.to_string(),
    })
}

/// RFC 4945 §5.1.3.2 and §5.1.3.12.
fn check_usage(leaf: &X509Certificate<'_>) -> Result<(), IdentityError> {
    let subject = || printable(&leaf.subject().to_string());
    let unreadable =
        |error: x509_parser::error::X509Error| IdentityError::Malformed(error.to_string());
    let eku = leaf.extended_key_usage().map_err(unreadable)?;
    if !eku.is_some_and(|eku| eku.value.other.contains(&EKU_IPSEC_IKE_OID)) {
        return Err(IdentityError::MissingEku { subject: subject() });
    }
    match leaf.key_usage().map_err(unreadable)? {
        Some(usage) if !usage.value.digital_signature() => {
            Err(IdentityError::MissingKeyUsage { subject: subject() })
        }
        _ => Ok(()),
    }
}

/// The SANs that we look at.
struct Names<'a> {
    dns: Vec<&'a str>,
    nodes: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn of(leaf: &'a X509Certificate<'_>) -> Result<Self, IdentityError> {
        let san = leaf
            .subject_alternative_name()
            .map_err(|error| IdentityError::Malformed(error.to_string()))?;
        let mut names = Self {
            dns: Vec::new(),
            nodes: Vec::new(),
        };
        for name in san.iter().flat_map(|san| &san.value.general_names) {
            match name {
                GeneralName::DNSName(dns) => names.dns.push(dns),
                GeneralName::URI(uri) => names.nodes.extend(uri.strip_prefix(NODE_URI_PREFIX)),
                _ => {}
            }
        }
        Ok(names)
    }

    /// Exact: no wildcards, no case folding (Node names are lower case), the subject's common name does not count.
    fn check_dns(&self, expected: &Identity) -> Result<(), IdentityError> {
        if self.dns.contains(&&*expected.0) {
            return Ok(());
        }
        let found = if self.dns.is_empty() {
            "no DNS name".into()
        } else {
            printable(&self.dns.join(", "))
        };
        Err(IdentityError::NameMismatch {
            expected: expected.to_string(),
            found,
        })
    }

    /// The UID that the certificate gives `identity`. A binding to another node never counts as one to this.
    fn check_uid(
        &self,
        identity: &Identity,
        expected: Option<&str>,
    ) -> Result<Option<String>, IdentityError> {
        let own = |node: &&'a str| {
            node.strip_prefix(&*identity.0)?
                .strip_prefix('/')
                .filter(|uid| !uid.is_empty())
        };
        let uids: Vec<&str> = self.nodes.iter().filter_map(own).collect();
        match expected {
            Some(expected) if !self.nodes.is_empty() && !uids.contains(&expected) => {
                Err(IdentityError::UidMismatch {
                    identity: identity.to_string(),
                    expected: expected.into(),
                    found: printable(&self.nodes.join(", ")),
                })
            }
            Some(expected) if !uids.is_empty() => Ok(Some(expected.into())),
            _ => Ok(uids.first().map(|uid| (*uid).to_owned())),
        }
    }
}

/// Turns what path validation says into what an operator can use.
fn explain(
    error: webpki::Error,
    anchors: &TrustAnchors,
    chain: &[&[u8]],
    unix: Duration,
) -> IdentityError {
    let leaf = match chain
        .first()
        .map_or(Err(IdentityError::NoCertificate), |der| parse(der))
    {
        Ok(leaf) => leaf,
        Err(error) => return error,
    };
    let subject = printable(&leaf.subject().to_string());
    let issuer = printable(&leaf.issuer().to_string());
    let now = date(unix);
    match error {
        webpki::Error::CertExpired { not_after, .. } => {
            let until = Duration::from_secs(not_after.as_secs());
            IdentityError::Expired {
                subject: whose(&leaf, until, subject),
                until: date(until),
                now,
            }
        }
        webpki::Error::CertNotValidYet { not_before, .. } => {
            let from = Duration::from_secs(not_before.as_secs());
            IdentityError::NotYetValid {
                subject: whose(&leaf, from, subject),
                from: date(from),
                now,
            }
        }
        webpki::Error::UnknownIssuer => match outdated_anchor(anchors, chain, unix) {
            Some(outdated) => outdated,
            None => IdentityError::UnknownIssuer {
                subject,
                issuer,
                trusted: anchors.subjects(),
            },
        },
        webpki::Error::InvalidSignatureForPublicKey => {
            IdentityError::BadSignature { subject, issuer }
        }
        webpki::Error::CaUsedAsEndEntity => IdentityError::CaUsedAsEndEntity { subject },
        webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => {
            IdentityError::MissingEku { subject }
        }
        webpki::Error::UnsupportedSignatureAlgorithmContext(_)
        | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            IdentityError::UnsupportedAlgorithm { subject }
        }
        other => IdentityError::Refused {
            subject,
            reason: printable(&other.to_string()),
        },
    }
}

/// A time that is not the leaf's own belongs to a certificate above it.
fn whose(leaf: &X509Certificate<'_>, at: Duration, subject: String) -> String {
    let validity = leaf.validity();
    let own = [validity.not_before, validity.not_after].map(|time| since_epoch(time.timestamp()));
    if own.contains(&at) {
        subject
    } else {
        format!("a CA above {subject}")
    }
}

/// An anchor that did issue one of the chain's certificates but was left out for its own validity.
fn outdated_anchor(
    anchors: &TrustAnchors,
    chain: &[&[u8]],
    unix: Duration,
) -> Option<IdentityError> {
    let issuers: Vec<String> = chain
        .iter()
        .filter_map(|der| parse(der).ok())
        .map(|certificate| printable(&certificate.issuer().to_string()))
        .collect();
    let outdated = |anchor: &&Anchor| issuers.contains(&anchor.subject) && !anchor.valid_at(unix);
    anchors
        .all()
        .iter()
        .find(outdated)
        .map(|anchor| IdentityError::AnchorNotValid {
            subject: anchor.subject.clone(),
            from: date(anchor.not_before),
            until: date(anchor.not_after),
            now: date(unix),
        })
}

pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| IdentityError::Malformed(printable(&error.to_string())))?;
    Ok(certificate)
}

/// Certificates from before the epoch are not valid now either.
pub(super) fn since_epoch(timestamp: i64) -> Duration {
    Duration::from_secs(u64::try_from(timestamp).unwrap_or_default())
}

/// Text from a certificate, safe for one line of a log.
pub(super) fn printable(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .flat_map(char::escape_debug)
        .take(MAX_PRINTED)
        .collect();
    if text.chars().count() > MAX_PRINTED {
        shown.push('…');
    }
    shown
}

fn date(unix: Duration) -> String {
    let seconds = i64::try_from(unix.as_secs()).unwrap_or(i64::MAX);
    ASN1Time::from_timestamp(seconds).map_or_else(
        |_| format!("{seconds} s since 1970"),
        |time| time.to_string(),
    )
}
