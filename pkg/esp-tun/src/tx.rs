//! A pod packet on its way to a peer: peer by destination, framing, ESP. No system calls here.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Instant;

use espalier_esp::wire::ip;
use espalier_esp::{HEADER_LEN, MAX_TRAILER_LEN, SealError, framing};

use crate::drops::Reason;
use crate::tables::{PeerEntry, Tables};

/// Where a pod packet stands in a buffer, so that everything in front of it fits.
pub(crate) const PACKET_AT: usize = HEADER_LEN + framing::MAX_HEADROOM;

/// Bytes of a buffer for pod packets of up to 65,535 bytes.
pub(crate) const BUFFER_LEN: usize = PACKET_AT + 65_535 + MAX_TRAILER_LEN;

/// A datagram ready to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sealed<'b> {
    pub(crate) from: IpAddr,
    pub(crate) to: SocketAddr,
    pub(crate) datagram: &'b [u8],
}

/// Seals, in place, the packet of `len` bytes that stands at [`PACKET_AT`].
pub(crate) fn seal<'b>(
    tables: &Tables,
    buffer: &'b mut [u8],
    len: usize,
    now: Instant,
) -> Result<Sealed<'b>, Reason> {
    let entry = find_peer(
        tables,
        buffer
            .get(PACKET_AT..PACKET_AT + len)
            .ok_or(Reason::NotIp)?,
    )?;
    let active = entry.state.active.load();
    let Some(sa) = active.as_ref() else {
        entry.state.no_sa_drops.fetch_add(1, Ordering::Relaxed);
        return Err(Reason::NoSa);
    };
    let headroom = entry.framing.headroom();
    let payload = headroom + len;
    let packet = &mut buffer[PACKET_AT - headroom - HEADER_LEN..];
    let next_header = entry
        .framing
        .emit(&mut packet[HEADER_LEN..][..payload])
        .map_err(|_| Reason::NotIp)?;
    let sealed = sa
        .esp
        .seal_in_place(next_header, payload, packet)
        .map_err(|error| {
            sa.counters.drop_one();
            reason(error)
        })?;
    sa.counters.pass(payload, now);
    Ok(Sealed {
        from: entry.peer.local,
        to: entry.destination(sa),
        datagram: &packet[..sealed],
    })
}

fn find_peer<'t>(tables: &'t Tables, packet: &[u8]) -> Result<&'t PeerEntry, Reason> {
    let destination = ip::Packet::parse(packet)
        .map_err(|_| Reason::NotIp)?
        .destination;
    match tables.routes.lookup(destination) {
        Some(entry) => Ok(entry),
        None if destination.is_multicast() => Err(Reason::Multicast),
        None => Err(Reason::NoPeer),
    }
}

fn reason(error: SealError) -> Reason {
    match error {
        SealError::Exhausted => Reason::Exhausted,
        SealError::BufferTooShort { .. } | SealError::Cipher => Reason::SealFailed,
    }
}
