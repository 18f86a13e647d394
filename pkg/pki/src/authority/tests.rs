use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData as _};

use super::*;
use crate::{Bundle, DAY, Leaf};

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn authority() -> Authority {
    Authority::make(&Validity::starting(NOW, 100)).unwrap()
}

fn issue(ca: &Authority, spki: &[u8], days: u32) -> Result<Leaf, PkiError> {
    let validity = Validity::starting(NOW, days);
    let pem = ca.issue(spki, "node-a", Some("u-1"), &validity, NOW)?;
    Leaf::read(pem.as_bytes())
}

#[test]
fn a_ca_written_and_read_again_signs_the_same() {
    let made = authority();
    let pem = made.anchor().pem();
    let read = Authority::from_pem(pem.as_bytes(), made.key_pem().expose()).unwrap();
    assert_eq!(read.anchor(), made.anchor());
    let leaf = issue(&read, &NodeKey::generate().unwrap().spki(), 5).unwrap();
    let bundle = Bundle::read(pem.as_bytes()).unwrap();
    assert_eq!(leaf.issued_by(&bundle), Some(made.anchor().fingerprint()));
}

#[test]
fn keys_of_all_accepted_kinds_are_certified_and_rsa_is_not() {
    let ca = authority();
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        issue(&ca, &key.subject_public_key_info(), 5).unwrap();
    }
    let rsa = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let error = issue(&ca, &rsa.subject_public_key_info(), 5).unwrap_err();
    assert!(error.to_string().contains("ECDSA P-256"), "{error}");
}

#[test]
fn no_certificate_outlives_its_ca_and_an_expired_ca_signs_nothing() {
    let ca = authority();
    let spki = NodeKey::generate().unwrap().spki();
    let leaf = issue(&ca, &spki, 365).unwrap();
    assert_eq!(leaf.not_after, NOW + 100 * DAY);
    let later = NOW + 101 * DAY;
    let error = ca
        .issue(&spki, "a", None, &Validity::starting(later, 5), later)
        .unwrap_err();
    assert!(matches!(error, PkiError::CaNotValid { .. }), "{error}");
}

#[test]
fn a_key_of_another_ca_and_a_certificate_that_is_no_ca_are_refused() {
    let (one, other) = (authority(), authority());
    let pem = one.anchor().pem();
    let error = Authority::from_pem(pem.as_bytes(), other.key_pem().expose()).unwrap_err();
    assert!(matches!(error, PkiError::KeyMismatch(_)), "{error}");
    let key = NodeKey::generate().unwrap();
    let validity = Validity::starting(NOW, 5);
    let leaf = one.issue(&key.spki(), "a", None, &validity, NOW).unwrap();
    let error = Authority::from_pem(leaf.as_bytes(), key.pem().expose()).unwrap_err();
    assert!(matches!(error, PkiError::NotCa(_)), "{error}");
    let error = Authority::from_pem(pem.as_bytes(), b"nothing").unwrap_err();
    assert!(matches!(error, PkiError::PrivateKey(_)), "{error}");
}

#[test]
fn names_that_are_none_are_not_signed() {
    let (ca, spki) = (authority(), NodeKey::generate().unwrap().spki());
    let validity = Validity::starting(NOW, 5);
    for (node, uid) in [("A", None), ("a/b", None), ("a", Some("a/b"))] {
        ca.issue(&spki, node, uid, &validity, NOW).unwrap_err();
    }
}

#[test]
fn a_bundle_has_one_hash_whatever_its_order_and_no_repeats() {
    let [a, b] = [authority(), authority()].map(|ca| ca.anchor().clone());
    let one = Bundle::new([a.clone(), b.clone(), a.clone()]);
    let other = Bundle::read(Bundle::new([b, a.clone()]).pem().as_bytes()).unwrap();
    assert_eq!((one.anchors().len(), one.hash()), (2, other.hash()));
    assert_ne!(one.hash(), Bundle::new([a]).hash());
}

#[test]
fn debug_output_shows_no_key() {
    let shown = format!("{:?}", authority());
    assert!(shown.contains("NodeKey(redacted)"), "{shown}");
}
