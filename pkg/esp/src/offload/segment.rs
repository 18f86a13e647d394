//! What of a packet decides whether it may be joined with the one before it.

use crate::next_header::UDP;
use crate::wire::{be16, checksum};

const TCP: u8 = 6;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const DONT_FRAGMENT: u16 = 0x4000;

/// Of a packet that may be the first of a large one, or be joined to it: TCP with payload and no flag but ACK and PSH, or UDP with
/// payload and a checksum; no IP options, no extension headers, no fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) tcp: bool,
    /// Where the transport header begins.
    pub(super) start: usize,
    /// Bytes of all headers.
    pub(super) head: usize,
    pub(super) payload: usize,
}

/// A packet as a coalescer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Its flow cannot be told, or not cheaply: a fragment, another protocol, options.
    Strange,
    /// Of the flow with this hash.
    Flow(u32, Option<Segment>),
}

pub(super) fn look(packet: &[u8]) -> Seen {
    let (start, protocol) = match *packet {
        [0x45, ..] if packet.len() >= 20 && plain_v4(packet) => (20, packet[9]),
        [first, ..] if first >> 4 == 6 && packet.len() >= 40 => (40, packet[6]),
        _ => return Seen::Strange,
    };
    let whole = match start {
        20 => usize::from(be16(packet, 2)),
        _ => 40 + usize::from(be16(packet, 4)),
    };
    if whole != packet.len() || !matches!(protocol, TCP | UDP) {
        return Seen::Strange;
    }
    let transport = &packet[start..];
    let Some(ports) = transport.first_chunk() else {
        return Seen::Strange;
    };
    let segment = match protocol {
        TCP => tcp(start, transport),
        _ => udp(start, transport),
    };
    Seen::Flow(hash(packet, start, *ports), segment)
}

/// No fragment, and the reserved bit is clear.
fn plain_v4(packet: &[u8]) -> bool {
    be16(packet, 6) & !DONT_FRAGMENT == 0
}

fn tcp(start: usize, transport: &[u8]) -> Option<Segment> {
    let own = usize::from(transport.get(12)? >> 4) * 4;
    let payload = transport.len().checked_sub(own)?;
    let good = own >= 20 && payload > 0 && transport.get(13)? & !PSH == ACK;
    good.then_some(Segment {
        tcp: true,
        start,
        head: start + own,
        payload,
    })
}

fn udp(start: usize, transport: &[u8]) -> Option<Segment> {
    let payload = transport.len().checked_sub(8)?;
    let good = payload > 0
        && usize::from(be16(transport, 4)) == transport.len()
        && be16(transport, 6) != 0;
    good.then_some(Segment {
        tcp: false,
        start,
        head: start + 8,
        payload,
    })
}

/// Spreads flows over the slots; two flows with one hash only cost each other their joining.
fn hash(packet: &[u8], start: usize, ports: [u8; 4]) -> u32 {
    let addresses = if start == 20 { 12..20 } else { 8..40 };
    let (words, _) = packet[addresses].as_chunks::<4>();
    let mut hash = u32::from_ne_bytes(ports);
    for word in words {
        hash = (hash.rotate_left(9) ^ u32::from_ne_bytes(*word)).wrapping_mul(0x9e37_79b1);
    }
    hash ^ hash >> 15
}

/// Whether PSH is set, which ends a large packet.
pub(super) fn pushes(packet: &[u8], segment: &Segment) -> bool {
    segment.tcp && packet[segment.start + 13] & PSH != 0
}

pub(super) fn sequence(packet: &[u8], segment: &Segment) -> u32 {
    let at = segment.start + 4;
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

/// Whether the headers of `next` are those that [`super::Large`] would give to a later packet of the one that `first` begins: all
/// the same but what counts on. `first_count` packets are in it already. Lengths and sequence numbers are the caller's matter.
pub(super) fn follows(first: &[u8], next: &[u8], segment: &Segment, count: usize) -> bool {
    let same = |from: usize, to: usize| first[from..to] == next[from..to];
    let start = segment.start;
    let ip = if start == 20 {
        same(0, 2) && same(6, 10) && same(12, 20) && identified(first, next, count)
    } else {
        same(0, 4) && same(6, 40)
    };
    let ports = same(start, start + 4);
    if !segment.tcp {
        return ip && ports;
    }
    // Acknowledgement and data offset; flags but PSH are ACK in both; window; urgent pointer and options.
    ip && ports
        && same(start + 8, start + 13)
        && same(start + 14, start + 16)
        && same(start + 18, segment.head)
}

/// Identifications count on, or say nothing, since the packets are never fragmented (RFC 6864 §4.1).
fn identified(first: &[u8], next: &[u8], count: usize) -> bool {
    be16(first, 6) & DONT_FRAGMENT != 0
        || be16(next, 4) == be16(first, 4).wrapping_add(count as u16)
}

/// Whether all checksums of the packet are right.
pub(super) fn is_sound(packet: &[u8], segment: &Segment) -> bool {
    let start = segment.start;
    let ip = start != 20 || checksum::fold(checksum::sum(&packet[..20])) == 0xffff;
    let transport = &packet[start..];
    let sum = pseudo_header(packet, segment, transport.len()) + checksum::sum(transport);
    ip && checksum::fold(sum) == 0xffff
}

/// The pseudo-header's sum for a transport part of `len` bytes.
pub(super) fn pseudo_header(packet: &[u8], segment: &Segment, len: usize) -> u64 {
    let protocol = if segment.tcp { TCP } else { UDP };
    let addresses = if segment.start == 20 {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    checksum::sum(addresses) + u64::from(protocol) + len as u64
}
