//! What can be wrong with a key, a CA, a request or a certificate, and the remedy.

use espalier_ike::identity::IdentityError;

/// Why something was not made, read or signed.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Not RFC 1123.
    #[error(
        "{0:?} is no node name: expected lower-case letters, digits, '-' and '.', as in `kubectl get nodes`"
    )]
    NodeName(String),
    /// Not a UID.
    #[error(
        "{0:?} is no UID: expected 1 to 64 letters, digits and '-', as in metadata.uid of the Node"
    )]
    Uid(String),
    /// Not PEM, or not of the expected kind.
    #[error("{what}: {why}; expected PEM with a section {expected}")]
    Pem {
        /// What was read.
        what: &'static str,
        /// What is wrong.
        why: String,
        /// Its label.
        expected: &'static str,
    },
    /// DER that cannot be read.
    #[error("{what} cannot be read: {why}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A private key that cannot be read. The reason is not shown: it could quote the key.
    #[error(
        "{0} is no private key that can be used: expected PKCS#8 or SEC 1 in PEM, ECDSA P-256, P-384 or Ed25519, not encrypted"
    )]
    PrivateKey(&'static str),
    /// A public key of a kind or size that the mesh does not take.
    #[error("{0}: unsupported public key; use ECDSA P-256 or P-384, or Ed25519, not RSA")]
    PublicKey(&'static str),
    /// The CA's key and certificate are of two CAs.
    #[error(
        "the CA's key does not belong to its certificate ({0}): give both of the same CA, certificate first in its file"
    )]
    KeyMismatch(String),
    /// A certificate that may not sign.
    #[error(
        "certificate of {0} is no CA certificate that may sign (basicConstraints CA, keyUsage keyCertSign): give a CA's"
    )]
    NotCa(String),
    /// The CA has expired or is not valid yet, so nothing that it signs would be accepted.
    #[error(
        "the CA {subject} is valid from {from} until {until} only: replace it, or set the clock right"
    )]
    CaNotValid {
        /// Whose.
        subject: String,
        /// notBefore.
        from: String,
        /// notAfter.
        until: String,
    },
    /// The signature of a request is not by its own key.
    #[error(
        "the request is not signed with its own key: whoever sent it does not hold that key, or it was changed"
    )]
    RequestSignature,
    /// A request that names somebody or something else.
    #[error("the request asks for {found}; expected {expected}")]
    RequestNames {
        /// What it asks for.
        found: String,
        /// What it may ask for.
        expected: String,
    },
    /// Peers would refuse what was made.
    #[error("peers would refuse this certificate: {0}")]
    Refused(#[from] IdentityError),
    /// No random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
    /// Making a key, a signature or an encoding failed.
    #[error("making a key, certificate or request failed: {0}")]
    Making(#[from] rcgen::Error),
}
