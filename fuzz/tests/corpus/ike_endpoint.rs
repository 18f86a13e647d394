//! Handshakes: genuine datagrams whole, repeated, cut and out of order, and chains to be sealed.

use espalier_fuzz::{child_chain, genuine_datagrams};

use crate::bytes::{chain, cut, message, with};
use crate::ike_messages::{auth_payloads, init_payloads, notify};
use crate::ike_payloads::{sa_esp, sa_esp_ke, sa_esp_one, ts_any, ts_ipv4};
use crate::{Seed, seeds as of};

pub(crate) fn seeds() -> Vec<Seed> {
    [
        initiator(),
        responder(),
        inner(),
        fragments(),
        key_exchange(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Datagrams to a node at a stage.
fn frames(stage: u8, datagrams: &[&[u8]]) -> Vec<u8> {
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
    let frame = |bytes: &&[u8]| [&length(bytes)[..], *bytes].concat();
    [vec![stage], datagrams.iter().flat_map(frame).collect()].concat()
}

/// A genuine datagram's header before another chain.
fn under(datagram: &[u8], payloads: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let other = message(datagram[18], datagram[19], 0, chain(payloads));
    let ours = with(&other, 0, &datagram[..16]);
    with(&ours, 17, &datagram[17..24])
}

fn initiator() -> Vec<Seed> {
    let [_, init, _, auth, ..] = genuine_datagrams() else {
        panic!("no handshake")
    };
    let cookie = under(init, &[notify(16390, &[0xcc; 32])]);
    let other_group = under(init, &[notify(17, &[0, 19])]);
    let unknown_group = under(init, &[notify(17, &[0, 99])]);
    let refused = under(init, &[notify(14, &[])]);
    let forged = under(init, &init_payloads());
    let failed = under(auth, &[notify(24, &[])]);
    of(
        "ike_endpoint_initiator",
        [
            ("init", frames(0, &[init])),
            ("handshake", frames(0, &[init, auth])),
            ("auth-first", frames(0, &[auth, init])),
            ("repeated", frames(2, &[init, auth, auth])),
            ("cookie", frames(0, &[&cookie])),
            ("cookie-for-ever", frames(0, &[cookie.as_slice(); 8])),
            ("other-group", frames(0, &[&other_group, init])),
            ("unknown-group", frames(0, &[&unknown_group])),
            ("refused", frames(0, &[&refused, init])),
            ("forged", frames(0, &[&forged, auth])),
            ("auth-refused-in-clear", frames(1, &[&failed])),
            ("auth-cut", frames(1, &[&cut(auth, 1)])),
            ("auth-changed", frames(1, &[&with(auth, 60, &[0xff])])),
            ("other-spi", frames(1, &[&with(auth, 8, &[0xff; 8])])),
            (
                "delete-in-clear",
                frames(2, &[&under(auth, &[(42, vec![1, 0, 0, 0])])]),
            ),
            ("nothing", frames(0, &[])),
        ],
    )
}

fn responder() -> Vec<Seed> {
    let [init, _, auth, ..] = genuine_datagrams() else {
        panic!("no handshake")
    };
    let other_spi = with(init, 0, &[0x55; 8]);
    let hybrid = under(init, &[init_payloads(), vec![notify(16438, &[])]].concat());
    let nothing = under(init, &[]);
    let critical = with(&under(init, &[(200, vec![])]), 29, &[0x80]);
    of(
        "ike_endpoint_responder",
        [
            ("init", frames(0, &[init])),
            ("handshake", frames(0, &[init, auth])),
            ("repeated", frames(2, &[init, auth, auth])),
            ("init-changed", frames(1, &[&with(init, 40, &[0xff])])),
            (
                "many-inits",
                frames(
                    0,
                    &[init, &other_spi, &with(init, 0, &[0x66; 8]), &other_spi],
                ),
            ),
            ("other-offer", frames(0, &[&hybrid])),
            ("no-payload", frames(0, &[&nothing])),
            ("critical", frames(0, &[&critical])),
            ("major-version-3", frames(0, &[&with(init, 17, &[0x30])])),
            ("spi-zero", frames(0, &[&with(init, 0, &[0; 8])])),
            ("auth-cut", frames(1, &[&cut(auth, 1)])),
            ("auth-changed", frames(1, &[&with(auth, 60, &[0xff])])),
            (
                "auth-as-informational",
                frames(1, &[&with(auth, 18, &[37])]),
            ),
            ("auth-as-response", frames(1, &[&with(auth, 19, &[0x28])])),
            ("message-id", frames(1, &[&with(auth, 20, &[0xff; 4])])),
            (
                "delete-in-clear",
                frames(2, &[&under(auth, &[(42, vec![1, 0, 0, 0])])]),
            ),
            ("nothing", frames(0, &[])),
        ],
    )
}

/// A CHILD_SA: an SA payload and the traffic selectors of both sides.
fn child_of(sa: Vec<u8>, ts_i: Vec<u8>, ts_r: Vec<u8>) -> [(u8, Vec<u8>); 4] {
    [notify(16391, &[]), (33, sa), (44, ts_i), (45, ts_r)]
}

/// A chain and what it is used for.
fn used(stage: u8, payloads: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let (first, bytes) = chain(payloads);
    [vec![stage, first], bytes].concat()
}

fn inner() -> Vec<Seed> {
    let (first, child) = child_chain();
    let child = |stage: u8| [&[stage, first][..], &child].concat();
    let esp = |spis: &[u8]| {
        let count = u8::try_from(spis.len() / 4).unwrap();
        (42, [&[3, 4, 0, count][..], spis].concat())
    };
    let (ours, theirs) = (
        ts_ipv4(),
        with(&ts_ipv4(), 12, &[192, 0, 2, 2, 192, 0, 2, 2]),
    );
    let esn = sa_esp_one();
    let wide = child_of(esn.clone(), ts_any(), ts_any());
    let disjoint = child_of(esn.clone(), theirs.clone(), ours.clone());
    let none = child_of(esn.clone(), vec![0; 4], vec![0; 4]);
    let small_spi = child_of(with(&esn, 8, &[0, 0, 0, 255]), ours.clone(), theirs.clone());
    let narrow = [0, 53, 0, 53];
    let narrow = child_of(
        esn.clone(),
        with(&ours, 8, &narrow),
        with(&theirs, 8, &narrow),
    );
    let two = child_of(sa_esp(), ours, theirs);
    let moved = [
        notify(16400, &[]),
        notify(16388, &[1; 20]),
        notify(16389, &[2; 20]),
    ];
    let announcement = |len| notify(40961, &vec![b'a'; len]);
    // A further CHILD_SA, with a key exchange whose public value is the base point.
    let base = [&[0, 31, 0, 0, 9][..], &[0; 31]].concat();
    let fresh = [(40, vec![5; 32]), (34, base)];
    let further = [&child_of(sa_esp_ke(), ts_any(), ts_any())[..], &fresh].concat();
    let per_cpu = [&further[..], &[notify(16444, b"cpu")]].concat();
    of(
        "ike_endpoint_inner",
        [
            ("init-request", used(0, &init_payloads())),
            ("init-response", used(1, &init_payloads())),
            ("auth-request", used(2, &auth_payloads())),
            ("auth-response", used(3, &auth_payloads())),
            ("auth-refused", used(3, &[notify(24, &[])])),
            ("child-request", child(4)),
            ("child-response", child(5)),
            ("wide-request", used(4, &wide)),
            ("wide-response", used(5, &wide)),
            ("disjoint-request", used(4, &disjoint)),
            ("disjoint-response", used(5, &disjoint)),
            ("no-selector-request", used(4, &none)),
            ("no-selector-response", used(5, &none)),
            ("small-spi-request", used(4, &small_spi)),
            ("small-spi-response", used(5, &small_spi)),
            ("narrow-request", used(4, &narrow)),
            ("narrow-response", used(5, &narrow)),
            ("two-proposals-request", used(4, &two)),
            ("two-proposals-response", used(5, &two)),
            ("tunnel-request", used(4, &two[1..])),
            ("tunnel-response", used(5, &two[1..])),
            ("child-missing", used(4, &[])),
            ("child-refused", used(5, &[notify(38, &[])])),
            (
                "initial-contact",
                [&used(4, &[notify(16384, &[])])[..], &[]].concat(),
            ),
            (
                "auth-twice",
                used(4, &[(39, [&[2, 0, 0, 0][..], &[0; 32]].concat())]),
            ),
            ("liveness", used(6, &[])),
            ("delete-ike", used(6, &[(42, vec![1, 0, 0, 0])])),
            ("delete-child", used(6, &[esp(&[0xc0, 0xff, 0xee, 1])])),
            ("delete-others", used(6, &[esp(&[1; 40])])),
            ("announcement", used(6, &[announcement(12)])),
            ("update-addresses", used(6, &moved)),
            ("cookie2", used(6, &[notify(16401, &[9; 24])])),
            ("cookie2-too-short", used(6, &[notify(16401, &[9; 7])])),
            (
                "other-addresses",
                used(6, &[notify(16397, &[10, 0, 0, 1]), notify(16398, &[1; 16])]),
            ),
            ("auth-lifetime", used(6, &[notify(16403, &[0, 0, 0, 9])])),
            ("further-child", used(7, &further)),
            ("child-per-cpu", used(7, &per_cpu)),
            ("announcement-too-long", used(6, &[announcement(65)])),
            ("failed-afterwards", used(6, &[notify(24, &[])])),
            ("critical", vec![6, 200, 0, 0x80, 0, 4]),
            ("create-child", child(7)),
            (
                "rekey",
                used(
                    7,
                    &[
                        (41, vec![3, 4, 0x40, 9, 0xc0, 0xff, 0xee, 1]),
                        (40, vec![5; 32]),
                    ],
                ),
            ),
        ],
    )
}

/// A KE payload of ML-KEM. All zero is a valid key, and a ciphertext that fits no key.
fn ml_kem(method: u8, len: usize) -> (u8, Vec<u8>) {
    (34, [&[0, method, 0, 0][..], &vec![0; len]].concat())
}

fn key_exchange() -> Vec<Seed> {
    let (key, ciphertext) = (ml_kem(36, 1184), ml_kem(36, 1088));
    let over = (34, [&[0, 36, 0, 0][..], &[0xff; 1184]].concat());
    of(
        "ike_endpoint_key_exchange",
        [
            ("request", used(0, std::slice::from_ref(&key))),
            ("response", used(1, std::slice::from_ref(&ciphertext))),
            ("request-short", used(0, &[ml_kem(36, 1183)])),
            ("response-short", used(1, &[ml_kem(36, 1087)])),
            ("request-long", used(0, &[ml_kem(36, 1185)])),
            ("response-long", used(1, &[ml_kem(36, 1089)])),
            ("other-method", used(0, &[ml_kem(37, 1568)])),
            ("beyond-the-modulus", used(0, &[over])),
            ("two", used(0, &[key.clone(), key.clone()])),
            ("refused", used(1, &[notify(14, &[])])),
            ("malformed", used(1, &[notify(7, &[])])),
            ("nothing-asked", used(0, &[])),
            ("nothing-answered", used(1, &[])),
            ("critical", vec![0, 200, 0, 0x80, 0, 4]),
            (
                "followup-without-token",
                used(2, std::slice::from_ref(&key)),
            ),
            ("followup", used(3, std::slice::from_ref(&key))),
            (
                "followup-wrong-token",
                used(2, &[key.clone(), notify(16441, &[1; 8])]),
            ),
            ("followup-short", used(3, &[ml_kem(36, 1183)])),
            ("followup-nothing", used(3, &[])),
            ("followup-delete", used(3, &[(42, vec![1, 0, 0, 0])])),
        ],
    )
}

/// Fragments of a chain: numbers as they come, and whether one is forged.
fn parts(stage: u8, payloads: &[(u8, Vec<u8>)], size: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (first, bytes) = chain(payloads);
    let total = bytes.len().div_ceil(size);
    let part = |(at, part): (usize, &[u8])| {
        let first = if at == 0 { first } else { 0 };
        fragment(first, at + 1, total, part)
    };
    (
        vec![stage],
        bytes.chunks(size).enumerate().map(part).collect(),
    )
}

fn fragment(first: u8, number: usize, total: usize, part: &[u8]) -> Vec<u8> {
    let [n0, n1] = u16::try_from(number).unwrap().to_be_bytes();
    let [t0, t1] = u16::try_from(total).unwrap().to_be_bytes();
    [&[first, n0, n1, t0, t1, part.len() as u8][..], part].concat()
}

fn fragments() -> Vec<Seed> {
    let said = [notify(50_000, &[1; 200]), notify(40961, b"announcement")];
    let joined = |stage: u8, order: fn(Vec<Vec<u8>>) -> Vec<Vec<u8>>| {
        let (mut bytes, parts) = parts(stage, &said, 60);
        bytes.extend(order(parts).concat());
        bytes
    };
    let delete = parts(1, &[(42, vec![1, 0, 0, 0])], 3).1.concat();
    let (few, many) = (parts(1, &said, 100).1, parts(1, &said, 50).1);
    let empty: Vec<Vec<u8>> = (1..=64).map(|n| fragment(0, n, 64, &[])).collect();
    of(
        "ike_endpoint_fragments",
        [
            ("in-order", joined(1, |parts| parts)),
            (
                "backwards",
                joined(1, |parts| parts.into_iter().rev().collect()),
            ),
            ("twice", joined(1, |parts| [parts.clone(), parts].concat())),
            ("first-missing", joined(1, |parts| parts[1..].to_vec())),
            (
                "one-forged",
                joined(1, |mut parts| {
                    parts[1][5] |= 0x80;
                    parts
                }),
            ),
            ("auth", joined(0, |parts| parts)),
            ("delete", [vec![1], delete].concat()),
            (
                "two-totals",
                [vec![1], few[0].clone(), many.concat(), few[1..].concat()].concat(),
            ),
            (
                "single",
                [vec![1], fragment(41, 1, 1, &chain(&said[1..]).1)].concat(),
            ),
            ("empty-parts", [vec![1], empty.concat()].concat()),
            (
                "most",
                [vec![1], fragment(41, 65_535, 65_535, b"x")].concat(),
            ),
            ("number-zero", [vec![1], fragment(41, 0, 2, b"x")].concat()),
            (
                "type-in-second",
                [vec![1], fragment(41, 2, 2, b"x")].concat(),
            ),
            ("nothing", vec![1]),
        ],
    )
}
