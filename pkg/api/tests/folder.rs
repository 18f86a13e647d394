//! A folder is followed live.

#![allow(clippy::unwrap_used, reason = "a helper of tests may fail its test")]

use std::fs;
use std::time::Duration;

use espalier_api::{FolderSource, MeshSnapshot};
use espalier_peers::Mode;
use tokio::sync::watch;

const POLICY: &str = "apiVersion: espalier.dev/v1alpha1\nkind: EncryptionPolicy\nmetadata: {name: default}\n\
                      spec: {mode: MODE, clusterCIDRs: [10.244.0.0/16]}\n";

async fn until(
    seen: &mut watch::Receiver<MeshSnapshot>,
    wanted: impl FnMut(&MeshSnapshot) -> bool,
) -> MeshSnapshot {
    // A bound against hanging for ever, not a measurement.
    tokio::time::timeout(Duration::from_secs(30), seen.wait_for(wanted))
        .await
        .unwrap()
        .unwrap()
        .clone()
}

#[tokio::test]
async fn edits_in_place_and_by_rename_are_followed_and_temp_files_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("policy.yaml"), POLICY.replace("MODE", "Disabled")).unwrap();
    let source = FolderSource::start(folder.path()).unwrap();
    let mut seen = source.snapshots();
    assert_eq!(seen.borrow().policy.mode, Mode::Disabled);

    fs::write(path(".policy.yaml.swp"), "kind: [").unwrap();
    fs::write(path("policy.yaml~"), "kind: [").unwrap();
    fs::write(path("policy.yaml"), POLICY.replace("MODE", "Required")).unwrap();
    let snapshot = until(&mut seen, |snapshot| snapshot.policy.mode == Mode::Required).await;
    assert_eq!(snapshot.problems, []);

    fs::write(path(".new"), POLICY.replace("MODE", "Permissive")).unwrap();
    fs::rename(path(".new"), path("policy.yaml")).unwrap();
    until(&mut seen, |snapshot| {
        snapshot.policy.mode == Mode::Permissive
    })
    .await;

    fs::remove_file(path("policy.yaml")).unwrap();
    let snapshot = until(&mut seen, |snapshot| !snapshot.problems.is_empty()).await;
    assert_eq!(snapshot.policy.mode, Mode::Permissive);
}

#[tokio::test]
async fn a_missing_folder_is_named_with_its_remedy() {
    let error = FolderSource::start("/nonexistent/manifests")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/nonexistent/manifests")
            && error.contains("EncryptionPolicy named default"),
        "{error}"
    );
}
