//! Who has which address, and the manifests that say so.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// MTU of the wire.
pub(crate) const UNDERLAY_MTU: u32 = 1500;
/// Prefix length of the nodes' network.
pub(crate) const UNDERLAY_PREFIX: u8 = 24;
/// The same over IPv6.
pub(crate) const UNDERLAY_PREFIX_V6: u8 = 64;
/// The gateway's address where the wire has IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1);
/// Every node's default gateway, a host without Espalier.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// A pod address of a node that nobody has ever heard of.
pub const NEVER_SEEN: Ipv4Addr = Ipv4Addr::new(10, 244, 250, 9);
/// The same in IPv6.
pub const NEVER_SEEN_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 250, 0, 0, 0, 9);
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

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Which IP versions a mesh has. Default: IPv4 everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Between nodes.
    pub underlay: Family,
    /// Of pods.
    pub pods: &'static [Family],
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            underlay: Family::V4,
            pods: &[Family::V4],
        }
    }
}

impl Shape {
    /// Address of node `index` on the wire.
    #[must_use]
    pub fn underlay(self, index: u8) -> IpAddr {
        match self.underlay {
            Family::V4 => underlay(index).into(),
            Family::V6 => underlay_v6(index).into(),
        }
    }

    /// Pod addresses of node `index`.
    #[must_use]
    pub fn pod_cidrs(self, index: u8) -> Vec<IpNet> {
        let cidr = |family: &Family| match family {
            Family::V4 => IpNet::V4(pod_cidr(index)),
            Family::V6 => IpNet::V6(pod_cidr_v6(index)),
        };
        self.pods.iter().map(cidr).collect()
    }

    /// Pod addresses of all nodes.
    #[must_use]
    pub fn cluster_cidrs(self) -> Vec<IpNet> {
        let cidr = |family: &Family| match family {
            Family::V4 => cluster_cidr(),
            Family::V6 => cluster_cidr_v6(),
        };
        self.pods.iter().map(cidr).collect()
    }

    /// The Node object of node `index`.
    pub(crate) fn node_manifest(self, index: u8, uid: &str) -> String {
        let pods = list(&self.pod_cidrs(index));
        node_manifest(&name(index), uid, self.underlay(index), pods)
    }

    /// The policy with these lines in its spec.
    pub(crate) fn policy(self, mode: Mode, more: &[String]) -> String {
        let mode = format!("mode: {mode:?}");
        let lines: Vec<String> = [&[mode][..], more].concat();
        policy(&self.cluster_cidrs(), &lines.join("\n  "))
    }
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

/// The same where the wire has IPv6.
#[must_use]
pub fn underlay_v6(index: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0x10 + u16::from(index))
}

/// The node's pod addresses.
#[must_use]
pub fn pod_cidr(index: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 244, index, 0), 24)
}

/// The node's IPv6 pod addresses.
#[must_use]
pub fn pod_cidr_v6(index: u8) -> Ipv6Net {
    let network = Ipv6Addr::new(0xfd00, 0x244, 0, index.into(), 0, 0, 0, 0);
    Ipv6Net::new_assert(network, 64)
}

/// All IPv6 pod addresses.
#[must_use]
pub fn cluster_cidr_v6() -> IpNet {
    let network = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0);
    IpNet::V6(Ipv6Net::new_assert(network, 32))
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

/// The Node object, as Kubernetes has it; `pods` are separated by commas.
#[must_use]
pub fn node_manifest(name: &str, uid: &str, address: impl Display, pods: impl Display) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Node\n\
         metadata:\n  name: {name}\n  uid: {uid}\n\
         spec:\n  podCIDRs: [{pods}]\n\
         status:\n  addresses:\n  - type: InternalIP\n    address: \"{address}\"\n"
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
    policy(&[cluster_cidr()], line)
}

fn policy(cluster: &[IpNet], lines: &str) -> String {
    let cluster = list(cluster);
    format!(
        "apiVersion: espalier.dev/v1alpha1\n\
         kind: EncryptionPolicy\n\
         metadata:\n  name: default\n\
         spec:\n  clusterCIDRs: [{cluster}]\n  {lines}\n"
    )
}

/// A YAML list without its brackets.
fn list(items: &[impl Display]) -> String {
    let words: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
    words.join(", ")
}
