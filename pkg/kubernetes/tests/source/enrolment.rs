//! A node gets its certificate, and another one when another CA signs; a refusal is told.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use espalier_api::{MeshSnapshot, NodeSpec};
use espalier_kubernetes::Enrolment;
use espalier_pki::{Authority, Bundle, Leaf, Validity, csr};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::fake::{CONFIG_MAPS, CSRS, Fake, NODES};
use crate::node;

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn authority() -> Authority {
    Authority::make(&Validity::starting(now(), 10)).unwrap()
}

/// The bundle of these; the first signs.
fn trust(fake: &Fake, cas: &[&Authority]) {
    let bundle = Bundle::new(cas.iter().map(|ca| ca.anchor().clone()));
    let signer = cas[0].anchor().fingerprint();
    fake.put(
        CONFIG_MAPS,
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "espalier-trust", "annotations": {"espalier.dev/signer": signer}},
            "data": {"ca.crt": bundle.pem()},
        }),
    );
}

fn enrol(fake: &Fake, state: &Path) -> watch::Receiver<Vec<String>> {
    enrol_with(fake, state, watch::channel(MeshSnapshot::default()).1)
}

fn enrol_with(
    fake: &Fake,
    state: &Path,
    snapshots: watch::Receiver<MeshSnapshot>,
) -> watch::Receiver<Vec<String>> {
    let enrolment = Enrolment {
        client: fake.client(),
        node: "a".to_owned(),
        namespace: "espalier-system".to_owned(),
        folder: state.join("pki"),
        spread: Duration::ZERO,
        snapshots,
    };
    enrolment.start()
}

async fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    for _ in 0..1500 {
        if let Some(found) = found() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never so");
}

/// A request that nobody answered.
async fn open_request(fake: &Fake) -> Value {
    let open = |name: String| fake.get(CSRS, &name).filter(|r| r.get("status").is_none());
    until(|| fake.names(CSRS).into_iter().find_map(open)).await
}

fn answer(fake: &Fake, mut request: Value, status: Value) {
    request["status"] = status;
    fake.put(CSRS, request);
}

fn sign(fake: &Fake, request: Value, ca: &Authority) {
    let pem: ByteString = serde_json::from_value(request["spec"]["request"].clone()).unwrap();
    let asked = csr::read(&pem.0).unwrap();
    asked.check_names("a", "u-a").unwrap();
    assert_eq!(request["metadata"]["name"], asked.object_name("a"));
    let validity = Validity::starting(now(), 1);
    let leaf = ca
        .issue(&asked.spki, "a", Some("u-a"), &validity, now())
        .unwrap();
    let certificate = serde_json::to_value(ByteString(leaf.into_bytes())).unwrap();
    answer(fake, request, json!({"certificate": certificate}));
}

fn issuer(state: &Path, cas: &[&Authority]) -> Option<String> {
    let leaf = Leaf::read(&std::fs::read(state.join("pki/node.crt")).ok()?).ok()?;
    leaf.issued_by(&Bundle::new(cas.iter().map(|ca| ca.anchor().clone())))
}

#[tokio::test]
async fn a_node_gets_a_certificate_and_another_one_of_the_ca_that_signs_next() {
    let (fake, state) = (Fake::new(), tempfile::tempdir().unwrap());
    fake.put(NODES, node("a", 1));
    let (first, second) = (authority(), authority());
    let mut problems = enrol(&fake, state.path());
    let waiting = |told: &Vec<String>| told.iter().any(|t| t.contains("espalier-controller"));
    problems.wait_for(waiting).await.unwrap();
    trust(&fake, &[&first]);
    let request = open_request(&fake).await;
    assert_eq!(request["spec"]["signerName"], "espalier.dev/node");
    assert_eq!(
        request["spec"]["usages"],
        json!(["digital signature", "ipsec end system"])
    );
    assert_eq!(request["metadata"]["labels"]["espalier.dev/node"], "a");
    sign(&fake, request, &first);
    let by_first = first.anchor().fingerprint();
    until(|| issuer(state.path(), &[&first]).filter(|found| *found == by_first)).await;
    problems.wait_for(Vec::is_empty).await.unwrap();

    // The new CA is trusted first, and signs then.
    trust(&fake, &[&first, &second]);
    let both = Bundle::new([&first, &second].map(|ca| ca.anchor().clone()));
    until(|| {
        let read = Bundle::read(&std::fs::read(state.path().join("pki/ca.crt")).ok()?).ok()?;
        (read == both).then_some(())
    })
    .await;
    assert_eq!(fake.names(CSRS).len(), 1);
    trust(&fake, &[&second, &first]);
    let request = open_request(&fake).await;
    sign(&fake, request, &second);
    let by_second = second.anchor().fingerprint();
    until(|| issuer(state.path(), &[&first, &second]).filter(|found| *found == by_second)).await;
}

#[tokio::test]
async fn a_refusal_is_told_and_a_certificate_of_another_key_is_not_taken() {
    let (fake, state) = (Fake::new(), tempfile::tempdir().unwrap());
    fake.put(NODES, node("a", 1));
    let ca = authority();
    trust(&fake, &[&ca]);
    let mut problems = enrol(&fake, state.path());
    let request = open_request(&fake).await;
    let denied = json!({"conditions": [
        {"type": "Denied", "status": "True", "reason": "x", "message": "pod is not on node a"},
    ]});
    answer(&fake, request, denied);
    let told = problems
        .wait_for(|told| told.iter().any(|t| t.contains("refused")))
        .await;
    assert!(told.unwrap()[0].contains("pod is not on node a"));
    assert!(!state.path().join("pki").exists());
}

#[tokio::test]
async fn a_node_that_was_made_again_gets_another_certificate_at_once() {
    let (fake, state) = (Fake::new(), tempfile::tempdir().unwrap());
    fake.put(NODES, node("a", 1));
    let ca = authority();
    trust(&fake, &[&ca]);
    let (sender, snapshots) = watch::channel(MeshSnapshot::default());
    let mut problems = enrol_with(&fake, state.path(), snapshots);
    let request = open_request(&fake).await;
    sign(&fake, request, &ca);
    until(|| issuer(state.path(), &[&ca])).await;
    problems.wait_for(Vec::is_empty).await.unwrap();

    let mut again = node("a", 1);
    again["metadata"]["uid"] = json!("u-again");
    fake.put(NODES, again);
    let own = NodeSpec {
        name: "a".to_owned(),
        uid: Some("u-again".to_owned()),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
    };
    sender.send_modify(|snapshot| snapshot.nodes.push(own));
    let request = open_request(&fake).await;
    let pem: ByteString = serde_json::from_value(request["spec"]["request"].clone()).unwrap();
    csr::read(&pem.0)
        .unwrap()
        .check_names("a", "u-again")
        .unwrap();
}
