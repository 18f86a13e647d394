//! What is told of a node.

use std::time::Duration;

use espalier_api::PairCounts;
use espalier_kubernetes::{Report, tell};
use serde_json::Value;
use tokio::sync::watch;

use crate::fake::{EVENTS, Fake, MESH_NODES, NODES};
use crate::node;

fn report() -> Report {
    Report {
        node_uid: Some("u-a".to_owned()),
        mode: "Required".to_owned(),
        generation: 3,
        pairs: PairCounts {
            total: 2,
            encrypted: 2,
            ..PairCounts::default()
        },
        enforced: 2,
        ..Report::default()
    }
}

async fn until(mut right: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if right() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never so");
}

fn condition(object: Option<Value>, type_: &str) -> Option<String> {
    let object = object?;
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == type_)?;
    Some(found["status"].as_str()?.to_owned())
}

#[tokio::test]
async fn mesh_node_condition_and_events_follow_the_reports() {
    let fake = Fake::new();
    fake.put(NODES, node("a", 1));
    let (reports, newest) = watch::channel(Report::default());
    tell(&fake.client(), "a", &newest);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        fake.names(MESH_NODES),
        [""; 0],
        "nothing before the UID is known"
    );

    reports.send_replace(report());
    until(|| condition(fake.get(MESH_NODES, "a"), "Encrypted").as_deref() == Some("True")).await;
    let object = fake.get(MESH_NODES, "a").unwrap();
    assert_eq!(object["kind"], "MeshNode");
    assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u-a");
    assert_eq!(object["status"]["observedPolicyGeneration"], 3);
    assert_eq!(object["status"]["pairs"]["encrypted"], 2);
    let unavailable = |word: &'static str| {
        let fake = fake.clone();
        move || condition(fake.get(NODES, "a"), "NetworkUnavailable").as_deref() == Some(word)
    };
    until(unavailable("False")).await;
    until(|| !fake.names(EVENTS).is_empty()).await;

    // What changes while the server is away is written when it is back; who deleted the object gets it back.
    fake.delete(MESH_NODES, "a");
    fake.away(true);
    let not_ready = vec!["no data plane".to_owned()];
    reports.send_replace(Report {
        not_ready,
        ..report()
    });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    fake.away(false);
    until(|| condition(fake.get(MESH_NODES, "a"), "Ready").as_deref() == Some("False")).await;
    until(unavailable("True")).await;
}
