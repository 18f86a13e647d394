//! Certificate chains. Keys are random, so these are made once and committed: a CA certificate in `keys/`, whose private key
//! is thrown away, and chains that it signed or did not sign in `corpus/ike_verify_peer/`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use espalier_ike::Identity;
use espalier_ike::identity::{TrustAnchors, verify_peer};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SignatureAlgorithm, date_time_ymd,
};

const EKU_IPSEC_IKE: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 17];
const UID: &str = "11111111-2222-3333-4444-555555555555";

/// `cargo test -p espalier-fuzz --test corpus -- --ignored make_certificates`, if ever they have to be made anew.
#[test]
#[ignore = "makes new committed files"]
fn make_certificates() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let (ca, foreign) = (authority("Espalier fuzz CA"), authority("another CA"));
    let between = intermediate(&ca);
    fs::create_dir_all(root.join("keys")).unwrap();
    fs::write(root.join("keys/ca.crt"), ca.pem()).unwrap();
    let folder = root.join("corpus/ike_verify_peer");
    fs::create_dir_all(&folder).unwrap();
    let good = leaf(&ca, node("node-a", UID));
    let below = leaf(&between, node("node-a", UID));
    for (name, chain) in [
        ("good", vec![good.clone()]),
        (
            "good-intermediate",
            vec![below.clone(), between.der().to_vec()],
        ),
        (
            "good-without-uid",
            vec![leaf(&ca, params(&[dns("node-a")]))],
        ),
        ("intermediate-missing", vec![below]),
        ("foreign-ca", vec![leaf(&foreign, node("node-a", UID))]),
        ("other-name", vec![leaf(&ca, node("node-b", UID))]),
        ("other-uid", vec![leaf(&ca, node("node-a", "no-such-uid"))]),
        ("no-name", vec![leaf(&ca, params(&[]))]),
        ("expired", vec![leaf(&ca, expired())]),
        ("no-usage", vec![leaf(&ca, no_usage())]),
        (
            "p384",
            vec![leaf_with(
                &ca,
                node("node-a", UID),
                &rcgen::PKCS_ECDSA_P384_SHA384,
            )],
        ),
        (
            "ed25519",
            vec![leaf_with(&ca, node("node-a", UID), &rcgen::PKCS_ED25519)],
        ),
        ("ca-itself", vec![ca.der().to_vec()]),
        ("too-long", vec![good.clone(); 5]),
        ("cut", vec![good[..good.len() - 1].to_vec()]),
        ("not-der", vec![b"certificate".to_vec()]),
        ("empty-certificate", vec![vec![]]),
        ("empty", vec![]),
    ] {
        fs::write(folder.join(name), joined(&chain)).unwrap();
    }
}

/// The target's corpus is of use only if verification gets to its end in some files and stops early in others.
#[test]
fn chains_that_are_good_by_name_are_accepted_and_no_others() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let anchors = TrustAnchors::from_file(&root.join("keys/ca.crt")).unwrap();
    let in_2030 = Duration::from_secs(1_893_456_000);
    for file in fs::read_dir(root.join("corpus/ike_verify_peer")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let bytes = fs::read(&path).unwrap();
        let chain = espalier_fuzz::split_chain(&bytes);
        let expected = Identity("node-a".into());
        let verified = verify_peer(&anchors, &chain, &expected, Some(UID), in_2030);
        let good = [
            "good",
            "good-intermediate",
            "good-without-uid",
            "p384",
            "ed25519",
        ];
        assert_eq!(
            verified.is_ok(),
            good.contains(&name.as_str()),
            "{name}: {verified:?}"
        );
    }
}

/// Each behind its length.
fn joined(chain: &[Vec<u8>]) -> Vec<u8> {
    let length = |der: &Vec<u8>| u16::try_from(der.len()).unwrap().to_be_bytes();
    chain
        .iter()
        .flat_map(|der| [&length(der)[..], der].concat())
        .collect()
}

fn params(names: &[SanType]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "fuzz");
    params.subject_alt_names = names.to_vec();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(EKU_IPSEC_IKE.to_vec())];
    params
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(name).unwrap())
}

fn node(name: &str, uid: &str) -> CertificateParams {
    let uri = format!("espalier://node/{name}/{uid}");
    params(&[dns(name), SanType::URI(Ia5String::try_from(uri).unwrap())])
}

fn expired() -> CertificateParams {
    let mut params = node("node-a", UID);
    params.not_after = date_time_ymd(2021, 1, 1);
    params
}

fn no_usage() -> CertificateParams {
    let mut params = node("node-a", UID);
    params.extended_key_usages.clear();
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(&[]);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages.clear();
    params
}

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Issuer {
    CertifiedIssuer::self_signed(ca_params(name), KeyPair::generate().unwrap()).unwrap()
}

fn intermediate(issuer: &Issuer) -> Issuer {
    let params = ca_params("Espalier fuzz intermediate CA");
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), issuer).unwrap()
}

fn leaf(issuer: &Issuer, params: CertificateParams) -> Vec<u8> {
    leaf_with(issuer, params, &rcgen::PKCS_ECDSA_P256_SHA256)
}

fn leaf_with(
    issuer: &Issuer,
    params: CertificateParams,
    algorithm: &'static SignatureAlgorithm,
) -> Vec<u8> {
    let key = KeyPair::generate_for(algorithm).unwrap();
    params.signed_by(&key, issuer).unwrap().der().to_vec()
}
