use std::collections::BTreeMap;

use espalier_pki::csr;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use super::*;

const NS: &str = "espalier-system";

/// A request that is granted, and all that is looked at for it.
struct Case {
    csr: CertificateSigningRequest,
    pod: Pod,
    node: Node,
}

impl Case {
    fn new() -> Self {
        Self {
            csr: request("node-a", "uid-a"),
            pod: pod(),
            node: node("node-a", "uid-a"),
        }
    }

    fn judge(&self) -> Result<Approved, Denial> {
        judge(&self.csr, NS, Some(&self.pod), Some(&self.node))
    }
}

fn request(node: &str, uid: &str) -> CertificateSigningRequest {
    let (_, pem) = csr::make(node, uid).unwrap();
    let extra = [(POD_NAME, "agent-x"), (POD_UID, "pod-uid")];
    let spec = Spec {
        request: ByteString(pem.into_bytes()),
        signer_name: SIGNER.into(),
        usages: Some(USAGES.map(str::to_owned).to_vec()),
        username: Some(format!("system:serviceaccount:{NS}:{AGENT}")),
        extra: Some(BTreeMap::from(
            extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])),
        )),
        ..Spec::default()
    };
    CertificateSigningRequest {
        spec,
        ..CertificateSigningRequest::default()
    }
}

fn pod() -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some("agent-x".into()),
            namespace: Some(NS.into()),
            uid: Some("pod-uid".into()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: Some("node-a".into()),
            service_account_name: Some(AGENT.into()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Running".into()),
            ..PodStatus::default()
        }),
    }
}

fn node(name: &str, uid: &str) -> Node {
    let metadata = ObjectMeta {
        name: Some(name.into()),
        uid: Some(uid.into()),
        ..ObjectMeta::default()
    };
    Node {
        metadata,
        ..Node::default()
    }
}

/// The denial's reason of a case that differs from a good one by `change`; the message has `parts`.
fn denied(change: impl FnOnce(&mut Case), parts: &[&str]) -> &'static str {
    let mut case = Case::new();
    change(&mut case);
    let denial = case.judge().unwrap_err();
    for part in parts {
        assert!(denial.message.contains(part), "{part} in {denial}");
    }
    denial.reason
}

#[test]
fn the_agents_own_request_is_approved_under_the_nodes_names() {
    let case = Case::new();
    let approved = case.judge().unwrap();
    assert_eq!(
        (approved.node.as_str(), approved.uid.as_str()),
        ("node-a", "uid-a")
    );
    let read = csr::read(&case.csr.spec.request.0).unwrap();
    assert_eq!(approved.spki, read.spki);
}

#[test]
fn a_token_that_is_not_bound_to_a_pod_does_not_do() {
    let reason = denied(|case| case.csr.spec.extra = None, &["projected"]);
    assert_eq!(reason, "TokenNotBound");
    for key in [POD_NAME, POD_UID] {
        let without = |case: &mut Case| {
            case.csr.spec.extra.as_mut().unwrap().remove(key);
        };
        assert_eq!(denied(without, &[key]), "TokenNotBound");
        let twice = |case: &mut Case| {
            let extra = case.csr.spec.extra.as_mut().unwrap();
            extra.get_mut(key).unwrap().push("another".into());
        };
        assert_eq!(denied(twice, &[]), "TokenNotBound");
    }
}

#[test]
fn only_the_agents_service_account_may_ask() {
    for user in [
        "system:serviceaccount:other:espalier-agent",
        "system:serviceaccount:espalier-system:default",
        "system:node:node-a",
        "",
    ] {
        let other = |case: &mut Case| case.csr.spec.username = Some(user.into());
        assert_eq!(denied(other, &[user, AGENT]), "NotTheAgent");
    }
    assert_eq!(
        denied(|case| case.csr.spec.username = None, &[]),
        "NotTheAgent"
    );
}

#[test]
fn another_nodes_pod_gets_no_certificate_of_this_one() {
    let elsewhere = |case: &mut Case| {
        case.pod.spec.as_mut().unwrap().node_name = Some("node-b".into());
        case.node = node("node-b", "uid-b");
    };
    let reason = denied(elsewhere, &["runs on node-b", "DNS:node-a", "DNS:node-b"]);
    assert_eq!(reason, "WrongNames");
    let names = |case: &mut Case| {
        let csr = request("node-b", "uid-b");
        case.csr.spec.request = csr.spec.request;
    };
    assert_eq!(denied(names, &["runs on node-a"]), "WrongNames");
    let uid = |case: &mut Case| case.csr.spec.request = request("node-a", "old").spec.request;
    assert_eq!(denied(uid, &["uid-a"]), "WrongNames");
}

#[test]
fn a_token_made_for_another_node_is_told_where_the_server_says_so() {
    let mut case = Case::new();
    let extra = case.csr.spec.extra.as_mut().unwrap();
    extra.insert(NODE_NAME.into(), vec!["node-a".into()]);
    case.judge().unwrap();
    let other = |case: &mut Case| {
        let extra = case.csr.spec.extra.as_mut().unwrap();
        extra.insert(NODE_NAME.into(), vec!["node-b".into()]);
    };
    assert_eq!(denied(other, &["node-a", "node-b"]), "OtherNode");
}

#[test]
fn the_pod_must_be_the_one_that_the_token_is_for() {
    let case = Case::new();
    let none = judge(&case.csr, NS, None, Some(&case.node)).unwrap_err();
    assert_eq!(none.reason, "PodGone");
    let changes: [fn(&mut Case); 3] = [
        |case| case.pod.metadata.uid = Some("another".into()),
        |case| case.pod.metadata.name = Some("another".into()),
        |case| case.pod.metadata.namespace = Some("another".into()),
    ];
    for change in changes {
        assert_eq!(denied(change, &["agent-x", "pod-uid"]), "PodGone");
    }
}

#[test]
fn a_pod_of_another_service_account_a_finished_and_an_unscheduled_one_are_refused() {
    let account = |case: &mut Case| {
        case.pod.spec.as_mut().unwrap().service_account_name = Some("default".into());
    };
    assert_eq!(denied(account, &["\"default\""]), "NotTheAgent");
    for phase in ["Succeeded", "Failed"] {
        let finished = |case: &mut Case| {
            case.pod.status.as_mut().unwrap().phase = Some(phase.into());
        };
        assert_eq!(denied(finished, &[phase]), "PodFinished");
    }
    let unscheduled = |case: &mut Case| case.pod.spec.as_mut().unwrap().node_name = None;
    assert_eq!(denied(unscheduled, &[]), "PodNotScheduled");
}

#[test]
fn a_removed_node_gets_no_certificate() {
    let case = Case::new();
    let none = judge(&case.csr, NS, Some(&case.pod), None).unwrap_err();
    assert_eq!(none.reason, "NodeGone");
    let going = |case: &mut Case| {
        case.node.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(1).unwrap()));
    };
    assert_eq!(denied(going, &["node-a"]), "NodeGone");
    let other = |case: &mut Case| case.node = node("node-b", "uid-a");
    assert_eq!(denied(other, &["node-a"]), "NodeGone");
}

#[test]
fn usages_are_exactly_those_of_ipsec() {
    for usages in [
        None,
        Some(vec!["digital signature"]),
        Some(vec!["digital signature", "ipsec end system", "client auth"]),
        Some(vec!["cert sign", "ipsec end system"]),
    ] {
        let usages = usages.map(|all| all.into_iter().map(str::to_owned).collect());
        let change = |case: &mut Case| case.csr.spec.usages = usages;
        assert_eq!(denied(change, &["ipsec end system"]), "WrongUsages");
    }
    let mut case = Case::new();
    case.csr.spec.usages.as_mut().unwrap().reverse();
    case.judge().unwrap();
}

#[test]
fn what_is_no_request_is_refused_with_the_reason() {
    let broken = |case: &mut Case| case.csr.spec.request = ByteString(b"nothing".to_vec());
    assert_eq!(denied(broken, &["CERTIFICATE REQUEST"]), "BadRequest");
    let huge = |case: &mut Case| case.csr.spec.request = ByteString(vec![b'x'; 100_000]);
    assert_eq!(denied(huge, &["at most"]), "BadRequest");
    // Weak keys, other names and forged signatures: the tests of espalier-pki.
    let weak = include_bytes!("rsa1024.csr").to_vec();
    let weak = |case: &mut Case| case.csr.spec.request = ByteString(weak);
    assert_eq!(denied(weak, &["unsupported public key"]), "BadRequest");
    let forged = include_bytes!("forged.csr").to_vec();
    let forged = |case: &mut Case| case.csr.spec.request = ByteString(forged);
    assert_eq!(
        denied(forged, &["not signed with its own key"]),
        "BadRequest"
    );
}
