//! Real packets through the kernel's own ESP and AH. The states are made with iproute2, which stands for `espalier-dataplane`.
//!
//! ```text
//!  pod 1 ── node 1 ── eth0 ═══ ESP or AH between 192.0.2.1 and .2 ═══ eth0 ── node 2 ── pod 2
//!                               capture: no pod packet in clear
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
mod esp;

use common::{Node, Wire, assert_pods_talk, name, pod};
use esp::{Flow, Suite, pair_of, spi};
use espalier_overlay::{Engine, RoutePath};
use espalier_testnet::isolated;

/// Two nodes whose pods talk through states that the policies name, enforced.
fn enforced(suite: Suite) -> (Wire, Node, Node) {
    let wire = Wire::new();
    let (mut a, mut b) = (Node::new(&wire, 1), Node::new(&wire, 2));
    pair_of(&a, &b, suite, 1);
    for (node, other) in [(&mut a, 2), (&mut b, 1)] {
        let mut desired = node.desired(&[other], RoutePath::Encrypted);
        (desired.engine, desired.deny_clear) = (Engine::Kernel, true);
        let peer = desired.peers.get_mut(&name(other)).unwrap();
        peer.protect = Some(esp::protect(node.number, other, suite, 1));
        node.settle(&desired);
    }
    (wire, a, b)
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn encrypted_pods_reach_each_other_and_nothing_is_clear() {
    isolated(
        "encrypted_pods_reach_each_other_and_nothing_is_clear",
        || {
            for suite in [Suite::Esp, Suite::EspInUdp, Suite::Ah] {
                let (mut wire, a, b) = enforced(suite);
                let _open = [&a, &b].map(esp::open_udp);
                let before = wire.seen();
                assert_pods_talk(&a, &b, b"sealed");
                let seen = wire.seen().since(&before);
                let clear = if suite == Suite::Ah { 2 } else { 0 };
                assert_eq!((suite, seen.marked), (suite, clear), "only AH can be read");
                for node in [&a, &b] {
                    assert_eq!(esp::errors(node), "", "{suite:?}");
                }
            }
        },
    );
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn switching_between_clear_and_states_loses_nothing() {
    isolated("switching_between_clear_and_states_loses_nothing", || {
        let wire = Wire::new();
        let (mut a, mut b) = (Node::new(&wire, 1), Node::new(&wire, 2));
        for epoch in 1..=2 {
            pair_of(&a, &b, Suite::Esp, epoch);
        }
        let mut both = [(&mut a, 2), (&mut b, 1)].map(|(node, other)| {
            let mut desired = node.desired(&[other], RoutePath::Clear);
            (desired.engine, desired.deny_clear) = (Engine::Kernel, true);
            node.settle(&desired);
            (node, desired)
        });
        let flows = Flow::start(both[0].0, both[1].0);
        for step in 0..60 {
            for (node, desired) in &mut both {
                let other = 3 - node.number;
                let peer = desired.peers.get_mut(&name(other)).unwrap();
                // Clear → first states → second states → first → clear.
                let epoch = [0, 1, 2, 1][step % 4];
                peer.path = if epoch == 0 {
                    RoutePath::Clear
                } else {
                    RoutePath::Encrypted
                };
                peer.protect =
                    (epoch > 0).then(|| esp::protect(node.number, other, Suite::Esp, epoch));
                let writes = node.apply(desired).writes;
                assert_eq!(writes, usize::from(step > 0), "a switch is one message");
                flows.go_on(20);
            }
        }
        let sent = flows.finish();
        assert!(sent > 1000, "{sent} packets");
        for (node, _) in &both {
            assert_eq!(esp::errors(node), "");
        }
    });
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn s1_nothing_leaves_when_the_states_are_gone() {
    isolated("s1_nothing_leaves_when_the_states_are_gone", || {
        let (mut wire, a, b) = enforced(Suite::Esp);
        assert_pods_talk(&a, &b, b"before");
        a.ip("xfrm state flush");
        let before = wire.seen();
        for _ in 0..20 {
            a.pod.send(pod(2), b"leak");
            let _ = a.send(pod(2), b"leak");
        }
        let seen = wire.seen().since(&before);
        assert_eq!((seen.clear, seen.marked, seen.esp), (0, 0, 0));
        for node in [&a, &b] {
            node.ip("xfrm state flush");
        }
        pair_of(&a, &b, Suite::Esp, 1);
        assert_pods_talk(&a, &b, b"after");
    });
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn s2_clear_packets_of_an_enforced_peer_are_refused() {
    isolated("s2_clear_packets_of_an_enforced_peer_are_refused", || {
        let (mut wire, mut a, b) = enforced(Suite::Esp);
        assert_pods_talk(&a, &b, b"before");
        a.settle(&a.desired(&[2], RoutePath::Clear));
        let before = wire.seen();
        for _ in 0..10 {
            a.pod.send(pod(2), b"intruder");
        }
        let seen = wire.seen().since(&before);
        assert_eq!(seen.clear_between_pods, 10, "they were on the wire");
        assert_eq!(esp::count(&b, "XfrmInTmplMismatch"), 10);
    });
}

/// A third node has states with node 2, as a peer does, and says that its packets come from node 1.
#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn s5_states_of_another_peer_do_not_open_for_a_forged_source() {
    isolated(
        "s5_states_of_another_peer_do_not_open_for_a_forged_source",
        || {
            let (wire, a, mut b) = enforced(Suite::Esp);
            let mut c = Node::new(&wire, 3);
            let mut desired = b.desired(&[1, 3], RoutePath::Encrypted);
            (desired.engine, desired.deny_clear) = (Engine::Kernel, true);
            for other in [1, 3] {
                let peer = desired.peers.get_mut(&name(other)).unwrap();
                peer.protect = Some(esp::protect(2, other, Suite::Esp, 1));
            }
            pair_of(&b, &c, Suite::Esp, 1);
            b.settle(&desired);
            let mut honest = c.desired(&[2], RoutePath::Encrypted);
            honest.engine = Engine::Kernel;
            let peer = honest.peers.get_mut(&name(2)).unwrap();
            peer.protect = Some(esp::protect(3, 2, Suite::Esp, 1));
            c.settle(&honest);
            assert_pods_talk(&b, &c, b"honest");
            // Node 1 is away; node 3 takes its address and seals with the keys that it has.
            a.ip("link set eth0 down");
            c.ip("addr add 192.0.2.1/24 dev eth0");
            c.ip("xfrm state flush");
            esp::add_state(&c, (1, 2), spi(3, 2, 1), Suite::Esp);
            honest.local = common::underlay(1);
            c.apply(&honest);
            b.ip("neigh flush dev eth0");
            for _ in 0..20 {
                c.pod.send(pod(2), b"forged");
            }
            assert!(esp::count_at_least(&b, "XfrmInTmplMismatch", 10) >= 10);
            c.ip("addr del 192.0.2.1/24 dev eth0");
            // The first that arrives after all of them is the true node 1's.
            a.ip("link set eth0 up");
            b.ip("neigh flush dev eth0");
            a.pod.send(pod(2), b"true");
            assert_eq!(b.pod.receive(), (b"true".to_vec(), pod(1).ip()));
        },
    );
}
