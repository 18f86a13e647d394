//! The initiator's side of CREATE_CHILD_SA: rekeys of CHILD_SAs and of the IKE SA (RFC 7296 §1.3.2, §1.3.3, §2.8, §2.18).

use std::time::Instant;

use super::Endpoint;
use super::receive::Received;
use crate::child;
use crate::config::Identity;
use crate::crypto::{KexGroup, KeyExchange, Nonces, SharedSecret, SkD, SkeySeed, Spis};
use crate::error::Failure;
use crate::event::{ChildSa, Event, Role};
use crate::exchange::Request;
use crate::limits;
use crate::sa::init;
use crate::sa::{
    ChildRef, Established, Goodbye, IkeSa, Made, Opened, Rekey, Sealed, State, What, error_notify,
};
use crate::timers::Timer;
use crate::wire::{self, ExchangeType, Nonce, Notify, NotifyType, Payload};

impl Rekey {
    /// The new IKE SA of the peer's crossing request.
    pub(crate) fn candidate(&self) -> Option<u64> {
        match self.crossed.as_ref()?.made {
            Made::Ike(spi) => Some(spi),
            Made::Child(_) => None,
        }
    }

    /// The inbound SPI that was chosen for a new CHILD_SA.
    pub(crate) fn spi_in(&self) -> Option<u32> {
        match self.what {
            What::Child { spi_in, .. } => Some(spi_in),
            What::Ike { .. } => None,
        }
    }

    fn timer(&self, spi: u64) -> Timer {
        match self.what {
            What::Child { old, .. } => Timer::RekeyChild(old),
            What::Ike { .. } => Timer::RekeyIke(spi),
        }
    }
}

impl Endpoint {
    pub(super) fn rekey_child_due(&mut self, spi_in: u32, now: Instant) {
        let Some(spi) = self.sa_of_child(spi_in) else {
            return;
        };
        let known = self
            .find_child(spi, spi_in)
            .is_some_and(|child| child.known);
        if self.is_replaced(spi, spi_in) {
            return;
        }
        if !known || !self.may_rekey(spi) || self.children(spi).len() >= limits::CHILDREN_PER_SA {
            return self.put_off(Timer::RekeyChild(spi_in), limits::REKEY_RETRY, now);
        }
        let fresh = self.fresh_esp_spi();
        let what = What::Child {
            old: spi_in,
            spi_in: fresh,
        };
        self.begin_rekey(spi, what, KexGroup::X25519, 0, now);
    }

    pub(super) fn rekey_ike_due(&mut self, spi: u64, now: Instant) {
        if !self.may_rekey(spi) {
            return self.put_off(Timer::RekeyIke(spi), limits::REKEY_RETRY, now);
        }
        let what = What::Ike {
            spi: self.fresh_ike_spi(),
        };
        self.begin_rekey(spi, what, KexGroup::X25519, 0, now);
    }

    /// Only on the newest IKE SA of a peer, which it is known to have, and one exchange at a time.
    fn may_rekey(&self, spi: u64) -> bool {
        let Some(sa) = self.sas.get(&spi) else {
            return false;
        };
        let free = sa.exchanges.next_id().is_some();
        sa.established().is_some_and(|established| {
            let idle = established.rekey.is_none() && established.deletes.is_empty();
            free && idle && established.proven && self.newest_sa(&established.peer) == Some(spi)
        })
    }

    fn begin_rekey(&mut self, spi: u64, what: What, group: KexGroup, restarts: u32, now: Instant) {
        let nonce = self.fresh_nonce();
        let kex = match KeyExchange::generate(group, &mut *self.rng) {
            Ok(kex) => kex,
            Err(error) => return tracing::error!("rekey not started: {error}"),
        };
        let rekey = Rekey {
            what,
            kex,
            nonce,
            restarts,
            crossed: None,
        };
        match self.rekey_datagram(spi, &rekey) {
            Ok(sealed) => {
                tracing::debug!(?what, "rekey started");
                if let Some(sa) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) {
                    sa.rekey = Some(Box::new(rekey));
                }
                self.send_request(spi, Request::Rekey, sealed, now);
            }
            Err(error) => {
                tracing::error!("rekey not started: {error}");
                self.drop_rekey_of(Some(&rekey));
            }
        }
    }

    fn rekey_datagram(&mut self, spi: u64, rekey: &Rekey) -> Result<Sealed, Failure> {
        let require_pfs = self.config.rekeying.require_pfs;
        let sa = self.sas.get_mut(&spi).ok_or_else(missing_sa)?;
        let id = sa.exchanges.next_id().ok_or_else(missing_sa)?;
        let peer = sa.established().map(|sa| &sa.peer);
        let peer = peer
            .and_then(|id| self.peers.get(id))
            .ok_or_else(missing_sa)?;
        let mut payloads = match rekey.what {
            What::Child { old, spi_in } => {
                let old = Notify::about_esp(NotifyType::RekeySa, old);
                let mut payloads = vec![Payload::Notify(old)];
                payloads.extend(child::offer_payloads(&peer.config.child, spi_in));
                child::offer_groups(&mut payloads, require_pfs);
                payloads
            }
            What::Ike { spi } => vec![Payload::Sa(init::with_spi(init::offer(), spi))],
        };
        payloads.extend([
            Payload::Nonce(Nonce(&rekey.nonce)),
            Payload::Ke(wire::KeyExchange {
                group: rekey.kex.group().transform_id(),
                data: rekey.kex.public(),
            }),
        ]);
        let header = sa.header(ExchangeType::CreateChildSa, false, id);
        Ok(sa.seal(&header, &payloads)?)
    }

    pub(super) fn receive_create_child_response(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        opened: &Opened,
    ) {
        let now = received.now;
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        sa.exchanges.finish(received.header.message_id);
        self.timers.cancel(&Timer::Retransmit(spi));
        let payloads = opened.payloads().map_err(Failure::from);
        let rekey = match &mut sa.state {
            State::Established(established) => established.rekey.take(),
            State::Closing(closing) => {
                if let (Some((rekey, sk_d)), Ok(payloads)) = (closing.rekey.take(), payloads) {
                    self.bury_unborn(spi, *rekey, &sk_d, &payloads, now);
                }
                return self.say_goodbye(spi, now);
            }
            _ => None,
        };
        let Some(rekey) = rekey else {
            return;
        };
        self.rekey_answered(spi, *rekey, payloads, now);
        self.flush_deletes(spi, now);
        let peer = self.sas.get(&spi).and_then(|sa| sa.established());
        if let Some(peer) = peer.map(|sa| sa.peer.clone()) {
            self.talkative.insert(peer);
        }
    }

    fn rekey_answered(
        &mut self,
        spi: u64,
        rekey: Rekey,
        payloads: Result<Vec<Payload<'_>>, Failure>,
        now: Instant,
    ) {
        let payloads = match payloads {
            Ok(payloads) => payloads,
            Err(failure) => return self.rekey_failed(spi, rekey.timer(spi), &rekey, failure, now),
        };
        if let Some((kind, data)) = error_notify(&payloads) {
            return self.rekey_refused(spi, rekey, kind, data, now);
        }
        match rekey.what {
            What::Child { old, spi_in } => {
                self.child_rekeyed(spi, rekey, (old, spi_in), &payloads, now);
            }
            What::Ike { spi: fresh } => self.ike_rekeyed(spi, rekey, fresh, &payloads, now),
        }
    }

    fn rekey_refused(
        &mut self,
        spi: u64,
        rekey: Rekey,
        kind: NotifyType,
        data: &[u8],
        now: Instant,
    ) {
        let timer = rekey.timer(spi);
        if let Some(other) = self.other_group(&rekey, kind, data) {
            return self.begin_rekey(spi, rekey.what, other, rekey.restarts + 1, now);
        }
        if let Some(candidate) = rekey.candidate().filter(|spi| self.is_heir(*spi)) {
            // The peer's own rekey was first.
            return self.inherit(spi, candidate, None, now);
        }
        self.drop_rekey_of(Some(&rekey));
        match (kind, rekey.what) {
            (_, What::Child { old, .. }) if self.is_replaced(spi, old) => {}
            (NotifyType::TemporaryFailure, _) => self.put_off(timer, limits::REKEY_RETRY, now),
            (NotifyType::ChildSaNotFound, What::Child { old, .. }) => {
                let lost: Vec<ChildRef> = self.find_child(spi, old).into_iter().collect();
                if !lost.is_empty() {
                    tracing::warn!("the peer does not have the CHILD_SA that is to be rekeyed");
                    self.children_deleted_by_peer(spi, &lost, now);
                }
            }
            (NotifyType::NoAdditionalSas, _) => {
                self.put_off(timer, limits::REKEY_REFUSED_RETRY, now);
                self.renew(spi, now);
            }
            _ => {
                tracing::warn!(?kind, what = ?rekey.what, "the peer refused a rekey");
                self.put_off(timer, limits::REKEY_REFUSED_RETRY, now);
            }
        }
    }

    /// INVALID_KE_PAYLOAD: the peer wants another method that was offered.
    fn other_group(&self, rekey: &Rekey, kind: NotifyType, data: &[u8]) -> Option<KexGroup> {
        if kind != NotifyType::InvalidKePayload
            || rekey.restarts >= limits::REKEY_RESTARTS
            || rekey.crossed.is_some()
        {
            return None;
        }
        let wanted = KexGroup::from_transform_id(u16::from_be_bytes(data.try_into().ok()?))?;
        (init::GROUPS.contains(&wanted) && wanted != rekey.kex.group()).then_some(wanted)
    }

    /// The peer makes no further SAs under this IKE SA: a new one is to replace it.
    fn renew(&mut self, spi: u64, now: Instant) {
        let id = self.sas.get(&spi).and_then(|sa| sa.established());
        let Some(id) = id.map(|sa| sa.peer.clone()) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.renew = true;
        }
        self.schedule(&id, now);
    }

    /// The answer cannot be used.
    fn rekey_failed(
        &mut self,
        spi: u64,
        timer: Timer,
        rekey: &Rekey,
        failure: Failure,
        now: Instant,
    ) {
        tracing::warn!(what = ?rekey.what, "rekey failed: {failure}");
        self.drop_rekey_of(Some(rekey));
        self.put_off(timer, limits::REKEY_REFUSED_RETRY, now);
        if let What::Child { spi_in, .. } = rekey.what {
            self.owe_delete(spi, unborn(spi_in, 0), now);
        }
    }

    fn child_rekeyed(
        &mut self,
        spi: u64,
        rekey: Rekey,
        (old, spi_in): (u32, u32),
        payloads: &[Payload<'_>],
        now: Instant,
    ) {
        let (timer, what, own, crossed) = (
            rekey.timer(spi),
            rekey.what,
            rekey.nonce.clone(),
            rekey.crossed,
        );
        let judged = self.judge_child_response(spi, rekey.kex, &own, spi_in, payloads);
        let (id, child, theirs) = match judged {
            Ok(judged) => judged,
            Err(failure) => {
                tracing::warn!(?what, "rekey failed: {failure}");
                self.spis.remove(&spi_in);
                self.put_off(timer, limits::REKEY_REFUSED_RETRY, now);
                return self.owe_delete(spi, unborn(spi_in, 0), now);
            }
        };
        // RFC 7296 §2.8.1: of two successors, the one of the exchange with the lowest nonce goes, by the end that began it.
        let lost = crossed.is_some_and(|crossed| {
            let there =
                matches!(crossed.made, Made::Child(made) if self.find_child(spi, made).is_some());
            there && own.min(theirs) < crossed.nonce
        });
        if lost || self.newest_sa(&id) != Some(spi) {
            self.spis.remove(&spi_in);
            return self.owe_delete(spi, unborn(spi_in, child.spi_out), now);
        }
        self.install_rekeyed(spi, &id, child, old, now);
        let mesh = self.sas.get(&spi).and_then(|sa| sa.established());
        let mesh = mesh.is_some_and(|sa| sa.mesh);
        if let Some(peer) = self.peers.get_mut(&id).filter(|_| mesh) {
            // Tells the responder that this end is ready, too.
            peer.pending = true;
        }
        if !mesh {
            self.child_confirmed(spi, spi_in, now);
        }
    }

    /// Whose, the CHILD_SA, and the peer's nonce.
    fn judge_child_response(
        &self,
        spi: u64,
        kex: KeyExchange,
        own: &[u8],
        spi_in: u32,
        payloads: &[Payload<'_>],
    ) -> Result<(Identity, ChildSa, Vec<u8>), Failure> {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        let established = established.ok_or_else(missing_sa)?;
        let peer = self.peers.get(&established.peer).ok_or_else(missing_sa)?;
        let (id, config) = (&peer.config.identity, &peer.config.child);
        let heard = child::Heard::read(payloads)?;
        let required = self.config.rekeying.require_pfs;
        let (agreed, with_ke) = child::check_rekey(id, config, &heard, kex.group(), required)?;
        self.check_spi_out(spi, agreed.chosen.spi)?;
        let theirs = init::nonce(payloads).ok_or_else(|| missing("nonce"))?;
        let shared = with_ke.then(|| agree(kex, payloads)).transpose()?;
        let nonces = Nonces {
            initiator: own,
            responder: theirs,
        };
        let sk_d = &established.sk_d;
        let child = agreed.key(spi_in, Role::Initiator, sk_d, nonces, shared.as_ref())?;
        Ok((id.clone(), child, theirs.to_vec()))
    }

    /// Two CHILD_SAs of one peer never have the same outbound SPI.
    pub(super) fn check_spi_out(&self, spi: u64, spi_out: u32) -> Result<(), Failure> {
        let taken = |child: &ChildRef| child.spi_out == spi_out;
        if self.children(spi).iter().any(taken) {
            return Err(missing("SPI that is not in use"));
        }
        Ok(())
    }

    /// Adds the successor of a CHILD_SA and tells the driver.
    pub(super) fn install_rekeyed(
        &mut self,
        spi: u64,
        id: &Identity,
        child: ChildSa,
        old: u32,
        now: Instant,
    ) {
        let Some(sa) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) else {
            return;
        };
        sa.children.push(ChildRef::new(&child, Some(old)));
        self.timers.cancel(&Timer::RekeyChild(old));
        self.start_child_lifetime(id, child.spi_in, now);
        let (spi_in, spi_out) = (
            format_args!("{:08x}", child.spi_in),
            format_args!("{:08x}", child.spi_out),
        );
        tracing::info!(peer = %id, role = ?child.role, %spi_in, %spi_out, "CHILD_SA rekeyed");
        self.events.push_back(Event::ChildUp {
            peer: id.clone(),
            child: Box::new(child),
            announcement: None,
        });
    }

    fn ike_rekeyed(
        &mut self,
        spi: u64,
        rekey: Rekey,
        fresh: u64,
        payloads: &[Payload<'_>],
        now: Instant,
    ) {
        let (timer, own, candidate) = (rekey.timer(spi), rekey.nonce.clone(), rekey.candidate());
        let crossed = rekey.crossed.as_ref().map(|crossed| crossed.nonce.clone());
        let sk_d = self.sas.get(&spi).and_then(|sa| sa.established());
        let Some(sk_d) = sk_d.map(|sa| sa.sk_d.clone()) else {
            return;
        };
        let theirs = match self.create_heir(spi, rekey, &sk_d, fresh, payloads, now) {
            Ok(theirs) => theirs,
            Err(failure) => {
                tracing::warn!("rekey of the IKE SA failed: {failure}");
                return match candidate.filter(|spi| self.is_heir(*spi)) {
                    Some(candidate) => self.inherit(spi, candidate, None, now),
                    None => self.put_off(timer, limits::REKEY_REFUSED_RETRY, now),
                };
            }
        };
        let candidate = candidate.filter(|spi| self.is_heir(*spi));
        let lost = crossed.is_some_and(|nonce| own.min(theirs) < nonce);
        match candidate {
            Some(candidate) if lost => {
                self.begin_closing(fresh, Some(Goodbye::Plain), now);
                self.inherit(spi, candidate, None, now);
            }
            candidate => {
                if let Some(candidate) = candidate {
                    // Its initiator deletes it.
                    self.begin_closing(candidate, None, now);
                }
                self.inherit(spi, fresh, Some(Goodbye::Plain), now);
            }
        }
    }

    /// Makes the new IKE SA of this end's own rekey, without CHILD_SAs; returns the peer's nonce.
    fn create_heir(
        &mut self,
        spi: u64,
        rekey: Rekey,
        sk_d: &SkD,
        fresh: u64,
        payloads: &[Payload<'_>],
        now: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let sa = payloads.iter().find_map(|payload| match payload {
            Payload::Sa(sa) => Some(sa.clone()),
            _ => None,
        });
        let taken = init::take_spi(sa.ok_or_else(|| missing("SA payload"))?);
        let (remote, sa) = taken.ok_or_else(|| missing("SPI of the new IKE SA"))?;
        let refused = || Failure::NoIkeProposal {
            offered: init::describe(&sa),
            own: init::describe(&init::offer()),
        };
        let chosen = init::check_answer(&sa, rekey.kex.group()).ok_or_else(refused)?;
        let theirs = init::nonce(payloads).ok_or_else(|| missing("nonce"))?;
        let shared = agree(rekey.kex, payloads)?;
        let nonces = Nonces {
            initiator: &rekey.nonce,
            responder: theirs,
        };
        let spis = Spis {
            initiator: fresh,
            responder: remote,
        };
        let seed = SkeySeed::rekey(sk_d, chosen.suite, nonces, &shared);
        let keys = seed.into_keys(nonces, spis)?.for_role(Role::Initiator)?;
        self.add_heir(spi, fresh, remote, Role::Initiator, keys, now);
        Ok(theirs.to_vec())
    }

    /// Adds an IKE SA that a rekey of `spi` made; its CHILD_SAs come later ([`Endpoint::inherit`]).
    pub(super) fn add_heir(
        &mut self,
        spi: u64,
        fresh: u64,
        remote: u64,
        role: Role,
        keys: crate::crypto::RoleKeys,
        now: Instant,
    ) {
        let Some(old) = self.sas.get(&spi) else {
            return;
        };
        let (path, fragmentation) = (old.path, old.fragmentation.inherited());
        let (peer, mesh, order, confirmed) = match &old.state {
            State::Established(old) => (old.peer.clone(), old.mesh, old.order, old.confirmed),
            _ => (Identity(String::new()), false, 0, false),
        };
        let established = Established {
            peer,
            sealer: keys.sealer,
            opener: keys.opener,
            sk_d: keys.sk_d,
            mesh,
            children: Vec::new(),
            order,
            proven: role == Role::Initiator,
            confirmed,
            carried: None,
            rekey: None,
            deletes: Vec::new(),
            heir: true,
            candidate_of: Some(spi),
        };
        let state = State::Established(Box::new(established));
        let mut sa = IkeSa::new(fresh, remote, role, path, now, state);
        sa.fragmentation = fragmentation;
        self.sas.insert(fresh, sa);
        let patience = now + limits::REKEYED_LINGER;
        self.timers.set(Timer::Expire(fresh), patience);
    }

    /// The IKE SA went while its rekey was under way: what the peer made of it must go, too.
    fn bury_unborn(
        &mut self,
        spi: u64,
        rekey: Rekey,
        sk_d: &SkD,
        payloads: &[Payload<'_>],
        now: Instant,
    ) {
        let What::Ike { spi: fresh } = rekey.what else {
            return;
        };
        if error_notify(payloads).is_none()
            && self
                .create_heir(spi, rekey, sk_d, fresh, payloads, now)
                .is_ok()
        {
            self.begin_closing(fresh, Some(Goodbye::Plain), now);
        }
    }

    /// Frees what a rekey that came to nothing had taken.
    pub(super) fn drop_rekey_of(&mut self, rekey: Option<&Rekey>) {
        if let Some(rekey) = rekey {
            self.drop_rekey(rekey.spi_in(), rekey.candidate());
        }
    }

    pub(super) fn drop_rekey(&mut self, spi_in: Option<u32>, candidate: Option<u64>) {
        if let Some(spi_in) = spi_in {
            self.spis.remove(&spi_in);
        }
        if let Some(candidate) = candidate {
            self.forget(candidate);
        }
    }
}

/// Stands for a CHILD_SA that only the peer has.
fn unborn(spi_in: u32, spi_out: u32) -> ChildRef {
    ChildRef {
        spi_in,
        spi_out,
        role: Role::Initiator,
        replaces: None,
        confirmed: false,
        known: true,
    }
}

fn agree(kex: KeyExchange, payloads: &[Payload<'_>]) -> Result<SharedSecret, Failure> {
    let ke = payloads.iter().find_map(|payload| match payload {
        Payload::Ke(ke) if ke.group == kex.group().transform_id() => Some(ke.data),
        _ => None,
    });
    Ok(kex.agree(ke.ok_or_else(|| missing("KE payload"))?)?)
}

pub(super) fn missing(what: &'static str) -> Failure {
    Failure::Missing {
        what,
        message: "CREATE_CHILD_SA",
    }
}

fn missing_sa() -> Failure {
    Failure::Missing {
        what: "IKE SA",
        message: "endpoint",
    }
}
