//! A source that tells of each object by itself, such as the API server: the rules are those of files.

#![allow(clippy::unwrap_used, reason = "a helper of tests may fail its test")]

use espalier_api::{Read, Store, read_value};
use espalier_peers::Mode;
use serde_json::{Value, json};

const SOURCE: &str = "Kubernetes";

fn node(name: &str, number: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDRs": [format!("10.244.{number}.0/24")]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.{number}")}]},
    })
}

fn policy(name: &str, mode: &str, generation: i64) -> Value {
    json!({
        "apiVersion": "espalier.dev/v1alpha1", "kind": "EncryptionPolicy",
        "metadata": {"name": name, "generation": generation},
        "spec": {"mode": mode, "clusterCIDRs": ["10.244.0.0/16"]},
    })
}

fn read(object: Value) -> Read {
    read_value(SOURCE, object).unwrap()
}

fn good() -> Store {
    let mut store = Store::default();
    for object in [policy("default", "Required", 1), node("a", 1), node("b", 2)] {
        assert!(store.put(SOURCE, read(object)));
    }
    store
}

fn names(store: &mut Store) -> Vec<String> {
    let nodes = store.snapshot().nodes;
    nodes.into_iter().map(|node| node.name).collect()
}

#[test]
fn what_is_told_again_changes_nothing() {
    let mut store = good();
    let before = store.snapshot();
    assert_eq!(
        (before.policy.mode, before.policy.generation),
        (Mode::Required, 1)
    );
    assert!(!store.put(SOURCE, read(node("a", 1))));
    assert!(!store.remove(SOURCE, "Node", "z"));
    assert_eq!(store.snapshot(), before);
}

#[test]
fn a_bad_version_keeps_the_last_good_one_until_the_object_goes() {
    let mut store = good();
    let mut bad = node("b", 3);
    bad["status"]["addresses"][0]["address"] = json!("10.0.0.300");
    assert!(store.put(SOURCE, read(bad.clone())));
    assert!(!store.put(SOURCE, read(bad)));
    let snapshot = store.snapshot();
    assert_eq!(
        snapshot.nodes[1].pod_cidrs,
        ["10.244.2.0/24".parse().unwrap()]
    );
    let texts = snapshot.problem_texts();
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(
        texts[0].starts_with("Kubernetes, Node b: status.addresses[0].address"),
        "{texts:?}"
    );
    assert!(
        texts[0].ends_with("its last good version stays in force"),
        "{texts:?}"
    );
    assert!(store.remove(SOURCE, "Node", "b"));
    assert_eq!(names(&mut store), ["a"]);
    assert_eq!(store.snapshot().problems, []);
}

#[test]
fn a_good_version_ends_the_problem() {
    let mut store = good();
    assert!(store.put(SOURCE, read(policy("default", "Off", 2))));
    assert_eq!(store.snapshot().policy.generation, 1);
    assert!(store.put(SOURCE, read(policy("default", "Required", 1))));
    assert_eq!(store.snapshot().problems, []);
}

#[test]
fn a_complete_list_removes_what_is_not_in_it_and_no_other_kind() {
    let mut store = good();
    let listed = vec![("c".to_owned(), read(node("c", 3)))];
    assert!(store.replace(SOURCE, "Node", listed.clone()));
    assert_eq!(names(&mut store), ["c"]);
    assert!(!store.replace(SOURCE, "Node", listed));
    // As a deleted file does: encryption is not switched off by what is missing.
    assert!(store.replace(SOURCE, "EncryptionPolicy", Vec::new()));
    assert_eq!(store.snapshot().policy.mode, Mode::Required);
}

#[test]
fn only_the_policy_named_default_counts() {
    let mut store = good();
    assert!(store.put(SOURCE, read(policy("other", "Disabled", 1))));
    let snapshot = store.snapshot();
    assert_eq!(snapshot.policy.mode, Mode::Required);
    let texts = snapshot.problem_texts();
    assert!(
        texts[0].contains("EncryptionPolicy other: metadata.name"),
        "{texts:?}"
    );
    assert!(store.remove(SOURCE, "EncryptionPolicy", "other"));
    assert_eq!(store.snapshot().problems, []);
}

#[test]
fn a_node_in_force_is_not_pushed_out_by_a_newcomer() {
    let mut store = good();
    assert_eq!(names(&mut store), ["a", "b"]);
    store.put(SOURCE, read(node("0a", 2)));
    assert_eq!(names(&mut store), ["a", "b"]);
    let texts = store.snapshot().problem_texts();
    assert!(texts[0].contains("(Node b in Kubernetes)"), "{texts:?}");
}
