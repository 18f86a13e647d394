//! What pods send out of the cluster has the node's address, and nothing else has.
//!
//! ```text
//!  pod 10.244.1.2 ── node 1 ┬ eth0 192.0.2.1 ── br0 ┬ 192.0.2.2 node 2 ── pod 10.244.2.2
//!                           └ espalier.vx           └ 192.0.2.9 outside: no way to pods, its default route leads nowhere
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use common::{Node, Wire, assert_pods_talk, underlay, underlay6};
use espalier_netlink::{Netfilter, Socket};
use espalier_overlay::{Desired, RoutePath};
use espalier_testnet::{Netns, isolated};

const PORT: u16 = 7001;
const OUTSIDE: u8 = 9;

struct World {
    _wire: Wire,
    a: Node,
    b: Node,
    outside: Node,
    desired: Desired,
}

impl World {
    /// Pods of both families, nothing sealed.
    fn new() -> Self {
        let wire = Wire::new();
        let [mut a, mut b, outside] = [1, 2, OUTSIDE].map(|n| Node::new(&wire, n));
        for node in [&a, &b, &outside] {
            let address = underlay6(node.number);
            node.ip(&format!("addr add {address}/64 dev eth0 nodad"));
        }
        let [desired, of_b] = [(&a, 2), (&b, 1)].map(|(node, other)| {
            let mut desired = node.desired(&[other], RoutePath::Clear);
            node.add_v6_pods(&mut desired, other);
            desired
        });
        a.settle(&desired);
        b.settle(&of_b);
        [&a, &b].into_iter().for_each(Node::give_v6_address);
        Self {
            _wire: wire,
            a,
            b,
            outside,
            desired,
        }
    }

    /// Whom a host sees when the pod speaks to its address; the answer must arrive.
    fn seen(&self, host: &Netns, address: IpAddr) -> IpAddr {
        let to = SocketAddr::new(address, PORT);
        let host = listen(host, to).unwrap();
        let pod = self.a.pod.udp(any(address));
        pod.send_to(b"ask", to).unwrap();
        let from = receive(&host, b"ask").expect("the pod's packet");
        host.send_to(b"answer", from).unwrap();
        let answered = receive(&pod, b"answer").expect("the answer");
        assert_eq!(answered, to);
        from.ip()
    }

    /// The outside hears the pod, and by which address; it has no way back to pods.
    fn heard(&self, port: u16) -> Option<IpAddr> {
        let to = SocketAddr::new(underlay(OUTSIDE), port);
        let host = listen(&self.outside.netns, to).unwrap();
        host.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        self.a.pod.udp("0.0.0.0:0").send_to(b"ask", to).unwrap();
        receive(&host, b"ask").map(|from| from.ip())
    }
}

fn listen(netns: &Netns, address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = netns.run(|| UdpSocket::bind(address)).unwrap()?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

fn any(like: IpAddr) -> &'static str {
    match like {
        IpAddr::V4(_) => "0.0.0.0:0",
        IpAddr::V6(_) => "[::]:0",
    }
}

fn receive(socket: &UdpSocket, expected: &[u8]) -> Option<SocketAddr> {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(&buffer[..length], expected);
    Some(from)
}

/// True: there was a table of ours.
fn delete_table(node: &Node) -> bool {
    let mut socket = node.netns.run(Socket::<Netfilter>::open).unwrap().unwrap();
    socket.remove_masquerade().unwrap()
}

#[test]
fn pods_reach_what_has_no_way_back_to_them() {
    isolated("pods_reach_what_has_no_way_back_to_them", || {
        let world = World::new();
        let outside = &world.outside.netns;
        assert_eq!(world.seen(outside, underlay(OUTSIDE)), underlay(1));
        assert_eq!(world.seen(outside, underlay6(OUTSIDE)), underlay6(1));
        // Another node's own address: its answer would come by the overlay, from an address that is no pod's.
        assert_eq!(world.seen(&world.b.netns, underlay(2)), underlay(1));
        assert_eq!(world.seen(&world.b.netns, underlay6(2)), underlay6(1));
    });
}

#[test]
fn cluster_addresses_see_pods_as_they_are() {
    isolated("cluster_addresses_see_pods_as_they_are", || {
        let world = World::new();
        assert_pods_talk(&world.a, &world.b, b"pods");
        let pod = &world.b.pod.netns;
        let addresses = [
            ("10.244.2.2", "10.244.1.2"),
            ("fd00:10:2::2", "fd00:10:1::2"),
        ];
        for (to, from) in addresses {
            let from: IpAddr = from.parse().unwrap();
            assert_eq!(world.seen(pod, to.parse().unwrap()), from);
        }
        // And the nodes among them.
        let from: IpAddr = "10.244.1.2".parse().unwrap();
        assert_eq!(
            world.seen(&world.b.netns, "10.244.2.1".parse().unwrap()),
            from
        );
    });
}

/// With the node's address the peer would take them for the node's.
#[test]
fn s5_what_pods_make_look_like_the_overlay_does_not_come_from_the_node() {
    isolated(
        "s5_what_pods_make_look_like_the_overlay_does_not_come_from_the_node",
        || {
            let world = World::new();
            let pod: IpAddr = "10.244.1.2".parse().unwrap();
            for port in [4789, espalier_overlay::PROBE_PORT] {
                assert_eq!(world.heard(port), Some(pod), "UDP {port}");
            }
            assert_eq!(world.heard(PORT), Some(underlay(1)));
        },
    );
}

#[test]
fn what_somebody_removed_is_mended_and_nothing_is_left_in_the_end() {
    isolated(
        "what_somebody_removed_is_mended_and_nothing_is_left_in_the_end",
        || {
            let mut world = World::new();
            let desired = world.desired.clone();
            assert!(delete_table(&world.a));
            assert_eq!(world.heard(PORT), Some("10.244.1.2".parse().unwrap()));
            assert!(world.a.settle(&desired).writes > 0);
            assert_eq!(world.heard(PORT), Some(underlay(1)));

            let flush = "flush table inet espalier";
            let flushed = world.a.netns.output(Command::new("nft").arg(flush));
            if flushed.is_ok() {
                assert!(world.a.settle(&desired).writes > 0, "flushed");
                assert_eq!(world.heard(PORT), Some(underlay(1)));
            }
            world.a.remove_all();
            assert!(!delete_table(&world.a));
        },
    );
}

#[test]
fn a_policy_that_says_never_removes_the_rules() {
    isolated("a_policy_that_says_never_removes_the_rules", || {
        let mut world = World::new();
        let mut never = world.desired.clone();
        never.masquerade = false;
        assert!(world.a.apply_changes(&never).writes > 0);
        assert!(!delete_table(&world.a));
        assert_eq!(world.heard(PORT), Some("10.244.1.2".parse().unwrap()));
        assert_eq!(world.a.settle(&never).note, None);
        assert!(world.a.apply_changes(&world.desired.clone()).writes > 0);
        assert_eq!(world.heard(PORT), Some(underlay(1)));
    });
}
