//! The answer to this end's request for a CHILD_SA, further or rekeyed (RFC 7296 §1.3.1, §1.3.3, §2.8.1).

use std::time::Instant;

use super::{agree, missing, missing_sa};
use crate::child;
use crate::config::{ChildId, Identity, IkePolicy, Volume};
use crate::crypto::{Kem, KeyExchange, Nonces, Secrets, SharedSecret};
use crate::endpoint::Endpoint;
use crate::error::Failure;
use crate::event::{ChildSa, Event, Role};
use crate::limits;
use crate::sa::{ChildRef, Made, Rekey, What, init};
use crate::suite::ChildSuite;
use crate::timers::Timer;
use crate::wire::Payload;

impl Endpoint {
    pub(super) fn child_answered(
        &mut self,
        spi: u64,
        rekey: Rekey,
        spi_in: u32,
        payloads: &[Payload<'_>],
        now: Instant,
    ) {
        let (timer, what, own, crossed, deleted) = (
            rekey.timer(spi),
            rekey.what,
            rekey.nonce.clone(),
            rekey.crossed,
            rekey.deleted,
        );
        let exchanged = Exchanged {
            policy: rekey.policy,
            kex: rekey.kex,
            additional: rekey.additional,
        };
        let judged = self.judge_child_response(spi, exchanged, &own, (what, spi_in), payloads);
        let (id, child, theirs) = match judged {
            Ok(judged) => judged,
            Err(failure) => {
                tracing::warn!(?what, "CREATE_CHILD_SA failed: {failure}");
                self.spis.remove(&spi_in);
                if self.awaits_answer(spi) {
                    return self.childless_failed(spi, failure, now);
                }
                self.put_off(timer, limits::REKEY_REFUSED_RETRY, now);
                return self.owe_unborn(spi, spi_in, now);
            }
        };
        if deleted.contains(&child.spi_out) {
            tracing::warn!(
                ?what,
                "the peer deleted the new CHILD_SA before its answer came"
            );
            self.spis.remove(&spi_in);
            return self.put_off(timer, limits::REKEY_RETRY, now);
        }
        // RFC 7296 §2.8.1: of two successors, the one of the exchange with the lowest nonce goes, by the end that began it.
        let crossed = crossed.filter(|crossed| self.is_there(spi, crossed.made));
        let lost = crossed
            .as_ref()
            .is_some_and(|crossed| own.min(theirs) < crossed.nonce);
        let made = crossed.map(|crossed| crossed.made);
        if let (Some(Made::Child(theirs)), What::Child { old, .. }) = (made, what) {
            self.expect_end(spi, old, theirs, lost, now);
        }
        if made == Some(Made::Pending) && !lost {
            self.drop_pending(spi);
        }
        let twice = matches!(what, What::New { id, .. } if self.has_child(spi, id));
        let first = self.awaits_answer(spi);
        if lost || twice || !(first || self.newest_sa(&id) == Some(spi)) {
            self.spis.remove(&spi_in);
            let gone = unborn(spi_in, child.spi_out, child.suite);
            return self.owe_delete(spi, gone, now);
        }
        let old = match what {
            What::Child { old, .. } => Some(old),
            _ => None,
        };
        self.install_child(spi, &id, child, old, now);
        let mesh = self.is_mesh(spi);
        if let Some(peer) = self.peers.get_mut(&id).filter(|_| mesh) {
            // Tells the responder that this end is ready, too.
            peer.pending = true;
        }
        if !mesh {
            self.child_confirmed(spi, spi_in, now);
        }
        if first && !mesh {
            self.confirm(spi, now);
        }
        self.make_next_child(spi, now);
    }

    /// What came of the peer's crossing request is still there.
    pub(in crate::endpoint) fn is_there(&self, spi: u64, made: Made) -> bool {
        match made {
            Made::Child(spi_in) => self.find_child(spi, spi_in).is_some(),
            Made::Ike(heir) => self.is_heir(heir),
            Made::Pending => {
                let established = self.sas.get(&spi).and_then(|sa| sa.established());
                established.is_some_and(|sa| sa.pending.is_some())
            }
        }
    }

    /// A foreign peer that does not delete a CHILD_SA which is over (`old` if its own rekey has won, else `theirs`) has not seen
    /// that its rekey crossed another one.
    pub(in crate::endpoint) fn expect_end(
        &mut self,
        spi: u64,
        old: u32,
        theirs: u32,
        lost: bool,
        now: Instant,
    ) {
        if !self.is_mesh(spi) {
            let timer = match lost {
                true => Timer::ExpireChild(old),
                false => Timer::Concede(theirs),
            };
            self.timers.set(timer, now + limits::REDUNDANT_PATIENCE);
        }
    }

    /// The answer was of no use: the peer may have made a CHILD_SA of each protocol that was offered.
    pub(in crate::endpoint) fn owe_unborn(&mut self, spi: u64, spi_in: u32, now: Instant) {
        let peer = self.sas.get(&spi).and_then(|sa| sa.established());
        let peer = peer.and_then(|sa| self.peers.get(&sa.peer));
        let mut one_each: Vec<ChildSuite> = Vec::new();
        for suite in peer.iter().flat_map(|peer| peer.suites()) {
            if !one_each
                .iter()
                .any(|one| one.protocol() == suite.protocol())
            {
                one_each.push(suite);
            }
        }
        for suite in one_each {
            self.owe_delete(spi, unborn(spi_in, 0, suite), now);
        }
    }

    /// Whose, the CHILD_SA, and the peer's nonce.
    fn judge_child_response(
        &self,
        spi: u64,
        exchanged: Exchanged,
        own: &[u8],
        (what, spi_in): (What, u32),
        payloads: &[Payload<'_>],
    ) -> Result<(Identity, ChildSa, Vec<u8>), Failure> {
        let child = what.child().ok_or_else(missing_sa)?;
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        let established = established.ok_or_else(missing_sa)?;
        let id = &established.peer;
        let config = self.child_config(spi, child).ok_or_else(missing_sa)?;
        let heard = child::Heard::read(payloads)?;
        let required = self.config.rekeying.require_pfs;
        let Exchanged {
            policy,
            kex,
            additional,
        } = exchanged;
        let exchanges = child::Exchanges {
            policy: &policy,
            group: kex.group(),
            required,
            kem: additional.as_ref().map(|(kem, _)| *kem),
        };
        let (agreed, with_ke) = child::check_rekey(id, &config, &heard, &exchanges)?;
        self.check_alike(spi, child, &agreed)?;
        self.check_spi_out(spi, agreed.chosen.spi)?;
        let theirs = init::nonce(payloads).ok_or_else(|| missing("nonce"))?;
        let shared = with_ke.then(|| agree(kex, payloads)).transpose()?;
        let nonces = Nonces {
            initiator: own,
            responder: theirs,
        };
        let secrets = Secrets {
            shared: shared.as_ref(),
            additional: additional.as_ref().map(|(_, secret)| secret),
        };
        let sk_d = &established.sk_d;
        let child = agreed.key(child, spi_in, Role::Initiator, sk_d, nonces, secrets)?;
        Ok((id.clone(), child, theirs.to_vec()))
    }

    /// Two CHILD_SAs of one peer never have the same outbound SPI.
    pub(in crate::endpoint) fn check_spi_out(&self, spi: u64, spi_out: u32) -> Result<(), Failure> {
        let taken = |child: &ChildRef| child.spi_out == spi_out;
        if self.children(spi).iter().any(taken) {
            return Err(missing("SPI that is not in use"));
        }
        Ok(())
    }

    /// Adds a CHILD_SA, the successor of `old` where there is one, and tells the driver.
    pub(in crate::endpoint) fn install_child(
        &mut self,
        spi: u64,
        id: &Identity,
        mut child: ChildSa,
        old: Option<u32>,
        now: Instant,
    ) {
        if !self.is_listed(id, spi) {
            self.enlist_with_first_child(spi, id, now);
        }
        child.volume = self.draw_volume(id, child.esn);
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        child.udp_encapsulation = sa.encapsulation_of(child.encapsulation);
        let Some(sa) = sa.established_mut() else {
            return;
        };
        let mut made = ChildRef::new(&child, old);
        // A rekey may leave it out (RFC 9611 §3).
        let before = sa.children.iter().find(|child| Some(child.spi_in) == old);
        made.per_cpu |= before.is_some_and(|before| before.per_cpu);
        sa.children.push(made);
        match old {
            Some(old) => self.timers.cancel(&Timer::RekeyChild(old)),
            None => self.timers.cancel(&Timer::MakeChild(spi, child.id)),
        }
        self.start_child_lifetime(id, child.spi_in, now);
        let (spi_in, spi_out) = (
            format_args!("{:08x}", child.spi_in),
            format_args!("{:08x}", child.spi_out),
        );
        tracing::info!(peer = %id, role = ?child.role, %spi_in, %spi_out, rekeyed = old.is_some(), "CHILD_SA made");
        self.events.push_back(Event::ChildUp {
            peer: id.clone(),
            child: Box::new(child),
            announcement: None,
        });
        self.bound_sas(id);
    }
}

/// This end's half of what was exchanged, and what it had offered.
struct Exchanged {
    policy: IkePolicy,
    kex: KeyExchange,
    additional: Option<(Kem, SharedSecret)>,
}

/// Stands for a CHILD_SA that only the peer has.
fn unborn(spi_in: u32, spi_out: u32, suite: ChildSuite) -> ChildRef {
    ChildRef {
        id: ChildId::FIRST,
        spi_in,
        spi_out,
        suite,
        esn: false,
        volume: Volume::UNLIMITED,
        per_cpu: false,
        role: Role::Initiator,
        replaces: None,
        confirmed: false,
        known: true,
        ready: None,
    }
}
