//! A packet's flow, from its headers alone: what a kernel with several queues puts on one of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::be16;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT_V6: u8 = 44;
const ICMP_V6: u8 = 58;
const SCTP: u8 = 132;

/// Addresses with their ports, and the protocol. Ports are 0 in fragments and in ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Where the packet comes from.
    pub source: (IpAddr, u16),
    /// Where it goes to.
    pub destination: (IpAddr, u16),
    /// Of the first header behind IP.
    pub protocol: u8,
}

impl Flow {
    /// Reads the headers that `bytes` begin with; what is behind them may be missing. `None`: no IP packet, or one whose flow is told by
    /// what is further inside (tunnels, ESP).
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (source, destination, protocol, rest) = match bytes.first()? >> 4 {
            4 => {
                let header = bytes.first_chunk::<20>()?;
                let [a, b, c, d, e, f, g, h] =
                    [12, 13, 14, 15, 16, 17, 18, 19].map(|at| header[at]);
                let (source, destination) = (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h));
                let fragment = be16(header, 6) & 0x3fff != 0;
                let rest = bytes.get(usize::from(header[0] & 0x0f) * 4..);
                let rest = rest.filter(|_| !fragment);
                (source.into(), destination.into(), header[9], rest)
            }
            6 => {
                let header = bytes.first_chunk::<40>()?;
                let (addresses, _) = header[8..].as_chunks::<16>();
                let [source, destination] = addresses else {
                    return None;
                };
                let (source, destination) = (Ipv6Addr::from(*source), Ipv6Addr::from(*destination));
                (
                    source.into(),
                    destination.into(),
                    header[6],
                    bytes.get(40..),
                )
            }
            _ => return None,
        };
        let ports = match protocol {
            TCP | UDP | SCTP => rest.and_then(<[u8]>::first_chunk::<4>),
            ICMP | ICMP_V6 | FRAGMENT_V6 => None,
            _ => return None,
        };
        let [s0, s1, d0, d1] = ports.copied().unwrap_or_default();
        Some(Self {
            source: (source, u16::from_be_bytes([s0, s1])),
            destination: (destination, u16::from_be_bytes([d0, d1])),
            protocol,
        })
    }

    /// The same for both directions: the lesser end first.
    #[must_use]
    pub fn both_ways(self) -> Self {
        let (source, destination) = (self.source, self.destination);
        Self {
            source: source.min(destination),
            destination: source.max(destination),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(protocol: u8, fragment: u16) -> Vec<u8> {
        let mut bytes = vec![0x46, 0, 0xff, 0xff, 0, 1];
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, protocol, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1, 1, 1, 1, 1]);
        bytes.extend([0x13, 0x88, 0, 7]);
        bytes
    }

    fn ends(flow: Flow) -> (String, String) {
        let text = |(address, port): (IpAddr, u16)| format!("{address} {port}");
        (text(flow.source), text(flow.destination))
    }

    #[test]
    fn ports_are_read_behind_options_and_from_a_cut_packet() {
        for protocol in [TCP, UDP, SCTP] {
            let flow = Flow::read(&v4(protocol, 0x4000)).unwrap();
            let expected = ("10.0.0.2 5000".to_owned(), "10.0.0.1 7".to_owned());
            assert_eq!(ends(flow), expected);
            assert_eq!(flow.protocol, protocol);
        }
        let mut v6 = vec![0x60, 0, 0, 0, 0xff, 0xff, UDP, 64];
        v6.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend([0, 9, 1, 0]);
        let flow = Flow::read(&v6).unwrap();
        let expected = ("fd00::2 9".to_owned(), "fd00::1 256".to_owned());
        assert_eq!(ends(flow), expected);
    }

    #[test]
    fn fragments_and_icmp_have_no_ports_and_tunnels_no_flow() {
        for bytes in [v4(UDP, 0x2000), v4(UDP, 0x0010), v4(ICMP, 0)] {
            let flow = Flow::read(&bytes).unwrap();
            let expected = ("10.0.0.2 0".to_owned(), "10.0.0.1 0".to_owned());
            assert_eq!(ends(flow), expected);
        }
        for tunnel in [4, 41, 47, 50] {
            assert_eq!(Flow::read(&v4(tunnel, 0)), None);
        }
        let whole = v4(UDP, 0);
        for length in 0..20 {
            assert_eq!(Flow::read(&whole[..length]), None);
        }
        assert_eq!(Flow::read(&[0x20; 40]), None);
    }

    #[test]
    fn both_directions_are_one() {
        let there = Flow::read(&v4(UDP, 0)).unwrap();
        let back = Flow {
            source: there.destination,
            destination: there.source,
            ..there
        };
        assert_ne!(there, back);
        assert_eq!(there.both_ways(), back.both_ways());
        let other = Flow {
            source: (there.source.0, 5001),
            ..there
        };
        assert_ne!(there.both_ways(), other.both_ways());
    }
}
