//! What can be wrong with a certificate, said so that an operator can mend it.

use crate::crypto::AuthError;

/// Why credentials cannot be used or a peer's chain was refused. Times are UTC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error(
        "cannot read {path}: {reason}; make it with `espalier pki init` or `espalier pki issue`"
    )]
    File {
        /// Which.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// Not PEM, or a PEM section of the expected kind is missing.
    #[error("{what}: {reason}; expected PEM as `espalier pki issue` writes it")]
    Pem {
        /// Certificate, private key or trust anchor.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Private key and certificate are no pair.
    #[error(
        "the private key does not belong to the certificate of {subject}: files of two issues were mixed, issue both anew with `espalier pki issue`"
    )]
    KeyMismatch {
        /// Of the certificate.
        subject: String,
    },
    /// A trust anchor that is no CA.
    #[error(
        "trust anchor {subject} is not a CA certificate: give ca.crt, not a node's certificate"
    )]
    AnchorNotCa {
        /// Of the certificate.
        subject: String,
    },
    /// Nothing to check.
    #[error("the peer sent no certificate: configure one on it, or a PSK on both sides")]
    NoCertificate,
    /// No CA configured.
    #[error("no trust anchor is configured: give the CA certificate (ca.crt) to this node")]
    NoTrustAnchor,
    /// Too many certificates.
    #[error(
        "chain has {got} certificates, at most {most} are accepted: leave out the root and unrelated ones"
    )]
    ChainTooLong {
        /// Sent.
        got: usize,
        /// [`super::MAX_CHAIN_LEN`].
        most: usize,
    },
    /// Too many bytes.
    #[error("chain has {got} bytes, at most {most} are accepted: use smaller certificates")]
    ChainTooLarge {
        /// Sent.
        got: usize,
        /// [`super::MAX_CHAIN_BYTES`].
        most: usize,
    },
    /// Not a certificate that we can read.
    #[error("certificate cannot be read ({0}): issue it anew with `espalier pki issue`")]
    Malformed(String),
    /// Past its end.
    #[error(
        "certificate of {subject} expired: valid until {until}, now it is {now}; renew it with `espalier pki issue`, or set the clock right"
    )]
    Expired {
        /// Whose.
        subject: String,
        /// Its end.
        until: String,
        /// The time that it was checked for.
        now: String,
    },
    /// Before its beginning.
    #[error(
        "certificate of {subject} is not yet valid: valid from {from}, now it is {now}; set the clocks of both nodes right"
    )]
    NotYetValid {
        /// Whose.
        subject: String,
        /// Its beginning.
        from: String,
        /// The time that it was checked for.
        now: String,
    },
    /// The configured CA itself is outside its validity.
    #[error(
        "CA certificate {subject} is not valid now ({now}), only from {from} until {until}: make a new CA with `espalier pki init` and add it to every node's trust anchors"
    )]
    AnchorNotValid {
        /// The CA's.
        subject: String,
        /// Its beginning.
        from: String,
        /// Its end.
        until: String,
        /// The time that it was checked for.
        now: String,
    },
    /// No path to an anchor.
    #[error(
        "certificate of {subject} was issued by {issuer}, which this node does not trust (it trusts: {trusted}): issue it by that CA, or add its CA to this node's trust anchors"
    )]
    UnknownIssuer {
        /// Whose certificate.
        subject: String,
        /// Who signed it, as it says.
        issuer: String,
        /// Subjects of the anchors.
        trusted: String,
    },
    /// The issuer's name is known but its key did not sign this.
    #[error(
        "certificate of {subject} claims to be issued by {issuer}, but was not signed with that CA's key: the CA was made anew (add the new ca.crt to this node), or the certificate is forged"
    )]
    BadSignature {
        /// Whose certificate.
        subject: String,
        /// Who signed it, as it says.
        issuer: String,
    },
    /// The certificate names somebody else.
    #[error(
        "peer claims to be {expected}, but its certificate is for {found}: issue it with `espalier pki issue --node {expected}`"
    )]
    NameMismatch {
        /// The IKE identity.
        expected: String,
        /// DNS SANs.
        found: String,
    },
    /// The certificate is bound to another Node object.
    #[error(
        "certificate is bound to {found}, but node {identity} has UID {expected}: the Node object was made anew, issue the certificate anew with `espalier pki issue --node {identity} --uid {expected}`"
    )]
    UidMismatch {
        /// The IKE identity.
        identity: String,
        /// UID of its Node.
        expected: String,
        /// URI SANs.
        found: String,
    },
    /// id-kp-ipsecIKE is missing.
    #[error(
        "certificate of {subject} lacks the extended key usage id-kp-ipsecIKE (1.3.6.1.5.5.7.3.17): it was not made for IKE, issue one with `espalier pki issue`"
    )]
    MissingEku {
        /// Whose.
        subject: String,
    },
    /// Key usage without digitalSignature.
    #[error(
        "certificate of {subject} lacks the key usage digitalSignature: issue one with `espalier pki issue`"
    )]
    MissingKeyUsage {
        /// Whose.
        subject: String,
    },
    /// A CA's certificate in an end entity's place.
    #[error(
        "certificate of {subject} is a CA certificate: a node needs one of its own, issue it with `espalier pki issue`"
    )]
    CaUsedAsEndEntity {
        /// Whose.
        subject: String,
    },
    /// The chain is signed with an algorithm that we do not take.
    #[error(
        "certificate of {subject} or one above it is signed with an unsupported algorithm: use ECDSA (P-256 with SHA-256, P-384 with SHA-384) or Ed25519, not RSA or SHA-1"
    )]
    UnsupportedAlgorithm {
        /// Whose.
        subject: String,
    },
    /// Anything else that path validation found (RFC 5280 §6).
    #[error(
        "certificate of {subject} was refused ({reason}): issue it anew with `espalier pki issue`"
    )]
    Refused {
        /// Whose.
        subject: String,
        /// As the validation says it.
        reason: String,
    },
    /// Key or signature.
    #[error(transparent)]
    Auth(#[from] AuthError),
}
