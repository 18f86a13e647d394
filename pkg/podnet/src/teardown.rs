use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use espalier_netlink::{Link, Route, Socket};

use crate::error::At;
use crate::identity::{Identity, is_host_name};
use crate::list::is_there;
use crate::netns::PodNetns;
use crate::{Error, HostVeth, host_name};

/// Between the first two looks at an interface that is being removed, which mostly takes a millisecond; a quarter longer with each
/// look, up to the longest.
const GONE_FIRST_POLL: Duration = Duration::from_micros(100);
const GONE_LONGEST_POLL: Duration = Duration::from_millis(2);

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

/// Removes the host's end of a pod's interface, and with it the pod's, for a process that lives on: returns when nobody sees
/// them any more. The kernel waits for a while then before it gives their memory back (`netdev_run_todo`: an RCU barrier), and a
/// thread waits with it. True: there was one. Removals of one process come one after the other: the kernel's lock lets no two at it
/// anyway, and those who wait for it spin.
///
/// # Errors
/// [`Error::Foreign`], or the kernel's.
pub fn detach(container_id: &str, ifname: &str) -> Result<bool, Error> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut host = Socket::<Route>::open().at_step("open netlink")?;
    match host_end(&mut host, &host_name(container_id, ifname))? {
        Some(link) => remove_and_look(&mut host, &link).map(|()| true),
        None => Ok(false),
    }
}

fn remove_and_look(host: &mut Socket<Route>, link: &Link) -> Result<(), Error> {
    let (index, (report, outcome)) = (link.index, mpsc::channel());
    let work = move || {
        let done = Socket::<Route>::open().and_then(|mut socket| socket.del_link(index));
        // Nobody listens any more when the interface was seen to be gone.
        let _ = report.send(done);
    };
    let thread = thread::Builder::new().name("del-link".to_owned());
    if thread.spawn(work).is_err() {
        return remove(host, link);
    }
    let mut pause = GONE_FIRST_POLL;
    loop {
        match outcome.recv_timeout(pause) {
            Ok(Err(error)) if !error.is_missing() => return Err(error).at_step("remove the veth"),
            Ok(_) => return Ok(()),
            Err(RecvTimeoutError::Timeout) if is_there(&link.name) == Some(false) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => pause = (pause * 5 / 4).min(GONE_LONGEST_POLL),
            Err(RecvTimeoutError::Disconnected) => return remove(host, link),
        }
    }
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

fn host_end(host: &mut Socket<Route>, name: &str) -> Result<Option<Link>, Error> {
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

fn is_of(link: &Link, container_id: &str, ifname: &str) -> bool {
    let identity = link.alias.as_deref().and_then(Identity::parse);
    link.kind.as_deref() == Some("veth") && identity.is_some_and(|i| i.is_of(container_id, ifname))
}

fn remove(socket: &mut Socket<Route>, link: &Link) -> Result<(), Error> {
    match socket.del_link(link.index) {
        Err(error) if error.is_missing() => Ok(()),
        other => other.at_step("remove the veth"),
    }
}
