//! Removal by a process that lives on: of one interface, or of many that the kernel lets go together.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use espalier_netlink::packet_route::RouteNetlinkMessage;
use espalier_netlink::{Link, LinkChange, LinkRef, PLAIN, Route, Socket};

use crate::error::At;
use crate::list::is_there;
use crate::teardown::{host_end, is_of, missing_is_fine, remove};
use crate::{Error, host_name};

/// Between the first two looks at interfaces that are being removed, which mostly takes a millisecond; a quarter longer with each
/// look, up to the longest.
const GONE_FIRST_POLL: Duration = Duration::from_micros(100);
const GONE_LONGEST_POLL: Duration = Duration::from_millis(2);
/// Groups of interfaces that are removed together have this bit and 30 random ones: nobody's table of group names goes so far.
const GROUP: u32 = 1 << 30;

/// What waits for the kernel.
pub type Work = Box<dyn FnOnce() + Send>;

/// Removes the host's end of a pod's interface, and with it the pod's, for a process that lives on: returns when nobody sees
/// them any more. The kernel waits for a while then before it gives their memory back (`netdev_run_todo`: an RCU barrier), and a
/// thread waits with it. True: there was one.
///
/// # Errors
/// [`Error::Foreign`], or the kernel's.
pub fn detach(container_id: &str, ifname: &str) -> Result<bool, Error> {
    let thread = |work| {
        // Work that is dropped is done by who asked for it.
        let _ = thread::Builder::new()
            .name("del-link".to_owned())
            .spawn(work);
    };
    detach_all(&[(container_id, ifname)], &thread)?
        .pop()
        .unwrap_or(Ok(false))
}

/// The same for many pods (container and interface) at once, in about the time of one: the kernel removes them as a group, and waits
/// once for all. What cannot be in the group, or all where the kernel refuses it, is removed one by one. One outcome for each
/// pod, in order. Calls of one process are to come one after the other: the kernel's lock lets no two at it anyway, and those who
/// wait for it spin. `thread` is given what waits for the kernel: it has it done by a thread of its own and does not wait for that.
///
/// # Errors
/// When the kernel cannot be asked at all; nothing is removed then.
pub fn detach_all(
    pods: &[(&str, &str)],
    thread: &dyn Fn(Work),
) -> Result<Vec<Result<bool, Error>>, Error> {
    detach_as(fresh_group(), pods, thread)
}

fn detach_as(
    group: u32,
    pods: &[(&str, &str)],
    thread: &dyn Fn(Work),
) -> Result<Vec<Result<bool, Error>>, Error> {
    let mut host = Socket::<Route>::open().at_step("open netlink")?;
    let mut look = |(container_id, ifname): &(&str, &str)| {
        host_end(&mut host, &host_name(container_id, ifname))
    };
    let ends: Vec<_> = pods.iter().map(&mut look).collect();
    let together = |(end, pod): (&Result<Option<Link>, Error>, &(&str, &str))| match end {
        Ok(Some(link)) if is_of(link, pod.0, pod.1) => Some(link.clone()),
        _ => None,
    };
    let together: Vec<Link> = ends.iter().zip(pods).filter_map(together).collect();
    if together.len() > 1
        && let Err(error) = remove_together(&mut host, &together, group, thread)
    {
        tracing::warn!(%error, count = together.len(), "interfaces cannot be removed together, and go one by one");
    }
    let mut finish = |end: Result<Option<Link>, Error>| match end {
        Ok(Some(link)) if is_there(&link.name) == Some(false) => Ok(true),
        Ok(Some(link)) => remove_and_look(&mut host, &link, thread).map(|()| true),
        Ok(None) => Ok(false),
        Err(error) => Err(error),
    };
    Ok(ends.into_iter().map(&mut finish).collect())
}

/// Whoever is killed between the two steps leaves interfaces that are in a group and otherwise as they were.
fn remove_together(
    host: &mut Socket<Route>,
    ours: &[Link],
    group: u32,
    thread: &dyn Fn(Work),
) -> Result<(), Error> {
    let names = put_into(host, ours, group)?;
    if names.is_empty() {
        return Ok(());
    }
    match removed_by(names, thread, move |socket| socket.del_group(group)) {
        Some(outcome) => outcome,
        None => missing_is_fine(host.del_group(group)),
    }
}

/// Gives the names of those that are in the group then. One that is gone, or cannot be put there, is not; one that is not ours must
/// not be.
fn put_into(host: &mut Socket<Route>, ours: &[Link], group: u32) -> Result<Vec<String>, Error> {
    let change = LinkChange {
        group: Some(group),
        ..LinkChange::default()
    };
    let put = |link: &Link| {
        let message = change.message(LinkRef::Index(link.index));
        (RouteNetlinkMessage::SetLink(message), PLAIN)
    };
    host.batch(ours.iter().map(put))
        .at_step("group the veths")?;
    let inside = host.links_in_group(group).at_step("look at the group")?;
    let is_ours = |link: &Link| {
        let same = |own: &&Link| {
            (own.index, &own.name, &own.alias) == (link.index, &link.name, &link.alias)
        };
        ours.iter().any(|own| same(&own))
    };
    match inside.iter().find(|link| !is_ours(link)) {
        Some(link) => Err(Error::Foreign {
            name: link.name.clone(),
            kind: format!("in group {group}, which was to be of ours only"),
        }),
        None => Ok(inside.into_iter().map(|link| link.name).collect()),
    }
}

/// Of its own kind each time, so that two agents, or what a killed one left, are not in each other's.
fn fresh_group() -> u32 {
    let random = RandomState::new().build_hasher().finish();
    GROUP | (random as u32 & (GROUP - 1))
}

fn remove_and_look(
    host: &mut Socket<Route>,
    link: &Link,
    thread: &dyn Fn(Work),
) -> Result<(), Error> {
    let index = link.index;
    let outcome = removed_by(vec![link.name.clone()], thread, move |socket| {
        socket.del_link(index)
    });
    outcome.unwrap_or_else(|| remove(host, link))
}

/// Has a thread do the removal, and returns when nobody sees `names` any more. `None`: there is no thread to be had.
fn removed_by(
    mut names: Vec<String>,
    thread: &dyn Fn(Work),
    removal: impl FnOnce(&mut Socket<Route>) -> Result<(), espalier_netlink::Error> + Send + 'static,
) -> Option<Result<(), Error>> {
    let (report, outcome) = mpsc::channel();
    let work = move || {
        let done = Socket::<Route>::open().and_then(|mut socket| removal(&mut socket));
        // Nobody listens any more when the interfaces were seen to be gone.
        let _ = report.send(done);
    };
    thread(Box::new(work));
    let mut pause = GONE_FIRST_POLL;
    loop {
        match outcome.recv_timeout(pause) {
            Ok(done) => return Some(missing_is_fine(done)),
            Err(RecvTimeoutError::Timeout) => {
                while names.pop_if(|name| is_there(name) == Some(false)).is_some() {}
                if names.is_empty() {
                    return Some(Ok(()));
                }
                pause = (pause * 5 / 4).min(GONE_LONGEST_POLL);
            }
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use espalier_netlink::{Veth, VethPeer};
    use espalier_testnet::isolated;

    use super::*;
    use crate::{Identity, list, teardown, teardown_all};

    /// The host's ends of pods, both ends in one namespace: that is what a group could do most harm in.
    fn make(containers: std::ops::Range<u32>) -> Vec<String> {
        let make_one = |n: u32| {
            let (container, peer) = (format!("pod{n}"), format!("peer{n}"));
            let name = host_name(&container, "eth0");
            veth(&name, &peer);
            let identity = Identity {
                network: "mesh".into(),
                container_id: container.clone(),
                ifname: "eth0".into(),
            };
            let alias = identity.alias();
            change(
                &name,
                &LinkChange {
                    alias: Some(&alias),
                    ..LinkChange::default()
                },
            );
            container
        };
        containers.map(make_one).collect()
    }

    fn veth(name: &str, peer: &str) {
        let peer = VethPeer {
            name: peer,
            mac: None,
            netns: None,
        };
        let pair = Veth {
            name,
            mtu: None,
            mac: None,
            peer,
            up: false,
            queues: Some(1),
        };
        socket().add_veth(&pair).unwrap();
    }

    fn spawn(work: Work) {
        thread::spawn(work);
    }

    fn socket() -> Socket<Route> {
        Socket::open().unwrap()
    }

    fn change(name: &str, change: &LinkChange<'_>) {
        let index = socket().index_of(name).unwrap();
        socket().set_link(index, change).unwrap();
    }

    fn regroup(name: &str, group: u32) {
        change(
            name,
            &LinkChange {
                group: Some(group),
                ..LinkChange::default()
            },
        );
    }

    fn pods(containers: &[String]) -> Vec<(&str, &str)> {
        containers.iter().map(|c| (c.as_str(), "eth0")).collect()
    }

    fn found(outcomes: Vec<Result<bool, Error>>) -> Vec<bool> {
        outcomes.into_iter().map(Result::unwrap).collect()
    }

    /// Interfaces of others: in the default group, in a group, of another kind, and of a pod that stays.
    fn others() -> Vec<Link> {
        veth("other0", "other1");
        veth("grouped0", "grouped1");
        regroup("grouped0", 77);
        socket().add_bridge("bridge0").unwrap();
        regroup("bridge0", 77);
        make(900..901);
        socket().links().unwrap()
    }

    #[test]
    fn many_go_together_and_others_stay() {
        isolated("detach::tests::many_go_together_and_others_stay", || {
            let others = others();
            let mut asked = make(0..40);
            regroup(&host_name("pod3", "eth0"), 77);
            asked.insert(1, "nobody".into());
            let outcomes = found(detach_all(&pods(&asked), &spawn).unwrap());
            assert_eq!(outcomes.iter().filter(|found| !**found).count(), 1);
            assert!(!outcomes[1]);
            assert_eq!(socket().links().unwrap(), others);
            let again = found(detach_all(&pods(&asked), &spawn).unwrap());
            assert!(again.iter().all(|found| !found));
        });
    }

    #[test]
    fn one_message_removes_the_whole_group() {
        isolated("detach::tests::one_message_removes_the_whole_group", || {
            let others = others();
            let ours = ends(&make(0..3));
            remove_together(&mut socket(), &ours, GROUP, &spawn).unwrap();
            assert_eq!(socket().links().unwrap(), others);
            remove_together(&mut socket(), &ours, GROUP, &spawn).unwrap();
        });
    }

    fn ends(containers: &[String]) -> Vec<Link> {
        let end = |c: &String| socket().link(&host_name(c, "eth0")).unwrap().unwrap();
        containers.iter().map(end).collect()
    }

    /// Whatever is in the group and was not put there is a reason to go one by one.
    #[test]
    fn a_group_with_a_stranger_is_left_and_ours_go_one_by_one() {
        isolated(
            "detach::tests::a_group_with_a_stranger_is_left_and_ours_go_one_by_one",
            || {
                for stranger in ["other0", "bridge0", &host_name("pod900", "eth0")] {
                    let before = match socket().link("other0").unwrap() {
                        None => others(),
                        Some(_) => socket().links().unwrap(),
                    };
                    let asked = make(0..4);
                    regroup(stranger, GROUP + 1);
                    let ours = ends(&asked);
                    let refused =
                        remove_together(&mut socket(), &ours, GROUP + 1, &spawn).unwrap_err();
                    assert!(refused.to_string().contains(stranger), "{refused}");
                    assert!(ours.iter().all(|link| is_there(&link.name) == Some(true)));
                    let outcomes = found(detach_as(GROUP + 1, &pods(&asked), &spawn).unwrap());
                    assert_eq!(outcomes, [true; 4]);
                    regroup(
                        stranger,
                        before.iter().find(|l| l.name == stranger).unwrap().group,
                    );
                    assert_eq!(socket().links().unwrap(), before);
                }
            },
        );
    }

    /// The kernel takes nothing out of a group in which something cannot be removed, nor the default group.
    #[test]
    fn what_the_kernel_refuses_goes_one_by_one() {
        isolated(
            "detach::tests::what_the_kernel_refuses_goes_one_by_one",
            || {
                let before = socket().links().unwrap();
                let asked = make(0..3);
                regroup("lo", GROUP);
                let refused = socket().del_group(GROUP).unwrap_err();
                assert_eq!(refused.errno(), Some(espalier_netlink::Errno::EOPNOTSUPP));
                assert!(socket().del_group(0).is_err());
                assert_eq!(
                    found(detach_as(GROUP, &pods(&asked), &spawn).unwrap()),
                    [true; 3]
                );
                regroup("lo", 0);
                assert_eq!(
                    found(detach_as(0, &pods(&make(3..6)), &spawn).unwrap()),
                    [true; 3]
                );
                assert_eq!(socket().links().unwrap(), before);
            },
        );
    }

    /// An agent that is killed when its group is made leaves interfaces like any others.
    #[test]
    fn what_a_killed_agent_left_in_a_group_is_found_and_removed() {
        isolated(
            "detach::tests::what_a_killed_agent_left_in_a_group_is_found_and_removed",
            || {
                let before = socket().links().unwrap();
                let asked = make(0..6);
                let names = put_into(&mut socket(), &ends(&asked), GROUP).unwrap();
                assert_eq!(names.len(), 6);
                assert!(list().unwrap().iter().all(|veth| veth.owner.is_some()));
                assert!(detach("pod0", "eth0").unwrap());
                teardown("pod1", "eth0", None).unwrap();
                assert_eq!(
                    found(detach_all(&pods(&asked[1..4]), &spawn).unwrap()),
                    [false, true, true]
                );
                assert_eq!(teardown_all().unwrap().len(), 2);
                assert_eq!(socket().links().unwrap(), before);
            },
        );
    }

    /// A veth of such a name that does not say that it is this pod's goes as it always did, alone; what is no veth stays.
    #[test]
    fn what_is_not_certainly_ours_is_put_into_no_group() {
        isolated(
            "detach::tests::what_is_not_certainly_ours_is_put_into_no_group",
            || {
                make(0..2);
                veth(&host_name("silent", "eth0"), "silent1");
                socket().add_bridge(&host_name("bridge", "eth0")).unwrap();
                let asked = ["pod0", "silent", "bridge", "pod1"].map(String::from);
                let outcomes = detach_all(&pods(&asked), &spawn).unwrap();
                assert!(matches!(
                    outcomes[..],
                    [Ok(true), Ok(true), Err(Error::Foreign { .. }), Ok(true)]
                ));
                let left = socket().links().unwrap();
                assert_eq!(left.len(), 2, "{left:?}");
            },
        );
    }

    #[test]
    fn groups_are_fresh_and_never_the_default() {
        let (one, other) = (fresh_group(), fresh_group());
        assert!((GROUP..2 * GROUP).contains(&one) && one != other);
    }
}
