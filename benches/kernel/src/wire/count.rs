//! Sends packets and counts their octets on the wire.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use espalier_capture::{Interfaces, Reader, Received, interface_index};
use espalier_testnet::Netns;

use super::PAYLOAD;
use super::shape::Outer;

/// Packets that are counted.
const PACKETS: usize = 100;
/// Each alone: what a sender batches would be one frame in a namespace.
const PACE: Duration = Duration::from_millis(3);
const TICK: Duration = Duration::from_millis(50);
/// After the last packet.
const STRAGGLERS: Duration = Duration::from_millis(500);
/// Until the mesh has the form.
const LIMIT: Duration = Duration::from_secs(60);
const ETHERNET: usize = 14;

/// Who sends to whom, and where their packets are looked at.
pub(crate) struct Place<'a> {
    pub(crate) sender: UdpSocket,
    pub(crate) to: SocketAddr,
    /// The sender's underlay, seen from outside of the node where that can be.
    pub(crate) netns: &'a Netns,
    pub(crate) device: &'a str,
    /// `netns` is the sender's own: what it sends is counted.
    pub(crate) leaving: bool,
}

/// Total lengths of the IP packets that were seen, octets.
#[derive(Debug)]
pub(crate) struct Sizes(Vec<u16>);

impl Sizes {
    pub(crate) fn packets(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn mean(&self) -> f64 {
        let sum: f64 = self.0.iter().copied().map(f64::from).sum();
        sum / self.0.len() as f64
    }
}

impl Place<'_> {
    /// Waits until packets have the form, then counts.
    pub(crate) fn measure(&self, outer: Outer) -> Result<Sizes> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let seen = self.send(3)?;
            if seen
                .iter()
                .filter(|packet| packet.outer == Some(outer))
                .count()
                == 3
            {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "expected packets as {outer:?} within {} s, the last ones are {seen:?}",
                LIMIT.as_secs()
            );
        }
        let seen = self.send(PACKETS)?;
        ensure!(
            seen.len() == PACKETS && seen.iter().all(|packet| packet.outer == Some(outer)),
            "{} packets on the wire for {PACKETS} of the pod, not all as {outer:?}: fragments?",
            seen.len()
        );
        Ok(Sizes(seen.iter().map(|packet| packet.total).collect()))
    }

    /// Sends so many packets and returns what was on the wire; what is shorter than the payload is somebody else's.
    fn send(&self, count: usize) -> Result<Vec<Packet>> {
        let mut reader = self.netns.run(|| {
            let device = interface_index(self.device)?;
            Reader::open(Interfaces::Only(vec![device]), self.leaving, 4 << 20)
        })??;
        reader.set_timeout(TICK)?;
        let payload = vec![0x5a; PAYLOAD];
        for _ in 0..count {
            // Before the mesh is ready there is no route.
            let _ = self.sender.send_to(&payload, self.to);
            std::thread::sleep(PACE);
        }
        let mut seen = Vec::new();
        let mut last = Instant::now();
        while last.elapsed() < STRAGGLERS {
            if let Received::Frame { bytes, .. } = reader.receive()?
                && let Some(packet) = Packet::parse(bytes)
                && usize::from(packet.total) > PAYLOAD
            {
                seen.push(packet);
                last = Instant::now();
            }
        }
        ensure!(reader.dropped() == 0, "the capture lost frames");
        Ok(seen)
    }
}

/// An IPv4 packet.
#[derive(Debug)]
struct Packet {
    total: u16,
    /// `None` for a fragment.
    outer: Option<Outer>,
}

impl Packet {
    /// From a frame that may be cut short.
    fn parse(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(ETHERNET..)?;
        let pair = |at: usize| Some(u16::from_be_bytes([*ip.get(at)?, *ip.get(at + 1)?]));
        let header = ip.first().filter(|first| **first >> 4 == 4)?;
        let header = usize::from(header & 0xf) * 4;
        let whole = pair(6)? & 0x3fff == 0;
        let outer = match *ip.get(9)? {
            17 => Outer::Udp(pair(header + 2)?),
            other => Outer::Protocol(other),
        };
        Some(Self {
            total: pair(2)?,
            outer: whole.then_some(outer),
        })
    }
}

/// A socket in a namespace.
pub(crate) fn socket(netns: &Netns, address: &str) -> Result<UdpSocket> {
    let socket = netns.run(|| UdpSocket::bind((address, 0)))?;
    socket.with_context(|| format!("a socket on {address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_header_tells_length_and_form() {
        let mut frame = vec![0; ETHERNET];
        frame.extend([0x45, 0, 0x05, 0xdc, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 0xc0, 0, 0x11, 0x94]);
        let packet = Packet::parse(&frame).unwrap();
        assert_eq!((packet.total, packet.outer), (1500, Some(Outer::Udp(4500))));
        frame[ETHERNET + 6] = 0x20; // more fragments
        assert_eq!(Packet::parse(&frame).unwrap().outer, None);
        assert!(Packet::parse(&frame[..20]).is_none());
    }
}
