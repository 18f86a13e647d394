//! Own credentials and trust anchors from PEM and DER.

use super::*;

#[test]
fn a_key_of_another_certificate_is_noticed_when_loading() {
    let ca = ca();
    let certificate = node_params()
        .signed_by(&key(&PKCS_ECDSA_P256_SHA256), &ca)
        .unwrap();
    for other in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
        let pem = (certificate.pem(), key(other).serialize_pem());
        let error = Credentials::from_pem(pem.0.as_bytes(), pem.1.as_bytes()).unwrap_err();
        assert!(matches!(error, IdentityError::KeyMismatch { .. }));
        assert_says(&error, &["CN=node-a", "issue both anew"]);
    }
}

#[test]
fn unreadable_files_are_named() {
    let missing = std::path::Path::new("/nonexistent/node-a.crt");
    for error in [
        Credentials::from_files(missing, missing).unwrap_err(),
        TrustAnchors::from_file(missing).unwrap_err(),
    ] {
        assert_says(
            &error,
            &["cannot read /nonexistent/node-a.crt", "espalier pki issue"],
        );
    }
}

#[test]
fn broken_pem_is_named() {
    let ca = ca();
    let (key, certificate) = (key(&PKCS_ECDSA_P256_SHA256), ca.pem());
    let error = Credentials::from_pem(b"", b"").unwrap_err();
    assert_says(
        &error,
        &["certificate: no CERTIFICATE section", "expected PEM"],
    );
    let error = Credentials::from_pem(certificate.as_bytes(), certificate.as_bytes()).unwrap_err();
    assert_says(&error, &["private key", "expected PEM"]);
    let error = TrustAnchors::from_pem(key.serialize_pem().as_bytes()).unwrap_err();
    assert_says(&error, &["trust anchor: no CERTIFICATE section"]);
}

#[test]
fn a_nodes_certificate_is_no_trust_anchor() {
    let ca = ca();
    let error = TrustAnchors::default()
        .add_der(&sign(&node_params(), &ca))
        .unwrap_err();
    assert!(matches!(error, IdentityError::AnchorNotCa { .. }));
    assert_says(
        &error,
        &["CN=node-a is not a CA certificate", "give ca.crt"],
    );
}

/// SHA-1 of the SubjectPublicKeyInfo, 20 bytes per anchor, in order.
#[test]
fn certreq_lists_every_anchor() {
    let (one, two) = (ca(), ca());
    let both = anchors(&[&one, &two]).certreq();
    assert_eq!(
        both,
        [anchors(&[&one]).certreq(), anchors(&[&two]).certreq()].concat()
    );
    let spki = rcgen::PublicKeyData::subject_public_key_info(one.key());
    let sha1 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &spki);
    assert_eq!(&both[..20], sha1.as_ref());
}

#[test]
fn debug_of_credentials_prints_no_key() {
    let ca = ca();
    let key = key(&PKCS_ED25519);
    let certificate = node_params().signed_by(&key, &ca).unwrap();
    let own = Credentials::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes())
        .unwrap();
    let shown = format!("{own:?}");
    assert!(shown.contains("SigningKey(Ed25519, redacted)"), "{shown}");
    let seed = &key.serialized_der()[16..48];
    let hexed = hex::encode(&seed[..4]);
    assert!(
        !shown.contains(&hexed) && !shown.contains(&format!("{:?}", &seed[..4])[1..15]),
        "{shown}"
    );
}
