//! The initiator's side of CREATE_CHILD_SA: rekeys of CHILD_SAs and of the IKE SA (RFC 7296 §1.3.2, §1.3.3, §2.8, §2.18).

mod answered;
mod heir;

use std::time::Instant;

use super::Endpoint;
use super::receive::Received;
use crate::child;
use crate::config::ChildId;
use crate::crypto::{KexGroup, KeyExchange, SharedSecret};
use crate::error::Failure;
use crate::exchange::Request;
use crate::limits;
use crate::sa::init;
use crate::sa::{ChildRef, Made, Opened, Rekey, Sealed, State, What, error_notify};
use crate::timers::Timer;
use crate::wire::{self, ExchangeType, Nonce, Notify, NotifyType, Payload};

impl Rekey {
    /// The new IKE SA of the peer's crossing request.
    pub(crate) fn candidate(&self) -> Option<u64> {
        match self.crossed.as_ref()?.made {
            Made::Ike(spi) => Some(spi),
            Made::Child(_) | Made::Pending => None,
        }
    }

    /// The inbound SPI that was chosen for a new CHILD_SA.
    pub(crate) fn spi_in(&self) -> Option<u32> {
        match self.what {
            What::Child { spi_in, .. } | What::New { spi_in, .. } => Some(spi_in),
            What::Ike { .. } => None,
        }
    }

    pub(super) fn timer(&self, spi: u64) -> Timer {
        match self.what {
            What::Child { old, .. } => Timer::RekeyChild(old),
            What::New { id, .. } => Timer::MakeChild(spi, id),
            What::Ike { .. } => Timer::RekeyIke(spi),
        }
    }
}

impl Endpoint {
    pub(super) fn rekey_child_due(&mut self, spi_in: u32, now: Instant) {
        let Some(spi) = self.sa_of_child(spi_in) else {
            return;
        };
        let Some(child) = self.find_child(spi, spi_in) else {
            return;
        };
        let mesh = self.is_mesh(spi);
        let known = child.known || (!mesh && child.replaces.is_none());
        if self.is_replaced(spi, spi_in) {
            return;
        }
        if !known || !self.may_rekey(spi) || self.has_many(spi, child.id) {
            return self.put_off(Timer::RekeyChild(spi_in), limits::REKEY_RETRY, now);
        }
        let fresh = self.fresh_esp_spi();
        let what = What::Child {
            id: child.id,
            old: spi_in,
            spi_in: fresh,
        };
        let group = self.first_group(spi);
        self.begin_rekey(spi, what, group, 0, now);
    }

    pub(super) fn rekey_ike_due(&mut self, spi: u64, now: Instant) {
        if !self.may_rekey(spi) {
            return self.put_off(Timer::RekeyIke(spi), limits::REKEY_RETRY, now);
        }
        let what = What::Ike {
            spi: self.fresh_ike_spi(),
        };
        let group = self.first_group(spi);
        self.begin_rekey(spi, what, group, 0, now);
    }

    /// The peer is of this implementation. Others say nothing after IKE_AUTH: they are taken to have its answer, and if it was
    /// lost they repeat their request before they answer one of ours.
    pub(super) fn is_mesh(&self, spi: u64) -> bool {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        established.is_some_and(|sa| sa.mesh)
    }

    /// Only on the newest IKE SA of a peer, which it is known to have, and one exchange at a time.
    pub(super) fn may_rekey(&self, spi: u64) -> bool {
        let Some(sa) = self.sas.get(&spi) else {
            return false;
        };
        let free = sa.exchanges.next_id().is_some();
        sa.established().is_some_and(|established| {
            let idle = established.rekey.is_none()
                && established.pending.is_none()
                && established.deletes.is_empty();
            let there = established.proven || !established.mesh;
            free && idle && there && self.newest_sa(&established.peer) == Some(spi)
        })
    }

    pub(super) fn first_group(&self, spi: u64) -> KexGroup {
        let first = self.policy_of(spi).groups.first().copied();
        first.unwrap_or(KexGroup::X25519)
    }

    pub(super) fn begin_rekey(
        &mut self,
        spi: u64,
        what: What,
        group: KexGroup,
        restarts: u32,
        now: Instant,
    ) {
        let nonce = self.fresh_nonce();
        let kex = match KeyExchange::generate(group, &mut *self.rng) {
            Ok(kex) => kex,
            Err(error) => return tracing::error!("rekey not started: {error}"),
        };
        let rekey = Rekey {
            what,
            policy: self.rekey_policy(spi),
            kex,
            nonce,
            restarts,
            crossed: None,
            followup: None,
            additional: None,
            deleted: Vec::new(),
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
        let mut payloads = match rekey.what {
            What::Ike { spi } => {
                let offer = init::offer(&rekey.policy);
                vec![Payload::Sa(init::with_spi(offer, spi))]
            }
            What::Child { id, old, spi_in } => {
                let child = self.find_child(spi, old).ok_or_else(missing_sa)?;
                let old = Notify::about_child(NotifyType::RekeySa, child.protocol(), old);
                let mut payloads = vec![Payload::Notify(old)];
                payloads.extend(self.offer_child(spi, id, spi_in, rekey)?);
                payloads
            }
            What::New { id, spi_in } => self.offer_child(spi, id, spi_in, rekey)?,
        };
        let cpu = rekey.what.child().and_then(|child| child.cpu);
        let cpu = cpu.map(u32::to_be_bytes);
        payloads.extend(cpu.as_ref().map(|cpu| child::resource_info(cpu)));
        payloads.extend([
            Payload::Nonce(Nonce(&rekey.nonce)),
            Payload::Ke(wire::KeyExchange {
                group: rekey.kex.group().transform_id(),
                data: rekey.kex.public(),
            }),
        ]);
        let sa = self.sas.get_mut(&spi).ok_or_else(missing_sa)?;
        let id = sa.exchanges.next_id().ok_or_else(missing_sa)?;
        let header = sa.header(ExchangeType::CreateChildSa, false, id);
        Ok(sa.seal(&header, &payloads)?)
    }

    fn offer_child(
        &self,
        spi: u64,
        id: ChildId,
        spi_in: u32,
        rekey: &Rekey,
    ) -> Result<Vec<Payload<'static>>, Failure> {
        let config = self.child_config(spi, id).ok_or_else(missing_sa)?;
        let mut payloads = child::offer_payloads(&config, id, spi_in);
        let require_pfs = self.config.rekeying.require_pfs;
        child::offer_exchanges(&mut payloads, &rekey.policy, require_pfs);
        Ok(payloads)
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
                // What waits for another key exchange is not made yet.
                let made = |payloads: &Vec<Payload<'_>>| additional(payloads).is_none();
                let payloads = payloads.ok().filter(made);
                if let (Some((rekey, sk_d)), Some(payloads)) = (closing.rekey.take(), payloads) {
                    self.bury_unborn(spi, *rekey, &sk_d, &payloads, now);
                }
                return self.say_goodbye(spi, now);
            }
            _ => None,
        };
        let Some(rekey) = rekey else {
            return;
        };
        match payloads {
            Ok(payloads) if additional(&payloads).is_some() => {
                self.follow_up(spi, *rekey, opened, &payloads, now);
            }
            payloads => self.rekey_answered(spi, *rekey, payloads, now),
        }
        self.after_rekey(spi, now);
    }

    /// What had to wait for the window.
    pub(super) fn after_rekey(&mut self, spi: u64, now: Instant) {
        self.flush_deletes(spi, now);
        self.close_if_childless(spi, now);
        let peer = self.sas.get(&spi).and_then(|sa| sa.established());
        if let Some(peer) = peer.map(|sa| sa.peer.clone()) {
            self.talkative.insert(peer);
        }
    }

    pub(super) fn rekey_answered(
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
            What::Child { spi_in, .. } | What::New { spi_in, .. } => {
                self.child_answered(spi, rekey, spi_in, &payloads, now);
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
        if let Some(other) = self.other_group(spi, &rekey, kind, data) {
            return self.begin_rekey(spi, rekey.what, other, rekey.restarts + 1, now);
        }
        if let Some(candidate) = rekey.candidate().filter(|spi| self.is_heir(*spi)) {
            // The peer's own rekey was first.
            return self.inherit(spi, candidate, None, now);
        }
        self.drop_rekey_of(Some(&rekey));
        if self.awaits_answer(spi) {
            return self.first_child_refused(spi, kind, now);
        }
        match (kind, rekey.what) {
            (_, What::Child { old, .. }) if self.is_replaced(spi, old) => {}
            (_, What::New { id, .. }) if self.has_child(spi, id) => {}
            (NotifyType::TemporaryFailure, _) => self.put_off(timer, limits::REKEY_RETRY, now),
            (NotifyType::ChildSaNotFound, What::Child { old, .. }) => {
                let lost: Vec<ChildRef> = self.find_child(spi, old).into_iter().collect();
                if !lost.is_empty() {
                    tracing::warn!("the peer does not have the CHILD_SA that is to be rekeyed");
                    self.children_deleted_by_peer(spi, &lost, now);
                }
            }
            (_, What::New { id, .. }) => self.child_refused(spi, id, kind, now),
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
    fn other_group(
        &self,
        spi: u64,
        rekey: &Rekey,
        kind: NotifyType,
        data: &[u8],
    ) -> Option<KexGroup> {
        if kind != NotifyType::InvalidKePayload
            || rekey.restarts >= limits::REKEY_RESTARTS
            || rekey.crossed.is_some()
        {
            return None;
        }
        let wanted = KexGroup::from_transform_id(u16::from_be_bytes(data.try_into().ok()?))?;
        (self.policy_of(spi).groups.contains(&wanted) && wanted != rekey.kex.group())
            .then_some(wanted)
    }

    /// The peer makes no further SAs under this IKE SA: a new one is to replace it.
    pub(super) fn renew(&mut self, spi: u64, now: Instant) {
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
    pub(super) fn rekey_failed(
        &mut self,
        spi: u64,
        timer: Timer,
        rekey: &Rekey,
        failure: Failure,
        now: Instant,
    ) {
        tracing::warn!(what = ?rekey.what, "rekey failed: {failure}");
        self.drop_rekey_of(Some(rekey));
        if self.awaits_answer(spi) {
            return self.childless_failed(spi, failure, now);
        }
        self.put_off(timer, limits::REKEY_REFUSED_RETRY, now);
        if let What::Child { spi_in, .. } | What::New { spi_in, .. } = rekey.what {
            self.owe_unborn(spi, spi_in, now);
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

/// The method of the additional key exchange that an answer agrees on.
pub(super) fn additional(payloads: &[Payload<'_>]) -> Option<u16> {
    if error_notify(payloads).is_some() {
        return None;
    }
    payloads.iter().find_map(|payload| match payload {
        Payload::Sa(sa) => init::additional(sa),
        _ => None,
    })
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

pub(super) fn missing_sa() -> Failure {
    Failure::Missing {
        what: "IKE SA",
        message: "endpoint",
    }
}
