//! The answer to this end's rekey of a CHILD_SA (RFC 7296 §1.3.3, §2.8.1).

use std::time::Instant;

use super::{agree, missing, missing_sa};
use crate::child;
use crate::config::Identity;
use crate::crypto::{KeyExchange, Nonces};
use crate::endpoint::Endpoint;
use crate::error::Failure;
use crate::event::{ChildSa, Event, Role};
use crate::limits;
use crate::sa::{ChildRef, Made, Rekey, init};
use crate::timers::Timer;
use crate::wire::{Payload, ProtocolId};

impl Endpoint {
    pub(super) fn child_rekeyed(
        &mut self,
        spi: u64,
        rekey: Rekey,
        (old, spi_in): (u32, u32),
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
        let judged = self.judge_child_response(spi, rekey.kex, &own, spi_in, payloads);
        let (id, child, theirs) = match judged {
            Ok(judged) => judged,
            Err(failure) => {
                tracing::warn!(?what, "rekey failed: {failure}");
                self.spis.remove(&spi_in);
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
        let lost = crossed.is_some_and(|crossed| {
            let there =
                matches!(crossed.made, Made::Child(made) if self.find_child(spi, made).is_some());
            there && own.min(theirs) < crossed.nonce
        });
        if lost || self.newest_sa(&id) != Some(spi) {
            self.spis.remove(&spi_in);
            let gone = unborn(spi_in, child.spi_out, child.suite.protocol());
            return self.owe_delete(spi, gone, now);
        }
        self.install_rekeyed(spi, &id, child, old, now);
        let mesh = self.is_mesh(spi);
        if let Some(peer) = self.peers.get_mut(&id).filter(|_| mesh) {
            // Tells the responder that this end is ready, too.
            peer.pending = true;
        }
        if !mesh {
            self.child_confirmed(spi, spi_in, now);
        }
    }

    /// The answer was of no use: the peer may have made a CHILD_SA of each protocol that was offered.
    pub(in crate::endpoint) fn owe_unborn(&mut self, spi: u64, spi_in: u32, now: Instant) {
        let config = self.sas.get(&spi).and_then(|sa| sa.established());
        let config = config.and_then(|sa| Some(&self.peers.get(&sa.peer)?.config.child));
        let mut protocols: Vec<ProtocolId> = Vec::new();
        for protocol in config
            .iter()
            .flat_map(|child| &child.suites)
            .map(|suite| suite.protocol())
        {
            if !protocols.contains(&protocol) {
                protocols.push(protocol);
            }
        }
        for protocol in protocols {
            self.owe_delete(spi, unborn(spi_in, 0, protocol), now);
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
    pub(in crate::endpoint) fn check_spi_out(&self, spi: u64, spi_out: u32) -> Result<(), Failure> {
        let taken = |child: &ChildRef| child.spi_out == spi_out;
        if self.children(spi).iter().any(taken) {
            return Err(missing("SPI that is not in use"));
        }
        Ok(())
    }

    /// Adds the successor of a CHILD_SA and tells the driver.
    pub(in crate::endpoint) fn install_rekeyed(
        &mut self,
        spi: u64,
        id: &Identity,
        mut child: ChildSa,
        old: u32,
        now: Instant,
    ) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        child.udp_encapsulation = sa.encapsulation();
        let Some(sa) = sa.established_mut() else {
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
}

/// Stands for a CHILD_SA that only the peer has.
fn unborn(spi_in: u32, spi_out: u32, protocol: ProtocolId) -> ChildRef {
    ChildRef {
        spi_in,
        spi_out,
        protocol,
        role: Role::Initiator,
        replaces: None,
        confirmed: false,
        known: true,
    }
}
