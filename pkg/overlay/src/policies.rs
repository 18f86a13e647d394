//! The SPD: which clear packets are refused.

use std::{cmp::Reverse, collections::BTreeSet, net::IpAddr, os::fd::OwnedFd};

use espalier_netlink::{Action, Direction, Errno, InstalledPolicy, PLAIN, Policy, Socket, Xfrm};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{Desired, Error, PRIORITIES, RoutePath};

/// Between pods by the underlay interface.
const POD_TO_POD: u32 = 0x4553_5010;
/// Pods' own UDP to the overlay's port.
const PODS_OWN: u32 = 0x4553_5020;
/// Pairs that accept clear.
const PAIR: u32 = 0x4553_5100;
/// Everything else to the overlay's port.
const BASE: u32 = 0x4553_5f00;
const UDP: u8 = 17;

/// The policies that should be, the allowing ones first. None while clear packets are not refused: plain nodes need no XFRM and
/// pay nothing for it.
pub(crate) fn wanted(desired: &Desired, underlay: Option<u32>) -> Vec<Policy> {
    if !desired.deny_clear {
        return Vec::new();
    }
    let port = desired.vtep.port;
    let mut all = pods_own(desired);
    all.extend(pairs(desired));
    for any in [IpNet::from(Ipv4Net::default()), Ipv6Net::default().into()] {
        for direction in [Direction::In, Direction::Out] {
            all.push(overlay(direction, Action::Block, (any, any), port, BASE));
        }
    }
    all.extend(
        underlay
            .into_iter()
            .flat_map(|index| pod_to_pod(&desired.cluster_cidrs, index)),
    );
    all.sort_by_key(|p| (p.action, *p));
    all.dedup();
    all
}

/// A policy about the overlay's UDP port.
fn overlay(
    direction: Direction,
    action: Action,
    between: (IpNet, IpNet),
    port: u16,
    priority: u32,
) -> Policy {
    let (source, destination) = between;
    Policy {
        direction,
        action,
        source,
        destination,
        protocol: UDP,
        port,
        interface: 0,
        priority,
    }
}

/// Without these, a pod of a strict node could not send UDP to the overlay's port number of another pod. To other hosts it
/// cannot, which keeps pods from forging overlay packets.
fn pods_own(desired: &Desired) -> Vec<Policy> {
    let allow = |between| {
        overlay(
            Direction::Out,
            Action::Allow,
            between,
            desired.vtep.port,
            PODS_OWN,
        )
    };
    between_pods(&desired.cluster_cidrs).map(allow).collect()
}

/// The outbound policy stays as long as the pair accepts clear, not only while the path is clear: a packet that is between its
/// route and its policy while the path is switched is not lost.
fn pairs(desired: &Desired) -> Vec<Policy> {
    let local = IpNet::from(desired.local);
    let mut all = Vec::new();
    for peer in desired
        .peers
        .values()
        .filter(|p| p.remote.is_ipv4() == desired.local.is_ipv4())
    {
        let remote = IpNet::from(peer.remote);
        if peer.accept_clear {
            all.push(overlay(
                Direction::In,
                Action::Allow,
                (remote, local),
                desired.vtep.port,
                PAIR,
            ));
        }
        if peer.accept_clear || peer.path == RoutePath::Clear {
            all.push(overlay(
                Direction::Out,
                Action::Allow,
                (local, remote),
                desired.vtep.port,
                PAIR,
            ));
        }
    }
    all
}

/// Whatever a route says: nothing between two pod addresses leaves by the underlay interface as it is.
fn pod_to_pod(cluster_cidrs: &[IpNet], interface: u32) -> Vec<Policy> {
    let block = |direction, (source, destination)| Policy {
        direction,
        action: Action::Block,
        source,
        destination,
        protocol: 0,
        port: 0,
        interface,
        priority: POD_TO_POD,
    };
    let both = |between| {
        [
            block(Direction::Out, between),
            block(Direction::Forward, between),
        ]
    };
    between_pods(cluster_cidrs).flat_map(both).collect()
}

/// Every pair of cluster CIDRs of one family.
fn between_pods(cluster_cidrs: &[IpNet]) -> impl Iterator<Item = (IpNet, IpNet)> {
    let all = cluster_cidrs.iter().flat_map(move |from| {
        cluster_cidrs
            .iter()
            .map(move |to| (from.trunc(), to.trunc()))
    });
    all.filter(|(from, to)| from.addr().is_ipv4() == to.addr().is_ipv4())
}

/// What a complete list of our policies says about what is refused.
pub(crate) struct Refused {
    /// IPv4 and IPv6, in and out.
    pub(crate) base: bool,
    /// The hosts that the base block does not concern.
    pub(crate) accepting: BTreeSet<IpAddr>,
}

impl Refused {
    pub(crate) fn of(list: &[InstalledPolicy]) -> Self {
        let policies = || list.iter().map(|p| p.policy);
        let base = policies().filter(|p| p.priority == BASE && p.action == Action::Block);
        let sides: BTreeSet<_> = base
            .map(|p| (p.direction, p.source.addr().is_ipv4()))
            .collect();
        let pairs = policies().filter(|p| p.priority == PAIR && p.action == Action::Allow);
        let accepting = pairs
            .filter(|p| p.direction == Direction::In)
            .map(|p| p.source.addr())
            .collect();
        Self {
            base: sides.len() == 4,
            accepting,
        }
    }
}

/// Our policies in the kernel. Where it has no XFRM there are none, which is fine as long as none are wanted.
#[derive(Debug)]
pub(crate) struct Spd {
    netns: Option<OwnedFd>,
    socket: Option<Socket<Xfrm>>,
}

impl Spd {
    pub(crate) fn new(netns: Option<OwnedFd>) -> Self {
        Self {
            netns,
            socket: None,
        }
    }

    pub(crate) fn writes(&self) -> usize {
        self.socket.as_ref().map_or(0, Socket::writes)
    }

    /// Ours, and only ours.
    pub(crate) fn list(&mut self) -> Result<Vec<InstalledPolicy>, Error> {
        let socket = match self.socket() {
            Ok(socket) => socket,
            Err(e) if e.errno() == Some(Errno::EPROTONOSUPPORT) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        let mut list = socket.policies()?;
        list.retain(|p| PRIORITIES.contains(&p.policy.priority));
        Ok(list)
    }

    /// Adds and corrects what is wanted; gives what is there and not wanted. Policies that allow come first: where the base
    /// block stands they open only what is wanted, where it does not everything is open already.
    pub(crate) fn install(&mut self, wanted: &[Policy]) -> Result<Vec<InstalledPolicy>, Error> {
        let mut stale = self.list()?;
        let mut requests = Vec::new();
        for policy in wanted {
            match stale.iter().position(|s| s.policy.same_place(policy)) {
                Some(i) if stale.swap_remove(i).policy == *policy => {}
                Some(_) => requests.push((policy, policy.update())),
                None => requests.push((policy, policy.add())),
            }
        }
        if requests.is_empty() {
            return Ok(stale);
        }
        let cannot_block = |source| Error::CannotBlock { source };
        let (policies, messages): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let results = self
            .socket()
            .and_then(|s| s.batch(messages.into_iter().map(|m| (m, PLAIN))));
        for (policy, result) in policies.into_iter().zip(results.map_err(cannot_block)?) {
            result.map_err(|e| {
                if e.is_exists() {
                    foreign(policy)
                } else {
                    cannot_block(e)
                }
            })?;
        }
        Ok(stale)
    }

    /// Removes policies: those that block first, since no pair may lose what allows it while the base block stands.
    pub(crate) fn remove(&mut self, mut stale: Vec<InstalledPolicy>) -> Result<(), Error> {
        if stale.is_empty() {
            return Ok(());
        }
        stale.sort_by_key(|p| Reverse(p.policy.action));
        for result in self
            .socket()?
            .batch(stale.iter().map(|p| (p.delete(), PLAIN)))?
        {
            result.or_else(|e| if e.is_missing() { Ok(()) } else { Err(e) })?;
        }
        Ok(())
    }

    /// Opened when it is first needed; a kernel module may come later than we do.
    fn socket(&mut self) -> Result<&mut Socket<Xfrm>, espalier_netlink::Error> {
        if self.socket.is_none() {
            self.socket = Some(match &self.netns {
                Some(netns) => Socket::open_in(netns)?,
                None => Socket::open()?,
            });
        }
        self.socket
            .as_mut()
            .ok_or_else(|| espalier_netlink::Error::Missing("the XFRM socket".to_owned()))
    }
}

fn foreign(policy: &Policy) -> Error {
    Error::ForeignPolicy {
        policy: policy.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Engine, Framing, PeerRoute, Vtep};

    fn desired(deny_clear: bool, path: RoutePath, accept_clear: bool) -> Desired {
        let peer = PeerRoute {
            remote: "192.0.2.2".parse().unwrap(),
            mac: [2, 0, 0, 0, 0, 2],
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
            path,
            accept_clear,
            protect: None,
            trial: None,
        };
        Desired {
            local: "192.0.2.1".parse().unwrap(),
            vtep: Vtep {
                mac: [2, 0, 0, 0, 0, 1],
                vni: 4789,
                port: 4789,
                mtu: None,
            },
            gateways: vec!["10.244.1.1".parse().unwrap()],
            cluster_cidrs: vec![
                "10.244.0.0/16".parse().unwrap(),
                "fd00::/48".parse().unwrap(),
            ],
            engine: Engine::None,
            framing: Framing::Vxlan,
            deny_clear,
            peers: [("b".to_owned(), peer)].into(),
        }
    }

    fn pair(desired: &Desired) -> Vec<Direction> {
        wanted(desired, Some(3))
            .iter()
            .filter(|p| p.priority == PAIR)
            .map(|p| p.direction)
            .collect()
    }

    #[test]
    fn nothing_is_wanted_while_clear_is_not_refused() {
        assert_eq!(wanted(&desired(false, RoutePath::Clear, true), Some(3)), []);
    }

    #[test]
    fn the_pair_is_allowed_while_it_accepts_or_sends_clear() {
        let both = [Direction::In, Direction::Out];
        assert_eq!(pair(&desired(true, RoutePath::Clear, true)), both);
        assert_eq!(pair(&desired(true, RoutePath::Encrypted, true)), both);
        assert_eq!(
            pair(&desired(true, RoutePath::Clear, false)),
            [Direction::Out]
        );
        assert_eq!(pair(&desired(true, RoutePath::Encrypted, false)), []);
        assert_eq!(pair(&desired(true, RoutePath::Blocked, false)), []);
    }

    #[test]
    fn what_allows_comes_before_what_blocks_and_decides_before_it() {
        let all = wanted(&desired(true, RoutePath::Clear, true), Some(3));
        let last_allow = all.iter().rposition(|p| p.action == Action::Allow).unwrap();
        let first_block = all.iter().position(|p| p.action == Action::Block).unwrap();
        assert!(last_allow < first_block);
        // Pod to pod by the underlay: two families, out and forward. Base: two families, in and out.
        let count = |priority| all.iter().filter(|p| p.priority == priority).count();
        assert_eq!(
            (count(POD_TO_POD), count(PODS_OWN), count(PAIR), count(BASE)),
            (4, 2, 2, 4)
        );
        assert!(
            all.iter()
                .filter(|p| p.priority == POD_TO_POD)
                .all(|p| p.interface == 3)
        );
        assert!(all.iter().all(|p| PRIORITIES.contains(&p.priority)));
    }

    #[test]
    fn a_base_block_with_a_hole_is_none() {
        let all = wanted(&desired(true, RoutePath::Clear, true), None);
        let list: Vec<_> = all
            .iter()
            .map(|policy| InstalledPolicy {
                policy: *policy,
                index: 0,
            })
            .collect();
        let whole = Refused::of(&list);
        assert!(whole.base);
        assert_eq!(whole.accepting, ["192.0.2.2".parse().unwrap()].into());
        assert!(!Refused::of(&list[..list.len() - 1]).base);
    }
}
