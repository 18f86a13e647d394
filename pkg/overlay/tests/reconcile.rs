//! Desired minus actual: nothing is written without need, what was damaged is put right, what is not ours stays.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::process::Command;

use common::{Node, TUN, Wire, assert_pods_talk, name, underlay};
use espalier_overlay::{Desired, Engine, RoutePath};
use espalier_testnet::isolated;

fn two_nodes() -> (Wire, Node, Node) {
    let wire = Wire::new();
    let (a, b) = (Node::new(&wire, 1), Node::new(&wire, 2));
    (wire, a, b)
}

/// One peer of each kind, and every guard.
fn rich(node: &Node) -> Desired {
    let mut desired = node.desired(&[2, 3, 4], RoutePath::Clear);
    desired.deny_clear = true;
    desired.engine = Engine::Tun(TUN.to_owned());
    for (n, path) in [(3, RoutePath::Encrypted), (4, RoutePath::Blocked)] {
        let peer = desired.peers.get_mut(&name(n)).unwrap();
        (peer.path, peer.accept_clear) = (path, false);
    }
    desired
}

#[test]
fn nothing_is_written_when_nothing_differs() {
    isolated("nothing_is_written_when_nothing_differs", || {
        let (_wire, mut a, _b) = two_nodes();
        a.add_tun();
        let rich = rich(&a);
        assert!(a.settle(&rich).writes > 0);
        let state = a.state();
        assert_eq!(a.apply(&rich).writes, 0);
        assert_eq!(a.state(), state);
        // One switch is one message.
        let mut switched = rich.clone();
        let peer = switched.peers.get_mut(&name(2)).unwrap();
        peer.path = RoutePath::Encrypted;
        assert_eq!(a.settle(&switched).writes, 1);
    });
}

#[test]
fn what_somebody_deleted_or_changed_is_put_right() {
    isolated("what_somebody_deleted_or_changed_is_put_right", || {
        let (_wire, mut a, mut b) = two_nodes();
        a.add_tun();
        let desired = rich(&a);
        a.settle(&desired);
        b.settle(&b.desired(&[1], RoutePath::Clear));
        assert_pods_talk(&a, &b, b"before");
        let damages = [
            "link del espalier.vx",
            "link set espalier.vx down",
            "link set espalier.vx mtu 1000",
            "link set espalier.vx address 02:00:00:00:00:77",
            "link set espalier.tun mtu 900",
            "link set espalier.tun down",
            "addr del 10.244.1.1/32 dev espalier.vx",
            "addr add 10.244.7.1/32 dev espalier.vx",
            "route del 10.244.2.0/24 proto 229",
            "route del 10.244.3.0/24 proto 229",
            "route change 10.244.2.0/24 dev espalier.tun proto 229",
            "route add 10.244.4.0/24 via 10.244.4.1 dev espalier.vx onlink proto 229",
            "route add 10.244.9.0/24 dev espalier.tun proto 229",
            "route del unreachable 10.244.0.0/16",
            "neigh del 10.244.2.1 dev espalier.vx",
            "neigh replace 10.244.2.1 lladdr 02:00:00:00:00:78 dev espalier.vx",
            "neigh add 10.244.8.1 lladdr 02:00:00:00:00:78 dev espalier.vx",
            "xfrm policy deleteall",
            "xfrm policy update src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 4789 dir in action allow priority 1163087888",
        ];
        let fdb = [
            "fdb del 02:45:53:00:00:02 dev espalier.vx",
            "fdb replace 02:45:53:00:00:02 dst 192.0.2.9 dev espalier.vx",
        ];
        let healthy = normal(&a);
        let ip = damages.iter().map(|d| ("ip", *d));
        for (program, damage) in ip.chain(fdb.iter().map(|d| ("bridge", *d))) {
            a.netns
                .output(Command::new(program).args(damage.split_whitespace()))
                .unwrap();
            assert_ne!(normal(&a), healthy, "{damage} does something");
            assert!(a.settle(&desired).writes > 0, "{damage}");
            assert_eq!(normal(&a), healthy, "after {damage}");
        }
        assert_pods_talk(&a, &b, b"after");
    });
}

/// The state without what differs each time: indices, policies' numbers, learned neighbours, order.
fn normal(node: &Node) -> Vec<String> {
    let state = node.state();
    let mut lines: Vec<String> = Vec::new();
    for line in state
        .lines()
        .filter(|l| !l.contains("REACHABLE") && !l.contains("STALE") && !l.contains("DELAY"))
    {
        let line = line
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .trim_end();
        match line.starts_with(['\t', ' ']) {
            // Continued: a policy is several lines.
            true if !lines.is_empty() => lines.last_mut().unwrap().push_str(line),
            _ => lines.push(line.to_owned()),
        }
    }
    lines.sort();
    lines
}

#[test]
fn a_vxlan_device_with_a_wrong_attribute_is_made_anew() {
    isolated("a_vxlan_device_with_a_wrong_attribute_is_made_anew", || {
        let (_wire, mut a, mut b) = two_nodes();
        b.settle(&b.desired(&[1], RoutePath::Clear));
        let desired = a.desired(&[2], RoutePath::Clear);
        let wrong = [
            "vxlan id 1 dstport 4789 local 192.0.2.1 nolearning",
            "vxlan id 4789 dstport 8472 local 192.0.2.1 nolearning",
            "vxlan id 4789 dstport 4789 local 192.0.2.77 nolearning",
            "vxlan id 4789 dstport 4789 local 192.0.2.1 learning",
            "vxlan id 4789 dstport 4789 local 192.0.2.1 nolearning remote 192.0.2.9 dev eth0",
            "vxlan dstport 4789 external",
            "bridge",
        ];
        for kind in wrong {
            a.ip(&format!("link add espalier.vx type {kind}"));
            a.settle(&desired);
            assert_pods_talk(&a, &b, kind.as_bytes());
            a.remove_all();
        }
    });
}

#[test]
fn what_is_not_ours_survives() {
    isolated("what_is_not_ours_survives", || {
        let (_wire, mut a, _b) = two_nodes();
        a.add_tun();
        for foreign in [
            "route add 10.99.0.0/16 via 192.0.2.9",
            "route add 10.98.0.0/16 dev eth0 proto 229",
            "route add unreachable 10.96.0.0/16 metric 4278198272",
            "route add 10.244.0.0/16 dev eth0 table 77 proto 229",
            "link add other.vx type vxlan id 5 dstport 4790 local 192.0.2.1 nolearning",
            "link set other.vx up",
            "addr add 172.16.0.1/24 dev other.vx",
            "neigh add 172.16.0.2 lladdr 02:00:00:00:00:55 dev other.vx",
            "xfrm policy add src 10.0.0.0/8 dst 10.9.0.0/16 dir out action block priority 100",
            "xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 4790 dir in action block",
            "xfrm policy add src 192.0.2.1 dst 192.0.2.9 dir out priority 500 tmpl src 192.0.2.1 dst 192.0.2.9 proto esp mode tunnel",
        ] {
            a.ip(foreign);
        }
        let fdb = "fdb append 02:00:00:00:00:55 dst 192.0.2.9 dev other.vx".split_whitespace();
        a.netns.output(Command::new("bridge").args(fdb)).unwrap();
        a.ip(&format!("link set {TUN} up mtu 1408"));
        let before = normal(&a);
        let desired = rich(&a);
        a.settle(&desired);
        let with = normal(&a);
        let missing: Vec<_> = before.iter().filter(|line| !with.contains(line)).collect();
        assert!(missing.is_empty(), "apply removed {missing:?}");
        a.settle(&a.desired(&[], RoutePath::Blocked));
        a.settle(&desired);
        a.remove_all();
        assert_eq!(normal(&a), before);
        a.remove_all();
    });
}

#[test]
fn a_route_or_policy_of_others_in_our_place_is_an_error_and_stays() {
    isolated(
        "a_route_or_policy_of_others_in_our_place_is_an_error_and_stays",
        || {
            let (_wire, mut a, _b) = two_nodes();
            a.ip("route add 10.244.2.0/24 via 192.0.2.9 proto static");
            let error = a
                .try_apply(&a.desired(&[2], RoutePath::Clear))
                .unwrap_err()
                .to_string();
            assert!(error.contains("10.244.2.0/24"), "{error}");
            assert!(
                a.ip("route")
                    .contains("10.244.2.0/24 via 192.0.2.9 dev eth0 proto static")
            );
            a.ip("route del 10.244.2.0/24 proto static");

            a.ip("xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 4789 dir in action allow priority 9");
            let mut strict = a.desired(&[2], RoutePath::Blocked);
            strict.deny_clear = true;
            let error = a.try_apply(&strict).unwrap_err().to_string();
            assert!(error.contains("polic"), "{error}");
            assert!(a.ip("xfrm policy").contains("priority 9"));
            a.ip("xfrm policy delete src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 4789 dir in");
            a.settle(&strict);
        },
    );
}

#[test]
fn an_underlay_interface_that_is_made_anew_is_followed() {
    isolated(
        "an_underlay_interface_that_is_made_anew_is_followed",
        || {
            let (wire, mut a, mut b) = two_nodes();
            a.add_tun();
            let mut desired = rich(&a);
            a.settle(&desired);
            b.settle(&b.desired(&[1], RoutePath::Clear));
            let number = |a: &Node| {
                a.ip("-o link show eth0")
                    .split(':')
                    .next()
                    .unwrap()
                    .to_owned()
            };
            let old = number(&a);
            wire.unplug(1);
            wire.plug(&a, 1);
            assert_ne!(number(&a), old);
            a.settle(&desired);
            let policies = a.ip("xfrm policy");
            assert_eq!(policies.matches("dev eth0").count(), 2, "{policies}");
            assert_pods_talk(&a, &b, b"after");
            // A smaller underlay: smaller pods.
            a.ip("link set eth0 mtu 1400");
            assert_eq!(a.settle(&desired).pod_mtu, 1400 - 92);
            desired.vtep.mtu = Some(1300);
            assert_eq!(a.settle(&desired).pod_mtu, 1300);
            assert!(a.ip("link show espalier.vx").contains("mtu 1300"));
        },
    );
}

#[test]
fn a_missing_underlay_address_and_a_small_underlay_are_named() {
    isolated(
        "a_missing_underlay_address_and_a_small_underlay_are_named",
        || {
            let (_wire, mut a, _b) = two_nodes();
            let mut desired = a.desired(&[2], RoutePath::Clear);
            desired.local = underlay(99);
            let error = a.try_apply(&desired).unwrap_err().to_string();
            assert!(
                error.contains("192.0.2.99") && error.contains("InternalIP"),
                "{error}"
            );
            a.ip("link set eth0 mtu 600");
            let error = a
                .try_apply(&a.desired(&[2], RoutePath::Clear))
                .unwrap_err()
                .to_string();
            assert!(error.contains("MTU") && error.contains("600"), "{error}");
        },
    );
}

#[test]
fn a_lost_underlay_address_opens_nothing() {
    isolated("a_lost_underlay_address_opens_nothing", || {
        let (mut wire, mut a, _b) = two_nodes();
        a.apply(&a.desired(&[2], RoutePath::Clear));
        let mut strict = a.desired(&[2], RoutePath::Blocked);
        strict.deny_clear = true;
        strict.local = underlay(99);
        a.try_apply(&strict).unwrap_err();
        let before = wire.seen();
        a.pod.send(common::pod(2), b"leak");
        a.send(common::pod(2), b"leak").unwrap_err();
        assert_eq!(wire.seen().since(&before).clear, 0);
    });
}

#[test]
fn a_restarted_agent_finds_what_there_is() {
    isolated("a_restarted_agent_finds_what_there_is", || {
        let (_wire, mut a, _b) = two_nodes();
        assert_eq!(a.observe(), Default::default());
        a.add_tun();
        let mut desired = rich(&a);
        a.apply(&desired);
        let found = a.observe();
        let paths = [
            ("10.244.2.0/24", RoutePath::Clear),
            ("10.244.3.0/24", RoutePath::Encrypted),
        ];
        assert_eq!(
            found.paths,
            paths.map(|(to, path)| (to.parse().unwrap(), path)).into()
        );
        assert_eq!(found.accepting, [underlay(2)].into());
        assert!(found.base_block);
        a.ip("xfrm policy delete src ::/0 dst ::/0 proto udp dport 4789 dir in");
        assert!(!a.observe().base_block, "a block with a hole is none");
        desired.deny_clear = false;
        a.settle(&desired);
        let found = a.observe();
        assert!(!found.base_block && found.accepting.is_empty());
    });
}
