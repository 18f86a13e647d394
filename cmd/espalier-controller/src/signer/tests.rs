use espalier_pki::{Bundle, Leaf, csr};
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::fake::Fake;

const NOW: Duration = Duration::from_secs(1_800_000_000);
const CSR: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests/x";
const NODE: &str = "/api/v1/nodes/node-a";

/// A cluster with node-a, its agent, and a request of that agent.
fn cluster() -> Fake {
    let fake = Fake::default();
    fake.put(
        NODE,
        json!({"metadata": {"name": "node-a", "uid": "uid-a"}}),
    );
    fake.put(
        "/api/v1/namespaces/ns/pods/agent-x",
        json!({
            "metadata": {"name": "agent-x", "namespace": "ns", "uid": "pod-uid"},
            "spec": {"nodeName": "node-a", "serviceAccountName": "espalier-agent", "containers": []},
            "status": {"phase": "Running"},
        }),
    );
    let (_, pem) = csr::make("node-a", "uid-a").unwrap();
    let made = Timestamp::from_second(1_800_000_000).unwrap().to_string();
    fake.put(
        CSR,
        json!({
            "metadata": {"name": "x", "uid": "csr-uid", "creationTimestamp": made},
            "spec": {
                "request": ByteString(pem.into_bytes()),
                "signerName": SIGNER,
                "usages": ["digital signature", "ipsec end system"],
                "username": "system:serviceaccount:ns:espalier-agent",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["agent-x"],
                    "authentication.kubernetes.io/pod-uid": ["pod-uid"],
                },
            },
        }),
    );
    fake
}

fn read(fake: &Fake) -> CertificateSigningRequest {
    serde_json::from_value(fake.get(CSR).unwrap()).unwrap()
}

fn authority() -> Authority {
    Authority::make(&Validity::starting(NOW, 100)).unwrap()
}

async fn handle(fake: &Fake, ca: &Authority) -> Result<Outcome, SignError> {
    let signer = Signer::new(fake.client(), "ns", 30);
    signer.handle(&read(fake), ca, NOW).await
}

/// Refused, and told of the node that the asking pod runs on.
fn refused(outcome: &Outcome, on: Option<&str>) {
    let Outcome::Refused(refusal) = outcome else {
        panic!("expected a refusal, found {outcome:?}");
    };
    assert_eq!(refusal.node.as_deref(), on);
}

fn conditions(fake: &Fake) -> Vec<(String, String, String)> {
    let status = read(fake).status.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default().into_iter();
    conditions
        .map(|c| {
            (
                c.type_,
                c.reason.unwrap_or_default(),
                c.message.unwrap_or_default(),
            )
        })
        .collect()
}

#[tokio::test]
async fn a_good_request_is_approved_and_issued() {
    let (fake, ca) = (cluster(), authority());
    let issued = Outcome::Issued {
        node: "node-a".to_owned(),
    };
    assert_eq!(handle(&fake, &ca).await.unwrap(), issued);
    let csr = read(&fake);
    assert_eq!(state(&csr), State::Through);
    let pem = csr.status.unwrap().certificate.unwrap().0;
    let leaf = Leaf::read(&pem).unwrap();
    assert_eq!(
        (leaf.node.as_deref(), leaf.uid.as_deref()),
        (Some("node-a"), Some("uid-a"))
    );
    assert_eq!(leaf.not_after, NOW + espalier_pki::DAY * 30);
    let bundle = Bundle::new([ca.anchor().clone()]);
    assert_eq!(leaf.issued_by(&bundle), Some(ca.anchor().fingerprint()));
    let (kind, _, message) = conditions(&fake).remove(0);
    assert_eq!(kind, "Approved");
    assert!(message.contains("node-a"), "{message}");
    assert_eq!(
        fake.writes(),
        [
            format!("PATCH {CSR}/approval"),
            format!("PATCH {CSR}/status")
        ]
    );
}

#[tokio::test]
async fn a_bad_request_is_denied_with_the_reason() {
    let fake = cluster();
    fake.change(NODE, |node| node["metadata"]["uid"] = json!("new"));
    refused(&handle(&fake, &authority()).await.unwrap(), Some("node-a"));
    let (kind, reason, message) = conditions(&fake).remove(0);
    assert_eq!((kind.as_str(), reason.as_str()), ("Denied", "WrongNames"));
    assert!(message.contains("uid-a"), "{message}");
    assert_eq!(state(&read(&fake)), State::Through);
}

fn approve_by_hand(fake: &Fake) {
    fake.change(CSR, |csr| {
        csr["status"]["conditions"] = json!([{
            "type": "Approved", "status": "True", "reason": "KubectlApprove", "message": "by hand",
        }]);
    });
}

#[tokio::test]
async fn an_approval_by_somebody_else_does_not_replace_the_checks() {
    let fake = cluster();
    approve_by_hand(&fake);
    fake.change(CSR, |csr| csr["spec"]["extra"] = json!({}));
    refused(&handle(&fake, &authority()).await.unwrap(), None);
    let kinds: Vec<String> = conditions(&fake).into_iter().map(|c| c.0).collect();
    assert_eq!(kinds, ["Approved", "Failed"]);
    assert!(read(&fake).status.unwrap().certificate.is_none());
}

#[tokio::test]
async fn an_approved_request_is_issued_after_an_interruption() {
    let fake = cluster();
    approve_by_hand(&fake);
    let outcome = handle(&fake, &authority()).await.unwrap();
    assert!(matches!(outcome, Outcome::Issued { .. }), "{outcome:?}");
    assert_eq!(fake.writes(), [format!("PATCH {CSR}/status")]);
}

#[tokio::test]
async fn a_request_that_was_changed_meanwhile_is_left_to_the_next_look() {
    let fake = cluster();
    let seen = read(&fake);
    approve_by_hand(&fake);
    let signer = Signer::new(fake.client(), "ns", 30);
    let outcome = signer.handle(&seen, &authority(), NOW).await.unwrap();
    assert_eq!(outcome, Outcome::Overtaken);
    assert_eq!(conditions(&fake).len(), 1);
}

#[tokio::test]
async fn an_expired_ca_leaves_the_request_as_it_is() {
    let fake = cluster();
    let ca = Authority::make(&Validity::starting(NOW - espalier_pki::DAY * 50, 10)).unwrap();
    let error = handle(&fake, &ca).await.unwrap_err();
    assert!(error.to_string().contains("replace it"), "{error}");
    assert!(fake.writes().is_empty());
}

#[tokio::test]
async fn requests_that_are_through_are_deleted_after_a_while_and_others_never() {
    let fake = cluster();
    let signer = Signer::new(fake.client(), "ns", 30);
    let late = NOW + espalier_pki::DAY;
    signer.tidy(&read(&fake), late).await.unwrap();
    assert!(fake.get(CSR).is_some());
    handle(&fake, &authority()).await.unwrap();
    signer.tidy(&read(&fake), NOW).await.unwrap();
    assert!(fake.get(CSR).is_some());
    signer.tidy(&read(&fake), late).await.unwrap();
    assert!(fake.get(CSR).is_none());
}
