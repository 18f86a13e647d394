//! Networks behind gateways outside of the mesh: closed, or sealed by a tunnel's policies.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::{Node, Wire};
use espalier_netlink::{Route, Rule, Socket, Then};
use espalier_overlay::{Desired, Engine, ExternalRoute, Protect, RoutePath, Tunnel};
use espalier_testnet::isolated;

const REMOTE: &str = "192.168.0.0/16";

fn with_gateway(node: &Node) -> Desired {
    let mut desired = node.desired(&[2], RoutePath::Clear);
    desired.engine = Engine::Kernel;
    let route = ExternalRoute {
        remote_cidrs: vec![REMOTE.parse().unwrap()],
        tunnel: None,
    };
    desired.externals.insert("berlin".to_owned(), route);
    desired
}

fn tunnel(desired: &Desired, spi: u32) -> Tunnel {
    Tunnel {
        local: desired.local,
        gateway: "203.0.113.7".parse().unwrap(),
        protect: Protect {
            reqid: 0x4553_0009,
            spi: Some(spi),
            ah: false,
        },
        selectors: vec![(desired.pod_cidrs[0], REMOTE.parse().unwrap())],
    }
}

fn about_it(node: &Node) -> usize {
    let policies = node.ip("xfrm policy list");
    policies.matches(REMOTE).count()
}

#[test]
fn external_networks_are_closed_sealed_and_left_without_a_trace() {
    isolated(
        "external_networks_are_closed_sealed_and_left_without_a_trace",
        || {
            let wire = Wire::new();
            let mut a = Node::new(&wire, 1);
            let mut desired = with_gateway(&a);
            a.apply(&desired);
            assert_eq!(about_it(&a), 3);
            assert_eq!(a.ip("xfrm policy list").matches("action block").count(), 3);
            assert_eq!(a.apply(&desired).writes, 0);
            let observe = |a: &mut Node| {
                let seen = a.netns.run(|| a.overlay.observe(&[])).unwrap();
                seen.unwrap().tunnels.into_values().next()
            };
            assert_eq!(observe(&mut a), None);

            // A tunnel, another SPI of it, and its end: one message for each policy, none of which is ever missing.
            let first = tunnel(&desired, 0xc000_0001);
            let second = tunnel(&desired, 0xc000_0002);
            for (state, writes) in [(Some(first), 3), (Some(second), 1), (None, 3)] {
                let external = desired.externals.get_mut("berlin").unwrap();
                external.tunnel.clone_from(&state);
                assert_eq!(a.apply(&desired).writes, writes);
                assert_eq!((about_it(&a), observe(&mut a)), (3, state));
            }
            desired.externals.clear();
            a.apply(&desired);
            assert_eq!(about_it(&a), 0);
        },
    );
}

/// What stands in for policies where a kernel has none.
#[test]
fn rules_between_two_networks_are_told_again() {
    isolated("rules_between_two_networks_are_told_again", || {
        let wire = Wire::new();
        let a = Node::new(&wire, 1);
        let rule = |source: &str, destination: &str, then| Rule {
            interface: None,
            source: source.parse().unwrap(),
            destination: Some(destination.parse().unwrap()),
            then,
            priority: 50,
            protocol: 229,
        };
        let rules = [
            rule("10.244.1.0/24", REMOTE, Then::Drop),
            rule("10.244.2.0/24", REMOTE, Then::Main),
            rule("fd00:10:1::/64", "2001:db8::/32", Then::Drop),
            rule("fd00:10:2::/64", "2001:db8::/32", Then::Main),
        ];
        let found = a.netns.run(|| {
            let mut socket = Socket::<Route>::open().unwrap();
            rules.iter().for_each(|r| socket.add_rule(r).unwrap());
            let found = socket.rules().unwrap();
            rules.iter().for_each(|r| socket.del_rule(r).unwrap());
            assert_eq!(socket.rules().unwrap(), []);
            found
        });
        assert_eq!(found.unwrap(), rules);
    });
}
