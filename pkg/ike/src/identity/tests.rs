//! A small PKI made for each test, and one thing wrong with it.

mod loading;

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, SanType, SignatureAlgorithm,
    date_time_ymd,
};

use super::*;
use crate::config::Identity;
use crate::crypto::{AuthError, Prf, SignatureScheme, SignedOctets, SkP};

/// 2027-01-15 08:00:00 UTC; certificates are valid from 2026 to 2028 unless a test says otherwise.
const NOW: Duration = Duration::from_secs(1_800_000_000);
const UID: &str = "11111111-2222-3333-4444-555555555555";

type Ca = CertifiedIssuer<'static, KeyPair>;

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2028, 1, 1);
    params
}

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn ca() -> Ca {
    Ca::self_signed(ca_params("mesh CA"), key(&PKCS_ECDSA_P256_SHA256)).unwrap()
}

/// As `espalier pki issue` makes it.
fn node_params() -> CertificateParams {
    let mut params = named("node-a");
    let uri = format!("{NODE_URI_PREFIX}node-a/{UID}");
    params.subject_alt_names = vec![
        SanType::DnsName("node-a".try_into().unwrap()),
        SanType::URI(uri.try_into().unwrap()),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![
        1, 3, 6, 1, 5, 5, 7, 3, 17,
    ])];
    params
}

fn sign(params: &CertificateParams, ca: &Ca) -> Vec<u8> {
    params
        .signed_by(&key(&PKCS_ECDSA_P256_SHA256), ca)
        .unwrap()
        .der()
        .to_vec()
}

fn anchors(cas: &[&Ca]) -> TrustAnchors {
    let mut anchors = TrustAnchors::default();
    cas.iter().for_each(|ca| anchors.add_der(ca.der()).unwrap());
    anchors
}

fn verify(ca: &Ca, chain: &[&[u8]]) -> Result<VerifiedPeer, IdentityError> {
    verify_peer(&anchors(&[ca]), chain, &node("node-a"), Some(UID), NOW)
}

fn node(name: &str) -> Identity {
    Identity(name.into())
}

/// The error for a certificate that differs from a good one by `change`.
fn refused(change: impl FnOnce(&mut CertificateParams)) -> IdentityError {
    let ca = ca();
    let mut params = node_params();
    change(&mut params);
    verify(&ca, &[&sign(&params, &ca)]).unwrap_err()
}

fn assert_says(error: &IdentityError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn credentials(ca: &Ca, algorithm: &'static SignatureAlgorithm) -> Credentials {
    let key = key(algorithm);
    let certificate = node_params().signed_by(&key, ca).unwrap();
    Credentials::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
}

fn octets(id: &[u8]) -> SignedOctets {
    SignedOctets::new(
        b"message",
        b"nonce",
        &SkP::from_test(Prf::HmacSha256, &[7; 32]),
        id,
    )
}

#[test]
fn a_good_certificate_gives_a_proof_that_checks_signatures() {
    let ca = ca();
    for algorithm in [
        &PKCS_ECDSA_P256_SHA256,
        &PKCS_ECDSA_P384_SHA384,
        &PKCS_ED25519,
    ] {
        let own = credentials(&ca, algorithm);
        let peer = own
            .check(&anchors(&[&ca]), &node("node-a"), Some(UID), NOW)
            .unwrap();
        assert_eq!((peer.identity(), peer.uid()), (&node("node-a"), Some(UID)));
        assert_eq!(peer.not_after(), own.not_after());
        let data = own.sign(&octets(b"id")).unwrap();
        peer.verify_signature(&octets(b"id"), &data).unwrap();
        assert_eq!(
            peer.verify_signature(&octets(b"other"), &data),
            Err(AuthError::BadSignature)
        );
    }
}

#[test]
fn a_signature_of_another_key_or_algorithm_is_refused() {
    let ca = ca();
    let [p256, other, ed25519] = [
        &PKCS_ECDSA_P256_SHA256,
        &PKCS_ECDSA_P256_SHA256,
        &PKCS_ED25519,
    ]
    .map(|algorithm| credentials(&ca, algorithm));
    let peer = p256
        .check(&anchors(&[&ca]), &node("node-a"), Some(UID), NOW)
        .unwrap();
    let error = peer
        .verify_signature(&octets(b"id"), &other.sign(&octets(b"id")).unwrap())
        .unwrap_err();
    assert!(
        error.to_string().contains("does not hold the private key"),
        "{error}"
    );
    let error = peer
        .verify_signature(&octets(b"id"), &ed25519.sign(&octets(b"id")).unwrap())
        .unwrap_err();
    let (signed, certified) = (SignatureScheme::Ed25519, SignatureScheme::EcdsaP256Sha256);
    assert_eq!(error, AuthError::SchemeMismatch { signed, certified });
}

#[test]
fn expired() {
    let error = refused(|params| params.not_after = date_time_ymd(2027, 1, 14));
    assert!(matches!(error, IdentityError::Expired { .. }));
    assert_says(
        &error,
        &[
            "CN=node-a expired",
            "Jan 14 ",
            "2027",
            "now it is Jan 15 ",
            "espalier pki issue",
            "clock",
        ],
    );
}

#[test]
fn not_yet_valid() {
    let error = refused(|params| params.not_before = date_time_ymd(2027, 1, 16));
    assert!(matches!(error, IdentityError::NotYetValid { .. }));
    assert_says(
        &error,
        &[
            "CN=node-a is not yet valid",
            "valid from Jan 16 ",
            "now it is Jan 15 ",
            "clocks",
        ],
    );
}

#[test]
fn unknown_ca() {
    let (ours, theirs) = (
        ca(),
        Ca::self_signed(ca_params("other CA"), key(&PKCS_ED25519)).unwrap(),
    );
    let error = verify(&ours, &[&sign(&node_params(), &theirs)]).unwrap_err();
    assert!(matches!(error, IdentityError::UnknownIssuer { .. }));
    assert_says(
        &error,
        &[
            "issued by CN=other CA",
            "it trusts: CN=mesh CA",
            "add its CA",
        ],
    );
    // The peer cannot vouch for its own CA.
    let error = verify(&ours, &[&sign(&node_params(), &theirs), theirs.der()]).unwrap_err();
    assert!(
        matches!(error, IdentityError::UnknownIssuer { .. }),
        "{error}"
    );
}

#[test]
fn a_ca_of_the_same_name_with_another_key() {
    let error = verify(&ca(), &[&sign(&node_params(), &ca())]).unwrap_err();
    assert!(matches!(error, IdentityError::BadSignature { .. }));
    assert_says(
        &error,
        &[
            "claims to be issued by CN=mesh CA",
            "add the new ca.crt",
            "forged",
        ],
    );
}

#[test]
fn old_and_new_ca_are_trusted_while_both_are_configured() {
    let (old, new) = (ca(), ca());
    let both = anchors(&[&old, &new]);
    for issuer in [&old, &new] {
        verify_peer(
            &both,
            &[&sign(&node_params(), issuer)],
            &node("node-a"),
            Some(UID),
            NOW,
        )
        .unwrap();
    }
}

#[test]
fn a_ca_beyond_its_own_validity() {
    let mut params = ca_params("old CA");
    params.not_after = date_time_ymd(2026, 12, 31);
    let ca = Ca::self_signed(params, key(&PKCS_ECDSA_P256_SHA256)).unwrap();
    let error = verify(&ca, &[&sign(&node_params(), &ca)]).unwrap_err();
    assert!(matches!(error, IdentityError::AnchorNotValid { .. }));
    assert_says(
        &error,
        &[
            "CA certificate CN=old CA is not valid now",
            "until Dec 31 ",
            "espalier pki init",
        ],
    );
}

#[test]
fn another_nodes_certificate() {
    let ca = ca();
    let certificate = sign(&node_params(), &ca);
    let error = verify_peer(
        &anchors(&[&ca]),
        &[&certificate],
        &node("node-b"),
        None,
        NOW,
    )
    .unwrap_err();
    assert!(matches!(error, IdentityError::NameMismatch { .. }));
    assert_says(
        &error,
        &[
            "claims to be node-b",
            "certificate is for node-a",
            "--node node-b",
        ],
    );
}

#[test]
fn names_count_exactly_and_in_the_dns_san_only() {
    let ca = ca();
    let check = |san: Option<&str>, expected: &str| {
        let mut params = node_params();
        params.distinguished_name.push(DnType::CommonName, expected);
        params.subject_alt_names = san
            .iter()
            .map(|name| SanType::DnsName((*name).try_into().unwrap()))
            .collect();
        verify_peer(
            &anchors(&[&ca]),
            &[&sign(&params, &ca)],
            &node(expected),
            None,
            NOW,
        )
        .map(drop)
    };
    check(Some("a.example"), "a.example").unwrap();
    let cases = [
        (None, "a.example"),
        (Some("*.example"), "a.example"),
        (Some("A.example"), "a.example"),
    ];
    for (san, expected) in cases
        .into_iter()
        .chain([(Some("a.example"), "a"), (Some("a.example"), "*.example")])
    {
        let error = check(san, expected).unwrap_err();
        assert!(
            matches!(error, IdentityError::NameMismatch { .. }),
            "{san:?} {expected}: {error}"
        );
    }
}

#[test]
fn another_uid() {
    let ca = ca();
    let certificate = sign(&node_params(), &ca);
    let check = |uid| verify_peer(&anchors(&[&ca]), &[&certificate], &node("node-a"), uid, NOW);
    let error = check(Some("99")).unwrap_err();
    assert!(matches!(error, IdentityError::UidMismatch { .. }));
    assert_says(
        &error,
        &[
            &format!("bound to node-a/{UID}"),
            "node node-a has UID 99",
            "--uid 99",
        ],
    );
    check(Some(&UID[..35])).unwrap_err();
    // Nothing to compare with: the certificate's UID is reported.
    assert_eq!(check(None).unwrap().uid(), Some(UID));
}

#[test]
fn a_certificate_without_uid_is_accepted_and_one_for_another_node_is_not() {
    let ca = ca();
    let check = |uris: &[&str], uid| {
        let mut params = node_params();
        params.subject_alt_names.truncate(1);
        params.subject_alt_names.extend(
            uris.iter()
                .map(|uri| SanType::URI((*uri).try_into().unwrap())),
        );
        verify_peer(
            &anchors(&[&ca]),
            &[&sign(&params, &ca)],
            &node("node-a"),
            uid,
            NOW,
        )
        .map(|peer| peer.uid().map(str::to_owned))
    };
    assert_eq!(check(&[], Some("1")).unwrap(), None);
    assert_eq!(
        check(&["https://example/node-a/2"], Some("1")).unwrap(),
        None
    );
    assert_eq!(
        check(
            &["espalier://node/b/2", "espalier://node/node-a/1"],
            Some("1")
        )
        .unwrap(),
        Some("1".into())
    );
    for uri in [
        "espalier://node/node-b/1",
        "espalier://node/node-a/",
        "espalier://node/node-a1",
        "espalier://node/",
    ] {
        let error = check(&[uri], Some("1")).unwrap_err();
        assert!(
            matches!(error, IdentityError::UidMismatch { .. }),
            "{uri}: {error}"
        );
    }
}

#[test]
fn missing_eku() {
    let any = ExtendedKeyUsagePurpose::Any;
    for usages in [vec![], vec![ExtendedKeyUsagePurpose::ServerAuth], vec![any]] {
        let error = refused(|params| params.extended_key_usages = usages);
        assert!(matches!(error, IdentityError::MissingEku { .. }), "{error}");
        assert_says(
            &error,
            &[
                "CN=node-a lacks",
                "id-kp-ipsecIKE (1.3.6.1.5.5.7.3.17)",
                "espalier pki issue",
            ],
        );
    }
}

#[test]
fn missing_key_usage() {
    let error = refused(|params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
    assert!(matches!(error, IdentityError::MissingKeyUsage { .. }));
    assert_says(&error, &["digitalSignature", "espalier pki issue"]);
    // Absent: not restricted (RFC 5280 §4.2.1.3).
    let ca = ca();
    let mut params = node_params();
    params.key_usages.clear();
    verify(&ca, &[&sign(&params, &ca)]).unwrap();
}

#[test]
fn a_ca_as_end_entity() {
    let error = refused(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert!(matches!(error, IdentityError::CaUsedAsEndEntity { .. }));
    assert_says(&error, &["is a CA certificate", "espalier pki issue"]);
}

#[test]
fn a_node_cannot_issue() {
    let ca = ca();
    let mut params = node_params();
    params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    let middle = Ca::signed_by(params, key(&PKCS_ECDSA_P256_SHA256), &ca).unwrap();
    let error = verify(&ca, &[&sign(&node_params(), &middle), middle.der()]).unwrap_err();
    assert!(
        matches!(
            error,
            IdentityError::Refused { .. } | IdentityError::UnknownIssuer { .. }
        ),
        "{error}"
    );
}

#[test]
fn an_intermediate_needs_no_eku_but_must_be_sent_and_valid() {
    let ca = ca();
    let middle = Ca::signed_by(ca_params("middle CA"), key(&PKCS_ECDSA_P384_SHA384), &ca).unwrap();
    let leaf = sign(&node_params(), &middle);
    verify(&ca, &[&leaf, middle.der()]).unwrap();
    let error = verify(&ca, &[&leaf]).unwrap_err();
    assert_says(&error, &["issued by CN=middle CA", "it trusts: CN=mesh CA"]);

    let mut params = ca_params("late CA");
    params.not_after = date_time_ymd(2027, 1, 1);
    let late = Ca::signed_by(params, key(&PKCS_ECDSA_P256_SHA256), &ca).unwrap();
    let error = verify(&ca, &[&sign(&node_params(), &late), late.der()]).unwrap_err();
    assert_says(&error, &["a CA above CN=node-a expired", "Jan  1 "]);
}

#[test]
fn oversized_chains_are_refused_before_they_are_parsed() {
    let ca = ca();
    let leaf = sign(&node_params(), &ca);
    let longest: Vec<&[u8]> = vec![&leaf; MAX_CHAIN_LEN];
    verify(&ca, &longest).unwrap();
    let error = verify(&ca, &[&longest[..], &[b"not even DER"]].concat()).unwrap_err();
    assert_eq!(error, IdentityError::ChainTooLong { got: 5, most: 4 });
    assert_says(&error, &["leave out the root"]);
    let error = verify(&ca, &[&[0; MAX_CHAIN_BYTES + 1]]).unwrap_err();
    assert_eq!(
        error,
        IdentityError::ChainTooLarge {
            got: MAX_CHAIN_BYTES + 1,
            most: MAX_CHAIN_BYTES
        }
    );
    assert_says(&error, &["smaller certificates"]);
}

#[test]
fn nothing_sent_or_nobody_trusted() {
    let ca = ca();
    let error = verify(&ca, &[]).unwrap_err();
    assert_says(&error, &["sent no certificate", "PSK"]);
    let leaf = sign(&node_params(), &ca);
    let error = verify_peer(
        &TrustAnchors::default(),
        &[&leaf],
        &node("node-a"),
        None,
        NOW,
    )
    .unwrap_err();
    assert_says(&error, &["no trust anchor is configured", "ca.crt"]);
}

#[test]
fn a_change_of_any_byte_of_a_certificate_is_noticed() {
    let ca = ca();
    let leaf = sign(&node_params(), &ca);
    verify(&ca, &[&leaf]).unwrap();
    for at in 0..leaf.len() {
        let mut changed = leaf.clone();
        changed[at] ^= 1;
        verify(&ca, &[&changed]).unwrap_err();
    }
    for cut in 0..leaf.len() {
        verify(&ca, &[&leaf[..cut]]).unwrap_err();
    }
    assert_says(
        &verify(&ca, &[b"no certificate"]).unwrap_err(),
        &["cannot be read", "espalier pki issue"],
    );
}

/// The certificate's outer AlgorithmIdentifier is not covered by its signature: it must equal the inner one.
#[test]
fn a_tampered_algorithm_identifier() {
    let ca = ca();
    let leaf = sign(&node_params(), &ca);
    let sha256 = b"\x2a\x86\x48\xce\x3d\x04\x03\x02";
    let places: Vec<usize> = leaf
        .windows(8)
        .enumerate()
        .filter(|(_, w)| w == sha256)
        .map(|(at, _)| at)
        .collect();
    assert_eq!(places.len(), 2);
    for at in places {
        let mut changed = leaf.clone();
        changed[at + 7] = 3;
        let error = verify(&ca, &[&changed]).unwrap_err();
        assert!(matches!(error, IdentityError::Malformed(_)), "{error}");
        assert_says(
            &error,
            &[
                "signature algorithms differ: it was altered",
                "espalier pki issue",
            ],
        );
    }
}

#[test]
fn rsa_is_refused_as_issuer_and_as_key() {
    let rsa = || key(&PKCS_RSA_SHA256);
    let rsa_ca = Ca::self_signed(ca_params("RSA CA"), rsa()).unwrap();
    let error = verify(&rsa_ca, &[&sign(&node_params(), &rsa_ca)]).unwrap_err();
    assert!(
        matches!(error, IdentityError::UnsupportedAlgorithm { .. }),
        "{error}"
    );
    assert_says(&error, &["not RSA", "ECDSA"]);

    let (ca, key) = (ca(), rsa());
    let certificate = node_params().signed_by(&key, &ca).unwrap();
    let error = verify(&ca, &[certificate.der()]).unwrap_err();
    assert_eq!(error, IdentityError::Auth(AuthError::UnsupportedKey));
    assert_says(&error, &["none of P-256, P-384 and Ed25519"]);
    let pem = (certificate.pem(), key.serialize_pem());
    let error = Credentials::from_pem(pem.0.as_bytes(), pem.1.as_bytes()).unwrap_err();
    assert_eq!(error, IdentityError::Auth(AuthError::UnsupportedKey));
}

#[test]
fn an_unknown_critical_extension_is_refused() {
    let error = refused(|params| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
    });
    assert_says(&error, &["UnsupportedCriticalExtension"]);
}

#[test]
fn text_of_a_certificate_cannot_break_a_log_line() {
    let (ours, ca) = (
        ca(),
        Ca::self_signed(ca_params("evil\n\x1b[31mCA"), key(&PKCS_ED25519)).unwrap(),
    );
    let mut params = node_params();
    params
        .distinguished_name
        .push(DnType::CommonName, "x".repeat(5000));
    let text = verify(&ours, &[&sign(&params, &ca)])
        .unwrap_err()
        .to_string();
    assert!(
        text.chars().all(|c| !c.is_control()) && text.len() < 1000,
        "{text:?}"
    );
}
