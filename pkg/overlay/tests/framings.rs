//! Kernel policies and framings where no ESP is needed: what is written, what is found again, what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::{Node, Wire, assert_pods_talk, name, pod, underlay};
use espalier_overlay::{Desired, Engine, Framing, Protect, RoutePath};
use espalier_testnet::isolated;

fn protect(spi: u32) -> Protect {
    Protect {
        reqid: 0x4553_0102,
        spi: Some(spi),
        ah: false,
    }
}

/// The kernel encrypts for nodes 2 and 3.
fn sealed(node: &Node) -> Desired {
    let mut desired = node.desired(&[2, 3], RoutePath::Encrypted);
    (desired.engine, desired.deny_clear) = (Engine::Kernel, true);
    for peer in desired.peers.values_mut() {
        peer.protect = Some(protect(0xc000_0001));
    }
    desired
}

fn peer(desired: &mut Desired) -> &mut espalier_overlay::PeerRoute {
    desired.peers.get_mut(&name(2)).unwrap()
}

#[test]
fn a_restarted_agent_finds_what_the_kernel_seals() {
    isolated("a_restarted_agent_finds_what_the_kernel_seals", || {
        for framing in [Framing::Vxlan, Framing::Native] {
            let wire = Wire::new();
            let mut a = Node::new(&wire, 1);
            let mut desired = sealed(&a);
            desired.framing = framing;
            peer(&mut desired).path = RoutePath::Clear;
            peer(&mut desired).accept_clear = true;
            a.settle(&desired);
            let found = a.observe();
            assert!(found.base_block, "{framing:?}");
            let paths = [
                ("10.244.2.0/24", RoutePath::Clear),
                ("10.244.3.0/24", RoutePath::Encrypted),
            ];
            let paths = paths.map(|(to, path)| (to.parse().unwrap(), path));
            assert_eq!(found.paths, paths.into(), "{framing:?}");
            let protects = [(underlay(3), protect(0xc000_0001))];
            assert_eq!(found.protects, protects.into(), "{framing:?}");
            assert_eq!(found.accepting, [underlay(2)].into(), "{framing:?}");
        }
    });
}

#[test]
fn a_change_of_one_peer_is_written_without_reading_the_rest() {
    isolated(
        "a_change_of_one_peer_is_written_without_reading_the_rest",
        || {
            for framing in [Framing::Vxlan, Framing::Native] {
                let wire = Wire::new();
                let mut a = Node::new(&wire, 1);
                let mut desired = sealed(&a);
                desired.framing = framing;
                a.settle(&desired);
                // Another SPI; clear and back, letting clear in or not; no states at all; a trial.
                type Step = fn(&mut espalier_overlay::PeerRoute);
                let steps: [(Step, usize); 8] = [
                    (|p| p.protect = Some(protect(0xc000_0002)), 1),
                    (|_| {}, 0),
                    (|p| p.path = RoutePath::Clear, 1),
                    (|p| p.path = RoutePath::Encrypted, 1),
                    (|p| p.trial = Some(protect(0xc000_0003)), 2),
                    (|p| p.trial = None, 2),
                    (|p| p.path = RoutePath::Blocked, 2),
                    (|p| p.path = RoutePath::Encrypted, 2),
                ];
                for (number, (step, writes)) in steps.into_iter().enumerate() {
                    step(peer(&mut desired));
                    let done = a.apply_changes(&desired);
                    assert_eq!(done.writes, writes, "{framing:?}, step {number}");
                    assert_eq!(a.apply(&desired).writes, 0, "{framing:?}, step {number}");
                }
            }
        },
    );
}

#[test]
fn a_change_that_fails_becomes_an_apply() {
    isolated("a_change_that_fails_becomes_an_apply", || {
        let wire = Wire::new();
        let mut a = Node::new(&wire, 1);
        let mut desired = sealed(&a);
        peer(&mut desired).path = RoutePath::Blocked;
        a.settle(&desired);
        // Somebody removed the device meanwhile: the new route has no way.
        a.ip("link del espalier.vx");
        peer(&mut desired).path = RoutePath::Encrypted;
        assert!(a.apply_changes(&desired).writes > 2);
        assert_eq!(a.apply(&desired).writes, 0);
        // More than paths and states differs.
        desired.peers.remove(&name(3));
        assert!(a.apply_changes(&desired).writes > 0);
        assert_eq!(a.apply(&desired).writes, 0);
    });
}

#[test]
fn natively_routed_pods_reach_each_other_and_bare_ones_are_refused() {
    isolated(
        "natively_routed_pods_reach_each_other_and_bare_ones_are_refused",
        || {
            let mut wire = Wire::new();
            let (mut a, mut b) = (Node::new(&wire, 1), Node::new(&wire, 2));
            let mut both = [(&mut a, 2), (&mut b, 1)].map(|(node, other)| {
                let mut desired = node.desired(&[other], RoutePath::Clear);
                (desired.engine, desired.framing) = (Engine::Kernel, Framing::Native);
                assert_eq!(node.settle(&desired).pod_mtu, 1500 - 62);
                desired
            });
            assert_pods_talk(&a, &b, b"plain");
            // Strict, but the pair accepts clear.
            both[1].deny_clear = true;
            b.settle(&both[1]);
            assert_pods_talk(&a, &b, b"accepted");
            let peer = both[1].peers.get_mut(&name(1)).unwrap();
            (peer.path, peer.accept_clear) = (RoutePath::Blocked, false);
            b.settle(&both[1]);
            let before = wire.seen();
            for _ in 0..10 {
                a.pod.send(pod(2), b"intruder");
                b.pod.send(pod(1), b"leak");
            }
            assert_eq!(
                wire.seen().since(&before).clear_between_pods,
                10,
                "only the intruder's"
            );
            // What follows by the same way is the first to arrive.
            let peer = both[1].peers.get_mut(&name(1)).unwrap();
            (peer.path, peer.accept_clear) = (RoutePath::Clear, true);
            b.settle(&both[1]);
            assert_pods_talk(&a, &b, b"welcome");
            b.remove_all();
            assert!(!b.state().contains("espalier"), "{}", b.state());
        },
    );
}

#[test]
fn another_framing_takes_over() {
    isolated("another_framing_takes_over", || {
        let wire = Wire::new();
        let (mut a, mut b) = (Node::new(&wire, 1), Node::new(&wire, 2));
        for framing in [Framing::Vxlan, Framing::Native, Framing::Vxlan] {
            for (node, other) in [(&mut a, 2), (&mut b, 1)] {
                let mut desired = node.desired(&[other], RoutePath::Clear);
                (desired.framing, desired.deny_clear) = (framing, true);
                node.settle(&desired);
            }
            assert_pods_talk(&a, &b, b"framed");
        }
        assert!(!a.state().contains("espalier.gw"));
    });
}

#[test]
fn what_cannot_be_kept_is_refused_with_a_remedy() {
    isolated("what_cannot_be_kept_is_refused_with_a_remedy", || {
        let wire = Wire::new();
        let mut a = Node::new(&wire, 1);
        let mut six = a.desired(&[2], RoutePath::Clear);
        six.framing = Framing::Ipip;
        six.gateways.push("fd00:10:1::1".parse().unwrap());
        let error = a.try_apply(&six).unwrap_err().to_string();
        assert!(error.contains("overlay VXLAN"), "{error}");
    });
}

/// Time and writes with many peers: `cargo test --release -p espalier-overlay --test framings -- --ignored --nocapture figures`.
#[test]
#[ignore = "prints figures"]
fn figures() {
    isolated("figures", || {
        for count in [1000_u32, 5000] {
            let wire = Wire::new();
            let mut a = Node::new(&wire, 1);
            let mut desired = sealed(&a);
            let one = desired.peers.remove(&name(2)).unwrap();
            desired.peers.clear();
            for n in 0..count {
                let mut peer = one.clone();
                peer.remote = std::net::Ipv4Addr::from(0xc612_0000 + n).into();
                peer.mac[2..].copy_from_slice(&n.to_be_bytes());
                let pods = std::net::Ipv4Addr::from(0x0a00_0000 + (n << 8));
                peer.pod_cidrs = vec![ipnet::IpNet::new(pods.into(), 24).unwrap()];
                desired.peers.insert(format!("node-{n:05}"), peer);
            }
            desired.cluster_cidrs = vec!["10.0.0.0/8".parse().unwrap()];
            let mut timed = |what: &str, full: bool, desired: &Desired| {
                let start = std::time::Instant::now();
                let done = if full {
                    a.apply(desired)
                } else {
                    a.apply_changes(desired)
                };
                let ms = start.elapsed().as_secs_f64() * 1e3;
                println!("{count} peers, {what}: {ms:.2} ms, {} writes", done.writes);
            };
            timed("first apply", true, &desired);
            timed("apply without need", true, &desired);
            timed("changes: none", false, &desired);
            let some = desired.peers.get_mut("node-00500").unwrap();
            some.protect = Some(protect(0xc000_0002));
            timed("changes: another SPI of one", false, &desired);
            desired.peers.get_mut("node-00500").unwrap().path = RoutePath::Clear;
            timed("changes: one to clear", false, &desired);
            for peer in desired.peers.values_mut() {
                peer.protect = Some(protect(0xc000_0003));
            }
            timed("changes: another SPI of all", false, &desired);
            desired.peers.get_mut("node-00500").unwrap().protect = None;
            timed("apply: one differs", true, &desired);
        }
    });
}
