//! Traffic selectors: narrowing (RFC 7296 §2.9). Ports are ranges of numbers here, those of ICMP (type and code as one
//! number, §3.13.1) and of the Mobility Header included. OPAQUE is not negotiated: it selects nothing here.

use std::net::IpAddr;

use crate::config::TrafficSelector;
use crate::limits;

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const MOBILITY: u8 = 135;
/// Protocols with ports, or with a type (and code) in their place: ICMP, TCP, UDP, DCCP, ICMPv6, SCTP, Mobility Header,
/// UDP-Lite.
const WITH_PORTS: [u8; 8] = [ICMP, 6, 17, 33, ICMP_V6, 132, MOBILITY, 136];

/// What both sides allow: each pair of selectors that overlap, narrowed to the overlap, in the order of `theirs`: an
/// initiator's first selector is the one of the packet that it has (RFC 7296 §2.9), which must not be left out.
pub(crate) fn narrow(ours: &[TrafficSelector], theirs: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let mut both = Vec::new();
    let pairs = theirs.iter().flat_map(|b| ours.iter().map(move |a| (a, b)));
    for shared in pairs.filter_map(|(a, b)| overlap(a, b)) {
        if both.len() < limits::SELECTORS_MAX && !both.iter().any(|wide| contains(wide, &shared)) {
            both.push(shared);
        }
    }
    both
}

/// True when each of `answer` lies within one of `offer`: a responder may narrow, never widen.
pub(crate) fn is_subset(answer: &[TrafficSelector], offer: &[TrafficSelector]) -> bool {
    !answer.is_empty()
        && answer
            .iter()
            .all(|inner| offer.iter().any(|outer| contains(outer, inner)))
}

fn overlap(a: &TrafficSelector, b: &TrafficSelector) -> Option<TrafficSelector> {
    let protocol = match (a.protocol, b.protocol) {
        (x, y) if x == y => x,
        (0, x) | (x, 0) => x,
        _ => return None,
    };
    let shared = TrafficSelector {
        protocol,
        start_port: a.start_port.max(b.start_port),
        end_port: a.end_port.min(b.end_port),
        start: a.start.max(b.start),
        end: a.end.min(b.end),
    };
    // A range of ports of any protocol is one of those that have ports, not of message types.
    let restricts = |ts: &TrafficSelector| ts.protocol == 0 && !any_port(ts);
    let typed = matches!(shared.protocol, ICMP | ICMP_V6 | MOBILITY);
    let mixed = typed && (restricts(a) || restricts(b));
    (same_family(a, b) && is_valid(&shared) && !mixed).then_some(shared)
}

fn contains(outer: &TrafficSelector, inner: &TrafficSelector) -> bool {
    same_family(outer, inner)
        && is_valid(inner)
        && (outer.protocol == 0 || outer.protocol == inner.protocol)
        && outer.start_port <= inner.start_port
        && inner.end_port <= outer.end_port
        && outer.start <= inner.start
        && inner.end <= outer.end
}

fn same_family(a: &TrafficSelector, b: &TrafficSelector) -> bool {
    let v4 = a.start.is_ipv4();
    [a.end, b.start, b.end]
        .iter()
        .map(IpAddr::is_ipv4)
        .all(|other| other == v4)
}

/// Neither range is empty, both addresses are of one family, and ports are restricted only where the protocol has such a
/// field at a known place (RFC 4301 §4.4.1.1); of the protocol "any" too, since peers are known to send that.
pub(crate) fn is_valid(ts: &TrafficSelector) -> bool {
    ts.start.is_ipv4() == ts.end.is_ipv4()
        && ts.start <= ts.end
        && ts.start_port <= ts.end_port
        && (any_port(ts) || ts.protocol == 0 || WITH_PORTS.contains(&ts.protocol))
}

fn any_port(ts: &TrafficSelector) -> bool {
    (ts.start_port, ts.end_port) == (0, u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(protocol: u8, ports: (u16, u16), start: &str, end: &str) -> TrafficSelector {
        TrafficSelector {
            protocol,
            start_port: ports.0,
            end_port: ports.1,
            start: start.parse().unwrap(),
            end: end.parse().unwrap(),
        }
    }

    const ANY: (u16, u16) = (0, u16::MAX);

    #[test]
    fn the_overlap_is_taken_in_every_dimension() {
        let ours = [ts(17, ANY, "10.0.0.1", "10.0.0.1")];
        let theirs = [ts(0, (4789, 4789), "10.0.0.0", "10.0.0.255")];
        assert_eq!(
            narrow(&ours, &theirs),
            [ts(17, (4789, 4789), "10.0.0.1", "10.0.0.1")]
        );
    }

    #[test]
    fn nothing_in_common_gives_nothing() {
        let ours = [ts(17, ANY, "10.0.0.1", "10.0.0.1")];
        for theirs in [
            ts(6, ANY, "10.0.0.1", "10.0.0.1"),
            ts(17, ANY, "10.0.0.2", "10.0.0.9"),
            ts(17, ANY, "::", "ffff::"),
            ts(17, (u16::MAX, 0), "10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(narrow(&ours, &[theirs]), []);
        }
    }

    #[test]
    fn what_another_selector_covers_is_not_listed_twice() {
        let ours = [ts(0, ANY, "10.0.0.0", "10.0.0.255")];
        let theirs = [
            ts(0, ANY, "0.0.0.0", "255.255.255.255"),
            ts(17, ANY, "10.0.0.7", "10.0.0.7"),
        ];
        assert_eq!(narrow(&ours, &theirs), ours);
    }

    #[test]
    fn an_answer_may_narrow_and_not_widen() {
        let offer = [ts(17, ANY, "10.0.0.0", "10.0.0.255")];
        assert!(is_subset(
            &[ts(17, (4789, 4789), "10.0.0.3", "10.0.0.3")],
            &offer
        ));
        assert!(!is_subset(&[ts(0, ANY, "10.0.0.3", "10.0.0.3")], &offer));
        assert!(!is_subset(&[ts(17, ANY, "10.0.0.0", "10.0.1.0")], &offer));
        assert!(!is_subset(&[ts(17, ANY, "10.0.0.9", "10.0.0.3")], &offer));
        assert!(!is_subset(&[], &offer));
    }

    #[test]
    fn icmp_types_and_codes_are_one_number() {
        let echo = (0x0800, 0x08ff);
        let ours = [ts(1, echo, "10.0.0.0", "10.0.0.255")];
        let theirs = |ports| [ts(1, ports, "10.0.0.7", "10.0.0.7")];
        assert_eq!(narrow(&ours, &theirs(ANY)), theirs(echo));
        assert_eq!(
            narrow(&ours, &theirs((0x0800, 0x0800))),
            theirs((0x0800, 0x0800))
        );
        assert_eq!(narrow(&ours, &theirs((0x0300, 0x03ff))), []);
        let everything = [ts(0, ANY, "0.0.0.0", "255.255.255.255")];
        assert_eq!(narrow(&everything, &theirs(echo)), theirs(echo));
        let ports = [ts(0, (53, 4789), "0.0.0.0", "255.255.255.255")];
        assert_eq!(narrow(&ours, &ports), [], "ports are not message types");
        assert_eq!(narrow(&ports, &theirs(ANY)), []);
    }

    #[test]
    fn ports_of_a_protocol_without_ports_and_opaque_select_nothing() {
        let everything = [ts(0, ANY, "0.0.0.0", "255.255.255.255")];
        for (protocol, ports) in [
            (4, (1, 2)),
            (47, (0, 0)),
            (17, (u16::MAX, 0)),
            (0, (u16::MAX, 0)),
        ] {
            let theirs = ts(protocol, ports, "10.0.0.7", "10.0.0.7");
            assert!(!is_valid(&theirs));
            assert_eq!(narrow(&everything, &[theirs]), []);
        }
        assert!(is_valid(&ts(4, ANY, "10.0.0.7", "10.0.0.7")));
    }

    #[test]
    fn the_initiators_first_selector_is_not_lost_where_there_are_many() {
        let ours: Vec<_> = (0..16)
            .map(|i| ts(17, ANY, &format!("10.0.{i}.0"), &format!("10.0.{i}.255")))
            .collect();
        let packet = ts(17, (4000, 4000), "10.0.15.1", "10.0.15.1");
        let mut theirs = vec![packet.clone()];
        theirs.extend((0..64).map(|i| ts(17, (i, i), "10.0.0.0", "10.0.255.255")));
        let narrowed = narrow(&ours, &theirs);
        assert_eq!(narrowed.len(), limits::SELECTORS_MAX);
        assert_eq!(narrowed[0], packet);
    }

    #[test]
    fn families_are_narrowed_each_for_itself() {
        let ours = [
            ts(0, ANY, "10.0.0.0", "10.0.255.255"),
            ts(0, ANY, "fd00::", "fd00::ffff"),
        ];
        let theirs = [
            ts(6, (443, 443), "fd00::1", "fd00::1:1"),
            ts(6, (443, 443), "10.0.7.0", "10.1.0.0"),
            ts(6, (443, 443), "fe80::", "fe80::1"),
        ];
        let both = [
            ts(6, (443, 443), "fd00::1", "fd00::ffff"),
            ts(6, (443, 443), "10.0.7.0", "10.0.255.255"),
        ];
        assert_eq!(narrow(&ours, &theirs), both);
    }
}
