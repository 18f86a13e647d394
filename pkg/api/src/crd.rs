use espalier_peers::Mode;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How pod traffic between nodes is protected. Cluster-scoped; the one named `default` is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "espalier.dev",
    version = "v1alpha1",
    kind = "EncryptionPolicy",
    shortname = "encpol",
    category = "espalier",
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mode"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EncryptionPolicySpec {
    /// Disabled: clear overlay. Permissive: encrypted where the peer is ready. Required: encrypted or nothing.
    #[serde(default)]
    pub mode: PolicyMode,
    /// What pod addresses are, such as 10.244.0.0/16. Packets for them never leave a node by any other way than the mesh.
    #[serde(rename = "clusterCIDRs")]
    pub cluster_cidrs: Vec<String>,
    /// Seconds for which a live pair may still send clear after `Required` came to hold, until its SAs are up.
    #[serde(default = "default_deadline")]
    #[schemars(range(min = 1, max = 3600))]
    pub transition_deadline_seconds: u32,
}

/// See [`Mode`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PolicyMode {
    /// Clear overlay.
    #[default]
    Disabled,
    /// Encrypted where the peer is ready, clear otherwise.
    Permissive,
    /// Encrypted or nothing.
    Required,
}

impl From<PolicyMode> for Mode {
    fn from(mode: PolicyMode) -> Self {
        match mode {
            PolicyMode::Disabled => Self::Disabled,
            PolicyMode::Permissive => Self::Permissive,
            PolicyMode::Required => Self::Required,
        }
    }
}

fn default_deadline() -> u32 {
    60
}
