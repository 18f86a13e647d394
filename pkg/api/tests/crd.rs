//! The checked-in CRDs are what the types say. `UPDATE_CRDS=1 cargo test -p espalier-api` writes them anew.

use espalier_api::{EncryptionPolicy, ExternalPeer, MeshNode};
use kube::CustomResourceExt as _;

#[test]
fn the_checked_in_crds_are_up_to_date() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds");
    for (file, crd) in [
        ("encryptionpolicies.yaml", EncryptionPolicy::crd()),
        ("externalpeers.yaml", ExternalPeer::crd()),
        ("meshnodes.yaml", MeshNode::crd()),
    ] {
        let path = format!("{folder}/{file}");
        let generated = serde_saphyr::to_string(&crd).unwrap();
        if std::env::var_os("UPDATE_CRDS").is_some() {
            std::fs::write(&path, &generated).unwrap();
        }
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            checked_in == generated,
            "deploy/crds/{file} is stale: UPDATE_CRDS=1 cargo test -p espalier-api"
        );
    }
}
