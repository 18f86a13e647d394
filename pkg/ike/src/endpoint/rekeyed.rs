//! The responder's side of CREATE_CHILD_SA, and how a new IKE SA takes over (RFC 7296 §1.3, §2.8, §2.18, §2.25).

use std::time::Instant;

use super::Endpoint;
use super::receive::Received;
use super::rekey::missing;
use crate::child::{self, Agreed};
use crate::config::{ChildId, Identity};
use crate::crypto::{Kem, Nonces, RoleKeys, Secrets, SharedSecret, SkeySeed, Spis, kex};
use crate::error::Failure;
use crate::event::{ChildSa, Role};
use crate::exchange::Request;
use crate::limits;
use crate::sa::{ChildRef, Crossed, Goodbye, Made, Opened, PendingWhat, State, What, init};
use crate::timers::Timer;
use crate::wire::{self, Nonce, Notify, NotifyType, Payload, ProtocolId, Sa, Spi};

/// What a request that is not granted is told.
pub(super) struct Refusal {
    kind: NotifyType,
    /// Which CHILD_SA it is about, by the requester's inbound SPI.
    about: Option<(ProtocolId, u32)>,
    data: Vec<u8>,
}

impl Refusal {
    pub(super) fn new(kind: NotifyType) -> Self {
        Self {
            kind,
            about: None,
            data: Vec::new(),
        }
    }

    pub(super) fn notify(&self) -> Notify<'_> {
        let about = |(protocol, spi)| Notify::about_child(self.kind, protocol, spi);
        self.about.map_or(Notify::new(self.kind, &self.data), about)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        tracing::warn!("CREATE_CHILD_SA refused: {failure}");
        let kind = match failure.notify() {
            NotifyType::AuthenticationFailed => NotifyType::InvalidSyntax,
            kind => kind,
        };
        Self {
            data: failure.notify_data(),
            ..Self::new(kind)
        }
    }
}

/// This end's half of a key exchange that was asked for, and the nonces.
pub(super) struct Keyed<'a> {
    pub(super) nonce_i: &'a [u8],
    pub(super) nonce_r: Vec<u8>,
    public: Option<(u16, Vec<u8>)>,
    pub(super) shared: Option<SharedSecret>,
}

impl Keyed<'_> {
    fn nonces(&self) -> Nonces<'_> {
        Nonces {
            initiator: self.nonce_i,
            responder: &self.nonce_r,
        }
    }

    pub(super) fn payloads(&self) -> Vec<Payload<'_>> {
        let ke = self.public.as_ref().map(|(group, data)| {
            Payload::Ke(wire::KeyExchange {
                group: *group,
                data,
            })
        });
        let nonce = Payload::Nonce(Nonce(&self.nonce_r));
        [nonce].into_iter().chain(ke).collect()
    }

    pub(super) fn lowest(&self) -> Vec<u8> {
        self.nonce_i.min(&self.nonce_r).to_vec()
    }
}

impl Endpoint {
    pub(super) fn receive_create_child(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        opened: &Opened,
    ) {
        self.heard_request(spi, received.now);
        self.inherit_candidate(spi, received.now);
        let payloads = opened
            .payloads()
            .map_err(|error| Refusal::from(Failure::from(error)));
        let granted = payloads.and_then(|payloads| self.grant(spi, received, &payloads));
        if let Err(refusal) = granted {
            let notify = Payload::Notify(refusal.notify());
            self.respond(spi, received, &[notify]);
        }
    }

    fn grant(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        payloads: &[Payload<'_>],
    ) -> Result<(), Refusal> {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        let Some(established) = established else {
            // It is being closed (RFC 7296 §2.25.2).
            return Err(Refusal::new(NotifyType::TemporaryFailure));
        };
        if established
            .rekey
            .as_ref()
            .is_some_and(|own| own.followup.is_some())
        {
            // Half of this end's own is done already (RFC 9370 §2.2.4).
            return Err(Refusal::new(NotifyType::TemporaryFailure));
        }
        let newest = self.newest_sa(&established.peer) == Some(spi);
        let childless = established.children.is_empty();
        // The peer has given up what it has not completed.
        self.drop_pending(spi);
        let rekeyed = payloads.iter().find_map(|payload| match payload {
            Payload::Notify(notify) if notify.kind == NotifyType::RekeySa => Some(notify),
            _ => None,
        });
        let rekeyed = rekeyed.map(|notify| (notify.protocol, &notify.spi));
        let sa = payloads.iter().find_map(|payload| match payload {
            Payload::Sa(sa) => Some(sa),
            _ => None,
        });
        let sa = sa.ok_or_else(|| missing("SA payload"))?;
        let is_ike = |sa: &Sa| sa.proposals.iter().any(|p| p.protocol == ProtocolId::Ike);
        match rekeyed {
            Some((protocol, Spi::Child(old))) if newest => {
                self.each_way(spi, payloads, |endpoint, payloads, kem| {
                    endpoint.grant_child(spi, received, payloads, (protocol, *old), kem)
                })
            }
            None if is_ike(sa) && newest => self.grant_ike(spi, received, payloads, sa),
            Some((_, Spi::Child(_))) => Err(Refusal::new(NotifyType::TemporaryFailure)),
            None if is_ike(sa) && !childless => Err(Refusal::new(NotifyType::TemporaryFailure)),
            None if !is_ike(sa) && (newest || self.awaits_request(spi)) => {
                self.each_way(spi, payloads, |endpoint, payloads, kem| {
                    endpoint.grant_new(spi, received, payloads, kem)
                })
            }
            // Not under an IKE SA that is being replaced (RFC 7296 §1.3).
            _ => Err(Refusal::new(NotifyType::NoAdditionalSas)),
        }
    }

    /// Tries to grant a request with an additional key exchange, without, or both, as the policy wants it.
    fn each_way(
        &mut self,
        spi: u64,
        payloads: &[Payload<'_>],
        mut grant: impl FnMut(&mut Self, &[Payload<'_>], Option<Kem>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let policy = self.rekey_policy(spi);
        let mut refused = Refusal::new(NotifyType::NoProposalChosen);
        for with_kem in policy.post_quantum.ways() {
            let offered = child::with_kem(payloads, &policy.kems).filter(|_| *with_kem);
            let granted = match (with_kem, offered) {
                (true, Some((payloads, kem))) => grant(self, &payloads, Some(kem)),
                (true, None) => continue,
                (false, _) => grant(self, payloads, None),
            };
            match granted {
                Err(refusal) if refusal.kind == NotifyType::NoProposalChosen => refused = refusal,
                granted => return granted,
            }
        }
        Err(refused)
    }

    /// `named`: protocol and the requester's inbound SPI.
    fn grant_child(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        payloads: &[Payload<'_>],
        named: (ProtocolId, u32),
        kem: Option<Kem>,
    ) -> Result<(), Refusal> {
        let old = self.find_rekeyed(spi, named)?;
        let refused = || Refusal::new(NotifyType::NoProposalChosen);
        let config = self.child_config(spi, old.id).ok_or_else(refused)?;
        let id = self.peer_of(spi).ok_or_else(|| missing("peer"))?;
        let heard = child::Heard::read(payloads)?;
        let agreed = child::accept(&id, &config, &heard)?;
        let (made, nonce) =
            self.make_child(spi, received, payloads, (old.id, Some(&old)), agreed, kem)?;
        let same = |what| matches!(what, What::Child { old: own, .. } if own == old.spi_in);
        self.note_crossing(spi, same, nonce, made);
        Ok(())
    }

    /// Answers with a CHILD_SA, the successor of `old` where there is one. Returns what came of it and the lower nonce.
    pub(super) fn make_child(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        payloads: &[Payload<'_>],
        (child, old): (ChildId, Option<&ChildRef>),
        agreed: Agreed,
        kem: Option<Kem>,
    ) -> Result<(Made, Vec<u8>), Refusal> {
        let id = self.peer_of(spi).ok_or_else(|| missing("peer"))?;
        self.check_spi_out(spi, agreed.chosen.spi)?;
        let ke = key_exchange(payloads);
        let required = self.config.rekeying.require_pfs;
        let refused = || Refusal::new(NotifyType::NoProposalChosen);
        let (sa, method) = (find_sa(payloads)?, ke.map(|ke| ke.group));
        let allowed = &self.policy_of(spi).groups;
        let group = child::choose_group(sa, agreed.chosen.number, allowed, method, required);
        let group = group.filter(|group| kem.is_none() || group.is_some());
        let group = group.ok_or_else(refused)?;
        let keyed = self.key(payloads, group)?;
        let spi_in = self.fresh_esp_spi();
        let old = old.map(|old| old.spi_in);
        let mut said = agreed.payloads(spi_in);
        child::answer_exchanges(&mut said, group, kem);
        if let Some(kem) = kem {
            let what = PendingWhat::Child {
                id: child,
                old,
                agreed,
                spi_in,
            };
            return self.answer_pending(spi, received, said, keyed, (kem, what));
        }
        let keyed_child = self.key_child(spi, (child, spi_in), agreed.clone(), &keyed);
        let child = keyed_child.inspect_err(|_| {
            self.spis.remove(&spi_in);
        })?;
        let said: Vec<Payload<'_>> = said.into_iter().chain(keyed.payloads()).collect();
        self.respond(spi, received, &said);
        self.install_child(spi, &id, child, old, received.now);
        Ok((Made::Child(spi_in), keyed.lowest()))
    }

    /// The peer of an established IKE SA.
    pub(super) fn peer_of(&self, spi: u64) -> Option<Identity> {
        let established = self.sas.get(&spi)?.established()?;
        Some(established.peer.clone())
    }

    fn key_child(
        &self,
        spi: u64,
        (id, spi_in): (ChildId, u32),
        agreed: Agreed,
        keyed: &Keyed<'_>,
    ) -> Result<ChildSa, Failure> {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        let sk_d = &established.ok_or_else(|| missing("IKE SA"))?.sk_d;
        let secrets = Secrets {
            shared: keyed.shared.as_ref(),
            additional: None,
        };
        Ok(agreed.key(id, spi_in, Role::Responder, sk_d, keyed.nonces(), secrets)?)
    }

    /// The CHILD_SA that a request names, if it may be rekeyed now (RFC 7296 §2.25.1).
    fn find_rekeyed(&self, spi: u64, named: (ProtocolId, u32)) -> Result<ChildRef, Refusal> {
        let later = || Refusal::new(NotifyType::TemporaryFailure);
        let sa = self.sas.get(&spi).ok_or_else(later)?;
        let established = sa.established().ok_or_else(later)?;
        let is_named = |child: &&ChildRef| (child.protocol(), child.spi_out) == named;
        if let Some(child) = established.children.iter().find(is_named) {
            let replaced = self.is_replaced(spi, child.spi_in);
            let many = self.has_many(spi, child.id);
            if replaced || many || established.rekeys_ike() {
                return Err(later());
            }
            return Ok(*child);
        }
        let going = match sa.exchanges.pending() {
            Some(Request::DeleteChildren(children)) => children.as_slice(),
            _ => &[],
        };
        if going
            .iter()
            .chain(&established.deletes)
            .any(|child| (child.protocol(), child.spi_out) == named)
        {
            return Err(later());
        }
        Err(Refusal {
            about: Some(named),
            ..Refusal::new(NotifyType::ChildSaNotFound)
        })
    }

    fn grant_ike(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        payloads: &[Payload<'_>],
        sa: &Sa,
    ) -> Result<(), Refusal> {
        if self.is_busy(spi) {
            return Err(Refusal::new(NotifyType::TemporaryFailure));
        }
        let (remote, sa) = init::take_spi(sa.clone()).ok_or_else(|| missing("SPI"))?;
        let ke = key_exchange(payloads).ok_or_else(|| missing("KE payload"))?;
        let policy = self.rekey_policy(spi);
        let refused = || Failure::NoIkeProposal {
            offered: init::describe(&sa),
            own: init::describe(&init::offer(&policy)),
        };
        let chosen = init::choose(&sa, &policy, ke.group, true).ok_or_else(refused)?;
        let keyed = self.key(payloads, Some(chosen.group))?;
        let fresh = self.fresh_ike_spi();
        let answer = Payload::Sa(init::with_spi(chosen.answer(), fresh));
        let own = |what| matches!(what, What::Ike { .. });
        if let Some(kem) = chosen.kem {
            let what = PendingWhat::Ike {
                spi: fresh,
                remote,
                chosen,
            };
            let (made, nonce) =
                self.answer_pending(spi, received, vec![answer], keyed, (kem, what))?;
            self.note_crossing(spi, own, nonce, made);
            return Ok(());
        }
        let spis = Spis {
            initiator: remote,
            responder: fresh,
        };
        let keys = self.key_ike(spi, chosen, &keyed, spis)?;
        let said: Vec<Payload<'_>> = [answer].into_iter().chain(keyed.payloads()).collect();
        self.respond(spi, received, &said);
        self.add_heir(spi, fresh, remote, Role::Responder, keys, received.now);
        if !self.note_crossing(spi, own, keyed.lowest(), Made::Ike(fresh)) {
            self.inherit(spi, fresh, None, received.now);
        }
        Ok(())
    }

    fn key_ike(
        &self,
        spi: u64,
        chosen: init::Chosen,
        keyed: &Keyed<'_>,
        spis: Spis,
    ) -> Result<RoleKeys, Failure> {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        let sk_d = &established.ok_or_else(|| missing("IKE SA"))?.sk_d;
        let shared = keyed.shared.as_ref().ok_or_else(|| missing("KE payload"))?;
        let seed = SkeySeed::rekey(sk_d, chosen.suite, keyed.nonces(), Secrets::one(shared));
        Ok(seed
            .into_keys(keyed.nonces(), spis)?
            .for_role(Role::Responder)?)
    }

    /// CHILD_SAs are being made, moved or deleted by this end, or something is being said that must not be lost.
    pub(super) fn is_busy(&self, spi: u64) -> bool {
        let Some(sa) = self.sas.get(&spi) else {
            return true;
        };
        let Some(established) = sa.established() else {
            return true;
        };
        let crossable = established
            .rekey
            .as_ref()
            .is_none_or(|rekey| matches!(rekey.what, What::Ike { .. }) && rekey.crossed.is_none());
        let idle = matches!(
            sa.exchanges.pending(),
            None | Some(Request::Liveness | Request::Rekey)
        );
        !(crossable && idle && established.deletes.is_empty())
    }

    /// This end's half of the key exchange with `group`, or INVALID_KE_PAYLOAD.
    fn key<'a>(
        &mut self,
        payloads: &[Payload<'a>],
        group: Option<crate::crypto::KexGroup>,
    ) -> Result<Keyed<'a>, Refusal> {
        let nonce_i = init::nonce(payloads).ok_or_else(|| missing("nonce"))?;
        let nonce_r = self.fresh_nonce();
        let mut keyed = Keyed {
            nonce_i,
            nonce_r,
            public: None,
            shared: None,
        };
        if let Some(group) = group {
            let wanted = group.transform_id();
            let ke = key_exchange(payloads).filter(|ke| ke.group == wanted);
            let ke = ke.ok_or_else(|| Refusal {
                data: wanted.to_be_bytes().to_vec(),
                ..Refusal::new(NotifyType::InvalidKePayload)
            })?;
            let answer = kex::respond(group, ke.data, &mut *self.rng);
            let (public, shared) = answer.map_err(Failure::from)?;
            (keyed.public, keyed.shared) = (Some((wanted, public)), Some(shared));
        }
        Ok(keyed)
    }

    /// Remembers what the peer's request made if this end has asked for the same; returns whether it has.
    fn note_crossing(
        &mut self,
        spi: u64,
        same: impl FnOnce(What) -> bool,
        nonce: Vec<u8>,
        made: Made,
    ) -> bool {
        let established = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut());
        let Some(rekey) = established.and_then(|sa| sa.rekey.as_mut()) else {
            return false;
        };
        let crosses = same(rekey.what);
        if crosses {
            rekey.crossed = Some(Crossed { nonce, made });
        }
        crosses
    }

    /// The new IKE SA `new` takes the place of `old`, with all CHILD_SAs. With `goodbye` this end deletes the old one.
    pub(super) fn inherit(&mut self, old: u64, new: u64, goodbye: Option<Goodbye>, now: Instant) {
        if !self.is_heir(new) {
            return;
        }
        let Some(prior) = self.sas.get_mut(&old).and_then(|sa| sa.established_mut()) else {
            return self.begin_closing(new, Some(Goodbye::Plain), now);
        };
        if let Some(rekey) = &mut prior.rekey {
            rekey.crossed = None;
        }
        let (children, deletes) = (
            std::mem::take(&mut prior.children),
            std::mem::take(&mut prior.deletes),
        );
        let (id, confirmed) = (prior.peer.clone(), prior.confirmed);
        let Some(heir) = self.sas.get_mut(&new).and_then(|sa| sa.established_mut()) else {
            return tracing::error!("the new IKE SA of a rekey is gone");
        };
        (heir.children, heir.deletes) = (children, deletes);
        (heir.confirmed, heir.candidate_of) = (confirmed, None);
        if let Some(peer) = self.peers.get_mut(&id) {
            let places = peer.sas.iter_mut().filter(|spi| **spi == old);
            places.for_each(|spi| *spi = new);
        }
        self.inherit_path(old, new);
        self.move_timers(&id, old, new, now);
        tracing::info!(peer = %id, "IKE SA rekeyed");
        self.begin_closing(old, goodbye, now);
        if goodbye.is_none() {
            let patience = now + limits::REKEYED_LINGER;
            self.timers.set(Timer::Expire(old), patience);
        }
        if let Some(State::Closing(closing)) = self.sas.get_mut(&old).map(|sa| &mut sa.state) {
            closing.successor = Some(new);
        }
        self.flush_deletes(new, now);
        self.flush_moves(new, now);
        self.schedule_children(new, now);
        self.talkative.insert(id);
    }

    /// An IKE SA that a rekey made and that waits for its CHILD_SAs; it may have been deleted meanwhile.
    pub(super) fn is_heir(&self, spi: u64) -> bool {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        established.is_some_and(|sa| sa.candidate_of.is_some())
    }

    fn move_timers(&mut self, id: &Identity, old: u64, new: u64, now: Instant) {
        self.timers.cancel(&Timer::Expire(new));
        if let Some(at) = self.timers.take(&Timer::Drain(old)) {
            self.timers.set(Timer::Drain(new), at);
        }
        let silence = now + limits::DPD_IDLE;
        self.timers.set(Timer::Liveness(new), silence);
        self.start_ike_lifetime(id, new, now);
    }

    /// The peer speaks on the new IKE SA that its own rekey made: that one has won.
    pub(super) fn inherit_candidate(&mut self, spi: u64, now: Instant) {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        if let Some(old) = established.and_then(|sa| sa.candidate_of) {
            self.inherit(old, spi, None, now);
        }
    }

    /// The peer deletes an IKE SA that it has rekeyed: it has the new one.
    pub(super) fn inherit_before_delete(&mut self, spi: u64, now: Instant) {
        let Some(sa) = self.sas.get(&spi) else {
            return;
        };
        match &sa.state {
            State::Closing(closing) => {
                if let Some(successor) = closing.successor {
                    self.prove(successor);
                }
            }
            State::Established(established) => {
                let candidate = established
                    .rekey
                    .as_ref()
                    .and_then(|rekey| rekey.candidate());
                if let Some(candidate) = candidate.filter(|spi| self.is_heir(*spi)) {
                    self.inherit(spi, candidate, None, now);
                }
            }
            _ => {}
        }
    }
}

pub(super) fn key_exchange<'a>(payloads: &[Payload<'a>]) -> Option<wire::KeyExchange<'a>> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Ke(ke) => Some(*ke),
        _ => None,
    })
}

fn find_sa<'a>(payloads: &'a [Payload<'_>]) -> Result<&'a Sa, Failure> {
    let sa = payloads.iter().find_map(|payload| match payload {
        Payload::Sa(sa) => Some(sa),
        _ => None,
    });
    sa.ok_or_else(|| missing("SA payload"))
}
