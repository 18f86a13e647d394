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
