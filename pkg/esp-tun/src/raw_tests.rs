//! The invariants of the data path once more, on packets as raw sockets give them.

use std::time::Instant;

use espalier_dataplane_core::{Event, Overlay, Peer, PeerId, Spi};
use espalier_esp::next_header;
use espalier_esp::offload::Offload;
use espalier_esp::wire::{checksum, ecn};

use crate::control::Control;
use crate::drops::Reason;
use crate::fixture::{self, hosts, hosts_with, pod_packet, raw};
use crate::path_tests::{self, large_tcp, seal_large};
use crate::rx::{self, Verdict};
use crate::tables::Tables;
use crate::tx::To;

const PODS: (&str, &str) = ("10.244.1.2", "10.244.2.3");

fn packet() -> Vec<u8> {
    pod_packet(PODS.0, PODS.1)
}

fn seal(control: &Control, packet: &[u8]) -> Vec<u8> {
    path_tests::seal(&control.tables(), packet).unwrap()
}

/// ESP behind an IPv4 header with so many bytes of options.
fn in_ipv4(esp: &[u8], options: usize, tos: u8) -> Vec<u8> {
    let header = 20 + options;
    let mut packet = vec![0; header];
    packet[0] = 0x40 | (header / 4) as u8;
    packet[1] = tos;
    packet[2..4].copy_from_slice(&((header + esp.len()) as u16).to_be_bytes());
    packet[8..10].copy_from_slice(&[64, 50]);
    packet[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    packet[20..].fill(1);
    packet.extend(esp);
    packet
}

fn verdict(tables: &Tables, v4: bool, bytes: &mut [u8], outer: u8) -> Verdict {
    rx::judge_raw(tables, v4, bytes, outer, Instant::now())
}

/// What comes out of an IPv4 packet, or why nothing does.
fn judge(tables: &Tables, bytes: &[u8]) -> Result<Vec<u8>, Reason> {
    let mut bytes = bytes.to_vec();
    match verdict(tables, true, &mut bytes, ecn::NOT_ECT) {
        Verdict::Packet(place, _) => Ok(bytes[place].to_vec()),
        Verdict::Drop(reason, _) => Err(reason),
        other => panic!("expected a packet or a drop, got {other:?}"),
    }
}

/// The same of ESP behind an IPv6 header, which a raw socket takes off.
fn judge_v6(tables: &Tables, esp: &[u8], outer: u8) -> Result<Vec<u8>, Reason> {
    let mut bytes = esp.to_vec();
    match verdict(tables, false, &mut bytes, outer) {
        Verdict::Packet(place, _) => Ok(bytes[place].to_vec()),
        Verdict::Drop(reason, _) => Err(reason),
        other => panic!("expected a packet or a drop, got {other:?}"),
    }
}

#[test]
fn a_pod_packet_arrives_unchanged_whatever_is_around_it() {
    let vxlan = Overlay::Vxlan {
        vni: 4789,
        port: 4789,
    };
    for overlay in [vxlan, Overlay::Ipip] {
        let (mut one, mut two) = hosts_with(raw);
        let with = |peer| Peer { overlay, ..peer };
        one.put_peer(with(fixture::peer(1, 2))).unwrap();
        two.put_peer(with(fixture::peer(2, 1))).unwrap();
        for packet in [packet(), pod_packet("fd00:1::2", "fd00:2::3")] {
            for options in [0, 4, 40] {
                let bytes = in_ipv4(&seal(&one, &packet), options, 0);
                assert_eq!(judge(&two.tables(), &bytes), Ok(packet.clone()));
                assert_eq!(judge(&two.tables(), &bytes), Err(Reason::Replayed));
            }
            let esp = seal(&one, &packet);
            assert_eq!(judge_v6(&two.tables(), &esp, 0), Ok(packet));
            assert_eq!(judge_v6(&two.tables(), &esp, 0), Err(Reason::Replayed));
        }
    }
}

#[test]
fn a_large_packet_becomes_packets_to_the_peers_address() {
    let (one, two) = hosts_with(raw);
    let sent = seal_large(&one.tables(), Offload::Tcp, &large_tcp(64_300)).unwrap();
    let remote = To::Raw([192, 0, 2, 2].into());
    assert!(sent.iter().all(|(batch, _)| batch.to == remote));
    let datagrams: Vec<_> = sent.into_iter().flat_map(|(_, all)| all).collect();
    assert_eq!(datagrams.len(), 65);
    // S4: one counter for each SA, whatever its packets are in.
    for (esp, number) in datagrams.iter().zip(1_u64..) {
        assert_eq!(esp[8..16], number.to_be_bytes());
        assert!(judge(&two.tables(), &in_ipv4(esp, 0, 0)).is_ok());
    }
}

#[test]
fn what_comes_otherwise_than_agreed_is_not_opened() {
    for (sa, by_udp) in [(raw as fn(_, _, _) -> _, true), (fixture::sa, false)] {
        let (one, two) = hosts_with(sa);
        let (tables, esp) = (two.tables(), seal(&one, &packet()));
        let refused = Verdict::Drop(Reason::Encapsulation, None);
        let by_udp_verdict = |esp: &[u8]| rx::judge(&tables, &mut esp.to_vec(), 0, Instant::now());
        if by_udp {
            assert_eq!(by_udp_verdict(&esp), refused);
            assert_eq!(judge(&tables, &in_ipv4(&esp, 0, 0)), Ok(packet()));
        } else {
            assert_eq!(
                judge(&tables, &in_ipv4(&esp, 0, 0)),
                Err(Reason::Encapsulation)
            );
            assert_eq!(judge_v6(&tables, &esp, 0), Err(Reason::Encapsulation));
            assert!(matches!(by_udp_verdict(&esp), Verdict::Packet(..)));
        }
        let (sa, _) = &tables.inbound[&0x1200];
        assert_eq!(sa.info(Instant::now()).drops, if by_udp { 1 } else { 2 });
    }
}

#[test]
fn s6_what_is_not_authentic_changes_nothing() {
    let (one, two) = hosts_with(raw);
    let (tables, good) = (two.tables(), seal(&one, &packet()));
    let changed = |at: usize| {
        let mut esp = good.clone();
        esp[at] ^= 1;
        judge(&tables, &in_ipv4(&esp, 0, 0))
    };
    assert_eq!(changed(0), Err(Reason::UnknownSpi));
    assert_eq!(changed(15), Err(Reason::BadIcv));
    assert_eq!(changed(good.len() - 1), Err(Reason::BadIcv));
    let cut = |len: usize| judge(&tables, &in_ipv4(&good[..len], 0, 0));
    assert_eq!(
        (cut(0), cut(3)),
        (Err(Reason::Truncated), Err(Reason::Truncated))
    );
    assert_eq!(cut(8), Err(Reason::Truncated));
    assert_eq!(
        judge(&tables, &good),
        Err(Reason::Truncated),
        "no IP header"
    );
    let mut other = in_ipv4(&good, 0, 0);
    other[9] = 51;
    assert_eq!(judge(&tables, &other), Err(Reason::Truncated), "AH");
    assert_eq!(judge(&tables, &in_ipv4(&good, 0, 0)), Ok(packet()));
}

#[test]
fn nothing_but_esp_is_known_here() {
    let (_, two) = hosts_with(raw);
    let tables = two.tables();
    // On the UDP port these are a keepalive and an IKE message.
    assert_eq!(
        judge(&tables, &in_ipv4(&[0xff], 0, 0)),
        Err(Reason::Truncated)
    );
    assert_eq!(
        judge(&tables, &in_ipv4(b"\0\0\0\0ike", 0, 0)),
        Err(Reason::UnknownSpi)
    );
}

#[test]
fn s5_a_peer_sources_its_own_pods_only_and_reaches_ours_only() {
    let (mut one, two) = hosts_with(raw);
    // Host 1 was told of other pods of host 2 than it has.
    let mut wrong = fixture::peer(1, 2);
    wrong.pod_cidrs = vec!["10.99.0.0/24".parse().unwrap()];
    let esp = seal(&one, &pod_packet("10.244.3.2", "10.244.2.3"));
    assert_eq!(
        judge(&two.tables(), &in_ipv4(&esp, 0, 0)),
        Err(Reason::ForeignSource)
    );
    one.put_peer(wrong).unwrap();
    let esp = seal(&one, &pod_packet("10.244.1.2", "10.99.0.3"));
    assert_eq!(
        judge_v6(&two.tables(), &esp, 0),
        Err(Reason::ForeignDestination)
    );
    let tables = two.tables();
    let (_, entry) = &tables.inbound[&0x1200];
    assert_eq!(entry.state.stats().policy_drops, 2);
}

#[test]
fn congestion_marks_are_those_of_either_header() {
    let (one, two) = hosts_with(raw);
    let mut capable = packet();
    ecn::set(&mut capable, ecn::ECT_0);
    capable[10..12].fill(0);
    let sum = checksum::field(checksum::sum(&capable[..20]));
    capable[10..12].copy_from_slice(&sum.to_be_bytes());
    let sent = seal_large(&one.tables(), Offload::None, &capable).unwrap();
    assert_eq!(sent[0].0.ecn, ecn::ECT_0);
    let marked = in_ipv4(&sent[0].1[0], 8, 0xb8 | ecn::CE);
    let v4 = judge(&two.tables(), &marked).unwrap();
    let v6 = judge_v6(&two.tables(), &seal(&one, &capable), ecn::CE).unwrap();
    for arrived in [v4, v6] {
        assert_eq!(ecn::of(&arrived), ecn::CE);
        assert_eq!(checksum::fold(checksum::sum(&arrived[..20])), 0xffff);
    }
    ecn::set(&mut capable, ecn::NOT_ECT);
    let marked = in_ipv4(&seal(&one, &capable), 0, ecn::CE);
    assert_eq!(judge(&two.tables(), &marked), Err(Reason::Congested));
    let refused = judge_v6(&two.tables(), &seal(&one, &capable), ecn::CE);
    assert_eq!(refused, Err(Reason::Congested));
}

#[test]
fn the_first_authentic_packet_is_reported_and_a_probe_is_one() {
    let (one, two) = hosts_with(raw);
    let tables = one.tables();
    let entry = tables.routes.lookup(PODS.1.parse().unwrap()).unwrap();
    let active = entry.state.active.load_full().unwrap();
    let probe = [0x12, 0xb4, 0x12, 0xb4, 0, 17, 0, 0, b'e'];
    let mut esp = vec![0; 128];
    let len = active.esp.seal(next_header::UDP, &[], &probe, &mut esp);
    esp.truncate(len.unwrap());
    let first = Event::FirstPacket {
        peer: PeerId("node-1".into()),
        spi: Spi(0x1200),
    };
    let judged = verdict(&two.tables(), false, &mut esp, 0);
    assert_eq!(judged, Verdict::Drop(Reason::Probe, Some(first)));
    let mut next = in_ipv4(&seal(&one, &packet()), 0, 0);
    let judged = verdict(&two.tables(), true, &mut next, 0);
    assert!(matches!(judged, Verdict::Packet(_, None)), "{judged:?}");
}

#[test]
fn raw_sas_that_are_there_are_known() {
    let (udp, _) = hosts();
    let (mut one, _) = hosts_with(raw);
    assert!(!udp.opens_raw() && one.opens_raw());
    one.remove_peer(&PeerId("node-2".into()));
    assert!(!one.opens_raw());
}

proptest::proptest! {
    #[test]
    fn s6_no_raw_packet_panics_or_gets_through(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), v4 in proptest::bool::ANY, ours in proptest::bool::ANY) {
        let (_, two) = hosts_with(raw);
        if ours && !v4 && bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&0x1200_u32.to_be_bytes());
        }
        if ours && v4 {
            bytes = in_ipv4(&[&0x1200_u32.to_be_bytes()[..], &bytes].concat(), 4 * (bytes.len() % 11), 0);
        }
        let judged = verdict(&two.tables(), v4, &mut bytes, 0);
        proptest::prop_assert!(!matches!(judged, Verdict::Packet(..)));
    }
}
