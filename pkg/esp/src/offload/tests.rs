//! Packets go in, large ones come out, and taken apart they are the packets that went in.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::wire::virtio::{self, Gso};
use crate::wire::{checksum, ip};

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;
const CWR: u8 = 0x80;

/// What a test's packet is made of.
#[derive(Clone, Debug)]
struct Plan {
    v6: bool,
    tcp: bool,
    flow: u8,
    id: u16,
    sequence: u32,
    flags: u8,
    options: usize,
    payload: Vec<u8>,
}

impl Plan {
    fn tcp(sequence: u32, payload: &[u8]) -> Self {
        Self {
            v6: false,
            tcp: true,
            flow: 1,
            id: 0,
            sequence,
            flags: ACK,
            options: 12,
            payload: payload.to_vec(),
        }
    }

    fn addresses(&self) -> (IpAddr, IpAddr) {
        if self.v6 {
            ("fd00:1::2".parse().unwrap(), "fd00:2::3".parse().unwrap())
        } else {
            ([10, 244, 1, 2].into(), [10, 244, 2, 3].into())
        }
    }

    fn transport(&self) -> Vec<u8> {
        let ports = [0x13, 0x88, 0, self.flow];
        if self.tcp {
            let own = (20 + self.options) as u8;
            let head = [&ports[..], &self.sequence.to_be_bytes(), &[0, 0, 0, 9]].concat();
            let rest = [own << 2, self.flags, 1, 0, 0, 0, 0, 0];
            [&head[..], &rest, &vec![1; self.options], &self.payload].concat()
        } else {
            let len = (8 + self.payload.len()) as u16;
            [&ports[..], &len.to_be_bytes(), &[0, 0], &self.payload].concat()
        }
    }

    fn packet(&self) -> Vec<u8> {
        let (source, destination) = self.addresses();
        let mut transport = self.transport();
        let protocol = if self.tcp { 6 } else { 17 };
        let pseudo = checksum::pseudo_header(source, destination, protocol, transport.len());
        let field = if self.tcp { 16 } else { 6 };
        let sum = checksum::field(pseudo + checksum::sum(&transport));
        transport[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        let mut header = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let len = (20 + transport.len()) as u16;
                let mut header = vec![0x45, 0x02];
                header.extend(len.to_be_bytes());
                header.extend(self.id.to_be_bytes());
                header.extend([0, 0, 63, protocol, 0, 0]);
                header.extend([source.octets(), destination.octets()].concat());
                let sum = checksum::field(checksum::sum(&header));
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let len = (transport.len() as u16).to_be_bytes();
                let header = [0x60, 0x20, 0, 7, len[0], len[1], protocol, 63];
                [&header[..], &source.octets(), &destination.octets()].concat()
            }
            _ => unreachable!("both are of one family"),
        };
        header.extend(transport);
        header
    }
}

/// Packets in one buffer, each behind room for its header, as a receiver has them.
fn laid_out(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<(usize, usize)>) {
    let (mut buffer, mut places) = (Vec::new(), Vec::new());
    for packet in packets {
        buffer.extend([0xee; virtio::LEN + 3]);
        places.push((buffer.len(), packet.len()));
        buffer.extend(packet);
    }
    (buffer, places)
}

/// What the device is given for these packets, and how many each stands for.
fn coalesced(offload: Offload, packets: &[Vec<u8>]) -> Vec<(usize, Vec<u8>)> {
    let (mut buffer, places) = laid_out(packets);
    let mut coalescer = Coalescer::new(offload);
    for (at, len) in places {
        assert!(coalescer.push(&buffer, at, len));
    }
    let mut out = Vec::new();
    coalescer.write_out(&mut buffer, |parts, written| {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        assert_eq!(written.bytes, bytes.len() - offload.headroom());
        out.push((written.packets, bytes));
    });
    assert_eq!(coalescer.waiting(), 0);
    out
}

/// The packets that the device's ones stand for.
fn taken_apart(offload: Offload, given: &[(usize, Vec<u8>)]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for (packets, bytes) in given {
        let large = Large::parse(offload, bytes).unwrap();
        assert_eq!(large.count(), *packets);
        for index in 0..large.count() {
            let mut packet = vec![0; large.len(index)];
            assert_eq!(large.write(index, &mut packet), Some(packet.len()));
            out.push(packet);
        }
    }
    out
}

fn counts(packets: &[Vec<u8>]) -> Vec<usize> {
    let given = coalesced(Offload::TcpUdp, packets);
    given.iter().map(|(count, _)| *count).collect()
}

fn plans(count: usize, of: impl Fn(usize) -> Plan) -> Vec<Vec<u8>> {
    (0..count).map(|index| of(index).packet()).collect()
}

/// `count` segments of 100 bytes.
fn stream(count: usize) -> Vec<Plan> {
    let plan = |index: usize| Plan {
        id: index as u16,
        ..Plan::tcp(
            (u32::MAX - 250).wrapping_add(100 * index as u32),
            &[index as u8; 100],
        )
    };
    (0..count).map(plan).collect()
}

fn packets(plans: &[Plan]) -> Vec<Vec<u8>> {
    plans.iter().map(Plan::packet).collect()
}

#[test]
fn segments_become_one_packet_and_the_same_segments_again() {
    for v6 in [false, true] {
        let mut plans = stream(9);
        plans.iter_mut().for_each(|plan| plan.v6 = v6);
        plans[8].flags = ACK | PSH;
        plans[8].payload.truncate(7);
        let packets = packets(&plans);
        let given = coalesced(Offload::Tcp, &packets);
        let [(9, one)] = &given[..] else {
            panic!("expected one packet for nine, got {given:?}")
        };
        let (header, packet) = virtio::Header::parse(one).unwrap();
        let gso = if v6 { Gso::Tcp6 } else { Gso::Tcp4 };
        assert_eq!((header.gso, header.segment), (Some(gso), 100));
        assert!(header.needs_checksum);
        assert_eq!(ip::Packet::parse(packet).unwrap().bytes.len(), packet.len());
        assert_eq!(taken_apart(Offload::Tcp, &given), packets);
    }
}

#[test]
fn datagrams_become_one_packet_where_the_device_knows_it() {
    let plan = |index: usize| Plan {
        tcp: false,
        options: 0,
        id: index as u16,
        ..Plan::tcp(0, &[index as u8; 33])
    };
    let packets = plans(70, plan);
    let given = coalesced(Offload::TcpUdp, &packets);
    let counts: Vec<_> = given.iter().map(|(count, _)| *count).collect();
    assert_eq!(counts, [64, 6], "as many as a kernel takes");
    assert_eq!(taken_apart(Offload::TcpUdp, &given), packets);
    let alone = coalesced(Offload::Tcp, &packets);
    assert_eq!(alone.len(), 70);
    assert_eq!(taken_apart(Offload::Tcp, &alone), packets);
}

#[test]
fn without_offloads_packets_pass_as_they_are() {
    let packets = packets(&stream(4));
    let given = coalesced(Offload::None, &packets);
    let bytes: Vec<_> = given.into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(bytes, packets);
    let large = Large::parse(Offload::None, &packets[0]).unwrap();
    assert_eq!((large.bytes(), large.count()), (&packets[0][..], 1));
}

#[test]
fn what_does_not_continue_a_packet_begins_another() {
    let changed = |change: &dyn Fn(&mut Plan)| {
        let mut plans = stream(3);
        change(&mut plans[1]);
        counts(&packets(&plans))
    };
    assert_eq!(changed(&|_| {}), [3]);
    assert_eq!(changed(&|plan| plan.sequence += 1), [1, 1, 1]);
    assert_eq!(changed(&|plan| plan.flags = ACK | PSH), [2, 1]);
    assert_eq!(changed(&|plan| plan.flags = ACK | FIN), [1, 1, 1]);
    assert_eq!(changed(&|plan| plan.flags = ACK | 0x40), [1, 1, 1], "ECE");
    assert_eq!(changed(&|plan| plan.options = 16), [1, 1, 1]);
    assert_eq!(changed(&|plan| plan.payload.truncate(99)), [2, 1]);
    assert_eq!(changed(&|plan| plan.payload.push(1)), [1, 1, 1]);
    assert_eq!(changed(&|plan| plan.payload.clear()), [1, 1, 1], "an ACK");
    assert_eq!(changed(&|plan| plan.id += 1), [1, 1, 1]);
    assert_eq!(changed(&|plan| plan.flow = 2), [1, 1, 1], "a hole");
}

#[test]
fn every_header_byte_that_must_be_the_same_is_compared() {
    let joined = |at: usize, mask: u8| {
        let mut packets = packets(&stream(2));
        packets[1][at] ^= mask;
        let sum = |packet: &mut [u8], from: usize, at: usize, more: u64| {
            packet[at..at + 2].fill(0);
            let sum = checksum::field(more + checksum::sum(&packet[from..]));
            packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        };
        let pseudo = checksum::sum(&packets[1][12..20]) + 6 + packets[1].len() as u64 - 20;
        sum(&mut packets[1], 20, 36, pseudo);
        sum(&mut packets[1][..20], 0, 10, 0);
        counts(&packets) == [2]
    };
    assert!(joined(60, 0xff), "payload");
    // Type of service with ECN, flags, time to live, addresses, ports, acknowledgement, window, urgent pointer, options.
    for at in [1, 6, 8, 12, 19, 20, 23, 28, 31, 34, 35, 38, 39, 40, 51] {
        assert!(!joined(at, 1), "byte {at}");
    }
}

#[test]
fn identifications_matter_only_where_packets_may_be_fragmented() {
    let mut packets = packets(&stream(2));
    for packet in &mut packets {
        packet[6] |= 0x40;
        packet[4..6].copy_from_slice(&[7, 7]);
        packet[10..12].fill(0);
        let sum = checksum::field(checksum::sum(&packet[..20]));
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    assert_eq!(counts(&packets), [2]);
}

#[test]
fn damaged_packets_go_on_alone_as_they_are() {
    for (victim, expected) in [(0, vec![1, 2]), (1, vec![1, 1, 1]), (2, vec![2, 1])] {
        for at in [11, 36, 60] {
            let mut packets = packets(&stream(3));
            packets[victim][at] ^= 0x5a;
            let given = coalesced(Offload::TcpUdp, &packets);
            let counts: Vec<_> = given.iter().map(|(count, _)| *count).collect();
            assert_eq!(counts, expected, "packet {victim}, byte {at}");
            assert_eq!(taken_apart(Offload::TcpUdp, &given), packets);
        }
    }
}

#[test]
fn fragments_and_strangers_keep_everything_in_order() {
    let mut plans = stream(4);
    plans[2].flow = 2;
    plans[3].sequence = plans[2].sequence;
    let mut packets = packets(&plans);
    packets[2][6] = 0x20;
    let given = coalesced(Offload::TcpUdp, &packets);
    let counts: Vec<_> = given.iter().map(|(count, _)| *count).collect();
    assert_eq!(counts, [2, 1, 1], "the fragment may be of that flow");
    assert_eq!(taken_apart(Offload::TcpUdp, &given), packets);
}

#[test]
fn a_packet_without_room_in_front_is_not_taken() {
    let packet = Plan::tcp(1, b"x").packet();
    let mut coalescer = Coalescer::new(Offload::Tcp);
    assert!(!coalescer.push(&packet, 0, packet.len()));
    assert!(!coalescer.push(&packet, 10, packet.len()));
    assert_eq!(coalescer.waiting(), 0);
}

/// A large packet as a kernel gives it.
fn large(v6: bool, flags: u8, payload: usize) -> Vec<u8> {
    let plan = Plan {
        v6,
        flags,
        id: 0xfffe,
        ..Plan::tcp(u32::MAX - 1000, &vec![0x5a; payload])
    };
    let (mut packet, start) = (plan.packet(), if v6 { 40 } else { 20 });
    let (source, destination) = plan.addresses();
    let len = packet.len() - start;
    let pseudo = checksum::fold(checksum::pseudo_header(source, destination, 6, len));
    packet[start + 16..start + 18].copy_from_slice(&pseudo.to_be_bytes());
    let header = virtio::Header {
        needs_checksum: true,
        gso: Some(if v6 { Gso::Tcp6 } else { Gso::Tcp4 }),
        header_len: start as u16 + 32,
        segment: 1000,
        checksum_start: start as u16,
        checksum_offset: 16,
    };
    [&header.emit()[..], &packet].concat()
}

#[test]
fn flags_are_on_the_segments_that_they_belong_to() {
    for v6 in [false, true] {
        let bytes = large(v6, ACK | PSH | FIN | CWR, 2500);
        let packets = taken_apart(Offload::Tcp, &[(3, bytes)]);
        let start = if v6 { 40 } else { 20 };
        let flags: Vec<_> = packets.iter().map(|packet| packet[start + 13]).collect();
        assert_eq!(flags, [ACK | CWR, ACK, ACK | PSH | FIN]);
        for (index, packet) in packets.iter().enumerate() {
            let expected = Plan {
                v6,
                flags: flags[index],
                id: 0xfffe_u16.wrapping_add(index as u16),
                ..Plan::tcp(
                    (u32::MAX - 1000).wrapping_add(1000 * index as u32),
                    &vec![0x5a; if index < 2 { 1000 } else { 500 }],
                )
            };
            assert_eq!(*packet, expected.packet(), "segment {index}");
        }
    }
}

#[test]
fn an_unfinished_checksum_is_finished() {
    let whole = Plan::tcp(1, b"some payload").packet();
    let mut packet = whole.clone();
    let pseudo = checksum::fold(checksum::sum(&packet[12..20]) + 6 + packet.len() as u64 - 20);
    packet[36..38].copy_from_slice(&pseudo.to_be_bytes());
    let header = virtio::Header {
        needs_checksum: true,
        checksum_start: 20,
        checksum_offset: 16,
        ..virtio::Header::default()
    };
    let given = [&header.emit()[..], &packet].concat();
    assert_eq!(taken_apart(Offload::Tcp, &[(1, given)]), [whole]);
}

#[test]
fn headers_that_do_not_fit_the_packet_are_refused() {
    let good = large(false, ACK, 2500);
    assert!(Large::parse(Offload::Tcp, &good).is_ok());
    for (at, value) in [(0, 0), (1, 3), (6, 24), (8, 6), (42, 0x10), (42, 0xf0)] {
        let mut bad = good.clone();
        bad[at] = value;
        let refused = Large::parse(Offload::Tcp, &bad);
        let odd = value == 0xf0 && refused.is_ok_and(|large| large.count() == 3);
        assert!(
            odd || Large::parse(Offload::Tcp, &bad).is_err(),
            "byte {at}"
        );
    }
    let mut no_segment = good.clone();
    no_segment[4..6].fill(0);
    assert!(Large::parse(Offload::Tcp, &no_segment).is_err());
    for cut in 0..good.len() {
        assert!(
            Large::parse(Offload::Tcp, &good[..cut]).is_err(),
            "{cut} bytes"
        );
    }
}

fn any_plan() -> impl Strategy<Value = (u8, bool, usize, bool)> {
    // Flow, whether its next segment is left out, payload, PSH.
    (
        0u8..4,
        prop::bool::weighted(0.1),
        prop_oneof![Just(200usize), 0usize..300],
        prop::bool::weighted(0.1),
    )
}

proptest! {
    #[test]
    fn together_and_apart_they_are_the_same(steps in prop::collection::vec(any_plan(), 1..150), damage in prop::collection::vec((0usize..150, 0usize..200), 0..6)) {
        let mut next = [7u32; 4];
        let mut packets: Vec<_> = steps.iter().enumerate().map(|(number, (flow, skip, len, push))| {
            let sequence = &mut next[usize::from(*flow)];
            *sequence = sequence.wrapping_add(if *skip { 50 } else { 0 });
            let plan = Plan {
                v6: flow % 2 == 1,
                tcp: *flow < 3,
                flow: *flow,
                id: number as u16,
                sequence: *sequence,
                flags: if *push { ACK | PSH } else { ACK },
                options: 12,
                payload: (0..*len).map(|byte| byte as u8 ^ number as u8).collect(),
            };
            *sequence = sequence.wrapping_add(*len as u32);
            plan.packet()
        }).collect();
        for (victim, at) in damage {
            let victim = victim % packets.len();
            let at = at % packets[victim].len();
            packets[victim][at] ^= 0x81;
        }
        let given = coalesced(Offload::TcpUdp, &packets);
        let apart = taken_apart(Offload::TcpUdp, &given);
        prop_assert_eq!(apart.len(), packets.len());
        // Each flow in its order; what is damaged beyond that is some other flow then.
        let flow = |packet: &[u8]| ip::Packet::parse(packet).map(|packet| packet.flow_hash()).unwrap_or_default();
        let mut hashes: Vec<_> = packets.iter().map(|packet| flow(packet)).collect();
        hashes.sort_unstable();
        hashes.dedup();
        for hash in hashes {
            let of = |all: &[Vec<u8>]| all.iter().filter(|packet| flow(packet) == hash).cloned().collect::<Vec<_>>();
            prop_assert_eq!(of(&apart), of(&packets));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), v6 in any::<bool>()) {
        if let [_, gso, _, _, _, _, start, high, _, _, first, ..] = &mut bytes[..] {
            *gso &= 5;
            *high = 0;
            *start &= 0x3f;
            *first = if v6 { 0x60 } else { 0x45 };
        }
        if let Ok(large) = Large::parse(Offload::TcpUdp, &bytes) {
            let mut out = vec![0; 300];
            for index in 0..large.count() {
                prop_assert_eq!(large.write(index, &mut out), Some(large.len(index)));
            }
        }
        let mut coalescer = Coalescer::new(Offload::TcpUdp);
        for at in 0..bytes.len() {
            let _ = coalescer.push(&bytes, at, bytes.len() - at);
        }
        let mut packets = 0;
        coalescer.write_out(&mut bytes, |_, written| packets += written.packets);
        prop_assert!(packets <= 200);
    }
}
