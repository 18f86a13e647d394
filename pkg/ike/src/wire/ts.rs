//! TSi and TSr, the Traffic Selector payloads (RFC 7296 §3.13).
//!
//! ```text
//! +---------------+---------------------------------------------+
//! | Number of TSs |                RESERVED (3)                 |
//! +---------------+---------------------------------------------+
//! one selector:
//! +---------------+---------------+-----------------------------+
//! |    TS Type    | IP Protocol   |       Selector Length       |
//! +---------------+---------------+-----------------------------+
//! |          Start Port           |          End Port           |
//! +-------------------------------+-----------------------------+
//! |   Starting Address (4 or 16), Ending Address (4 or 16)      |
//! +-------------------------------------------------------------+
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::codec::{Reader, Writer, countable};
use super::{Error, MAX_SELECTORS};
use crate::config::TrafficSelector;

const IPV4_RANGE: u8 = 7;
const IPV6_RANGE: u8 = 8;

/// Address ranges of one side. Selectors of other types are left out on receipt, so the list may be empty: then nothing is
/// acceptable.
///
/// Start and end are of one family and in order. Ports are in order too, or `65535..=0`, which is OPAQUE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficSelectors(
    /// The ranges.
    pub Vec<TrafficSelector>,
);

impl TrafficSelectors {
    /// Parses a payload's body.
    ///
    /// # Errors
    /// Counts and lengths that do not fit, ranges out of order, more than [`MAX_SELECTORS`].
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        let mut r = Reader::new("TS payload", body);
        let count = usize::from(r.u8()?);
        r.array::<3>()?;
        if count > MAX_SELECTORS {
            return Err(Error::TooMany {
                what: "traffic selectors",
                limit: MAX_SELECTORS,
            });
        }
        let mut selectors = Vec::with_capacity(count);
        for _ in 0..count {
            selectors.extend(parse_one(&mut r)?);
        }
        r.finish()?;
        Ok(Self(selectors))
    }

    pub(super) fn emit(&self, w: &mut Writer) {
        let (count, selectors) = countable(&self.0);
        w.u8(count);
        w.bytes(&[0; 3]);
        selectors.iter().for_each(|selector| emit_one(selector, w));
    }
}

fn parse_one(r: &mut Reader<'_>) -> Result<Option<TrafficSelector>, Error> {
    let (kind, protocol) = (r.u8()?, r.u8()?);
    let mut r = r.sized("traffic selector")?;
    if !matches!(kind, IPV4_RANGE | IPV6_RANGE) {
        return Ok(None);
    }
    let (start_port, end_port) = (r.u16()?, r.u16()?);
    let mut address = || match kind {
        IPV4_RANGE => r
            .array()
            .map(|octets| IpAddr::V4(Ipv4Addr::from_octets(octets))),
        _ => r
            .array()
            .map(|octets| IpAddr::V6(Ipv6Addr::from_octets(octets))),
    };
    let (start, end) = (address()?, address()?);
    r.finish()?;
    check_order(start_port, end_port, start, end)?;
    Ok(Some(TrafficSelector {
        protocol,
        start_port,
        end_port,
        start,
        end,
    }))
}

fn check_order(start_port: u16, end_port: u16, start: IpAddr, end: IpAddr) -> Result<(), Error> {
    let opaque = (start_port, end_port) == (u16::MAX, 0);
    if start_port > end_port && !opaque {
        return Err(Error::Value {
            what: "traffic selector's end port",
            expected: "at least the start port",
            got: end_port.into(),
        });
    }
    if start > end {
        return Err(Error::Value {
            what: "traffic selector's addresses",
            expected: "a start that is not above the end",
            got: 0,
        });
    }
    Ok(())
}

/// A range whose ends are of two families cannot be written; it shrinks to its start rather than grow.
fn emit_one(selector: &TrafficSelector, w: &mut Writer) {
    let end = if selector.start.is_ipv4() == selector.end.is_ipv4() {
        selector.end
    } else {
        selector.start
    };
    w.u8(if selector.start.is_ipv4() {
        IPV4_RANGE
    } else {
        IPV6_RANGE
    });
    w.u8(selector.protocol);
    w.sized(|w| {
        w.u16(selector.start_port);
        w.u16(selector.end_port);
        emit_address(selector.start, w);
        emit_address(end, w);
    });
}

fn emit_address(address: IpAddr, w: &mut Writer) {
    match address {
        IpAddr::V4(address) => w.bytes(&address.octets()),
        IpAddr::V6(address) => w.bytes(&address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Payload;
    use super::*;

    const V4: [u8; 20] = [
        1, 0, 0, 0, // one selector
        7, 17, 0, 16, // IPv4 range, UDP, 16 bytes
        0, 0, 0xff, 0xff, // any port
        192, 0, 2, 1, 192, 0, 2, 1,
    ];

    fn v4() -> TrafficSelector {
        TrafficSelector {
            protocol: 17,
            start_port: 0,
            end_port: 65535,
            start: "192.0.2.1".parse().unwrap(),
            end: "192.0.2.1".parse().unwrap(),
        }
    }

    fn changed(at: usize, bytes: &[u8]) -> Result<TrafficSelectors, Error> {
        let mut all = V4.to_vec();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        TrafficSelectors::parse(&all)
    }

    #[test]
    fn reads_and_writes_ipv4() {
        let selectors = TrafficSelectors(vec![v4()]);
        assert_eq!(TrafficSelectors::parse(&V4).as_ref(), Ok(&selectors));
        assert_eq!(Payload::TsI(selectors).body(), V4);
    }

    #[test]
    fn reads_and_writes_ipv6() {
        let mut bytes = vec![1, 0, 0, 0, 8, 0, 0, 40, 0x12, 0xb5, 0x12, 0xb5];
        let (start, end): (Ipv6Addr, Ipv6Addr) = (
            "2001:db8::".parse().unwrap(),
            "2001:db8::ffff".parse().unwrap(),
        );
        bytes.extend([start.octets(), end.octets()].concat());
        let selectors = TrafficSelectors::parse(&bytes).unwrap();
        assert_eq!(
            selectors.0,
            [TrafficSelector {
                protocol: 0,
                start_port: 4789,
                end_port: 4789,
                start: start.into(),
                end: end.into(),
            }]
        );
        assert_eq!(Payload::TsR(selectors).body(), bytes);
    }

    #[test]
    fn unknown_types_are_left_out() {
        // TS_SECLABEL (RFC 9478) in front of the IPv4 range.
        let bytes = [&[2, 0, 0, 0, 10, 0, 0, 6, 0xca, 0xfe], &V4[4..]].concat();
        assert_eq!(
            TrafficSelectors::parse(&bytes),
            Ok(TrafficSelectors(vec![v4()]))
        );
        assert_eq!(changed(4, &[9]), Ok(TrafficSelectors(vec![])));
    }

    #[test]
    fn ranges_are_in_order_but_for_opaque_ports() {
        assert!(matches!(
            changed(8, &[0, 2, 0, 1]),
            Err(Error::Value { got: 1, .. })
        ));
        assert!(matches!(
            changed(12, &[192, 0, 2, 2]),
            Err(Error::Value { .. })
        ));
        let opaque = changed(8, &[0xff, 0xff, 0, 0]).unwrap();
        assert_eq!((opaque.0[0].start_port, opaque.0[0].end_port), (65535, 0));
    }

    #[test]
    fn lengths_and_counts_must_fit() {
        assert!(
            matches!(changed(0, &[2]), Err(Error::Truncated { .. })),
            "one missing"
        );
        assert!(
            matches!(changed(0, &[0]), Err(Error::Trailing { .. })),
            "one too many"
        );
        assert!(
            matches!(changed(7, &[15]), Err(Error::Truncated { .. })),
            "cut address"
        );
        assert!(
            matches!(changed(7, &[3]), Err(Error::Length { got: 3, .. })),
            "below its header"
        );
        assert!(
            matches!(changed(4, &[8]), Err(Error::Truncated { .. })),
            "IPv4 length for IPv6"
        );
        assert!(matches!(
            changed(0, &[65]),
            Err(Error::TooMany { limit: 64, .. })
        ));
    }

    #[test]
    fn a_range_of_two_families_is_written_as_its_start() {
        let mixed = TrafficSelector {
            end: "2001:db8::1".parse().unwrap(),
            ..v4()
        };
        assert_eq!(Payload::TsI(TrafficSelectors(vec![mixed])).body(), V4);
    }
}
