//! Who has which address, and the manifests that say so.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net};

/// MTU of the wire.
pub(super) const UNDERLAY_MTU: u32 = 1500;
/// Prefix length of the nodes' network.
pub(super) const UNDERLAY_PREFIX: u8 = 24;
/// Every node's default gateway, a host of its own.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// A pod address of a node that nobody has ever heard of.
pub(super) const NEVER_SEEN: Ipv4Addr = Ipv4Addr::new(10, 244, 250, 9);

/// All pod addresses, of every node there may be.
pub(super) fn cluster() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16)
}

/// [`cluster`] as the capture wants it.
pub(super) fn clusters() -> Vec<IpNet> {
    vec![IpNet::V4(cluster())]
}

/// Name of node `index`, which begins at 1.
pub(super) fn name(index: u8) -> String {
    format!("node-{index}")
}

/// The node's address on the wire.
pub(super) fn underlay(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + index)
}

/// The node's pod addresses.
pub(super) fn pod_cidr(index: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 244, index, 0), 24)
}

/// The Node object, as Kubernetes has it.
pub(super) fn node_manifest(index: u8, uid: &str) -> String {
    let (name, address, pods) = (name(index), underlay(index), pod_cidr(index));
    format!(
        "apiVersion: v1\n\
         kind: Node\n\
         metadata:\n  name: {name}\n  uid: {uid}\n\
         spec:\n  podCIDRs: [{pods}]\n\
         status:\n  addresses:\n  - type: InternalIP\n    address: {address}\n"
    )
}

/// The cluster's policy.
pub(super) fn policy_manifest(mode: &str) -> String {
    format!(
        "apiVersion: espalier.dev/v1alpha1\n\
         kind: EncryptionPolicy\n\
         metadata:\n  name: default\n\
         spec:\n  mode: {mode}\n  clusterCIDRs: [{}]\n",
        cluster()
    )
}

/// Writes a file as an editor does it: under another name, then renamed.
pub(super) fn write_in_one_step(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("renaming to {}", path.display()))
}
