//! A bundle of a cluster that is full of secrets.

use std::io::Read as _;
use std::sync::{Arc, Mutex};

use flate2::read::GzDecoder;
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

const CANARY: &str = "CANARY-7f3a";

/// Answers lists and objects, and remembers what was asked.
fn client(asked: Arc<Mutex<Vec<String>>>) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let path = request.uri().path().to_owned();
        asked.lock().unwrap().push(path.clone());
        let (code, body) = answer(&path);
        let response = Response::builder()
            .status(code)
            .body(Body::from(body.into_bytes()));
        async move { Ok::<_, std::io::Error>(response.unwrap()) }
    });
    Client::new(service, "default")
}

fn answer(path: &str) -> (u16, String) {
    let list = |items: Value| {
        json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}).to_string()
    };
    let body = match path {
        "/version" => json!({"major": "1", "minor": "20", "gitVersion": "v1.20.2", "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}).to_string(),
        "/api/v1/namespaces/ns/secrets" => list(json!([helm_secret()])),
        "/api/v1/namespaces/ns/pods" => list(json!([pod()])),
        "/api/v1/nodes" => list(json!([{
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "node-1", "annotations": {"example.com/args": CANARY}},
        }])),
        "/api/v1/namespaces/ns/pods/espalier-agent-x/log" => format!(
            "starting\n-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\nBearer eyJ{CANARY}{}.a.b\n",
            "x".repeat(60)
        ),
        path if path.ends_with("meshnodes") => {
            let failure = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "meshnodes is forbidden", "reason": "Forbidden", "code": 403});
            return (403, failure.to_string());
        }
        path if path.ends_with('s') => list(json!([])),
        _ => json!({"apiVersion": "v1", "kind": "Some", "metadata": {"name": "some"}}).to_string(),
    };
    (200, body)
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "espalier-agent-x", "namespace": "ns", "labels": {"app.kubernetes.io/name": "espalier"}},
        "spec": {"nodeName": "node-1", "containers": [{
            "name": "agent", "env": [{"name": "PROXY", "value": CANARY}],
        }]},
        "status": {"phase": "Pending", "containerStatuses": [{
            "name": "agent", "restartCount": 1, "ready": true, "image": "", "imageID": "",
            "state": {"running": {}},
        }]},
    })
}

fn helm_secret() -> Value {
    let release = json!({
        "name": "espalier", "version": 1, "manifest": CANARY,
        "chart": {"metadata": {"name": "espalier", "version": "0.1.0"}},
        "config": {"logLevel": "debug", "registry": {"password": CANARY}},
    });
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "sh.helm.release.v1.espalier.v1"},
        "data": {"release": helm::tests::packed(&release), "other": "Q0FOQVJZ"},
    })
}

async fn bundle(arguments: &[&str]) -> (BTreeMap<String, String>, Vec<String>) {
    use clap::Parser;
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BundleArgs,
    }
    let words = ["espalier"].iter().chain(arguments);
    let args = Line::try_parse_from(words).unwrap().args;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let cluster = Cluster::for_tests(client(Arc::clone(&asked)), "ns");
    let agents = cluster.agents().await;
    let files = collect(&cluster, agents, &args).await;
    let packed = archive::pack(Vec::new(), "root", files).unwrap();
    let mut texts = BTreeMap::new();
    let mut archive = tar::Archive::new(GzDecoder::new(packed.as_slice()));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        texts.insert(path, text);
    }
    let asked = asked.lock().unwrap().clone();
    (texts, asked)
}

#[tokio::test]
async fn no_key_and_nothing_of_a_secret_is_in_it() {
    let (files, asked) = bundle(&[]).await;
    for (path, text) in &files {
        assert!(!text.contains(CANARY), "{path}: {text}");
        assert!(!text.contains("PRIVATE KEY"), "{path}: {text}");
    }
    let secrets: Vec<_> = asked
        .iter()
        .filter(|path| path.contains("secrets"))
        .collect();
    assert_eq!(secrets, Vec::<&String>::new());
    for file in [
        "root/about.txt",
        "root/objects/pods.json",
        "root/objects/nodes.json",
        "root/objects/crd-meshnodes.json",
        "root/objects/events-of-nodes.json",
        "root/objects/version.json",
        "root/logs/espalier-agent-x-agent.log",
        "root/logs/espalier-agent-x-agent-previous.log",
    ] {
        assert!(files.contains_key(file), "{file} of {:?}", files.keys());
    }
    assert!(files["root/logs/espalier-agent-x-agent.log"].starts_with("starting\n"));
}

#[tokio::test]
async fn what_could_not_be_had_is_named() {
    let (files, _) = bundle(&[]).await;
    let errors = &files["root/errors.txt"];
    assert!(
        errors.contains("objects/meshnodes.json: list meshnodes: meshnodes is forbidden (403)"),
        "{errors}"
    );
    // The agents' label is on no container that runs.
    assert!(
        errors.contains("nodes/node-1: its agent's pod espalier-agent-x is Pending"),
        "{errors}"
    );
}

#[tokio::test]
async fn helms_values_come_when_asked_for_without_secrets() {
    let (files, asked) = bundle(&["--helm-values"]).await;
    let values = &files["root/objects/helm-values.json"];
    assert!(values.contains("\"logLevel\": \"debug\""), "{values}");
    assert!(files.values().all(|text| !text.contains(CANARY)));
    assert!(asked.iter().any(|path| path.ends_with("/secrets")));
}
