//! GC: removes interfaces of this network that belong to no attachment in the list. Leases without an interface are the
//! agent's to find: it compares by itself, since runtimes rarely call GC.

use espalier_cni_types::{Attachment, Error};
use espalier_podnet::{HostVeth, Identity};

use crate::failure::{NETWORKING, podnet_failure};
use crate::plugin::Plugin;

/// Goes on after an error.
pub(crate) fn run(plugin: &Plugin) -> Result<(), Error> {
    let keep = plugin.config.valid_attachments()?;
    let there = espalier_podnet::list().map_err(|error| podnet_failure("GC", &error))?;
    let stale = there
        .into_iter()
        .filter_map(|veth| stale(veth, &plugin.config.name, &keep));
    let errors: Vec<_> = stale
        .filter_map(|attachment| crate::del::run(plugin, &attachment, None).err())
        .collect();
    match errors.len() {
        0 => Ok(()),
        _ => {
            let details = errors
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ");
            Err(Error::new(NETWORKING, "GC: not everything could be removed").with_details(details))
        }
    }
}

/// Other networks' interfaces are not ours to judge, nor are those that an ADD is just making.
fn stale(veth: HostVeth, network: &str, keep: &[Attachment]) -> Option<Attachment> {
    let Identity {
        network: owner,
        container_id,
        ifname,
    } = veth.owner?;
    let attachment = Attachment {
        container_id,
        ifname,
    };
    (owner == network && !keep.contains(&attachment)).then_some(attachment)
}
