//! Where packets go: through the overlay, to the TUN, or nowhere; seen by real pods and by a capture on the wire.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::io;

use common::{Node, TUN, Wire, assert_pods_talk, name, pod, switch_under_load, underlay};
use espalier_netlink::Errno;
use espalier_overlay::{Engine, RoutePath};
use espalier_testnet::isolated;

fn two_nodes() -> (Wire, Node, Node) {
    let wire = Wire::new();
    let (a, b) = (Node::new(&wire, 1), Node::new(&wire, 2));
    (wire, a, b)
}

/// A refusal by an unreachable route, and no other error.
fn is_unreachable(result: &io::Result<()>) -> bool {
    let errno = result
        .as_ref()
        .err()
        .and_then(io::Error::raw_os_error)
        .map(Errno::from_raw);
    matches!(errno, Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH))
}

#[test]
fn clear_pods_reach_each_other_through_vxlan() {
    isolated("clear_pods_reach_each_other_through_vxlan", || {
        let (mut wire, mut a, mut b) = two_nodes();
        wire.seen();
        let applied = a.settle(&a.desired(&[2], RoutePath::Clear));
        assert_eq!(applied.pod_mtu, 1500 - 92);
        b.settle(&b.desired(&[1], RoutePath::Clear));
        assert_pods_talk(&a, &b, b"hello");
        // A packet of exactly the pod MTU, not fragmented: IP 20, UDP 8, the marker 14.
        for node in [&a, &b] {
            node.pod.set_mtu(applied.pod_mtu);
        }
        assert_pods_talk(&a, &b, &vec![7; applied.pod_mtu as usize - 20 - 8 - 14]);
        // The host to a pod, from the address that pods can answer.
        a.send(pod(2), b"host").unwrap();
        assert_eq!(
            b.pod.receive(),
            (b"host".to_vec(), "10.244.1.1".parse().unwrap())
        );
        // Each packet crossed the wire in clear, in one piece, by one port: else the other tests prove nothing.
        assert_eq!(wire.seen().clear_between_pods, 5);
    });
}

#[test]
fn s1_the_base_block_keeps_clear_overlay_packets_from_the_wire() {
    isolated(
        "s1_the_base_block_keeps_clear_overlay_packets_from_the_wire",
        || {
            let (mut wire, mut a, mut b) = two_nodes();
            b.apply(&b.desired(&[1], RoutePath::Clear));
            a.apply(&a.desired(&[2], RoutePath::Clear));
            assert_pods_talk(&a, &b, b"before");
            let mut strict = a.desired(&[2], RoutePath::Blocked);
            strict.deny_clear = true;
            a.settle(&strict);
            // Somebody else's route leads into our device all the same, and knows the way.
            a.ip("route add 10.244.2.0/24 via 10.244.2.1 dev espalier.vx onlink proto static metric 5");
            a.ip("neigh replace 10.244.2.1 lladdr 02:45:53:00:00:02 dev espalier.vx");
            let fdb = [
                "fdb",
                "replace",
                "02:45:53:00:00:02",
                "dst",
                "192.0.2.2",
                "dev",
                "espalier.vx",
            ];
            a.netns
                .output(std::process::Command::new("bridge").args(fdb))
                .unwrap();
            let before = wire.seen();
            for _ in 0..10 {
                a.pod.send(pod(2), b"leak");
                let _ = a.send(pod(2), b"leak");
            }
            let refused = a.send((underlay(2), 4789).into(), b"leak").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(Errno::EPERM as i32));
            assert_eq!(wire.seen().since(&before).clear, 0);
        },
    );
}

/// A tunnel device keeps its route to a host; that the policy behind it is gone does not make the kernel ask again.
#[test]
fn s1_a_host_that_may_not_be_sent_clear_any_more_is_not() {
    isolated(
        "s1_a_host_that_may_not_be_sent_clear_any_more_is_not",
        || {
            // The device keeps one route for each CPU.
            let pid = std::process::id().to_string();
            let pinned = std::process::Command::new("taskset")
                .args(["-a", "-p", "1", &pid])
                .output();
            assert!(pinned.unwrap().status.success());
            let (mut wire, mut a, mut b) = two_nodes();
            b.apply(&b.desired(&[1], RoutePath::Clear));
            a.add_tun();
            let mut strict = a.desired(&[2], RoutePath::Encrypted);
            (strict.engine, strict.deny_clear) = (Engine::Tun(TUN.to_owned()), true);
            strict.peers.get_mut(&name(2)).unwrap().accept_clear = true;
            a.settle(&strict);
            // Somebody else's route leads into our device all the same.
            a.ip("route add 10.244.2.2 via 10.244.2.1 dev espalier.vx onlink proto static");
            assert_pods_talk(&a, &b, b"before");
            strict.peers.get_mut(&name(2)).unwrap().accept_clear = false;
            a.settle(&strict);
            let before = wire.seen();
            for _ in 0..10 {
                a.pod.send(pod(2), b"leak");
            }
            assert_eq!(wire.seen().since(&before).clear, 0);
        },
    );
}

#[test]
fn s1_no_route_of_others_lets_pod_packets_out_by_the_underlay() {
    isolated(
        "s1_no_route_of_others_lets_pod_packets_out_by_the_underlay",
        || {
            let (mut wire, mut a, _b) = two_nodes();
            a.apply(&a.desired(&[2], RoutePath::Blocked));
            a.ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:99 dev eth0");
            a.ip("route add 10.244.2.0/24 via 192.0.2.2 proto static metric 5");
            let send = |a: &Node| {
                a.pod.send(pod(2), b"forwarded");
                let own = a
                    .netns
                    .run(|| std::net::UdpSocket::bind("10.244.1.1:0").unwrap())
                    .unwrap();
                let _ = own.send_to(b"a pod's secret of the host", pod(2));
            };
            let before = wire.seen();
            send(&a);
            assert_eq!(
                wire.seen().since(&before).clear,
                2,
                "the check sees what leaks"
            );

            let mut strict = a.desired(&[2], RoutePath::Blocked);
            strict.deny_clear = true;
            a.settle(&strict);
            let before = wire.seen();
            send(&a);
            assert_eq!(wire.seen().since(&before).clear, 0);
        },
    );
}

#[test]
fn s2_bare_pod_packets_from_the_wire_are_dropped() {
    isolated("s2_bare_pod_packets_from_the_wire_are_dropped", || {
        let (mut wire, mut a, mut b) = two_nodes();
        a.settle(&a.desired(&[], RoutePath::Blocked));
        let mut strict = b.desired(&[1], RoutePath::Blocked);
        b.settle(&strict);
        // An intruder's host: pod packets go out as they are, straight to the other node.
        a.ip("route add 10.244.2.0/24 via 192.0.2.2 proto static metric 5");
        a.pod.send(pod(2), b"bare");
        assert_eq!(b.pod.receive().0, b"bare", "the check sees what gets in");
        strict.deny_clear = true;
        b.settle(&strict);
        let before = wire.seen();
        for _ in 0..10 {
            a.pod.send(pod(2), b"intruder");
        }
        assert_eq!(
            wire.seen().since(&before).clear,
            10,
            "they were on the wire"
        );
        // What follows by the same way is the first to arrive.
        strict.deny_clear = false;
        b.settle(&strict);
        a.pod.send(pod(2), b"welcome");
        assert_eq!(b.pod.receive().0, b"welcome");
    });
}

#[test]
fn s2_clear_overlay_packets_from_the_wire_are_dropped() {
    isolated("s2_clear_overlay_packets_from_the_wire_are_dropped", || {
        let (mut wire, mut a, mut b) = two_nodes();
        let mut strict = b.desired(&[1], RoutePath::Blocked);
        strict.deny_clear = true;
        b.settle(&strict);
        a.settle(&a.desired(&[2], RoutePath::Clear));
        let before = wire.seen();
        for _ in 0..10 {
            a.pod.send(pod(2), b"intruder");
        }
        assert_eq!(
            wire.seen().since(&before).clear,
            10,
            "they were on the wire"
        );
        // What follows by the same way is the first to arrive.
        let peer = strict.peers.get_mut(&name(1)).unwrap();
        (peer.path, peer.accept_clear) = (RoutePath::Clear, true);
        b.settle(&strict);
        a.pod.send(pod(2), b"welcome");
        assert_eq!(b.pod.receive().0, b"welcome");
    });
}

#[test]
fn a_pair_that_accepts_clear_passes_while_others_are_blocked() {
    isolated(
        "a_pair_that_accepts_clear_passes_while_others_are_blocked",
        || {
            let (wire, mut a, mut b) = two_nodes();
            let mut c = Node::new(&wire, 3);
            let mut strict = a.desired(&[2, 3], RoutePath::Clear);
            strict.deny_clear = true;
            let third = strict.peers.get_mut(&name(3)).unwrap();
            (third.accept_clear, third.path) = (false, RoutePath::Blocked);
            a.settle(&strict);
            b.settle(&b.desired(&[1, 3], RoutePath::Clear));
            c.settle(&c.desired(&[1, 2], RoutePath::Clear));
            assert_pods_talk(&a, &b, b"transition");
            assert_pods_talk(&b, &c, b"not strict");
            assert!(is_unreachable(&a.send(pod(3), b"blocked")));
            for _ in 0..10 {
                c.pod.send(pod(1), b"refused");
            }
            assert_pods_talk(&a, &b, b"the first to arrive");
            // From blocked to clear and back.
            strict.peers.insert(
                name(3),
                a.desired(&[3], RoutePath::Clear).peers[&name(3)].clone(),
            );
            a.settle(&strict);
            assert_pods_talk(&a, &c, b"now accepted");
            let third = strict.peers.get_mut(&name(3)).unwrap();
            (third.accept_clear, third.path) = (false, RoutePath::Blocked);
            a.settle(&strict);
            assert!(is_unreachable(&a.send(pod(3), b"blocked")));
        },
    );
}

#[test]
fn switching_the_path_and_the_mode_loses_nothing() {
    isolated("switching_the_path_and_the_mode_loses_nothing", || {
        let (_wire, mut a, mut b) = two_nodes();
        a.add_tun();
        b.apply(&b.desired(&[1], RoutePath::Clear));
        let mut desired = a.desired(&[2], RoutePath::Clear);
        desired.engine = Engine::Tun(TUN.to_owned());
        switch_under_load(&mut a, desired, "espalier.vx", |a, desired| {
            a.apply(desired);
        });
    });
}

#[test]
fn without_the_tun_an_encrypted_peer_is_unreachable_and_never_clear() {
    isolated(
        "without_the_tun_an_encrypted_peer_is_unreachable_and_never_clear",
        || {
            let (mut wire, mut a, mut b) = two_nodes();
            b.apply(&b.desired(&[1], RoutePath::Clear));
            a.apply(&a.desired(&[2], RoutePath::Clear));
            assert_pods_talk(&a, &b, b"before");
            let silent = |wire: &mut Wire, a: &Node| {
                let before = wire.seen();
                a.pod.send(pod(2), b"forwarded");
                assert!(is_unreachable(&a.send(pod(2), b"own")));
                assert_eq!(wire.seen().since(&before).clear, 0);
            };
            let mut encrypted = a.desired(&[2], RoutePath::Encrypted);
            a.settle(&encrypted);
            silent(&mut wire, &a);
            encrypted.engine = Engine::Tun(TUN.to_owned());
            a.settle(&encrypted);
            silent(&mut wire, &a);
            // A device of that name that encrypts nothing.
            a.ip(&format!("link add {TUN} type bridge"));
            a.settle(&encrypted);
            silent(&mut wire, &a);
            a.ip(&format!("link del {TUN}"));
            a.add_tun();
            let applied = a.settle(&encrypted);
            assert_eq!(a.device_to("10.244.2.2").as_deref(), Some(TUN));
            assert!(
                a.ip(&format!("link show {TUN}"))
                    .contains(&format!("mtu {}", applied.pod_mtu))
            );
            // The data plane dies: without anybody's doing.
            a.ip(&format!("link del {TUN}"));
            silent(&mut wire, &a);
        },
    );
}

#[test]
fn a_pod_address_that_nobody_has_is_unreachable() {
    isolated("a_pod_address_that_nobody_has_is_unreachable", || {
        let (mut wire, mut a, _b) = two_nodes();
        a.apply(&a.desired(&[2], RoutePath::Clear));
        let before = wire.seen();
        for to in ["10.244.77.5:7000", "10.244.1.99:7000"] {
            a.pod.send(to.parse().unwrap(), b"nobody");
            assert!(
                is_unreachable(&a.send(to.parse().unwrap(), b"nobody")),
                "{to}"
            );
        }
        assert_eq!(wire.seen().since(&before).clear, 0);
        // Not ours: the default route has it.
        a.send("198.51.100.1:7000".parse().unwrap(), b"world")
            .unwrap();
        assert_eq!(wire.seen().since(&before).marked, 1);
    });
}

#[test]
fn a_peer_that_goes_is_unreachable() {
    isolated("a_peer_that_goes_is_unreachable", || {
        let (mut wire, mut a, mut b) = two_nodes();
        b.apply(&b.desired(&[1], RoutePath::Clear));
        a.apply(&a.desired(&[2], RoutePath::Clear));
        assert_pods_talk(&a, &b, b"before");
        a.settle(&a.desired(&[], RoutePath::Clear));
        let before = wire.seen();
        a.pod.send(pod(2), b"gone");
        assert!(is_unreachable(&a.send(pod(2), b"gone")));
        assert_eq!(wire.seen().since(&before).clear, 0);
        let state = a.state();
        let state: Vec<_> = state
            .lines()
            .filter(|line| line.contains("espalier.vx"))
            .collect();
        assert!(
            !state
                .iter()
                .any(|line| line.contains("192.0.2.2") || line.contains("10.244.2.1")),
            "{state:?}"
        );
    });
}

#[test]
fn ipv6_pods_cross_an_ipv4_underlay() {
    isolated("ipv6_pods_cross_an_ipv4_underlay", || {
        let (mut wire, mut a, mut b) = two_nodes();
        for (node, other) in [(&mut a, 2), (&mut b, 1)] {
            let mut desired = node.desired(&[other], RoutePath::Clear);
            node.add_v6_pods(&mut desired, other);
            node.ip("-6 route add default dev eth0 metric 9999");
            // As on any host: a new interface would give itself an address.
            node.netns
                .run(|| espalier_testnet::sysctl("ipv6/conf/default/addr_gen_mode", "0"))
                .unwrap()
                .unwrap();
            node.settle(&desired);
            let own_addresses = node.ip("-6 addr show dev espalier.vx");
            assert!(!own_addresses.contains("fe80"), "{own_addresses}");
            node.give_v6_address();
        }
        let (from, to) = (
            a.pod.udp("[fd00:10:1::2]:7001"),
            b.pod.udp("[fd00:10:2::2]:7001"),
        );
        let before = wire.seen();
        from.send_to(b"six", "[fd00:10:2::2]:7001").unwrap();
        let mut buffer = [0; 100];
        let (length, source) = to.recv_from(&mut buffer).expect("a datagram within 5 s");
        assert_eq!(
            (&buffer[..length], source.to_string()),
            (&b"six"[..], "[fd00:10:1::2]:7001".to_owned())
        );
        assert_eq!(wire.seen().since(&before).clear_between_pods, 1);

        let nobody = a
            .netns
            .run(|| std::net::UdpSocket::bind("[::]:0").unwrap())
            .unwrap();
        let refused = nobody.send_to(b"x", "[fd00:10:9::2]:7001").map(drop);
        assert!(is_unreachable(&refused), "{refused:?}");
        let mut strict = a.desired(&[2], RoutePath::Blocked);
        strict.cluster_cidrs.push("fd00:10::/32".parse().unwrap());
        strict.gateways.push("fd00:10:1::1".parse().unwrap());
        strict.deny_clear = true;
        a.settle(&strict);
        let before = wire.seen();
        from.send_to(b"six", "[fd00:10:2::2]:7001").unwrap();
        assert_eq!(wire.seen().since(&before).clear, 0);
    });
}
