//! ESP packets and what is inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use espalier_esp::aead::{AwsLc, Portable};
use espalier_esp::framing::{Framing, vxlan::Vxlan};
use espalier_esp::{Algorithm, InboundSa, KeyError, OutboundSa, next_header};

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

/// The first byte is the ESP next header, the rest an opened payload in every framing; then the rest as a pod packet, framed
/// and parsed again.
pub fn esp_frame(data: &[u8]) {
    let Some((next_header, payload)) = data.split_first() else {
        return;
    };
    for framing in framings() {
        if let Ok(packet) = framing.parse(*next_header, payload) {
            assert!(packet.bytes.len() <= payload.len());
            assert_eq!(packet.source.is_ipv4(), packet.destination.is_ipv4());
        }
        frame_and_parse(&framing, payload);
    }
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
