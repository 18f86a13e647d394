use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv6Net};

use crate::identity::{Identity, macs};
use crate::{Error, host_name};

/// The smallest MTU of IPv4 (RFC 791 §3.2); smaller ones stop the kernel's IPv4.
const SMALLEST_MTU: u32 = 68;

/// The interface that a pod is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Name of the CNI network.
    pub network: String,
    /// The container.
    pub container_id: String,
    /// The interface's name inside the container.
    pub ifname: String,
    /// Path of the container's network namespace.
    pub netns: PathBuf,
    /// At most one per family.
    pub addresses: Vec<PodAddress>,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
}

/// An address of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAddress {
    /// Given to the pod as /32 or /128.
    pub address: IpAddr,
    /// The pod's way out: an address of the host, or a link-local one, which the host's end is given.
    pub gateway: IpAddr,
}

impl PodAddress {
    /// As /32 or /128.
    #[must_use]
    pub fn host_net(&self) -> IpNet {
        IpNet::from(self.address)
    }

    /// For the host's end: a gateway that is valid on every link, with the prefix that makes the pod's own link-local
    /// address reachable too (RFC 4291 §2.5.6). Only of IPv6.
    pub(crate) fn link_local_gateway(&self) -> Option<IpNet> {
        match self.gateway {
            IpAddr::V6(gateway) if gateway.is_unicast_link_local() => {
                Ipv6Net::new(gateway, 64).ok().map(IpNet::from)
            }
            _ => None,
        }
    }
}

impl PodSpec {
    /// Name of the host's end.
    #[must_use]
    pub fn host_name(&self) -> String {
        host_name(&self.container_id, &self.ifname)
    }

    /// MACs of the host's and of the pod's end.
    pub(crate) fn macs(&self) -> ([u8; 6], [u8; 6]) {
        macs(&self.container_id, &self.ifname)
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity {
            network: self.network.clone(),
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }

    /// Everything that can be told before the kernel is touched.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.identity().validate()?;
        validate_addressing(&self.addresses, self.mtu)
    }
}

pub(crate) fn validate_addressing(addresses: &[PodAddress], mtu: u32) -> Result<(), Error> {
    if mtu < SMALLEST_MTU {
        return Err(Error::invalid("mtu", "at least 68", mtu.to_string()));
    }
    let families: Vec<bool> = addresses.iter().map(|a| a.address.is_ipv4()).collect();
    if !matches!(families[..], [_] | [true, false] | [false, true]) {
        let found = format!("{} addresses", families.len());
        return Err(Error::invalid(
            "addresses",
            "one per address family, at least one",
            found,
        ));
    }
    let mixed = addresses
        .iter()
        .find(|a| a.address.is_ipv4() != a.gateway.is_ipv4());
    match mixed {
        Some(a) => Err(Error::invalid(
            "gateway",
            "the family of its address",
            format!("{} of {}", a.gateway, a.address),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> PodSpec {
        let address = PodAddress {
            address: "10.244.1.5".parse().unwrap(),
            gateway: "10.244.1.1".parse().unwrap(),
        };
        PodSpec {
            network: "mesh".into(),
            container_id: "c0ffee".into(),
            ifname: "eth0".into(),
            netns: "/run/netns/pod".into(),
            addresses: vec![address],
            mtu: 1408,
        }
    }

    fn refused(change: impl FnOnce(&mut PodSpec)) -> String {
        let mut spec = spec();
        change(&mut spec);
        spec.validate().unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_work_is_refused_before_the_kernel_is_touched() {
        assert!(spec().validate().is_ok());
        assert!(refused(|s| s.mtu = 67).contains("mtu is 67: expected at least 68"));
        assert!(refused(|s| s.addresses.clear()).contains("addresses is 0 addresses"));
        assert!(refused(|s| s.addresses.push(s.addresses[0])).contains("addresses is 2 addresses"));
        assert!(
            refused(|s| s.addresses[0].gateway = "fe80::1".parse().unwrap())
                .contains("fe80::1 of 10.244.1.5")
        );
        assert!(refused(|s| s.container_id = "a/b".into()).contains("container ID is \"a/b\""));
        assert!(refused(|s| s.network = "n".repeat(250)).contains("at most 255 bytes"));
    }
}
