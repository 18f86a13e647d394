//! What the policies in the kernel say, for an agent that has just started.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use espalier_netlink::{Action, Direction, InstalledPolicy, Mode, Policy, Protocol, Template};

use ipnet::IpNet;

use super::{BASE, NATIVE, PAIR};
use crate::{Protect, Tunnel};

/// What a complete list of our policies says.
pub(crate) struct Found {
    /// The base block stands in full.
    pub(crate) base: bool,
    /// The hosts that the base block does not concern.
    pub(crate) accepting: BTreeSet<IpAddr>,
    /// What seals for each host.
    pub(crate) protects: BTreeMap<IpAddr, Protect>,
    /// The pod CIDRs that a tunnel leads to.
    pub(crate) sealed: BTreeSet<IpNet>,
    /// The tunnels with gateways outside of the mesh, by their addresses.
    pub(crate) tunnels: BTreeMap<IpAddr, Tunnel>,
}

impl Found {
    pub(crate) fn of(list: &[InstalledPolicy]) -> Self {
        let policies = || list.iter().map(|p| p.policy);
        let pairs = || policies().filter(|p| matches!(p.priority, PAIR | NATIVE));
        let mut found = Self {
            base: base(policies().filter(|p| p.priority == BASE)),
            accepting: pairs().filter_map(accepted).collect(),
            protects: pairs().filter_map(protected).collect(),
            sealed: pairs()
                .filter(|p| p.priority == NATIVE && protected(*p).is_some())
                .map(|p| p.destination)
                .collect(),
            tunnels: BTreeMap::new(),
        };
        policies().for_each(|policy| found.note_tunnel(&policy));
        found
    }
}

/// VXLAN: both ways in both families. IP in IP: both ways. Native routing: to the host and forwarded.
fn base(policies: impl Iterator<Item = Policy>) -> bool {
    let (mut overlay, mut native) = (BTreeSet::new(), BTreeSet::new());
    // Of a host or of anybody; those about pods are narrower.
    let whole = |p: &Policy| {
        let length = p.source.prefix_len();
        p.protocol == 0 || length == 0 || length == p.source.max_prefix_len()
    };
    let blocks = policies.filter(|p| p.action == Action::Block && p.port != crate::PROBE_PORT);
    for p in blocks.filter(whole) {
        let set = if p.protocol == 0 {
            &mut native
        } else {
            &mut overlay
        };
        set.insert((p.protocol, p.direction, p.source.addr().is_ipv4()));
    }
    let has = |p, d, v4| overlay.contains(&(p, d, v4));
    let both = |p, v4| has(p, Direction::In, v4) && has(p, Direction::Out, v4);
    let vxlan = both(super::UDP, true) && both(super::UDP, false);
    let ipip = both(super::IPV4, true) || (both(super::IPV4, false) && both(super::IPV6, false));
    let families = [true, false].map(|v4| {
        native.contains(&(0, Direction::In, v4)) && native.contains(&(0, Direction::Forward, v4))
    });
    vxlan || ipip || families.contains(&true)
}

/// The host whose clear packets come in.
fn accepted(policy: Policy) -> Option<IpAddr> {
    let allows = policy.action == Action::Allow && policy.direction == Direction::In;
    match policy.template.filter(|_| allows) {
        Some(template) => template.optional.then_some(template.source),
        None => (allows && policy.priority == PAIR).then(|| policy.source.addr()),
    }
}

/// The host that this policy seals for, and how.
fn protected(policy: Policy) -> Option<(IpAddr, Protect)> {
    let Template {
        protocol,
        mode,
        destination,
        reqid,
        spi,
        ..
    } = policy.template?;
    let fits =
        policy.direction == Direction::Out && (mode == Mode::Tunnel) == (policy.priority == NATIVE);
    let protect = Protect {
        reqid,
        spi,
        ah: protocol == Protocol::Ah,
    };
    fits.then_some((destination, protect))
}
