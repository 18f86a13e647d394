//! What is worth an event, for people who look at the policy or a node. What stands in a status is told when the status changes: a
//! new leader, which finds it there, does not tell it again.

use std::time::Duration;

use espalier_api::conditions::{
    self, Condition, DEGRADED, ENCRYPTED, ENFORCED, PROGRESSING, READY,
};
use espalier_api::{EncryptionPolicy, EncryptionPolicyStatus};
use espalier_kubernetes::{About, Event, Recorder};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::Client;

use crate::signer::{Outcome, Refusal};
use crate::status::POLICY;

/// A mesh that starts has many certificates; who floods the signer with requests does not flood the API server with events.
const BURST: u32 = 50;
const REFILL: Duration = Duration::from_secs(5);
/// Reasons of conditions that are as the policy wants them although they do not hold.
const WANTED: [&str; 2] = ["ModeDisabled", "ModeNotRequired"];

/// Of the leader.
pub(crate) fn recorder(client: Client) -> Recorder {
    Recorder::new(client, "espalier-controller", None, BURST, REFILL).counting()
}

/// What became of a request: told at the node that the asking pod runs on, which the API server vouches for, and at the request itself
/// where there is none. The node that a request claims to be proves nothing.
pub(crate) fn of_request(csr: &CertificateSigningRequest, outcome: &Outcome) -> Option<Event> {
    let name = csr.metadata.name.as_deref().unwrap_or_default();
    match outcome {
        Outcome::Issued { node } => Some(Event::new(
            About::node(node),
            false,
            "CertificateIssued",
            format!("the agent on this node got a certificate (request {name})"),
        )),
        Outcome::Refused(Refusal {
            node,
            reason,
            message,
        }) => {
            let about = match node {
                Some(node) => About::node(node),
                None => About::request(name, csr.metadata.uid.clone()),
            };
            let note = format!(
                "request {name} for a node's certificate was refused ({reason}): {message}"
            );
            Some(Event::new(about, true, "CertificateRefused", note))
        }
        Outcome::Overtaken => None,
    }
}

/// A step of the CA's life.
pub(crate) fn of_ca(policy: Option<&EncryptionPolicy>, reason: &str, note: &str) -> Event {
    let uid = policy.and_then(|policy| policy.metadata.uid.clone());
    Event::new(About::policy(POLICY, uid), false, reason, note)
}

/// The taint was put on or taken off.
pub(crate) fn of_taint(node: &str, key: &str, ready: Option<&Condition>) -> Event {
    match ready {
        Some(ready) if !ready.holds() => {
            let why = &ready.message;
            let note =
                format!("taint {key} was put on: this node cannot enforce the policy: {why}");
            Event::new(About::node(node), true, "EspalierTainted", note)
        }
        _ => {
            let note = format!("taint {key} was taken off: this node can enforce the policy");
            Event::new(About::node(node), false, "EspalierUntainted", note)
        }
    }
}

/// Between two statuses of a policy.
pub(crate) fn of_policy(policy: &EncryptionPolicy, new: &EncryptionPolicyStatus) -> Vec<Event> {
    let none = EncryptionPolicyStatus::default();
    let old = policy.status.as_ref().unwrap_or(&none);
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    let about = About::policy(name, policy.metadata.uid.clone());
    let event = |condition: &Condition, warning: bool| {
        let note = match condition.message.as_str() {
            "" => in_words(&condition.reason),
            message => message,
        };
        Event::new(about.clone(), warning, &condition.reason, note)
    };
    let held = [READY, ENCRYPTED, ENFORCED];
    let mut events: Vec<Event> = held
        .iter()
        .filter_map(|type_| {
            let condition = conditions::find(&new.conditions, type_)?;
            let before = judge(old, type_);
            match judge(new, type_) {
                now if now == before => None,
                Told::Good => Some(event(condition, false)),
                Told::Bad => Some(event(condition, true)),
                Told::Nothing => None,
            }
        })
        .collect();
    events.extend(degraded(old, new).map(|(condition, warning)| event(condition, warning)));
    events
}

/// What is said of a condition that should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Good,
    Bad,
    /// It is as the policy wants it, or on its way there.
    Nothing,
}

fn judge(status: &EncryptionPolicyStatus, type_: &str) -> Told {
    let holds = |type_| conditions::find(&status.conditions, type_).is_some_and(Condition::holds);
    let Some(condition) = conditions::find(&status.conditions, type_) else {
        return Told::Nothing;
    };
    let on_its_way = type_ != READY && holds(PROGRESSING);
    match () {
        () if condition.holds() => Told::Good,
        // Told by Degraded.
        () if condition.reason == "InvalidSpec" => Told::Nothing,
        () if on_its_way || WANTED.contains(&condition.reason.as_str()) => Told::Nothing,
        () => Told::Bad,
    }
}

/// Another trouble than before is told, too.
fn degraded<'a>(
    old: &EncryptionPolicyStatus,
    new: &'a EncryptionPolicyStatus,
) -> Option<(&'a Condition, bool)> {
    let condition = conditions::find(&new.conditions, DEGRADED)?;
    let before = conditions::find(&old.conditions, DEGRADED);
    let key = |c: &Condition| {
        // The next refused spec is another trouble; which nodes have problems changes too often.
        let about = (c.reason == "InvalidSpec").then(|| c.message.clone());
        (c.holds(), c.reason.clone(), about)
    };
    let same = before.is_some_and(|before| key(before) == key(condition));
    let was_bad = before.is_some_and(Condition::holds);
    match (same, condition.holds()) {
        (true, _) => None,
        (false, true) => Some((condition, true)),
        (false, false) => was_bad.then_some((condition, false)),
    }
}

fn in_words(reason: &str) -> &str {
    match reason {
        "AllNodesReady" => "every node can enforce the policy",
        "AllPairsEncrypted" => "every pair of nodes is encrypted",
        "AllPairsEnforced" => "every pair of nodes refuses clear packets",
        "NoProblems" => "no node has problems any more",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(conditions: &[(&str, &str, &str, &str)]) -> Value {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(type_, status, reason, message)| {
                json!({
                    "type": type_, "status": status, "reason": reason, "message": message,
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                })
            })
            .collect();
        json!({"conditions": conditions})
    }

    fn told(old: Value, new: Value) -> Vec<(String, bool)> {
        let policy = serde_json::from_value(json!({
            "apiVersion": "espalier.dev/v1alpha1", "kind": "EncryptionPolicy",
            "metadata": {"name": "default", "uid": "u"},
            "spec": {"mode": "Required", "clusterCIDRs": ["10.0.0.0/8"]}, "status": old,
        }));
        let new = serde_json::from_value(new).unwrap();
        let events = of_policy(&policy.unwrap(), &new);
        events
            .into_iter()
            .map(|event| (event.reason, event.warning))
            .collect()
    }

    const BAD: (&str, &str, &str, &str) = ("Ready", "False", "NodesNotReady", "1 of 2 nodes: a");
    const GOOD: (&str, &str, &str, &str) = ("Ready", "True", "AllNodesReady", "");

    #[test]
    fn a_change_is_told_once_and_again_when_it_is_over() {
        let (good, bad) = (status(&[GOOD]), status(&[BAD]));
        assert_eq!(
            told(json!({}), good.clone()),
            [("AllNodesReady".to_owned(), false)]
        );
        assert_eq!(
            told(good.clone(), bad.clone()),
            [("NodesNotReady".to_owned(), true)]
        );
        let other_nodes = status(&[("Ready", "False", "NodesNotReady", "2 of 2 nodes: a, b")]);
        assert_eq!(told(bad.clone(), other_nodes), []);
        assert_eq!(told(bad, good), [("AllNodesReady".to_owned(), false)]);
    }

    #[test]
    fn a_toggle_warns_of_nothing() {
        let encrypted = |status, reason| ("Encrypted", status, reason, "");
        let progressing = |status| ("Progressing", status, "PairsInTransition", "");
        let off = status(&[encrypted("False", "ModeDisabled"), progressing("False")]);
        let on_its_way = status(&[encrypted("False", "NodesNotEncrypted"), progressing("True")]);
        let on = status(&[encrypted("True", "AllPairsEncrypted"), progressing("False")]);
        let stuck = status(&[
            encrypted("False", "NodesNotEncrypted"),
            progressing("False"),
        ]);
        assert_eq!(told(off.clone(), on_its_way.clone()), []);
        assert_eq!(
            told(on_its_way.clone(), on.clone()),
            [("AllPairsEncrypted".to_owned(), false)]
        );
        assert_eq!(
            told(on_its_way, stuck),
            [("NodesNotEncrypted".to_owned(), true)]
        );
        assert_eq!(told(on, off), []);
    }

    #[test]
    fn a_refused_spec_is_told_with_each_new_reason() {
        let refused = |why| status(&[("Degraded", "True", "InvalidSpec", why)]);
        let fine = status(&[("Degraded", "False", "NoProblems", "")]);
        let expected = [("InvalidSpec".to_owned(), true)];
        assert_eq!(told(json!({}), refused("spec.suites")), expected);
        assert_eq!(told(refused("spec.suites"), refused("spec.suites")), []);
        assert_eq!(
            told(refused("spec.suites"), refused("spec.rekey")),
            expected
        );
        assert_eq!(
            told(refused("x"), fine.clone()),
            [("NoProblems".to_owned(), false)]
        );
        assert_eq!(told(json!({}), fine), []);
    }

    #[test]
    fn a_refused_request_is_told_where_the_asking_pod_runs() {
        let csr = serde_json::from_value(json!({
            "metadata": {"name": "x", "uid": "c", "labels": {"espalier.dev/node": "claimed"}},
            "spec": {"request": "", "signerName": "espalier.dev/node"},
        }));
        let csr: CertificateSigningRequest = csr.unwrap();
        let refused = |node: Option<&str>| {
            let refusal = Refusal {
                node: node.map(str::to_owned),
                reason: "WrongNames",
                message: "expected other names".to_owned(),
            };
            of_request(&csr, &Outcome::Refused(refusal)).unwrap()
        };
        let event = refused(Some("real"));
        assert_eq!(event.about, About::node("real"));
        assert!(
            event.warning && event.note.contains("WrongNames"),
            "{event:?}"
        );
        assert_eq!(
            refused(None).about,
            About::request("x", Some("c".to_owned()))
        );
    }
}
