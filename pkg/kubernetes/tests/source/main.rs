//! The API server as a source: what is complete counts, and nothing else changes anything.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod enrolment;
mod fake;
mod writes;

use std::time::Duration;

use espalier_api::MeshSnapshot;
use espalier_kubernetes::{Backoff, KubeSource, Timing};
use espalier_peers::Mode;
use serde_json::{Value, json};
use tokio::sync::watch;

use fake::{EXTERNALS, Fake, NODES, POLICIES};

fn node(name: &str, number: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": format!("u-{name}")},
        "spec": {"podCIDRs": [format!("10.244.{number}.0/24")]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.{number}")}]},
    })
}

fn policy(mode: &str, generation: i64) -> Value {
    json!({
        "apiVersion": "espalier.dev/v1alpha1", "kind": "EncryptionPolicy",
        "metadata": {"name": "default", "generation": generation},
        "spec": {"mode": mode, "clusterCIDRs": ["10.244.0.0/16"]},
    })
}

fn good() -> Fake {
    let fake = Fake::new();
    fake.put(POLICIES, policy("Required", 1));
    fake.put(NODES, node("a", 1));
    fake.put(NODES, node("b", 2));
    fake
}

type Seen = watch::Receiver<MeshSnapshot>;

fn start(fake: &Fake) -> KubeSource {
    let timing = Timing {
        settle: Duration::from_millis(5),
        patience: Duration::from_millis(300),
        works_after: Duration::from_millis(200),
        backoff: Backoff::new(Duration::from_millis(10), Duration::from_millis(50)),
    };
    KubeSource::start_with(&fake.client(), &timing)
}

/// The first snapshot that is as it should be.
async fn until(seen: &mut Seen, right: impl FnMut(&MeshSnapshot) -> bool) -> MeshSnapshot {
    let wait = seen.wait_for(right);
    let found = tokio::time::timeout(Duration::from_secs(20), wait).await;
    found.expect("never so").unwrap().clone()
}

fn names(snapshot: &MeshSnapshot) -> Vec<&str> {
    snapshot
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .collect()
}

fn says(snapshot: &MeshSnapshot, words: &str) -> bool {
    snapshot
        .problem_texts()
        .iter()
        .any(|text| text.contains(words))
}

async fn in_force(fake: &Fake) -> Seen {
    let mut seen = start(fake).snapshots();
    until(&mut seen, |snapshot| names(snapshot) == ["a", "b"]).await;
    while fake.watches() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    seen
}

#[tokio::test]
async fn changes_are_followed() {
    let fake = good();
    let mut seen = in_force(&fake).await;
    assert_eq!(seen.borrow().problems, []);
    assert_eq!(seen.borrow().policy.generation, 1);
    fake.put(NODES, node("c", 3));
    until(&mut seen, |snapshot| names(snapshot) == ["a", "b", "c"]).await;
    fake.put(POLICIES, policy("Permissive", 2));
    until(&mut seen, |snapshot| {
        snapshot.policy.mode == Mode::Permissive
    })
    .await;
    assert_eq!(seen.borrow().policy.generation, 2);
    fake.delete(NODES, "b");
    until(&mut seen, |snapshot| names(snapshot) == ["a", "c"]).await;
}

#[tokio::test]
async fn nothing_is_in_force_before_every_list_is_complete() {
    let fake = good();
    fake.unserve(EXTERNALS);
    let mut seen = start(&fake).snapshots();
    let missing = "CustomResourceDefinition externalpeers.espalier.dev is not installed";
    let snapshot = until(&mut seen, |snapshot| says(snapshot, missing)).await;
    assert_eq!(names(&snapshot), [""; 0]);
    fake.serve(EXTERNALS);
    let snapshot = until(&mut seen, |snapshot| names(snapshot) == ["a", "b"]).await;
    assert_eq!(snapshot.problems, []);
}

#[tokio::test]
async fn a_server_that_is_away_changes_nothing_and_is_named_after_a_while() {
    let fake = good();
    let mut seen = in_force(&fake).await;
    fake.away(true);
    let word = "the API server cannot be reached";
    let snapshot = until(&mut seen, |snapshot| says(snapshot, word)).await;
    assert_eq!(names(&snapshot), ["a", "b"]);
    assert_eq!(snapshot.policy.mode, Mode::Required);
    assert!(says(&snapshot, "stays in force"), "{:?}", snapshot.problems);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(names(&seen.borrow()), ["a", "b"]);
    fake.away(false);
    let snapshot = until(&mut seen, |snapshot| snapshot.problems.is_empty()).await;
    assert_eq!(names(&snapshot), ["a", "b"]);
}

#[tokio::test]
async fn what_happened_while_a_watch_was_too_old_is_noticed() {
    for refused in [false, true] {
        let fake = good();
        let mut seen = in_force(&fake).await;
        fake.away(true);
        tokio::time::sleep(Duration::from_millis(100)).await;
        fake.delete(NODES, "b");
        fake.put(NODES, node("c", 3));
        if refused {
            // As a status of the request, as after its store was restored.
            fake.forget_history(410);
            fake.away(false);
        } else {
            fake.away(false);
            while fake.watches() < 3 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            fake.expire();
        }
        until(&mut seen, |snapshot| names(snapshot) == ["a", "c"]).await;
        assert_eq!(fake.lists(NODES), 2);
    }
}

#[tokio::test]
async fn a_bad_object_hides_no_other_and_its_last_good_version_stays() {
    let fake = good();
    let mut seen = in_force(&fake).await;
    let mut bad = policy("Required", 2);
    bad["spec"]["mode"] = json!("Off");
    fake.put(POLICIES, bad);
    let mut other = policy("Disabled", 1);
    other["metadata"]["name"] = json!("other");
    fake.put(POLICIES, other);
    let snapshot = until(&mut seen, |snapshot| snapshot.problems.len() == 2).await;
    assert_eq!(
        (snapshot.policy.mode, snapshot.policy.generation),
        (Mode::Required, 1)
    );
    assert!(
        says(&snapshot, "Kubernetes, EncryptionPolicy default: spec.mode"),
        "{:?}",
        snapshot.problems
    );
    assert!(
        says(&snapshot, "last good version stays in force"),
        "{:?}",
        snapshot.problems
    );
    assert!(
        says(&snapshot, "EncryptionPolicy other"),
        "{:?}",
        snapshot.problems
    );
    fake.delete(POLICIES, "other");
    fake.delete(POLICIES, "default");
    let snapshot = until(&mut seen, |snapshot| {
        says(snapshot, "no EncryptionPolicy named default")
    })
    .await;
    assert_eq!(snapshot.policy.mode, Mode::Required);
}
