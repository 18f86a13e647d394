use std::net::{IpAddr, SocketAddr};

use espalier_dataplane_core::{Direction, SaMode, Suite};
use espalier_testnet::isolated;

use crate::node::{Node, Protect, SERVICE, UDP, connect, host, pair, passes};

fn carry(a: &Node, b: &Node, v6: bool, suite: Suite, udp: bool, spi: u32) {
    let (to_b, to_a) = (a.put(b, v6), b.put(a, v6));
    connect(a, b, spi, |sa| {
        sa.suite = suite;
        if udp {
            sa.encapsulation = UDP;
        }
    });
    let protect = |reqid, spi| Protect {
        v6,
        reqid,
        spi: Some(spi),
        ah: suite.is_ah(),
    };
    a.protect(b, protect(to_b, spi));
    b.protect(a, protect(to_a, spi + 1));
    let (service_a, service_b) = (a.bind(v6, SERVICE), b.bind(v6, SERVICE));
    for size in [1, 100, 1300] {
        passes(&service_a, &service_b, &vec![7; size]);
        passes(&service_b, &service_a, &vec![9; size]);
    }
    for (node, inbound, outbound) in [(a, spi + 1, spi), (b, spi, spi + 1)] {
        let (inbound, outbound) = (
            node.sa(Direction::In, inbound),
            node.sa(Direction::Out, outbound),
        );
        assert_eq!((inbound.packets, outbound.packets), (3, 3), "{suite:?}");
        assert!(inbound.active && outbound.active && inbound.idle_ms.is_some());
        assert_eq!((inbound.suite, inbound.drops), (suite, 0));
    }
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn every_suite_carries_packets_raw_and_in_udp_over_ipv4_and_ipv6() {
    isolated(
        "traffic::every_suite_carries_packets_raw_and_in_udp_over_ipv4_and_ipv6",
        || {
            let (a, b) = pair();
            let mut spi = 0x1000;
            for suite in Suite::ALL {
                for v6 in [false, true] {
                    for udp in [false, true] {
                        if udp && suite.is_ah() {
                            continue;
                        }
                        carry(&a, &b, v6, suite, udp, spi);
                        println!("{suite:?} ipv6 {v6} udp {udp}: passed");
                        spi += 0x10;
                    }
                }
            }
        },
    );
}

/// Pods' addresses of both families inside one SA each way.
#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn tunnel_mode_carries_both_families() {
    isolated("traffic::tunnel_mode_carries_both_families", || {
        let (a, b) = pair();
        for (v6, spi) in [(false, 0x2000), (true, 0x2100)] {
            let (to_b, to_a) = (a.put(&b, v6), b.put(&a, v6));
            connect(&a, &b, spi, |sa| sa.mode = SaMode::Tunnel);
            for (node, other, reqid, spi) in [(&a, &b, to_b, spi), (&b, &a, to_a, spi + 1)] {
                tunnel(node, other, v6, reqid.0, spi);
            }
            for pods in [pods_v4 as fn(u8) -> IpAddr, pods_v6] {
                let at = |node: &Node| node.bind_at(SocketAddr::new(pods(node.number), SERVICE));
                let (pod_a, pod_b) = (at(&a), at(&b));
                passes(&pod_a, &pod_b, b"there");
                passes(&pod_b, &pod_a, b"and back");
            }
            assert_eq!(a.sa(Direction::Out, spi).packets, 2);
            assert_eq!(b.sa(Direction::In, spi).packets, 2);
        }
    });
}

fn pods_v4(number: u8) -> IpAddr {
    [10, 244, number, 2].into()
}

fn pods_v6(number: u8) -> IpAddr {
    format!("fd00:10:{number}::2").parse().unwrap()
}

fn tunnel(node: &Node, other: &Node, v6: bool, reqid: u32, spi: u32) {
    let (here, there) = (host(v6, node.number), host(v6, other.number));
    for pods in [pods_v4 as fn(u8) -> IpAddr, pods_v6] {
        let (own, theirs) = (pods(node.number), pods(other.number));
        let length = if own.is_ipv4() { 32 } else { 128 };
        if !v6 {
            node.ip(&format!("addr add {own}/{length} dev lo"));
            let via = if own.is_ipv4() {
                host(false, other.number)
            } else {
                host(true, other.number)
            };
            node.ip(&format!("route add {theirs}/{length} via {via} src {own}"));
        }
        node.ip(&format!(
            "xfrm policy update dir out src {own} dst {theirs} tmpl src {here} dst {there} proto esp spi {spi:#x} reqid {reqid} mode tunnel"
        ));
        node.ip(&format!(
            "xfrm policy update dir in src {theirs} dst {own} tmpl src {there} dst {here} proto esp reqid {reqid} mode tunnel"
        ));
    }
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn without_esn_and_with_small_windows_packets_pass_too() {
    isolated(
        "traffic::without_esn_and_with_small_windows_packets_pass_too",
        || {
            let (a, b) = pair();
            let (to_b, to_a) = (a.put(&b, false), b.put(&a, false));
            for (window, spi) in [(1, 0x3000), (33, 0x3100), (4096, 0x3200)] {
                connect(&a, &b, spi, |sa| {
                    sa.esn = false;
                    sa.replay_window = window;
                });
                let protect = |reqid, spi| Protect {
                    v6: false,
                    reqid,
                    spi: Some(spi),
                    ah: false,
                };
                a.protect(&b, protect(to_b, spi));
                b.protect(&a, protect(to_a, spi + 1));
                let (service_a, service_b) = (a.bind(false, SERVICE), b.bind(false, SERVICE));
                for _ in 0..100 {
                    passes(&service_a, &service_b, b"there");
                }
                assert_eq!(b.sa(Direction::In, spi).packets, 100);
            }
        },
    );
}
