//! What a data plane must know of a pod's IP packet: version, length, addresses, and its flow. The packet itself is never changed.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------+-------+---------------+-------------------------------+   +-------+---------------------------------------+
//! |   4   |  IHL  |               |  total length                 |   |   6   |                                       |
//! +-------+-------+---------------+-----+-------------------------+   +-------+-------+---------------+---------------+
//! |                               |flags|  fragment offset        |   |  payload length               | next header   |
//! +---------------+---------------+-----+-------------------------+   +-------------------------------+---------------+
//! |               |  protocol     |                               |   |  source, 16 bytes                             |
//! +---------------+---------------+-------------------------------+   |                                               |
//! |  source                                                       |   |  destination, 16 bytes                        |
//! +---------------------------------------------------------------+   |                                               |
//! |  destination                                                  |   +-----------------------------------------------+
//! +---------------------------------------------------------------+
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::{be16, split};
use crate::error::FrameError;
use crate::framing::expect;
use crate::next_header;

/// An IP packet, cut to the length that its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'p> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol of the first header behind IP (in IPv6 possibly an extension header).
    pub protocol: u8,
    /// The packet's bytes.
    pub bytes: &'p [u8],
    ports: Option<[u8; 4]>,
}

impl<'p> Packet<'p> {
    /// Reads an IPv4 or IPv6 packet; bytes behind it (TFC padding) are cut off.
    ///
    /// # Errors
    /// [`FrameError::NotIp`], or [`FrameError::Truncated`] when a length field and the bytes do not fit each other.
    pub fn parse(bytes: &'p [u8]) -> Result<Self, FrameError> {
        let first = *bytes.first().ok_or(FrameError::Truncated {
            header: "IP",
            needed: 20,
            got: 0,
        })?;
        match first >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => Err(FrameError::NotIp(first)),
        }
    }

    /// ESP next header for this packet in IPIP framing: 4 or 41.
    #[must_use]
    pub fn next_header(&self) -> u8 {
        if self.source.is_ipv4() {
            next_header::IPV4
        } else {
            next_header::IPV6
        }
    }

    /// A hash that is the same for all packets of a flow (addresses, protocol and ports; fragments: without ports).
    #[must_use]
    pub fn flow_hash(&self) -> u32 {
        let mut hash = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                mix(source.to_bits().into(), destination.to_bits().into())
            }
            (source, destination) => mix(fold(source), fold(destination)),
        };
        hash = mix(hash, self.protocol.into());
        hash = mix(hash, self.ports.map_or(0, u32::from_be_bytes).into());
        (hash >> 32) as u32
    }

    fn parse_v4(bytes: &'p [u8]) -> Result<Self, FrameError> {
        let (header, _) = split::<20>(bytes, "IPv4")?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let packet = cut(bytes, be16(header, 2).into(), header_len.max(20), "IPv4")?;
        if header_len < 20 {
            return Err(FrameError::Unexpected {
                field: "IPv4 IHL",
                expected: 5,
                got: u32::from(header[0] & 0x0f),
            });
        }
        let [s0, s1, s2, s3, d0, d1, d2, d3] =
            [12, 13, 14, 15, 16, 17, 18, 19].map(|at| header[at]);
        let fragment = be16(header, 6) & 0x3fff != 0;
        let protocol = header[9];
        Ok(Self {
            source: Ipv4Addr::new(s0, s1, s2, s3).into(),
            destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
            protocol,
            bytes: packet,
            ports: if fragment {
                None
            } else {
                ports(protocol, &packet[header_len..])
            },
        })
    }

    fn parse_v6(bytes: &'p [u8]) -> Result<Self, FrameError> {
        let (header, rest) = split::<40>(bytes, "IPv6")?;
        let packet = cut(bytes, 40 + usize::from(be16(header, 4)), 40, "IPv6")?;
        let (source, destination) = header[8..].split_at(16);
        let address = |octets: &[u8]| {
            octets
                .first_chunk::<16>()
                .map_or(Ipv6Addr::UNSPECIFIED, |o| (*o).into())
        };
        let protocol = header[6];
        Ok(Self {
            source: address(source).into(),
            destination: address(destination).into(),
            protocol,
            bytes: packet,
            ports: ports(protocol, &rest[..packet.len() - 40]),
        })
    }
}

/// Where behind its header, with options as its IHL says, the payload of an IPv4 packet stands: what a raw socket gives (raw(7)).
///
/// # Errors
/// Those of [`Packet::parse`]; [`FrameError::Unexpected`] for another protocol, and for a fragment, whose payload is not whole.
pub fn payload_v4(bytes: &[u8], protocol: u8) -> Result<Range<usize>, FrameError> {
    let packet = Packet::parse(bytes)?;
    expect("IP version", 4, u32::from(bytes[0] >> 4))?;
    expect("IPv4 protocol", protocol.into(), packet.protocol.into())?;
    expect("IPv4 fragment", 0, (be16(bytes, 6) & 0x3fff).into())?;
    Ok(usize::from(bytes[0] & 0x0f) * 4..packet.bytes.len())
}

/// The first `len` bytes, if they are there and hold the header.
fn cut<'p>(
    bytes: &'p [u8],
    len: usize,
    header_len: usize,
    header: &'static str,
) -> Result<&'p [u8], FrameError> {
    let truncated = FrameError::Truncated {
        header,
        needed: len.max(header_len),
        got: bytes.len().min(len),
    };
    if len < header_len {
        Err(truncated)
    } else {
        bytes.get(..len).ok_or(truncated)
    }
}

/// Source and destination port, where the protocol begins with them.
fn ports(protocol: u8, payload: &[u8]) -> Option<[u8; 4]> {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const SCTP: u8 = 132;
    matches!(protocol, TCP | UDP | SCTP)
        .then(|| payload.first_chunk().copied())
        .flatten()
}

fn fold(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            mix((bits >> 64) as u64, bits as u64)
        }
    }
}

// Spreads flows over source ports; nothing depends on it being hard to invert.
fn mix(hash: u64, value: u64) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = (hash.rotate_left(26) ^ value).wrapping_mul(ODD);
    mixed ^ (mixed >> 29)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(payload: &[u8], protocol: u8, fragment: u16) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 20 + payload.len() as u8, 0, 1];
        bytes.extend_from_slice(&fragment.to_be_bytes());
        bytes.extend_from_slice(&[64, protocol, 0, 0, 10, 244, 1, 2, 10, 244, 2, 3]);
        bytes.extend_from_slice(payload);
        bytes
    }

    fn v6(payload: &[u8], protocol: u8) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, payload.len() as u8, protocol, 64];
        bytes.extend_from_slice(&"fd00:1::2".parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend_from_slice(&"fd00:2::3".parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn both_versions_are_read_and_cut_to_their_length() {
        for (good, source, next) in [
            (v4(b"12345678", 17, 0), "10.244.1.2", 4),
            (v6(b"12345678", 17), "fd00:1::2", 41),
        ] {
            let mut padded = good.clone();
            padded.extend_from_slice(&[0; 5]);
            let packet = Packet::parse(&padded).unwrap();
            assert_eq!(
                (packet.source.to_string().as_str(), packet.next_header()),
                (source, next)
            );
            assert_eq!(packet.bytes, good);
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        for good in [v4(b"1234", 17, 0), v6(b"1234", 17)] {
            for cut in 0..good.len() {
                assert!(Packet::parse(&good[..cut]).is_err(), "{cut} bytes");
            }
        }
        let mut short_ihl = v4(b"1234", 17, 0);
        short_ihl[0] = 0x44;
        assert_eq!(
            Packet::parse(&short_ihl),
            Err(FrameError::Unexpected {
                field: "IPv4 IHL",
                expected: 5,
                got: 4
            })
        );
        let mut total_below_header = v4(b"1234", 17, 0);
        total_below_header[3] = 19;
        assert!(matches!(
            Packet::parse(&total_below_header),
            Err(FrameError::Truncated { header: "IPv4", .. })
        ));
        assert_eq!(Packet::parse(&[0x75; 40]), Err(FrameError::NotIp(0x75)));
    }

    #[test]
    fn a_flow_keeps_its_hash_and_another_flow_has_another() {
        let hash = |bytes: &[u8]| Packet::parse(bytes).unwrap().flow_hash();
        assert_eq!(
            hash(&v4(b"\0\x07\0\x09data", 17, 0)),
            hash(&v4(b"\0\x07\0\x09more data", 17, 0))
        );
        assert_ne!(
            hash(&v4(b"\0\x07\0\x09data", 17, 0)),
            hash(&v4(b"\0\x08\0\x09data", 17, 0))
        );
        assert_ne!(
            hash(&v4(b"\0\x07\0\x09data", 17, 0)),
            hash(&v4(b"\0\x07\0\x09data", 6, 0))
        );
        assert_ne!(
            hash(&v6(b"\0\x07\0\x09data", 17)),
            hash(&v6(b"\0\x07\0\x0adata", 17))
        );
        let (first, later) = (v4(b"\0\x07\0\x09data", 17, 0x2000), v4(b"anything", 17, 1));
        assert_eq!(
            hash(&first),
            hash(&later),
            "fragments of one packet stay together"
        );
    }

    #[test]
    fn a_payload_stands_behind_the_options() {
        let esp = v4(b"12345678", 50, 0);
        assert_eq!(payload_v4(&esp, 50), Ok(20..28));
        let mut options = esp.clone();
        options.splice(20..20, [1; 8]);
        (options[0], options[3]) = (0x47, 36);
        assert_eq!(payload_v4(&options, 50), Ok(28..36));
        options.extend([0; 3]);
        assert_eq!(payload_v4(&options, 50), Ok(28..36), "padding of the link");
        options[3] = 27;
        assert!(payload_v4(&options, 50).is_err(), "no room for the options");
        assert!(payload_v4(&v4(b"12345678", 17, 0), 50).is_err());
        assert!(payload_v4(&v6(b"12345678", 50), 50).is_err());
        for part in [0x2000, 1] {
            assert!(payload_v4(&v4(b"12345678", 50, part), 50).is_err());
        }
        assert_eq!(payload_v4(&v4(b"12345678", 50, 0x4000), 50), Ok(20..28));
        assert_eq!(payload_v4(&v4(b"", 50, 0), 50), Ok(20..20));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80), version in 4u8..=6) {
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | *first & 0x0f;
            }
            if let Ok(place) = payload_v4(&bytes, 50) {
                prop_assert!(place.start >= 20 && bytes.get(place).is_some());
            }
            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.bytes.len() <= bytes.len());
                prop_assert_eq!(packet.flow_hash(), packet.flow_hash());
            }
        }
    }
}
