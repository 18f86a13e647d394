//! Whole messages: generated ones round-trip to the same bytes, cut and flipped ones never panic.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A chain of an IKE_SA_INIT request, written out: SA, KE, Nonce, N(NAT detection, fragmentation), V.
const INIT: &str = concat!(
    "6b1e2d3c4b5a69780000000000000000", // SPIs
    "2120220800000000000000da",         // SA first, 2.0, IKE_SA_INIT, I, message ID 0, length
    "22000028",                         // SA
    "00000024010100030300000c0100001480",
    "0e0100",           // ENCR_AES_GCM_16, 256 bits
    "0300000802000005", // PRF_HMAC_SHA2_256
    "000000080400001f", // Curve25519
    "28000028001f0000", // KE
    "1111111111111111111111111111111111111111111111111111111111111111",
    "29000024", // Nonce
    "2222222222222222222222222222222222222222222222222222222222222222",
    "2900001c00004004", // N(NAT_DETECTION_SOURCE_IP)
    "3333333333333333333333333333333333333333",
    "2900000c0000402f00020003", // N(SIGNATURE_HASH_ALGORITHMS): SHA2-256, SHA2-384
    "290000080000402e",         // N(IKEV2_FRAGMENTATION_SUPPORTED)
    "2b0000080000402e",         // and again: repetition is the caller's business
    "0000000e457370616c6965722d31", // V
);

fn init() -> Vec<u8> {
    let mut bytes = hex::decode(INIT).unwrap();
    let length = u32::try_from(bytes.len()).unwrap();
    bytes[24..28].copy_from_slice(&length.to_be_bytes());
    bytes
}

#[test]
fn reads_and_writes_an_ike_sa_init() {
    let bytes = init();
    let message = Message::parse(&bytes).unwrap();
    let kinds: Vec<_> = message.payloads.iter().map(Payload::kind).collect();
    use PayloadType::{Ke, Nonce, Notify, Sa, VendorId};
    assert_eq!(
        kinds,
        [Sa, Ke, Nonce, Notify, Notify, Notify, Notify, VendorId]
    );
    assert_eq!(message.header.spi_i, 0x6b1e_2d3c_4b5a_6978);
    assert_eq!(emit(&message.header, &message.payloads), bytes);
}

#[test]
fn a_message_cut_at_any_offset_is_refused() {
    let bytes = init();
    for end in 0..bytes.len() {
        assert!(
            Message::parse(&bytes[..end]).is_err(),
            "whole length field, {end} bytes"
        );
        let mut cut = bytes[..end].to_vec();
        if let Some(field) = cut.get_mut(24..28) {
            field.copy_from_slice(&u32::try_from(end).unwrap().to_be_bytes());
        }
        assert!(
            Message::parse(&cut).is_err(),
            "matching length field, {end} bytes"
        );
    }
}

/// Checks what every parsed message keeps: it can be written and read again, and what was written stays the same.
fn check(datagram: &[u8]) {
    let Ok(message) = Message::parse(datagram) else {
        return;
    };
    let once = emit(&message.header, &message.payloads);
    let again = Message::parse(&once).unwrap();
    assert_eq!(message.payloads.len(), again.payloads.len());
    assert_eq!(emit(&again.header, &again.payloads), once);
}

#[test]
fn every_bit_of_a_message_may_flip() {
    let bytes = init();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        check(&flipped);
    }
}

fn data(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), len)
}

/// A structure with a type-specific first half, its own 16-bit length at offset 2, and a body.
fn sized(first: [u8; 2], body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len() + 4).unwrap();
    [&first[..], &length.to_be_bytes(), body].concat()
}

/// Canonical transforms: type, ID, perhaps Key Length.
fn transform() -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), any::<u16>(), any::<Option<u16>>()).prop_map(|(kind, id, bits)| {
        let attribute = bits.map(|b| [&[0x80, 14], &b.to_be_bytes()[..]].concat());
        [
            &[kind, 0],
            &id.to_be_bytes()[..],
            &attribute.unwrap_or_default(),
        ]
        .concat()
    })
}

fn list(parts: &[Vec<u8>], more: u8) -> Vec<u8> {
    let marker = |at| if at + 1 == parts.len() { 0 } else { more };
    parts
        .iter()
        .enumerate()
        .flat_map(|(at, part)| sized([marker(at), 0], part))
        .collect()
}

fn proposal() -> impl Strategy<Value = Vec<u8>> {
    let spi = prop_oneof![
        Just((1, vec![])),
        data(8).prop_map(|spi| (1, spi)),
        (2..=3_u8, data(4)),
        (4..=255_u8, data(0..=255)),
    ];
    (any::<u8>(), spi, vec(transform(), 0..=MAX_TRANSFORMS)).prop_map(
        |(number, (protocol, spi), transforms)| {
            let size = u8::try_from(spi.len()).unwrap();
            let count = u8::try_from(transforms.len()).unwrap();
            [
                vec![number, protocol, size, count],
                spi,
                list(&transforms, 3),
            ]
            .concat()
        },
    )
}

fn selector() -> impl Strategy<Value = Vec<u8>> {
    let addresses = |len| {
        (data(len), data(len)).prop_map(|(a, b)| if a <= b { [a, b] } else { [b, a] }.concat())
    };
    let range = prop_oneof![
        addresses(4).prop_map(|a| (7, a)),
        addresses(16).prop_map(|a| (8, a)),
    ];
    (any::<u8>(), any::<[u16; 2]>(), range).prop_map(|(protocol, mut ports, (kind, addresses))| {
        ports.sort_unstable();
        let ports = ports.map(u16::to_be_bytes).concat();
        sized([kind, protocol], &[ports, addresses].concat())
    })
}

/// Types and canonical bodies: reserved fields zero, nothing to skip. Written without this crate's emitters.
fn payload() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let prefixed = |len, zeros: usize| {
        (data(len), data(1..200))
            .prop_map(move |(head, tail)| [head, vec![0; zeros], tail].concat())
    };
    prop_oneof![
        vec(proposal(), 1..5).prop_map(|proposals| (33, list(&proposals, 2))),
        prefixed(2, 2).prop_map(|ke| (34, ke)),
        (35..=36_u8, data(4..200)),
        (37..=38_u8, data(1..200)),
        prefixed(1, 3).prop_map(|auth| (39, auth)),
        data(16..=256).prop_map(|nonce| (40, nonce)),
        (any::<u8>(), data(0..=255), any::<u16>(), data(0..50)).prop_map(|(p, spi, kind, tail)| {
            let size = u8::try_from(spi.len()).unwrap();
            (
                41,
                [vec![p, size], kind.to_be_bytes().to_vec(), spi, tail].concat(),
            )
        }),
        Just((42, vec![1, 0, 0, 0])),
        vec(any::<[u8; 4]>(), 0..20).prop_map(|spis| {
            (
                42,
                [
                    vec![3, 4, 0, u8::try_from(spis.len()).unwrap()],
                    spis.concat(),
                ]
                .concat(),
            )
        }),
        data(0..100).prop_map(|vendor| (43, vendor)),
        (44..=45_u8, vec(selector(), 0..=MAX_SELECTORS)).prop_map(|(kind, selectors)| {
            let count = u8::try_from(selectors.len()).unwrap();
            (kind, [vec![count, 0, 0, 0], selectors.concat()].concat())
        }),
        (47..=48_u8, data(0..100)),
    ]
}

/// The datagram of a chain, written by hand; `sealed` is an SK payload's inner type and body.
fn datagram(payloads: &[(u8, Vec<u8>)], sealed: Option<(u8, Vec<u8>)>) -> Vec<u8> {
    let types = payloads.iter().map(|(kind, _)| *kind);
    let mut types = types
        .chain(sealed.is_some().then_some(46))
        .chain(sealed.as_ref().map(|s| s.0));
    let first = types.next().unwrap_or(0);
    let bodies = payloads
        .iter()
        .map(|(_, body)| body)
        .chain(sealed.as_ref().map(|s| &s.1));
    let chain: Vec<u8> = bodies
        .flat_map(|body| sized([types.next().unwrap_or(0), 0], body))
        .collect();
    let length = u32::try_from(HEADER_LEN + chain.len()).unwrap();
    let head = [&[0xab; 16][..], &[first, 0x20, 37, 0x08, 0, 0, 0, 5]].concat();
    [head, length.to_be_bytes().to_vec(), chain].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn canonical_messages_come_back_byte_by_byte(
        payloads in vec(payload(), 0..8),
        sealed in proptest::option::of((any::<u8>(), data(0..100))),
    ) {
        let bytes = datagram(&payloads, sealed);
        let message = Message::parse(&bytes).unwrap();
        prop_assert_eq!(emit(&message.header, &message.payloads), bytes);
    }

    #[test]
    fn chains_come_back_byte_by_byte(payloads in vec(payload(), 1..8)) {
        let bytes = datagram(&payloads, None);
        let first = PayloadType::from(bytes[16]);
        let chain = parse_chain(first, &bytes[HEADER_LEN..]).unwrap();
        prop_assert_eq!(emit_chain(&chain), (first, bytes[HEADER_LEN..].to_vec()));
    }

    #[test]
    fn a_cut_body_never_panics((kind, body) in payload()) {
        for end in 0..body.len() {
            if let Ok(Some(payload)) = Payload::parse(kind.into(), &body[..end]) {
                prop_assert_eq!(payload.kind(), PayloadType::from(kind));
            }
        }
    }

    #[test]
    fn changed_messages_never_panic(
        payloads in vec(payload(), 1..6),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = datagram(&payloads, None);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        check(&bytes);
    }
}
