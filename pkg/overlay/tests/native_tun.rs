//! Native routing where a TUN encrypts: opened packets come in by it and are told from clear ones, which come in by the underlay.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use common::{Node, TUN, Wire, assert_pods_talk, name, pod, switch_under_load, underlay};
use espalier_overlay::{Desired, Engine, Framing, RoutePath};
use espalier_testnet::isolated;
use tun_rs::{DeviceBuilder, SyncDevice};

const UDP: u8 = 17;
const PORT: u16 = 7000;

/// Routes natively, and refuses clear packets.
fn native(node: &Node, peers: &[u8], path: RoutePath) -> Desired {
    let mut desired = node.desired(peers, path);
    (desired.engine, desired.framing) = (Engine::Tun(TUN.to_owned()), Framing::Native);
    desired.deny_clear = true;
    desired
}

/// Sends in clear by the underlay, and lets everything in.
fn open(node: &mut Node, peers: &[u8]) {
    let mut desired = node.desired(peers, RoutePath::Clear);
    desired.framing = Framing::Native;
    node.settle(&desired);
}

fn accepts(desired: &mut Desired, number: u8, clear: bool) {
    desired.peers.get_mut(&name(number)).unwrap().accept_clear = clear;
}

/// The data plane's end of the TUN.
fn tun(node: &Node) -> SyncDevice {
    let make = || DeviceBuilder::new().name(TUN).build_sync();
    node.netns.run(make).unwrap().unwrap()
}

/// What the data plane writes when it has opened a packet.
fn opened(from: IpAddr, to: SocketAddr, text: &[u8]) -> Vec<u8> {
    let (ports, length) = ([7001_u16, to.port()], (8 + text.len()) as u16);
    let mut udp: Vec<u8> = ports.iter().flat_map(|p| p.to_be_bytes()).collect();
    udp.extend(length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(text);
    match (from, to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut head = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0];
            head[2..4].copy_from_slice(&(20 + length).to_be_bytes());
            head.extend(from.octets());
            head.extend(to.octets());
            let sum = checksum(&head);
            head[10..12].copy_from_slice(&sum);
            [head, udp].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let pseudo = [&addresses[..], &[0, UDP], &length.to_be_bytes(), &udp].concat();
            let sum = checksum(&pseudo);
            udp[6..8].copy_from_slice(&sum);
            let mut head = vec![0x60, 0, 0, 0, 0, 0, UDP, 64];
            head[4..6].copy_from_slice(&length.to_be_bytes());
            [head, addresses, udp].concat()
        }
        _ => unreachable!("one family"),
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |l| (*l).into()));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn nft(node: &Node, words: &str) {
    let mut command = std::process::Command::new("nft");
    node.netns.output(command.args(words.split(' '))).unwrap();
}

fn v6(node: u8, host: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x10, node.into(), 0, 0, 0, 0, host).into()
}

fn first(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2000];
    let (length, _) = socket.recv_from(&mut buffer).expect("a datagram");
    buffer[..length].to_vec()
}

/// Node 2 is an intruder's host. What it sends arrives where clear is let in, and no longer where it is not; `again` by another way.
struct Intrusion {
    a: Node,
    desired: Desired,
    sent_by: Vec<(UdpSocket, SocketAddr)>,
    heard_by: Vec<UdpSocket>,
}

impl Intrusion {
    fn arrives(&mut self) {
        self.desired.deny_clear = false;
        self.a.settle(&self.desired);
        self.send();
        for socket in &self.heard_by {
            let mut buffer = [0; 64];
            let heard = socket.recv(&mut buffer);
            let length = heard.unwrap_or_else(|e| panic!("{:?}: {e}", socket.local_addr()));
            assert_eq!(&buffer[..length], INTRUDER);
        }
    }

    fn is_refused(&mut self) {
        self.desired.deny_clear = true;
        self.a.settle(&self.desired);
        self.is_refused_still();
    }

    fn is_refused_still(&self) {
        (0..10).for_each(|_| self.send());
        // On one machine a packet has arrived long before.
        std::thread::sleep(Duration::from_millis(200));
        for socket in &self.heard_by {
            socket.set_nonblocking(true).unwrap();
            let heard = socket.recv(&mut [0; 64]);
            assert!(heard.is_err(), "{:?} heard it", socket.local_addr());
            socket.set_nonblocking(false).unwrap();
        }
    }

    fn send(&self) {
        for (socket, to) in &self.sent_by {
            socket.send_to(INTRUDER, to).unwrap();
        }
    }
}

const INTRUDER: &[u8] = b"intruder";
/// The node's own address among its pods.
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1));

fn bound(netns: &espalier_testnet::Netns, to: SocketAddr) -> UdpSocket {
    let socket = netns.run(|| UdpSocket::bind(to)).unwrap().unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

/// To a pod and to its node, in IPv4 and to a pod in IPv6: from a peer's pod.
fn intrusion(wire: &Wire) -> Intrusion {
    let (mut a, mut b) = (Node::new(wire, 1), Node::new(wire, 2));
    let mut desired = native(&a, &[2], RoutePath::Encrypted);
    a.add_v6_pods(&mut desired, 2);
    desired.deny_clear = false;
    a.settle(&desired);
    a.give_v6_address();
    open(&mut b, &[1]);
    a.ip("addr add 2001:db8::1/64 dev eth0 nodad");
    b.ip("addr add 2001:db8::2/64 dev eth0 nodad");
    // Of the question who has the next hop.
    b.ip("addr add fe80::2/64 dev eth0 nodad");
    b.ip("addr add fd00:10:2::2/128 dev lo nodad");
    b.ip("route add fd00:10:1::/64 via 2001:db8::1 src fd00:10:2::2");
    let ports = [PORT + 1, PORT + 2, PORT + 3];
    let to = [
        (pod(1).ip(), ports[0]).into(),
        (HOST, ports[1]).into(),
        (v6(1, 2), ports[2]).into(),
    ];
    let heard_by = [&a.pod.netns, &a.netns, &a.pod.netns].into_iter().zip(to);
    let any: SocketAddr = (Ipv4Addr::UNSPECIFIED, 0).into();
    let from = [bound(&b.pod.netns, any), bound(&b.pod.netns, any)];
    let from = from
        .into_iter()
        .chain([bound(&b.netns, (v6(2, 2), 0).into())]);
    Intrusion {
        heard_by: heard_by.map(|(netns, to)| bound(netns, to)).collect(),
        sent_by: from.zip(to).collect(),
        a,
        desired,
    }
}

#[test]
fn s2_clear_packets_are_refused_and_opened_ones_come_in() {
    isolated(
        "s2_clear_packets_are_refused_and_opened_ones_come_in",
        || {
            let wire = Wire::new();
            let mut intrusion = intrusion(&wire);
            let plane = tun(&intrusion.a);
            intrusion.arrives();
            intrusion.is_refused();
            // What the data plane has opened comes in by the TUN.
            let from = [pod(2).ip(), pod(2).ip(), v6(2, 2)];
            for (socket, from) in intrusion.heard_by.iter().zip(from) {
                let to = socket.local_addr().unwrap();
                plane.send(&opened(from, to, b"opened")).unwrap();
                assert_eq!(first(socket), b"opened");
            }
        },
    );
}

/// `nft flush ruleset` is a thing that people do, and that services do when they are restarted.
#[test]
fn s2_a_flushed_guard_is_not_missed_by_pods_and_comes_back() {
    isolated(
        "s2_a_flushed_guard_is_not_missed_by_pods_and_comes_back",
        || {
            let wire = Wire::new();
            let mut intrusion = intrusion(&wire);
            let _plane = tun(&intrusion.a);
            intrusion.arrives();
            intrusion.is_refused();
            nft(&intrusion.a, "flush ruleset");
            // What is for the node's own address waits for the agent.
            let host = intrusion.heard_by.remove(1);
            intrusion.is_refused_still();
            intrusion.a.apply(&intrusion.desired);
            let address = host.local_addr().unwrap();
            drop(host);
            intrusion.heard_by.push(bound(&intrusion.a.netns, address));
            intrusion.is_refused_still();
        },
    );
}

/// A Service's address becomes a pod's after the first of the guard's chains. That no peer is accepted would have a routing rule refuse it.
#[test]
fn s2_clear_packets_to_a_service_are_refused_too() {
    isolated("s2_clear_packets_to_a_service_are_refused_too", || {
        let wire = Wire::new();
        let (a, mut b) = (Node::new(&wire, 1), Node::new(&wire, 2));
        let _plane = tun(&a);
        nft(&a, "add table ip services");
        nft(
            &a,
            "add chain ip services arriving { type nat hook prerouting priority -100 ; }",
        );
        nft(
            &a,
            "add rule ip services arriving ip daddr 10.96.0.10 dnat to 10.244.1.2",
        );
        let mut of_b = b.desired(&[1], RoutePath::Clear);
        // Not by the node's address.
        (of_b.framing, of_b.masquerade) = (Framing::Native, false);
        b.settle(&of_b);
        b.ip("route add 10.96.0.0/16 via 192.0.2.1");
        let mut desired = native(&a, &[2, 3], RoutePath::Encrypted);
        accepts(&mut desired, 3, true);
        let any: SocketAddr = (Ipv4Addr::UNSPECIFIED, 0).into();
        let service = (Ipv4Addr::new(10, 96, 0, 10), PORT + 1).into();
        let mut intrusion = Intrusion {
            heard_by: vec![bound(&a.pod.netns, (pod(1).ip(), PORT + 1).into())],
            sent_by: vec![(bound(&b.pod.netns, any), service)],
            a,
            desired,
        };
        intrusion.arrives();
        intrusion.is_refused();
    });
}

#[test]
fn s2_nobody_comes_in_as_one_of_the_nodes_own_pods() {
    isolated("s2_nobody_comes_in_as_one_of_the_nodes_own_pods", || {
        let wire = Wire::new();
        let (a, mut b) = (Node::new(&wire, 1), Node::new(&wire, 2));
        let _plane = tun(&a);
        for place in ["all", "eth0"] {
            let key = format!("ipv4/conf/{place}/rp_filter");
            let off = || espalier_testnet::sysctl(&key, "0");
            a.netns.run(off).unwrap().unwrap();
        }
        open(&mut b, &[1]);
        b.ip("addr add 10.244.1.9/32 dev lo");
        let from: SocketAddr = (Ipv4Addr::new(10, 244, 1, 9), 0).into();
        let to = [(pod(1).ip(), PORT + 1).into(), (HOST, PORT + 2).into()];
        let desired = native(&a, &[2], RoutePath::Clear);
        a.ip("addr add 10.244.1.1/32 dev lo");
        let mut intrusion = Intrusion {
            heard_by: vec![bound(&a.pod.netns, to[0]), bound(&a.netns, to[1])],
            sent_by: to.map(|to| (bound(&b.netns, from), to)).into(),
            a,
            desired,
        };
        intrusion.arrives();
        intrusion.is_refused();
    });
}

#[test]
fn a_pair_that_accepts_clear_passes_and_is_found_again() {
    isolated(
        "a_pair_that_accepts_clear_passes_and_is_found_again",
        || {
            let wire = Wire::new();
            let [mut a, mut b, mut c] = [1, 2, 3].map(|n| Node::new(&wire, n));
            let _plane = tun(&a);
            let mut desired = native(&a, &[2, 3], RoutePath::Clear);
            accepts(&mut desired, 3, false);
            a.settle(&desired);
            open(&mut b, &[1]);
            open(&mut c, &[1]);
            let of = |net: &str| vec![net.parse().unwrap()];
            for _ in 0..10 {
                c.pod.send(pod(1), b"refused");
            }
            assert_pods_talk(&a, &b, b"accepted");
            let found = a.observe();
            assert!(found.base_block && found.accepting.is_empty());
            assert_eq!(found.accepting_pods, of("10.244.2.0/24"));

            // One transaction of nf_tables: table, two chains, the old rules, seven new ones in each.
            accepts(&mut desired, 3, true);
            assert_eq!(a.apply_changes(&desired).writes, 18);
            assert_eq!(a.apply_changes(&desired).writes, 0);
            assert_eq!(a.apply(&desired).writes, 0);
            assert_pods_talk(&a, &c, b"accepted, too");
            assert_eq!(a.observe().accepting_pods, of("10.244.2.0/23"));
            desired.deny_clear = false;
            a.settle(&desired);
            let found = a.observe();
            assert!(!found.base_block && found.accepting_pods.is_empty());
        },
    );
}

#[test]
fn switching_the_path_loses_nothing() {
    isolated("switching_the_path_loses_nothing", || {
        let wire = Wire::new();
        let (mut a, mut b) = (Node::new(&wire, 1), Node::new(&wire, 2));
        let _plane = tun(&a);
        open(&mut b, &[1]);
        let desired = native(&a, &[2], RoutePath::Clear);
        switch_under_load(&mut a, desired, "eth0", |a, desired| {
            a.apply_changes(desired);
            assert_eq!(a.apply(desired).writes, 0);
        });
    });
}

#[test]
fn s1_without_the_tun_nothing_leaves() {
    isolated("s1_without_the_tun_nothing_leaves", || {
        let mut wire = Wire::new();
        let (mut a, mut b) = (Node::new(&wire, 1), Node::new(&wire, 2));
        let plane = tun(&a);
        open(&mut b, &[1]);
        let mut desired = native(&a, &[2], RoutePath::Encrypted);
        a.settle(&desired);
        // The data plane dies, and its device with it; the agent has not noticed.
        drop(plane);
        let silent = |wire: &mut Wire, a: &Node| {
            let before = wire.seen();
            a.pod.send(pod(2), b"forwarded");
            assert!(a.send(pod(2), b"own").is_err());
            assert_eq!(wire.seen().since(&before).clear, 0);
        };
        silent(&mut wire, &a);
        a.settle(&desired);
        silent(&mut wire, &a);
        desired.engine = Engine::None;
        a.settle(&desired);
        silent(&mut wire, &a);
        // Somebody else's route leads out all the same.
        a.ip("route add 10.244.2.0/24 via 192.0.2.2 proto static metric 5");
        let before = wire.seen();
        a.pod.send(pod(2), b"leak");
        assert_eq!(wire.seen().since(&before).clear, 0);
    });
}

#[test]
fn what_encrypts_and_what_is_around_may_change_and_nothing_stays_behind() {
    isolated(
        "what_encrypts_and_what_is_around_may_change_and_nothing_stays_behind",
        || {
            let wire = Wire::new();
            let (mut a, mut b) = (Node::new(&wire, 1), Node::new(&wire, 2));
            let _plane = tun(&a);
            b.ip("route add 10.244.1.0/24 via 192.0.2.1");
            a.ip("link set eth0 up");
            a.netns
                .run(|| espalier_testnet::sysctl("ipv4/conf/eth0/rp_filter", "1"))
                .unwrap()
                .unwrap();
            let tun = || Engine::Tun(TUN.to_owned());
            let steps = [
                (Framing::Native, tun(), true),
                (Framing::Native, Engine::Kernel, false),
                (Framing::Native, tun(), true),
                (Framing::Vxlan, tun(), false),
                (Framing::Native, tun(), true),
                (Framing::Native, Engine::None, false),
                (Framing::Native, tun(), true),
            ];
            for clear in [true, false] {
                for (framing, engine, guarded) in steps.clone() {
                    let mut desired = native(&a, &[2], RoutePath::Blocked);
                    (desired.framing, desired.engine) = (framing, engine);
                    accepts(&mut desired, 2, clear);
                    a.settle(&desired);
                    let forwarded = a.ip("xfrm policy").contains("dir fwd action block");
                    let found = a.observe();
                    assert_eq!(!found.accepting_pods.is_empty(), guarded && clear);
                    assert!(found.base_block, "{desired:?}");
                    if framing == Framing::Native {
                        assert_eq!(forwarded, !guarded, "{desired:?}");
                    }
                }
            }
            // A strict filter would drop what comes in by the underlay from a peer whose route is the TUN.
            let filter = a
                .netns
                .run(|| std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/rp_filter"));
            assert_eq!(filter.unwrap().unwrap().trim(), "2");
            a.remove_all();
            let found = a.observe();
            assert!(
                !found.base_block && found.accepting_pods.is_empty(),
                "{found:?}"
            );
            assert_eq!(underlay(2).to_string(), "192.0.2.2");
            b.remove_all();
        },
    );
}
