//! A node of a large mesh, all of whose pairs the kernel encrypts.

use std::net::Ipv4Addr;

use espalier_overlay::{Desired, Engine, Framing, PeerRoute, Protect, RoutePath, Vtep};
use espalier_peers::{gateway, vtep_mac};
use ipnet::{IpNet, Ipv4Net};

/// The node's underlay address; its network has room for 65,533 peers.
pub(crate) const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const PREFIX: u8 = 16;
pub(crate) const UNDERLAY_MTU: u32 = 1500;
/// Of the overlay.
const VXLAN: (u32, u16) = (4789, 4789);
/// One less than the first peer's SPI.
const SPI: u32 = 0x1000_0000;

/// What the kernel is to hold, with this many peers.
pub(crate) fn desired(peers: usize) -> Desired {
    let own = pods(0);
    Desired {
        local: LOCAL.into(),
        vtep: Vtep {
            mac: vtep_mac("node-00000"),
            vni: VXLAN.0,
            port: VXLAN.1,
            mtu: None,
        },
        framing: Framing::Vxlan,
        gateways: vec![gateway(own)],
        pod_cidrs: vec![own],
        cluster_cidrs: vec![IpNet::V4(Ipv4Net::new_assert(
            Ipv4Addr::new(100, 64, 0, 0),
            10,
        ))],
        engine: Engine::Kernel,
        deny_clear: true,
        peers: (1..=peers).map(|n| (name(n), peer(n))).collect(),
        externals: [].into(),
        masquerade: true,
    }
}

/// A rekey of one pair: another SPI seals for it.
pub(crate) fn other_spi(desired: &mut Desired) {
    let middle = desired.peers.len() / 2;
    if let Some(peer) = desired.peers.values_mut().nth(middle)
        && let Some(protect) = &mut peer.protect
    {
        protect.spi = protect.spi.map(|spi| spi ^ 0x4000_0000);
    }
}

fn peer(n: usize) -> PeerRoute {
    let number = u32::try_from(n).unwrap_or(u32::MAX);
    PeerRoute {
        remote: Ipv4Addr::from(u32::from(LOCAL) + number).into(),
        mac: vtep_mac(&name(n)),
        pod_cidrs: vec![pods(number)],
        path: RoutePath::Encrypted,
        accept_clear: false,
        protect: Some(Protect {
            reqid: number,
            spi: Some(SPI + number),
            ah: false,
        }),
        trial: None,
    }
}

fn name(n: usize) -> String {
    format!("node-{n:05}")
}

/// One /24 for each node.
fn pods(n: u32) -> IpNet {
    let first = u32::from(Ipv4Addr::new(100, 64, 0, 0));
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(first + n * 256), 24))
}
