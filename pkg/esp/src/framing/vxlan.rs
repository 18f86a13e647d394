//! VXLAN in transport mode (RFC 7348): what a kernel VXLAN device puts behind the outer IP header, ESP protects.
//!
//! ```text
//! [outer IP a→b][ESP [UDP hash→4789][VXLAN VNI][Ethernet a's VTEP→b's VTEP][IP pod→pod]]
//!                     8              8          14
//! ```

use std::net::{IpAddr, Ipv6Addr};

use super::{expect, whole_packet};
use crate::error::FrameError;
use crate::next_header;
use crate::wire::ethernet::{self, EtherType};
use crate::wire::{ip, udp, vxlan};

/// Bytes in front of the pod packet.
pub const HEADROOM: usize = udp::LEN + vxlan::LEN + ethernet::LEN;

/// First of the 2^14 dynamic ports that flows are spread over (RFC 7348 §5).
const FIRST_SOURCE_PORT: u16 = 0xc000;

/// VXLAN framing of one pair of hosts, seen from one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    vni: u32,
    port: u16,
    local_mac: [u8; 6],
    remote_mac: [u8; 6],
    // The inner UDP needs a checksum over IPv6, made of the outer addresses: transport mode has no others.
    checksum_between: Option<(Ipv6Addr, Ipv6Addr)>,
}

impl Vxlan {
    /// `vni` of 24 bits, `port` for both directions, `between` this host's and the peer's underlay address.
    #[must_use]
    pub fn new(
        vni: u32,
        port: u16,
        local_mac: [u8; 6],
        remote_mac: [u8; 6],
        between: (IpAddr, IpAddr),
    ) -> Self {
        let checksum_between = match between {
            (IpAddr::V6(local), IpAddr::V6(remote)) => Some((local, remote)),
            _ => None,
        };
        Self {
            vni,
            port,
            local_mac,
            remote_mac,
            checksum_between,
        }
    }

    /// Writes [`HEADROOM`] bytes in front of the pod packet that stands behind them. Returns ESP's next header.
    ///
    /// # Errors
    /// [`FrameError`] when it is not one IP packet from end to end.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<u8, FrameError> {
        let packet = whole_packet(buffer, HEADROOM)?;
        let ether_type = if packet.source.is_ipv4() {
            EtherType::Ipv4
        } else {
            EtherType::Ipv6
        };
        let source = FIRST_SOURCE_PORT | (packet.flow_hash() as u16 & !FIRST_SOURCE_PORT);
        let datagram = udp::Header {
            source,
            destination: self.port,
        }
        .emit(buffer.len() - udp::LEN)?;
        let frame = ethernet::Header {
            destination: self.remote_mac,
            source: self.local_mac,
            ether_type,
        };
        buffer[..8].copy_from_slice(&datagram);
        buffer[8..16].copy_from_slice(&vxlan::Header { vni: self.vni }.emit());
        buffer[16..HEADROOM].copy_from_slice(&frame.emit());
        if let Some((local, remote)) = self.checksum_between {
            let checksum = udp::checksum_v6(local, remote, buffer);
            buffer[6..8].copy_from_slice(&checksum.to_be_bytes());
        }
        Ok(next_header::UDP)
    }

    /// The pod packet in an opened payload. MAC addresses are not looked at: what comes out is an IP packet, and its addresses
    /// are what is checked.
    ///
    /// # Errors
    /// [`FrameError`] for another port, VNI, EtherType or next header, and for lengths that do not fit.
    pub fn parse<'p>(
        &self,
        next_header: u8,
        payload: &'p [u8],
    ) -> Result<ip::Packet<'p>, FrameError> {
        expect(
            "ESP next header",
            next_header::UDP.into(),
            next_header.into(),
        )?;
        let (datagram, rest) = udp::Header::parse(payload)?;
        expect("VXLAN port", self.port.into(), datagram.destination.into())?;
        let (header, rest) = vxlan::Header::parse(rest)?;
        expect("VNI", self.vni, header.vni)?;
        let (frame, rest) = ethernet::Header::parse(rest)?;
        let version = match frame.ether_type {
            EtherType::Ipv4 => next_header::IPV4,
            EtherType::Ipv6 => next_header::IPV6,
            EtherType::Unknown(other) => {
                return expect("EtherType", 0x0800, other.into()).and(ip::Packet::parse(rest));
            }
        };
        let packet = ip::Packet::parse(rest)?;
        expect(
            "IP version under the EtherType",
            version.into(),
            packet.next_header().into(),
        )?;
        Ok(packet)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: [u8; 24] = [
        0x45, 0, 0, 24, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 2, 10, 2, 0, 3, 0, 7, 0, 9,
    ];

    fn framing(between: (&str, &str)) -> Vxlan {
        let between = (between.0.parse().unwrap(), between.1.parse().unwrap());
        Vxlan::new(4789, 4789, [2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], between)
    }

    fn framed(vxlan: &Vxlan) -> Vec<u8> {
        let mut buffer = [&[0; HEADROOM][..], &V4].concat();
        assert_eq!(vxlan.emit(&mut buffer), Ok(17));
        buffer
    }

    #[test]
    fn reads_what_it_writes() {
        let vxlan = framing(("192.0.2.1", "192.0.2.2"));
        let buffer = framed(&vxlan);
        assert_eq!(vxlan.parse(17, &buffer).unwrap().bytes, V4);
        assert_eq!(
            hex::encode(&buffer[2..30]),
            "12b500360000080000000012b5000200000000020200000000010800"
        );
        assert!(
            u16::from_be_bytes([buffer[0], buffer[1]]) >= 0xc000,
            "a dynamic port"
        );
    }

    #[test]
    fn only_ipv6_underlays_have_a_checksum() {
        let (v4, v6) = (
            framed(&framing(("192.0.2.1", "192.0.2.2"))),
            framed(&framing(("fd00::1", "fd00::2"))),
        );
        assert_eq!(v4[6..8], [0, 0]);
        let mut without = v6.clone();
        without[6..8].fill(0);
        let expected = udp::checksum_v6(
            "fd00::1".parse().unwrap(),
            "fd00::2".parse().unwrap(),
            &without,
        );
        assert_eq!(v6[6..8], expected.to_be_bytes());
    }

    #[test]
    fn another_port_vni_ether_type_or_version_is_refused_by_name() {
        let vxlan = framing(("192.0.2.1", "192.0.2.2"));
        let good = framed(&vxlan);
        let cases = [
            (3, "VXLAN port"),
            (8, "VXLAN flags"),
            (14, "VNI"),
            (29, "EtherType"),
        ];
        for (at, field) in cases {
            let mut bad = good.clone();
            bad[at] ^= 0x0b;
            let refused = vxlan.parse(17, &bad).unwrap_err();
            assert!(
                matches!(refused, FrameError::Unexpected { field: f, .. } if f == field),
                "{field}: {refused}"
            );
        }
        let mut wrong_version = good.clone();
        wrong_version[28..30].copy_from_slice(&[0x86, 0xdd]);
        assert!(vxlan.parse(17, &wrong_version).is_err());
        assert!(vxlan.parse(4, &good).is_err());
        for cut in 0..good.len() {
            assert!(vxlan.parse(17, &good[..cut]).is_err(), "{cut} bytes");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), at in 0usize..60) {
            let vxlan = framing(("192.0.2.1", "192.0.2.2"));
            let _ = vxlan.parse(17, &bytes);
            let _ = vxlan.emit(&mut bytes.clone());
            let mut damaged = framed(&vxlan);
            let end = (at + bytes.len()).min(damaged.len());
            let at = at.min(end);
            damaged[at..end].copy_from_slice(&bytes[..end - at]);
            if let Ok(packet) = vxlan.parse(17, &damaged) {
                prop_assert!(packet.bytes.len() <= V4.len());
            }
        }
    }
}
