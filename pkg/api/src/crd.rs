//! `EncryptionPolicy`: what an admin wants of the whole mesh.

#![allow(
    clippy::duplicated_attributes,
    reason = "print columns are of the same types"
)]
#![allow(unreachable_pub, reason = "KubeSchema copies a struct into a function")]

use espalier_peers::Mode;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::Condition;
use crate::meshnode::PairCounts;

// The rules (CEL) repeat what `Protection` refuses: servers before Kubernetes 1.25 have no CEL.
/// How pod traffic between nodes is protected. Cluster-scoped; the one named `default` is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema, CustomResource)]
#[kube(
    group = "espalier.dev",
    version = "v1alpha1",
    kind = "EncryptionPolicy",
    doc = "How pod traffic between nodes is protected. The one named `default` is in force.",
    status = "EncryptionPolicyStatus",
    shortname = "encpol",
    category = "espalier",
    validation = Rule::new("self.metadata.name == 'default'").message("there is one policy for the whole mesh; name it default"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Every node can enforce it."),
    printcolumn(name = "Encrypted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Encrypted\")].status", description = "Every pair of nodes is encrypted."),
    printcolumn(name = "Enforced", type_ = "string", json_path = ".status.conditions[?(@.type==\"Enforced\")].status", description = "Every pair of nodes refuses clear packets."),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total", priority = "1"),
    printcolumn(name = "Overlay", type_ = "string", json_path = ".spec.overlay", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
)]
#[x_kube(validation = Rule::new("self.protocol != 'AH' || self.udpEncapsulation != 'Always'").message("AH cannot be put into UDP (RFC 3948 is about ESP): use udpEncapsulation Auto or Never, or protocol ESP"))]
#[x_kube(validation = Rule::new("self.dataplane != 'Userspace' || self.protocol != 'AH'").message("protocol AH is not what the userspace data plane can do: use dataplane Kernel or Auto"))]
#[x_kube(validation = Rule::new("self.dataplane != 'Userspace' || !has(self.suites) || self.suites.exists(s, !s.endsWith('GMAC'))").message("suites with AES-GMAC alone are not what the userspace data plane can do: use dataplane Kernel or Auto"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EncryptionPolicySpec {
    /// Disabled: clear overlay. Permissive: encrypted where the peer is ready. Required: encrypted or nothing.
    #[serde(default)]
    pub mode: PolicyMode,
    /// What pod addresses are, such as 10.244.0.0/16. Packets for them never leave a node by any other way than the mesh.
    #[serde(rename = "clusterCIDRs")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(max = 43), regex(pattern = "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"))
    )]
    pub cluster_cidrs: Vec<String>,
    /// Seconds for which a live pair may still send clear after `Required` came to hold, until its SAs are up.
    #[serde(default = "default_deadline")]
    #[schemars(range(min = 1, max = 3600))]
    pub transition_deadline_seconds: u32,
    /// ESP, or AH: authenticated only, never encrypted (HMAC-SHA2-256-128; needs the kernel data plane, and no UDP
    /// encapsulation). A change interrupts pairs until their SAs are made anew.
    #[serde(default)]
    pub protocol: Protocol,
    /// What is around pod packets between nodes. VXLAN; IPIP: 30 bytes less; None: native routing, protected by tunnel mode SAs.
    /// A change interrupts pairs until their SAs are made anew.
    #[serde(default)]
    pub overlay: OverlayKind,
    /// ESP algorithms in order of preference; default: AES-256-GCM, AES-128-GCM, ChaCha20-Poly1305. GMAC authenticates only
    /// (kernel data plane). AH has its own. A change holds for SAs made from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "Vec<SuiteName>",
        length(min = 1, max = 5),
        inner(length(max = 32))
    )]
    #[x_kube(validation = Rule::new("self.all(s, self.exists_one(t, s == t))").message("name each suite once, in order of preference"))]
    pub suites: Option<Vec<SuiteName>>,
    /// ESP in UDP (RFC 3948). Auto: raw ESP between nodes whose kernel encrypts, where it is seen to pass, else UDP; Always: UDP;
    /// Never: raw.
    #[serde(default)]
    pub udp_encapsulation: UdpEncapsulation,
    /// When SAs are made. Eager: with every peer at once; OnDemand: under Required with the kernel data plane at the first
    /// packet, and given up when idle.
    #[serde(default)]
    pub establish: Establish,
    /// What encrypts. Auto: what the node's espalier-dataplane found; with another value, a node with another kind is not ready.
    #[serde(default)]
    pub dataplane: DataplaneKind,
    /// SAs of single CPUs (RFC 9611) beside the one of all, where both nodes' kernels have them: as many as the node with fewer
    /// CPUs has, at most 16. Auto: so; Never: one SA pair per peer.
    #[serde(default, rename = "perCPU")]
    pub per_cpu: PerCpu,
    /// What pods send out of the cluster. Auto: it has the node's address, where the kernel has nf_tables; Never: the pod's, for
    /// networks with routes back to pods. Pods and the networks of ExternalPeers always see pods' addresses.
    #[serde(default)]
    pub masquerade: Masquerade,
    /// When SAs are replaced; default: as the agent was started, without limit of volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rekey: Option<RekeySpec>,
}

/// What came of the policy, as `espalier-controller` sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = crate::conditions::no_defaults)]
pub struct EncryptionPolicyStatus {
    /// metadata.generation of the policy that this is about.
    pub observed_generation: i64,
    /// Nodes of the mesh.
    pub nodes: NodeCounts,
    /// Pairs of nodes, each counted at both ends.
    pub pairs: PairCounts,
    /// Ready, Encrypted, Enforced, Progressing, Degraded.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Nodes, by what they say of themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = crate::conditions::no_defaults)]
pub struct NodeCounts {
    /// All.
    pub total: i32,
    /// That can enforce the policy.
    pub ready: i32,
    /// With every pair encrypted.
    pub encrypted: i32,
    /// That refuse clear packets of every pair.
    pub enforced: i32,
}

/// See [`EncryptionPolicySpec::protocol`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// Encapsulating Security Payload (RFC 4303).
    #[default]
    #[serde(rename = "ESP")]
    Esp,
    /// Authentication Header (RFC 4302).
    #[serde(rename = "AH")]
    Ah,
}

/// See [`EncryptionPolicySpec::overlay`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OverlayKind {
    /// VXLAN over UDP 4789.
    #[default]
    #[serde(rename = "VXLAN")]
    Vxlan,
    /// IP in IP.
    #[serde(rename = "IPIP")]
    Ipip,
    /// Native routing.
    None,
}

/// See [`EncryptionPolicySpec::suites`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum SuiteName {
    /// AES-GCM-16 with a 256-bit key.
    #[serde(rename = "AES-256-GCM")]
    Aes256Gcm,
    /// AES-GCM-16 with a 128-bit key.
    #[serde(rename = "AES-128-GCM")]
    Aes128Gcm,
    /// ChaCha20-Poly1305.
    #[serde(rename = "ChaCha20-Poly1305")]
    ChaCha20Poly1305,
    /// AES-GMAC with a 256-bit key: authenticated only.
    #[serde(rename = "AES-256-GMAC")]
    Aes256Gmac,
    /// AES-GMAC with a 128-bit key: authenticated only.
    #[serde(rename = "AES-128-GMAC")]
    Aes128Gmac,
}

impl SuiteName {
    /// The word in manifests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "AES-256-GCM",
            Self::Aes128Gcm => "AES-128-GCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
            Self::Aes256Gmac => "AES-256-GMAC",
            Self::Aes128Gmac => "AES-128-GMAC",
        }
    }

    /// Whether it encrypts.
    #[must_use]
    pub fn encrypts(self) -> bool {
        !matches!(self, Self::Aes256Gmac | Self::Aes128Gmac)
    }
}

/// See [`EncryptionPolicySpec::udp_encapsulation`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UdpEncapsulation {
    /// By what passes.
    #[default]
    Auto,
    /// UDP only.
    Always,
    /// Raw only.
    Never,
}

/// See [`EncryptionPolicySpec::per_cpu`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PerCpu {
    /// Where both nodes can.
    #[default]
    Auto,
    /// Nowhere.
    Never,
}

/// See [`EncryptionPolicySpec::masquerade`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Masquerade {
    /// Where the kernel can.
    #[default]
    Auto,
    /// Nowhere.
    Never,
}

/// See [`EncryptionPolicySpec::establish`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Establish {
    /// At once.
    #[default]
    Eager,
    /// At the first packet.
    OnDemand,
}

/// See [`EncryptionPolicySpec::dataplane`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DataplaneKind {
    /// Whichever there is.
    #[default]
    Auto,
    /// The kernel (XFRM).
    Kernel,
    /// The process that seals and opens itself.
    Userspace,
}

/// When ESP and AH SAs are replaced; 0 or absent: no limit of this kind, for `interval` the agent's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RekeySpec {
    /// Age in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 43_200))]
    pub interval: Option<u32>,
    /// Bytes in one direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_000_000))]
    pub bytes: Option<u64>,
    /// Packets in one direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_000))]
    pub packets: Option<u64>,
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
