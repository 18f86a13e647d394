//! GC: removes interfaces of this network that belong to no attachment in the list, then what it leased for others. Whatever
//! runtimes do not tell, the agent finds by itself: they rarely call GC.

use espalier_cni_types::{Attachment, Error};
use espalier_podnet::{HostVeth, Identity};

use crate::failure::{NETWORKING, podnet_failure};
use crate::plugin::Plugin;

/// Goes on after an error.
pub(crate) fn run(plugin: &Plugin) -> Result<(), Error> {
    let keep = plugin.config.valid_attachments()?;
    let there = espalier_podnet::list().map_err(|error| podnet_failure("GC", &error))?;
    let stale = there
        .iter()
        .filter_map(|veth| Some((veth, stale(veth, &plugin.config.name, &keep)?)));
    let mut errors: Vec<_> = stale
        .filter_map(|(veth, attachment)| remove(plugin, veth, &attachment).err())
        .collect();
    // An interface that stays keeps its addresses.
    if errors.is_empty() {
        errors.extend(collect(plugin, &keep).err());
    }
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
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

fn remove(plugin: &Plugin, veth: &HostVeth, attachment: &Attachment) -> Result<(), Error> {
    let usual = espalier_podnet::host_name(&attachment.container_id, &attachment.ifname);
    if veth.name == usual {
        return crate::del::run(plugin, attachment, None);
    }
    // Somebody renamed it.
    espalier_podnet::remove_listed(veth).map_err(|error| podnet_failure("GC", &error))?;
    plugin.release(attachment)
}

/// An agent of an older release compares by itself later.
fn collect(plugin: &Plugin, keep: &[Attachment]) -> Result<(), Error> {
    match plugin.agent.collect(&plugin.config.name, keep) {
        Err(failure) if !failure.is_unknown_call() => Err(failure.into_error("GC")),
        _ => Ok(()),
    }
}

/// Other networks' interfaces are not ours to judge, nor are those that an ADD is just making.
fn stale(veth: &HostVeth, network: &str, keep: &[Attachment]) -> Option<Attachment> {
    let Identity {
        network: owner,
        container_id,
        ifname,
    } = veth.owner.clone()?;
    let attachment = Attachment {
        container_id,
        ifname,
    };
    (owner == network && !keep.contains(&attachment)).then_some(attachment)
}
