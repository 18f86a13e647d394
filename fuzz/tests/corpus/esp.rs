//! ESP packets and opened payloads.

use espalier_esp::aead::AwsLc;
use espalier_esp::{Algorithm, OutboundSa};

use crate::bytes::{cut, with};
use crate::{Seed, seeds as of};

const SPI: [u8; 4] = [0xc0, 0xff, 0xee, 1];

pub(crate) fn seeds() -> Vec<Seed> {
    [packets(), payloads()].into_iter().flatten().collect()
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
