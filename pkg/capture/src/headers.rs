//! The few header fields that telling frames apart needs. Every accessor returns `None` beyond the frame's end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Big-endian 16 bits at `at`.
pub(crate) fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    let bytes = data.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// Big-endian 32 bits at `at`.
pub(crate) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// An Ethernet frame's type and payload, VLAN tags (802.1Q, 802.1ad) skipped.
pub(crate) fn ethernet(frame: &[u8]) -> Option<(u16, &[u8])> {
    let mut at = 12;
    loop {
        let kind = u16_at(frame, at)?;
        match kind {
            0x8100 | 0x88a8 | 0x9100 => at += 4,
            _ => return Some((kind, frame.get(at + 2..)?)),
        }
    }
}

/// An IP packet as far as it matters here.
pub(crate) struct Ip<'a> {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// Upper protocol, after IPv6 extension headers; `None`: the packet is cut before it.
    pub(crate) upper: Option<Upper<'a>>,
}

/// What an IP packet carries.
pub(crate) struct Upper<'a> {
    pub(crate) protocol: u8,
    pub(crate) payload: &'a [u8],
    /// A fragment that is not the first: `payload` does not begin with a header.
    pub(crate) later_fragment: bool,
}

/// RFC 791 §3.1.
pub(crate) fn ipv4(packet: &[u8]) -> Option<Ip<'_>> {
    let first = *packet.first()?;
    if first >> 4 != 4 {
        return None;
    }
    let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(u32_at(packet, at)?)));
    let (src, dst) = (address(12)?, address(16)?);
    let header = usize::from(first & 0x0f) * 4;
    let fragment = u16_at(packet, 6)? & 0x1fff;
    let protocol = *packet.get(9)?;
    let upper = (header >= 20)
        .then(|| packet.get(header..))
        .flatten()
        .and_then(|payload| beyond_ah(protocol, payload, fragment != 0));
    Some(Ip { src, dst, upper })
}

/// RFC 8200 §3 and §4: the fixed header, then at most eight extension headers.
pub(crate) fn ipv6(packet: &[u8]) -> Option<Ip<'_>> {
    if packet.first()? >> 4 != 6 {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(bytes)))
    };
    let (src, dst) = (address(8)?, address(24)?);
    let upper = packet
        .get(40..)
        .and_then(|payload| extensions(*packet.get(6)?, payload));
    Some(Ip { src, dst, upper })
}

fn extensions(mut next: u8, mut payload: &[u8]) -> Option<Upper<'_>> {
    let mut later_fragment = false;
    for _ in 0..8 {
        let length = match next {
            // Hop-by-hop, routing, destination options, mobility: units of eight octets.
            0 | 43 | 60 | 135 => (usize::from(*payload.get(1)?) + 1) * 8,
            44 => {
                later_fragment |= u16_at(payload, 2)? & 0xfff8 != 0;
                8
            }
            _ => return beyond_ah(next, payload, later_fragment),
        };
        next = *payload.first()?;
        payload = payload.get(length..)?;
        if later_fragment {
            break;
        }
    }
    Some(Upper {
        protocol: next,
        payload,
        later_fragment,
    })
}

/// Skips an Authentication Header (RFC 4302 §2): what it protects is still in clear.
fn beyond_ah(protocol: u8, payload: &[u8], later_fragment: bool) -> Option<Upper<'_>> {
    const AH: u8 = 51;
    if protocol != AH || later_fragment {
        return Some(Upper {
            protocol,
            payload,
            later_fragment,
        });
    }
    let length = (usize::from(*payload.get(1)?) + 2) * 4;
    Some(Upper {
        protocol: *payload.first()?,
        payload: payload.get(length..)?,
        later_fragment,
    })
}
