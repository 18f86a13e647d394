//! How IKE SAs and CHILD_SAs end: replaced, deleted by either side, timed out (RFC 7296 §1.4.1, §2.4, §2.8).

use std::time::Instant;

use super::Endpoint;
use crate::config::Identity;
use crate::event::{CloseReason, Event, Role};
use crate::exchange::Request;
use crate::limits;
use crate::sa::{ChildRef, Closing, Established, Goodbye, State, What};
use crate::timers::Timer;
use crate::wire::{Delete, Notify, NotifyType, Payload};

impl Endpoint {
    /// A confirmed IKE SA has been in use for long enough: what is older goes. The initiator of the new one also deletes
    /// the old ones at the peer, which does the same by the same rule.
    pub(super) fn drain(&mut self, spi: u64, now: Instant) {
        let Some(sa) = self.sas.get(&spi) else {
            return;
        };
        let Some((id, order)) = sa.established().map(|sa| (sa.peer.clone(), sa.order)) else {
            return;
        };
        let goodbye = (sa.role == Role::Initiator).then_some(Goodbye::Plain);
        let older = |other: &u64| {
            self.sas
                .get(other)
                .and_then(|sa| sa.established())
                .is_some_and(|sa| sa.order < order)
        };
        if now < sa.started + limits::CHILDREN_PATIENCE && self.lacks_children(spi, &id, order, now)
        {
            return self.timers.set(Timer::Drain(spi), now + limits::DRAIN / 5);
        }
        let sas = self
            .peers
            .get(&id)
            .map(|peer| peer.sas.as_slice())
            .unwrap_or_default();
        let older: Vec<u64> = sas.iter().copied().filter(older).collect();
        for old in older {
            self.retire(old, CloseReason::Replaced, goodbye);
        }
        self.orphans_down(&id, order, CloseReason::Replaced);
    }

    /// Ends the CHILD_SAs of IKE SAs before `order` that timed out.
    pub(super) fn orphans_down(&mut self, id: &Identity, order: u64, reason: CloseReason) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let gone: Vec<ChildRef> = peer
            .orphans
            .extract_if(.., |(age, _)| *age < order)
            .map(|(_, child)| child)
            .collect();
        for child in gone {
            self.child_down(id, child, reason);
        }
    }

    /// Takes an IKE SA out of use: its CHILD_SAs are down, and it only lives on until a DELETE is acknowledged (sent with
    /// `goodbye`, or the peer's).
    pub(super) fn retire(&mut self, spi: u64, reason: CloseReason, goodbye: Option<Goodbye>) {
        let Some(established) = self.sas.get(&spi).and_then(|sa| sa.established()) else {
            return;
        };
        let (id, children) = (established.peer.clone(), established.children.clone());
        for child in children {
            self.child_down(&id, child, reason);
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.sas.retain(|other| *other != spi);
        }
        if let Some(now) = self.now {
            self.begin_closing(spi, goodbye, now);
        }
    }

    /// Ends all of a peer's IKE SAs and CHILD_SAs.
    pub(super) fn close_all(&mut self, id: &Identity, reason: CloseReason) {
        let sas = self
            .peers
            .get(id)
            .map(|peer| peer.sas.clone())
            .unwrap_or_default();
        let any = !sas.is_empty();
        for spi in sas {
            self.retire(spi, reason, Some(Goodbye::Plain));
        }
        self.orphans_down(id, u64::MAX, reason);
        if any {
            self.events.push_back(Event::IkeDown {
                peer: id.clone(),
                reason,
            });
        }
    }

    /// The responder holds an IKE SA by an IKE_AUTH that this side does not want or believe.
    pub(super) fn close_after_auth(&mut self, spi: u64, goodbye: Goodbye, now: Instant) {
        if let Some(State::AuthSent(state)) = self.sas.get(&spi).map(|sa| &sa.state) {
            self.spis.remove(&state.spi_in);
        }
        self.begin_closing(spi, Some(goodbye), now);
    }

    pub(super) fn begin_closing(&mut self, spi: u64, delete: Option<Goodbye>, now: Instant) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let mut pending = None;
        let (owner, sealer, opener, rekey) = match std::mem::replace(&mut sa.state, State::Closed) {
            State::Established(state) => {
                let state = *state;
                let rekey = state.rekey.zip(Some(state.sk_d));
                pending = state.pending;
                (state.peer, state.sealer, state.opener, rekey)
            }
            State::AuthSent(state) => {
                let keys = state.negotiated.keys;
                (state.peer, keys.sealer, keys.opener, None)
            }
            other => return sa.state = other,
        };
        let candidate = rekey.as_ref().and_then(|(rekey, _)| rekey.candidate());
        let spi_in = rekey.as_ref().and_then(|(rekey, _)| rekey.spi_in());
        sa.state = State::Closing(Box::new(Closing {
            sealer,
            opener,
            delete,
            successor: None,
            rekey: rekey.filter(|(rekey, _)| matches!(rekey.what, What::Ike { .. })),
        }));
        // What the peer may have made its own already is told to be gone.
        let orphan = candidate.filter(|_| delete.is_some());
        self.drop_rekey(spi_in, candidate.filter(|_| delete.is_none()));
        if let Some(orphan) = orphan {
            self.begin_closing(orphan, delete, now);
        }
        self.free_pending(pending.as_deref());
        self.timers.cancel(&Timer::Pending(spi));
        self.timers.cancel(&Timer::Liveness(spi));
        self.timers.cancel(&Timer::Drain(spi));
        self.timers.cancel(&Timer::RekeyIke(spi));
        if delete.is_none() {
            self.timers
                .set(Timer::Expire(spi), now + limits::CLOSED_LINGER);
        }
        self.linger(Some(owner), spi);
        self.say_goodbye(spi, now);
    }

    /// Sends the DELETE that a closing IKE SA still owes, once the window is free.
    pub(super) fn say_goodbye(&mut self, spi: u64, now: Instant) {
        let Some(State::Closing(closing)) = self.sas.get(&spi).map(|sa| &sa.state) else {
            return;
        };
        let delete = Payload::Delete(Delete::Ike);
        let failed = Payload::Notify(Notify::new(NotifyType::AuthenticationFailed, &[]));
        let sent = match closing.delete {
            None => return,
            Some(Goodbye::Plain) => self.request(spi, Request::Delete, &[delete], now),
            Some(Goodbye::AuthenticationFailed) => {
                self.request(spi, Request::Delete, &[failed, delete], now)
            }
        };
        if let Some(State::Closing(closing)) = self.sas.get_mut(&spi).map(|sa| &mut sa.state) {
            closing.delete = closing.delete.filter(|_| !sent);
        }
    }

    /// The peer deleted the IKE SA; the answer is sent and stays for a while.
    pub(super) fn closed_by_peer(&mut self, spi: u64, now: Instant) {
        self.inherit_before_delete(spi, now);
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let state = std::mem::replace(&mut sa.state, State::Closed);
        self.timers.cancel_sa(spi);
        self.timers
            .set(Timer::Expire(spi), now + limits::CLOSED_LINGER);
        let State::Established(established) = state else {
            return;
        };
        self.linger(Some(established.peer.clone()), spi);
        self.drop_rekey_of(established.rekey.as_deref());
        self.free_pending(established.pending.as_deref());
        if established.candidate_of.is_some() {
            return;
        }
        let (id, order) = (established.peer, established.order);
        let listed = self.is_listed(&id, spi);
        let superseded = self.leave_peer(&id, spi, order);
        let reason = if superseded {
            CloseReason::Replaced
        } else {
            CloseReason::Peer
        };
        for child in &established.children {
            self.child_down(&id, *child, reason);
        }
        // What the peer had before this one it has no more either.
        self.orphans_down(&id, order, reason);
        if listed {
            self.after_loss(&id, CloseReason::Peer, now);
        }
        self.handshake_gone(spi, &id, now);
    }

    /// It is one of the IKE SAs in use with this peer.
    pub(super) fn is_listed(&self, id: &Identity, spi: u64) -> bool {
        let peer = self.peers.get(id);
        peer.is_some_and(|peer| peer.sas.contains(&spi))
    }

    /// Takes an IKE SA from its peer's list; returns whether a newer one is there.
    pub(super) fn leave_peer(&mut self, id: &Identity, spi: u64, order: u64) -> bool {
        let Some(peer) = self.peers.get_mut(id) else {
            return false;
        };
        peer.sas.retain(|other| *other != spi);
        let order_of = |spi: &u64| {
            self.sas
                .get(spi)
                .and_then(|sa| sa.established())
                .map(|sa| sa.order)
        };
        peer.sas
            .iter()
            .filter_map(order_of)
            .any(|other| other > order)
    }

    /// An IKE SA of a peer is gone without this node having asked for it.
    pub(super) fn after_loss(&mut self, id: &Identity, reason: CloseReason, now: Instant) {
        if self.peers.get(id).is_some_and(|peer| peer.sas.is_empty()) {
            self.events.push_back(Event::IkeDown {
                peer: id.clone(),
                reason,
            });
        }
        self.talkative.insert(id.clone());
        self.schedule(id, now);
    }

    /// The peer deleted CHILD_SAs. An IKE SA without any is of no use in a mesh.
    pub(super) fn children_deleted_by_peer(&mut self, spi: u64, gone: &[ChildRef], now: Instant) {
        let Some(established) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) else {
            return;
        };
        established.children.retain(|child| !gone.contains(child));
        let (id, order, empty) = (
            established.peer.clone(),
            established.order,
            established.children.is_empty(),
        );
        for child in gone {
            // Its successor, or the other one of a collision, is there.
            let reason = match self.has_child(spi, child.id) {
                true => CloseReason::Replaced,
                false => CloseReason::Peer,
            };
            self.child_down(&id, *child, reason);
        }
        self.rearm(spi, now);
        self.schedule_children(spi, now);
        self.close_if_childless(spi, now);
        if empty {
            self.orphans_down(&id, order, CloseReason::Peer);
        }
    }

    /// An IKE SA whose last CHILD_SA the peer deleted goes, unless the answer to this end's own rekey may bring another: a peer
    /// that deletes what it has granted a successor for may be faster than its answer.
    pub(super) fn close_if_childless(&mut self, spi: u64, now: Instant) {
        let Some(established) = self.sas.get(&spi).and_then(|sa| sa.established()) else {
            return;
        };
        let id = established.peer.clone();
        if self.is_listed(&id, spi)
            && established.children.is_empty()
            && established.rekey.is_none()
        {
            self.retire(spi, CloseReason::Peer, Some(Goodbye::Plain));
            self.after_loss(&id, CloseReason::Peer, now);
        }
    }

    /// The peer does not answer: the IKE SA goes, its CHILD_SAs may still carry traffic and stay until they are replaced.
    pub(super) fn timed_out(&mut self, spi: u64, now: Instant) {
        let Some(State::Established(established)) = self.sas.remove(&spi).map(|sa| sa.state) else {
            return;
        };
        self.timers.cancel_sa(spi);
        tracing::warn!(peer = %established.peer, "no answer on the IKE SA: it is dropped, its CHILD_SAs stay");
        self.lost(spi, *established, now);
    }

    /// One end told the other INVALID_SYNTAX: both drop the IKE SA without another word (RFC 7296 §2.21.3). What it made stays
    /// until it is replaced, as the rule is for everything but a DELETE. The answer stays for repetitions.
    pub(super) fn broken_off(&mut self, spi: u64, now: Instant) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let state = std::mem::replace(&mut sa.state, State::Closed);
        self.timers.cancel_sa(spi);
        self.timers
            .set(Timer::Expire(spi), now + limits::CLOSED_LINGER);
        if let State::Established(established) = state {
            self.linger(Some(established.peer.clone()), spi);
            tracing::warn!(peer = %established.peer, "malformed message on the IKE SA: it is dropped, its CHILD_SAs stay");
            self.lost(spi, *established, now);
        }
    }

    /// An IKE SA is gone without a DELETE.
    fn lost(&mut self, spi: u64, established: Established, now: Instant) {
        self.drop_rekey_of(established.rekey.as_deref());
        self.free_pending(established.pending.as_deref());
        let id = established.peer;
        if !self.is_listed(&id, spi) {
            return self.handshake_gone(spi, &id, now);
        }
        self.leave_peer(&id, spi, established.order);
        let elsewhere = self.speaks_elsewhere(&id, now);
        for child in established.children {
            // Nobody uses one that the peer never showed to have, while it speaks on another.
            if elsewhere && !established.proven && !established.heir {
                self.child_down(&id, child, CloseReason::Replaced);
            } else if let Some(peer) = self.peers.get_mut(&id) {
                peer.orphans.push((established.order, child));
            }
        }
        self.bound_orphans(&id);
        self.after_loss(&id, CloseReason::Timeout, now);
    }

    /// The peer was heard lately, on what is left of its IKE SAs or by ESP.
    fn speaks_elsewhere(&self, id: &Identity, now: Instant) -> bool {
        let Some(peer) = self.peers.get(id) else {
            return false;
        };
        let lately = |heard: Instant| heard + limits::DPD_IDLE * 2 > now;
        let mut others = peer.sas.iter().filter_map(|spi| self.sas.get(spi));
        others.any(|sa| lately(sa.heard.max(peer.traffic.unwrap_or(sa.heard))))
    }

    fn bound_orphans(&mut self, id: &Identity) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let most = limits::ORPHANS_PER_PEER * peer.kinds();
        let excess = peer.orphans.len().saturating_sub(most);
        let oldest: Vec<ChildRef> = peer
            .orphans
            .drain(..excess)
            .map(|(_, child)| child)
            .collect();
        for child in oldest {
            self.child_down(id, child, CloseReason::Replaced);
        }
    }

    /// Half-open, childless or closed for long enough.
    pub(super) fn expire(&mut self, spi: u64, now: Instant) {
        let id = self.peer_of(spi);
        self.forget(spi);
        if let Some(id) = id {
            self.handshake_gone(spi, &id, now);
        }
    }

    /// Removes an IKE SA that has no CHILD_SA, with everything that points at it.
    pub(super) fn forget(&mut self, spi: u64) {
        self.leave_half_open(spi);
        self.timers.cancel_sa(spi);
        match self.sas.remove(&spi).map(|sa| sa.state) {
            Some(State::AuthSent(state)) => {
                self.spis.remove(&state.spi_in);
            }
            Some(State::Established(state)) => self.drop_rekey_of(state.rekey.as_deref()),
            _ => {}
        }
    }
}
