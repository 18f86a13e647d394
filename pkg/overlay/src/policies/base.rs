//! What is refused whoever it comes from, while clear packets are refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use espalier_netlink::{Direction, Policy};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{BASE, IPV4, IPV6, LOCAL_PODS, POD_TO_POD, PODS_OWN, Traffic, UDP, What};
use crate::{Desired, Framing, PROBE_PORT, guard};

/// All of them; none while clear packets are not refused.
pub(super) fn of(desired: &Desired, underlay: Option<u32>) -> Vec<Policy> {
    if !desired.deny_clear {
        return Vec::new();
    }
    let mut all = match desired.framing {
        Framing::Vxlan => vxlan(desired),
        Framing::Ipip => ipip(desired),
        // What comes out of a TUN looks like what comes in by the underlay: the guard tells them apart.
        Framing::Native if guard::only_way_in(desired).is_some() => Vec::new(),
        Framing::Native => native(desired),
    };
    all.extend(probes(desired.local));
    let devices = underlay.into_iter();
    all.extend(devices.flat_map(|index| pod_to_pod(desired, index)));
    all
}

/// UDP to the overlay's port, from and to anywhere. But a pod of a strict node may send UDP to that port number of another pod;
/// to other hosts it cannot, which keeps pods from forging overlay packets.
fn vxlan(desired: &Desired) -> Vec<Policy> {
    let udp = |(source, destination)| Traffic {
        source,
        destination,
        protocol: UDP,
        port: desired.vtep.port,
    };
    let own = between_pods(&desired.cluster_cidrs)
        .map(|pods| udp(pods).policy(Direction::Out, What::Allow, PODS_OWN));
    let mut all: Vec<_> = own.collect();
    for any in [ANY_V4, ANY_V6] {
        for direction in [Direction::In, Direction::Out] {
            all.push(udp((any, any)).policy(direction, What::Block, BASE));
        }
    }
    all
}

/// IP in IP from and to this host's underlay address, and from pods to hosts. Other tunnels of this kind that end at another
/// address of this host are untouched; but the IPv6 device takes packets to any address, so there the block is for all.
fn ipip(desired: &Desired) -> Vec<Policy> {
    let local = IpNet::from(desired.local);
    let any = any(desired.local);
    let mut all = Vec::new();
    for protocol in protocols(desired.local) {
        let traffic = |source, destination| Traffic {
            source,
            destination,
            protocol: *protocol,
            port: 0,
        };
        let into = if desired.local.is_ipv4() { local } else { any };
        all.push(traffic(any, into).policy(Direction::In, What::Block, BASE));
        all.push(traffic(local, any).policy(Direction::Out, What::Block, BASE));
        let family = |net: &&IpNet| net.addr().is_ipv4() == desired.local.is_ipv4();
        for pods in desired.cluster_cidrs.iter().filter(family) {
            all.push(traffic(*pods, any).policy(Direction::Out, What::Block, BASE));
        }
        let own = between_pods(&desired.cluster_cidrs).filter(|(from, _)| family(&from));
        all.extend(
            own.map(|(from, to)| traffic(from, to).policy(Direction::Out, What::Allow, PODS_OWN)),
        );
    }
    all
}

/// IP protocols of pod packets in the underlay's packets. IPv6 in IPv4 is none of them: Linux takes such packets without asking
/// the SPD.
pub(super) fn protocols(local: IpAddr) -> &'static [u8] {
    if local.is_ipv4() {
        &[IPV4]
    } else {
        &[IPV4, IPV6]
    }
}

/// From pods elsewhere to this node's, forwarded or to the host's own address. What leaves is the concern of [`pod_to_pod`].
fn native(desired: &Desired) -> Vec<Policy> {
    let own = &desired.pod_cidrs;
    let within = pairs_of(own, own).map(|pods| (pods, What::Allow, LOCAL_PODS));
    let others = pairs_of(&desired.cluster_cidrs, own).map(|pods| (pods, What::Block, BASE));
    let both = within
        .chain(others)
        .flat_map(|((source, destination), what, priority)| {
            let all = Traffic {
                source,
                destination,
                protocol: 0,
                port: 0,
            };
            [Direction::In, Direction::Forward].map(|d| all.policy(d, what, priority))
        });
    both.collect()
}

/// Probes outside of any SA.
fn probes(local: IpAddr) -> [Policy; 2] {
    let out = Traffic {
        source: local.into(),
        destination: any(local),
        protocol: UDP,
        port: PROBE_PORT,
    };
    [(out.reversed(), Direction::In), (out, Direction::Out)]
        .map(|(traffic, direction)| traffic.policy(direction, What::Block, BASE))
}

/// Whatever a route says: nothing between two pod addresses leaves by the underlay interface as it is. With native routing what
/// is forwarded is looked at once, when it leaves.
fn pod_to_pod(desired: &Desired, interface: u32) -> Vec<Policy> {
    let directions: &[Direction] = match desired.framing {
        Framing::Native => &[Direction::Out],
        Framing::Vxlan | Framing::Ipip => &[Direction::Out, Direction::Forward],
    };
    let block = |(source, destination), direction: &Direction| {
        let all = Traffic {
            source,
            destination,
            protocol: 0,
            port: 0,
        };
        Policy {
            interface,
            ..all.policy(*direction, What::Block, POD_TO_POD)
        }
    };
    between_pods(&desired.cluster_cidrs)
        .flat_map(|pods| directions.iter().map(move |d| block(pods, d)))
        .collect()
}

/// Every pair of cluster CIDRs of one family.
fn between_pods(cluster_cidrs: &[IpNet]) -> impl Iterator<Item = (IpNet, IpNet)> {
    pairs_of(cluster_cidrs, cluster_cidrs)
}

/// Every pair of one family.
pub(crate) fn pairs_of(from: &[IpNet], to: &[IpNet]) -> impl Iterator<Item = (IpNet, IpNet)> {
    let all = from
        .iter()
        .flat_map(move |from| to.iter().map(move |to| (from.trunc(), to.trunc())));
    all.filter(|(from, to)| from.addr().is_ipv4() == to.addr().is_ipv4())
}

const ANY_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
const ANY_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0));

fn any(ip: IpAddr) -> IpNet {
    if ip.is_ipv4() { ANY_V4 } else { ANY_V6 }
}
