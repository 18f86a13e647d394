//! Whole messages, chains, and what is inside SK payloads.

use crate::bytes::{chain, cut, message, with};
use crate::ike_payloads::{sa_esp, sa_ike, ts_ipv4};
use crate::{Seed, seeds as of};

const IKE_SA_INIT: u8 = 34;
const IKE_AUTH: u8 = 35;
const INFORMATIONAL: u8 = 37;
const INITIATOR: u8 = 0x08;
const RESPONSE: u8 = 0x20;

pub(crate) fn seeds() -> Vec<Seed> {
    [messages(), chains(), inside_sk()]
        .into_iter()
        .flatten()
        .collect()
}

pub(crate) fn notify(kind: u16, data: &[u8]) -> (u8, Vec<u8>) {
    (41, [&[0, 0][..], &kind.to_be_bytes(), data].concat())
}

fn vendor() -> (u8, Vec<u8>) {
    (43, b"Espalier-1".to_vec())
}

pub(crate) fn init_payloads() -> Vec<(u8, Vec<u8>)> {
    vec![
        (33, sa_ike()),
        (34, [&[0, 31, 0, 0][..], &[9; 32]].concat()),
        (40, vec![5; 32]),
        notify(16388, &[0xdd; 20]),
        notify(16389, &[0xee; 20]),
        notify(16431, &[0, 2]),
        vendor(),
    ]
}

pub(crate) fn auth_payloads() -> Vec<(u8, Vec<u8>)> {
    vec![
        (35, b"\x02\0\0\0node-a".to_vec()),
        (37, vec![4, 0x30, 3, 2, 1, 0]),
        (38, [&[4][..], &[1; 20]].concat()),
        (36, b"\x02\0\0\0node-b".to_vec()),
        (39, [&[2, 0, 0, 0][..], &[0xaa; 32]].concat()),
        notify(16391, &[]),
        notify(40961, b"announcement"),
        (33, sa_esp()),
        (44, ts_ipv4()),
        (45, ts_ipv4()),
    ]
}

fn messages() -> Vec<Seed> {
    let init = message(IKE_SA_INIT, INITIATOR, 0, chain(&init_payloads()));
    let cookie = chain(&[notify(16390, &[0xcc; 32])]);
    let sk = |exchange, body: &[u8]| {
        let (_, bytes) = chain(&[(46, body.to_vec())]);
        message(exchange, INITIATOR, 1, (46, with(&bytes, 0, &[35])))
    };
    let skf = chain(&[(53, [&[0, 1, 0, 2][..], &[0xee; 40]].concat())]);
    let unknown = [notify(16430, &[]), (200, vec![1, 2, 3]), vendor()];
    let critical = with(&chain(&unknown).1, 9, &[0x80]);
    let mixed = chain(&[notify(16430, &[]), (200, vec![1]), (46, vec![0xee; 40])]);
    of(
        "ike_message",
        [
            ("init-request", init.clone()),
            (
                "init-response",
                message(IKE_SA_INIT, RESPONSE, 0, chain(&init_payloads())),
            ),
            ("init-cookie", message(IKE_SA_INIT, RESPONSE, 0, cookie)),
            ("auth", sk(IKE_AUTH, &[0xee; 200])),
            ("auth-fragment", message(IKE_AUTH, INITIATOR, 1, skf)),
            ("informational", sk(INFORMATIONAL, &[0xee; 25])),
            (
                "unprotected-delete",
                message(INFORMATIONAL, 0, 2, chain(&[(42, vec![1, 0, 0, 0])])),
            ),
            (
                "sk-behind-others",
                message(INFORMATIONAL, INITIATOR, 3, mixed),
            ),
            (
                "unknown-payload",
                message(INFORMATIONAL, 0, 2, chain(&unknown)),
            ),
            (
                "critical-payload",
                message(INFORMATIONAL, 0, 2, (41, critical)),
            ),
            ("no-payload", message(INFORMATIONAL, 0, 2, (0, vec![]))),
            ("major-version-3", with(&init, 17, &[0x30])),
            ("ikev1", with(&init, 17, &[0x10])),
            ("length-too-large", with(&init, 24, &[0, 1, 0, 0])),
            ("next-payload-none", with(&init, 16, &[0])),
            ("cut", cut(&init, 5)),
            ("header-cut", init[..27].to_vec()),
        ],
    )
}

fn chains() -> Vec<Seed> {
    let joined = |payloads: &[(u8, Vec<u8>)]| {
        let (first, bytes) = chain(payloads);
        [vec![first], bytes].concat()
    };
    let auth = joined(&auth_payloads());
    let (many, unknown) = ([(); 65].map(|()| vendor()), vec![(200, vec![]); 65]);
    of(
        "ike_payload_chain",
        [
            ("init", joined(&init_payloads())),
            ("auth", auth.clone()),
            (
                "delete",
                joined(&[(42, vec![3, 4, 0, 1, 0xc0, 0xff, 0xee, 1])]),
            ),
            (
                "configuration",
                joined(&[(47, vec![1, 0, 0, 0]), (48, vec![])]),
            ),
            ("nothing", vec![0]),
            ("sk-inside", joined(&[(46, vec![0xee; 40])])),
            ("skf-inside", joined(&[(53, vec![0, 1, 0, 1, 0xee])])),
            ("too-many", joined(&many)),
            ("too-many-unknown", joined(&unknown)),
            ("length-zero", with(&auth, 3, &[0, 0])),
            ("length-too-large", with(&auth, 3, &[0xff, 0xff])),
            ("trailing", [joined(&[vendor()]), vec![0]].concat()),
            ("cut", cut(&auth, 7)),
        ],
    )
}

/// Seeds of the same form as a chain: the target seals and opens them.
fn inside_sk() -> Vec<Seed> {
    let joined = |payloads: &[(u8, Vec<u8>)]| {
        let (first, bytes) = chain(payloads);
        [vec![first], bytes].concat()
    };
    let sk = chain(&[(46, vec![0xee; 60])]);
    of(
        "ike_sk_open",
        [
            ("auth", joined(&auth_payloads())),
            ("delete", joined(&[(42, vec![1, 0, 0, 0])])),
            ("nothing", vec![0]),
            ("not-authentic", message(IKE_AUTH, INITIATOR, 1, sk)),
        ],
    )
}
