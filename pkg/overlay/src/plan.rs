//! What should be, as kernel objects. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use espalier_netlink::{Encap, FdbEntry, Guard, Link, Neighbour, RouteEntry, Rule, Then};
use espalier_peers::{gateway, vtep_link_local};
use ipnet::IpNet;
use tracing::debug;

use crate::{
    Desired, Engine, Error, Framing, NATIVE_METRIC, PROTOCOL, PeerRoute, RoutePath,
    UNREACHABLE_METRIC, policies::pairs_of,
};

/// Of the rules against bare pod packets: before the main table's 32766 and most others', after the local table's 0.
const BARE_RULE_PRIORITY: u32 = 50;
/// Of the rules that stand beside the guard: what may come in, and the rest. Not [`BARE_RULE_PRIORITY`]: the kernel takes a rule without
/// a destination for one that is there with a destination, when they are alike otherwise.
const ACCEPTED_RULE_PRIORITY: u32 = 49;
const GUARD_RULE_PRIORITY: u32 = 51;

/// The interfaces that routes go through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Devices {
    /// The overlay's own, with this node's addresses; with native routing only those.
    pub(crate) overlay: u32,
    /// The underlay interface.
    pub(crate) underlay: u32,
    pub(crate) tun: Option<u32>,
}

/// The unreachable routes: one for each cluster CIDR, and for pod CIDRs outside of all of them, which would otherwise follow
/// the default route in clear as soon as their own route is missing.
pub(crate) fn refusals(desired: &Desired) -> Vec<RouteEntry> {
    let outside = paths(desired)
        .into_keys()
        .filter(|pods| !desired.cluster_cidrs.iter().any(|c| c.contains(pods)));
    let mut all: Vec<IpNet> = desired
        .cluster_cidrs
        .iter()
        .map(IpNet::trunc)
        .chain(outside)
        .collect();
    all.sort_unstable();
    all.dedup();
    let refuse = |to| RouteEntry {
        protocol: PROTOCOL,
        ..RouteEntry::unreachable(to, UNREACHABLE_METRIC)
    };
    all.into_iter().map(refuse).collect()
}

/// Which peer has which pod CIDR.
#[derive(Debug, Default)]
pub(crate) struct Owners<'a> {
    by_peer: HashMap<&'a str, Vec<IpNet>>,
    /// No two peers have a pod CIDR, an underlay address or a link layer address in common: what one peer needs depends on it
    /// alone.
    pub(crate) distinct: bool,
}

impl Owners<'_> {
    pub(crate) fn pods_of(&self, name: &str) -> &[IpNet] {
        self.by_peer.get(name).map_or(&[], Vec::as_slice)
    }
}

/// Where two peers claim the same pod CIDR the first by name has it.
pub(crate) fn owners(desired: &Desired) -> Owners<'_> {
    let (mut cidrs, mut remotes, mut macs) = (HashSet::new(), HashSet::new(), HashSet::new());
    let mut owners = Owners {
        by_peer: HashMap::with_capacity(desired.peers.len()),
        distinct: true,
    };
    for (name, peer) in &desired.peers {
        let mut own = Vec::with_capacity(peer.pod_cidrs.len());
        for cidr in peer.pod_cidrs.iter().map(IpNet::trunc) {
            if cidrs.insert(cidr) {
                own.push(cidr);
            } else {
                owners.distinct = false;
                debug!(peer = name, %cidr, "another node has this pod CIDR; no route for this one");
            }
        }
        owners.distinct &= remotes.insert(peer.remote) && macs.insert(peer.mac);
        owners.by_peer.insert(name, own);
    }
    owners
}

/// Each peer's pod CIDR with its peer.
pub(crate) fn paths(desired: &Desired) -> BTreeMap<IpNet, &PeerRoute> {
    let owners = owners(desired);
    let mut paths = BTreeMap::new();
    for (name, peer) in &desired.peers {
        paths.extend(owners.pods_of(name).iter().map(|cidr| (*cidr, peer)));
    }
    paths
}

/// What cannot be had at all.
pub(crate) fn unsupported(desired: &Desired) -> Option<Error> {
    if no_six_in_four(desired) && has_ipv6(desired) {
        return Some(Error::Unsupported {
            what: "IPv6 pods in IP in IP over an IPv4 underlay: Linux takes such packets without asking its policies, so clear \
                   ones could not be refused",
            remedy: "use overlay VXLAN or None, or give the nodes IPv6 addresses",
        });
    }
    None
}

fn no_six_in_four(desired: &Desired) -> bool {
    desired.framing == Framing::Ipip && desired.local.is_ipv4()
}

/// The path to one of the peer's pod CIDRs as far as it can be had: without a TUN or states nothing is encrypted, and what
/// cannot be encrypted is blocked.
pub(crate) fn path(desired: &Desired, peer: &PeerRoute, to: &IpNet, tun: bool) -> RoutePath {
    let v4 = desired.local.is_ipv4();
    let same_family = peer.remote.is_ipv4() == v4;
    let native = desired.framing == Framing::Native;
    let possible = match (peer.path, &desired.engine) {
        (RoutePath::Blocked, _) | (RoutePath::Encrypted, Engine::None) => false,
        (RoutePath::Clear, _) => same_family && (!native || to.addr().is_ipv4() == v4),
        (RoutePath::Encrypted, Engine::Tun(_)) => tun,
        (RoutePath::Encrypted, Engine::Kernel) => same_family && peer.protect.is_some(),
    };
    if possible && !(no_six_in_four(desired) && to.addr().is_ipv6()) {
        peer.path
    } else {
        RoutePath::Blocked
    }
}

/// The peers' routes.
pub(crate) fn routes(desired: &Desired, devices: Devices) -> Vec<RouteEntry> {
    let all = paths(desired).into_iter();
    all.filter_map(|(to, peer)| route(desired, peer, to, devices))
        .collect()
}

/// The route to one of a peer's pod CIDRs.
pub(crate) fn route(
    desired: &Desired,
    peer: &PeerRoute,
    to: IpNet,
    devices: Devices,
) -> Option<RouteEntry> {
    let own = |own: &&IpAddr| own.is_ipv4() == to.addr().is_ipv4();
    let route = match (path(desired, peer, &to, devices.tun.is_some()), devices.tun) {
        (RoutePath::Blocked, _) => return None,
        (RoutePath::Encrypted, Some(tun)) => sealed(desired, to, tun),
        (RoutePath::Clear | RoutePath::Encrypted, _) => framed(desired, peer, to, devices),
    };
    Some(RouteEntry {
        source: desired.gateways.iter().find(own).copied(),
        protocol: PROTOCOL,
        ..route
    })
}

fn sealed(desired: &Desired, to: IpNet, tun: u32) -> RouteEntry {
    let route = RouteEntry::unicast(to, None, tun);
    match desired.framing {
        // In the place of the clear one: a switch is one message.
        Framing::Native => RouteEntry {
            metric: NATIVE_METRIC,
            ..route
        },
        Framing::Vxlan | Framing::Ipip => route,
    }
}

fn framed(desired: &Desired, peer: &PeerRoute, to: IpNet, devices: Devices) -> RouteEntry {
    let onlink = |via, device| RouteEntry {
        onlink: true,
        ..RouteEntry::unicast(to, Some(via), device)
    };
    match (desired.framing, desired.local, peer.remote) {
        (Framing::Vxlan, ..) => onlink(next_hop(to, peer), devices.overlay),
        (Framing::Ipip, IpAddr::V6(source), IpAddr::V6(destination)) => RouteEntry {
            encap: Some(Encap {
                source,
                destination,
            }),
            ..RouteEntry::unicast(to, None, devices.overlay)
        },
        (Framing::Ipip, ..) => onlink(peer.remote, devices.overlay),
        (Framing::Native, ..) => RouteEntry {
            metric: NATIVE_METRIC,
            ..if to.addr().is_ipv4() == peer.remote.is_ipv4() {
                onlink(peer.remote, devices.underlay)
            } else {
                // Only for tunnels, which are routed by their own header.
                RouteEntry::unicast(to, None, devices.underlay)
            }
        },
    }
}

/// What stands for a peer on the VXLAN device. For IPv6 pods it is no address of theirs: Linux 6.1 refuses a next hop which, by the
/// routes that are there, is behind another device, as it is while the TUN device has the peer's pods.
fn next_hop(to: IpNet, peer: &PeerRoute) -> IpAddr {
    match to {
        IpNet::V4(_) => gateway(to),
        IpNet::V6(_) => vtep_link_local(peer.mac).into(),
    }
}

/// The peers' next hops on the VXLAN device, whatever their paths are: a switch is then one route.
pub(crate) fn neighbours(desired: &Desired, vxlan: u32) -> Vec<Neighbour> {
    let hops: BTreeMap<_, _> = paths(desired)
        .into_iter()
        .map(|(to, peer)| (next_hop(to, peer), peer.mac))
        .collect();
    let neighbour = |(ip, mac)| Neighbour::permanent(vxlan, ip, mac);
    hops.into_iter().map(neighbour).collect()
}

/// The peers' VTEPs.
pub(crate) fn fdb(desired: &Desired, vxlan: u32) -> Vec<FdbEntry> {
    let same_family = desired
        .peers
        .values()
        .filter(|p| p.remote.is_ipv4() == desired.local.is_ipv4());
    same_family
        .map(|p| FdbEntry {
            index: vxlan,
            mac: p.mac,
            remote: p.remote,
        })
        .collect()
}

/// This node's addresses on our devices, one host each. IPv4 ones are on the TUN too: from a device without any address even
/// the loose reverse path filter takes only packets whose way back is that device, so that in the moment of a toggle in
/// which a peer is encrypted already and this node not yet, its packets would be dropped.
pub(crate) fn addresses(desired: &Desired, devices: Devices) -> Vec<(u32, Vec<IpNet>)> {
    let all: Vec<IpNet> = desired.gateways.iter().map(|ip| IpNet::from(*ip)).collect();
    let v4 = all
        .iter()
        .copied()
        .filter(|net| net.addr().is_ipv4())
        .collect();
    let tun = devices.tun.map(|index| (index, v4));
    [(devices.overlay, all)].into_iter().chain(tun).collect()
}

/// Refusals of bare pod packets from the underlay, while clear packets are refused. With native routing pod packets come in by
/// the underlay, out of tunnels, and policies tell which; but none ever says that it comes from this node's own pods.
pub(crate) fn bare_rules(desired: &Desired, underlay: Option<&Link>) -> Vec<Rule> {
    let Some(underlay) = underlay.filter(|_| desired.deny_clear) else {
        return Vec::new();
    };
    let rule = |cidr: &IpNet| Rule {
        interface: Some(underlay.name.clone()),
        source: *cidr,
        destination: None,
        then: Then::Drop,
        priority: BARE_RULE_PRIORITY,
        protocol: PROTOCOL,
    };
    let refused = match desired.framing {
        Framing::Vxlan | Framing::Ipip => &desired.cluster_cidrs,
        Framing::Native => &desired.pod_cidrs,
    };
    refused.iter().map(|cidr| rule(&cidr.trunc())).collect()
}

/// Where the kernel has no nf_tables: the guard as far as it is about what is forwarded.
pub(crate) fn guard_rules(guard: &Guard, underlay: &Link) -> Vec<Rule> {
    let rule = |(source, destination), then, priority| Rule {
        interface: Some(underlay.name.clone()),
        source,
        destination: Some(destination),
        then,
        priority,
        protocol: PROTOCOL,
    };
    let accepted = pairs_of(&guard.accepted, &guard.own)
        .map(|pair| rule(pair, Then::Main, ACCEPTED_RULE_PRIORITY));
    let refused = guard.refused.iter();
    let refused = refused.map(|pair| rule(*pair, Then::Drop, GUARD_RULE_PRIORITY));
    accepted.chain(refused).collect()
}

/// Where the kernel has no policies: what closes the way between this node's pods and networks behind external gateways.
pub(crate) fn external_rules(desired: &Desired) -> Vec<Rule> {
    let rule = |source, destination| Rule {
        interface: None,
        source,
        destination: Some(destination),
        then: Then::Drop,
        priority: BARE_RULE_PRIORITY,
        protocol: PROTOCOL,
    };
    let externals = desired.externals.values();
    let pairs = externals.flat_map(|e| pairs_of(&desired.pod_cidrs, &e.remote_cidrs));
    let mut rules: Vec<Rule> = Vec::new();
    for (own, remote) in pairs {
        for rule in [rule(own, remote), rule(remote, own)] {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    rules
}

/// Whether pods have IPv6 anywhere.
pub(crate) fn has_ipv6(desired: &Desired) -> bool {
    let own = desired.gateways.iter().any(IpAddr::is_ipv6);
    own || desired
        .peers
        .values()
        .flat_map(|p| &p.pod_cidrs)
        .any(|cidr| cidr.addr().is_ipv6())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Vtep;

    pub(crate) fn peer(cidr: &str, path: RoutePath) -> PeerRoute {
        PeerRoute {
            remote: "192.0.2.2".parse().unwrap(),
            mac: [2, 0, 0, 0, 0, 2],
            pod_cidrs: vec![cidr.parse().unwrap()],
            path,
            accept_clear: false,
            protect: None,
            trial: None,
        }
    }

    pub(crate) fn desired(peers: &[(&str, PeerRoute)]) -> Desired {
        Desired {
            local: "192.0.2.1".parse().unwrap(),
            vtep: Vtep {
                mac: [2, 0, 0, 0, 0, 1],
                vni: 4789,
                port: 4789,
                mtu: None,
            },
            gateways: vec!["10.244.1.1".parse().unwrap()],
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            engine: Engine::None,
            framing: Framing::Vxlan,
            deny_clear: false,
            peers: peers
                .iter()
                .map(|(name, peer)| ((*name).to_owned(), peer.clone()))
                .collect(),
            externals: BTreeMap::new(),
            masquerade: false,
        }
    }

    #[test]
    fn without_a_tun_an_encrypted_peer_has_no_route() {
        let mut desired = desired(&[("b", peer("10.244.2.0/24", RoutePath::Encrypted))]);
        desired.engine = Engine::Tun("espalier.tun".to_owned());
        assert_eq!(
            routes(
                &desired,
                Devices {
                    overlay: 7,
                    underlay: 3,
                    tun: None
                }
            ),
            []
        );
        let found = routes(
            &desired,
            Devices {
                overlay: 7,
                underlay: 3,
                tun: Some(8),
            },
        );
        assert_eq!(
            (found.len(), found[0].oif, found[0].via),
            (1, Some(8), None)
        );
        assert_eq!(found[0].source, Some("10.244.1.1".parse().unwrap()));
    }

    #[test]
    fn the_next_hop_of_ipv6_pods_is_none_of_their_addresses() {
        let mut both = peer("10.244.2.0/24", RoutePath::Clear);
        for cidr in ["fd00:2::/64", "fd00:22::/64"] {
            both.pod_cidrs.push(cidr.parse().unwrap());
        }
        let desired = desired(&[("b", both)]);
        let devices = Devices {
            overlay: 7,
            underlay: 3,
            tun: Some(8),
        };
        let found = routes(&desired, devices);
        let mut hops: Vec<_> = found.iter().map(|r| r.via.unwrap().to_string()).collect();
        hops.sort();
        assert_eq!(hops, ["10.244.2.1", "fe80::ff:fe00:2", "fe80::ff:fe00:2"]);
        let known: Vec<_> = neighbours(&desired, 7)
            .iter()
            .map(|n| n.ip.to_string())
            .collect();
        assert_eq!(known, ["10.244.2.1", "fe80::ff:fe00:2"]);
    }

    #[test]
    fn a_pod_cidr_outside_of_the_cluster_is_unreachable_too() {
        let desired = desired(&[("b", peer("10.9.2.0/24", RoutePath::Blocked))]);
        let to: Vec<_> = refusals(&desired)
            .iter()
            .map(|r| r.to.to_string())
            .collect();
        assert_eq!(to, ["10.9.2.0/24", "10.244.0.0/16"]);
    }

    #[test]
    fn of_two_claims_to_one_cidr_the_first_name_wins() {
        let (clear, blocked) = (
            peer("10.244.2.0/24", RoutePath::Clear),
            peer("10.244.2.9/24", RoutePath::Blocked),
        );
        let desired = desired(&[("c", clear), ("b", blocked)]);
        assert_eq!(
            routes(
                &desired,
                Devices {
                    overlay: 7,
                    underlay: 3,
                    tun: None
                }
            ),
            []
        );
    }

    #[test]
    fn a_clear_path_to_the_other_family_is_blocked() {
        let mut other = peer("10.244.2.0/24", RoutePath::Clear);
        other.remote = "2001:db8::2".parse().unwrap();
        let desired = desired(&[("b", other)]);
        assert_eq!(
            routes(
                &desired,
                Devices {
                    overlay: 7,
                    underlay: 3,
                    tun: None
                }
            ),
            []
        );
        assert_eq!(fdb(&desired, 7), []);
    }

    #[test]
    fn without_policies_rules_close_both_ways_to_external_networks() {
        let mut desired = desired(&[]);
        let external = crate::ExternalRoute {
            remote_cidrs: vec!["192.168.0.0/16".parse().unwrap()],
            tunnel: None,
        };
        desired.externals.insert("berlin".to_owned(), external);
        let found: Vec<_> = external_rules(&desired)
            .into_iter()
            .map(|rule| format!("{} {}", rule.source, rule.destination.unwrap()))
            .collect();
        let expected = [
            "10.244.1.0/24 192.168.0.0/16",
            "192.168.0.0/16 10.244.1.0/24",
        ];
        assert_eq!(found, expected);
    }
}
