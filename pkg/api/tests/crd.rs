//! The checked-in CRD is what the types say. `UPDATE_CRDS=1 cargo test -p espalier-api` writes it anew.

use espalier_api::EncryptionPolicy;
use kube::CustomResourceExt as _;

#[test]
fn the_checked_in_crd_is_up_to_date() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/crds/encryptionpolicies.yaml"
    );
    let generated = serde_saphyr::to_string(&EncryptionPolicy::crd()).unwrap();
    if std::env::var_os("UPDATE_CRDS").is_some() {
        std::fs::write(path, &generated).unwrap();
    }
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        checked_in == generated,
        "deploy/crds/encryptionpolicies.yaml is stale: UPDATE_CRDS=1 cargo test -p espalier-api"
    );
}
