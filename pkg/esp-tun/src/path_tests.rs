//! The two pure halves of the data path against each other: what one host seals, the other judges.

use std::time::{Duration, Instant};

use espalier_dataplane_core::{Direction, Event, Overlay, PeerId, Spi};
use espalier_esp::offload::{Large, Offload};
use espalier_esp::wire::{checksum, ecn, virtio};

use crate::control::{Control, Ways};
use crate::drops::Reason;
use crate::fixture::{self, hosts, pod_packet};
use crate::rx::{self, Verdict};
use crate::tables::Tables;
use crate::tx::{self, Batch, Lost, Outbox, To};

/// What is sent by one call: what its datagrams have in common, and each of them.
pub(crate) type Sent = (Batch<'static>, Vec<Vec<u8>>);

/// All datagrams that a device's packet becomes.
pub(crate) fn seal_large(
    tables: &Tables,
    offload: Offload,
    bytes: &[u8],
) -> Result<Vec<Sent>, Lost> {
    let (mut outbox, mut sent) = (Outbox::new(), Vec::new());
    let mut take = |batch: Batch<'_>| {
        let datagrams = batch.bytes.chunks(batch.segment);
        let datagrams: Vec<_> = datagrams.map(<[u8]>::to_vec).collect();
        assert_eq!(datagrams.len(), batch.count());
        sent.push((
            Batch {
                bytes: &[],
                ..batch
            },
            datagrams,
        ));
    };
    let large = Large::parse(offload, bytes).unwrap();
    let sealed = tx::seal(tables, &large, &mut outbox, Instant::now(), &mut take);
    outbox.take().into_iter().for_each(take);
    sealed.map(|()| sent)
}

pub(crate) fn seal(tables: &Tables, packet: &[u8]) -> Result<Vec<u8>, Reason> {
    match seal_large(tables, Offload::None, packet) {
        Ok(mut sent) => Ok(sent.remove(0).1.remove(0)),
        Err(lost) => Err(lost.reason),
    }
}

/// The pod packet that comes out, or why none does.
fn judge(tables: &Tables, datagram: &[u8]) -> Result<Vec<u8>, Reason> {
    judge_marked(tables, datagram, ecn::NOT_ECT)
}

fn judge_marked(tables: &Tables, datagram: &[u8], outer: u8) -> Result<Vec<u8>, Reason> {
    let mut datagram = datagram.to_vec();
    match rx::judge(tables, &mut datagram, outer, Instant::now()) {
        Verdict::Packet(place, _) => Ok(datagram[place].to_vec()),
        Verdict::Drop(reason, _) => Err(reason),
        other => panic!("expected a packet or a drop, got {other:?}"),
    }
}

/// What host 2 makes of a packet that host 1 seals without looking at its source, as a hostile one would.
fn from_one_to_two(source: &str, destination: &str) -> Result<Vec<u8>, Reason> {
    let (one, two) = hosts();
    let tables = one.tables();
    let entry = tables.routes.lookup("10.244.2.9".parse().unwrap()).unwrap();
    let active = entry.state.active.load_full().unwrap();
    let packet = pod_packet(source, destination);
    let headroom = entry.framing.headroom();
    let mut payload = [&vec![0; headroom][..], &packet].concat();
    let next_header = entry.framing.emit(&mut payload).unwrap();
    let mut datagram = vec![0; 512];
    let len = active
        .esp
        .seal(next_header, &[], &payload, &mut datagram)
        .unwrap();
    judge(&two.tables(), &datagram[..len])
}

#[test]
fn a_pod_packet_arrives_unchanged_in_both_framings_and_families() {
    for overlay in [
        Overlay::Vxlan {
            vni: 4789,
            port: 4789,
        },
        Overlay::Ipip,
    ] {
        let (mut one, mut two) = hosts();
        one.put_peer(espalier_dataplane_core::Peer {
            overlay,
            ..fixture::peer(1, 2)
        })
        .unwrap();
        two.put_peer(espalier_dataplane_core::Peer {
            overlay,
            ..fixture::peer(2, 1)
        })
        .unwrap();
        for packet in [
            pod_packet("10.244.1.2", "10.244.2.3"),
            pod_packet("fd00:1::2", "fd00:2::3"),
        ] {
            let datagram = seal(&one.tables(), &packet).unwrap();
            assert!(!datagram.windows(4).any(|bytes| bytes == b"pod!"), "sealed");
            assert_eq!(judge(&two.tables(), &datagram), Ok(packet));
            assert_eq!(judge(&two.tables(), &datagram), Err(Reason::Replayed));
        }
    }
}

#[test]
fn a_datagram_goes_from_and_to_the_addresses_of_the_pair() {
    let (one, _) = hosts();
    let packet = pod_packet("10.244.1.2", "10.244.2.3");
    let sent = seal_large(&one.tables(), Offload::None, &packet).unwrap();
    let [(Batch { from, to, .. }, _)] = &sent[..] else {
        panic!("expected one batch, got {}", sent.len())
    };
    assert_eq!(from.to_string(), "192.0.2.1");
    assert_eq!(*to, To::Udp("192.0.2.2:4500".parse().unwrap()));
}

#[test]
fn the_overhead_is_what_the_pod_mtu_reserves() {
    let (one, _) = hosts();
    let mut packet = pod_packet("10.244.1.2", "10.244.2.3");
    packet.resize(1408, 0);
    packet[2..4].copy_from_slice(&1408_u16.to_be_bytes());
    let datagram = seal(&one.tables(), &packet).unwrap();
    assert_eq!(datagram.len() + 20 + 8, 1500, "outer IPv4 and UDP");
}

#[test]
fn s1_without_an_active_sa_nothing_is_sent() {
    let (one, _) = hosts();
    one.switch_outbound(&PeerId("node-2".into()), None).unwrap();
    let tables = one.tables();
    assert_eq!(
        seal(&tables, &pod_packet("10.244.1.2", "10.244.2.3")),
        Err(Reason::NoSa)
    );
    assert_eq!(
        seal(&tables, &pod_packet("10.244.1.2", "10.244.3.3")),
        Err(Reason::NoSa),
        "node-3 never had one"
    );
    assert_eq!(
        seal(&tables, &pod_packet("10.244.1.2", "10.244.9.3")),
        Err(Reason::NoPeer)
    );
    let stats: Vec<_> = one
        .peers()
        .map(|entry| entry.state.stats().no_sa_drops)
        .collect();
    assert_eq!(stats, [1, 1]);
}

#[test]
fn what_is_no_unicast_ip_packet_is_not_sent() {
    let (one, _) = hosts();
    let tables = one.tables();
    assert_eq!(seal(&tables, b"no IP"), Err(Reason::NotIp));
    assert_eq!(seal(&tables, &[]), Err(Reason::NotIp));
    assert_eq!(
        seal(&tables, &pod_packet("fe80::1", "ff02::2")),
        Err(Reason::Multicast)
    );
    let mut cut_short = pod_packet("10.244.1.2", "10.244.2.3");
    cut_short.pop();
    assert_eq!(seal(&tables, &cut_short), Err(Reason::NotIp));
}

#[test]
fn s2_clear_overlay_packets_are_no_esp() {
    let (_, two) = hosts();
    let clear = [
        &[0x13, 0x88, 0x12, 0xb5][..],
        &pod_packet("10.244.1.2", "10.244.2.3"),
    ]
    .concat();
    assert_eq!(judge(&two.tables(), &clear), Err(Reason::UnknownSpi));
}

#[test]
fn s5_a_peer_sources_its_own_pods_only() {
    assert!(from_one_to_two("10.244.1.2", "10.244.2.3").is_ok());
    for foreign in [
        "10.244.3.2",
        "10.244.2.7",
        "192.0.2.1",
        "192.0.2.2",
        "127.0.0.1",
        "8.8.8.8",
        "0.0.0.0",
    ] {
        assert_eq!(
            from_one_to_two(foreign, "10.244.2.3"),
            Err(Reason::ForeignSource),
            "{foreign}"
        );
    }
    for foreign in ["fd00:3::2", "fd00:2::7", "::1", "fe80::1", "::"] {
        assert_eq!(
            from_one_to_two(foreign, "fd00:2::3"),
            Err(Reason::ForeignSource),
            "{foreign}"
        );
    }
}

#[test]
fn s5_a_peer_reaches_neither_hosts_nor_other_peers_through_us() {
    let not_here = [
        "192.0.2.2",
        "192.0.2.1",
        "192.0.2.3",
        "10.244.3.3",
        "10.244.1.9",
        "8.8.8.8",
        "127.0.0.1",
        "224.0.0.5",
        "255.255.255.255",
        "169.254.169.254",
        "0.0.0.0",
    ];
    for destination in not_here {
        assert_eq!(
            from_one_to_two("10.244.1.2", destination),
            Err(Reason::ForeignDestination),
            "{destination}"
        );
    }
    for destination in [
        "fd00:3::3",
        "fd00:1::9",
        "::1",
        "ff02::1",
        "fe80::1",
        "::",
        "::ffff:127.0.0.1",
    ] {
        assert_eq!(
            from_one_to_two("fd00:1::2", destination),
            Err(Reason::ForeignDestination),
            "{destination}"
        );
    }
}

#[test]
fn s5_refusals_count_for_the_peer_and_the_sa() {
    let (mut one, two) = hosts();
    let tables = two.tables();
    // Host 1 takes node-3's pods for node-2's, so it sends there what host 2 must not let through.
    let mut wrong = fixture::peer(1, 2);
    wrong.pod_cidrs = vec!["10.99.0.0/24".parse().unwrap()];
    one.put_peer(wrong).unwrap();
    let datagram = seal(&one.tables(), &pod_packet("10.244.3.2", "10.99.0.3")).unwrap();
    assert_eq!(judge(&tables, &datagram), Err(Reason::ForeignSource));
    let (sa, entry) = &tables.inbound[&0x1200];
    assert_eq!(entry.state.stats().policy_drops, 1);
    assert_eq!(
        (
            sa.info(Instant::now()).drops,
            sa.info(Instant::now()).packets
        ),
        (1, 0)
    );
}

#[test]
fn the_first_authentic_packet_of_an_sa_is_reported_once() {
    let (one, two) = hosts();
    let (one, two) = (one.tables(), two.tables());
    let packet = pod_packet("10.244.1.2", "10.244.2.3");
    let mut forged = seal(&one, &packet).unwrap();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(
        rx::judge(&two, &mut forged, 0, Instant::now()),
        Verdict::Drop(Reason::BadIcv, None)
    );
    let mut events = (0..3).map(|_| {
        match rx::judge(&two, &mut seal(&one, &packet).unwrap(), 0, Instant::now()) {
            Verdict::Packet(_, event) => event,
            other => panic!("expected a packet, got {other:?}"),
        }
    });
    let first = Event::FirstPacket {
        peer: PeerId("node-1".into()),
        spi: Spi(0x1200),
    };
    assert_eq!(events.next().unwrap(), Some(first));
    assert!(events.all(|event| event.is_none()));
}

#[test]
fn both_inbound_sas_open_while_the_outbound_one_changes() {
    let (mut one, mut two) = hosts();
    let now = Instant::now();
    let packet = pod_packet("10.244.1.2", "10.244.2.3");
    let before = seal(&one.tables(), &packet).unwrap();
    two.install_sa(fixture::sa(1, Direction::In, 0x1201), now)
        .unwrap();
    one.install_sa(fixture::sa(2, Direction::Out, 0x1201), now)
        .unwrap();
    one.switch_outbound(&PeerId("node-2".into()), Some(Spi(0x1201)))
        .unwrap();
    let after = seal(&one.tables(), &packet).unwrap();
    assert_eq!(after[..4], 0x1201_u32.to_be_bytes());
    let tables = two.tables();
    assert_eq!(judge(&tables, &after), Ok(packet.clone()));
    assert_eq!(
        judge(&tables, &before),
        Ok(packet),
        "on its way when the other end switched"
    );
}

#[test]
fn other_datagrams_of_the_port_are_told_apart() {
    let (_, two) = hosts();
    let tables = two.tables();
    let judge = |datagram: &[u8]| {
        format!(
            "{:?}",
            rx::judge(&tables, &mut datagram.to_vec(), 0, Instant::now())
        )
    };
    assert_eq!(judge(&[0xff]), "Keepalive");
    assert_eq!(judge(b"\0\0\0\0ike"), "Ike");
    assert_eq!(judge(&[]), "Drop(Truncated, None)");
    assert_eq!(judge(&[0, 0, 0, 9, 0, 0, 0, 1]), "Drop(UnknownSpi, None)");
    assert_eq!(judge(&[0, 0, 0x12, 0, 0, 0, 0, 1]), "Drop(Truncated, None)");
}

#[test]
fn an_empty_data_plane_drops_everything() {
    let tables = Control::new(Ways::all(4500)).tables();
    assert_eq!(
        seal(&tables, &pod_packet("10.244.1.2", "10.244.2.3")),
        Err(Reason::NoPeer)
    );
    assert_eq!(judge(&tables, &[1; 64]), Err(Reason::UnknownSpi));
}

/// A TCP packet that stands for `payload` bytes in segments of 1,000, as a device gives it.
pub(crate) fn large_tcp(payload: usize) -> Vec<u8> {
    let mut packet = pod_packet("10.244.1.2", "10.244.2.3");
    packet.truncate(20);
    packet[9] = 6;
    packet.extend([0x13, 0x88, 0, 7, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0]);
    packet.extend([0; 4]);
    packet.extend((0..payload).map(|byte| byte as u8 ^ 0x5a));
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    let pseudo = checksum::fold(checksum::sum(&packet[12..20]) + 6 + u64::from(len - 20));
    packet[36..38].copy_from_slice(&pseudo.to_be_bytes());
    let header = virtio::Header {
        needs_checksum: true,
        gso: Some(virtio::Gso::Tcp4),
        header_len: 40,
        segment: 1000,
        checksum_start: 20,
        checksum_offset: 16,
    };
    [&header.emit()[..], &packet].concat()
}

#[test]
fn a_large_packet_becomes_batches_that_a_system_call_takes() {
    let (one, two) = hosts();
    let (tables, opening) = (one.tables(), two.tables());
    let bytes = large_tcp(64_300);
    let sent = seal_large(&tables, Offload::Tcp, &bytes).unwrap();
    let sizes: Vec<_> = sent.iter().map(|(_, datagrams)| datagrams.len()).collect();
    assert_eq!(sizes, [59, 6], "as many as fit 65,507 bytes");
    let datagrams: Vec<_> = sent
        .into_iter()
        .flat_map(|(_, datagrams)| datagrams)
        .collect();
    let large = Large::parse(Offload::Tcp, &bytes).unwrap();
    for (index, datagram) in datagrams.iter().enumerate() {
        let mut expected = vec![0; large.len(index)];
        large.write(index, &mut expected).unwrap();
        assert_eq!(judge(&opening, datagram), Ok(expected), "segment {index}");
        assert_eq!(judge(&opening, datagram), Err(Reason::Replayed));
    }
    let sealed = one.sas(Instant::now());
    let sealed = sealed
        .iter()
        .find(|sa| sa.direction == Direction::Out)
        .unwrap();
    assert_eq!(
        (sealed.packets, sealed.bytes),
        (65, 64_300 + 65 * (40 + 30))
    );
}

#[test]
fn all_packets_of_a_large_one_are_lost_together_and_all_are_counted() {
    let (one, _) = hosts();
    one.switch_outbound(&PeerId("node-2".into()), None).unwrap();
    let lost = seal_large(&one.tables(), Offload::Tcp, &large_tcp(2500));
    let (reason, packets) = (Reason::NoSa, 3);
    assert_eq!(lost.unwrap_err(), Lost { reason, packets });
    let stats = one.peers().next().unwrap().state.stats();
    assert_eq!(stats.no_sa_drops, 3);
}

#[test]
fn only_datagrams_of_one_size_peer_and_mark_are_sent_together() {
    let (one, _) = hosts();
    let tables = one.tables();
    let (mut outbox, mut sizes) = (Outbox::new(), Vec::new());
    let mut seal = |packet: &[u8]| {
        let large = Large::parse(Offload::None, packet).unwrap();
        let mut sent = Vec::new();
        let send = |batch: Batch<'_>| sent.push((batch.ecn, batch.count()));
        tx::seal(&tables, &large, &mut outbox, Instant::now(), send).unwrap();
        sizes.extend(sent);
    };
    let (small, mut long) = (
        pod_packet("10.244.1.2", "10.244.2.3"),
        pod_packet("10.244.1.2", "10.244.2.3"),
    );
    long.resize(100, 0);
    long[3] = 100;
    let mut capable = small.clone();
    ecn::set(&mut capable, ecn::ECT_0);
    for packet in [&small, &small, &long, &small, &small, &capable] {
        seal(packet);
    }
    sizes.extend(outbox.take().map(|batch| (batch.ecn, batch.count())));
    // A shorter one is the last of its batch.
    let marks = [ecn::ECT_1, ecn::ECT_1, ecn::ECT_1, ecn::ECT_0];
    assert_eq!(
        sizes,
        marks.into_iter().zip([2, 2, 1, 1]).collect::<Vec<_>>()
    );
    assert!(outbox.take().is_none());
}

#[test]
fn congestion_marks_go_in_and_come_out() {
    let (one, two) = hosts();
    let mut packet = pod_packet("10.244.1.2", "10.244.2.3");
    packet[10..12].fill(0);
    let sum = checksum::field(checksum::sum(&packet[..20]));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    ecn::set(&mut packet, ecn::ECT_0);
    let sent = seal_large(&one.tables(), Offload::None, &packet).unwrap();
    assert_eq!(sent[0].0.ecn, ecn::ECT_0);
    let arrived = judge_marked(&two.tables(), &sent[0].1[0], ecn::CE).unwrap();
    assert_eq!(ecn::of(&arrived), ecn::CE);
    assert_eq!(checksum::fold(checksum::sum(&arrived[..20])), 0xffff);
    ecn::set(&mut packet, ecn::NOT_ECT);
    let datagram = seal(&one.tables(), &packet).unwrap();
    let refused = judge_marked(&two.tables(), &datagram, ecn::CE);
    assert_eq!(refused, Err(Reason::Congested));
}

proptest::proptest! {
    #[test]
    fn s6_no_datagram_panics_or_gets_through(mut datagram in proptest::collection::vec(proptest::num::u8::ANY, 0..200), ours in proptest::bool::ANY) {
        let (_, two) = hosts();
        if ours && datagram.len() >= 4 {
            datagram[..4].copy_from_slice(&0x1200_u32.to_be_bytes());
        }
        let verdict = rx::judge(&two.tables(), &mut datagram, 0, Instant::now());
        proptest::prop_assert!(!matches!(verdict, Verdict::Packet(..)));
    }
}

#[test]
fn an_sa_whose_time_is_over_seals_and_opens_nothing() {
    let packet = pod_packet("10.244.1.2", "10.244.2.3");
    let now = Instant::now();
    let sealed = |lived: u64| {
        let (mut one, _) = hosts();
        let made = now.checked_sub(Duration::from_secs(lived)).unwrap();
        let mut sa = fixture::sa(2, Direction::Out, 0x1300);
        sa.hard_seconds = 10;
        one.install_sa(sa, made).unwrap();
        one.switch_outbound(&PeerId("node-2".into()), Some(Spi(0x1300)))
            .unwrap();
        seal(&one.tables(), &packet)
    };
    let datagram = sealed(5).unwrap();
    assert_eq!(sealed(10), Err(Reason::Expired));
    for (lived, expected) in [(5, Ok(packet.clone())), (10, Err(Reason::Expired))] {
        let (_, mut two) = hosts();
        let made = now.checked_sub(Duration::from_secs(lived)).unwrap();
        let mut sa = fixture::sa(1, Direction::In, 0x1300);
        sa.hard_seconds = 10;
        two.install_sa(sa, made).unwrap();
        assert_eq!(judge(&two.tables(), &datagram), expected);
    }
}
