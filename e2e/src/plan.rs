//! Who has which address, and the manifests that say so.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

/// MTU of the wire.
pub(crate) const UNDERLAY_MTU: u32 = 1500;
/// Prefix length of the nodes' network.
pub(crate) const UNDERLAY_PREFIX: u8 = 24;
/// Every node's default gateway, a host without Espalier.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// A pod address of a node that nobody has ever heard of.
pub const NEVER_SEEN: Ipv4Addr = Ipv4Addr::new(10, 244, 250, 9);
/// Where pods listen.
pub const POD_PORT: u16 = 7000;
/// In every packet that a pod sends; a capture that finds it has found a leak.
pub const MARKER: &[u8; 16] = b"espalier-e2e-pod";

/// `spec.mode` of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Clear overlay.
    Disabled,
    /// Encrypted where the peer is ready.
    Permissive,
    /// Encrypted or nothing.
    Required,
}

/// Name of node `index`, which begins at 1.
#[must_use]
pub fn name(index: u8) -> String {
    format!("node-{index}")
}

/// The node's address on the wire.
#[must_use]
pub fn underlay(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, 10 + index)
}

/// The node's pod addresses.
#[must_use]
pub fn pod_cidr(index: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 244, index, 0), 24)
}

/// All pod addresses, of every node there may be.
#[must_use]
pub fn cluster_cidr() -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16))
}

/// UID of node `index` in its `generation`-th life.
#[must_use]
pub fn uid(index: u8, generation: u8) -> String {
    format!("0000{index:02x}{generation:02x}-e2e0-4000-8000-0000000000{index:02x}")
}

/// The Node object, as Kubernetes has it.
#[must_use]
pub fn node_manifest(name: &str, uid: &str, address: Ipv4Addr, pods: Ipv4Net) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Node\n\
         metadata:\n  name: {name}\n  uid: {uid}\n\
         spec:\n  podCIDRs: [{pods}]\n\
         status:\n  addresses:\n  - type: InternalIP\n    address: {address}\n"
    )
}

/// The cluster's policy.
#[must_use]
pub fn policy_manifest(mode: Mode) -> String {
    policy_with(&format!("mode: {mode:?}"))
}

/// The cluster's policy with this line (or lines, indented by two) in its spec.
#[must_use]
pub fn policy_with(line: &str) -> String {
    let cluster = cluster_cidr();
    format!(
        "apiVersion: espalier.dev/v1alpha1\n\
         kind: EncryptionPolicy\n\
         metadata:\n  name: default\n\
         spec:\n  clusterCIDRs: [{cluster}]\n  {line}\n"
    )
}
