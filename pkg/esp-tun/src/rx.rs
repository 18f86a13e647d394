//! A datagram from the underlay: what it is, whose it is, whether its contents may come in. No system calls here.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use espalier_dataplane_core::Event;
use espalier_esp::wire::ip;
use espalier_esp::{OpenError, ReplayError, next_header};
use espalier_ike_io::nat_t::{self, Datagram};
use ipnet::IpNet;

use crate::drops::Reason;
use crate::sa::Inbound;
use crate::tables::{PeerEntry, Tables};

/// What to do with a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<'d> {
    /// Nothing: it kept a NAT mapping alive.
    Keepalive,
    /// Hand this IKE message (without marker) to the agent.
    Ike(&'d [u8]),
    /// Write this pod packet to the TUN device, and report the event if there is one.
    Packet(&'d [u8], Option<Event>),
    /// Count it. An authentic packet may be refused and still be the first of its SA.
    Drop(Reason, Option<Event>),
}

/// Judges a datagram and opens it in place.
pub(crate) fn judge<'d>(tables: &Tables, datagram: &'d mut [u8], now: Instant) -> Verdict<'d> {
    match nat_t::classify(datagram) {
        Datagram::Keepalive => Verdict::Keepalive,
        Datagram::Malformed => Verdict::Drop(Reason::Truncated, None),
        Datagram::Ike(_) => Verdict::Ike(&datagram[nat_t::NON_ESP_MARKER.len()..]),
        Datagram::Esp(packet) => match packet
            .first_chunk()
            .and_then(|spi| tables.inbound.get(&u32::from_be_bytes(*spi)))
        {
            Some((sa, peer)) => open(tables, sa, peer, datagram, now),
            None => Verdict::Drop(Reason::UnknownSpi, None),
        },
    }
}

fn open<'d>(
    tables: &Tables,
    sa: &Arc<Inbound>,
    entry: &Arc<PeerEntry>,
    datagram: &'d mut [u8],
    now: Instant,
) -> Verdict<'d> {
    let opened = match sa.esp.lock().open(datagram) {
        Ok(opened) => opened,
        Err(error) => {
            sa.counters.drop_one();
            return Verdict::Drop(reason(error), None);
        }
    };
    let first = sa.prove().then(|| Event::FirstPacket {
        peer: sa.sa.peer.clone(),
        spi: sa.sa.spi,
    });
    let (next_header, payload) = (opened.next_header, &*opened.payload);
    match admit(tables, entry, next_header, payload) {
        Ok(packet) => {
            sa.counters.pass(payload.len(), now);
            Verdict::Packet(packet, first)
        }
        Err(reason) => {
            sa.counters.drop_one();
            Verdict::Drop(reason, first)
        }
    }
}

/// The pod packet, if this peer may send it here.
fn admit<'d>(
    tables: &Tables,
    entry: &Arc<PeerEntry>,
    next_header: u8,
    payload: &'d [u8],
) -> Result<&'d [u8], Reason> {
    if next_header == next_header::NONE {
        return Err(Reason::Dummy);
    }
    let packet = entry
        .framing
        .parse(next_header, payload)
        .map_err(|_| Reason::Framing)?;
    check_addresses(tables, entry, &packet).inspect_err(|_| {
        entry.state.policy_drops.fetch_add(1, Ordering::Relaxed);
    })?;
    Ok(packet.bytes)
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
