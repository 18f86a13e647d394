use espalier_pki::{Authority, Bundle, CLOCK_SKEW, Leaf, Validity, csr};
use k8s_openapi::ByteString;
use serde_json::Value;

use super::*;
use crate::fake::Fake;

const SECRET: &str = "/api/v1/namespaces/ns/secrets/espalier-ca";
const TRUST: &str = "/api/v1/namespaces/ns/configmaps/espalier-trust";
const POLICY: &str = "/apis/espalier.dev/v1alpha1/encryptionpolicies/default";
const EVENTS: &str = "/api/v1/namespaces/default/events";
const KEY: &str = "node.espalier.dev/not-ready";

fn settings(ca: CaMode) -> Arc<Settings> {
    Arc::new(Settings {
        namespace: "ns".into(),
        taint: Some(KEY.into()),
        ca,
        days: 30,
    })
}

/// One round of a replica that has just begun to lead.
async fn round_of(fake: &Fake, ca: CaMode) -> (bool, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::default());
    let mut leader = Leader::new(fake.client(), settings(ca), Arc::clone(&metrics));
    while !leader.caches.are_complete() {
        leader.caches.changed().await;
    }
    (leader.round().await, metrics)
}

async fn rounds(fake: &Fake, count: usize) {
    for _ in 0..count {
        assert!(round_of(fake, CaMode::Generate).await.0);
    }
}

fn mesh_path(name: &str) -> String {
    format!("/apis/espalier.dev/v1alpha1/meshnodes/{name}")
}

/// A Node and what its agent says of it.
fn put_node(fake: &Fake, name: &str, ready: bool, certificate: Value) {
    let taints = json!([{"key": KEY, "effect": "NoSchedule"}]);
    fake.put(
        &format!("/api/v1/nodes/{name}"),
        json!({"metadata": {"name": name, "uid": format!("uid-{name}")}, "spec": {"taints": taints}}),
    );
    let status = if ready { "True" } else { "False" };
    fake.put(
        &mesh_path(name),
        json!({
            "apiVersion": "espalier.dev/v1alpha1", "kind": "MeshNode",
            "metadata": {"name": name}, "spec": {},
            "status": {
                "nodeUID": format!("uid-{name}"), "certificate": certificate,
                "conditions": [{
                    "type": "Ready", "status": status, "reason": "Why", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        }),
    );
}

fn put_policy(fake: &Fake) {
    fake.put(
        POLICY,
        json!({
            "apiVersion": "espalier.dev/v1alpha1", "kind": "EncryptionPolicy",
            "metadata": {"name": "default", "generation": 1},
            "spec": {"mode": "Required", "clusterCIDRs": ["10.244.0.0/16"]},
        }),
    );
}

fn told(fake: &Fake) -> Trust {
    ca::told(&serde_json::from_value(fake.get(TRUST).unwrap()).unwrap()).unwrap()
}

fn condition(fake: &Fake, type_: &str) -> (String, String, String) {
    let policy = fake.get(POLICY).unwrap();
    let conditions = policy["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|c| c["type"] == type_).unwrap();
    let word = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (word("status"), word("reason"), word("message"))
}

#[tokio::test]
async fn the_ca_is_made_once_and_agents_are_told_of_it() {
    let fake = Fake::default();
    rounds(&fake, 1).await;
    let made = fake.get(SECRET).unwrap();
    assert_eq!(made["type"], "kubernetes.io/tls");
    rounds(&fake, 2).await;
    assert_eq!(fake.get(SECRET).unwrap(), made);
    let secret: Secret = serde_json::from_value(made).unwrap();
    let ca = Ca::own(&secret, now()).unwrap();
    assert_eq!(told(&fake), ca.authorities.trust());
}

#[tokio::test]
async fn two_replicas_that_both_see_no_ca_make_one() {
    let fake = Fake::default();
    let mut leaders = Vec::new();
    for _ in 0..2 {
        let metrics = Arc::new(Metrics::default());
        let mut leader = Leader::new(fake.client(), settings(CaMode::Generate), metrics);
        while !leader.caches.are_complete() {
            leader.caches.changed().await;
        }
        leaders.push(leader);
    }
    assert!(leaders[0].round().await);
    let made = fake.get(SECRET).unwrap();
    assert!(leaders[1].round().await);
    assert_eq!(fake.get(SECRET).unwrap(), made);
}

#[tokio::test]
async fn a_bundle_changed_by_hand_is_put_right() {
    let fake = Fake::default();
    rounds(&fake, 2).await;
    let good = told(&fake);
    let foreign = Authority::make(&Validity::starting(now(), 5)).unwrap();
    fake.change(TRUST, |map| {
        map["data"]["ca.crt"] = Value::from(foreign.anchor().pem());
    });
    rounds(&fake, 1).await;
    assert_eq!(told(&fake), good);
}

#[tokio::test]
async fn a_given_ca_that_is_missing_or_broken_is_told_in_the_policy() {
    let fake = Fake::default();
    put_policy(&fake);
    put_node(&fake, "a", true, Value::Null);
    assert!(!round_of(&fake, CaMode::Secret).await.0);
    assert!(fake.get(SECRET).is_none(), "nothing is made");
    let (status, reason, message) = condition(&fake, "Degraded");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "NoCA"));
    assert!(message.contains("kubectl create secret tls espalier-ca"));
    fake.put(
        SECRET,
        json!({"metadata": {"name": "espalier-ca"}, "data": {"tls.crt": ByteString(b"x".to_vec())}}),
    );
    assert!(!round_of(&fake, CaMode::Secret).await.0);
    let (_, reason, message) = condition(&fake, "Degraded");
    assert_eq!(reason, "CAUnusable");
    assert!(message.contains("data[tls.key]"), "{message}");
}

#[tokio::test]
async fn requests_are_signed_by_the_ca_that_agents_are_told_of() {
    let fake = Fake::default();
    rounds(&fake, 2).await;
    put_node(&fake, "a", false, Value::Null);
    fake.put(
        "/api/v1/namespaces/ns/pods/agent-a",
        json!({
            "metadata": {"name": "agent-a", "namespace": "ns", "uid": "p"},
            "spec": {"nodeName": "a", "serviceAccountName": "espalier-agent", "containers": []},
        }),
    );
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests/x";
    let (_, pem) = csr::make("a", "uid-a").unwrap();
    fake.put(
        path,
        json!({
            "metadata": {"name": "x"},
            "spec": {
                "request": ByteString(pem.into_bytes()),
                "signerName": signer::SIGNER,
                "usages": ["digital signature", "ipsec end system"],
                "username": "system:serviceaccount:ns:espalier-agent",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["agent-a"],
                    "authentication.kubernetes.io/pod-uid": ["p"],
                },
            },
        }),
    );
    let (well, metrics) = round_of(&fake, CaMode::Generate).await;
    assert!(well);
    assert_eq!(metrics.issued.load(Ordering::Relaxed), 1);
    let certificate: ByteString =
        serde_json::from_value(fake.get(path).unwrap()["status"]["certificate"].clone()).unwrap();
    let leaf = Leaf::read(&certificate.0).unwrap();
    assert_eq!(
        leaf.issued_by(&told(&fake).bundle),
        Some(told(&fake).signer)
    );
    assert!(leaf.not_before >= now() - CLOCK_SKEW - Duration::from_secs(60));
}

#[tokio::test]
async fn a_rotation_goes_from_wish_to_end_with_a_new_leader_for_each_step() {
    let fake = Fake::default();
    rounds(&fake, 2).await;
    let old = told(&fake);
    let says = |fake: &Fake, trust: &Bundle, issuer: &str| {
        let certificate = json!({
            "notAfter": "2030-01-01T00:00:00Z", "issuer": issuer, "trust": trust.hash(),
        });
        put_node(fake, "a", true, certificate);
    };
    says(&fake, &old.bundle, &old.signer);
    fake.change(SECRET, |secret| {
        secret["metadata"]["annotations"] = json!({ca::ROTATE: "1"});
    });
    rounds(&fake, 4).await;
    let both = told(&fake);
    assert_eq!(
        (both.bundle.anchors().len(), &both.signer),
        (2, &old.signer)
    );
    // Its node knows the new CA now; the controller signs with it.
    says(&fake, &both.bundle, &old.signer);
    rounds(&fake, 4).await;
    let new = told(&fake);
    assert_ne!(new.signer, old.signer);
    assert_eq!(new.bundle.anchors().len(), 2);
    says(&fake, &new.bundle, &new.signer);
    rounds(&fake, 4).await;
    let end = told(&fake);
    assert_eq!((end.bundle.anchors().len(), &end.signer), (1, &new.signer));
    assert!(!end.bundle.contains(&old.signer));
    let secret = fake.get(SECRET).unwrap();
    assert!(secret["metadata"]["annotations"].get(ca::ROTATE).is_none());
    assert_eq!(secret["data"].as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn taints_follow_what_a_node_says_and_silence_changes_nothing() {
    let fake = Fake::default();
    let taints = |fake: &Fake, node: &str| {
        let node = fake.get(&format!("/api/v1/nodes/{node}")).unwrap();
        node["spec"]["taints"].as_array().map_or(0, Vec::len)
    };
    for (name, ready) in [("a", true), ("b", false)] {
        put_node(&fake, name, ready, Value::Null);
    }
    put_node(&fake, "c", true, Value::Null);
    fake.change(&mesh_path("c"), |mesh| {
        mesh["status"]["conditions"][0]["status"] = json!("Unknown")
    });
    rounds(&fake, 1).await;
    assert_eq!(
        [taints(&fake, "a"), taints(&fake, "b"), taints(&fake, "c")],
        [0, 1, 1]
    );
    fake.change(&mesh_path("a"), |mesh| {
        mesh["status"]["conditions"][0]["status"] = json!("False")
    });
    rounds(&fake, 1).await;
    assert_eq!(taints(&fake, "a"), 1);
}

#[tokio::test]
async fn what_a_removed_node_said_is_removed_and_not_counted() {
    let fake = Fake::default();
    put_policy(&fake);
    put_node(&fake, "a", true, Value::Null);
    put_node(&fake, "b", false, Value::Null);
    // The Node was made anew: what its predecessor said is void.
    fake.change("/api/v1/nodes/b", |node| {
        node["metadata"]["uid"] = json!("new")
    });
    rounds(&fake, 1).await;
    assert!(fake.get(&mesh_path("a")).is_some());
    assert!(fake.get(&mesh_path("b")).is_none());
    assert_eq!(condition(&fake, "Ready").0, "True");
    assert_eq!(fake.get(POLICY).unwrap()["status"]["nodes"]["total"], 1);
}

#[tokio::test]
async fn a_round_that_changes_nothing_writes_nothing() {
    let fake = Fake::default();
    put_policy(&fake);
    put_node(&fake, "a", true, Value::Null);
    rounds(&fake, 3).await;
    let before = fake.writes().len();
    rounds(&fake, 3).await;
    assert_eq!(fake.writes().len(), before);
}

#[test]
fn a_rotation_that_waits_long_is_a_problem_that_names_a_node() {
    let nodes = ["a".to_owned(), "b".to_owned()];
    assert_eq!(waiting(Stage::Renew, &nodes, seconds(now())), None);
    let trouble = waiting(Stage::Renew, &nodes, 0).unwrap();
    assert_eq!(trouble.reason, "CARotationWaits");
    assert!(trouble.message.contains("2 nodes") && trouble.message.contains("first: a"));
}

fn told_events(fake: &Fake) -> Vec<(String, String, i64)> {
    let writes = fake.writes();
    let created = writes.iter().filter(|write| write.ends_with("/events"));
    assert_eq!(created.count(), fake.below(EVENTS).len());
    let read = |event: Value| {
        let word = |at: &str| {
            event
                .pointer(at)
                .and_then(Value::as_str)
                .unwrap()
                .to_owned()
        };
        let about = format!(
            "{} {}",
            word("/involvedObject/kind"),
            word("/involvedObject/name")
        );
        (about, word("/reason"), event["count"].as_i64().unwrap())
    };
    let mut events: Vec<_> = fake.below(EVENTS).into_iter().map(read).collect();
    events.sort();
    events
}

#[tokio::test]
async fn what_people_want_to_know_is_told_once() {
    let fake = Fake::default();
    put_policy(&fake);
    put_node(&fake, "a", true, Value::Null);
    rounds(&fake, 4).await;
    let told = |about: &str, reason: &str| (about.to_owned(), reason.to_owned(), 1);
    let expected = [
        told("EncryptionPolicy default", "AllNodesReady"),
        told("EncryptionPolicy default", "CAMade"),
        told("Node a", "EspalierUntainted"),
    ];
    assert_eq!(told_events(&fake), expected);
    // Each round is a new leader's: nothing is told again. A node that fails is.
    fake.change(&mesh_path("a"), |mesh| {
        mesh["status"]["conditions"][0]["status"] = json!("False");
        mesh["status"]["conditions"][0]["message"] = json!("no data plane");
    });
    rounds(&fake, 3).await;
    let more = told_events(&fake);
    assert_eq!(more.len(), 5, "{more:?}");
    assert!(more.contains(&told("EncryptionPolicy default", "NodesNotReady")));
    assert!(more.contains(&told("Node a", "EspalierTainted")));
}

#[tokio::test]
async fn a_flapping_node_is_counted_in_one_event() {
    let fake = Fake::default();
    let metrics = Arc::new(Metrics::default());
    let leader = Leader::new(fake.client(), settings(CaMode::None), metrics);
    for _ in 0..3 {
        leader.event(events::of_taint("a", KEY, None)).await;
    }
    let told = ("Node a".to_owned(), "EspalierUntainted".to_owned(), 3);
    assert_eq!(told_events(&fake), [told]);
}

#[tokio::test]
async fn a_leader_without_crds_says_so_and_begins_when_they_come() {
    let fake = Fake::default();
    fake.miss("/apis/espalier.dev/v1alpha1/meshnodes", true);
    let metrics = Arc::new(Metrics::default());
    let leader = Leader::new(
        fake.client(),
        settings(CaMode::Generate),
        Arc::clone(&metrics),
    );
    let watched = async {
        let waits = "meshnodes.espalier.dev is not installed";
        until(async || ready(&metrics).await.contains(waits)).await;
        assert!(fake.get(SECRET).is_none(), "it acts on an incomplete list");
        fake.miss("/apis/espalier.dev/v1alpha1/meshnodes", false);
        until(async || fake.get(SECRET).is_some()).await;
        assert_eq!(ready(&metrics).await, "ok\n");
    };
    tokio::select! {
        () = leader.run() => panic!("it acts until it is dropped"),
        () = watched => {}
    }
}

async fn ready(metrics: &Metrics) -> String {
    use espalier_telemetry::http::Site as _;
    metrics.connected.store(true, Ordering::Relaxed);
    metrics.page("/readyz").await.unwrap().body
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(std::time::Instant::now() < deadline, "it took too long");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
