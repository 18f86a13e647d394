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
use esp::{Flow, Kind, Suite, spi};
use espalier_overlay::{Desired, Engine, Framing, RoutePath};
use espalier_testnet::isolated;

const VXLAN: Kind = Kind {
    framing: Framing::Vxlan,
    six: false,
    suite: Suite::Esp,
};

/// Every framing over both families, and every suite where it can be.
fn kinds() -> Vec<Kind> {
    let mut all = Vec::new();
    for framing in [Framing::Vxlan, Framing::Ipip, Framing::Native] {
        for suite in [Suite::Esp, Suite::EspInUdp, Suite::Ah] {
            // The test's socket for ESP in UDP is IPv4's.
            let families = [false, true].into_iter();
            let families = families.filter(|six| !six || suite != Suite::EspInUdp);
            all.extend(families.map(|six| Kind {
                framing,
                six,
                suite,
            }));
        }
    }
    all
}

/// With ESP; IPv4 pods have no clear native way over IPv6.
fn can_be_clear(kind: &Kind) -> bool {
    kind.suite == Suite::Esp && !(kind.six && kind.framing == Framing::Native)
}

/// What a node wants whose peers are all encrypted and enforced by the kernel.
fn sealed(node: &Node, peers: &[u8], kind: Kind) -> Desired {
    let mut desired = node.desired(peers, RoutePath::Encrypted);
    (desired.engine, desired.deny_clear) = (Engine::Kernel, true);
    desired.framing = kind.framing;
    if kind.six {
        node.over_v6(&mut desired);
    }
    for other in peers {
        let peer = desired.peers.get_mut(&name(*other)).unwrap();
        peer.protect = Some(esp::protect(node.number, *other, kind.suite, 1));
    }
    desired
}

/// Two nodes whose pods talk through states that the policies name, enforced. Gives the pod MTU too.
fn enforced(kind: Kind) -> (Wire, Node, Node, u32) {
    let wire = Wire::new();
    let (mut a, mut b) = (Node::new(&wire, 1), Node::new(&wire, 2));
    kind.pair_of(&a, &b, 1);
    let mut mtu = 0;
    for (node, other) in [(&mut a, 2), (&mut b, 1)] {
        let desired = sealed(node, &[other], kind);
        mtu = node.settle(&desired).pod_mtu;
    }
    (wire, a, b, mtu)
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn vxlan_packets_are_sealed_and_nothing_is_clear() {
    isolated("vxlan_packets_are_sealed_and_nothing_is_clear", || {
        nothing_is_clear(Framing::Vxlan);
    });
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn ipip_packets_are_sealed_and_nothing_is_clear() {
    isolated("ipip_packets_are_sealed_and_nothing_is_clear", || {
        nothing_is_clear(Framing::Ipip);
    });
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn native_packets_are_sealed_and_nothing_is_clear() {
    isolated("native_packets_are_sealed_and_nothing_is_clear", || {
        nothing_is_clear(Framing::Native);
    });
}

fn nothing_is_clear(framing: Framing) {
    for kind in kinds().into_iter().filter(|kind| kind.framing == framing) {
        let (mut wire, a, b, mtu) = enforced(kind);
        let udp = kind.suite == Suite::EspInUdp;
        let _open = udp.then(|| [&a, &b].map(esp::open_udp));
        let before = wire.seen();
        assert_pods_talk(&a, &b, b"sealed");
        // Packets of exactly the pod MTU, not fragmented: IP 20, UDP 8, the marker 14.
        for node in [&a, &b] {
            node.pod.set_mtu(mtu);
        }
        assert_pods_talk(&a, &b, &vec![7; mtu as usize - 20 - 8 - 14]);
        let seen = wire.seen().since(&before);
        let clear = if kind.suite == Suite::Ah { 4 } else { 0 };
        assert_eq!(seen.marked, clear, "{kind:?}: only AH can be read");
        for node in [&a, &b] {
            assert_eq!(esp::errors(node), "", "{kind:?}");
            assert!(!esp::reassembled(&node.netns), "{kind:?}, MTU {mtu}");
        }
        println!("{kind:?}: pod MTU {mtu}");
    }
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn ipv6_pods_are_sealed_too() {
    isolated("ipv6_pods_are_sealed_too", || {
        let supported = |k: &Kind| k.six || k.framing != Framing::Ipip;
        for kind in kinds().into_iter().filter(supported) {
            let mut wire = Wire::new();
            let (mut a, mut b) = (Node::new(&wire, 1), Node::new(&wire, 2));
            let udp = kind.suite == Suite::EspInUdp;
            let _open = udp.then(|| [&a, &b].map(esp::open_udp));
            kind.pair_of(&a, &b, 1);
            for (node, other) in [(&mut a, 2), (&mut b, 1)] {
                let mut desired = sealed(node, &[other], kind);
                node.add_v6_pods(&mut desired, other);
                node.settle(&desired);
                node.give_v6_address();
            }
            let before = wire.seen();
            let (from, to) = (
                a.pod.udp("[fd00:10:1::2]:7001"),
                b.pod.udp("[fd00:10:2::2]:7001"),
            );
            from.send_to(&[7; 1300], "[fd00:10:2::2]:7001").unwrap();
            let mut buffer = [0; 2000];
            let (length, _) = to.recv_from(&mut buffer).expect("a datagram within 5 s");
            assert_eq!(length, 1300, "{kind:?}");
            let seen = wire.seen().since(&before);
            let clear = u64::from(kind.suite == Suite::Ah);
            assert_eq!(seen.clear_between_pods, clear, "{kind:?}");
            for node in [&a, &b] {
                assert_eq!(esp::errors(node), "", "{kind:?}");
                assert!(!esp::reassembled(&node.netns), "{kind:?}");
            }
        }
    });
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn switching_between_clear_and_states_loses_nothing() {
    isolated("switching_between_clear_and_states_loses_nothing", || {
        for kind in kinds().into_iter().filter(can_be_clear) {
            let sent = switch(kind);
            println!("{kind:?}: {sent} round trips over 60 switches");
            assert!(sent > 1000, "{sent} packets");
        }
    });
}

fn switch(kind: Kind) -> usize {
    let wire = Wire::new();
    let (mut a, mut b) = (Node::new(&wire, 1), Node::new(&wire, 2));
    for epoch in 1..=2 {
        kind.pair_of(&a, &b, epoch);
    }
    let mut both = [(&mut a, 2), (&mut b, 1)].map(|(node, other)| {
        let mut desired = sealed(node, &[other], kind);
        let peer = desired.peers.get_mut(&name(other)).unwrap();
        (peer.path, peer.accept_clear) = (RoutePath::Clear, true);
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
            peer.protect = Some(esp::protect(node.number, other, kind.suite, epoch.max(1)));
            let writes = node.apply_changes(desired).writes;
            assert_eq!(writes, usize::from(step > 0), "a switch is one message");
            flows.go_on(20);
        }
    }
    let sent = flows.finish();
    for (node, desired) in &mut both {
        assert_eq!(esp::errors(node), "", "{kind:?}");
        assert_eq!(
            node.apply(desired).writes,
            0,
            "what was written is what is wanted"
        );
    }
    sent
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn s1_nothing_leaves_when_the_states_are_gone() {
    isolated("s1_nothing_leaves_when_the_states_are_gone", || {
        let (mut wire, a, b, _) = enforced(VXLAN);
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
        VXLAN.pair_of(&a, &b, 1);
        assert_pods_talk(&a, &b, b"after");
    });
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn s2_clear_packets_of_an_enforced_peer_are_refused() {
    isolated("s2_clear_packets_of_an_enforced_peer_are_refused", || {
        for kind in kinds().into_iter().filter(can_be_clear) {
            let (mut wire, mut a, mut b, _) = enforced(kind);
            assert_pods_talk(&a, &b, b"before");
            let mut clear = sealed(&a, &[2], kind);
            clear.deny_clear = false;
            clear.peers.get_mut(&name(2)).unwrap().path = RoutePath::Clear;
            a.settle(&clear);
            let before = wire.seen();
            for _ in 0..10 {
                a.pod.send(pod(2), b"intruder");
            }
            let seen = wire.seen().since(&before);
            assert_eq!(
                seen.clear_between_pods, 10,
                "{kind:?}: they were on the wire"
            );
            let refused = esp::count_at_least(&b, "XfrmInTmplMismatch", 10);
            assert_eq!(refused, 10, "{kind:?}");
            // Of a host that is no peer.
            b.settle(&sealed(&b, &[], kind));
            for _ in 0..10 {
                a.pod.send(pod(2), b"stranger");
            }
            let refused = esp::count_at_least(&b, "XfrmInPolBlock", 10);
            assert_eq!(refused, 10, "{kind:?}");
        }
    });
}

/// A trial's states carry probes between the hosts; a probe without them is none.
#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn probes_are_sealed_by_the_states_under_trial() {
    isolated("probes_are_sealed_by_the_states_under_trial", || {
        for framing in [Framing::Vxlan, Framing::Native] {
            let kind = Kind { framing, ..VXLAN };
            let (mut wire, mut a, mut b, _) = enforced(kind);
            kind.pair_of(&a, &b, 2);
            for (node, other) in [(&mut a, 2), (&mut b, 1)] {
                let mut desired = sealed(node, &[other], kind);
                let trial = esp::protect(node.number, other, kind.suite, 2);
                desired.peers.get_mut(&name(other)).unwrap().trial = Some(trial);
                assert_eq!(node.apply_changes(&desired).writes, 2);
            }
            let bind = |node: &Node, at: &str| {
                let socket = node.netns.run(|| std::net::UdpSocket::bind(at)).unwrap();
                socket.unwrap()
            };
            let (from, to) = (bind(&a, "192.0.2.1:0"), bind(&b, "192.0.2.2:4788"));
            let before = wire.seen();
            from.send_to(b"a pod's secret probe", "192.0.2.2:4788")
                .unwrap();
            to.set_read_timeout(Some(std::time::Duration::from_secs(5)))
                .unwrap();
            let mut buffer = [0; 100];
            to.recv_from(&mut buffer).expect("a probe within 5 s");
            let seen = wire.seen().since(&before);
            assert_eq!((seen.marked, seen.esp), (0, 1), "{framing:?}");
            assert!(
                a.ip("-s xfrm state")
                    .contains(&format!("{:#x}", spi(1, 2, 2)))
            );
            // Node 1 gives up the trial and is not strict: its probe is in clear.
            let mut lax = sealed(&a, &[2], kind);
            lax.deny_clear = false;
            a.settle(&lax);
            from.send_to(b"clear", "192.0.2.2:4788").unwrap();
            assert_eq!(
                esp::count_at_least(&b, "XfrmInTmplMismatch", 1),
                1,
                "{framing:?}"
            );
        }
    });
}

/// A third node has states with node 2, as a peer does, and says that its packets come from node 1.
#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn s5_states_of_another_peer_do_not_open_for_a_forged_source() {
    isolated(
        "s5_states_of_another_peer_do_not_open_for_a_forged_source",
        || {
            let (wire, a, mut b, _) = enforced(VXLAN);
            let mut c = Node::new(&wire, 3);
            VXLAN.pair_of(&b, &c, 1);
            b.settle(&sealed(&b, &[1, 3], VXLAN));
            let mut honest = sealed(&c, &[2], VXLAN);
            c.settle(&honest);
            assert_pods_talk(&b, &c, b"honest");
            // Node 1 is away; node 3 takes its address and seals with the keys that it has.
            a.ip("link set eth0 down");
            c.ip("addr add 192.0.2.1/24 dev eth0");
            c.ip("xfrm state flush");
            VXLAN.add_state(&c, (1, 2), spi(3, 2, 1));
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

/// With native routing the inner source itself is tied to the peer's states: S5 in full.
#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn s5_a_peer_cannot_send_from_another_peers_pods() {
    isolated("s5_a_peer_cannot_send_from_another_peers_pods", || {
        let native = Kind {
            framing: Framing::Native,
            ..VXLAN
        };
        let (wire, a, mut b, _) = enforced(native);
        let mut c = Node::new(&wire, 3);
        native.pair_of(&b, &c, 1);
        b.settle(&sealed(&b, &[1, 3], native));
        c.settle(&sealed(&c, &[2], native));
        assert_pods_talk(&b, &c, b"honest");
        // Node 3's pod has the address of node 1's, and node 3 seals for it with its own states.
        let mut forging = sealed(&c, &[2], native);
        forging.pod_cidrs = vec!["10.244.1.0/24".parse().unwrap()];
        c.apply(&forging);
        c.ip("rule flush");
        c.ip("rule add pref 32766 table main");
        c.ip("route add 10.244.1.2/32 dev pod3");
        c.pod.ip("addr add 10.244.1.2/32 dev eth0");
        let forged = c.pod.udp("10.244.1.2:7200");
        for _ in 0..10 {
            forged.send_to(b"forged", pod(2)).unwrap();
        }
        assert_eq!(esp::count_at_least(&b, "XfrmInTmplMismatch", 10), 10);
        a.pod.send(pod(2), b"true");
        assert_eq!(b.pod.receive(), (b"true".to_vec(), pod(1).ip()));
    });
}

/// The underlay carries less than its interface says. VXLAN's outer packets may be cut; the others tell the pod.
#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn a_smaller_path_mtu_is_survived() {
    isolated("a_smaller_path_mtu_is_survived", || {
        for framing in [Framing::Vxlan, Framing::Ipip, Framing::Native] {
            let (_wire, a, b, mtu) = enforced(Kind { framing, ..VXLAN });
            a.pod.set_mtu(mtu);
            // As an ICMP "fragmentation needed" would have the kernel note it.
            a.ip("route add 192.0.2.2/32 dev eth0 mtu 1300");
            let (from, to) = (a.pod.udp("0.0.0.0:7300"), b.pod.udp("0.0.0.0:7300"));
            let (mut length, mut sent) = (mtu as usize - 28, 0);
            let mut buffer = [0; 2000];
            to.set_read_timeout(Some(std::time::Duration::from_millis(200)))
                .unwrap();
            let arrived = loop {
                sent += 1;
                assert!(sent < 50, "{framing:?}: nothing arrives");
                match from.send_to(&vec![7; length], ("10.244.2.2", 7300)) {
                    Ok(_) => {}
                    Err(e) => {
                        assert_eq!(e.raw_os_error(), Some(90), "EMSGSIZE: {e}");
                        length -= 10;
                        continue;
                    }
                }
                if let Ok((length, _)) = to.recv_from(&mut buffer) {
                    break length;
                }
            };
            println!("{framing:?}: pod MTU {mtu}, {arrived} bytes arrived");
            // VXLAN: cut and joined between the nodes. The others: the pod was told, and its own packets are smaller.
            let joined = [&b.netns, &b.pod.netns].map(esp::reassembled);
            assert_eq!(
                joined,
                [framing == Framing::Vxlan, framing != Framing::Vxlan],
                "{framing:?}"
            );
        }
    });
}
