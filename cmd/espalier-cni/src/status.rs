//! STATUS: would an ADD succeed now?

use espalier_cni_types::{Error, ErrorCode};

use crate::plugin::Plugin;

pub(crate) fn run(plugin: &Plugin) -> Result<(), Error> {
    plugin.agent.ready().map_err(|failure| Error {
        code: ErrorCode::NotAvailable,
        ..failure.into_error("STATUS")
    })
}
