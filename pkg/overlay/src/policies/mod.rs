//! The SPD: which clear packets are refused, and which states protect what goes to a peer.
//!
//! What there is depends on the desired state alone, peer by peer: the incremental path computes one peer's policies before and
//! after and writes the difference.

mod base;
mod external;
mod found;
mod pair;
mod spd;

use std::collections::HashSet;

use espalier_netlink::{Action, Direction, Policy, Template};
use ipnet::IpNet;
use tracing::debug;

use crate::{Desired, plan};

pub(crate) use base::pairs_of;
pub(crate) use external::is_external;
pub(crate) use found::Found;
pub(crate) use pair::of_peer;
pub(crate) use spd::{Put, Spd, in_order};

/// Native routing: this node's pods among each other.
const LOCAL_PODS: u32 = 0x4553_5004;
/// Native routing: this node's pods and a peer's.
const NATIVE: u32 = 0x4553_5008;
/// This node's pods and networks behind a gateway outside of the mesh: by its tunnel.
const EXTERNAL: u32 = 0x4553_500c;
/// The same pods and networks otherwise.
const EXTERNAL_BASE: u32 = 0x4553_500e;
/// Between pods by the underlay interface.
const POD_TO_POD: u32 = 0x4553_5010;
/// Pods' own packets that look like the overlay's.
const PODS_OWN: u32 = 0x4553_5020;
/// Probes of a peer's states under trial.
const PROBE: u32 = 0x4553_5080;
/// The overlay between this host and a peer.
const PAIR: u32 = 0x4553_5100;
/// Everything else that looks like the overlay.
const BASE: u32 = 0x4553_5f00;

const UDP: u8 = 17;
/// IPv4 in IP (RFC 2003).
const IPV4: u8 = 4;
/// IPv6 in IP (RFC 2473).
const IPV6: u8 = 41;

/// The policies that should be, the allowing ones first. Without encrypted peers and external gateways there are none while clear
/// packets are not refused: plain nodes need no XFRM and pay nothing for it.
pub(crate) fn wanted(desired: &Desired, underlay: Option<u32>) -> Vec<Policy> {
    let mut all = base::of(desired, underlay);
    let owners = plan::owners(desired);
    for (name, peer) in &desired.peers {
        all.extend(of_peer(desired, peer, owners.pods_of(name), underlay));
    }
    all.extend(external::of(desired));
    let mut places = HashSet::with_capacity(all.len());
    all.retain(|policy| {
        let first = places.insert(policy.place());
        if !first {
            debug!(%policy, "an earlier one has its place");
        }
        first
    });
    in_order(&mut all);
    all
}

/// What a policy is about, seen from the source.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    source: IpNet,
    destination: IpNet,
    protocol: u8,
    port: u16,
}

impl Traffic {
    /// The same that comes in: addresses are swapped, the port is the destination's in both directions.
    fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            ..self
        }
    }

    fn policy(self, direction: Direction, what: What, priority: u32) -> Policy {
        let (action, template) = match what {
            What::Block => (Action::Block, None),
            What::Allow => (Action::Allow, None),
            What::Protect(template) => (Action::Allow, Some(template)),
        };
        Policy {
            direction,
            action,
            template,
            source: self.source.trunc(),
            destination: self.destination.trunc(),
            protocol: self.protocol,
            port: self.port,
            interface: 0,
            priority,
        }
    }
}

/// What becomes of it.
#[derive(Clone, Copy, Debug)]
enum What {
    Allow,
    Block,
    Protect(Template),
}

#[cfg(test)]
mod tests;
