//! What an admin writes.

use std::collections::BTreeMap;

use espalier_api::{Object, Store, parse};

/// Text of a manifest file.
pub fn manifest_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for object in parse("fuzz.yaml", text).into_iter().flatten().flatten() {
        check(&object);
    }
    let mut store = Store::default();
    let files = BTreeMap::from([("fuzz.yaml".to_owned(), Ok(text.to_owned()))]);
    let [first, second, third] = [0; 3].map(|_| store.update(&files));
    assert_eq!(
        second.policy, first.policy,
        "the same files keep the same policy in force"
    );
    assert_eq!(
        second.nodes, first.nodes,
        "the same files keep the same nodes in force"
    );
    assert_eq!(
        second.externals, first.externals,
        "the same files keep the same gateways in force"
    );
    assert_eq!(third, second, "and the same problems");
}

/// What the rest of the agent relies on.
fn check(object: &Object) {
    match object {
        Object::Node(node) => {
            assert!((1..=253).contains(&node.name.len()));
            assert!(!node.addresses.is_empty());
            assert!(node.pod_cidrs.iter().all(|net| net.trunc() == *net));
        }
        Object::Policy(policy) => {
            assert!(!policy.cluster_cidrs.is_empty());
            assert!(policy.cluster_cidrs.iter().all(|net| net.trunc() == *net));
        }
        Object::External(peer) => {
            assert!((1..=253).contains(&peer.name.len()));
            assert!(!peer.remote_cidrs.is_empty());
            for net in &peer.remote_cidrs {
                assert!(net.trunc() == *net && !net.contains(&peer.gateway));
            }
        }
    }
}
