//! Lifetimes of SAs, and how a replaced CHILD_SA goes: confirmed, drained, deleted (docs/ike-rekey.md).

use std::time::{Duration, Instant};

use rand_core::Rng as _;

use super::Endpoint;
use crate::config::{ChildId, Identity, Volume};
use crate::event::{CloseReason, Role};
use crate::exchange::Request;
use crate::limits;
use crate::sa::{ChildRef, Goodbye, What};
use crate::timers::{Timer, jittered, up_to};
use crate::wire::{Delete, Payload, ProtocolId};

impl Endpoint {
    /// Rekeys the first CHILD_SA with a peer ([`ChildId::FIRST`]) now. Put off while another exchange is under way; nothing
    /// happens where there is none.
    pub fn rekey_child(&mut self, id: &Identity, now: Instant) {
        self.now = Some(now);
        let newest = self.newest_sa(id);
        let children = newest.map(|spi| self.children(spi)).unwrap_or_default();
        let first = |child: &&ChildRef| child.id == ChildId::FIRST;
        let child = children.iter().rev().find(first).or(children.last());
        if let Some(child) = child.copied() {
            self.rekey_child_due(child.spi_in, now);
        }
    }

    /// Rekeys the CHILD_SA with this inbound SPI now. Put off while another exchange is under way; nothing happens where it is
    /// not there or replaced already.
    pub fn rekey_child_sa(&mut self, spi_in: u32, now: Instant) {
        self.now = Some(now);
        self.rekey_child_due(spi_in, now);
    }

    /// The driver's count of what a CHILD_SA has carried, in the direction that has carried more: past its soft limit it is
    /// rekeyed, past the hard one it ends.
    pub fn note_usage(
        &mut self,
        id: &Identity,
        spi_in: u32,
        bytes: u64,
        packets: u64,
        now: Instant,
    ) {
        self.now = Some(now);
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        let used = peer.sas.iter().flat_map(|spi| self.children(*spi));
        let orphans = peer.orphans.iter().map(|(_, child)| child);
        let mut all = used.chain(orphans);
        let Some(volume) = all
            .find(|child| child.spi_in == spi_in)
            .map(|child| child.volume)
        else {
            return;
        };
        let timer = Timer::RekeyChild(spi_in);
        // A request that waits for its answer, or a short wait before the next, is not started over.
        let soon = now + limits::REKEY_RETRY * 2;
        let waits = self.timers.due(&timer).is_none_or(|at| at <= soon);
        if bytes >= volume.hard_bytes || packets >= volume.hard_packets {
            self.expire_child(spi_in, now);
        } else if !waits && (bytes >= volume.soft_bytes || packets >= volume.soft_packets) {
            self.rekey_child_due(spi_in, now);
        }
    }

    /// Rekeys the IKE SA with a peer now; its CHILD_SAs move to the new one. Put off while another exchange is under way.
    pub fn rekey_ike(&mut self, id: &Identity, now: Instant) {
        self.now = Some(now);
        if let Some(spi) = self.newest_sa(id) {
            self.rekey_ike_due(spi, now);
        }
    }

    pub(super) fn newest_sa(&self, id: &Identity) -> Option<u64> {
        self.peers.get(id)?.sas.last().copied()
    }

    /// The lower identity begins, so that two ends with the same lifetimes do not collide each time.
    pub(super) fn soft(&mut self, id: &Identity, lifetime: Duration) -> Duration {
        let early = lifetime * limits::REKEY_JITTER_PERCENT / 100;
        let early = up_to(early, &mut *self.rng);
        let margin = if self.config.identity < *id {
            Duration::ZERO
        } else {
            lifetime * limits::REKEY_MARGIN_PERCENT / 100
        };
        lifetime + margin - early
    }

    /// A CHILD_SA of this peer is there.
    pub(super) fn start_child_lifetime(&mut self, id: &Identity, spi_in: u32, now: Instant) {
        self.spis.insert(spi_in, Some(id.clone()));
        let rekeying = self.config.rekeying;
        let soft = self.soft(id, rekeying.child_soft);
        self.timers.set(Timer::RekeyChild(spi_in), now + soft);
        let hard = now + rekeying.child_hard;
        self.timers.set(Timer::ExpireChild(spi_in), hard);
    }

    pub(super) fn start_ike_lifetime(&mut self, id: &Identity, spi: u64, now: Instant) {
        let soft = self.soft(id, self.config.rekeying.ike_soft);
        self.timers.set(Timer::RekeyIke(spi), now + soft);
        self.start_ike_end(spi, now);
    }

    /// What a new CHILD_SA may carry: as configured, with a random part, and never more than its sequence numbers.
    pub(super) fn draw_volume(&mut self, id: &Identity, esn: bool) -> Volume {
        let mut volume = self.config.rekeying.child_volume;
        if !esn {
            volume.soft_packets = volume.soft_packets.min(limits::SEQUENCE_SOFT);
            volume.hard_packets = volume.hard_packets.min(limits::SEQUENCE_HARD);
        }
        volume.soft_bytes = self.soft_volume(id, volume.soft_bytes, volume.hard_bytes);
        volume.soft_packets = self.soft_volume(id, volume.soft_packets, volume.hard_packets);
        volume
    }

    /// As [`Endpoint::soft`] does with time.
    fn soft_volume(&mut self, id: &Identity, soft: u64, hard: u64) -> u64 {
        if soft == u64::MAX && hard == u64::MAX {
            return u64::MAX;
        }
        let percent = |part: u64, whole: u64| whole / 100 * part + whole % 100 * part / 100;
        let soft = soft.min(percent(limits::VOLUME_SOFT_PERCENT, hard));
        let jitter = percent(limits::REKEY_JITTER_PERCENT.into(), soft);
        let early = self.rng.next_u64() % jitter.saturating_add(1);
        let margin = match self.config.identity < *id {
            true => 0,
            false => percent(limits::REKEY_MARGIN_PERCENT.into(), soft),
        };
        let late = (soft - early).saturating_add(margin);
        late.min(percent(limits::VOLUME_SOFT_PERCENT, hard))
    }

    /// Comes back to `timer` soon.
    pub(super) fn put_off(&mut self, timer: Timer, base: Duration, now: Instant) {
        let wait = jittered(base, &mut *self.rng);
        self.timers.set(timer, now + wait);
    }

    /// The IKE SA whose CHILD_SA this is.
    pub(super) fn sa_of_child(&self, spi_in: u32) -> Option<u64> {
        let peer = self.peers.get(self.spis.get(&spi_in)?.as_ref()?)?;
        let mut sas = peer.sas.iter().copied();
        sas.find(|spi| self.find_child(*spi, spi_in).is_some())
    }

    pub(super) fn find_child(&self, spi: u64, spi_in: u32) -> Option<ChildRef> {
        let mut children = self.children(spi).iter();
        children.find(|child| child.spi_in == spi_in).copied()
    }

    /// A successor of this CHILD_SA is there.
    pub(super) fn is_replaced(&self, spi: u64, spi_in: u32) -> bool {
        let mut children = self.children(spi).iter();
        children.any(|child| child.replaces == Some(spi_in))
    }

    /// CHILD_SAs whose successor is gone again are rekeyed anew.
    pub(super) fn rearm(&mut self, spi: u64, now: Instant) {
        let under_way = self.sas.get(&spi).and_then(|sa| sa.established());
        let under_way = under_way.and_then(|sa| Some(sa.rekey.as_ref()?.what));
        for child in self.children(spi).to_vec() {
            let timer = Timer::RekeyChild(child.spi_in);
            let own = matches!(under_way, Some(What::Child { old, .. }) if old == child.spi_in);
            if !own && !self.is_replaced(spi, child.spi_in) && !self.timers.is_set(&timer) {
                self.put_off(timer, limits::REKEY_RETRY, now);
            }
        }
    }

    /// The peer has acknowledged what this end said after it had made these CHILD_SAs: it is known to be ready.
    pub(super) fn confirm_initiated(&mut self, spi: u64, now: Instant) {
        let made = |child: &&ChildRef| child.role == Role::Initiator && !child.confirmed;
        let children: Vec<u32> = self
            .children(spi)
            .iter()
            .filter(made)
            .map(|c| c.spi_in)
            .collect();
        for spi_in in children {
            self.child_confirmed(spi, spi_in, now);
        }
    }

    /// The peer uses a CHILD_SA that this end made: what it replaces goes after [`limits::DRAIN`]. That the peer knows of it, or
    /// announces something by itself, is no proof: only its acknowledgement of what this end announced is.
    pub(super) fn child_confirmed(&mut self, spi: u64, spi_in: u32, now: Instant) {
        let established = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut());
        let mut children = established
            .into_iter()
            .flat_map(|sa| sa.children.iter_mut());
        let Some(child) = children.find(|child| child.spi_in == spi_in && !child.confirmed) else {
            return;
        };
        child.confirmed = true;
        child.ready = Some(now);
        if child.role == Role::Initiator && child.replaces.is_some() {
            let drained = now + limits::DRAIN;
            self.timers.set(Timer::DrainChild(spi_in), drained);
        }
    }

    /// What this confirmed CHILD_SA replaced has drained on both ends.
    pub(super) fn drain_child(&mut self, spi_in: u32, now: Instant) {
        let Some(spi) = self.sa_of_child(spi_in) else {
            return;
        };
        // All before it: its predecessor may itself still have been draining one.
        let mut newer = self.find_child(spi, spi_in);
        while let Some(old) = newer.and_then(|child| self.find_child(spi, child.replaces?)) {
            newer = Some(old);
            self.delete_child(spi, old, CloseReason::Replaced, now);
        }
    }

    /// Ends a CHILD_SA under an IKE SA that stays.
    pub(super) fn delete_child(
        &mut self,
        spi: u64,
        child: ChildRef,
        reason: CloseReason,
        now: Instant,
    ) {
        let Some(established) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) else {
            return;
        };
        established.children.retain(|other| *other != child);
        let id = established.peer.clone();
        self.child_down(&id, child, reason);
        self.owe_delete(spi, child, now);
    }

    /// A CHILD_SA that only the peer has must go.
    pub(super) fn owe_delete(&mut self, spi: u64, child: ChildRef, now: Instant) {
        if let Some(sa) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) {
            sa.deletes.push(child);
        }
        self.flush_deletes(spi, now);
    }

    /// Sends the DELETEs of CHILD_SAs that wait, once the window is free.
    pub(super) fn flush_deletes(&mut self, spi: u64, now: Instant) {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        let established = established.filter(|sa| !sa.awaits_heir());
        let Some(deletes) = established.map(|sa| sa.deletes.clone()) else {
            return;
        };
        if deletes.is_empty() {
            return;
        }
        let said = delete_payloads(&deletes);
        let sent = self.request(spi, Request::DeleteChildren(deletes), &said, now);
        if let Some(sa) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) {
            sa.deletes.retain(|_| !sent);
        }
    }

    /// The hard lifetime: nothing is sealed any more with keys this old, whatever it costs.
    pub(super) fn expire_child(&mut self, spi_in: u32, now: Instant) {
        let Some(spi) = self.sa_of_child(spi_in) else {
            return self.expire_orphan(spi_in);
        };
        let Some(child) = self.find_child(spi, spi_in) else {
            return;
        };
        let others = self.children(spi).len() > 1;
        tracing::warn!(
            spi_in = format_args!("{spi_in:08x}"),
            "hard lifetime of a CHILD_SA reached, or the peer did not delete it though its own has replaced it"
        );
        if others {
            self.delete_child(spi, child, CloseReason::Local, now);
            self.rearm(spi, now);
            return self.schedule_children(spi, now);
        }
        let id = self.sas.get(&spi).and_then(|sa| sa.established());
        let Some(id) = id.map(|sa| sa.peer.clone()) else {
            return;
        };
        self.retire(spi, CloseReason::Local, Some(Goodbye::Plain));
        self.after_loss(&id, CloseReason::Local, now);
    }

    /// Rekeys crossed, and the peer keeps its CHILD_SA that lost: it did not see that and may use no other one, nor survive
    /// that one's DELETE. This end's goes instead.
    pub(super) fn concede(&mut self, theirs: u32, now: Instant) {
        let Some(spi) = self.sa_of_child(theirs) else {
            return;
        };
        let Some(kept) = self.find_child(spi, theirs) else {
            return;
        };
        let rival = |child: &&ChildRef| {
            child.role == Role::Initiator && child.replaces == kept.replaces && **child != kept
        };
        if let Some(own) = self.children(spi).iter().find(rival).copied() {
            tracing::warn!(
                spi_in = format_args!("{theirs:08x}"),
                "the peer keeps a CHILD_SA that is redundant (RFC 7296 §2.8.1); this end's own goes"
            );
            self.delete_child(spi, own, CloseReason::Replaced, now);
        }
    }

    fn expire_orphan(&mut self, spi_in: u32) {
        let Some(id) = self.spis.get(&spi_in).cloned().flatten() else {
            return;
        };
        let expired = |(_, child): &(u64, ChildRef)| child.spi_in == spi_in;
        let orphan = self.peers.get_mut(&id).and_then(|peer| {
            let at = peer.orphans.iter().position(expired)?;
            Some(peer.orphans.remove(at))
        });
        if let Some((_, child)) = orphan {
            self.child_down(&id, child, CloseReason::Local);
        }
    }
}

/// DELETE payloads for this end's halves of CHILD_SAs, one for each protocol (RFC 7296 §3.11).
pub(super) fn delete_payloads(children: &[ChildRef]) -> Vec<Payload<'static>> {
    let of = |protocol| {
        let same = children.iter().filter(|child| child.protocol() == protocol);
        let spis: Vec<u32> = same.map(|child| child.spi_in).collect();
        (!spis.is_empty()).then_some(Payload::Delete(Delete::Child { protocol, spis }))
    };
    [ProtocolId::Esp, ProtocolId::Ah]
        .into_iter()
        .filter_map(of)
        .collect()
}
