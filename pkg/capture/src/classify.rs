//! One frame in, what it is out. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::headers::{Ip, Upper, ethernet, ipv4, ipv6, u16_at, u32_at};

/// Encapsulations are followed this deep; a deeper frame is [`What::Undecoded`].
const MAX_DEPTH: usize = 6;

/// A frame, told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Outermost source and destination address; `None`: no IP packet.
    pub outer: Option<(IpAddr, IpAddr)>,
    /// What it is.
    pub what: What,
}

/// The kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A packet from or to a pod address, readable on the wire.
    ClearPod(ClearPod),
    /// An ESP packet (RFC 4303).
    Esp {
        /// How it is carried.
        encapsulation: Encapsulation,
        /// Its security parameters index.
        spi: u32,
    },
    /// An IKE message, on port 500 or behind the non-ESP marker on port 4500 (RFC 3948 §2.2).
    Ike,
    /// Anything else, ARP, NAT keepalives and later fragments included.
    Other,
    /// Cut short, malformed or nested too deeply to say: no proof of anything.
    Undecoded,
}

/// A pod packet in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClearPod {
    /// What it was found in.
    pub carrier: Carrier,
    /// Source of the innermost packet looked at, the one with the pod address.
    pub src: IpAddr,
    /// Its destination.
    pub dst: IpAddr,
    /// Both addresses are pod addresses.
    pub between_pods: bool,
}

/// What a clear pod packet was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Nothing: it is the outermost IP packet.
    Bare,
    /// VXLAN (RFC 7348).
    Vxlan,
    /// IP in IP, any family in any family (RFC 2003, 2473, 4213).
    Ipip,
}

/// How ESP is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// IP protocol 50.
    Raw,
    /// UDP port 4500 (RFC 3948).
    Udp,
}

/// Tells what an Ethernet frame is, given the prefixes that hold pod addresses.
#[must_use]
pub fn classify(frame: &[u8], pods: &[IpNet]) -> Frame {
    let mut outer = None;
    let what = Walk { pods, depth: 0 }.ethernet(frame, Carrier::Bare, &mut outer);
    Frame { outer, what }
}

struct Walk<'a> {
    pods: &'a [IpNet],
    depth: usize,
}

type Outer = Option<(IpAddr, IpAddr)>;

impl Walk<'_> {
    fn ethernet(&mut self, frame: &[u8], carrier: Carrier, outer: &mut Outer) -> What {
        match ethernet(frame) {
            Some((0x0800 | 0x86dd, packet)) => self.ip(packet, carrier, outer),
            Some(_) => What::Other,
            None => What::Undecoded,
        }
    }

    fn ip(&mut self, packet: &[u8], carrier: Carrier, outer: &mut Outer) -> What {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return What::Undecoded;
        }
        let parsed = match packet.first().map(|byte| byte >> 4) {
            Some(4) => ipv4(packet),
            Some(6) => ipv6(packet),
            _ => None,
        };
        let Some(ip) = parsed else {
            return What::Undecoded;
        };
        outer.get_or_insert((ip.src, ip.dst));
        self.clear_pod(&ip, carrier)
            .unwrap_or_else(|| self.upper(ip.upper, outer))
    }

    fn clear_pod(&self, ip: &Ip<'_>, carrier: Carrier) -> Option<What> {
        let is_pod = |address: IpAddr| self.pods.iter().any(|net| net.contains(&address));
        let (src_pod, dst_pod) = (is_pod(ip.src), is_pod(ip.dst));
        (src_pod || dst_pod).then_some(What::ClearPod(ClearPod {
            carrier,
            src: ip.src,
            dst: ip.dst,
            between_pods: src_pod && dst_pod,
        }))
    }

    fn upper(&mut self, upper: Option<Upper<'_>>, outer: &mut Outer) -> What {
        match upper {
            None => What::Undecoded,
            Some(upper) if upper.later_fragment => What::Other,
            Some(upper) => match upper.protocol {
                4 | 41 => self.ip(upper.payload, Carrier::Ipip, outer),
                17 => self.udp(upper.payload, outer),
                50 => esp(upper.payload, Encapsulation::Raw),
                _ => What::Other,
            },
        }
    }

    fn udp(&mut self, datagram: &[u8], outer: &mut Outer) -> What {
        let ports = (u16_at(datagram, 0), u16_at(datagram, 2));
        let (Some(from), Some(to), Some(payload)) = (ports.0, ports.1, datagram.get(8..)) else {
            return What::Undecoded;
        };
        match (from, to) {
            (_, 4789 | 8472) => self.vxlan(payload, outer),
            (4500, _) | (_, 4500) => port_4500(payload),
            (500, _) | (_, 500) => What::Ike,
            _ => What::Other,
        }
    }

    fn vxlan(&mut self, payload: &[u8], outer: &mut Outer) -> What {
        const VNI_VALID: u8 = 0x08;
        match (payload.first(), payload.get(8..)) {
            (Some(flags), Some(frame)) if flags & VNI_VALID != 0 => {
                self.ethernet(frame, Carrier::Vxlan, outer)
            }
            (Some(_), Some(_)) => What::Other,
            _ => What::Undecoded,
        }
    }
}

/// RFC 3948 §2: a keepalive is one octet 0xff, an IKE message begins with four zero octets, the rest is ESP.
fn port_4500(payload: &[u8]) -> What {
    match (payload, u32_at(payload, 0)) {
        ([0xff], _) => What::Other,
        (_, Some(0)) => What::Ike,
        _ => esp(payload, Encapsulation::Udp),
    }
}

/// SPI and sequence number are the least an ESP packet has (RFC 4303 §2).
fn esp(packet: &[u8], encapsulation: Encapsulation) -> What {
    match (u32_at(packet, 0), u32_at(packet, 4)) {
        (Some(spi), Some(_)) => What::Esp { encapsulation, spi },
        _ => What::Undecoded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POD_A: [u8; 4] = [10, 244, 1, 5];
    const POD_B: [u8; 4] = [10, 244, 2, 7];
    const HOST_A: [u8; 4] = [192, 0, 2, 1];
    const HOST_B: [u8; 4] = [192, 0, 2, 2];

    fn pods() -> Vec<IpNet> {
        vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10::/32".parse().unwrap(),
        ]
    }

    fn eth(kind: u16, payload: &[u8]) -> Vec<u8> {
        [&[2; 12][..], &kind.to_be_bytes(), payload].concat()
    }

    fn ip4(src: [u8; 4], dst: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = [0; 20];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
        header[9] = protocol;
        header[12..16].copy_from_slice(&src);
        header[16..20].copy_from_slice(&dst);
        [&header, payload].concat()
    }

    fn ip6(src: &str, dst: &str, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = [0; 40];
        header[0] = 0x60;
        header[6] = next;
        header[8..24].copy_from_slice(&src.parse::<std::net::Ipv6Addr>().unwrap().octets());
        header[24..40].copy_from_slice(&dst.parse::<std::net::Ipv6Addr>().unwrap().octets());
        [&header, payload].concat()
    }

    fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).unwrap();
        [
            &from.to_be_bytes()[..],
            &to.to_be_bytes(),
            &length.to_be_bytes(),
            &[0, 0],
            payload,
        ]
        .concat()
    }

    fn vxlan(inner: &[u8]) -> Vec<u8> {
        udp(
            50000,
            4789,
            &[&[8, 0, 0, 0, 0, 0x12, 0xb5, 0][..], inner].concat(),
        )
    }

    fn what(frame: &[u8]) -> What {
        classify(frame, &pods()).what
    }

    fn clear(carrier: Carrier, between_pods: bool) -> impl Fn(&What) -> bool {
        move |what| matches!(what, What::ClearPod(found) if found.carrier == carrier && found.between_pods == between_pods)
    }

    #[test]
    fn bare_pod_packets_count_by_either_address() {
        assert!(clear(Carrier::Bare, true)(&what(&eth(
            0x800,
            &ip4(POD_A, POD_B, 17, &udp(1, 2, b""))
        ))));
        assert!(clear(Carrier::Bare, false)(&what(&eth(
            0x800,
            &ip4(POD_A, HOST_B, 1, b"")
        ))));
        assert!(clear(Carrier::Bare, false)(&what(&eth(
            0x800,
            &ip4(HOST_A, POD_B, 6, b"")
        ))));
        let v6 = ip6("fd00:10::5", "2001:db8::1", 58, b"");
        assert!(clear(Carrier::Bare, false)(&what(&eth(0x86dd, &v6))));
        assert_eq!(what(&eth(0x800, &ip4(HOST_A, HOST_B, 1, b""))), What::Other);
    }

    #[test]
    fn pod_packets_are_found_inside_vxlan_ipip_and_both() {
        let pod = ip4(POD_A, POD_B, 1, b"");
        let in_vxlan = ip4(HOST_A, HOST_B, 17, &vxlan(&eth(0x800, &pod)));
        assert!(clear(Carrier::Vxlan, true)(&what(&eth(0x800, &in_vxlan))));
        let in_ipip = ip4(HOST_A, HOST_B, 4, &pod);
        assert!(clear(Carrier::Ipip, true)(&what(&eth(0x800, &in_ipip))));
        let nested = ip4(
            HOST_A,
            HOST_B,
            17,
            &vxlan(&eth(0x8100, &[&[0, 7, 8, 0][..], &in_ipip].concat())),
        );
        assert!(clear(Carrier::Ipip, true)(&what(&eth(0x800, &nested))));
        let pod6 = ip6("fd00:10::5", "fd00:10:0:1::9", 17, b"");
        assert!(clear(Carrier::Ipip, true)(&what(&eth(
            0x800,
            &ip4(HOST_A, HOST_B, 41, &pod6)
        ))));
        let outer6 = ip6(
            "2001:db8::1",
            "2001:db8::2",
            17,
            &vxlan(&eth(0x86dd, &pod6)),
        );
        assert!(clear(Carrier::Vxlan, true)(&what(&eth(0x86dd, &outer6))));
    }

    #[test]
    fn the_outer_addresses_name_the_hosts() {
        let frame = eth(
            0x800,
            &ip4(
                HOST_A,
                HOST_B,
                17,
                &vxlan(&eth(0x800, &ip4(POD_A, POD_B, 1, b""))),
            ),
        );
        let outer = classify(&frame, &pods()).outer;
        assert_eq!(outer, Some((IpAddr::from(HOST_A), IpAddr::from(HOST_B))));
    }

    #[test]
    fn vlan_tags_and_ip_options_are_skipped() {
        let pod = ip4(POD_A, POD_B, 1, b"");
        let tagged = eth(0x88a8, &[&[0, 1, 0x81, 0, 0, 2, 8, 0][..], &pod].concat());
        assert!(clear(Carrier::Bare, true)(&what(&tagged)));
        let mut options = ip4(HOST_A, HOST_B, 4, &[&[1, 1, 1, 0][..], &pod].concat());
        options[0] = 0x46;
        assert!(clear(Carrier::Ipip, true)(&what(&eth(0x800, &options))));
    }

    #[test]
    fn ipv6_extension_headers_and_ah_are_skipped() {
        let pod = ip4(POD_A, POD_B, 1, b"");
        let hop_by_hop = [&[60, 0][..], &[0; 6], &[4, 0], &[0; 6], &pod].concat();
        let frame = eth(0x86dd, &ip6("2001:db8::1", "2001:db8::2", 0, &hop_by_hop));
        assert!(clear(Carrier::Ipip, true)(&what(&frame)));
        let ah = [&[4, 4][..], &[0; 22], &pod].concat();
        assert!(clear(Carrier::Ipip, true)(&what(&eth(
            0x800,
            &ip4(HOST_A, HOST_B, 51, &ah)
        ))));
    }

    #[test]
    fn esp_and_ike_are_told_apart_on_port_4500() {
        let on_4500 = |payload: &[u8]| {
            what(&eth(
                0x800,
                &ip4(HOST_A, HOST_B, 17, &udp(4500, 4500, payload)),
            ))
        };
        let spi = 0x1234_5678;
        let esp = What::Esp {
            encapsulation: Encapsulation::Udp,
            spi,
        };
        assert_eq!(on_4500(&[0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 9]), esp);
        assert_eq!(on_4500(&[0, 0, 0, 0, 1, 2, 3, 4]), What::Ike);
        assert_eq!(on_4500(&[0xff]), What::Other);
        assert_eq!(
            what(&eth(0x800, &ip4(HOST_A, HOST_B, 17, &udp(500, 500, b"x")))),
            What::Ike
        );
        let raw = what(&eth(
            0x800,
            &ip4(HOST_A, HOST_B, 50, &[0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1]),
        ));
        assert_eq!(
            raw,
            What::Esp {
                encapsulation: Encapsulation::Raw,
                spi
            }
        );
    }

    #[test]
    fn esp_between_pod_addresses_is_still_a_clear_pod_packet() {
        let frame = eth(0x800, &ip4(POD_A, POD_B, 50, &[0; 8]));
        assert!(clear(Carrier::Bare, true)(&what(&frame)));
    }

    #[test]
    fn a_later_fragment_is_judged_by_its_addresses_only() {
        let mut host = ip4(
            HOST_A,
            HOST_B,
            17,
            &vxlan(&eth(0x800, &ip4(POD_A, POD_B, 1, b""))),
        );
        host[7] = 1;
        assert_eq!(what(&eth(0x800, &host)), What::Other);
        let mut pod = ip4(POD_A, POD_B, 17, b"");
        pod[7] = 1;
        assert!(clear(Carrier::Bare, true)(&what(&eth(0x800, &pod))));
        let fragment6 = [&[17, 0, 0, 9][..], &[0; 4], &[0; 8]].concat();
        assert_eq!(
            what(&eth(
                0x86dd,
                &ip6("2001:db8::1", "2001:db8::2", 44, &fragment6)
            )),
            What::Other
        );
    }

    #[test]
    fn what_cannot_be_read_is_not_called_harmless() {
        let mut frame = ip4(HOST_A, HOST_B, 1, b"");
        for _ in 0..=MAX_DEPTH {
            frame = ip4(HOST_A, HOST_B, 4, &frame);
        }
        assert_eq!(what(&eth(0x800, &frame)), What::Undecoded);
        let cut = eth(0x800, &ip4(HOST_A, HOST_B, 17, &vxlan(&eth(0x800, &POD_A))));
        assert_eq!(what(&cut), What::Undecoded);
        assert_eq!(what(&[1, 2, 3]), What::Undecoded);
    }

    proptest! {
        #[test]
        fn no_frame_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in prop_oneof![Just(0x800_u16), Just(0x86dd), any::<u16>()]) {
            let _ = classify(&bytes, &pods());
            let _ = classify(&eth(kind, &bytes), &pods());
            let _ = classify(&eth(0x800, &ip4(HOST_A, HOST_B, 17, &vxlan(&eth(kind, &bytes)))), &pods());
        }

        #[test]
        fn cutting_a_frame_never_hides_a_pod_packet_as_esp(length in 0..90_usize) {
            let frame = eth(0x800, &ip4(HOST_A, HOST_B, 17, &vxlan(&eth(0x800, &ip4(POD_A, POD_B, 1, b"abcdefgh")))));
            let cut = &frame[..length.min(frame.len())];
            let found = classify(cut, &pods()).what;
            prop_assert!(matches!(found, What::ClearPod(_) | What::Undecoded));
        }
    }
}
