//! Objects and logs from the API server. Secrets are not asked for.

use anyhow::{Result, anyhow};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, LogParams};
use kube::core::GroupVersionKind;
use serde_json::Value;

use super::Files;
use super::scrub::clean;
use crate::cluster::{Cluster, explain};

/// Of objects of the chart.
const OURS: &str = "app.kubernetes.io/name=espalier";
/// Requests at once.
const AT_ONCE: usize = 8;
/// Namespace of events about objects that have none.
const DEFAULT: &str = "default";

/// Where objects are.
#[derive(Clone, Copy, Debug)]
enum Scope {
    Cluster,
    /// Of the release.
    Release,
    Default,
}

/// Which.
#[derive(Clone, Copy, Debug)]
enum Choice {
    All,
    Labels(&'static str),
    Fields(&'static str),
    Named(&'static str),
}

/// File, group, version, kind, plural word, and which of them.
type Kind = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    Scope,
    Choice,
);

const OWN_GROUP: &str = "espalier.dev";
const CRDS: &str = "apiextensions.k8s.io";
const CSRS: &str = "certificates.k8s.io";
const KINDS: [Kind; 17] = [
    (
        "encryptionpolicies",
        OWN_GROUP,
        "v1alpha1",
        "EncryptionPolicy",
        "encryptionpolicies",
        Scope::Cluster,
        Choice::All,
    ),
    (
        "externalpeers",
        OWN_GROUP,
        "v1alpha1",
        "ExternalPeer",
        "externalpeers",
        Scope::Cluster,
        Choice::All,
    ),
    (
        "meshnodes",
        OWN_GROUP,
        "v1alpha1",
        "MeshNode",
        "meshnodes",
        Scope::Cluster,
        Choice::All,
    ),
    (
        "crd-encryptionpolicies",
        CRDS,
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        Scope::Cluster,
        Choice::Named("encryptionpolicies.espalier.dev"),
    ),
    (
        "crd-externalpeers",
        CRDS,
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        Scope::Cluster,
        Choice::Named("externalpeers.espalier.dev"),
    ),
    (
        "crd-meshnodes",
        CRDS,
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        Scope::Cluster,
        Choice::Named("meshnodes.espalier.dev"),
    ),
    (
        "nodes",
        "",
        "v1",
        "Node",
        "nodes",
        Scope::Cluster,
        Choice::All,
    ),
    (
        "requests",
        CSRS,
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        Scope::Cluster,
        Choice::Fields("spec.signerName=espalier.dev/node"),
    ),
    (
        "pods",
        "",
        "v1",
        "Pod",
        "pods",
        Scope::Release,
        Choice::Labels(OURS),
    ),
    (
        "daemonsets",
        "apps",
        "v1",
        "DaemonSet",
        "daemonsets",
        Scope::Release,
        Choice::Labels(OURS),
    ),
    (
        "deployments",
        "apps",
        "v1",
        "Deployment",
        "deployments",
        Scope::Release,
        Choice::Labels(OURS),
    ),
    (
        "lease",
        "coordination.k8s.io",
        "v1",
        "Lease",
        "leases",
        Scope::Release,
        Choice::Named("espalier-controller"),
    ),
    (
        "config",
        "",
        "v1",
        "ConfigMap",
        "configmaps",
        Scope::Release,
        Choice::Named("espalier-config"),
    ),
    (
        "trust",
        "",
        "v1",
        "ConfigMap",
        "configmaps",
        Scope::Release,
        Choice::Named("espalier-trust"),
    ),
    (
        "events",
        "",
        "v1",
        "Event",
        "events",
        Scope::Release,
        Choice::All,
    ),
    (
        "events-of-nodes",
        "",
        "v1",
        "Event",
        "events",
        Scope::Default,
        Choice::Fields("involvedObject.kind=Node"),
    ),
    (
        "events-of-policies",
        "",
        "v1",
        "Event",
        "events",
        Scope::Default,
        Choice::Fields("involvedObject.kind=EncryptionPolicy"),
    ),
];

/// Every kind, into `objects/`; what is refused is an error in the bundle.
pub(super) async fn collect(cluster: &Cluster, files: &mut Files) {
    let version = cluster.client.apiserver_version().await;
    let version = version.map_err(|error| explain("ask for the version", error));
    files.take(
        "objects/version.json",
        version.and_then(|v| Ok(serde_json::to_string_pretty(&v)?)),
    );
    let asked = futures_util::stream::iter(KINDS)
        .map(|kind| async move { (format!("objects/{}.json", kind.0), get(cluster, kind).await) });
    let all: Vec<(String, Result<String>)> = asked.buffered(AT_ONCE).collect().await;
    for (path, text) in all {
        files.take(&path, text);
    }
}

async fn get(cluster: &Cluster, kind: Kind) -> Result<String> {
    let (_, group, version, word, plural, scope, choice) = kind;
    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, word), plural);
    let client = cluster.client.clone();
    let api: Api<DynamicObject> = match scope {
        Scope::Cluster => Api::all_with(client, &resource),
        Scope::Release => Api::namespaced_with(client, &cluster.namespace, &resource),
        Scope::Default => Api::namespaced_with(client, DEFAULT, &resource),
    };
    let what = |verb: &str| format!("{verb} {plural}");
    let params = ListParams::default();
    let value = match choice {
        Choice::Named(name) => {
            let object = within(cluster, api.get(name)).await?;
            serde_json::to_value(object.map_err(|error| explain(&what("get"), error))?)?
        }
        Choice::All => list(cluster, &api, &params, &what("list")).await?,
        Choice::Labels(labels) => {
            list(cluster, &api, &params.labels(labels), &what("list")).await?
        }
        Choice::Fields(fields) => {
            list(cluster, &api, &params.fields(fields), &what("list")).await?
        }
    };
    Ok(serde_json::to_string_pretty(&cleaned(value))?)
}

async fn list(
    cluster: &Cluster,
    api: &Api<DynamicObject>,
    params: &ListParams,
    what: &str,
) -> Result<Value> {
    let list = within(cluster, api.list(params)).await?;
    Ok(serde_json::to_value(
        list.map_err(|error| explain(what, error))?,
    )?)
}

async fn within<T>(cluster: &Cluster, request: impl Future<Output = T>) -> Result<T> {
    let done = tokio::time::timeout(cluster.patience, request).await;
    done.map_err(|_| anyhow!("the API server does not answer"))
}

fn cleaned(mut value: Value) -> Value {
    clean(&mut value);
    value
}

/// Of every container of Espalier's pods, the one before, too, where it was started again; into `logs/`.
pub(super) async fn logs(cluster: &Cluster, lines: u32, files: &mut Files) {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let list = within(cluster, pods.list(&ListParams::default().labels(OURS))).await;
    let list = match list.and_then(|list| list.map_err(|error| explain("list pods", error))) {
        Ok(list) => list,
        Err(error) => return files.failed("logs", &error),
    };
    let wanted: Vec<(String, LogParams)> = list
        .items
        .iter()
        .flat_map(|pod| logs_of(pod, lines))
        .collect();
    let pods = &pods;
    let asked = futures_util::stream::iter(wanted).map(|(pod, params)| async move {
        let text = within(cluster, pods.logs(&pod, &params)).await;
        let text = text.and_then(|text| text.map_err(|error| explain("read logs", error)));
        let container = params.container.unwrap_or_default();
        let end = if params.previous { "-previous" } else { "" };
        (format!("logs/{pod}-{container}{end}.log"), text)
    });
    let all: Vec<(String, Result<String>)> = asked.buffered(AT_ONCE).collect().await;
    for (path, text) in all {
        files.take(&path, text);
    }
}

fn logs_of(pod: &Pod, lines: u32) -> Vec<(String, LogParams)> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let status = pod.status.iter();
    let containers = status.flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    });
    let mut wanted = Vec::new();
    for container in containers {
        let state = container.state.as_ref();
        let waits = state.is_some_and(|state| state.waiting.is_some());
        for previous in [false, true] {
            let is_there = if previous {
                container.restart_count > 0
            } else {
                !waits
            };
            if is_there {
                let params = LogParams {
                    container: Some(container.name.clone()),
                    previous,
                    tail_lines: Some(lines.into()),
                    timestamps: true,
                    ..LogParams::default()
                };
                wanted.push((name.clone(), params));
            }
        }
    }
    wanted
}
