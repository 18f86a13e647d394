//! Small things that all requests to the API server share.

use kube::Error;
use kube::api::{Patch, PatchParams};
use serde_json::Value;

/// Who wrote a field (metadata.managedFields).
pub(crate) const FIELD_MANAGER: &str = "espalier-controller";

/// Whether the server answered with this status.
pub(crate) fn is_code(error: &Error, code: u16) -> bool {
    matches!(error, Error::Api(status) if status.code == code)
}

/// Not found, or changed meanwhile: what was wanted is decided anew from what there is then.
pub(crate) fn is_stale(error: &Error) -> bool {
    is_code(error, 409) || is_code(error, 404)
}

/// A merge patch (RFC 7396) in this program's name.
pub(crate) fn merge(patch: &Value) -> (PatchParams, Patch<&Value>) {
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    (params, Patch::Merge(patch))
}
