//! What goes on under an established IKE SA (RFC 7296 §1.4, §2.4): DELETE, liveness, announcements, retransmissions.

use std::time::Instant;

use super::Endpoint;
use super::lifetime::delete_payloads;
use super::receive::Received;
use crate::config::Identity;
use crate::error::Failure;
use crate::event::{CloseReason, Event, Role};
use crate::exchange::{Request, Retry};
use crate::limits;
use crate::sa::{ChildRef, Opened, State, notify};
use crate::timers::Timer;
use crate::wire::{Delete, ExchangeType, Notify, NotifyType, Payload};

/// An announcement to send.
pub(super) fn announcement(data: &[u8]) -> Payload<'_> {
    Payload::Notify(Notify::new(NotifyType::EspalierAnnouncement, data))
}

/// The announcement among payloads, if its length is one that it can have.
pub(super) fn announced(payloads: &[Payload<'_>]) -> Option<Vec<u8>> {
    let data = notify(payloads, NotifyType::EspalierAnnouncement)?;
    (data.len() <= limits::ANNOUNCEMENT_MAX).then(|| data.to_vec())
}

impl Endpoint {
    pub(super) fn receive_informational(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        opened: &Opened,
    ) {
        self.heard_request(spi, received.now);
        let deletes_ike =
            |payloads: &Vec<Payload<'_>>| payloads.contains(&Payload::Delete(Delete::Ike));
        if opened
            .payloads()
            .is_ok_and(|payloads| !deletes_ike(&payloads))
        {
            self.inherit_candidate(spi, received.now);
        }
        let payloads = match opened.payloads() {
            Ok(payloads) => payloads,
            Err(error) => {
                let failure = Failure::from(error);
                let data = failure.notify_data();
                return self.respond(
                    spi,
                    received,
                    &[Payload::Notify(Notify::new(failure.notify(), &data))],
                );
            }
        };
        let refused = notify(&payloads, NotifyType::AuthenticationFailed).is_some();
        if refused {
            self.refused_after_auth(spi, received);
        }
        if refused || payloads.contains(&Payload::Delete(Delete::Ike)) {
            self.respond(spi, received, &[]);
            return self.closed_by_peer(spi, received.now);
        }
        let gone = self.children_named(spi, &payloads);
        self.note_unknown(spi, &payloads);
        let reply = self.receive_addresses(spi, received, &payloads);
        let mut said: Vec<Payload<'_>> = reply.payloads().collect();
        if gone.is_empty() {
            self.respond(spi, received, &said);
        } else {
            // The other half of each pair (RFC 7296 §1.4.1).
            said.extend(delete_payloads(&gone));
            self.respond(spi, received, &said);
            self.children_deleted_by_peer(spi, &gone, received.now);
        }
        if let Some(data) = announced(&payloads) {
            self.take_announcement(spi, data);
        }
        self.note_auth_lifetime(spi, &payloads, received.now);
        self.flush_moves(spi, received.now);
    }

    /// The initiator did not believe this node's proof and says so (RFC 7296 §2.21.2).
    fn refused_after_auth(&mut self, spi: u64, received: &Received<'_>) {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        if let Some(peer) = established.map(|established| established.peer.clone()) {
            let failure = Failure::RefusedByPeer { peer: peer.clone() };
            self.handshake_failed(Some(peer), received.path, failure);
        }
    }

    /// A DELETE of a CHILD_SA that this end does not know may be about what the answer to its own rekey will bring.
    fn note_unknown(&mut self, spi: u64, payloads: &[Payload<'_>]) {
        let known: Vec<u32> = self.children(spi).iter().map(|c| c.spi_out).collect();
        let established = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut());
        let Some(rekey) = established.and_then(|sa| sa.rekey.as_mut()) else {
            return;
        };
        for payload in payloads {
            if let Payload::Delete(Delete::Child { spis, .. }) = payload {
                let room = limits::CHILDREN_PER_SA.saturating_sub(rekey.deleted.len());
                let unknown = spis.iter().filter(|spi| !known.contains(spi));
                rekey.deleted.extend(unknown.take(room));
            }
        }
    }

    /// The CHILD_SAs that a DELETE names by the peer's inbound SPIs.
    fn children_named(&self, spi: u64, payloads: &[Payload<'_>]) -> Vec<ChildRef> {
        let named = |child: &&ChildRef| {
            payloads.iter().any(|payload| match payload {
                Payload::Delete(Delete::Child { protocol, spis }) => {
                    *protocol == child.protocol() && spis.contains(&child.spi_out)
                }
                _ => false,
            })
        };
        self.children(spi).iter().filter(named).copied().collect()
    }

    /// Older than an IKE SA that both ends are known to have, it could overtake a newer one and is not news.
    fn take_announcement(&mut self, spi: u64, data: Vec<u8>) {
        let Some(established) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) else {
            return;
        };
        established.silent = false;
        self.talkative.insert(established.peer.clone());
        let Some(established) = self.sas.get(&spi).and_then(|sa| sa.established()) else {
            return;
        };
        let Some(peer) = self
            .peers
            .get(&established.peer)
            .filter(|_| established.mesh)
        else {
            return;
        };
        let newer = |other: &u64| {
            let other = self.sas.get(other).and_then(|sa| sa.established());
            other.is_some_and(|other| other.proven && other.order > established.order)
        };
        if !peer.sas.iter().any(newer) {
            self.events.push_back(Event::Announcement {
                peer: established.peer.clone(),
                data,
            });
        }
    }

    /// Answers a verified request, and keeps the answer for its retransmissions.
    pub(super) fn respond(&mut self, spi: u64, received: &Received<'_>, payloads: &[Payload<'_>]) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let header = sa.header(received.header.exchange, true, received.header.message_id);
        match sa.seal(&header, payloads) {
            Ok(response) => {
                let datagrams = response.datagrams.clone();
                sa.exchanges.respond(received.fingerprint, response);
                self.transmit_all(received.path, datagrams);
            }
            Err(error) => tracing::error!("response not sent: {error}"),
        }
    }

    pub(super) fn receive_informational_response(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        opened: &Opened,
    ) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let request = sa.exchanges.finish(received.header.message_id);
        let role = sa.role;
        let peer = sa.established().map(|established| established.peer.clone());
        self.timers.cancel(&Timer::Retransmit(spi));
        if request == Some(Request::Delete) {
            return self.forget(spi);
        }
        self.flush_deletes(spi, received.now);
        if let (Some(request), Ok(payloads)) = (&request, opened.payloads()) {
            self.addresses_answered(spi, request, &payloads, received.now);
        }
        if let (Some(Request::Announce(data)), Some(peer)) = (request, &peer) {
            self.acknowledged(spi, peer, data, role, received.now);
        }
        match peer {
            Some(peer) => drop(self.talkative.insert(peer)),
            None => self.say_goodbye(spi, received.now),
        }
    }

    fn acknowledged(&mut self, spi: u64, id: &Identity, data: Vec<u8>, role: Role, now: Instant) {
        if let Some(peer) = self
            .peers
            .get_mut(id)
            .filter(|peer| peer.announcement == data)
        {
            peer.pending = false;
        }
        self.events.push_back(Event::AnnouncementAcked {
            peer: id.clone(),
            data,
        });
        // The responder has heard from this end after IKE_AUTH: both ends are known to be ready.
        if role == Role::Initiator {
            self.confirm(spi, now);
        }
        self.confirm_initiated(spi, now);
    }

    /// Sends the announcements that are due; called when the driver has acted on all events.
    pub(super) fn tell_peers(&mut self) {
        let Some(now) = self.now else {
            return;
        };
        for id in std::mem::take(&mut self.talkative) {
            self.tell(&id, now);
        }
    }

    /// On the newest IKE SA that the peer is known to have. Where none can be used now, a later fact brings it up again.
    fn tell(&mut self, id: &Identity, now: Instant) {
        let Some(peer) = self.peers.get(id).filter(|peer| peer.pending) else {
            return;
        };
        let usable = |spi: &&u64| {
            let established = self.sas.get(spi).and_then(|sa| sa.established());
            established.is_some_and(|sa| sa.mesh && sa.proven && !sa.awaits_heir())
        };
        let Some(spi) = peer.sas.iter().rev().find(usable).copied() else {
            return;
        };
        let silent = self.sas.get(&spi).and_then(|sa| sa.established());
        if silent.is_some_and(|sa| sa.silent) {
            return;
        }
        let data = peer.announcement.clone();
        let payloads = [announcement(&data)];
        self.request(spi, Request::Announce(data.clone()), &payloads, now);
    }

    /// Sends an INFORMATIONAL request if the window allows; returns whether it did.
    pub(super) fn request(
        &mut self,
        spi: u64,
        request: Request,
        payloads: &[Payload<'_>],
        now: Instant,
    ) -> bool {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return false;
        };
        let Some(id) = sa.exchanges.next_id() else {
            return false;
        };
        let header = sa.header(ExchangeType::Informational, false, id);
        match sa.seal(&header, payloads) {
            Ok(sealed) => self.send_request(spi, request, sealed, now),
            Err(error) => tracing::error!("request not sent: {error}"),
        }
        true
    }

    /// Silence: of IKE and of authenticated ESP. One in flight asks for an answer already.
    pub(super) fn check_liveness(&mut self, spi: u64, now: Instant) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        sa.let_go(now);
        let Some(established) = sa.established() else {
            return;
        };
        let traffic = self
            .peers
            .get(&established.peer)
            .and_then(|peer| peer.traffic);
        let silent_until = sa.heard.max(traffic.unwrap_or(sa.heard)) + limits::DPD_IDLE;
        if silent_until > now {
            return self.timers.set(Timer::Liveness(spi), silent_until);
        }
        self.ask_liveness(spi, now);
        self.timers
            .set(Timer::Liveness(spi), now + limits::DPD_IDLE);
    }

    pub(super) fn retransmit(&mut self, spi: u64, now: Instant) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let path = sa.path;
        sa.shrink_request();
        match sa.exchanges.retry(&mut *self.rng) {
            None => {}
            Some(Retry::Send(datagrams, wait)) => {
                let datagrams = datagrams.to_vec();
                self.timers.set(Timer::Retransmit(spi), now + wait);
                self.transmit_all(path, datagrams);
            }
            Some(Retry::GiveUp(_, tries)) => self.give_up(spi, tries, now),
        }
    }

    fn give_up(&mut self, spi: u64, tries: u32, now: Instant) {
        let Some(sa) = self.sas.get(&spi) else {
            return;
        };
        let remote = sa.path.remote;
        let failed = match &sa.state {
            State::Established(_) => return self.timed_out(spi, now),
            State::InitSent(state) => {
                let told = state.told.as_ref();
                let hint =
                    told.map(|told| format!(" (An answer that proves nothing came: {told}.)"));
                let (peer, hint) = (state.peer.clone(), hint.unwrap_or_default());
                Failure::NoAnswer {
                    peer,
                    remote,
                    port: remote.port(),
                    tries,
                    hint,
                }
            }
            State::IntermediateSent(state) => Failure::NoAuthAnswer {
                peer: state.peer.clone(),
                exchange: "IKE_INTERMEDIATE",
                remote,
                tries,
            },
            State::AuthSent(state) if !state.doomed => Failure::NoAuthAnswer {
                peer: state.peer.clone(),
                exchange: "IKE_AUTH",
                remote,
                tries,
            },
            _ => return self.forget(spi),
        };
        if let Failure::NoAnswer { peer, .. } | Failure::NoAuthAnswer { peer, .. } = &failed {
            let peer = peer.clone();
            self.say_again(&peer);
            self.attempt_failed(spi, &peer, failed, now);
        }
    }

    /// The IKE_AUTH that failed may have been heard and carried an older announcement than the last one acknowledged.
    pub(super) fn say_again(&mut self, id: &Identity) {
        if let Some(peer) = self.peers.get_mut(id).filter(|peer| !peer.sas.is_empty()) {
            peer.pending = true;
            self.talkative.insert(id.clone());
        }
    }

    /// Both SPIs of each of an IKE SA's CHILD_SAs.
    pub(super) fn children(&self, spi: u64) -> &[ChildRef] {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        established
            .map(|established| established.children.as_slice())
            .unwrap_or_default()
    }

    /// Emits the end of a CHILD_SA and frees its SPI.
    pub(super) fn child_down(&mut self, id: &Identity, child: ChildRef, reason: CloseReason) {
        self.spis.remove(&child.spi_in);
        self.timers.cancel_child(child.spi_in);
        let ChildRef {
            spi_in, spi_out, ..
        } = child;
        self.events.push_back(Event::ChildDown {
            peer: id.clone(),
            spi_in,
            spi_out,
            reason,
        });
    }
}
