//! ESP packets and opened payloads.

use espalier_esp::aead::AwsLc;
use espalier_esp::wire::checksum;
use espalier_esp::wire::virtio::{Gso, Header};
use espalier_esp::{Algorithm, OutboundSa};

use crate::bytes::{cut, with};
use crate::{Seed, seeds as of};

const SPI: [u8; 4] = [0xc0, 0xff, 0xee, 1];

pub(crate) fn seeds() -> Vec<Seed> {
    [raw(), packets(), payloads(), device(), flows()]
        .into_iter()
        .flatten()
        .collect()
}

/// An IPv4 packet between two pods.
pub(crate) fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let head = [
        0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, protocol, 0, 0,
    ];
    [&head[..], &[10, 244, 1, 2, 10, 244, 2, 2], payload].concat()
}

/// An IPv6 packet between two pods.
pub(crate) fn ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let address = |last| [&[0xfd, 0, 0, 0x10][..], &[0; 11], &[last]].concat();
    let head = [0x60, 0, 0, 0, length[0], length[1], next_header, 64];
    [&head[..], &address(1), &address(2), payload].concat()
}

/// UDP, VXLAN and Ethernet around an IP packet.
pub(crate) fn vxlan(ether_type: u16, packet: &[u8]) -> Vec<u8> {
    let length = u16::try_from(30 + packet.len()).unwrap().to_be_bytes();
    let udp = [0xc0, 1, 0x12, 0xb5, length[0], length[1], 0, 0];
    let header = [8, 0, 0, 0, 0, 0x12, 0xb5, 0];
    let frame = [&[2; 12][..], &ether_type.to_be_bytes()].concat();
    [&udp[..], &header, &frame, packet].concat()
}

/// A packet of the target's key.
fn sealed(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let spi = u32::from_be_bytes(SPI);
    let sa = OutboundSa::<AwsLc>::new(spi, Algorithm::Aes256Gcm16, &[0x5a; 36], true).unwrap();
    let mut packet = vec![0; OutboundSa::<AwsLc>::sealed_len(payload.len())];
    sa.seal(next_header, &[], payload, &mut packet).unwrap();
    packet
}

/// What a raw socket of IPv4 gives.
fn raw() -> Vec<Seed> {
    let esp = sealed(17, &vxlan(0x0800, &ipv4(17, b"datagram")));
    let whole = ipv4(50, &esp);
    let mut options = whole.clone();
    options.splice(20..20, [1; 12]);
    let length = u16::try_from(options.len()).unwrap().to_be_bytes();
    let options = with(&with(&options, 0, &[0x48]), 2, &length);
    of(
        "esp_raw",
        [
            ("esp", whole.clone()),
            ("options", options.clone()),
            ("length-below-options", with(&options, 2, &[0, 31])),
            ("longest-header", with(&whole, 0, &[0x4f])),
            ("header-length", with(&whole, 0, &[0x44])),
            ("first-fragment", with(&whole, 6, &[0x20, 0])),
            ("later-fragment", with(&whole, 6, &[0, 9])),
            ("padded", [&whole[..], &[0; 7]].concat()),
            ("total-length", with(&whole, 2, &[0xff, 0xff])),
            ("not-authentic", with(&whole, 60, &[0xff])),
            ("other-protocol", ipv4(51, &esp)),
            ("ipv6", ipv6(50, &esp)),
            ("no-payload", ipv4(50, &[])),
            ("cut", cut(&whole, 2)),
            ("empty", vec![]),
        ],
    )
}

fn packets() -> Vec<Seed> {
    let inner = vxlan(0x0800, &ipv4(17, b"datagram"));
    let packet = sealed(17, &inner);
    of(
        "esp_open",
        [
            ("vxlan", packet.clone()),
            ("ipip", sealed(4, &ipv4(1, b"echo"))),
            ("dummy", sealed(59, &[])),
            ("not-authentic", with(&packet, 20, &[0xff])),
            ("other-spi", with(&packet, 0, &[0, 0, 1, 0])),
            ("sequence-zero", with(&packet, 4, &[0; 4])),
            ("sequence-far", with(&packet, 4, &[0xff; 4])),
            ("cut", cut(&packet, 1)),
            ("shortest", packet[..34].to_vec()),
            ("too-short", packet[..33].to_vec()),
            ("plain", inner),
        ],
    )
}

fn payloads() -> Vec<Seed> {
    let (v4, v6) = (ipv4(17, b"datagram"), ipv6(6, b"segment"));
    let framed = [vec![17], vxlan(0x0800, &v4)].concat();
    of(
        "esp_frame",
        [
            ("vxlan-ipv4", framed.clone()),
            ("vxlan-ipv6", [vec![17], vxlan(0x86dd, &v6)].concat()),
            ("ipip-ipv4", [vec![4], v4.clone()].concat()),
            ("ipip-ipv6", [vec![41], v6.clone()].concat()),
            ("dummy", vec![59]),
            ("arp-in-vxlan", [vec![17], vxlan(0x0806, &[0; 28])].concat()),
            ("other-vni", with(&framed, 13, &[0, 0, 7])),
            ("other-port", with(&framed, 3, &[0, 53])),
            ("udp-length", with(&framed, 5, &[0, 9])),
            (
                "family-against-ether-type",
                [vec![17], vxlan(0x86dd, &v4)].concat(),
            ),
            (
                "ipv4-header-length",
                [vec![4], with(&v4, 0, &[0x44])].concat(),
            ),
            (
                "ipv4-total-length",
                [vec![4], with(&v4, 2, &[0, 19])].concat(),
            ),
            (
                "ipv6-length",
                [vec![41], with(&v6, 4, &[0xff, 0xff])].concat(),
            ),
            ("cut", cut(&framed, 3)),
            ("empty", vec![]),
        ],
    )
}

/// A TCP segment with 12 bytes of options, or a UDP datagram, with right checksums.
fn transport(tcp: bool, v6: bool, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let ports = [0x13, 0x88, 0, 80];
    let part = if tcp {
        let (own, end) = ([0x80, flags, 1, 0, 0, 0, 0, 0], [1; 12]);
        let numbers = [sequence.to_be_bytes(), 9_u32.to_be_bytes()].concat();
        [&ports[..], &numbers, &own, &end, payload].concat()
    } else {
        let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
        [&ports[..], &length, &[0, 0], payload].concat()
    };
    let (protocol, field) = if tcp { (6, 16) } else { (17, 6) };
    let (mut packet, start, addresses) = if v6 {
        (ipv6(protocol, &part), 40, 8..40)
    } else {
        let mut packet = ipv4(protocol, &part);
        let header = checksum::field(checksum::sum(&packet[..20]));
        packet[10..12].copy_from_slice(&header.to_be_bytes());
        (packet, 20, 12..20)
    };
    let pseudo = checksum::sum(&packet[addresses]) + u64::from(protocol);
    let sum = pseudo + part.len() as u64 + checksum::sum(&packet[start..]);
    let field = start + field..start + field + 2;
    packet[field].copy_from_slice(&checksum::field(sum).to_be_bytes());
    packet
}

/// A packet of the device with its virtio header; a large one's checksum is that of the pseudo-header.
fn given(gso: Option<Gso>, packet: &[u8]) -> Vec<u8> {
    let (start, v6) = if packet[0] >> 4 == 6 {
        (40, true)
    } else {
        (20, false)
    };
    let tcp = matches!(gso, Some(Gso::Tcp4 | Gso::Tcp6));
    let (head, field) = if tcp {
        (start + 32, 16)
    } else {
        (start + 8, 6)
    };
    let mut packet = packet.to_vec();
    let addresses = if v6 { 8..40 } else { 12..20 };
    let protocol = if tcp { 6 } else { 17 };
    let pseudo = checksum::sum(&packet[addresses]) + protocol + (packet.len() - start) as u64;
    let at = start + field..start + field + 2;
    packet[at].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    let header = Header {
        needs_checksum: true,
        gso,
        header_len: u16::try_from(head).unwrap(),
        segment: if gso.is_some() { 100 } else { 0 },
        checksum_start: u16::try_from(start).unwrap(),
        checksum_offset: u16::try_from(field).unwrap(),
    };
    [&header.emit()[..], &packet].concat()
}

fn device() -> Vec<Seed> {
    let text = [7; 250];
    let tcp4 = given(Some(Gso::Tcp4), &transport(true, false, 1, 0x99, &text));
    let plain = [&[0; 10][..], &transport(true, false, 1, 0x10, b"text")].concat();
    of(
        "esp_split",
        [
            (
                "tcp6",
                given(Some(Gso::Tcp6), &transport(true, true, 1, 0x18, &text)),
            ),
            (
                "udp4",
                given(Some(Gso::Udp), &transport(false, false, 0, 0, &text)),
            ),
            (
                "udp6",
                given(Some(Gso::Udp), &transport(false, true, 0, 0, &text)),
            ),
            (
                "unfinished",
                given(None, &transport(false, false, 0, 0, b"text")),
            ),
            ("no-segment", with(&tcp4, 4, &[0, 0])),
            ("other-type", with(&tcp4, 1, &[3])),
            ("checksum-outside", with(&tcp4, 6, &[0xff, 0xff])),
            ("data-offset", with(&tcp4, 42, &[0x40])),
            ("version", with(&tcp4, 10, &[0x65])),
            ("cut", cut(&tcp4, 240)),
            ("tcp4", tcp4),
            ("plain", plain),
            ("empty", vec![]),
        ],
    )
}

/// Each packet behind its length.
fn listed(packets: &[Vec<u8>]) -> Vec<u8> {
    let one = |packet: &Vec<u8>| {
        let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
        [&length[..], packet].concat()
    };
    packets.iter().flat_map(one).collect()
}

fn flows() -> Vec<Seed> {
    let tcp =
        |v6, number: u32, flags| transport(true, v6, 100 * number, flags, &[number as u8; 100]);
    let stream = |v6| [tcp(v6, 1, 0x10), tcp(v6, 2, 0x10), tcp(v6, 3, 0x18)];
    let udp = transport(false, false, 0, 0, b"datagram");
    let [first, second, third] = stream(false);
    of(
        "esp_join",
        [
            ("tcp6", listed(&stream(true))),
            ("udp", listed(&[udp.clone(), udp.clone(), udp.clone()])),
            (
                "two-flows",
                listed(&[first.clone(), udp.clone(), third.clone(), udp.clone()]),
            ),
            (
                "swapped",
                listed(&[second.clone(), first.clone(), third.clone()]),
            ),
            (
                "damaged",
                listed(&[first.clone(), with(&second, 60, &[0]), third.clone()]),
            ),
            (
                "fragment",
                listed(&[first.clone(), with(&second, 6, &[0x20]), third.clone()]),
            ),
            (
                "ack-between",
                listed(&[
                    first.clone(),
                    transport(true, false, 200, 0x10, &[]),
                    second.clone(),
                ]),
            ),
            ("fin", listed(&[first.clone(), tcp(false, 2, 0x11)])),
            (
                "no-udp-checksum",
                listed(&[with(&udp, 26, &[0, 0]), with(&udp, 26, &[0, 0])]),
            ),
            ("empty-packets", vec![0; 8]),
            ("cut", cut(&listed(&[first.clone(), second.clone()]), 3)),
            ("tcp4", listed(&[first, second, third])),
        ],
    )
}
