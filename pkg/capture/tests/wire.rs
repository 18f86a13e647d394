//! Captures on a bridge between two namespaces.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use espalier_capture::{Capture, Config, Counters, Interfaces, Reader, Received, interface_index};
use espalier_testnet::{Bridge, Netns, address, isolated};

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const MARKER: &[u8] = b"written by a pod";

/// Two hosts on a bridge. A sends from a "pod" address too.
fn two_hosts() -> (Bridge, Netns, Netns) {
    let bridge = Bridge::new("wire", 1500).unwrap();
    let [a, b] =
        [("a", vec![A, Ipv4Addr::new(10, 244, 1, 2)]), ("b", vec![B])].map(|(name, ips)| {
            let netns = Netns::new(name).unwrap();
            bridge.connect(&netns, "eth0", name).unwrap();
            let add = || {
                ips.iter()
                    .try_for_each(|ip| address("eth0", IpAddr::V4(*ip), 24))
            };
            netns.run(add).unwrap().unwrap();
            netns
        });
    (bridge, a, b)
}

fn on_ports(bridge: &Bridge) -> Interfaces {
    let own = bridge.netns().run(|| interface_index("br0")).unwrap();
    Interfaces::AllBut(vec![own.unwrap()])
}

fn capture(bridge: &Bridge) -> Capture {
    let config = Config {
        interfaces: on_ports(bridge),
        with_outgoing: false,
        pods: vec!["10.244.0.0/16".parse().unwrap()],
        marker: MARKER.to_vec(),
    };
    bridge
        .netns()
        .run(|| Capture::start(config))
        .unwrap()
        .unwrap()
}

fn send(from: &Netns, source: Ipv4Addr, to: (Ipv4Addr, u16), payload: &[u8], count: usize) {
    from.run(|| {
        let socket = UdpSocket::bind((source, 0)).unwrap();
        for _ in 0..count {
            socket.send_to(payload, to).unwrap();
        }
    })
    .unwrap();
}

fn pair(counters: &Counters) -> (u64, u64, u64) {
    let pair = counters.pair(IpAddr::V4(A), IpAddr::V4(B));
    (pair.esp, pair.ike, pair.clear)
}

#[test]
fn every_frame_is_counted_once_and_told_apart() {
    isolated("every_frame_is_counted_once_and_told_apart", || {
        let (bridge, a, b) = two_hosts();
        let _sink = b.run(|| UdpSocket::bind((B, 4500))).unwrap().unwrap();
        let capture = capture(&bridge);
        send(&a, A, (B, 4500), &[1, 2, 3, 4, 0, 0, 0, 1], 5);
        send(&a, A, (B, 4500), &[0, 0, 0, 0, 9, 9, 9, 9], 2);
        send(&a, Ipv4Addr::new(10, 244, 1, 2), (B, 4500), b"x", 3);
        let first = capture.snapshot().unwrap();
        assert_eq!(pair(&first), (5, 2, 0));
        assert_eq!(
            (first.clear, first.clear_pod, first.clear_between_pods),
            (3, 3, 0)
        );
        assert_eq!(first.dropped, 0);

        // What looks like ESP but holds the pods' own words has leaked.
        let false_esp = [&[1, 2, 3, 4, 0, 0, 0, 2][..], MARKER].concat();
        send(&a, A, (B, 4500), &false_esp, 4);
        let second = capture.snapshot().unwrap().since(&first);
        assert_eq!(second.samples.len(), 4, "the first three are older");
        assert_eq!(pair(&second), (4, 0, 4));
        assert_eq!((second.marked, second.clear, second.clear_pod), (4, 4, 0));
    });
}

#[test]
fn a_port_that_comes_later_is_captured_too() {
    isolated("a_port_that_comes_later_is_captured_too", || {
        let (bridge, _a, b) = two_hosts();
        // Without a receiver an ICMP error would carry the marker back.
        let _sink = b.run(|| UdpSocket::bind((B, 4500))).unwrap().unwrap();
        let capture = capture(&bridge);
        let c = Netns::new("c").unwrap();
        bridge.connect(&c, "eth0", "c").unwrap();
        let own = Ipv4Addr::new(192, 0, 2, 3);
        c.run(|| address("eth0", IpAddr::V4(own), 24))
            .unwrap()
            .unwrap();
        send(&c, own, (B, 4500), MARKER, 1);
        assert_eq!(capture.snapshot().unwrap().marked, 1);
    });
}

#[test]
fn dropped_frames_are_reported() {
    isolated("dropped_frames_are_reported", || {
        const SENT: u64 = 3000;
        let (bridge, a, b) = two_hosts();
        let _sink = b.run(|| UdpSocket::bind((B, 9))).unwrap().unwrap();
        send(&a, A, (B, 9), b"resolves the neighbour", 1);
        let open = || Reader::open(on_ports(&bridge), false, 4096);
        let mut reader = bridge.netns().run(open).unwrap().unwrap();
        reader.set_timeout(Duration::from_millis(200)).unwrap();
        send(&a, A, (B, 9), MARKER, usize::try_from(SENT).unwrap());
        let probe = reader.probe().unwrap();
        let mut seen = 0;
        loop {
            match reader.receive().unwrap() {
                Received::Frame { bytes, .. } if bytes.ends_with(MARKER) => seen += 1,
                Received::Probe(7) => break,
                // The queue is empty: the probe finds room now.
                Received::TimedOut => probe.send(7).unwrap(),
                _ => {}
            }
        }
        assert!(
            seen < SENT,
            "the queue held all {SENT}: the test tests nothing"
        );
        // Other frames (neighbour probes of the kernel) may have been dropped as well.
        assert!(
            reader.dropped() >= SENT - seen,
            "{} dropped, {seen} seen",
            reader.dropped()
        );
    });
}
