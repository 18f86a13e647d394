//! What should be, as kernel objects. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use espalier_netlink::packet_route::route::RouteType;
use espalier_netlink::{Action, Direction, FdbEntry, Neighbour, Policy, RouteEntry};
use espalier_peers::gateway;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{Desired, Error, PRIORITIES, PROTOCOL, PeerRoute, RoutePath, UNREACHABLE_METRIC};

/// Outer IP, UDP, ESP, IV, UDP, VXLAN, Ethernet, ESP trailer, ICV, for an IPv4 underlay.
const OVERHEAD_V4: u32 = 20 + 8 + 8 + 8 + 8 + 8 + 14 + 2 + 16;
/// The same with IPv6's longer header.
const OVERHEAD_V6: u32 = OVERHEAD_V4 + 20;
/// RFC 8200 §5: IPv6 needs 1280; IPv4 alone would do with less, but nothing in a cluster expects that.
const LEAST_MTU: u32 = 1280;
const UDP: u8 = 17;

/// Interface indices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Devices {
    pub(crate) vxlan: u32,
    /// The data plane's, if it is there.
    pub(crate) tun: Option<u32>,
}

/// Pod MTU for an underlay MTU, both in bytes.
pub(crate) fn pod_mtu(desired: &Desired, underlay: u32) -> Result<u32, Error> {
    let overhead = if desired.local.is_ipv4() {
        OVERHEAD_V4
    } else {
        OVERHEAD_V6
    };
    let pod = desired
        .vtep
        .mtu
        .unwrap_or(underlay.saturating_sub(overhead));
    if pod < LEAST_MTU {
        return Err(Error::MtuTooSmall {
            underlay,
            pod,
            least: LEAST_MTU,
        });
    }
    Ok(pod)
}

/// The net under all routes: pod addresses that no route leads to.
pub(crate) fn unreachable(desired: &Desired) -> Vec<RouteEntry> {
    let route = |cidr: &IpNet| RouteEntry {
        protocol: PROTOCOL,
        ..RouteEntry::unreachable(*cidr, UNREACHABLE_METRIC)
    };
    desired.cluster_cidrs.iter().map(route).collect()
}

/// Routes to peers' pods.
pub(crate) fn routes(desired: &Desired, devices: Devices) -> Vec<RouteEntry> {
    let peers = desired.peers.values();
    peers
        .flat_map(|peer| {
            peer.pod_cidrs
                .iter()
                .filter_map(move |cidr| route(desired, devices, peer, *cidr))
        })
        .collect()
}

fn route(desired: &Desired, devices: Devices, peer: &PeerRoute, cidr: IpNet) -> Option<RouteEntry> {
    let bare = match peer.path {
        RoutePath::Blocked => return None,
        // Without the data plane's device there is no route: never the clear one in its place.
        RoutePath::Encrypted => RouteEntry::unicast(cidr, None, devices.tun?),
        RoutePath::Clear => RouteEntry {
            onlink: true,
            ..RouteEntry::unicast(cidr, Some(gateway(cidr)), devices.vxlan)
        },
    };
    let source = desired
        .gateways
        .iter()
        .copied()
        .find(|own| own.is_ipv4() == cidr.addr().is_ipv4());
    Some(RouteEntry {
        source,
        protocol: PROTOCOL,
        ..bare
    })
}

/// Who is behind the VXLAN device. Only where clear packets may flow: else a stray route would find its way.
pub(crate) fn neighbours(desired: &Desired, vxlan: u32) -> Vec<Neighbour> {
    let of = |peer: &PeerRoute| -> Vec<Neighbour> {
        peer.pod_cidrs
            .iter()
            .map(|cidr| Neighbour::permanent(vxlan, gateway(*cidr), peer.mac))
            .collect()
    };
    clear_peers(desired).flat_map(of).collect()
}

/// Where their VTEPs are.
pub(crate) fn fdb(desired: &Desired, vxlan: u32) -> Vec<FdbEntry> {
    clear_peers(desired)
        .map(|peer| FdbEntry {
            index: vxlan,
            mac: peer.mac,
            remote: peer.remote,
        })
        .collect()
}

fn clear_peers(desired: &Desired) -> impl Iterator<Item = &PeerRoute> {
    desired
        .peers
        .values()
        .filter(|peer| peer.accept_clear || peer.path == RoutePath::Clear)
}

/// All policies: allows first, as they are to be written.
pub(crate) fn policies(desired: &Desired, underlay: u32) -> Vec<Policy> {
    if !desired.deny_clear {
        return Vec::new();
    }
    let [allow, block, pods] = [0x100, 0x200, 0x300].map(|offset| PRIORITIES.start() + offset);
    let overlay = |direction, action, source, destination, priority| Policy {
        direction,
        action,
        source,
        destination,
        protocol: UDP,
        port: desired.vtep.port,
        interface: 0,
        priority,
    };
    let mut policies = Vec::new();
    let own = IpNet::from(desired.local);
    for peer in desired.peers.values().filter(|peer| peer.accept_clear) {
        let remote = IpNet::from(peer.remote);
        policies.push(overlay(Direction::In, Action::Allow, remote, own, allow));
        policies.push(overlay(Direction::Out, Action::Allow, own, remote, allow));
    }
    for any in everything() {
        policies.push(overlay(Direction::In, Action::Block, any, any, block));
        policies.push(overlay(Direction::Out, Action::Block, any, any, block));
    }
    policies.extend(pod_blocks(desired, underlay, pods));
    policies
}

/// Pod packets that would leave by the underlay interface as they are, whatever route made them.
fn pod_blocks(desired: &Desired, underlay: u32, priority: u32) -> Vec<Policy> {
    let clusters = &desired.cluster_cidrs;
    let pairs = clusters
        .iter()
        .flat_map(|a| clusters.iter().map(move |b| (*a, *b)));
    let same_family = pairs.filter(|(a, b)| a.addr().is_ipv4() == b.addr().is_ipv4());
    let block = |(source, destination), direction| Policy {
        direction,
        action: Action::Block,
        source,
        destination,
        protocol: 0,
        port: 0,
        interface: underlay,
        priority,
    };
    same_family
        .flat_map(|pair| {
            [Direction::Out, Direction::Forward].map(|direction| block(pair, direction))
        })
        .collect()
}

pub(crate) fn everything() -> [IpNet; 2] {
    let v4 = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
    let v6 = Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0);
    [v4.into(), v6.into()]
}

/// Settings of this network namespace: key under /proc/sys and value.
pub(crate) fn sysctls(desired: &Desired, device: &str) -> Vec<(String, &'static str)> {
    // Loose: during a toggle a peer's packets come by one device while ours go by the other.
    let mut settings = vec![(format!("net/ipv4/conf/{device}/rp_filter"), "2")];
    settings.push(("net/ipv4/ip_forward".to_owned(), "1"));
    if desired.gateways.iter().any(IpAddr::is_ipv6) {
        settings.push(("net/ipv6/conf/all/forwarding".to_owned(), "1"));
    } else {
        settings.push((format!("net/ipv6/conf/{device}/disable_ipv6"), "1"));
    }
    settings
}

/// Ours and only ours: what a route of [`PROTOCOL`] may be removed as.
pub(crate) fn is_ours(route: &RouteEntry, devices: &[u32]) -> bool {
    let leads_to_us = route.oif.is_some_and(|oif| devices.contains(&oif));
    route.protocol == PROTOCOL && (leads_to_us || route.kind == RouteType::Unreachable)
}
