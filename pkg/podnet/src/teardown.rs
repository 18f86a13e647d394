use std::path::Path;

use espalier_netlink::{Link, Route, Socket};

use crate::error::At;
use crate::identity::{Identity, is_host_name};
use crate::netns::PodNetns;
use crate::{Error, HostVeth, host_name};

/// Removes a pod's interface from both sides. Succeeds when there is none, and without the namespace or when that is gone
/// already. Goes on after an error.
///
/// # Errors
/// Everything that failed.
pub fn teardown(container_id: &str, ifname: &str, netns: Option<&Path>) -> Result<(), Error> {
    let sides = [
        host_side(container_id, ifname),
        pod_side(container_id, ifname, netns),
    ];
    Error::collect(sides.into_iter().filter_map(Result::err).collect())
}

/// Removes what [`crate::list`] found, whatever its name is now.
///
/// # Errors
/// The kernel's.
pub fn remove_listed(veth: &HostVeth) -> Result<(), Error> {
    let mut host = Socket::<Route>::open().at_step("open netlink")?;
    match host.link_by_index(veth.index).at_step("look")? {
        Some(link) if link.name == veth.name => remove(&mut host, &link),
        _ => Ok(()),
    }
}

/// Removes the interfaces of all pods on this node, as when Espalier leaves it: they lose their network. A veth of another's
/// stays, also one of such a name. Gives the names of what was removed. Goes on after an error.
///
/// # Errors
/// Everything that failed.
pub fn teardown_all() -> Result<Vec<String>, Error> {
    let mut host = Socket::<Route>::open().at_step("open netlink")?;
    let links = host.links().at_step("list interfaces")?;
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    for link in links.into_iter().filter(is_ours) {
        match remove(&mut host, &link) {
            Ok(()) => removed.push(link.name),
            Err(error) => errors.push(error),
        }
    }
    Error::collect(errors).map(|()| removed)
}

/// One without an alias was left half made.
fn is_ours(link: &Link) -> bool {
    let alias = link.alias.as_deref().filter(|alias| !alias.is_empty());
    link.kind.as_deref() == Some("veth")
        && is_host_name(&link.name)
        && alias.is_none_or(|alias| Identity::parse(alias).is_some())
}

/// With the host's end goes the pod's.
fn host_side(container_id: &str, ifname: &str) -> Result<(), Error> {
    let mut host = Socket::<Route>::open().at_step("open netlink")?;
    match host_end(&mut host, &host_name(container_id, ifname))? {
        Some(link) => remove(&mut host, &link),
        None => Ok(()),
    }
}

pub(crate) fn host_end(host: &mut Socket<Route>, name: &str) -> Result<Option<Link>, Error> {
    match host.link(name).at_step("look for the host's end")? {
        Some(link) if link.kind.as_deref() != Some("veth") => Err(Error::Foreign {
            name: link.name,
            kind: link.kind.unwrap_or_else(|| "hardware".into()),
        }),
        found => Ok(found),
    }
}

/// Something is left here only when the other end was renamed or moved by others.
fn pod_side(container_id: &str, ifname: &str, netns: Option<&Path>) -> Result<(), Error> {
    let opened = netns.map(PodNetns::open_if_there).transpose()?.flatten();
    let Some(netns) = opened else { return Ok(()) };
    netns.run(|| {
        let mut pod = Socket::<Route>::open().at_step("open netlink in the pod")?;
        match pod.link(ifname).at_step("look for the pod's end")? {
            Some(link) if is_of(&link, container_id, ifname) => remove(&mut pod, &link),
            _ => Ok(()),
        }
    })
}

pub(crate) fn is_of(link: &Link, container_id: &str, ifname: &str) -> bool {
    let identity = link.alias.as_deref().and_then(Identity::parse);
    link.kind.as_deref() == Some("veth") && identity.is_some_and(|i| i.is_of(container_id, ifname))
}

pub(crate) fn remove(socket: &mut Socket<Route>, link: &Link) -> Result<(), Error> {
    missing_is_fine(socket.del_link(link.index))
}

pub(crate) fn missing_is_fine(done: Result<(), espalier_netlink::Error>) -> Result<(), Error> {
    match done {
        Err(error) if error.is_missing() => Ok(()),
        other => other.at_step("remove the veth"),
    }
}
