//! `MeshNode`: what a node's agent says of itself.

#![allow(
    clippy::duplicated_attributes,
    reason = "print columns are of the same types"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::Condition;

/// Nothing: a `MeshNode` is written by its node's agent, for people and for the controller to read.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource,
)]
#[kube(
    group = "espalier.dev",
    version = "v1alpha1",
    kind = "MeshNode",
    doc = "A node of the mesh, as its espalier-agent sees it. Named as the Node and removed with it; written by the agent.",
    status = "MeshNodeStatus",
    shortname = "mnode",
    category = "espalier",
    printcolumn(name = "Mode", type_ = "string", json_path = ".status.mode"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Encrypted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Encrypted\")].status"
    ),
    printcolumn(name = "Pairs", type_ = "integer", json_path = ".status.pairs.total"),
    printcolumn(
        name = "Dataplane",
        type_ = "string",
        json_path = ".status.dataplane",
        priority = "1"
    ),
    printcolumn(
        name = "Certificate",
        type_ = "string",
        json_path = ".status.certificate.notAfter",
        priority = "1",
        description = "When the certificate ends."
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.version",
        priority = "1"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
pub struct MeshNodeSpec {}

/// See [`MeshNode`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = crate::conditions::no_defaults)]
pub struct MeshNodeStatus {
    /// metadata.uid of the Node.
    #[serde(rename = "nodeUID", skip_serializing_if = "String::is_empty")]
    pub node_uid: String,
    /// Of the agent.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// userspace, kernel or unreachable.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dataplane: String,
    /// Disabled, Permissive or Required: the policy's as this node has it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mode: String,
    /// metadata.generation of the policy that is in force on this node.
    pub observed_policy_generation: i64,
    /// Of pods.
    pub mtu: i32,
    /// This node's pairs with other nodes.
    pub pairs: PairCounts,
    /// Of this node; absent: it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
    /// What has to be mended, each with cause and remedy.
    pub problems: Vec<String>,
    /// Ready, Encrypted, Enforced, Progressing, Degraded.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Pairs of nodes, by what is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = crate::conditions::no_defaults)]
pub struct PairCounts {
    /// All.
    pub total: i32,
    /// Encrypted and authenticated, or closed until the first packet asks for SAs (`establish: OnDemand`).
    pub encrypted: i32,
    /// Authenticated only.
    pub authenticated: i32,
    /// In clear.
    pub clear: i32,
    /// Nothing is sent.
    pub blocked: i32,
}

/// A node's certificate and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = crate::conditions::no_defaults)]
pub struct CertificateStatus {
    /// When it ends.
    #[schemars(schema_with = "crate::conditions::date_time")]
    pub not_after: Time,
    /// SHA-256 (hex) of the CA certificate that signed it; empty: none of those that it trusts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub issuer: String,
    /// Which CA certificates it trusts now: SHA-256 (hex) of their sorted fingerprints (`espalier_pki::Bundle::hash`).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trust: String,
}
