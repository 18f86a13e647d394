//! The kernel's routes and XFRM policies: what holds when no process of ours is there any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use espalier_netlink::packet_route::route::RouteType;
use espalier_netlink::packet_xfrm::constants::{
    XFRM_POLICY_BLOCK, XFRM_POLICY_FWD, XFRM_POLICY_IN, XFRM_POLICY_OUT,
};
use espalier_netlink::packet_xfrm::policy::DelGetMessage;
use espalier_netlink::packet_xfrm::{Selector, UserPolicyInfo, XfrmMessage};
use espalier_netlink::{
    Direction, GUARD_TABLE, InstalledPolicy, Netfilter, Route, RouteEntry, RouteFilter, Socket,
    Then, Xfrm,
};
use espalier_overlay::NO_TABLES;
use ipnet::IpNet;

use super::{Finding, cidrs, required};
use crate::model::{Node, Peer};

/// Under every peer's route stands one that leads nowhere, with this metric.
const UNREACHABLE_METRIC: u32 = 4_278_198_272;
/// Priorities of our policies.
const OWN_PRIORITIES: std::ops::RangeInclusive<u32> = 0x4553_5000..=0x4553_5fff;
const OVERLAY_PORT: u16 = 4789;
const UDP: u8 = 17;
const TUN: &str = "espalier.tun";
const VXLAN: &str = "espalier.vx";
const IPIP: &str = "espalier.ip";
/// There when routing is native: pod packets leave by the underlay, in tunnels.
const NATIVE: &str = "espalier.gw";
/// IP in IP.
const IPIP_PROTOCOLS: [u8; 2] = [4, 41];
/// `FRA_PROTOCOL` of our routing rules.
const OWN_PROTOCOL: u8 = 229;
const RESTART: &str = "the agent puts it back; if it does not, restart it and look at its log";

/// What the kernel holds.
struct State {
    routes: Vec<RouteEntry>,
    policies: Vec<UserPolicyInfo>,
    /// Hosts that a policy of ours seals for.
    sealed: BTreeSet<IpAddr>,
    devices: BTreeMap<String, u32>,
    /// Where native routing ends in a TUN.
    guard: Option<Guard>,
}

/// What tells opened packets from clear ones.
struct Guard {
    table: bool,
    rules: bool,
}

pub(super) fn check(status: &Node, underlay: &str) -> Result<Vec<Finding>> {
    judge(&State::read()?, status, underlay)
}

fn judge(state: &State, status: &Node, underlay: &str) -> Result<Vec<Finding>> {
    let clusters = cidrs(&status.cluster_cidrs)?;
    let mut findings: Vec<_> = clusters
        .iter()
        .filter_map(|cidr| state.no_unreachable(*cidr))
        .collect();
    // Networks behind external gateways are reached by policies alone.
    let nodes = status.peers.iter().filter(|peer| peer.kind != "external");
    for peer in nodes {
        for cidr in cidrs(&peer.pod_cidrs)? {
            findings.extend(state.wrong_route(peer, cidr, underlay));
        }
    }
    if required(status) {
        findings.extend(match &state.guard {
            Some(guard) => guard.is_missing(status).into_iter().collect(),
            None => state.unguarded_port(),
        });
        let pairs = clusters
            .iter()
            .flat_map(|from| clusters.iter().map(move |to| (*from, *to)));
        let same_family = pairs.filter(|(from, to)| from.addr().is_ipv4() == to.addr().is_ipv4());
        findings.extend(
            same_family.flat_map(|(from, to)| state.unguarded_underlay(from, to, underlay)),
        );
    }
    Ok(findings)
}

impl State {
    fn read() -> Result<Self> {
        let mut route = Socket::<Route>::open()?;
        let links = route.links().context("listing devices")?;
        let devices = links.into_iter().map(|link| (link.name, link.index));
        let devices: BTreeMap<_, _> = devices.collect();
        let native_tun = [NATIVE, TUN].iter().all(|name| devices.contains_key(*name));
        let (policies, sealed) = policies().context("listing XFRM policies (root is needed)")?;
        Ok(Self {
            routes: route
                .routes(RouteFilter::default())
                .context("listing routes")?,
            policies,
            sealed,
            guard: native_tun.then(|| Guard::read(&mut route)).transpose()?,
            devices,
        })
    }

    fn no_unreachable(&self, cidr: IpNet) -> Option<Finding> {
        let stands = |route: &RouteEntry| {
            route.to == cidr.trunc()
                && route.kind == RouteType::Unreachable
                && route.metric == UNREACHABLE_METRIC
        };
        (!self.routes.iter().any(stands)).then(|| {
            Finding::new(
                format!("no `unreachable {cidr} metric {UNREACHABLE_METRIC}`: packets to unknown pods follow the default route"),
                RESTART,
            )
        })
    }

    /// A peer's pods must be reached as its path says, and by no other device: encrypted by the TUN, or by the overlay where a
    /// policy seals for the host.
    fn wrong_route(&self, peer: &Peer, cidr: IpNet, underlay: &str) -> Option<Finding> {
        let overlay = match () {
            () if self.devices.contains_key(NATIVE) => underlay,
            () if self.devices.contains_key(IPIP) => IPIP,
            () => VXLAN,
        };
        let address = peer.address.parse::<IpAddr>().ok();
        let sealed = address.is_some_and(|host| self.sealed.contains(&host));
        let device = match peer.path.as_str() {
            "Encrypted" | "Authenticated" if sealed => Some(overlay),
            "Encrypted" | "Authenticated" => Some(TUN),
            "Clear" => Some(overlay),
            _ => None,
        };
        let leads =
            |route: &&RouteEntry| route.to == cidr.trunc() && route.kind == RouteType::Unicast;
        let found: Vec<_> = self.routes.iter().filter(leads).collect();
        let name = &peer.name;
        let what = match (device, found.as_slice()) {
            (None, []) => return None,
            (None, [route, ..]) => format!(
                "{name} is blocked, but a route to {cidr} leads to {}",
                self.device_of(route)
            ),
            (Some(device), []) => format!(
                "{name} is {}, but no route to {cidr} leads to {device}",
                peer.path
            ),
            (Some(device), found) => {
                let other = found.iter().find(|route| self.device_of(route) != device)?;
                format!(
                    "{name} is {}, but a route to {cidr} leads to {}",
                    peer.path,
                    self.device_of(other)
                )
            }
        };
        Some(Finding::new(what, RESTART))
    }

    fn device_of(&self, route: &RouteEntry) -> &str {
        let named = self
            .devices
            .iter()
            .find(|(_, index)| route.oif == Some(**index));
        named.map_or("no device", |(name, _)| name)
    }

    /// S2: clear overlay packets are refused, and not sent.
    fn unguarded_port(&self) -> Vec<Finding> {
        let native = self.devices.contains_key(NATIVE);
        let ipip = self.devices.contains_key(IPIP);
        let what = match () {
            () if native => "packets to pods".to_owned(),
            () if ipip => "IP in IP".to_owned(),
            () => format!("UDP port {OVERLAY_PORT}"),
        };
        let guards = |selector: &Selector, direction: u8| {
            let from_anywhere = selector.prefixlen_s == 0 || direction == XFRM_POLICY_OUT;
            let overlay = selector.proto == UDP
                && selector.dport == OVERLAY_PORT
                && selector.prefixlen_s == 0
                && selector.prefixlen_d == 0;
            selector.ifindex == 0
                && match () {
                    () if native => selector.proto == 0,
                    () if ipip => IPIP_PROTOCOLS.contains(&selector.proto) && from_anywhere,
                    () => overlay,
                }
        };
        let directions = match native {
            true => [(XFRM_POLICY_IN, "in"), (XFRM_POLICY_FWD, "forwarded")],
            false => [(XFRM_POLICY_IN, "in"), (XFRM_POLICY_OUT, "out")],
        };
        let open = directions.iter().filter(|(direction, _)| {
            !self.blocks().any(|policy| {
                policy.direction == *direction && guards(&policy.selector, *direction)
            })
        });
        open.map(|(_, word)| {
            Finding::new(
                format!("no XFRM policy blocks {what} ({word}): clear overlay packets pass"),
                RESTART,
            )
        })
        .collect()
    }

    /// Pod to pod without any encapsulation never passes the underlay device.
    fn unguarded_underlay(&self, from: IpNet, to: IpNet, underlay: &str) -> Vec<Finding> {
        let index = self
            .devices
            .get(underlay)
            .copied()
            .and_then(|index| i32::try_from(index).ok());
        let covers = |selector: &Selector| {
            Some(selector.ifindex) == index
                && selector.proto == 0
                && net(selector, false).is_some_and(|net| net.contains(&from))
                && net(selector, true).is_some_and(|net| net.contains(&to))
        };
        let directions = [(XFRM_POLICY_OUT, "sent"), (XFRM_POLICY_FWD, "forwarded")];
        // With native routing what comes out of tunnels is forwarded; what leaves is looked at when it is sent.
        let looked_at = if self.devices.contains_key(NATIVE) {
            1
        } else {
            2
        };
        let open = directions.iter().take(looked_at).filter(|(direction, _)| {
            !self
                .blocks()
                .any(|policy| policy.direction == *direction && covers(&policy.selector))
        });
        open.map(|(_, word)| {
            Finding::new(
                format!("no XFRM policy blocks packets from {from} to {to} {word} on {underlay}"),
                RESTART,
            )
        })
        .collect()
    }

    fn blocks(&self) -> impl Iterator<Item = &UserPolicyInfo> {
        let own = self
            .policies
            .iter()
            .filter(|policy| OWN_PRIORITIES.contains(&policy.priority));
        own.filter(|policy| policy.action == XFRM_POLICY_BLOCK)
    }
}

impl Guard {
    fn read(route: &mut Socket<Route>) -> Result<Self> {
        let accepts = Socket::<Netfilter>::open().and_then(|mut tables| tables.guard_accepts());
        let rules = route.rules().context("listing routing rules")?;
        Ok(Self {
            // Where there are none, the agent has a note.
            table: accepts.is_ok_and(|accepts| accepts.is_some()),
            rules: rules.iter().any(|rule| {
                let between = rule.interface.is_some() && rule.destination.is_some();
                rule.protocol == OWN_PROTOCOL && rule.then == Then::Drop && between
            }),
        })
    }

    /// S2 where policies cannot tell what comes out of the TUN.
    fn is_missing(&self, status: &Node) -> Option<Finding> {
        let without_tables = status.notes.iter().any(|note| note.contains(NO_TABLES));
        let (stands, what) = match without_tables {
            true => (self.rules, "no routing rule of ours refuses".to_owned()),
            false => (
                self.table,
                format!("no whole nf_tables table inet {GUARD_TABLE} refuses"),
            ),
        };
        let what = format!("{what} clear packets from pod addresses to pods: they pass");
        (!stands).then(|| Finding::new(what, RESTART))
    }
}

/// All policies, and the hosts that ours seal for.
fn policies() -> Result<(Vec<UserPolicyInfo>, BTreeSet<IpAddr>)> {
    let mut socket = Socket::<Xfrm>::open()?;
    let list = socket.dump(XfrmMessage::GetPolicy(DelGetMessage::default()))?;
    let infos = list.into_iter().filter_map(|message| match message {
        XfrmMessage::AddPolicy(message) | XfrmMessage::UpdatePolicy(message) => {
            Some(message.user_policy_info)
        }
        _ => None,
    });
    let seals = |found: &InstalledPolicy| {
        let policy = found.policy;
        let ours = policy.direction == Direction::Out && OWN_PRIORITIES.contains(&policy.priority);
        policy.template.filter(|_| ours).map(|t| t.destination)
    };
    let sealed = socket.policies()?.iter().filter_map(seals).collect();
    Ok((infos.collect(), sealed))
}

/// Source or destination of a selector.
fn net(selector: &Selector, destination: bool) -> Option<IpNet> {
    const AF_INET6: u16 = 10;
    let (address, length) = match destination {
        true => (&selector.daddr, selector.prefixlen_d),
        false => (&selector.saddr, selector.prefixlen_s),
    };
    let address = match selector.family {
        AF_INET6 => address.to_ipv6().into(),
        _ => address.to_ipv4().into(),
    };
    IpNet::new(address, length).ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use espalier_testnet::isolated;

    use super::*;

    /// Ours, as the agent makes it; `under0` is the underlay.
    const GOOD: &str = "
        link add under0 type bridge
        link set under0 up
        link add espalier.tun type bridge
        link set espalier.tun up
        route add unreachable 10.244.0.0/16 metric 4278198272
        route add 10.244.2.0/24 dev espalier.tun
        xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 4789 dir in action block priority 1163088000
        xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 4789 dir out action block priority 1163088000
        xfrm policy add src 10.244.0.0/16 dst 10.244.0.0/16 dev under0 dir fwd action block priority 1163088000
        xfrm policy add src 10.244.0.0/16 dst 10.244.0.0/16 dev under0 dir out action block priority 1163088000";

    fn ip(line: &str) {
        let output = Command::new("ip")
            .args(line.split_whitespace())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "ip {line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn status(path: &str) -> Node {
        let peer = Peer {
            name: "node-2".into(),
            path: path.into(),
            pod_cidrs: vec!["10.244.2.0/24".into()],
            ..Peer::default()
        };
        Node {
            mode: "Required".into(),
            cluster_cidrs: vec!["10.244.0.0/16".into()],
            peers: vec![peer],
            ..Node::default()
        }
    }

    fn found(path: &str) -> Vec<String> {
        let findings = check(&status(path), "under0").unwrap();
        findings.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn each_missing_piece_is_named() {
        isolated("verify::kernel::tests::each_missing_piece_is_named", || {
            GOOD.lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .for_each(ip);
            assert_eq!(found("Encrypted"), Vec::<String>::new());
            assert_eq!(
                found("Blocked"),
                ["node-2 is blocked, but a route to 10.244.2.0/24 leads to espalier.tun"]
            );
            assert_eq!(
                found("Clear"),
                ["node-2 is Clear, but a route to 10.244.2.0/24 leads to espalier.tun"]
            );
            for (undo, expected) in [
                (
                    "route del 10.244.2.0/24",
                    "but no route to 10.244.2.0/24 leads to espalier.tun",
                ),
                (
                    "route del unreachable 10.244.0.0/16 metric 4278198272",
                    "no `unreachable 10.244.0.0/16",
                ),
                (
                    "xfrm policy del src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 4789 dir in",
                    "UDP port 4789 (in)",
                ),
                (
                    "xfrm policy del src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 4789 dir out",
                    "UDP port 4789 (out)",
                ),
                (
                    "xfrm policy del src 10.244.0.0/16 dst 10.244.0.0/16 dev under0 dir fwd",
                    "forwarded on under0",
                ),
                (
                    "xfrm policy del src 10.244.0.0/16 dst 10.244.0.0/16 dev under0 dir out",
                    "sent on under0",
                ),
            ] {
                let before = found("Encrypted").len();
                ip(undo);
                let after = found("Encrypted");
                assert_eq!(after.len(), before + 1, "{undo}: {after:?}");
                assert!(
                    after.iter().any(|what| what.contains(expected)),
                    "{undo}: {after:?}"
                );
            }
        });
    }

    /// Native routing that ends in a TUN: what comes in is told apart by nf_tables, or by routing rules where there are none.
    #[test]
    fn a_guard_that_is_missing_is_named() {
        isolated(
            "verify::kernel::tests::a_guard_that_is_missing_is_named",
            || {
                let native = GOOD.lines().map(str::trim);
                let native = native.filter(|line| !line.is_empty() && !line.contains("4789"));
                native.filter(|line| !line.contains("fwd")).for_each(ip);
                ip("link add espalier.gw type bridge");
                let net = |text: &str| text.parse().unwrap();
                let guard = espalier_netlink::Guard {
                    refused: vec![(net("10.244.0.0/16"), net("10.244.1.0/24"))],
                    devices: vec![TUN.to_owned()],
                    ..espalier_netlink::Guard::default()
                };
                let missing = |notes: &[&str]| {
                    let mut status = status("Encrypted");
                    status.notes = notes.iter().map(ToString::to_string).collect();
                    let findings = check(&status, "under0").unwrap();
                    findings.into_iter().map(|f| f.what).collect::<Vec<_>>()
                };
                let found = missing(&[]);
                assert!(
                    found.len() == 1 && found[0].contains("espalier-guard"),
                    "{found:?}"
                );
                let mut tables = Socket::<Netfilter>::open().unwrap();
                tables.put_guard(&guard).unwrap();
                assert_eq!(missing(&[]), Vec::<String>::new());
                let found = missing(&[NO_TABLES]);
                assert!(
                    found.len() == 1 && found[0].contains("routing rule"),
                    "{found:?}"
                );
                ip(
                    "rule add from 10.244.0.0/16 to 10.244.1.0/24 iif under0 blackhole prio 51 proto 229",
                );
                assert_eq!(missing(&[NO_TABLES]), Vec::<String>::new());
                tables.remove_guard().unwrap();
                assert_eq!(missing(&[]).len(), 1);
            },
        );
    }

    #[test]
    fn foreign_policies_do_not_count() {
        isolated(
            "verify::kernel::tests::foreign_policies_do_not_count",
            || {
                let of_another = GOOD.replace("priority 1163088000", "priority 7");
                of_another
                    .lines()
                    .map(str::trim)
                    .filter(|line| !line.is_empty())
                    .for_each(ip);
                assert_eq!(found("Encrypted").len(), 4);
            },
        );
    }
}
