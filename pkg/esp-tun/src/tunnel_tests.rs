//! Native routing: ESP in tunnel mode, whose inner packets are the pods' own (RFC 4303 §3.1.2).

use std::time::Instant;

use espalier_dataplane_core::{Event, PeerId, Spi};
use espalier_esp::next_header;
use espalier_esp::wire::ecn;

use crate::control::Control;
use crate::drops::Reason;
use crate::fixture::{pod_packet, tunnel_hosts};
use crate::path_tests::seal;
use crate::rx::{self, Verdict};

const PODS: (&str, &str) = ("10.244.1.2", "10.244.2.3");
const PODS_V6: (&str, &str) = ("fd00:1::2", "fd00:2::3");

fn open(control: &Control, datagram: &[u8]) -> (Result<Vec<u8>, Reason>, Option<Event>) {
    let mut bytes = datagram.to_vec();
    match rx::judge(&control.tables(), &mut bytes, ecn::NOT_ECT, Instant::now()) {
        Verdict::Packet(place, event) => (Ok(bytes[place].to_vec()), event),
        Verdict::Drop(reason, event) => (Err(reason), event),
        other => panic!("expected a packet or a drop, got {other:?}"),
    }
}

/// What host 1 seals for host 2, whatever is inside.
fn sealed(one: &Control, inner: &[u8]) -> Vec<u8> {
    let tables = one.tables();
    let entry = tables.routes.lookup(PODS.1.parse().unwrap()).unwrap();
    let active = entry.state.active.load_full().unwrap();
    let next = match inner[0] >> 4 {
        4 => next_header::IPV4,
        _ => next_header::IPV6,
    };
    let mut esp = vec![0; 256];
    let len = active.esp.seal(next, &[], inner, &mut esp).unwrap();
    esp.truncate(len);
    esp
}

fn policy_drops(control: &Control) -> u64 {
    let tables = control.tables();
    let entry = tables.routes.lookup(PODS.0.parse().unwrap()).unwrap();
    entry.state.stats().policy_drops
}

#[test]
fn pods_of_both_families_go_through_a_tunnel() {
    let (one, two) = tunnel_hosts();
    for (from, to) in [PODS, PODS_V6] {
        let packet = pod_packet(from, to);
        let datagram = seal(&one.tables(), &packet).unwrap();
        // SPI, sequence number, packet, trailer padded to 4, ICV: nothing of a host is inside.
        let padded = (packet.len() + 2).next_multiple_of(4);
        assert_eq!(datagram.len(), 8 + 8 + padded + 16);
        assert_eq!(open(&two, &datagram).0, Ok(packet));
        assert_eq!(open(&two, &datagram).0, Err(Reason::Replayed));
    }
}

#[test]
fn s5_of_a_tunnel_only_the_peers_pods_come_out() {
    let (one, two) = tunnel_hosts();
    for (from, to, reason) in [
        ("10.244.3.2", PODS.1, Reason::ForeignSource),
        ("10.244.2.9", PODS.1, Reason::ForeignSource),
        ("192.0.2.1", PODS.1, Reason::ForeignSource),
        (PODS.0, "10.244.3.3", Reason::ForeignDestination),
        (PODS.0, "192.0.2.2", Reason::ForeignDestination),
        ("fd00:3::2", PODS_V6.1, Reason::ForeignSource),
    ] {
        let before = policy_drops(&two);
        let datagram = sealed(&one, &pod_packet(from, to));
        assert_eq!(open(&two, &datagram).0, Err(reason), "{from} to {to}");
        assert_eq!(policy_drops(&two), before + 1);
    }
}

/// From host to host, UDP to the probes' port: the first packet of its SA and no fault. Nothing else of a host is that.
#[test]
fn a_probe_in_a_tunnel_is_known() {
    let probe = |from, to, port: u16| {
        let mut packet = pod_packet(from, to);
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        packet
    };
    let (one, two) = tunnel_hosts();
    let first = Event::FirstPacket {
        peer: PeerId("node-1".into()),
        spi: Spi(0x1200),
    };
    let asked = sealed(&one, &probe("192.0.2.1", "192.0.2.2", 4788));
    assert_eq!(open(&two, &asked), (Err(Reason::Probe), Some(first)));
    assert_eq!(policy_drops(&two), 0);
    for (from, to, port) in [
        ("192.0.2.1", "192.0.2.2", 4789),
        ("192.0.2.3", "192.0.2.2", 4788),
        ("192.0.2.1", "192.0.2.3", 4788),
    ] {
        let other = sealed(&one, &probe(from, to, port));
        assert_eq!(open(&two, &other).0, Err(Reason::ForeignSource));
    }
    assert_eq!(policy_drops(&two), 3);
}
