//! IKE SAs that begin without CHILD_SA (RFC 6023): the first one follows by CREATE_CHILD_SA. Until then it is a handshake that
//! goes on: nothing is reported, it is in nobody's list, and it ends if the CHILD_SA does not come.

use std::time::Instant;

use super::Endpoint;
use crate::config::{ChildId, Identity};
use crate::error::Failure;
use crate::event::Role;
use crate::limits;
use crate::sa::{Goodbye, State, What};
use crate::timers::Timer;
use crate::wire::NotifyType;

impl Endpoint {
    /// The responder has answered IKE_AUTH: the initiator asks for the first CHILD_SA.
    pub(super) fn ask_for_first_child(&mut self, spi: u64, now: Instant) {
        let sent = self.take_state(spi).and_then(|state| match state {
            State::AuthSent(state) => Some(*state),
            _ => None,
        });
        let Some(state) = sent else {
            return;
        };
        self.spis.remove(&state.spi_in);
        let established = self.new_established(&state.peer, state.negotiated, Vec::new(), true);
        if let Some(sa) = self.sas.get_mut(&spi) {
            sa.state = State::Established(Box::new(established));
        }
        // Longer than the request is repeated, whose end is this one's.
        self.timers
            .set(Timer::Expire(spi), now + limits::REKEYED_LINGER);
        let (group, spi_in) = (self.first_group(spi), self.fresh_esp_spi());
        let id = ChildId::FIRST;
        self.begin_rekey(spi, What::New { id, spi_in }, group, 0, now);
    }

    /// This node's own handshake, established but for the first CHILD_SA.
    pub(super) fn awaits_answer(&self, spi: u64) -> bool {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        let peer = established.and_then(|sa| self.peers.get(&sa.peer));
        peer.is_some_and(|peer| peer.attempt == Some(spi))
    }

    /// A peer's handshake, established but for the first CHILD_SA.
    pub(super) fn awaits_request(&self, spi: u64) -> bool {
        let Some(sa) = self.sas.get(&spi).filter(|sa| sa.role == Role::Responder) else {
            return false;
        };
        sa.established().is_some_and(|established| {
            established.children.is_empty()
                && established.candidate_of.is_none()
                && !established.heir
                && !self.is_listed(&established.peer, spi)
        })
    }

    /// The first CHILD_SA is there: it is the newest IKE SA of its peer from now on.
    pub(super) fn enlist_with_first_child(&mut self, spi: u64, id: &Identity, now: Instant) {
        self.order += 1;
        let order = self.order;
        let role = self.sas.get(&spi).map_or(Role::Initiator, |sa| sa.role);
        let Some(established) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) else {
            return;
        };
        established.order = order;
        let mesh = established.mesh;
        // What a responder announces means that it has switched, which it does when the initiator has announced.
        established.silent = role == Role::Responder;
        self.enlist(spi, id, now);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.attempt = peer.attempt.filter(|attempt| *attempt != spi);
            // IKE_AUTH has carried nothing.
            peer.pending = mesh;
        }
    }

    pub(super) fn first_child_refused(&mut self, spi: u64, notify: NotifyType, now: Instant) {
        if let Some(peer) = self.peer_of(spi) {
            let failure = match notify {
                NotifyType::TemporaryFailure => Failure::Crossing,
                notify => Failure::Childless { peer, notify },
            };
            self.childless_failed(spi, failure, now);
        }
    }

    /// The first CHILD_SA does not come: the handshake has failed.
    pub(super) fn childless_failed(&mut self, spi: u64, failure: Failure, now: Instant) {
        let Some(id) = self.peer_of(spi) else {
            return;
        };
        self.begin_closing(spi, Some(Goodbye::Plain), now);
        self.attempt_failed(spi, &id, failure, now);
    }

    /// The IKE SA is gone in another way, and with it this node's handshake if it was one.
    pub(super) fn handshake_gone(&mut self, spi: u64, id: &Identity, now: Instant) {
        let attempt = self.peers.get(id).and_then(|peer| peer.attempt);
        if attempt == Some(spi) {
            let failure = Failure::NoFirstChild { peer: id.clone() };
            self.attempt_failed(spi, id, failure, now);
        }
    }
}
