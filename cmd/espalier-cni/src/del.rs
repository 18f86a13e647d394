//! DEL: the interface, then the addresses. Succeeds when repeated, without a namespace, without prevResult, and while the
//! agent is away.

use std::path::Path;

use espalier_cni_types::{Attachment, Error};

use crate::failure::podnet_failure;
use crate::plugin::Plugin;

/// An interface that cannot be removed keeps its addresses: another pod must not get them.
pub(crate) fn run(
    plugin: &Plugin,
    attachment: &Attachment,
    netns: Option<&Path>,
) -> Result<(), Error> {
    let removed = espalier_podnet::teardown(&attachment.container_id, &attachment.ifname, netns);
    removed.map_err(|error| podnet_failure("DEL", &error))?;
    plugin.release(attachment)
}
