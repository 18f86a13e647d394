use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which a lease lists them.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Gateway of every IPv6 pod: an address of the host's veth.
pub const V6_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The node's own address in one of its pod CIDRs: the first after the network's, e.g. 10.244.1.1 of 10.244.1.0/24.
#[must_use]
pub fn node_gateway(cidr: IpNet) -> IpAddr {
    nth(cidr, GATEWAY)
}

/// Offset of the node's own address in a CIDR.
const GATEWAY: u128 = 1;
/// Offset of the first address for pods.
const FIRST: u128 = 2;

/// One pod CIDR, and how far it has been used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) cidr: IpNet,
    /// Offset of the lowest address that was never leased.
    pub(crate) next: u128,
}

impl Pool {
    pub(crate) fn new(cidr: IpNet) -> Self {
        Self {
            cidr: cidr.trunc(),
            next: FIRST,
        }
    }

    pub(crate) fn family(&self) -> Family {
        Family::of(self.cidr.addr())
    }

    /// How many pods it can serve.
    pub(crate) fn capacity(&self) -> u128 {
        (self.last() + 1).saturating_sub(FIRST)
    }

    /// Is `address` one that a pod can get from here?
    pub(crate) fn serves(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && (FIRST..=self.last()).contains(&self.offset(address))
    }

    /// What a pod's default route points at.
    pub(crate) fn gateway(&self) -> IpAddr {
        match self.family() {
            Family::V4 => node_gateway(self.cidr),
            Family::V6 => V6_GATEWAY.into(),
        }
    }

    pub(crate) fn address(&self, offset: u128) -> IpAddr {
        nth(self.cidr, offset)
    }

    pub(crate) fn offset(&self, address: IpAddr) -> u128 {
        number(address).wrapping_sub(number(self.cidr.network()))
    }

    /// Offset of the last address for pods: IPv4 ends with the broadcast address.
    pub(crate) fn last(&self) -> u128 {
        let bits = u32::from(self.cidr.max_prefix_len() - self.cidr.prefix_len());
        let all = 1u128.checked_shl(bits).map_or(u128::MAX, |size| size - 1);
        match self.family() {
            Family::V4 => all.saturating_sub(1),
            Family::V6 => all,
        }
    }
}

fn nth(cidr: IpNet, offset: u128) -> IpAddr {
    let number = number(cidr.network()).wrapping_add(offset);
    match cidr {
        IpNet::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpNet::V6(_) => Ipv6Addr::from(number).into(),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str) -> Pool {
        Pool::new(text.parse().unwrap())
    }

    #[test]
    fn network_gateway_and_broadcast_are_reserved() {
        let pool = pool("10.244.1.0/24");
        assert_eq!(
            (pool.capacity(), pool.gateway().to_string()),
            (253, "10.244.1.1".to_owned())
        );
        for (address, served) in [(0, false), (1, false), (2, true), (254, true), (255, false)] {
            assert_eq!(
                pool.serves(format!("10.244.1.{address}").parse().unwrap()),
                served,
                "{address}"
            );
        }
        assert!(!pool.serves("10.244.2.2".parse().unwrap()));
    }

    #[test]
    fn ipv6_has_no_broadcast_and_a_link_local_gateway() {
        let pool = pool("fd00:1::/126");
        assert_eq!((pool.capacity(), pool.gateway()), (2, V6_GATEWAY.into()));
        assert_eq!(pool.address(pool.last()).to_string(), "fd00:1::3");
        assert_eq!(node_gateway(pool.cidr).to_string(), "fd00:1::1");
    }

    #[test]
    fn the_widest_and_the_narrowest_do_not_overflow() {
        assert_eq!(pool("::/0").last(), u128::MAX);
        for (cidr, capacity) in [
            ("10.0.0.0/30", 1),
            ("10.0.0.0/31", 0),
            ("10.0.0.0/32", 0),
            ("fd00::/128", 0),
        ] {
            assert_eq!(pool(cidr).capacity(), capacity, "{cidr}");
        }
    }
}
