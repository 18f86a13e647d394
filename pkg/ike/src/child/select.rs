//! Traffic selectors: narrowing (RFC 7296 §2.9). Ports are ranges of numbers here; ICMP and OPAQUE are not negotiated.

use std::net::IpAddr;

use crate::config::TrafficSelector;
use crate::limits;

/// What both sides allow: each pair of selectors that overlap, narrowed to the overlap, in the order of `ours`.
pub(crate) fn narrow(ours: &[TrafficSelector], theirs: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let mut both = Vec::new();
    let pairs = ours.iter().flat_map(|a| theirs.iter().map(move |b| (a, b)));
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
    (same_family(a, b) && is_valid(&shared)).then_some(shared)
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

/// Neither range is empty, and both addresses are of one family.
pub(crate) fn is_valid(ts: &TrafficSelector) -> bool {
    ts.start.is_ipv4() == ts.end.is_ipv4() && ts.start <= ts.end && ts.start_port <= ts.end_port
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
}
