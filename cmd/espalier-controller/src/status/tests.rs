use espalier_api::conditions::{find, now};
use serde_json::Value;

use super::*;

fn policy(spec: Value) -> EncryptionPolicy {
    serde_json::from_value(json!({
        "apiVersion": "espalier.dev/v1alpha1", "kind": "EncryptionPolicy",
        "metadata": {"name": "default", "generation": 3}, "spec": spec,
    }))
    .unwrap()
}

fn required() -> EncryptionPolicy {
    policy(json!({"mode": "Required", "clusterCIDRs": ["10.244.0.0/16"]}))
}

fn member(name: &str, holding: &[&str]) -> Member {
    let conditions = [READY, ENCRYPTED, ENFORCED, PROGRESSING, DEGRADED].map(|type_| {
        Condition::new(type_, holding.contains(&type_), "Why", now()).saying("because of x")
    });
    Member {
        name: name.into(),
        status: MeshNodeStatus {
            observed_policy_generation: 3,
            conditions: conditions.to_vec(),
            pairs: PairCounts {
                total: 2,
                encrypted: 1,
                blocked: 1,
                ..PairCounts::default()
            },
            ..MeshNodeStatus::default()
        },
        alive: true,
    }
}

fn good(name: &str) -> Member {
    member(name, &[READY, ENCRYPTED, ENFORCED])
}

fn summed(policy: &EncryptionPolicy, members: &[Member]) -> EncryptionPolicyStatus {
    sum(policy, members, &[], &now())
}

fn is(status: &EncryptionPolicyStatus, type_: &str) -> (bool, String, String) {
    let condition = find(&status.conditions, type_).unwrap();
    assert_eq!(condition.observed_generation, status.observed_generation);
    let Condition {
        reason, message, ..
    } = condition.clone();
    (condition.holds(), reason, message)
}

#[test]
fn a_mesh_that_is_well_says_so_in_every_condition() {
    let status = summed(&required(), &[good("a"), good("b")]);
    let reasons = [
        (READY, true, "AllNodesReady"),
        (ENCRYPTED, true, "AllPairsEncrypted"),
        (ENFORCED, true, "AllPairsEnforced"),
        (PROGRESSING, false, "Settled"),
        (DEGRADED, false, "NoProblems"),
    ];
    for (type_, holds, reason) in reasons {
        assert_eq!(is(&status, type_), (holds, reason.into(), String::new()));
    }
    assert_eq!(status.observed_generation, 3);
    let NodeCounts {
        total,
        ready,
        encrypted,
        enforced,
    } = status.nodes;
    assert_eq!((total, ready, encrypted, enforced), (2, 2, 2, 2));
    let pairs = status.pairs;
    assert_eq!((pairs.total, pairs.encrypted, pairs.blocked), (4, 2, 2));
}

#[test]
fn a_node_that_is_not_well_is_named_with_its_reason() {
    let status = summed(&required(), &[good("a"), member("b", &[DEGRADED])]);
    for (type_, holds, reason) in [
        (READY, false, "NodesNotReady"),
        (ENCRYPTED, false, "NodesNotEncrypted"),
        (ENFORCED, false, "NodesNotEnforcing"),
        (DEGRADED, true, "NodesDegraded"),
    ] {
        let (holds_now, reason_now, message) = is(&status, type_);
        assert_eq!((holds_now, reason_now.as_str()), (holds, reason));
        assert!(
            message.contains("1 of 2 nodes") && message.contains("b (because of x)"),
            "{message}"
        );
    }
}

#[test]
fn a_node_whose_kubelet_is_away_is_not_counted_as_ready() {
    let away = Member {
        alive: false,
        ..good("b")
    };
    let status = summed(&required(), &[good("a"), away]);
    let (ready, _, message) = is(&status, READY);
    assert!(!ready && message.contains("b (the Node is not ready)"));
    assert_eq!(status.nodes.ready, 1);
}

#[test]
fn long_lists_are_counted() {
    let members: Vec<Member> = (0..9).map(|i| member(&format!("n{i}"), &[])).collect();
    let (_, _, message) = is(&summed(&required(), &members), READY);
    assert!(message.ends_with("and 4 more"), "{message}");
}

#[test]
fn a_new_generation_is_in_progress_until_every_node_has_seen_it() {
    let mut behind = good("b");
    behind.status.observed_policy_generation = 2;
    let (holds, reason, message) = is(&summed(&required(), &[good("a"), behind]), PROGRESSING);
    assert_eq!((holds, reason.as_str()), (true, "NodesBehind"));
    assert!(message.contains('b'));
    let moving = member("b", &[READY, PROGRESSING]);
    let (holds, reason, _) = is(&summed(&required(), &[good("a"), moving]), PROGRESSING);
    assert_eq!((holds, reason.as_str()), (true, "PairsInTransition"));
}

#[test]
fn other_modes_say_what_they_do_not_do() {
    let disabled = policy(json!({"mode": "Disabled", "clusterCIDRs": ["10.244.0.0/16"]}));
    let mut plain = member("a", &[READY]);
    plain.status.pairs = PairCounts::default();
    let status = summed(&disabled, &[plain]);
    assert_eq!(is(&status, ENCRYPTED).1, "ModeDisabled");
    assert_eq!(is(&status, ENFORCED).1, "ModeNotRequired");
    assert!(is(&status, READY).0);
}

#[test]
fn an_empty_mesh_is_not_ready() {
    let status = summed(&required(), &[]);
    assert_eq!(is(&status, READY).1, "NoNodes");
    assert_eq!(is(&status, ENCRYPTED).1, "NoNodes");
}

#[test]
fn what_the_rules_of_the_crd_refuse_is_refused_here_too() {
    let spec = |more: Value| {
        let mut spec = json!({"mode": "Required", "clusterCIDRs": ["10.244.0.0/16"]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        policy(spec)
    };
    for (bad, part) in [
        (json!({"clusterCIDRs": []}), "clusterCIDRs"),
        (json!({"clusterCIDRs": ["10.244.0.1/16"]}), "host bits"),
        (
            json!({"protocol": "AH", "udpEncapsulation": "Always"}),
            "AH",
        ),
        (json!({"dataplane": "Userspace", "protocol": "AH"}), "AH"),
        (
            json!({"transitionDeadlineSeconds": 0}),
            "transitionDeadlineSeconds",
        ),
    ] {
        let status = summed(&spec(bad), &[good("a")]);
        let (holds, reason, message) = is(&status, DEGRADED);
        assert_eq!((holds, reason.as_str()), (true, "InvalidSpec"));
        assert!(message.contains(part), "{part} in {message}");
        assert_eq!(is(&status, READY).1, "InvalidSpec");
    }
    let mut other = required();
    other.metadata.name = Some("other".into());
    let (_, _, message) = is(&summed(&other, &[good("a")]), READY);
    assert!(message.contains("default"), "{message}");
}

#[test]
fn troubles_beside_the_nodes_are_told() {
    let trouble = Trouble {
        reason: "NoCA",
        message: "Secret espalier-ca is missing".into(),
    };
    let status = sum(&required(), &[good("a")], &[trouble], &now());
    let (holds, reason, message) = is(&status, DEGRADED);
    assert_eq!((holds, reason.as_str()), (true, "NoCA"));
    assert!(message.contains("espalier-ca"));
}

#[test]
fn conditions_that_are_as_they_were_keep_their_time() {
    let mut policy = required();
    let old: Time = serde_json::from_value(json!("2020-01-01T00:00:00Z")).unwrap();
    policy.status = Some(sum(&policy, &[good("a")], &[], &old));
    let status = summed(&policy, &[good("a")]);
    assert!(
        status
            .conditions
            .iter()
            .all(|c| c.last_transition_time == old)
    );
    assert_eq!(Some(status), policy.status);
}
