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
    /// ESP, or AH: authenticated only, never encrypted (HMAC-SHA2-256-128; needs the kernel data plane, and no UDP
    /// encapsulation). A change interrupts pairs until their SAs are made anew.
    #[serde(default)]
    pub protocol: Protocol,
    /// What is around pod packets between nodes. VXLAN; IPIP: 30 bytes less; None: native routing, protected by tunnel mode SAs
    /// (kernel data plane). A change interrupts pairs until their SAs are made anew.
    #[serde(default)]
    pub overlay: OverlayKind,
    /// ESP algorithms in order of preference; default: AES-256-GCM, AES-128-GCM, ChaCha20-Poly1305. GMAC authenticates only
    /// (kernel data plane). AH has its own. A change holds for SAs made from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 5))]
    pub suites: Option<Vec<SuiteName>>,
    /// ESP in UDP (RFC 3948). Auto: raw ESP where it is seen to pass, else UDP; Always: UDP; Never: raw.
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
    /// When SAs are replaced; default: as the agent was started, without limit of volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rekey: Option<RekeySpec>,
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
