//! The rules (CEL) in the CRDs, evaluated: what they refuse is what agents and controller refuse, which are all that there is on a
//! server without CEL.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use espalier_api::{EncryptionPolicy, ExternalPeer, MeshNode, read_value};
use kube::CustomResourceExt as _;
use kube_cel::{ErrorKind, Validator};
use serde_json::{Value, json};

/// Kind, name, spec beside what is needed, and the message of the rule that it breaks.
type Sample = (&'static str, &'static str, Value, Option<&'static str>);

const POLICY: &str = "EncryptionPolicy";
const GATEWAY: &str = "ExternalPeer";

fn samples() -> Vec<Sample> {
    let all_suites = json!([
        "AES-256-GCM",
        "AES-128-GCM",
        "ChaCha20-Poly1305",
        "AES-256-GMAC",
        "AES-128-GMAC"
    ]);
    let userspace = |field: &str, value: Value| json!({"dataplane": "Userspace", field: value});
    let remote = |cidrs: &[&str]| json!({"remoteCIDRs": cidrs});
    vec![
        (POLICY, "default", json!({}), None),
        (POLICY, "default", json!({"protocol": "AH"}), None),
        (
            POLICY,
            "default",
            json!({"protocol": "AH", "udpEncapsulation": "Never"}),
            None,
        ),
        (
            POLICY,
            "default",
            json!({"udpEncapsulation": "Always"}),
            None,
        ),
        (POLICY, "default", json!({"suites": all_suites}), None),
        (
            POLICY,
            "default",
            json!({"dataplane": "Kernel", "overlay": "None"}),
            None,
        ),
        (
            POLICY,
            "default",
            json!({"dataplane": "Kernel", "suites": ["AES-128-GMAC"]}),
            None,
        ),
        (
            POLICY,
            "default",
            userspace("udpEncapsulation", json!("Always")),
            None,
        ),
        (POLICY, "default", userspace("overlay", json!("IPIP")), None),
        (POLICY, "default", userspace("overlay", json!("None")), None),
        (
            POLICY,
            "default",
            userspace("suites", json!(["AES-256-GMAC", "AES-256-GCM"])),
            None,
        ),
        (POLICY, "other", json!({}), Some("name it default")),
        (
            POLICY,
            "default",
            json!({"protocol": "AH", "udpEncapsulation": "Always"}),
            Some("AH cannot be put into UDP"),
        ),
        (
            POLICY,
            "default",
            userspace("protocol", json!("AH")),
            Some("protocol AH is not"),
        ),
        (
            POLICY,
            "default",
            userspace("udpEncapsulation", json!("Never")),
            None,
        ),
        (
            POLICY,
            "default",
            userspace("suites", json!(["AES-256-GMAC", "AES-128-GMAC"])),
            Some("AES-GMAC alone"),
        ),
        (
            POLICY,
            "default",
            json!({"suites": ["AES-256-GCM", "AES-256-GCM"]}),
            Some("each suite once"),
        ),
        (GATEWAY, "berlin", json!({}), None),
        (
            GATEWAY,
            "berlin",
            json!({"gateway": "2001:db8::7", "remoteCIDRs": ["fd00::/64", "192.168.0.0/16"]}),
            None,
        ),
        (
            GATEWAY,
            "berlin",
            json!({"gateway": "127.0.0.1"}),
            Some("address of another host"),
        ),
        (
            GATEWAY,
            "berlin",
            json!({"gateway": "127.8.0.1"}),
            Some("address of another host"),
        ),
        (
            GATEWAY,
            "berlin",
            json!({"gateway": "0.0.0.0"}),
            Some("address of another host"),
        ),
        (
            GATEWAY,
            "berlin",
            json!({"gateway": "::"}),
            Some("address of another host"),
        ),
        (
            GATEWAY,
            "berlin",
            json!({"gateway": "::1"}),
            Some("address of another host"),
        ),
        (
            GATEWAY,
            "berlin",
            remote(&["192.168.0.0/16", "192.168.0.0/16"]),
            Some("each network once"),
        ),
        (
            GATEWAY,
            "berlin",
            remote(&["0.0.0.0/0"]),
            Some("may not hold the gateway itself"),
        ),
        (
            GATEWAY,
            "berlin",
            json!({"gateway": "2001:db8::7", "remoteCIDRs": ["::/0"]}),
            Some("may not hold the gateway itself"),
        ),
    ]
}

fn object(kind: &str, name: &str, more: &Value) -> Value {
    let mut spec = match kind {
        POLICY => json!({"mode": "Required", "clusterCIDRs": ["10.244.0.0/16"]}),
        _ => json!({
            "gateway": "203.0.113.7", "identity": "gw.berlin.example", "remoteCIDRs": ["192.168.0.0/16"],
        }),
    };
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({
        "apiVersion": "espalier.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    })
}

fn schema(kind: &str) -> Value {
    let crd = match kind {
        POLICY => EncryptionPolicy::crd(),
        _ => ExternalPeer::crd(),
    };
    let schema = crd.spec.versions[0].schema.clone().unwrap();
    serde_json::to_value(schema.open_api_v3_schema.unwrap()).unwrap()
}

/// Messages of rules that an object breaks. A rule that does not compile or cannot be evaluated is no refusal.
fn broken(kind: &str, object: &Value) -> Vec<String> {
    let Err(errors) = Validator::new().validate(&schema(kind), object, None) else {
        return Vec::new();
    };
    let errors = errors.into_vec().into_iter();
    errors
        .map(|error| {
            assert_eq!(error.kind, ErrorKind::ValidationFailure, "{error:?}");
            error.message
        })
        .collect()
}

/// All messages of rules in a schema.
fn rules(schema: &Value, found: &mut BTreeSet<String>) {
    let here = schema
        .get("x-kubernetes-validations")
        .and_then(Value::as_array);
    let messages = here
        .into_iter()
        .flatten()
        .map(|rule| rule["message"].as_str().unwrap().to_owned());
    found.extend(messages);
    match schema {
        Value::Object(fields) => fields.values().for_each(|field| rules(field, found)),
        Value::Array(items) => items.iter().for_each(|item| rules(item, found)),
        _ => {}
    }
}

#[test]
fn the_rules_refuse_what_agents_and_controller_refuse() {
    for (kind, name, more, expected) in samples() {
        let object = object(kind, name, &more);
        let (by_rules, by_us) = (
            broken(kind, &object),
            read_value("test", object.clone()).unwrap(),
        );
        match expected {
            None => {
                assert_eq!(by_rules, Vec::<String>::new(), "{object}");
                assert!(by_us.is_ok(), "{object}: {by_us:?}");
            }
            Some(words) => {
                assert!(
                    by_rules.iter().any(|message| message.contains(words)),
                    "{object}: {by_rules:?}"
                );
                assert!(by_us.is_err(), "{object} is taken");
            }
        }
    }
}

#[test]
fn every_rule_is_broken_by_a_sample() {
    let mut all = BTreeSet::new();
    for kind in [POLICY, GATEWAY] {
        rules(&schema(kind), &mut all);
    }
    assert!(all.len() >= 8, "{all:?}");
    for (kind, name, more, _) in samples() {
        for message in broken(kind, &object(kind, name, &more)) {
            all.remove(&message);
        }
    }
    assert_eq!(
        all,
        BTreeSet::new(),
        "these were never seen to refuse anything"
    );
    let mut of_nodes = BTreeSet::new();
    let crd = serde_json::to_value(MeshNode::crd()).unwrap();
    rules(&crd, &mut of_nodes);
    assert_eq!(
        of_nodes,
        BTreeSet::new(),
        "MeshNodes have no rules: samples are needed if they get some"
    );
}

/// What agents and controller refuse beyond: it would be costly or impossible to say in a rule.
#[test]
fn what_only_we_refuse_is_known() {
    for (kind, more) in [
        (POLICY, json!({"clusterCIDRs": ["10.244.1.0/16"]})),
        (GATEWAY, json!({"remoteCIDRs": ["203.0.113.0/24"]})),
        (
            GATEWAY,
            json!({"remoteCIDRs": ["192.168.0.0/16", "192.168.1.0/24"]}),
        ),
    ] {
        let name = if kind == POLICY { "default" } else { "berlin" };
        let object = object(kind, name, &more);
        assert_eq!(broken(kind, &object), Vec::<String>::new(), "{object}");
        assert!(
            read_value("test", object.clone()).unwrap().is_err(),
            "{object}"
        );
    }
}
