//! A datagram from the underlay: what it is, whose it is, whether its contents may come in. No system calls here.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use espalier_dataplane_core::{Event, Overlay, PROBE_PORT, Peer};
use espalier_esp::wire::{ecn, flow::Flow, ip};
use espalier_esp::{HEADER_LEN, OpenError, PROTOCOL, ReplayError, next_header};
use espalier_ike_io::nat_t::{self, Datagram};
use ipnet::IpNet;

use crate::drops::Reason;
use crate::sa::Inbound;
use crate::tables::{PeerEntry, Tables};

/// What to do with a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing: it kept a NAT mapping alive.
    Keepalive,
    /// Hand this IKE message, which follows the marker, to the agent.
    Ike,
    /// Write the pod packet that stands there in the datagram to the TUN device, and report the event if there is one.
    Packet(Range<usize>, Option<Event>),
    /// Count it. An authentic packet may be refused and still be the first of its SA.
    Drop(Reason, Option<Event>),
}

/// What ESP came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Udp,
    Raw,
}

/// Judges a datagram of the UDP port and opens it in place; `outer` is the ECN of the header that it came in.
pub(crate) fn judge(tables: &Tables, datagram: &mut [u8], outer: u8, now: Instant) -> Verdict {
    match nat_t::classify(datagram) {
        Datagram::Keepalive => Verdict::Keepalive,
        Datagram::Malformed => Verdict::Drop(Reason::Truncated, None),
        Datagram::Ike(_) => Verdict::Ike,
        Datagram::Esp(_) => esp(tables, Carrier::Udp, datagram, outer, now),
    }
}

/// Judges what a raw socket gives, and opens it in place: in IPv4 with the header in front, in IPv6 ESP alone, whose header had `outer`.
pub(crate) fn judge_raw(
    tables: &Tables,
    v4: bool,
    packet: &mut [u8],
    outer: u8,
    now: Instant,
) -> Verdict {
    if !v4 {
        return esp(tables, Carrier::Raw, packet, outer, now);
    }
    let (outer, place) = (ecn::of(packet), ip::payload_v4(packet, PROTOCOL));
    let start = place.as_ref().map_or(0, |place| place.start);
    let Some(datagram) = place.ok().and_then(|place| packet.get_mut(place)) else {
        return Verdict::Drop(Reason::Truncated, None);
    };
    match esp(tables, Carrier::Raw, datagram, outer, now) {
        Verdict::Packet(at, event) => Verdict::Packet(start + at.start..start + at.end, event),
        verdict => verdict,
    }
}

fn esp(tables: &Tables, carrier: Carrier, datagram: &mut [u8], outer: u8, now: Instant) -> Verdict {
    let Some(spi) = datagram.first_chunk() else {
        return Verdict::Drop(Reason::Truncated, None);
    };
    let Some((sa, peer)) = tables.inbound.get(&u32::from_be_bytes(*spi)) else {
        return Verdict::Drop(Reason::UnknownSpi, None);
    };
    // As in Linux: both ends agreed on one of the two for this SA.
    if sa.carrier() != carrier {
        sa.counters.drop(1);
        return Verdict::Drop(Reason::Encapsulation, None);
    }
    open(tables, (sa, peer), datagram, outer, now)
}

fn open(
    tables: &Tables,
    (sa, entry): (&Inbound, &Arc<PeerEntry>),
    datagram: &mut [u8],
    outer: u8,
    now: Instant,
) -> Verdict {
    if sa.is_over(now) {
        sa.counters.drop(1);
        return Verdict::Drop(Reason::Expired, None);
    }
    let opened = match sa.esp.lock().open(datagram) {
        Ok(opened) => opened,
        Err(error) => {
            sa.counters.drop(1);
            return Verdict::Drop(reason(error), None);
        }
    };
    let first = sa.prove().then(|| Event::FirstPacket {
        peer: sa.sa.peer.clone(),
        spi: sa.sa.spi,
    });
    let (next_header, payload) = (opened.next_header, opened.payload);
    match admit(tables, entry, next_header, payload, outer) {
        Ok(packet) => {
            sa.counters.pass(1, payload.len(), now);
            let at = HEADER_LEN + packet.start;
            Verdict::Packet(at..HEADER_LEN + packet.end, first)
        }
        Err(reason) => {
            sa.counters.drop(1);
            Verdict::Drop(reason, first)
        }
    }
}

/// Where in the payload the pod packet stands, if this peer may send it here.
fn admit(
    tables: &Tables,
    entry: &Arc<PeerEntry>,
    next_header: u8,
    payload: &mut [u8],
    outer: u8,
) -> Result<Range<usize>, Reason> {
    if next_header == next_header::NONE {
        return Err(Reason::Dummy);
    }
    let parsed = entry.framing.parse(next_header, payload);
    let packet = parsed.map_err(|_| not_framed(next_header, payload))?;
    if let Err(reason) = check_addresses(tables, entry, &packet) {
        if asks(entry, &packet) {
            return Err(Reason::Probe);
        }
        entry.state.policy_drops.fetch_add(1, Ordering::Relaxed);
        return Err(reason);
    }
    let inner = ecn::of(packet.bytes);
    // A framing's headers have one length.
    let headroom = entry.framing.headroom();
    let place = headroom..headroom + packet.bytes.len();
    let marked = ecn::leaving(outer, inner).ok_or(Reason::Congested)?;
    if marked != inner {
        ecn::set(payload.get_mut(place.clone()).unwrap_or_default(), marked);
    }
    Ok(place)
}

/// Where the pair's policy forbids UDP, a node whose kernel encrypts asks through its new SA all the same whether it arrives.
fn not_framed(next_header: u8, payload: &[u8]) -> Reason {
    let port = payload.get(2..4);
    if next_header == next_header::UDP && port == Some(&PROBE_PORT.to_be_bytes()) {
        Reason::Probe
    } else {
        Reason::Framing
    }
}

/// The same in a tunnel: from the peer's own address to this node's.
fn asks(entry: &PeerEntry, packet: &ip::Packet<'_>) -> bool {
    let Peer {
        overlay,
        local,
        remote,
        ..
    } = &entry.peer;
    let flow = Flow::read(packet.bytes).filter(|_| *overlay == Overlay::Native);
    flow.is_some_and(|flow| {
        let ends = (flow.source.0, flow.destination);
        flow.protocol == next_header::UDP && ends == (*remote, (*local, PROBE_PORT))
    })
}

/// S5: a peer is the source of its own pod CIDRs only, and reaches this node's pods only: not another peer through us, not the
/// host, not the world behind it.
fn check_addresses(
    tables: &Tables,
    entry: &Arc<PeerEntry>,
    packet: &ip::Packet<'_>,
) -> Result<(), Reason> {
    let owner = tables.routes.lookup(packet.source);
    if !owner.is_some_and(|owner| Arc::ptr_eq(owner, entry)) {
        return Err(Reason::ForeignSource);
    }
    let ours = |cidr: &IpNet| cidr.contains(&packet.destination);
    if entry.peer.own_cidrs.iter().any(ours) {
        Ok(())
    } else {
        Err(Reason::ForeignDestination)
    }
}

/// Addresses that no pod has and that mean something else on this host: nothing from a tunnel goes to them, and no pod CIDR
/// may hold them.
pub(crate) fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            // 0.0.0.0/8, 127.0.0.0/8, link-local, and multicast with everything above it (class E, broadcast).
            first == 0 || v4.is_loopback() || v4.is_link_local() || first >= 224
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some()
        }
    }
}

fn reason(error: OpenError) -> Reason {
    match error {
        OpenError::Truncated { .. } => Reason::Truncated,
        OpenError::WrongSpi { .. } => Reason::UnknownSpi,
        OpenError::Replay(ReplayError::Replayed { .. }) => Reason::Replayed,
        OpenError::Replay(ReplayError::TooOld { .. }) => Reason::TooOld,
        OpenError::BadIcv => Reason::BadIcv,
        OpenError::BadTrailer { .. } => Reason::BadTrailer,
    }
}
