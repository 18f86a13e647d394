//! Traffic selectors of IKE and networks of policies.

use std::net::IpAddr;

use espalier_ike::{ChildSa, TrafficSelector};
use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};

/// Policies for one tunnel and direction, at most: a range of addresses that is no network takes several.
const MOST: usize = 256;

/// Every pair of one IP version.
pub(super) fn pairs(own: &[IpNet], remote: &[IpNet]) -> Vec<(IpNet, IpNet)> {
    let all = own.iter().flat_map(|own| {
        remote
            .iter()
            .map(move |remote| (own.trunc(), remote.trunc()))
    });
    let alike = |(own, remote): &(IpNet, IpNet)| own.addr().is_ipv4() == remote.addr().is_ipv4();
    all.filter(alike).collect()
}

/// Those of `found` that lie in what is offered now.
pub(super) fn within(found: &[(IpNet, IpNet)], offered: &[(IpNet, IpNet)]) -> Vec<(IpNet, IpNet)> {
    let inside = |(own, remote): &&(IpNet, IpNet)| {
        let mut wider = offered.iter();
        wider.any(|(a, b)| a.contains(own) && b.contains(remote))
    };
    found.iter().filter(inside).copied().collect()
}

/// What policies can let through this tunnel; and whether something that was agreed is none of that.
pub(super) fn agreed(child: &ChildSa) -> (Vec<(IpNet, IpNet)>, bool) {
    let networks = |side: &[TrafficSelector]| -> Vec<IpNet> {
        side.iter().filter_map(networks).flatten().collect()
    };
    let narrow = |ts: &TrafficSelector| networks_of_all(ts).is_none();
    let mut both = pairs(&networks(&child.local_ts), &networks(&child.remote_ts));
    both.sort_unstable();
    both.dedup();
    let more = both.len() > MOST;
    both.truncate(MOST);
    let odd = child.local_ts.iter().chain(&child.remote_ts).any(narrow);
    (both, odd || more)
}

fn networks(ts: &TrafficSelector) -> Option<Vec<IpNet>> {
    networks_of_all(ts).map(|all| all.take(MOST).collect())
}

/// `None`: it is about some protocol or ports only.
fn networks_of_all(ts: &TrafficSelector) -> Option<IpSubnets> {
    let all = ts.protocol == 0 && (ts.start_port, ts.end_port) == (0, u16::MAX);
    match (ts.start, ts.end) {
        (IpAddr::V4(start), IpAddr::V4(end)) if all => Some(Ipv4Subnets::new(start, end, 0).into()),
        (IpAddr::V6(start), IpAddr::V6(end)) if all => Some(Ipv6Subnets::new(start, end, 0).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split(' ').map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn pairs_are_of_one_ip_version() {
        let found = pairs(
            &nets("10.244.1.0/24 fd00::/64"),
            &nets("192.168.0.0/16 2001:db8::/32"),
        );
        let expected = [
            ("10.244.1.0/24", "192.168.0.0/16"),
            ("fd00::/64", "2001:db8::/32"),
        ];
        let text = |(a, b): &(IpNet, IpNet)| (a.to_string(), b.to_string());
        let expected = expected.map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(found.iter().map(text).collect::<Vec<_>>(), expected);
        let narrower = pairs(
            &nets("10.244.1.0/24"),
            &nets("192.168.7.0/24 172.16.0.0/12"),
        );
        assert_eq!(within(&narrower, &found).len(), 1);
    }

    #[test]
    fn a_range_becomes_networks_and_ports_become_none() {
        let ts = |protocol, start: &str, end: &str| TrafficSelector {
            protocol,
            start_port: 0,
            end_port: u16::MAX,
            start: start.parse().unwrap(),
            end: end.parse().unwrap(),
        };
        let range = networks(&ts(0, "192.168.0.0", "192.168.2.255")).unwrap();
        assert_eq!(range, nets("192.168.0.0/23 192.168.2.0/24"));
        assert_eq!(networks(&ts(6, "192.168.0.0", "192.168.2.255")), None);
        let widest = networks(&ts(0, "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe")).unwrap();
        assert!(widest.len() <= MOST);
    }
}
