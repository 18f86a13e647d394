//! Two controllers against a real kube-apiserver, with the rights that docs/kubernetes-controller.md lists: leader election, signer,
//! taint, status, rotation, uninstall. Needs etcd and the folder of kube-apiserver (scripts/kubernetes.sh) in ESPALIER_KUBERNETES:
//! `ESPALIER_KUBERNETES=$(scripts/kubernetes.sh) cargo test -p espalier-controller --test apiserver -- --ignored --nocapture`
//! With promtool in ESPALIER_PROMTOOL the leader's metrics are checked, too.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod server;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use espalier_api::{EncryptionPolicy, ExternalPeer, MeshNode};
use espalier_pki::{Bundle, Leaf, csr};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, CustomResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use server::{Server, check_metrics, free_port, leads, until};

const NS: &str = "espalier-system";
const TAINT: &str = "node.espalier.dev/not-ready";

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

struct Cluster {
    server: Server,
    admin: Client,
}

impl Cluster {
    async fn start() -> Self {
        let programs = std::env::var_os("ESPALIER_KUBERNETES")
            .expect("ESPALIER_KUBERNETES: the folder that scripts/kubernetes.sh prints");
        let server = Server::start(&PathBuf::from(programs)).await;
        let admin = server.admin().await;
        let cluster = Self { server, admin };
        cluster.install().await;
        cluster
    }

    async fn install(&self) {
        let create = PostParams::default();
        let crds: Api<CustomResourceDefinition> = Api::all(self.admin.clone());
        for crd in [
            EncryptionPolicy::crd(),
            ExternalPeer::crd(),
            MeshNode::crd(),
        ] {
            crds.create(&create, &crd).await.unwrap();
        }
        let namespaces: Api<Namespace> = Api::all(self.admin.clone());
        let namespace = read(json!({"metadata": {"name": NS}}));
        namespaces.create(&create, &namespace).await.unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), NS);
        for name in ["espalier-agent", "espalier-controller"] {
            let account = read(json!({"metadata": {"name": name}}));
            accounts.create(&create, &account).await.unwrap();
        }
        // Made by the API server itself when it has started.
        until("the namespace default", 30, async || {
            namespaces.get_opt("default").await.unwrap().is_some()
        })
        .await;
        self.grant().await;
        for node in ["node-a", "node-b"] {
            self.add_node(node).await;
        }
        until("the CRDs to be served", 30, async || {
            let policies: Api<EncryptionPolicy> = Api::all(self.admin.clone());
            let nodes: Api<MeshNode> = Api::all(self.admin.clone());
            let all = ListParams::default();
            policies.list(&all).await.is_ok() && nodes.list(&all).await.is_ok()
        })
        .await;
    }

    async fn add_policy(&self) {
        let policies: Api<EncryptionPolicy> = Api::all(self.admin.clone());
        let policy = read(json!({
            "apiVersion": "espalier.dev/v1alpha1", "kind": "EncryptionPolicy",
            "metadata": {"name": "default"},
            "spec": {"mode": "Required", "clusterCIDRs": ["10.244.0.0/16"]},
        }));
        policies
            .create(&PostParams::default(), &policy)
            .await
            .unwrap();
    }

    async fn grant(&self) {
        let rules: Vec<Value> = serde_saphyr::from_multiple(include_str!("rbac.yaml")).unwrap();
        for rule in rules {
            let kind = rule["kind"].as_str().unwrap();
            let gvk = GroupVersionKind::gvk("rbac.authorization.k8s.io", "v1", kind);
            let resource = ApiResource::from_gvk(&gvk);
            let api: Api<DynamicObject> = match rule["metadata"]["namespace"].as_str() {
                Some(namespace) => Api::namespaced_with(self.admin.clone(), namespace, &resource),
                None => Api::all_with(self.admin.clone(), &resource),
            };
            let object = read(rule.clone());
            api.create(&PostParams::default(), &object).await.unwrap();
        }
    }

    /// A Node and the pod of its agent.
    async fn add_node(&self, name: &str) {
        let create = PostParams::default();
        let nodes: Api<Node> = Api::all(self.admin.clone());
        let taint = json!({"key": TAINT, "effect": "NoSchedule"});
        let node = read(json!({"metadata": {"name": name}, "spec": {"taints": [taint]}}));
        nodes.create(&create, &node).await.unwrap();
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), NS);
        let pod = read(json!({
            "metadata": {"name": agent_pod(name)},
            "spec": {
                "nodeName": name, "serviceAccountName": "espalier-agent", "hostNetwork": true,
                "containers": [{"name": "agent", "image": "none"}],
            },
        }));
        pods.create(&create, &pod).await.unwrap();
    }

    /// A token of a ServiceAccount, bound to a pod when one is given.
    async fn token(&self, account: &str, pod: Option<&str>) -> String {
        let bound = match pod {
            Some(name) => {
                let pods: Api<Pod> = Api::namespaced(self.admin.clone(), NS);
                let uid = pods.get(name).await.unwrap().metadata.uid;
                json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid})
            }
            None => Value::Null,
        };
        let request: TokenRequest = read(json!({
            "spec": {"audiences": ["https://kubernetes.default.svc"], "boundObjectRef": bound},
        }));
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), NS);
        let token = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .unwrap();
        token.status.unwrap().token.unwrap()
    }

    /// Asks for a certificate of `node` with the token of the agent's `pod`, and waits for the answer.
    async fn ask(&self, node: &str, pod: Option<&str>) -> CertificateSigningRequest {
        let token = self.token("espalier-agent", pod).await;
        let agent = self.server.client("agent", &token).await;
        let uid = self.node(node).await.metadata.uid.unwrap();
        let (_, pem) = csr::make(node, &uid).unwrap();
        let name = csr::read(pem.as_bytes()).unwrap().object_name(node);
        let csrs: Api<CertificateSigningRequest> = Api::all(agent);
        let request = read(json!({
            "metadata": {"name": name, "labels": {"espalier.dev/node": node}},
            "spec": {
                "request": ByteString(pem.into_bytes()), "signerName": "espalier.dev/node",
                "usages": ["digital signature", "ipsec end system"],
            },
        }));
        csrs.create(&PostParams::default(), &request).await.unwrap();
        until("an answer to the request", 30, async || {
            let status = csrs.get(&name).await.unwrap().status.unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            status.certificate.is_some() || conditions.iter().any(|c| c.type_ == "Denied")
        })
        .await;
        csrs.get(&name).await.unwrap()
    }

    async fn node(&self, name: &str) -> Node {
        Api::<Node>::all(self.admin.clone())
            .get(name)
            .await
            .unwrap()
    }

    async fn is_tainted(&self, name: &str) -> bool {
        let taints = self.node(name).await.spec.unwrap_or_default().taints;
        taints.unwrap_or_default().iter().any(|t| t.key == TAINT)
    }

    /// What agents are told: the bundle and the signer.
    async fn told(&self) -> Option<(Bundle, String)> {
        let maps: Api<ConfigMap> = Api::namespaced(self.admin.clone(), NS);
        let map = maps.get_opt("espalier-trust").await.unwrap()?;
        let bundle = Bundle::read(map.data?.get("ca.crt")?.as_bytes()).unwrap();
        let signer = map.metadata.annotations?.remove("espalier.dev/signer")?;
        Some((bundle, signer))
    }

    /// As an agent writes its MeshNode.
    async fn say(&self, node: &str, ready: &str, bundle: &Bundle, issuer: &str) {
        let nodes: Api<MeshNode> = Api::all(self.admin.clone());
        let uid = self.node(node).await.metadata.uid;
        let params = PatchParams::apply("espalier-agent").force();
        let head = json!({
            "apiVersion": "espalier.dev/v1alpha1", "kind": "MeshNode",
            "metadata": {"name": node}, "spec": {},
        });
        nodes
            .patch(node, &params, &Patch::Apply(&head))
            .await
            .unwrap();
        let mut object = head;
        let condition = |type_: &str, status: &str| {
            json!({
                "type": type_, "status": status, "reason": "Test", "message": "by the test",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
            })
        };
        object["status"] = json!({
            "nodeUID": uid, "version": "0", "dataplane": "kernel", "mode": "Required",
            "observedPolicyGeneration": 1, "mtu": 1400, "problems": [],
            "pairs": {"total": 1, "encrypted": 1, "authenticated": 0, "clear": 0, "blocked": 0},
            "certificate": {
                "notAfter": "2030-01-01T00:00:00Z", "issuer": issuer, "trust": bundle.hash(),
            },
            "conditions": [condition("Ready", ready), condition("Encrypted", "True"), condition("Enforced", "True")],
        });
        object.as_object_mut().unwrap().remove("spec");
        nodes
            .patch_status(node, &params, &Patch::Apply(&object))
            .await
            .unwrap();
    }

    /// Kind and name of what it is about, and reason of each of the controller's events.
    async fn events(&self) -> Vec<(String, String)> {
        let events: Api<Event> = Api::namespaced(self.admin.clone(), "default");
        let all = events.list(&ListParams::default()).await.unwrap().items;
        let ours = all.into_iter().filter(|event| {
            let source = event.source.as_ref().and_then(|s| s.component.as_deref());
            source == Some("espalier-controller")
        });
        ours.map(|event| {
            let about = event.involved_object;
            let about = [about.kind, about.name].map(Option::unwrap_or_default);
            (about.join(" "), event.reason.unwrap_or_default())
        })
        .collect()
    }

    async fn has_told(&self, about: &str, reason: &str) {
        let expected = (about.to_owned(), reason.to_owned());
        until(
            &format!("the event {reason} about {about}"),
            15,
            async || self.events().await.contains(&expected),
        )
        .await;
    }

    async fn condition(&self, type_: &str) -> Option<(String, String)> {
        let policies: Api<EncryptionPolicy> = Api::all(self.admin.clone());
        let status = policies.get("default").await.unwrap().status?;
        let found = status.conditions.into_iter().find(|c| c.type_ == type_)?;
        Some((format!("{:?}", found.status), found.reason))
    }
}

fn agent_pod(node: &str) -> String {
    format!("espalier-agent-{node}")
}

fn denial(csr: &CertificateSigningRequest) -> String {
    let status = csr.status.clone().unwrap_or_default();
    assert!(status.certificate.is_none());
    let denied = status.conditions.unwrap_or_default().remove(0);
    assert_eq!(denied.type_, "Denied");
    denied.reason.unwrap_or_default()
}

#[tokio::test]
#[ignore = "needs etcd and kube-apiserver"]
async fn one_of_the_replicas_leads_signs_and_rotates() {
    let mut cluster = Cluster::start().await;
    let token = cluster.token("espalier-controller", None).await;
    let config = cluster.server.kubeconfig("controller", &token);
    let ports = [free_port(), free_port()];
    let replicas = ports.map(|port| cluster.server.controller(&config, port, &[]));
    until("one leader", 60, async || {
        leads(ports[0]) != leads(ports[1])
    })
    .await;
    until("the CA", 30, async || cluster.told().await.is_some()).await;
    let (bundle, signer) = cluster.told().await.unwrap();
    println!("one of two replicas leads, the CA is made");
    signer_checks(&cluster, &bundle, &signer).await;

    // The leader is killed: the other waits for the lease's whole duration. Then one more, and a leader that releases it.
    let (first, second) = if leads(ports[0]) { (0, 1) } else { (1, 0) };
    cluster.server.kill(replicas[first]);
    let begun = Instant::now();
    until("the other to lead", 40, async || leads(ports[second])).await;
    println!("leader killed: the other leads after {:?}", begun.elapsed());
    let third = free_port();
    let last = cluster.server.controller(&config, third, &[]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!leads(third));
    cluster.server.terminate(replicas[second]);
    let begun = Instant::now();
    until("the third to lead", 10, async || leads(third)).await;
    println!("leader ended: the next leads after {:?}", begun.elapsed());

    // Without nodes there is nobody to wait for.
    wish_for_rotation(&cluster).await;
    until("another CA alone", 20, async || {
        let (bundle, now) = cluster.told().await.unwrap();
        now != signer && bundle.anchors().len() == 1
    })
    .await;
    check_log(&cluster, third);
    cluster.server.terminate(last);
    uninstall(&cluster).await;
}

#[tokio::test]
#[ignore = "needs etcd and a kube-apiserver that takes custom objects"]
async fn taints_status_and_rotation_follow_what_nodes_say() {
    let mut cluster = Cluster::start().await;
    cluster.add_policy().await;
    let token = cluster.token("espalier-controller", None).await;
    let config = cluster.server.kubeconfig("controller", &token);
    let port = free_port();
    let controller = cluster.server.controller(&config, port, &[]);
    until("the CA", 60, async || cluster.told().await.is_some()).await;
    let (bundle, signer) = cluster.told().await.unwrap();
    taints_and_status(&cluster, &bundle, &signer).await;
    rotation(&cluster, &signer).await;
    check_metrics(port);
    check_log(&cluster, port);
    cluster.server.terminate(controller);
    uninstall(&cluster).await;
}

/// No right was missing, and no key is in it.
fn check_log(cluster: &Cluster, port: u16) {
    let log = cluster.server.log(&format!("controller-{port}"));
    let bad = log.contains("PRIVATE KEY") || log.contains("(403)") || log.contains("forbidden");
    assert!(!bad, "{log}");
}

async fn wish_for_rotation(cluster: &Cluster) {
    let secrets: Api<Secret> = Api::namespaced(cluster.admin.clone(), NS);
    let wish = json!({"metadata": {"annotations": {"espalier.dev/rotate": "now"}}});
    secrets
        .patch("espalier-ca", &PatchParams::default(), &Patch::Merge(&wish))
        .await
        .unwrap();
}

async fn signer_checks(cluster: &Cluster, bundle: &Bundle, signer: &str) {
    let csr = cluster.ask("node-a", Some(&agent_pod("node-a"))).await;
    let certificate = csr.status.unwrap().certificate.expect("a certificate").0;
    let leaf = Leaf::read(&certificate).unwrap();
    assert_eq!(leaf.node.as_deref(), Some("node-a"));
    assert_eq!(leaf.uid, cluster.node("node-a").await.metadata.uid);
    assert_eq!(leaf.issued_by(bundle).as_deref(), Some(signer));
    let stolen = cluster.ask("node-a", Some(&agent_pod("node-b"))).await;
    assert_eq!(denial(&stolen), "WrongNames");
    assert_eq!(denial(&cluster.ask("node-a", None).await), "TokenNotBound");
    cluster.has_told("Node node-a", "CertificateIssued").await;
    // Of the agent that asked for another node's identity, not of the node that it named; and of none for a token of no pod.
    cluster.has_told("Node node-b", "CertificateRefused").await;
    let refused = cluster.events().await;
    let of_requests = refused
        .iter()
        .filter(|(about, _)| about.starts_with("CertificateSigningRequest "));
    assert_eq!(of_requests.count(), 1, "{refused:?}");
    println!(
        "signed for the agent of the node, denied for another node's and for an unbound token"
    );
}

async fn taints_and_status(cluster: &Cluster, bundle: &Bundle, signer: &str) {
    assert!(cluster.is_tainted("node-a").await);
    cluster.say("node-a", "True", bundle, signer).await;
    cluster.say("node-b", "False", bundle, signer).await;
    until("node-a without taint", 15, async || {
        !cluster.is_tainted("node-a").await
    })
    .await;
    assert!(cluster.is_tainted("node-b").await);
    let not_ready = ("False".to_owned(), "NodesNotReady".to_owned());
    until("the policy's status", 15, async || {
        cluster.condition("Ready").await.as_ref() == Some(&not_ready)
    })
    .await;
    cluster.say("node-b", "True", bundle, signer).await;
    let ready = ("True".to_owned(), "AllNodesReady".to_owned());
    until("the policy to be Ready", 15, async || {
        cluster.condition("Ready").await.as_ref() == Some(&ready)
    })
    .await;
    cluster.say("node-a", "False", bundle, signer).await;
    until("the taint to come back", 15, async || {
        cluster.is_tainted("node-a").await
    })
    .await;
    cluster.has_told("Node node-a", "EspalierUntainted").await;
    cluster.has_told("Node node-a", "EspalierTainted").await;
    cluster
        .has_told("EncryptionPolicy default", "AllNodesReady")
        .await;
    println!("taints, status and events follow the nodes");
}

async fn rotation(cluster: &Cluster, old: &str) {
    wish_for_rotation(cluster).await;
    let cas = async || cluster.told().await.unwrap().0.anchors().len();
    until("both CAs in the bundle", 15, async || cas().await == 2).await;
    let (both, signer) = cluster.told().await.unwrap();
    assert_eq!(signer, old, "the old CA signs until all trust the new one");
    for node in ["node-a", "node-b"] {
        cluster.say(node, "True", &both, old).await;
    }
    until("the new CA to sign", 15, async || {
        cluster.told().await.unwrap().1 != old
    })
    .await;
    let (both, new) = cluster.told().await.unwrap();
    let csr = cluster.ask("node-a", Some(&agent_pod("node-a"))).await;
    let leaf = Leaf::read(&csr.status.unwrap().certificate.unwrap().0).unwrap();
    assert_eq!(leaf.issued_by(&both).as_deref(), Some(new.as_str()));
    cluster.say("node-a", "True", &both, &new).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        cas().await,
        2,
        "node-b still shows a certificate of the old CA"
    );
    cluster.say("node-b", "True", &both, &new).await;
    until("the old CA to leave", 15, async || cas().await == 1).await;
    assert_eq!(cluster.told().await.unwrap().1, new);
    for reason in ["CARotationBegun", "CARotationSwitched", "CARotated"] {
        cluster.has_told("EncryptionPolicy default", reason).await;
    }
    println!("the CA was rotated");
}

async fn uninstall(cluster: &Cluster) {
    let output = Command::new(env!("CARGO_BIN_EXE_espalier-controller"))
        .env("KUBECONFIG", cluster.server.admin_kubeconfig())
        .args(["uninstall", "--namespace", NS, "--delete-crds"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}{wrong}");
    assert!(output.status.success());
    assert!(cluster.told().await.is_none());
    let all = ListParams::default();
    let csrs: Api<CertificateSigningRequest> = Api::all(cluster.admin.clone());
    assert!(csrs.list(&all).await.unwrap().items.is_empty());
    let leases: Api<Lease> = Api::namespaced(cluster.admin.clone(), NS);
    assert!(leases.list(&all).await.unwrap().items.is_empty());
    let secrets: Api<Secret> = Api::namespaced(cluster.admin.clone(), NS);
    assert!(secrets.get_opt("espalier-ca").await.unwrap().is_none());
    assert!(!cluster.is_tainted("node-a").await);
}
