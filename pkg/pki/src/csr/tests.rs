use rcgen::{
    BasicConstraints, CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P521_SHA512, PKCS_RSA_SHA256,
    SanType,
};

use super::*;

fn refused(pem: &str) -> String {
    read(pem.as_bytes()).unwrap_err().to_string()
}

fn changed(change: impl FnOnce(&mut CertificateParams)) -> Request {
    let mut params = node_params("node-a", Some("u-1")).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    read(pem.as_bytes()).unwrap()
}

#[test]
fn what_a_node_makes_is_read_with_its_names_and_key() {
    let (key, pem) = make("node-a.example", "u-1").unwrap();
    let key = NodeKey::from_pem("key", key.expose()).unwrap();
    let request = read(pem.as_bytes()).unwrap();
    assert_eq!(request.spki, key.spki());
    request.check_names("node-a.example", "u-1").unwrap();
    let name = request.object_name("node-a.example");
    assert!(name.starts_with("espalier-node-a.example-"), "{name}");
    assert_eq!(name.len(), "espalier-node-a.example-".len() + 10);
    assert_eq!(object_name(&"a.".repeat(126), &key.spki()).len(), 253);
}

#[test]
fn other_names_than_the_nodes_are_told_apart() {
    let good = changed(|_| {});
    for (node, uid) in [("node-b", "u-1"), ("node-a", "u-2")] {
        let error = good.check_names(node, uid).unwrap_err().to_string();
        assert!(
            error.contains("DNS:node-a") && error.contains(node) && error.contains(uid),
            "{error}"
        );
    }
    let changes: [fn(&mut CertificateParams); 5] = [
        |params| params.subject_alt_names.clear(),
        |params| {
            let other = SanType::DnsName("node-b".try_into().unwrap());
            params.subject_alt_names.push(other);
        },
        |params| {
            let address = std::net::Ipv4Addr::LOCALHOST.into();
            params.subject_alt_names.push(SanType::IpAddress(address));
        },
        |params| {
            params
                .distinguished_name
                .push(rcgen::DnType::OrganizationName, "system:masters");
        },
        |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
    ];
    for change in changes {
        let error = changed(change).check_names("node-a", "u-1").unwrap_err();
        assert!(matches!(error, PkiError::RequestNames { .. }), "{error}");
    }
}

#[test]
fn a_request_that_is_not_signed_by_its_key_is_refused() {
    let (_, pem) = make("node-a", "u-1").unwrap();
    let mut der = section(pem.as_bytes()).unwrap();
    let place = der.windows(6).position(|bytes| bytes == b"node-a").unwrap();
    der[place + 5] = b'b';
    let forged = pem::encode(&pem::Pem::new(LABEL, der));
    assert!(refused(&forged).contains("not signed with its own key"));
}

#[test]
fn keys_that_the_mesh_refuses_are_refused_here() {
    for algorithm in [&PKCS_RSA_SHA256, &PKCS_ECDSA_P521_SHA512] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = node_params("node-a", Some("u-1")).unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        assert!(refused(&pem).contains("unsupported public key"));
    }
}

#[test]
fn what_is_no_single_request_is_refused() {
    let (key, pem) = make("node-a", "u-1").unwrap();
    let key = String::from_utf8(key.expose().to_vec()).unwrap();
    assert!(refused("").contains("no PEM section"));
    assert!(refused(&key).contains("PRIVATE KEY"));
    assert!(refused(&format!("{pem}{pem}")).contains("more than one"));
    assert!(refused(&"x".repeat(MAX_REQUEST_BYTES + 1)).contains("at most"));
    let mut der = section(pem.as_bytes()).unwrap();
    der.push(0);
    let longer = pem::encode(&pem::Pem::new(LABEL, der.clone()));
    assert!(refused(&longer).contains("after its end"));
    der.truncate(100);
    let shorter = pem::encode(&pem::Pem::new(LABEL, der));
    assert!(refused(&shorter).contains("cannot be read"));
}
