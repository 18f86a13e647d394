use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What an address belongs to: one interface of one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl Key {
    /// A key of these two.
    #[must_use]
    pub fn new(container_id: impl Into<String>, ifname: impl Into<String>) -> Self {
        Self {
            container_id: container_id.into(),
            ifname: ifname.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// What is known of the container, for reports and reconciliation. Anything may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Path of its network namespace.
    pub netns: String,
    /// The pod's namespace.
    pub pod_namespace: String,
    /// The pod's name.
    pub pod_name: String,
    /// Name of the CNI network; empty in leases of older releases.
    #[serde(default)]
    pub network: String,
}

/// The addresses of one interface: one per address family that the node has pod CIDRs of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Whose.
    pub key: Key,
    /// What is known of the container.
    pub owner: Owner,
    /// IPv4 first.
    pub addresses: Vec<LeasedAddress>,
    /// When, in milliseconds since 1970.
    pub allocated_at_ms: u64,
}

/// An address and its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasedAddress {
    /// The pod's address.
    pub address: IpAddr,
    /// What the pod's default route points at.
    pub gateway: IpAddr,
}

impl LeasedAddress {
    /// The address as the pod gets it: /32 or /128.
    #[must_use]
    pub fn host_net(&self) -> IpNet {
        IpNet::from(self.address)
    }
}
