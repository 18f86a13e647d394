//! The answer to this end's rekey of the IKE SA, and the new IKE SA of either end's (RFC 7296 §1.3.2, §2.8.2, §2.18).

use std::time::Instant;

use super::{agree, missing};
use crate::config::Identity;
use crate::crypto::{Nonces, Secrets, SkD, SkeySeed, Spis};
use crate::endpoint::Endpoint;
use crate::error::Failure;
use crate::event::Role;
use crate::limits;
use crate::sa::{Established, Goodbye, IkeSa, Made, Rekey, State, What, error_notify, init};
use crate::timers::Timer;
use crate::wire::Payload;

impl Endpoint {
    pub(super) fn ike_rekeyed(
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
            None if lost && self.is_there(spi, Made::Pending) => {
                self.begin_closing(fresh, Some(Goodbye::Plain), now);
                self.put_off(timer, limits::REKEY_RETRY, now);
            }
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
        let policy = &rekey.policy;
        let refused = || Failure::NoIkeProposal {
            offered: init::describe(&sa),
            own: init::describe(&init::offer(policy)),
        };
        let additional = rekey.additional.as_ref();
        let done = additional.map(|(kem, _)| *kem);
        let chosen = init::check_answer(&sa, policy, rekey.kex.group());
        let chosen = chosen
            .filter(|chosen| chosen.kem == done)
            .ok_or_else(refused)?;
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
        let secrets = Secrets {
            shared: Some(&shared),
            additional: additional.map(|(_, secret)| secret),
        };
        let seed = SkeySeed::rekey(sk_d, chosen.suite, nonces, secrets);
        let keys = seed.into_keys(nonces, spis)?.for_role(Role::Initiator)?;
        self.add_heir(spi, fresh, remote, Role::Initiator, keys, now);
        Ok(theirs.to_vec())
    }

    /// Adds an IKE SA that a rekey of `spi` made; its CHILD_SAs come later ([`Endpoint::inherit`]).
    pub(in crate::endpoint) fn add_heir(
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
        let (nat, mobike) = (old.nat, old.mobility.mobike);
        let kem = old.established().is_some_and(|old| old.kem);
        let reauth = old.established().map(|old| old.reauth).unwrap_or_default();
        let silent = old.established().is_some_and(|old| old.silent);
        let (peer, mesh, order, confirmed) = match &old.state {
            State::Established(old) => (old.peer.clone(), old.mesh, old.order, old.confirmed),
            _ => (Identity("".into()), false, 0, false),
        };
        let established = Established {
            peer,
            sealer: keys.sealer,
            opener: keys.opener,
            sk_d: keys.sk_d,
            mesh,
            children: Vec::new(),
            order,
            reauth,
            proven: role == Role::Initiator,
            confirmed,
            carried: None,
            silent,
            rekey: None,
            pending: None,
            kem,
            deletes: Vec::new(),
            heir: true,
            candidate_of: Some(spi),
        };
        let state = State::Established(Box::new(established));
        let mut sa = IkeSa::new(fresh, remote, role, path, now, state);
        sa.fragmentation = fragmentation;
        (sa.nat, sa.mobility.mobike) = (nat, mobike);
        self.sas.insert(fresh, Box::new(sa));
        let patience = now + limits::REKEYED_LINGER;
        self.timers.set(Timer::Expire(fresh), patience);
    }

    /// The IKE SA went while its rekey was under way: what the peer made of it must go, too.
    pub(in crate::endpoint) fn bury_unborn(
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
}
