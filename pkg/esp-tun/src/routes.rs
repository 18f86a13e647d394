//! Longest-prefix match over pod CIDRs. They never overlap, so a sorted list of ranges finds the one that holds an address.

use std::net::IpAddr;

use ipnet::IpNet;

/// Pod CIDRs of all peers, each with its owner.
#[derive(Clone, Debug)]
pub(crate) struct Routes<T> {
    v4: Vec<Range<T>>,
    v6: Vec<Range<T>>,
}

#[derive(Clone, Debug)]
struct Range<T> {
    first: u128,
    last: u128,
    owner: T,
}

impl<T> Routes<T> {
    /// The CIDRs must not overlap.
    pub(crate) fn new(cidrs: impl IntoIterator<Item = (IpNet, T)>) -> Self {
        let mut routes = Self {
            v4: Vec::new(),
            v6: Vec::new(),
        };
        for (cidr, owner) in cidrs {
            let (first, last) = (bits(cidr.network()), bits(cidr.broadcast()));
            let family = if matches!(cidr, IpNet::V4(_)) {
                &mut routes.v4
            } else {
                &mut routes.v6
            };
            family.push(Range { first, last, owner });
        }
        routes.v4.sort_unstable_by_key(|range| range.first);
        routes.v6.sort_unstable_by_key(|range| range.first);
        routes
    }

    /// Whose pod CIDR holds `address`.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<&T> {
        let family = if address.is_ipv4() {
            &self.v4
        } else {
            &self.v6
        };
        let address = bits(address);
        let after = family.partition_point(|range| range.first <= address);
        let range = family.get(after.checked_sub(1)?)?;
        (address <= range.last).then_some(&range.owner)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_finds_its_cidr_to_the_edges() {
        let cidrs = [
            "10.244.2.0/24",
            "10.244.1.0/24",
            "10.244.128.0/17",
            "fd00:1::/64",
            "fd00:2::/64",
        ];
        let routes = Routes::new(cidrs.map(|cidr| (cidr.parse().unwrap(), cidr)));
        let found = |address: &str| routes.lookup(address.parse().unwrap()).copied();
        assert_eq!(found("10.244.1.0"), Some("10.244.1.0/24"));
        assert_eq!(found("10.244.1.255"), Some("10.244.1.0/24"));
        assert_eq!(found("10.244.2.0"), Some("10.244.2.0/24"));
        assert_eq!(found("10.244.255.255"), Some("10.244.128.0/17"));
        assert_eq!(found("fd00:2::ffff:ffff:ffff:ffff"), Some("fd00:2::/64"));
        for foreign in [
            "10.244.0.255",
            "10.244.3.0",
            "10.245.0.0",
            "0.0.0.0",
            "255.255.255.255",
            "fd00:3::",
            "::",
        ] {
            assert_eq!(found(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_asking_every_cidr(networks in prop::collection::btree_set(any::<u8>(), 0..40), address in any::<u16>()) {
            let cidrs: Vec<IpNet> = networks.iter().map(|third| format!("10.0.{third}.0/24").parse().unwrap()).collect();
            let routes = Routes::new(cidrs.iter().map(|cidr| (*cidr, *cidr)));
            let [third, last] = address.to_be_bytes();
            let address = IpAddr::from([10, 0, third, last]);
            let expected = cidrs.iter().find(|cidr| cidr.contains(&address));
            prop_assert_eq!(routes.lookup(address), expected);
        }
    }
}
