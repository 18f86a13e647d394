//! Pod packets on their way to a peer: peer by destination, framing, ESP. No system calls here.
//!
//! ```text
//!  large packet ──▶ segment 0, 1, 2, … each written, framed and sealed in its place:
//!  buffer  │ESP│VXLAN│IP│payload│ICV│ESP│VXLAN│IP│payload│ICV│…│ESP│…│ICV│   one system call, one peer
//!          ╰────── segment bytes ───╯╰────── segment bytes ───╯  ╰ shorter ╯
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Instant;

use espalier_esp::offload::Large;
use espalier_esp::wire::{ecn, ip};
use espalier_esp::{HEADER_LEN, MAX_TRAILER_LEN, OutboundSa, SealError, framing};

use crate::cipher::Cipher;
use crate::drops::Reason;
use crate::sa::Outbound;
use crate::tables::{PeerEntry, Tables};

/// Bytes of a sealed packet at most: around a pod packet of 65,535 bytes.
const MAX_SEALED: usize = HEADER_LEN + framing::MAX_HEADROOM + 65_535 + MAX_TRAILER_LEN;

/// Bytes of UDP payload that one system call takes: what fits an IPv4 packet. Raw ESP's packets are apart from each other; more of them
/// would wait for no gain.
const MAX_BATCH_LEN: usize = 65_535 - 20 - 8;

/// Datagrams that one system call takes (`UDP_MAX_SEGMENTS` before Linux 6.9).
const MAX_BATCH: usize = 64;

/// Where datagrams go, and in what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum To {
    /// ESP in UDP (RFC 3948).
    Udp(SocketAddr),
    /// ESP in IP.
    Raw(IpAddr),
}

/// Datagrams of one size, the last one possibly shorter, from one address to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch<'b> {
    pub(crate) from: IpAddr,
    pub(crate) to: To,
    /// For the outer header.
    pub(crate) ecn: u8,
    /// Bytes of each but the last.
    pub(crate) segment: usize,
    pub(crate) bytes: &'b [u8],
}

impl Batch<'_> {
    /// How many datagrams it holds.
    pub(crate) fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.segment.max(1))
    }

    /// Its first `count` datagrams, and those behind them.
    pub(crate) fn split_at(&self, count: usize) -> (Self, Self) {
        let at = count.saturating_mul(self.segment).min(self.bytes.len());
        let (first, rest) = self.bytes.split_at(at);
        let of = |bytes| Self { bytes, ..*self };
        (of(first), of(rest))
    }
}

/// Sealed datagrams that wait to be sent together. Whoever fills it sends what is left before it waits for more.
pub(crate) struct Outbox {
    buffer: Box<[u8]>,
    filled: usize,
    open: Option<Open>,
}

/// What the waiting datagrams have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Open {
    from: IpAddr,
    to: To,
    ecn: u8,
    segment: usize,
    count: usize,
}

/// Packets that were not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) reason: Reason,
    pub(crate) packets: usize,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; MAX_SEALED].into(),
            filled: 0,
            open: None,
        }
    }

    /// What waits, if anything does; it no longer waits then.
    pub(crate) fn take(&mut self) -> Option<Batch<'_>> {
        let open = self.open.take()?;
        let filled = std::mem::take(&mut self.filled);
        Some(Batch {
            from: open.from,
            to: open.to,
            ecn: open.ecn,
            segment: open.segment,
            bytes: self.buffer.get(..filled)?,
        })
    }

    /// Whether a datagram of `len` bytes goes with those that wait. A shorter one was the last of its batch.
    fn takes(&self, next: &Open, len: usize) -> bool {
        let Some(open) = &self.open else { return true };
        let same = (open.from, open.to, open.ecn) == (next.from, next.to, next.ecn);
        same && len <= open.segment
            && self.filled == open.count * open.segment
            && open.count < MAX_BATCH
            && self.filled + len <= MAX_BATCH_LEN
    }
}

/// Seals every packet that `large` stands for. Full batches are given to `send`; the rest waits in `outbox`.
///
/// # Errors
/// Those packets that were not sealed, and why.
pub(crate) fn seal(
    tables: &Tables,
    large: &Large<'_>,
    outbox: &mut Outbox,
    now: Instant,
    mut send: impl FnMut(Batch<'_>),
) -> Result<(), Lost> {
    let lost = |reason| Lost {
        reason,
        packets: large.count(),
    };
    let entry = find_peer(tables, large.bytes()).map_err(lost)?;
    let active = entry.state.active.load();
    let Some(sa) = active.as_ref() else {
        let drops = &entry.state.no_sa_drops;
        drops.fetch_add(large.count() as u64, Ordering::Relaxed);
        return Err(lost(Reason::NoSa));
    };
    if sa.is_over(now) {
        sa.counters.drop(large.count());
        return Err(lost(Reason::Expired));
    }
    let job = Job { entry, sa, large };
    let mut bytes = 0;
    for index in 0..large.count() {
        match job.seal(index, outbox, &mut send) {
            Ok(payload) => bytes += payload,
            Err(reason) => {
                let packets = large.count() - index;
                sa.counters.pass(index, bytes, now);
                sa.counters.drop(packets);
                return Err(Lost { reason, packets });
            }
        }
    }
    sa.counters.pass(large.count(), bytes, now);
    Ok(())
}

/// What all packets of one large one have in common.
struct Job<'j> {
    entry: &'j PeerEntry,
    sa: &'j Outbound,
    large: &'j Large<'j>,
}

impl Job<'_> {
    /// Seals one packet; its ESP payload's bytes.
    fn seal(
        &self,
        index: usize,
        outbox: &mut Outbox,
        send: &mut impl FnMut(Batch<'_>),
    ) -> Result<usize, Reason> {
        let headroom = self.entry.framing.headroom();
        let payload = headroom + self.large.len(index);
        let len = OutboundSa::<Cipher>::sealed_len(payload);
        let next = Open {
            from: self.entry.peer.local,
            to: self.entry.destination(self.sa),
            ecn: ecn::of(self.large.bytes()),
            segment: len,
            count: 0,
        };
        if !outbox.takes(&next, len)
            && let Some(batch) = outbox.take()
        {
            send(batch);
        }
        let out = outbox.buffer.get_mut(outbox.filled..outbox.filled + len);
        let out = out.ok_or(Reason::NotIp)?;
        let packet = out.get_mut(HEADER_LEN + headroom..).ok_or(Reason::NotIp)?;
        self.large.write(index, packet).ok_or(Reason::NotIp)?;
        let framed = out.get_mut(HEADER_LEN..HEADER_LEN + payload);
        let framed = framed.ok_or(Reason::NotIp)?;
        let next_header = self.entry.framing.emit(framed);
        let next_header = next_header.map_err(|_| Reason::NotIp)?;
        let sealed = self.sa.esp.seal_in_place(next_header, payload, out);
        outbox.filled += sealed.map_err(reason)?;
        outbox.open.get_or_insert(next).count += 1;
        Ok(payload)
    }
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
