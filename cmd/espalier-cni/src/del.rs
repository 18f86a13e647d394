//! DEL: the interface, then the addresses. Succeeds when repeated, without a namespace, without prevResult, and while the
//! agent is away.

use std::path::Path;

use espalier_cni_types::{Attachment, Error};

use crate::failure::{NETWORKING, podnet_failure};
use crate::plugin::Plugin;

/// An interface that cannot be removed keeps its addresses: another pod must not get them.
pub(crate) fn run(
    plugin: &Plugin,
    attachment: &Attachment,
    netns: Option<&Path>,
) -> Result<(), Error> {
    let Attachment {
        container_id,
        ifname,
    } = attachment;
    // When that cannot be told, the way without the agent says why.
    let there = espalier_podnet::exists(container_id, ifname).unwrap_or(false);
    if there && by_agent(plugin, attachment)? {
        return plugin.cancel_release(attachment).map(drop);
    }
    let removed = espalier_podnet::teardown(container_id, ifname, netns);
    removed.map_err(|error| podnet_failure("DEL", &error))?;
    plugin.release(attachment)
}

/// Both at once, and without waiting for the kernel to give the interface's memory back: a process that lives on can leave a
/// thread behind that does. False: not done.
fn by_agent(plugin: &Plugin, attachment: &Attachment) -> Result<bool, Error> {
    let Err(failure) = plugin.agent.detach(attachment) else {
        return Ok(true);
    };
    if let Some(reason) = failure.refusal() {
        return Err(Error::new(NETWORKING, format!("DEL: {reason}")));
    }
    tracing::info!(%failure, "the plugin removes the interface by itself");
    Ok(false)
}
