//! What is wrong with received bytes.

use super::NotifyType;

/// Why bytes are not an IKEv2 message. All of these are the sender's fault; a caller drops the message or answers with
/// [`Error::notify`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end inside a structure.
    #[error(
        "{what}: {need} more bytes expected, {have} are left; the message is cut or a length field is wrong"
    )]
    Truncated {
        /// Structure.
        what: &'static str,
        /// Bytes the next field needs.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
    /// Bytes follow the end of a structure.
    #[error("{what}: {extra} bytes follow its end; a length or next-payload field is wrong")]
    Trailing {
        /// Structure.
        what: &'static str,
        /// How many.
        extra: usize,
    },
    /// A length that the structure cannot have.
    #[error("{what}: expected {expected}, got {got} bytes")]
    Length {
        /// Structure.
        what: &'static str,
        /// Lengths it can have.
        expected: &'static str,
        /// Length it has.
        got: usize,
    },
    /// A field's value that the structure cannot have.
    #[error("{what}: expected {expected}, got {got}")]
    Value {
        /// Structure and field.
        what: &'static str,
        /// Values it can have.
        expected: &'static str,
        /// Value it has.
        got: u64,
    },
    /// More of something than this implementation takes.
    #[error("more than {limit} {what} in one message; refused to bound work before authentication")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// Bound.
        limit: usize,
    },
    /// Another major version than 2 (RFC 7296 §2.5).
    #[error("IKE major version {0}; this node speaks version 2 only, configure the peer for IKEv2")]
    Version(u8),
    /// A payload type that is not known, marked critical (RFC 7296 §2.5).
    #[error("payload type {0} is marked critical and not supported by this node")]
    UnsupportedCritical(u8),
}

impl Error {
    /// The notify that tells the sender (RFC 7296 §3.10.1). For UNSUPPORTED_CRITICAL_PAYLOAD the notify's data is the
    /// payload type, one byte.
    #[must_use]
    pub fn notify(&self) -> NotifyType {
        match self {
            Self::Version(_) => NotifyType::InvalidMajorVersion,
            Self::UnsupportedCritical(_) => NotifyType::UnsupportedCriticalPayload,
            _ => NotifyType::InvalidSyntax,
        }
    }
}
