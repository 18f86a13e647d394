use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

/// MAC address of a node's VTEP: derived from its name, so that peers need not exchange it. Locally administered, unicast.
#[must_use]
pub fn vtep_mac(node: &str) -> [u8; 6] {
    let digest = Sha256::new()
        .chain_update(b"espalier-vtep\0")
        .chain_update(node.as_bytes())
        .finalize();
    let mut mac = [0x02; 6];
    mac[1..].copy_from_slice(&digest[..5]);
    mac
}

/// A node's own address in one of its pod CIDRs: the first usable one, pods' gateway and the host's source towards pods.
#[must_use]
pub fn gateway(pod_cidr: IpNet) -> IpAddr {
    match pod_cidr.network() {
        IpAddr::V4(net) => Ipv4Addr::from_bits(net.to_bits().wrapping_add(1)).into(),
        IpAddr::V6(net) => Ipv6Addr::from_bits(net.to_bits().wrapping_add(1)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_stable_local_and_differ() {
        let mac = vtep_mac("node-a");
        assert_eq!(mac, vtep_mac("node-a"));
        assert_eq!(mac[0], 0x02, "locally administered, unicast");
        assert_ne!(mac, vtep_mac("node-b"));
    }

    #[test]
    fn the_gateway_is_the_first_usable_address() {
        assert_eq!(
            gateway("10.244.1.77/24".parse().unwrap()).to_string(),
            "10.244.1.1"
        );
        assert_eq!(
            gateway("fd00:1::/64".parse().unwrap()).to_string(),
            "fd00:1::1"
        );
    }
}
