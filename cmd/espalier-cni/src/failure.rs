//! What went wrong elsewhere, as the runtime is told it.

use espalier_cni_types::{Error, ErrorCode};
use espalier_podnet::Error as PodnetError;

/// The kernel refused a step of the pod's interface.
pub(crate) const NETWORKING: ErrorCode = ErrorCode::Other(100);
/// CHECK found a difference.
pub(crate) const DIFFERS: ErrorCode = ErrorCode::Other(101);
/// The agent failed.
pub(crate) const AGENT: ErrorCode = ErrorCode::Other(102);

/// An error of the pod's interface during `verb`.
pub(crate) fn podnet_failure(verb: &str, error: &PodnetError) -> Error {
    let code = match error {
        PodnetError::Netns { .. } | PodnetError::HostNetns { .. } => ErrorCode::InvalidEnvironment,
        _ => NETWORKING,
    };
    let hint = if code == ErrorCode::InvalidEnvironment {
        " (CNI_NETNS)"
    } else {
        ""
    };
    Error::new(code, format!("{verb}: {error}{hint}"))
}

pub(crate) fn io_failure(error: &dyn std::error::Error) -> Error {
    Error::new(ErrorCode::Io, error.to_string())
}
