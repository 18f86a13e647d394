//! IKE_FOLLOWUP_KE (RFC 9370 §2.2.4): the additional key exchange of a CREATE_CHILD_SA, both sides. The SA is made when it is
//! complete. Of two that cross, the one that is to lose ends here, before anything is made of it.

use std::time::Instant;

use super::Endpoint;
use super::receive::Received;
use super::rekey::{missing, missing_sa};
use super::rekeyed::{Keyed, Refusal};
use crate::crypto::{Kem, KemKey, Secrets, SharedSecret, SkeySeed, Spis, kem};
use crate::error::Failure;
use crate::event::Role;
use crate::exchange::Request;
use crate::limits;
use crate::sa::{
    FollowUp, Made, Opened, Pending, PendingWhat, Rekey, State, What, error_notify, init, notify,
};
use crate::timers::Timer;
use crate::wire::{ExchangeType, KeyExchange, Notify, NotifyType, Payload};

impl Endpoint {
    // --- The end that asked. ---

    /// CREATE_CHILD_SA is answered and agrees on an additional key exchange.
    pub(super) fn follow_up(
        &mut self,
        spi: u64,
        mut rekey: Rekey,
        answer: &Opened,
        payloads: &[Payload<'_>],
        now: Instant,
    ) {
        let Some(theirs) = init::nonce(payloads) else {
            let failure = missing("nonce");
            return self.rekey_failed(spi, rekey.timer(spi), &rekey, failure, now);
        };
        if self.gives_way(spi, &mut rekey, theirs, now) {
            return;
        }
        let sent = self.send_followup(spi, &rekey, payloads, now);
        match sent {
            Ok(key) => {
                let answer = answer.clone();
                rekey.followup = Some(FollowUp { answer, key });
                if let Some(sa) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) {
                    sa.rekey = Some(Box::new(rekey));
                }
            }
            Err(failure) => self.rekey_failed(spi, rekey.timer(spi), &rekey, failure, now),
        }
    }

    /// Both ends rekey the same SA, and all four nonces are known: the end whose exchange has the lowest one stops (RFC 7296
    /// §2.8.1, RFC 9370 §2.2.4), the other forgets the peer's.
    fn gives_way(&mut self, spi: u64, rekey: &mut Rekey, theirs: &[u8], now: Instant) -> bool {
        let crossed = rekey.crossed.take();
        let Some(crossed) = crossed.filter(|crossed| self.is_there(spi, crossed.made)) else {
            return false;
        };
        let lost = *rekey.nonce.as_slice().min(theirs) < *crossed.nonce;
        match (crossed.made, rekey.what) {
            (Made::Pending, _) if !lost => self.drop_pending(spi),
            (Made::Child(theirs), What::Child { old, .. }) => {
                self.expect_end(spi, old, theirs, lost, now);
            }
            // Its initiator deletes it.
            (Made::Ike(heir), _) if !lost => self.begin_closing(heir, None, now),
            (Made::Ike(heir), _) => self.inherit(spi, heir, None, now),
            _ => {}
        }
        if lost {
            tracing::debug!(what = ?rekey.what, "the peer's own rekey goes on");
            self.drop_rekey_of(Some(rekey));
            if self
                .sas
                .get(&spi)
                .is_some_and(|sa| sa.established().is_some())
            {
                self.put_off(rekey.timer(spi), limits::REKEY_RETRY, now);
            }
        }
        lost
    }

    fn send_followup(
        &mut self,
        spi: u64,
        rekey: &Rekey,
        payloads: &[Payload<'_>],
        now: Instant,
    ) -> Result<KemKey, Failure> {
        let method = super::rekey::additional(payloads);
        let mut offered = rekey.policy.kems.iter().copied();
        let kem = offered.find(|kem| Some(kem.transform_id()) == method);
        let key = KemKey::generate(kem.ok_or_else(|| missing("key exchange that was offered"))?)?;
        let link = notify(payloads, NotifyType::AdditionalKeyExchange);
        let link = link.ok_or_else(|| missing("ADDITIONAL_KEY_EXCHANGE"))?;
        let link = Notify::new(NotifyType::AdditionalKeyExchange, link);
        let said = [payload(key.kem(), key.public()), Payload::Notify(link)];
        let sa = self.sas.get_mut(&spi).ok_or_else(missing_sa)?;
        let id = sa.exchanges.next_id().ok_or_else(missing_sa)?;
        let header = sa.header(ExchangeType::IkeFollowupKe, false, id);
        let sealed = sa.seal(&header, &said)?;
        self.send_request(spi, Request::FollowUp, sealed, now);
        Ok(key)
    }

    pub(super) fn receive_followup_response(
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
        match &mut sa.state {
            State::Established(established) => {
                if let Some(rekey) = established.rekey.take() {
                    self.followed_up(spi, *rekey, payloads, now);
                }
            }
            State::Closing(closing) => {
                if let Some((mut rekey, sk_d)) = closing.rekey.take()
                    && let Ok(answer) = complete(&mut rekey, payloads)
                    && let Ok(payloads) = answer.payloads()
                {
                    self.bury_unborn(spi, *rekey, &sk_d, &payloads, now);
                }
                return self.say_goodbye(spi, now);
            }
            _ => return,
        }
        self.after_rekey(spi, now);
    }

    fn followed_up(
        &mut self,
        spi: u64,
        mut rekey: Rekey,
        payloads: Result<Vec<Payload<'_>>, Failure>,
        now: Instant,
    ) {
        let timer = rekey.timer(spi);
        match complete(&mut rekey, payloads) {
            Ok(answer) => {
                let payloads = answer.payloads().map_err(Failure::from);
                self.rekey_answered(spi, rekey, payloads, now);
            }
            Err(Stopped::Refused(kind)) => {
                tracing::debug!(?kind, what = ?rekey.what, "the peer does not go on with a rekey");
                self.drop_rekey_of(Some(&rekey));
                let wait = match kind {
                    NotifyType::TemporaryFailure | NotifyType::StateNotFound => limits::REKEY_RETRY,
                    _ => limits::REKEY_REFUSED_RETRY,
                };
                self.put_off(timer, wait, now);
            }
            Err(Stopped::Failed(failure)) => self.rekey_failed(spi, timer, &rekey, failure, now),
        }
    }

    // --- The end that was asked. ---

    /// Answers a CREATE_CHILD_SA that is complete after another exchange only. Returns what came of it and the lower nonce.
    pub(super) fn answer_pending(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        said: Vec<Payload<'_>>,
        keyed: Keyed<'_>,
        (kem, what): (Kem, PendingWhat),
    ) -> Result<(Made, Vec<u8>), Refusal> {
        let mut link = [0; 8];
        self.rng.fill_bytes(&mut link);
        let notify = Notify::new(NotifyType::AdditionalKeyExchange, &link);
        let said = said.into_iter().chain(keyed.payloads());
        let said: Vec<Payload<'_>> = said.chain([Payload::Notify(notify)]).collect();
        self.respond(spi, received, &said);
        drop(said);
        let lowest = keyed.lowest();
        let shared = keyed.shared.ok_or_else(|| missing("KE payload"))?;
        let pending = Pending {
            link,
            kem,
            shared,
            nonce_i: keyed.nonce_i.to_vec(),
            nonce_r: keyed.nonce_r,
            what,
        };
        if let Some(sa) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) {
            sa.pending = Some(Box::new(pending));
        }
        let patience = received.now + limits::FOLLOWUP_LINGER;
        self.timers.set(Timer::Pending(spi), patience);
        Ok((Made::Pending, lowest))
    }

    pub(super) fn receive_followup(&mut self, spi: u64, received: &Received<'_>, opened: &Opened) {
        self.heard_request(spi, received.now);
        self.inherit_candidate(spi, received.now);
        let payloads = opened.payloads().map_err(Failure::from);
        let granted = payloads.map_err(Refusal::from);
        let granted = granted.and_then(|payloads| self.grant_followup(spi, received, &payloads));
        if let Err(refusal) = granted {
            let notify = Payload::Notify(refusal.notify());
            self.respond(spi, received, &[notify]);
            self.after_rekey(spi, received.now);
        }
    }

    fn grant_followup(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        payloads: &[Payload<'_>],
    ) -> Result<(), Refusal> {
        let lost = || Refusal::new(NotifyType::StateNotFound);
        let link = notify(payloads, NotifyType::AdditionalKeyExchange).ok_or_else(lost)?;
        let established = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut());
        let established = established.ok_or_else(lost)?;
        let pending = established.pending.take_if(|pending| pending.link == link);
        let pending = pending.ok_or_else(lost)?;
        self.timers.cancel(&Timer::Pending(spi));
        let spi_in = pending.spi_in();
        let completed = self.complete_pending(spi, received, payloads, *pending);
        completed.inspect_err(|_| {
            if let Some(spi_in) = spi_in {
                self.spis.remove(&spi_in);
            }
        })
    }

    fn complete_pending(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        payloads: &[Payload<'_>],
        pending: Pending,
    ) -> Result<(), Refusal> {
        let (ciphertext, additional) =
            kem::encapsulate(pending.kem, data(payloads, pending.kem)?).map_err(Failure::from)?;
        let answer = [payload(pending.kem, &ciphertext)];
        let peer = self.peer_of(spi).ok_or_else(missing_sa)?;
        if self.newest_sa(&peer) != Some(spi) {
            return Err(Refusal::new(NotifyType::TemporaryFailure));
        }
        match pending.what {
            PendingWhat::Child { .. } => {
                self.complete_child(spi, received, &answer, pending, &additional)
            }
            PendingWhat::Ike { .. } => {
                self.complete_ike(spi, received, &answer, pending, &additional)
            }
        }
    }

    fn complete_child(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        answer: &[Payload<'_>],
        pending: Pending,
        additional: &SharedSecret,
    ) -> Result<(), Refusal> {
        let later = || Refusal::new(NotifyType::TemporaryFailure);
        let peer = self.peer_of(spi).ok_or_else(missing_sa)?;
        let sk_d = self.sas.get(&spi).and_then(|sa| sa.established());
        let sk_d = sk_d.ok_or_else(missing_sa)?.sk_d.clone();
        let (nonce_i, nonce_r) = (pending.nonce_i.clone(), pending.nonce_r.clone());
        let nonces = crate::crypto::Nonces {
            initiator: &nonce_i,
            responder: &nonce_r,
        };
        let PendingWhat::Child {
            id,
            old,
            agreed,
            spi_in,
        } = pending.what
        else {
            return Err(later());
        };
        // Much may have happened since the request.
        let fits = match old {
            Some(old) => self.find_child(spi, old).is_some() && !self.is_replaced(spi, old),
            None => !self.has_child(spi, id),
        };
        if !fits {
            return Err(later());
        }
        self.check_spi_out(spi, agreed.chosen.spi)?;
        let secrets = Secrets {
            shared: Some(&pending.shared),
            additional: Some(additional),
        };
        let child = agreed.key(id, spi_in, Role::Responder, &sk_d, nonces, secrets);
        let child = child.map_err(Failure::from)?;
        self.respond(spi, received, answer);
        self.install_child(spi, &peer, child, old, received.now);
        // This end's own request for the same is still under way: its answer will show that the peer has not seen it.
        let established = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut());
        let own = established.and_then(|sa| sa.rekey.as_mut());
        if let Some(crossed) = own.and_then(|own| own.crossed.as_mut())
            && crossed.made == Made::Pending
        {
            crossed.made = Made::Child(spi_in);
        }
        Ok(())
    }

    fn complete_ike(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        answer: &[Payload<'_>],
        pending: Pending,
        additional: &SharedSecret,
    ) -> Result<(), Refusal> {
        let later = || Refusal::new(NotifyType::TemporaryFailure);
        let PendingWhat::Ike {
            spi: fresh,
            remote,
            chosen,
        } = pending.what
        else {
            return Err(later());
        };
        if self.is_occupied(spi) {
            return Err(later());
        }
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        let sk_d = &established.ok_or_else(missing_sa)?.sk_d;
        let spis = Spis {
            initiator: remote,
            responder: fresh,
        };
        let secrets = Secrets {
            shared: Some(&pending.shared),
            additional: Some(additional),
        };
        let seed = SkeySeed::rekey(sk_d, chosen.suite, pending.nonces(), secrets);
        let keys = seed.into_keys(pending.nonces(), spis);
        let keys = keys.and_then(|keys| keys.for_role(Role::Responder));
        let keys = keys.map_err(Failure::from)?;
        self.respond(spi, received, answer);
        self.add_heir(spi, fresh, remote, Role::Responder, keys, received.now);
        // If this end has asked for the same, the peer has won or has not seen it.
        self.inherit(spi, fresh, None, received.now);
        Ok(())
    }

    /// This end says or makes something on the IKE SA that would be lost if another took its place now.
    fn is_occupied(&self, spi: u64) -> bool {
        let Some(sa) = self.sas.get(&spi) else {
            return true;
        };
        let own = sa.established().and_then(|sa| sa.rekey.as_ref());
        let rekeys_ike = own.is_none_or(|own| matches!(own.what, What::Ike { .. }));
        let idle = matches!(
            sa.exchanges.pending(),
            None | Some(Request::Liveness | Request::Rekey)
        );
        !(rekeys_ike && idle)
    }

    /// Nothing came of the peer's CREATE_CHILD_SA for long enough.
    pub(super) fn forget_pending(&mut self, spi: u64, now: Instant) {
        self.drop_pending(spi);
        self.after_rekey(spi, now);
    }

    pub(super) fn drop_pending(&mut self, spi: u64) {
        let established = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut());
        let pending = established.and_then(|sa| sa.pending.take());
        self.timers.cancel(&Timer::Pending(spi));
        self.free_pending(pending.as_deref());
    }

    /// Frees what it had taken.
    pub(super) fn free_pending(&mut self, pending: Option<&Pending>) {
        if let Some(spi_in) = pending.and_then(Pending::spi_in) {
            self.spis.remove(&spi_in);
        }
    }
}

/// Why an IKE_FOLLOWUP_KE brought nothing.
enum Stopped {
    Refused(NotifyType),
    Failed(Failure),
}

/// Takes in the secret; the answer to CREATE_CHILD_SA counts now.
fn complete(
    rekey: &mut Rekey,
    payloads: Result<Vec<Payload<'_>>, Failure>,
) -> Result<Opened, Stopped> {
    let payloads = payloads.map_err(Stopped::Failed)?;
    if let Some((kind, _)) = error_notify(&payloads) {
        return Err(Stopped::Refused(kind));
    }
    let followup = rekey.followup.take();
    let FollowUp { answer, key } = followup.ok_or_else(|| Stopped::Failed(missing_sa()))?;
    let kem = key.kem();
    let ciphertext = data(&payloads, kem).map_err(Stopped::Failed)?;
    let secret = key.open(ciphertext);
    let secret = secret.map_err(|error| Stopped::Failed(error.into()))?;
    rekey.additional = Some((kem, secret));
    Ok(answer)
}

fn payload(kem: Kem, data: &[u8]) -> Payload<'_> {
    Payload::Ke(KeyExchange {
        group: kem.transform_id(),
        data,
    })
}

fn data<'a>(payloads: &[Payload<'a>], kem: Kem) -> Result<&'a [u8], Failure> {
    let ke = super::rekeyed::key_exchange(payloads);
    let ke = ke.filter(|ke| ke.group == kem.transform_id());
    Ok(ke
        .ok_or_else(|| missing("KE payload of the additional key exchange"))?
        .data)
}
