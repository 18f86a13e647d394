use serde_json::Value;

use super::*;
use crate::crypto::test_vectors::{assert_redacted, bytes, load, number, rows, text};
use crate::crypto::{CbcKey, SkIntegrity};
use crate::event::ChildKeys;
use crate::suite::{ChildSuite, EspSuite, Integrity};

const SUITES: [EspSuite; 3] = [
    EspSuite::Aes256Gcm16,
    EspSuite::Aes128Gcm16,
    EspSuite::ChaCha20Poly1305,
];

fn kdf() -> Value {
    load(include_str!("../../../tests/vectors/kdf.json"))
}

fn suite(prf: &str, cipher: &str) -> IkeSuite {
    let prf = [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512]
        .into_iter()
        .find(|p| format!("{p:?}") == prf);
    let cipher = match cipher {
        "Aes256Gcm16" => SkCipher::Aes256Gcm16,
        "Aes128Gcm16" => SkCipher::Aes128Gcm16,
        "Aes256CbcSha384" => SkCipher::AesCbc(CbcKey::Aes256, SkIntegrity::HmacSha384),
        other => panic!("{other}"),
    };
    IkeSuite {
        prf: prf.unwrap(),
        cipher,
    }
}

fn shared(row: &Value, field: &str) -> SharedSecret {
    SharedSecret::copy_from(&bytes(row, field))
}

fn spis(row: &Value) -> Spis {
    Spis {
        initiator: number(row, "spi_i"),
        responder: number(row, "spi_r"),
    }
}

fn assert_keys(keys: &IkeKeys, expected: &Value) {
    let made = [
        &keys.sk_d.key,
        &keys.sk_ei.key,
        &keys.sk_er.key,
        &keys.sk_pi.key,
        &keys.sk_pr.key,
    ];
    for (key, name) in made
        .into_iter()
        .zip(["sk_d", "sk_ei", "sk_er", "sk_pi", "sk_pr"])
    {
        assert_eq!(hex::encode(key.expose()), text(expected, name), "{name}");
    }
}

fn assert_child(made: &ChildKeymat, row: &Value) {
    assert_eq!(
        hex::encode(made.initiator_to_responder.expose()),
        text(row, "initiator_to_responder")
    );
    assert_eq!(
        hex::encode(made.responder_to_initiator.expose()),
        text(row, "responder_to_initiator")
    );
}

/// Seed and keys of a first handshake.
fn first(row: &Value, nonces: Nonces<'_>) -> IkeKeys {
    let seed = SkeySeed::new(
        suite(text(row, "prf"), text(row, "cipher")),
        nonces,
        &shared(row, "shared"),
    );
    assert_eq!(hex::encode(seed.seed.expose()), text(row, "skeyseed"));
    seed.into_keys(nonces, spis(row)).unwrap()
}

#[test]
fn first_handshake_as_computed_elsewhere() {
    for row in rows(&kdf(), "cases") {
        let (ni, nr) = (bytes(row, "ni"), bytes(row, "nr"));
        assert_keys(
            &first(
                row,
                Nonces {
                    initiator: &ni,
                    responder: &nr,
                },
            ),
            &row["keys"],
        );
    }
}

#[test]
fn a_ppk_is_mixed_in_as_computed_elsewhere() {
    for row in rows(&kdf(), "cases") {
        let (ni, nr) = (bytes(row, "ni"), bytes(row, "nr"));
        let nonces = Nonces {
            initiator: &ni,
            responder: &nr,
        };
        let mut keys = first(row, nonces).for_role(Role::Initiator).unwrap();
        let ppk = SecretBytes::new(bytes(&row["ppk"], "key"));
        keys.mix_ppk(&ppk).unwrap();
        for (key, name) in [
            (&keys.sk_d.key, "sk_d"),
            (&keys.sk_p_local.key, "sk_pi"),
            (&keys.sk_p_remote.key, "sk_pr"),
        ] {
            assert_eq!(hex::encode(key.expose()), text(&row["ppk"], name), "{name}");
        }
    }
}

#[test]
fn child_keys_with_and_without_pfs_as_computed_elsewhere() {
    for row in rows(&kdf(), "cases") {
        let (ni, nr) = (bytes(row, "ni"), bytes(row, "nr"));
        let nonces = Nonces {
            initiator: &ni,
            responder: &nr,
        };
        let keys = first(row, nonces);
        let new = &row["rekey"];
        let (new_ni, new_nr) = (bytes(new, "ni"), bytes(new, "nr"));
        let new_nonces = Nonces {
            initiator: &new_ni,
            responder: &new_nr,
        };
        for (suite, (plain, pfs)) in SUITES
            .into_iter()
            .zip(rows(row, "child").iter().zip(rows(row, "child_pfs")))
        {
            assert_eq!(format!("{suite:?}"), text(plain, "suite"));
            assert_child(
                &child_keymat(&keys.sk_d, nonces, Secrets::default(), suite).unwrap(),
                plain,
            );
            let shared = shared(new, "shared");
            assert_child(
                &child_keymat(&keys.sk_d, new_nonces, Secrets::one(&shared), suite).unwrap(),
                pfs,
            );
        }
    }
}

#[test]
fn rekey_as_computed_elsewhere_even_to_another_function() {
    for row in rows(&kdf(), "cases") {
        let (ni, nr) = (bytes(row, "ni"), bytes(row, "nr"));
        let old = first(
            row,
            Nonces {
                initiator: &ni,
                responder: &nr,
            },
        );
        let new = &row["rekey"];
        let (ni, nr) = (bytes(new, "ni"), bytes(new, "nr"));
        let nonces = Nonces {
            initiator: &ni,
            responder: &nr,
        };
        let suite = suite(text(new, "prf"), text(row, "cipher"));
        let seed = SkeySeed::rekey(
            &old.sk_d,
            suite,
            nonces,
            Secrets::one(&shared(new, "shared")),
        );
        assert_eq!(hex::encode(seed.seed.expose()), text(new, "skeyseed"));
        assert_keys(&seed.into_keys(nonces, spis(new)).unwrap(), &new["keys"]);
    }
}

/// Libreswan's `derivedKeyingMaterial…` are the same streams, cut elsewhere.
#[test]
fn libreswan_derives_the_same() {
    for row in rows(
        &load(include_str!("../../../tests/vectors/cavp.json")),
        "cases",
    ) {
        let (ni, nr) = (bytes(row, "nInit"), bytes(row, "nResp"));
        let nonces = Nonces {
            initiator: &ni,
            responder: &nr,
        };
        let suite = suite(text(row, "prf"), "Aes256Gcm16");
        let seed = SkeySeed::new(suite, nonces, &shared(row, "gir"));
        assert_eq!(hex::encode(seed.seed.expose()), text(row, "sKeySeed"));
        let spis = Spis {
            initiator: number(row, "spiInit"),
            responder: number(row, "spiResp"),
        };
        let keys = seed.into_keys(nonces, spis).unwrap();
        let all = [
            &keys.sk_d.key,
            &keys.sk_ei.key,
            &keys.sk_er.key,
            &keys.sk_pi.key,
            &keys.sk_pr.key,
        ];
        let joined: String = all.iter().map(|key| hex::encode(key.expose())).collect();
        assert_eq!(joined, text(row, "derivedKeyingMaterial"));

        let new = shared(row, "girNew");
        for (secret, field) in [
            (None, "derivedKeyingMaterialChild"),
            (Some(&new), "derivedKeyingMaterialDh"),
        ] {
            let secrets = Secrets {
                shared: secret,
                additional: None,
            };
            let child = child_keymat(&keys.sk_d, nonces, secrets, EspSuite::Aes256Gcm16).unwrap();
            let both = [
                child.initiator_to_responder.expose(),
                child.responder_to_initiator.expose(),
            ]
            .concat();
            assert!(text(row, field).starts_with(&hex::encode(both)), "{field}");
        }
        let rekeyed = SkeySeed::rekey(&keys.sk_d, suite, nonces, Secrets::one(&new));
        assert_eq!(
            hex::encode(rekeyed.seed.expose()),
            text(row, "sKeySeedReKey")
        );
    }
}

#[test]
fn roles_mirror_each_other() {
    let keymat = ChildKeymat {
        initiator_to_responder: SecretBytes::copy_from(b"i to r"),
        responder_to_initiator: SecretBytes::copy_from(b"r to i"),
    };
    let (keys_in, keys_out) = keymat.clone().for_role(Role::Initiator);
    assert_eq!(
        (keys_in.expose(), keys_out.expose()),
        (&b"r to i"[..], &b"i to r"[..])
    );
    assert_eq!(keymat.for_role(Role::Responder), (keys_out, keys_in));
}

#[test]
fn each_role_opens_what_the_other_seals_and_not_its_own() {
    let header = crate::wire::Header {
        spi_i: 1,
        spi_r: 2,
        next_payload: crate::wire::PayloadType::None,
        exchange: crate::wire::ExchangeType::Informational,
        flags: crate::wire::Flags::default(),
        message_id: 3,
    };
    let vectors = kdf();
    let row = &rows(&vectors, "cases")[0];
    let (ni, nr) = (bytes(row, "ni"), bytes(row, "nr"));
    let end = |role| {
        first(
            row,
            Nonces {
                initiator: &ni,
                responder: &nr,
            },
        )
        .for_role(role)
        .unwrap()
    };
    let (mut initiator, mut responder) = (end(Role::Initiator), end(Role::Responder));
    let none = crate::wire::PayloadType::None;
    let request = initiator
        .sealer
        .seal_message(&header, none, b"text")
        .unwrap();
    assert_eq!(*responder.opener.open(&request, 32).unwrap(), b"text");
    assert_eq!(
        initiator.opener.open(&request, 32).unwrap_err(),
        CryptoError::SkAuthentication
    );
    let response = responder
        .sealer
        .seal_message(&header, none, b"back")
        .unwrap();
    assert_eq!(*initiator.opener.open(&response, 32).unwrap(), b"back");
    assert_eq!(
        responder.opener.open(&response, 32).unwrap_err(),
        CryptoError::SkAuthentication
    );
    assert_eq!(
        initiator.sk_p_local.mac(&[b"id"]),
        responder.sk_p_remote.mac(&[b"id"])
    );
    assert_eq!(
        responder.sk_p_local.mac(&[b"id"]),
        initiator.sk_p_remote.mac(&[b"id"])
    );
}

#[test]
fn debug_of_every_stage_prints_no_key() {
    let vectors = kdf();
    let row = &rows(&vectors, "cases")[0];
    let (ni, nr) = (bytes(row, "ni"), bytes(row, "nr"));
    let nonces = Nonces {
        initiator: &ni,
        responder: &nr,
    };
    let suite = suite(text(row, "prf"), text(row, "cipher"));
    let seed = SkeySeed::new(suite, nonces, &shared(row, "shared"));
    assert_redacted(&format!("{seed:?}"), seed.seed.expose());
    let keys = seed.into_keys(nonces, spis(row)).unwrap();
    let shown = format!("{keys:?} {:?} {:?} {:?}", keys.sk_d, keys.sk_ei, keys.sk_pi);
    let child = child_keymat(
        &keys.sk_d,
        nonces,
        Secrets::default(),
        EspSuite::Aes256Gcm16,
    )
    .unwrap();
    let shown = format!("{shown} {child:?}");
    for secret in [&child.initiator_to_responder, &child.responder_to_initiator] {
        assert_redacted(&shown, secret.expose());
    }
    let roles = first(row, nonces).for_role(Role::Initiator).unwrap();
    let shown = format!("{shown} {roles:?} {:#?}", roles.sealer);
    for field in ["sk_d", "sk_ei", "sk_er", "sk_pi", "sk_pr"] {
        assert_redacted(&shown, &bytes(&row["keys"], field));
    }
}

/// Against Libreswan's stream: encryption key before integrity key, the initiator's direction before the responder's.
#[test]
fn integrity_keys_follow_encryption_keys() {
    let cbc = EspSuite::Aes256Cbc(Integrity::HmacSha256).into();
    let suites: [ChildSuite; 3] = [
        cbc,
        EspSuite::Aes128Gmac.into(),
        ChildSuite::Ah(Integrity::HmacSha256),
    ];
    for row in rows(
        &load(include_str!("../../../tests/vectors/cavp.json")),
        "cases",
    ) {
        let (ni, nr) = (bytes(row, "nInit"), bytes(row, "nResp"));
        let nonces = Nonces {
            initiator: &ni,
            responder: &nr,
        };
        let seed = SkeySeed::new(
            suite(text(row, "prf"), "Aes256Gcm16"),
            nonces,
            &shared(row, "gir"),
        );
        let spis = Spis {
            initiator: number(row, "spiInit"),
            responder: number(row, "spiResp"),
        };
        let sk_d = seed.into_keys(nonces, spis).unwrap().sk_d;
        let stream = text(row, "derivedKeyingMaterialChild");
        for suite in suites {
            let keymat = child_keymat(&sk_d, nonces, Secrets::default(), suite).unwrap();
            let split = |keys| ChildKeys::split(keys, suite);
            let (to_r, to_i) = (
                split(&keymat.initiator_to_responder),
                split(&keymat.responder_to_initiator),
            );
            let lens = (to_r.key.len(), to_r.integrity.len());
            assert_eq!(lens, suite.key_lens());
            let all = [&to_r.key, &to_r.integrity, &to_i.key, &to_i.integrity];
            let joined: String = all.iter().map(|key| hex::encode(key.expose())).collect();
            let same = joined.len().min(stream.len());
            assert_eq!(joined[..same], stream[..same], "{suite:?}");
        }
    }
}
