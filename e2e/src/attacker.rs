//! A host that forges clear overlay packets.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::Result;
use espalier_peers::vtep_mac;
use espalier_testnet::{Bridge, Netns, address, sysctl};

use crate::plan::{MARKER, underlay};
use crate::pod::Pod;

/// Where its packets go in the pod.
pub const INJECTED_PORT: u16 = 7777;

/// A host on the wire, with an address of its own and node 2's.
#[derive(Debug)]
pub struct Attacker {
    _netns: Netns,
    sockets: [UdpSocket; 2],
}

impl Attacker {
    /// Connects it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn on(bridge: &Bridge) -> Result<Self> {
        let netns = Netns::new("attacker")?;
        bridge.connect(&netns, "eth0", "attacker")?;
        let own = Ipv4Addr::new(10, 99, 0, 66);
        let sockets = netns.run(|| {
            // It forges node 2's address in packets, but does not draw node 2's packets to itself.
            sysctl("ipv4/conf/all/arp_ignore", "1")?;
            sysctl("ipv4/conf/all/arp_announce", "2")?;
            address("eth0", own.into(), 24)?;
            address("lo", underlay(2).into(), 32)?;
            anyhow::Ok([
                UdpSocket::bind((own, 0))?,
                UdpSocket::bind((underlay(2), 0))?,
            ])
        })??;
        Ok(Self {
            _netns: netns,
            sockets,
        })
    }

    /// A VXLAN packet to node 1 as node 2 would send it for its pod; the pods are those of node 1 and node 2.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn inject(&self, pods: &[Pod]) -> Result<()> {
        let packet = vxlan(pods[1].address, pods[0].address);
        for socket in &self.sockets {
            socket.send_to(&packet, (underlay(1), 4789))?;
        }
        Ok(())
    }
}

/// VXLAN header (RFC 7348 §5), Ethernet, IPv4, UDP.
fn vxlan(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let vni: u32 = 4789 << 8;
    let mut udp = [7000_u16.to_be_bytes(), INJECTED_PORT.to_be_bytes()].concat();
    udp.extend([0, 8 + 16, 0, 0]);
    udp.extend(MARKER);
    let mut ip = vec![0x45, 0, 0, 20 + 24, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend([from.octets(), to.octets()].concat());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let head = [&[8, 0, 0, 0], &vni.to_be_bytes()[..]].concat();
    let macs = [vtep_mac("node-1"), vtep_mac("node-2")].concat();
    [head, macs, vec![8, 0], ip, udp].concat()
}

/// RFC 1071.
fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks_exact(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(folded & 0xffff).unwrap_or_default()
}
