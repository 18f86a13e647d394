//! Bodies of payloads: a usual one or two of each, and typical malformed ones.

use crate::bytes::{cut, sized, with};
use crate::{Seed, seeds as of};

pub(crate) fn seeds() -> Vec<Seed> {
    let small = [
        ke(),
        id(),
        cert(),
        certreq(),
        auth(),
        nonce(),
        vendor(),
        opaque(),
    ];
    let rest = [sa(), notify(), delete(), ts(), sk(), skf()];
    small.into_iter().chain(rest).flatten().collect()
}

/// Transforms with the marker that others follow, but for the last.
fn transforms(list: &[&[u8]]) -> Vec<u8> {
    let marker = |at| if at + 1 == list.len() { 0 } else { 3 };
    list.iter()
        .enumerate()
        .flat_map(|(at, body)| sized([marker(at), 0], body))
        .collect()
}

fn proposal(marker: u8, number: u8, protocol: u8, spi: &[u8], list: &[&[u8]]) -> Vec<u8> {
    let counts = [number, protocol, spi.len() as u8, list.len() as u8];
    sized([marker, 0], &[&counts, spi, &transforms(list)].concat())
}

const AES_GCM_256: &[u8] = &[1, 0, 0, 20, 0x80, 14, 1, 0];
const AES_GCM_128: &[u8] = &[1, 0, 0, 20, 0x80, 14, 0, 128];
const CHACHA: &[u8] = &[1, 0, 0, 28];
const SHA2_256: &[u8] = &[2, 0, 0, 5];
const X25519: &[u8] = &[4, 0, 0, 31];
const P256: &[u8] = &[4, 0, 0, 19];
const ML_KEM_768: &[u8] = &[6, 0, 0, 36];
const ESN: &[u8] = &[5, 0, 0, 1];
const NO_ESN: &[u8] = &[5, 0, 0, 0];

/// SA of IKE_SA_INIT.
pub(crate) fn sa_ike() -> Vec<u8> {
    proposal(
        0,
        1,
        1,
        &[],
        &[AES_GCM_256, AES_GCM_128, SHA2_256, X25519, P256],
    )
}

/// SA of a CHILD_SA.
pub(crate) fn sa_esp() -> Vec<u8> {
    let spi = [0xc0, 0xff, 0xee, 1];
    let first = proposal(2, 1, 3, &spi, &[AES_GCM_256, AES_GCM_128, ESN]);
    [first, proposal(0, 2, 3, &spi, &[CHACHA, ESN, NO_ESN])].concat()
}

/// SA of a CHILD_SA without any choice. The SPI stands at offset 8.
pub(crate) fn sa_esp_one() -> Vec<u8> {
    proposal(0, 1, 3, &[0xc0, 0xff, 0xee, 1], &[AES_GCM_256, ESN])
}

/// One ESP proposal with a key exchange.
pub(crate) fn sa_esp_ke() -> Vec<u8> {
    proposal(0, 1, 3, &[0xc0, 0xff, 0xee, 2], &[AES_GCM_256, ESN, X25519])
}

fn sa() -> Vec<Seed> {
    let rekey = proposal(
        0,
        1,
        1,
        &[7; 8],
        &[AES_GCM_256, SHA2_256, X25519, ML_KEM_768],
    );
    let many = proposal(0, 1, 3, &[1; 4], &[CHACHA; 65]);
    let odd: &[u8] = &[
        1, 0, 0, 20, 0x80, 14, 1, 0, 0x80, 14, 0, 128, 0, 99, 0, 2, 7, 7,
    ];
    let esp = sa_esp();
    of(
        "ike_sa",
        [
            ("ike", sa_ike()),
            ("ike-rekey-hybrid", rekey),
            ("esp", esp.clone()),
            ("unknown-protocol", proposal(0, 1, 200, &[1, 2, 3], &[])),
            ("odd-attributes", proposal(0, 1, 3, &[1; 4], &[odd, ESN])),
            ("esp-without-spi", proposal(0, 1, 3, &[], &[CHACHA])),
            ("too-many-transforms", many),
            ("too-many-proposals", proposal(2, 1, 1, &[], &[]).repeat(33)),
            ("no-transform", proposal(0, 1, 1, &[], &[])),
            ("wrong-marker", with(&esp, 0, &[0])),
            ("length-too-small", with(&esp, 2, &[0, 3])),
            ("length-too-large", with(&esp, 2, &[0xff, 0xff])),
            ("count-too-large", with(&esp, 7, &[4])),
            ("spi-size-too-large", with(&esp, 6, &[255])),
            ("cut", cut(&esp, 3)),
            ("empty", vec![]),
        ],
    )
}

fn ke() -> Vec<Seed> {
    of(
        "ike_ke",
        [
            ("x25519", [&[0, 31, 0, 0][..], &[9; 32]].concat()),
            ("p256", [&[0, 19, 0, 0][..], &[4; 64]].concat()),
            ("reserved", vec![0, 31, 1, 2, 3]),
            ("no-value", vec![0, 31, 0, 0]),
            ("cut", vec![0]),
        ],
    )
}

fn id() -> Vec<Seed> {
    of(
        "ike_id",
        [
            ("fqdn", b"\x02\0\0\0node-a.example".to_vec()),
            ("ipv4", vec![1, 0, 0, 0, 192, 0, 2, 1]),
            ("reserved", b"\x02\x01\x02\x03n".to_vec()),
            ("not-utf8", vec![2, 0, 0, 0, 0xff, 0xfe, 0]),
            ("no-data", vec![11, 0, 0, 0]),
            ("cut", vec![2, 0, 0]),
        ],
    )
}

fn cert() -> Vec<Seed> {
    of(
        "ike_cert",
        [
            ("x509", vec![4, 0x30, 3, 2, 1, 0]),
            (
                "hash-and-url",
                [&[12][..], &[1; 20], b"http://ca.example/c"].concat(),
            ),
            ("no-data", vec![4]),
            ("empty", vec![]),
        ],
    )
}

fn certreq() -> Vec<Seed> {
    of(
        "ike_certreq",
        [
            ("two-hashes", [&[4][..], &[1; 40]].concat()),
            ("part-of-a-hash", [&[4][..], &[1; 21]].concat()),
            ("none", vec![4]),
            ("empty", vec![]),
        ],
    )
}

/// AlgorithmIdentifier of ecdsa-with-SHA256 behind its length (RFC 7427).
const ECDSA_SHA256: &[u8] = b"\x0c\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";

fn auth() -> Vec<Seed> {
    of(
        "ike_auth",
        [
            ("shared-key", [&[2, 0, 0, 0][..], &[0xaa; 32]].concat()),
            (
                "signature",
                [&[14, 0, 0, 0], ECDSA_SHA256, &[0x30, 4, 2, 0, 2, 0]].concat(),
            ),
            ("signature-algorithm-cut", vec![14, 0, 0, 0, 12, 0x30]),
            ("signature-without-algorithm", vec![14, 0, 0, 0, 0, 1]),
            ("no-data", vec![14, 0, 0, 0]),
            ("cut", vec![14, 0]),
        ],
    )
}

fn nonce() -> Vec<Seed> {
    of(
        "ike_nonce",
        [
            ("usual", vec![5; 32]),
            ("shortest", vec![5; 16]),
            ("longest", vec![5; 256]),
            ("too-short", vec![5; 15]),
            ("too-long", vec![5; 257]),
        ],
    )
}

fn vendor() -> Vec<Seed> {
    of(
        "ike_vendor_id",
        [("espalier", b"Espalier-1".to_vec()), ("empty", vec![])],
    )
}

fn opaque() -> Vec<Seed> {
    of(
        "ike_opaque",
        [("request", vec![1, 0, 0, 0, 0, 1, 0, 0]), ("empty", vec![])],
    )
}

fn notify() -> Vec<Seed> {
    of(
        "ike_notify",
        [
            ("transport-mode", vec![0, 0, 0x40, 0x07]),
            ("cookie", [&[0, 0, 0x40, 6][..], &[0xcc; 32]].concat()),
            (
                "nat-detection",
                [&[0, 0, 0x40, 4][..], &[0xdd; 20]].concat(),
            ),
            ("rekey-sa", vec![3, 4, 0x40, 9, 0xc0, 0xff, 0xee, 1]),
            ("invalid-ke", vec![0, 0, 0, 17, 0, 31]),
            ("hash-algorithms", vec![0, 0, 0x40, 0x2f, 0, 2, 0, 3]),
            ("announcement", b"\0\0\xa0\x01anything".to_vec()),
            ("encapsulation", b"\0\0\xa0\x02\x03".to_vec()),
            ("ike-spi", [&[1, 8, 0, 4][..], &[1; 8]].concat()),
            ("odd-spi", vec![9, 3, 0, 4, 1, 2, 3, 4]),
            ("spi-cut", vec![3, 4, 0, 11, 1]),
            ("spi-size-too-large", vec![3, 255, 0, 11, 1, 2, 3, 4]),
            ("cut", vec![0, 0, 0]),
        ],
    )
}

fn delete() -> Vec<Seed> {
    let many = [&[3, 4, 4, 1][..], &[1; 4 * 1025]].concat();
    of(
        "ike_delete",
        [
            ("ike", vec![1, 0, 0, 0]),
            ("esp", vec![3, 4, 0, 1, 0xc0, 0xff, 0xee, 1]),
            ("two", vec![3, 4, 0, 2, 0, 0, 1, 0, 0, 0, 2, 0]),
            ("none", vec![3, 4, 0, 0]),
            ("ike-with-spi", [&[1, 8, 0, 1][..], &[1; 8]].concat()),
            ("ike-with-count", vec![1, 0, 0, 9]),
            ("count-too-large", vec![3, 4, 0xff, 0xff, 0, 0, 0, 1]),
            ("too-many", many),
            ("trailing", vec![3, 4, 0, 1, 0, 0, 0, 1, 0]),
            ("cut", vec![3, 4]),
        ],
    )
}

/// TSi of one host, UDP.
pub(crate) fn ts_ipv4() -> Vec<u8> {
    let range = [0, 0, 0xff, 0xff, 192, 0, 2, 1, 192, 0, 2, 1];
    [vec![1, 0, 0, 0], sized([7, 17], &range)].concat()
}

/// TSi or TSr of everything.
pub(crate) fn ts_any() -> Vec<u8> {
    let range = [0, 0, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    [vec![1, 0, 0, 0], sized([7, 0], &range)].concat()
}

fn ts() -> Vec<Seed> {
    let range6 = [&[0, 0, 0xff, 0xff][..], &[0x20; 16], &[0x20; 16]].concat();
    let v4 = ts_ipv4();
    let one = ts_any()[4..].to_vec();
    of(
        "ike_ts",
        [
            ("ipv4", v4.clone()),
            ("ipv6", [vec![1, 0, 0, 0], sized([8, 0], &range6)].concat()),
            (
                "both",
                [&[2, 0, 0, 0][..], &v4[4..], &sized([8, 0], &range6)].concat(),
            ),
            (
                "unknown-type",
                [&[2, 0, 0, 0][..], &sized([10, 0], b"label"), &v4[4..]].concat(),
            ),
            ("opaque-ports", with(&v4, 8, &[0xff, 0xff, 0, 0])),
            ("ports-backwards", with(&v4, 8, &[0, 2, 0, 1])),
            ("addresses-backwards", with(&v4, 12, &[192, 0, 2, 2])),
            ("ipv4-length-for-ipv6", with(&v4, 4, &[8])),
            ("any", ts_any()),
            ("too-many", [vec![65, 0, 0, 0], one.repeat(65)].concat()),
            ("count-too-large", with(&v4, 0, &[2])),
            ("count-too-small", with(&v4, 0, &[0])),
            ("length-too-small", with(&v4, 6, &[0, 3])),
            ("none", vec![0, 0, 0, 0]),
            ("cut", cut(&v4, 1)),
        ],
    )
}

fn sk() -> Vec<Seed> {
    of(
        "ike_sk",
        [
            ("usual", [&[35][..], &[0; 8], &[0xee; 60]].concat()),
            ("empty-inside", [&[0][..], &[0; 8], &[0xee; 17]].concat()),
            ("no-body", vec![35]),
            ("empty", vec![]),
        ],
    )
}

fn skf() -> Vec<Seed> {
    of(
        "ike_skf",
        [
            ("first", [&[35, 0, 1, 0, 3][..], &[0xee; 60]].concat()),
            ("last", [&[0, 0, 3, 0, 3][..], &[0xee; 20]].concat()),
            ("number-zero", vec![0, 0, 0, 0, 3, 1]),
            ("number-above-total", vec![0, 0, 4, 0, 3, 1]),
            ("cut", vec![0, 0, 1, 0]),
        ],
    )
}
