//! From a verified IKE_AUTH to an IKE SA in use.

use std::time::Instant;

use super::{Connect, Endpoint};
use crate::config::Identity;
use crate::event::{ChildSa, CloseReason, Event, Role};
use crate::limits;
use crate::sa::{ChildRef, Established, Goodbye, Negotiated, State};
use crate::timers::Timer;

impl Endpoint {
    /// The responder answered: it has the IKE SA and has installed the CHILD_SA.
    pub(super) fn establish_initiator(
        &mut self,
        spi: u64,
        mut child: ChildSa,
        announcement: Option<Vec<u8>>,
        now: Instant,
    ) {
        let sent = self.take_state(spi).and_then(|state| match state {
            State::AuthSent(state) => Some(*state),
            _ => None,
        });
        let Some(state) = sent else {
            return;
        };
        let (id, mesh) = (state.peer, state.negotiated.mesh);
        child.volume = self.draw_volume(&id, child.esn);
        let established = self.established(&id, state.negotiated, &child, true);
        self.install(spi, &id, established, child, announcement, now);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.attempt = peer.attempt.filter(|attempt| *attempt != spi);
            // Tells the responder that this end is ready, too.
            peer.pending = mesh;
        }
        if !mesh {
            self.confirm(spi, now);
        }
    }

    /// The initiator is authenticated; whether it gets the answer is not known yet.
    pub(super) fn establish_responder(
        &mut self,
        spi: u64,
        id: &Identity,
        mut child: ChildSa,
        announcement: Option<Vec<u8>>,
        now: Instant,
    ) {
        let half = self.take_state(spi).and_then(|state| match state {
            State::HalfOpen(state) => Some(*state),
            _ => None,
        });
        let Some(state) = half else {
            return;
        };
        let mesh = state.negotiated.mesh;
        child.volume = self.draw_volume(id, child.esn);
        let mut established = self.established(id, state.negotiated, &child, false);
        established.carried = self
            .peers
            .get(id)
            .filter(|_| mesh)
            .map(|peer| peer.announcement.clone());
        self.install(spi, id, established, child, announcement, now);
    }

    /// An IKE SA without CHILD_SA is no use in a mesh: it waits for the initiator's CREATE_CHILD_SA or DELETE, and not for long.
    pub(super) fn establish_childless(&mut self, spi: u64, id: &Identity, now: Instant) {
        if let Some(State::HalfOpen(state)) = self.take_state(spi) {
            let established = self.new_established(id, state.negotiated, Vec::new(), false);
            if let Some(sa) = self.sas.get_mut(&spi) {
                sa.state = State::Established(Box::new(established));
            }
            self.timers
                .set(Timer::Expire(spi), now + limits::CHILDLESS_LINGER);
            self.linger(Some(id.clone()), spi);
        }
    }

    pub(super) fn take_state(&mut self, spi: u64) -> Option<State> {
        self.sas
            .get_mut(&spi)
            .map(|sa| std::mem::replace(&mut sa.state, State::Closed))
    }

    fn established(
        &mut self,
        id: &Identity,
        negotiated: Negotiated,
        child: &ChildSa,
        proven: bool,
    ) -> Established {
        let children = vec![ChildRef::new(child, None)];
        self.new_established(id, negotiated, children, proven)
    }

    pub(super) fn new_established(
        &mut self,
        id: &Identity,
        negotiated: Negotiated,
        children: Vec<ChildRef>,
        proven: bool,
    ) -> Established {
        self.order += 1;
        let kem = negotiated.chosen.kem.is_some();
        let Negotiated { keys, mesh, .. } = negotiated;
        Established {
            peer: id.clone(),
            sealer: keys.sealer,
            opener: keys.opener,
            sk_d: keys.sk_d,
            mesh,
            children,
            order: self.order,
            proven,
            confirmed: false,
            carried: None,
            silent: false,
            rekey: None,
            pending: None,
            kem,
            deletes: Vec::new(),
            reauth: crate::sa::Reauth::default(),
            heir: false,
            candidate_of: None,
        }
    }

    /// Makes it the newest IKE SA of its peer and tells the driver.
    fn install(
        &mut self,
        spi: u64,
        id: &Identity,
        established: Established,
        mut child: ChildSa,
        announcement: Option<Vec<u8>>,
        now: Instant,
    ) {
        let Some(sa) = self
            .sas
            .get_mut(&spi)
            .filter(|_| self.peers.contains_key(id))
        else {
            return;
        };
        child.udp_encapsulation = sa.encapsulation_of(child.encapsulation);
        sa.state = State::Established(Box::new(established));
        self.enlist(spi, id, now);
        self.start_child_lifetime(id, child.spi_in, now);
        let (spi_in, spi_out) = (
            format_args!("{:08x}", child.spi_in),
            format_args!("{:08x}", child.spi_out),
        );
        tracing::info!(peer = %id, role = ?child.role, %spi_in, %spi_out, "IKE SA and CHILD_SA established");
        self.events.push_back(Event::ChildUp {
            peer: id.clone(),
            child: Box::new(child),
            announcement,
        });
        self.bound_sas(id);
        self.schedule_children(spi, now);
    }

    /// It is the newest IKE SA of its peer from now on.
    pub(super) fn enlist(&mut self, spi: u64, id: &Identity, now: Instant) {
        let (Some(sa), Some(peer)) = (self.sas.get(&spi), self.peers.get_mut(id)) else {
            return;
        };
        let (role, took) = (sa.role, now.saturating_duration_since(sa.started));
        peer.sas.push(spi);
        peer.failures = 0;
        peer.renew = false;
        peer.wanted = peer.wanted.map(|_| Connect::Policy);
        self.timers.cancel(&Timer::Expire(spi));
        self.timers.cancel(&Timer::Connect(id.clone()));
        self.timers
            .set(Timer::Liveness(spi), now + limits::DPD_IDLE);
        self.start_auth_lifetime(id, spi, now);
        self.start_ike_lifetime(id, spi, now);
        self.talkative.insert(id.clone());
        self.events.push_back(Event::IkeUp {
            peer: id.clone(),
            took,
            role,
        });
    }

    /// A peer that makes IKE SAs without ever confirming one loses the oldest.
    pub(super) fn bound_sas(&mut self, id: &Identity) {
        while let Some(oldest) = self
            .peers
            .get(id)
            .filter(|peer| peer.sas.len() > limits::IKE_SAS_PER_PEER)
        {
            let Some(oldest) = oldest.sas.first().copied() else {
                return;
            };
            self.retire(oldest, CloseReason::Replaced, Some(Goodbye::Plain));
        }
    }

    /// The peer is known to have this IKE SA. What the IKE_AUTH response carried has arrived.
    pub(super) fn prove(&mut self, spi: u64) {
        let Some(established) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) else {
            return;
        };
        established.proven = true;
        let (id, carried) = (established.peer.clone(), established.carried.take());
        self.talkative.insert(id.clone());
        let (Some(peer), Some(data)) = (self.peers.get_mut(&id), carried) else {
            return;
        };
        if data == peer.announcement {
            peer.pending = false;
        }
        self.events
            .push_back(Event::AnnouncementAcked { peer: id, data });
    }

    /// The CHILD_SA of this IKE SA is in use: what is older goes after [`limits::DRAIN`].
    pub(super) fn confirm(&mut self, spi: u64, now: Instant) {
        let established = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut());
        let unconfirmed = |sa: &&mut Established| !sa.confirmed && !sa.children.is_empty();
        let Some(established) = established.filter(unconfirmed) else {
            return;
        };
        established.confirmed = true;
        let (id, order) = (established.peer.clone(), established.order);
        let replaces = self.peers.get(&id).is_some_and(|peer| {
            peer.sas.first() != Some(&spi) || peer.orphans.iter().any(|(age, _)| *age < order)
        });
        if replaces {
            self.timers.set(Timer::Drain(spi), now + limits::DRAIN);
        }
    }

    /// A verified answer on an established IKE SA: the peer has it, whoever began it.
    pub(super) fn heard_answer(&mut self, spi: u64) {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        if established.is_some_and(|established| !established.proven) {
            self.prove(spi);
        }
    }

    /// A request of the initiator, verified with this IKE SA's keys.
    pub(super) fn heard_request(&mut self, spi: u64, now: Instant) {
        // With a window of 1 it has the answer to its last request, and what that made.
        let established = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut());
        let children = established.into_iter().flat_map(|sa| &mut sa.children);
        children.for_each(|child| {
            child.known = true;
            if child.role == Role::Responder {
                child.ready.get_or_insert(now);
            }
        });
        let Some(sa) = self.sas.get(&spi).filter(|sa| sa.role == Role::Responder) else {
            return;
        };
        let Some((proven, mesh)) = sa
            .established()
            .map(|established| (established.proven, established.mesh))
        else {
            return;
        };
        if !proven {
            self.prove(spi);
        }
        // A peer without our announcements shows by this alone that it has the CHILD_SA.
        if !mesh {
            self.confirm(spi, now);
        }
    }
}
