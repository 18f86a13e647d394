//! ESP packets and what is inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use espalier_esp::aead::{AwsLc, Portable};
use espalier_esp::framing::{Framing, vxlan::Vxlan};
use espalier_esp::offload::{Coalescer, Large, Offload};
use espalier_esp::wire::{flow::Flow, ip};
use espalier_esp::{Algorithm, HEADER_LEN, InboundSa, KeyError, OutboundSa, PROTOCOL, next_header};

const SPI: u32 = 0xc0ff_ee01;
const MATERIAL: [u8; 36] = [0x5a; 36];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FRAMINGS: usize = 3;

/// Bytes to open as an ESP packet, with AES-GCM by both implementations, which must agree; then the same bytes sealed as a payload, which must come
/// back once and not twice.
pub fn esp_open(data: &[u8]) {
    for (algorithm, material) in [
        (Algorithm::Aes256Gcm16, &MATERIAL[..]),
        (Algorithm::Aes128Gcm16, &MATERIAL[..20]),
        (Algorithm::ChaCha20Poly1305, &MATERIAL[..]),
    ] {
        for esn in [false, true] {
            open(algorithm, material, esn, data);
        }
    }
    seal_and_open(data);
}

/// Bytes as a raw socket of IPv4 gives them: where ESP stands behind the header, and ESP opened there; then the bytes as ESP behind a header
/// with options, where they must be found again.
pub fn esp_raw(data: &[u8]) {
    if let Ok(place) = ip::payload_v4(data, PROTOCOL) {
        assert!(place.start >= 20 && place.start.is_multiple_of(4));
        let esp = data.get(place).expect("a place in the packet");
        open(Algorithm::Aes256Gcm16, &MATERIAL, true, esp);
    }
    let options = data.first().map_or(0, |first| usize::from(first % 11) * 4);
    let mut packet = vec![1; 20 + options];
    let length = packet.len() + data.len();
    let Ok(length) = u16::try_from(length) else {
        return;
    };
    packet[0] = 0x40 | (5 + options / 4) as u8;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[6..8].fill(0);
    packet[9] = PROTOCOL;
    packet.extend(data);
    let place = ip::payload_v4(&packet, PROTOCOL).expect("a packet of ESP");
    assert_eq!(packet.get(place), Some(data));
}

/// The first byte is the ESP next header, the rest an opened payload in every framing; then the rest as a pod packet, framed
/// and parsed again.
pub fn esp_frame(data: &[u8]) {
    let Some((next_header, payload)) = data.split_first() else {
        return;
    };
    read_flow(payload);
    for framing in framings() {
        if let Ok(packet) = framing.parse(*next_header, payload) {
            assert!(packet.bytes.len() <= payload.len());
            assert_eq!(packet.source.is_ipv4(), packet.destination.is_ipv4());
        }
        frame_and_parse(&framing, payload);
    }
}

fn read_flow(packet: &[u8]) {
    let Some(flow) = Flow::read(packet) else {
        return;
    };
    let back = Flow {
        source: flow.destination,
        destination: flow.source,
        ..flow
    };
    assert_eq!(flow.both_ways(), back.both_ways());
}

fn inbound<A: espalier_esp::aead::Aead>(
    algorithm: Algorithm,
    material: &[u8],
    esn: bool,
) -> Result<InboundSa<A>, KeyError> {
    InboundSa::new(SPI, algorithm, material, esn, 64)
}

/// Opens with aws-lc, and with the portable implementation of what that one has.
fn open(algorithm: Algorithm, material: &[u8], esn: bool, data: &[u8]) {
    let mut packet = data.to_vec();
    let mut aws = inbound::<AwsLc>(algorithm, material, esn).expect("a known key length");
    let opened = aws.open(&mut packet);
    if let Ok(mut portable) = inbound::<Portable>(algorithm, material, esn) {
        assert_eq!(portable.open(&mut data.to_vec()), opened);
    }
    if let Ok(opened) = opened {
        for framing in framings() {
            let _ = framing.parse(opened.next_header, opened.payload);
        }
    }
}

fn seal_and_open(data: &[u8]) {
    let outbound = OutboundSa::<AwsLc>::new(SPI, Algorithm::Aes256Gcm16, &MATERIAL, true)
        .expect("material of the right length");
    let mut packet = vec![0; OutboundSa::<AwsLc>::sealed_len(data.len())];
    let sealed = outbound.seal(next_header::UDP, &[], data, &mut packet);
    assert_eq!(sealed, Ok(packet.len()));
    let mut sa =
        inbound::<AwsLc>(Algorithm::Aes256Gcm16, &MATERIAL, true).expect("a known key length");
    let opened = sa
        .open(&mut packet.clone())
        .map(|opened| opened.payload.to_vec());
    assert_eq!(opened.as_deref(), Ok(data));
    assert!(sa.open(&mut packet).is_err(), "a replay is refused");
}

fn framings() -> [Framing; FRAMINGS] {
    let (v4, v6) = (
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    );
    let vxlan = |address| Framing::Vxlan(Vxlan::new(4789, 4789, MAC, MAC, (address, address)));
    [vxlan(v4), vxlan(v6), Framing::Ipip]
}

fn frame_and_parse(framing: &Framing, packet: &[u8]) {
    let mut buffer = [&vec![0; framing.headroom()], packet].concat();
    let Ok(next_header) = framing.emit(&mut buffer) else {
        return;
    };
    let parsed = framing
        .parse(next_header, &buffer)
        .expect("what was framed parses");
    assert_eq!(parsed.bytes, packet);
}

/// What a TUN device gives, with a virtio header: taken apart, sealed, opened, and put together again, it is the same packets.
pub fn esp_split(data: &[u8]) {
    for offload in [Offload::None, Offload::Tcp, Offload::TcpUdp] {
        let Ok(large) = Large::parse(offload, data) else {
            continue;
        };
        // A kernel makes no segments that small; they would only take time here.
        if large.count() > 2000 {
            continue;
        }
        let packets: Vec<Vec<u8>> = (0..large.count())
            .map(|index| {
                let mut packet = vec![0; large.len(index)];
                assert_eq!(large.write(index, &mut packet), Some(packet.len()));
                assert_eq!(Flow::read(&packet), Flow::read(large.bytes()));
                packet
            })
            .collect();
        let total: usize = packets.iter().map(Vec::len).sum();
        assert!(total >= large.bytes().len());
        join(offload, &packets);
    }
}

/// Packets, each behind its length in two bytes, that are joined and taken apart again.
pub fn esp_join(data: &[u8]) {
    let (mut packets, mut rest) = (Vec::new(), data);
    while let [high, low, tail @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (packet, after) = tail.split_at(length.min(tail.len()));
        packets.push(packet.to_vec());
        rest = after;
    }
    for offload in [Offload::None, Offload::Tcp, Offload::TcpUdp] {
        join(offload, &packets);
    }
}

/// Joins packets, and takes what comes out apart: every packet must come out once and as it was, and those of one flow in their order.
fn join(offload: Offload, packets: &[Vec<u8>]) {
    let (mut buffer, mut places) = (Vec::new(), Vec::new());
    for packet in packets {
        buffer.extend([0; HEADER_LEN]);
        places.push((buffer.len(), packet.len()));
        buffer.extend(packet);
    }
    let mut coalescer = Coalescer::new(offload);
    for (at, len) in places {
        assert!(coalescer.push(&buffer, at, len), "there is room in front");
    }
    let mut out = Vec::new();
    coalescer.write_out(&mut buffer, |parts, written| {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        let large = Large::parse(offload, &bytes).expect("what was joined can be taken apart");
        assert_eq!(large.count(), written.packets);
        for index in 0..large.count() {
            let mut packet = vec![0; large.len(index)];
            large.write(index, &mut packet).expect("its own length");
            out.push(packet);
        }
    });
    assert_eq!(out.len(), packets.len());
    same_flows(packets, &out);
}

fn same_flows(before: &[Vec<u8>], after: &[Vec<u8>]) {
    let flow = |packet: &Vec<u8>| ip::Packet::parse(packet).map(|packet| packet.flow_hash());
    let sorted = |packets: &[Vec<u8>]| {
        let mut all: Vec<_> = packets
            .iter()
            .map(|packet| (flow(packet).ok(), without_free_fields(packet)))
            .collect();
        // A stable sort: within a flow the order stays.
        all.sort_by_key(|(flow, _)| *flow);
        all
    };
    assert_eq!(sorted(before), sorted(after));
}

/// The identification of a packet that is never fragmented means nothing, and is not kept (RFC 6864 §4.1). Nor is the one of the two
/// forms of zero that a checksum has.
fn without_free_fields(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let (start, protocol) = match packet[..] {
        [0x45, ..] if packet.len() >= 20 => (20, packet[9]),
        [first, ..] if first >> 4 == 6 && packet.len() >= 40 => (40, packet[6]),
        _ => return packet,
    };
    if start == 20 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    let field = if protocol == 6 { 16 } else { 6 };
    let fields = [(start == 20).then_some(10), Some(start + field)];
    for at in fields.into_iter().flatten() {
        if let Some(checksum) = packet.get_mut(at..at + 2)
            && checksum == [0xff, 0xff]
        {
            checksum.fill(0);
        }
    }
    packet
}
