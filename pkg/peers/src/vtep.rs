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

/// The link-local address that a VTEP with this MAC answers for (RFC 4291, appendix A): the next hop of routes for IPv6 pods.
#[must_use]
pub fn vtep_link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let id = u64::from_be_bytes([a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits((0xfe80 << 112) | u128::from(id))
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
    fn a_link_local_address_holds_the_mac() {
        let address = vtep_link_local([0x02, 0x1a, 0x2b, 0x3c, 0x4d, 0x5e]);
        assert_eq!(address.to_string(), "fe80::1a:2bff:fe3c:4d5e");
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
