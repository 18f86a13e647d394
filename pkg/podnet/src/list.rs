use espalier_netlink::{Errno, Link, Route, Socket};
use nix::net::if_::if_nametoindex;

use crate::error::At;
use crate::identity::{Identity, is_host_name};
use crate::{Error, host_name};

/// The host's end of a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostVeth {
    /// Its name, [`host_name`] of its pod unless somebody renamed it.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Whose it is; `None` when a release that did not say so at once was interrupted, or is at it.
    pub owner: Option<Identity>,
}

/// All host ends of pods on this node. An ADD has its veth and its lease at about the same time: one without the other is
/// nothing to act upon, unless it stays so.
///
/// # Errors
/// The kernel's, never a partial list.
pub fn list() -> Result<Vec<HostVeth>, Error> {
    let links = Socket::<Route>::open()
        .and_then(|mut host| host.links())
        .at_step("list interfaces")?;
    Ok(links.into_iter().filter_map(host_veth).collect())
}

/// Is there a host end of this interface?
///
/// # Errors
/// The kernel's.
pub fn exists(container_id: &str, ifname: &str) -> Result<bool, Error> {
    let name = host_name(container_id, ifname);
    if let Some(known) = is_there(&name) {
        return Ok(known);
    }
    let found = Socket::<Route>::open().and_then(|mut host| host.link(&name));
    Ok(found.at_step("look for the host's end")?.is_some())
}

/// Is there an interface of this name? Asks in a way (SIOCGIFINDEX) that does not wait, as netlink does, for whoever changes
/// interfaces just now: a removal holds the kernel's lock for milliseconds. `None`: cannot be told.
pub(crate) fn is_there(name: &str) -> Option<bool> {
    match if_nametoindex(name) {
        Ok(_) => Some(true),
        Err(Errno::ENODEV | Errno::ENXIO) => Some(false),
        Err(_) => None,
    }
}

fn host_veth(link: Link) -> Option<HostVeth> {
    let owner = link.alias.as_deref().and_then(Identity::parse);
    let ours = owner.is_some() || is_host_name(&link.name);
    let ours = ours && link.kind.as_deref() == Some("veth");
    ours.then_some(HostVeth {
        name: link.name,
        index: link.index,
        owner,
    })
}
