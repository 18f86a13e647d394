//! Text and API objects in, objects of the mesh and problems out.

use std::net::IpAddr;
use std::time::Duration;

use espalier_peers::NodeSpec;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::crd::EncryptionPolicy;
use crate::external::{self, ExternalGateway};
use crate::protection::Protection;
use crate::snapshot::{Policy, Problem};

/// Name of the policy that is in force.
const POLICY_NAME: &str = "default";
/// Fields of our own objects themselves; those of a spec are the type's.
const OWN_FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
/// Seconds, inclusive.
const DEADLINE_RANGE: std::ops::RangeInclusive<u32> = 1..=3600;

/// An object, or what is wrong with it.
pub type Read = Result<Object, Problem>;

/// An object that Espalier reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A node.
    Node(NodeSpec),
    /// The policy.
    Policy(Policy),
    /// A gateway outside of the mesh.
    External(ExternalGateway),
}

impl Object {
    /// Kind and name, unique in a mesh.
    #[must_use]
    pub fn key(&self) -> (&'static str, String) {
        match self {
            Self::Node(node) => ("Node", node.name.clone()),
            Self::Policy(_) => ("EncryptionPolicy", POLICY_NAME.to_owned()),
            Self::External(peer) => ("ExternalPeer", peer.name.clone()),
        }
    }
}

/// Reads all documents of `text`; `file` names it in problems. `Err` when the text is no YAML at all.
/// A bad document does not hide the good ones; its problem says which object it was, as far as that is known.
///
/// # Errors
/// One [`Problem`] for the whole file.
pub fn parse(file: &str, text: &str) -> Result<Vec<Read>, Problem> {
    if text.trim().is_empty() {
        // Also what an editor that writes in place leaves for a moment.
        return Err(Problem {
            place: file.to_owned(),
            key: None,
            what: "is empty; its last good version stays in force; delete the file to remove its objects".to_owned(),
        });
    }
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| Problem {
        place: file.to_owned(),
        key: None,
        what: format!(
            "{}; the file's last good version stays in force",
            not_read(&e.to_string())
        ),
    })?;
    let present = documents
        .into_iter()
        .enumerate()
        .filter(|(_, document)| !document.is_null());
    Ok(present
        .filter_map(|(index, document)| read_document(file, index, document))
        .collect())
}

/// The parser limits what a file may cost; a folder may have any number of files.
fn not_read(why: &str) -> String {
    if why.contains("budget breached") {
        format!("has more in it than one file may have, split it: {why}")
    } else {
        format!("not valid YAML: {why}")
    }
}

/// `None` for kinds that are somebody else's.
fn read_document(file: &str, index: usize, document: Value) -> Option<Read> {
    read_value(&format!("{file}, document {}", index + 1), document)
}

/// Reads one object as the API server or a file has it; `source` names where it is from in problems. `None` for kinds that are
/// somebody else's.
#[must_use]
pub fn read_value(source: &str, document: Value) -> Option<Read> {
    let word = |pointer| {
        document
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (version, kind, name) = (word("/apiVersion"), word("/kind"), word("/metadata/name"));
    let read: fn(Value) -> Result<Object, String> = match (version.as_str(), kind.as_str()) {
        ("v1", "Node") => |document| typed(document).and_then(read_node),
        ("espalier.dev/v1alpha1", "EncryptionPolicy") => read_policy,
        ("espalier.dev/v1alpha1", "ExternalPeer") => read_external,
        (other, "EncryptionPolicy" | "ExternalPeer") => {
            let what = format!("apiVersion {other:?}: expected espalier.dev/v1alpha1");
            return Some(Err(Problem {
                place: place(source, &kind, &name),
                key: key(&kind, &name),
                what,
            }));
        }
        ("", _) | (_, "") => {
            let what = "apiVersion and kind are needed, as in `apiVersion: v1` and `kind: Node`"
                .to_owned();
            return Some(Err(Problem {
                place: place(source, &kind, &name),
                key: None,
                what,
            }));
        }
        _ => return None,
    };
    Some(read(document).map_err(|what| Problem {
        place: place(source, &kind, &name),
        key: key(&kind, &name),
        what,
    }))
}

/// A Node as the API server has it.
///
/// # Errors
/// What is wrong with it, for [`crate::Store::put`].
pub fn read_api_node(source: &str, node: Node) -> Read {
    let name = node.metadata.name.clone().unwrap_or_default();
    read_node(node).map_err(|what| Problem {
        place: place(source, "Node", &name),
        key: key("Node", &name),
        what,
    })
}

fn place(source: &str, kind: &str, name: &str) -> String {
    let object = format!("{kind} {name}");
    match object.trim() {
        "" => format!("{source}, unknown object"),
        object => format!("{source}, {object}"),
    }
}

fn key(kind: &str, name: &str) -> Option<(&'static str, String)> {
    let kind = ["Node", "EncryptionPolicy", "ExternalPeer"]
        .into_iter()
        .find(|known| *known == kind)?;
    (!name.is_empty()).then(|| (kind, name.to_owned()))
}

fn typed<T: DeserializeOwned>(document: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(document).map_err(|e| format!("{}: {}", e.path(), e.inner()))
}

fn read_node(node: Node) -> Result<Object, String> {
    let name = node.metadata.name.filter(|name| is_dns_name(name)).ok_or(
        "metadata.name: expected a DNS subdomain (lower case letters, digits, '-' and '.', at most 253); it is the node's identity",
    )?;
    let status = node.status.unwrap_or_default();
    let mut addresses = Vec::new();
    for (i, address) in status.addresses.unwrap_or_default().iter().enumerate() {
        if address.type_ == "InternalIP" {
            let found = &address.address;
            let parsed: IpAddr = found.parse().map_err(|_| {
                format!("status.addresses[{i}].address: expected an IP address, found {found:?}")
            })?;
            if parsed.is_unspecified() || parsed.is_multicast() {
                return Err(format!(
                    "status.addresses[{i}].address: expected the address of one host, found {found:?}"
                ));
            }
            addresses.push(parsed);
        }
    }
    if addresses.is_empty() {
        return Err("status.addresses: expected one of type InternalIP, found none; peers reach the node there".to_owned());
    }
    let spec = node.spec.unwrap_or_default();
    let cidrs = spec
        .pod_cidrs
        .or_else(|| spec.pod_cidr.map(|cidr| vec![cidr]))
        .unwrap_or_default();
    let pod_cidrs = read_cidrs("spec.podCIDRs", &cidrs)?;
    // One address for the network, one for the gateway, and something for pods.
    if let Some(small) = pod_cidrs
        .iter()
        .find(|cidr| cidr.max_prefix_len() - cidr.prefix_len() < 2)
    {
        return Err(format!(
            "spec.podCIDRs: {small} has no room for pods; use /{} or larger",
            small.max_prefix_len() - 2
        ));
    }
    Ok(Object::Node(NodeSpec {
        name,
        uid: node.metadata.uid,
        addresses,
        pod_cidrs,
    }))
}

fn read_policy(document: Value) -> Result<Object, String> {
    known_fields(&document)?;
    let policy: EncryptionPolicy = typed(document)?;
    let name = policy.metadata.name.unwrap_or_default();
    if name != POLICY_NAME {
        return Err(format!(
            "metadata.name: expected {POLICY_NAME:?}, found {name:?}; there is one policy for the whole mesh"
        ));
    }
    if policy.spec.cluster_cidrs.is_empty() {
        return Err("spec.clusterCIDRs: expected the ranges of all pod addresses, as in [10.244.0.0/16], found none".to_owned());
    }
    let seconds = policy.spec.transition_deadline_seconds;
    if !DEADLINE_RANGE.contains(&seconds) {
        return Err(format!(
            "spec.transitionDeadlineSeconds: expected 1 to 3600, found {seconds}"
        ));
    }
    Ok(Object::Policy(Policy {
        generation: policy.metadata.generation.unwrap_or_default(),
        mode: policy.spec.mode.into(),
        cluster_cidrs: read_cidrs("spec.clusterCIDRs", &policy.spec.cluster_cidrs)?,
        transition_deadline: Duration::from_secs(seconds.into()),
        protection: Protection::read(&policy.spec)?,
        masquerade: policy.spec.masquerade,
    }))
}

fn read_external(document: Value) -> Result<Object, String> {
    known_fields(&document)?;
    external::read(typed(document)?).map(Object::External)
}

/// A misspelt `spec` is said, not passed over.
fn known_fields(document: &Value) -> Result<(), String> {
    let fields = document
        .as_object()
        .into_iter()
        .flat_map(|object| object.keys());
    match fields
        .into_iter()
        .find(|field| !OWN_FIELDS.contains(&field.as_str()))
    {
        None => Ok(()),
        Some(unknown) => {
            let known = OWN_FIELDS.join(", ");
            Err(format!("{unknown}: unknown field, expected one of {known}"))
        }
    }
}

pub(crate) fn read_cidrs(field: &str, texts: &[String]) -> Result<Vec<IpNet>, String> {
    let mut cidrs = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        let net: IpNet = text.parse().map_err(|_| {
            format!("{field}[{i}]: expected a CIDR such as 10.244.1.0/24, found {text:?}")
        })?;
        if net.trunc() != net {
            return Err(format!(
                "{field}[{i}]: {net} has host bits; the range is {}",
                net.trunc()
            ));
        }
        cidrs.push(net);
    }
    Ok(cidrs)
}

/// RFC 1123 subdomain, as Kubernetes demands of names.
pub(crate) fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(inner)
    };
    name.len() <= 253 && name.split('.').all(label)
}
