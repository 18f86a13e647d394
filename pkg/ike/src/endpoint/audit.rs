//! What an endpoint holds, and whether it all belongs together: read only, for status, tests and fuzzing.

use std::collections::BTreeSet;

use super::Endpoint;
use crate::config::Identity;
use crate::sa::{IkeSa, State};
use crate::timers::Timer;

/// How much there is of what needs memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Handshakes that this node began.
    pub initiating: usize,
    /// Handshakes that others began here (RFC 7296 §2.6).
    pub half_open: usize,
    /// IKE SAs in use, those being replaced included.
    pub established: usize,
    /// IKE SAs that are gone and wait for an acknowledgement or for repetitions of the last request.
    pub lingering: usize,
    /// CHILD_SA pairs under an IKE SA.
    pub children: usize,
    /// CHILD_SA pairs whose IKE SA timed out.
    pub orphans: usize,
    /// Inbound ESP SPIs that are not chosen: those of the CHILD_SAs, those offered and those reserved by the driver.
    pub spis: usize,
}

impl Endpoint {
    /// Counts what there is.
    #[must_use]
    pub fn holdings(&self) -> Holdings {
        let mut held = Holdings {
            spis: self.spis.len(),
            orphans: self.peers.values().map(|peer| peer.orphans.len()).sum(),
            ..Holdings::default()
        };
        for sa in self.sas.values() {
            match &sa.state {
                State::InitSent(_) | State::IntermediateSent(_) | State::AuthSent(_) => {
                    held.initiating += 1;
                }
                State::HalfOpen(_) => held.half_open += 1,
                State::Established(established) => {
                    held.established += 1;
                    held.children += established.children.len();
                }
                State::Closing(_) | State::Closed => held.lingering += 1,
            }
        }
        held
    }

    /// Looks for state with two owners, or with none.
    ///
    /// # Errors
    /// What does not belong together. It is a bug of this crate.
    pub fn audit(&self) -> Result<(), String> {
        self.audit_peers()?;
        self.audit_spis()?;
        for sa in self.sas.values() {
            self.audit_sa(sa)
                .map_err(|error| format!("IKE SA {:016x}: {error}", sa.spi))?;
        }
        if self.half_open.len() != self.holdings().half_open {
            return Err("the table of half-open IKE SAs is out of step".to_owned());
        }
        Ok(())
    }

    fn audit_peers(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (id, peer) in &self.peers {
            for spi in &peer.sas {
                let sa = self.sas.get(spi).and_then(|sa| sa.established());
                let sa = sa.ok_or_else(|| format!("{id} lists an IKE SA that is not in use"))?;
                if sa.peer != *id || !seen.insert(*spi) {
                    return Err(format!("{id} lists an IKE SA that is not its own"));
                }
            }
            let attempt = peer.attempt.map(|spi| self.sas.get(&spi).map(Box::as_ref));
            let own = |sa: &IkeSa| self.handshake_with(sa) == Some(id);
            if attempt.is_some_and(|sa| !sa.is_some_and(own)) {
                return Err(format!("{id} lists a handshake that is not there"));
            }
        }
        Ok(())
    }

    fn handshake_with<'a>(&self, sa: &'a IkeSa) -> Option<&'a Identity> {
        match &sa.state {
            State::InitSent(state) => Some(&state.peer),
            State::IntermediateSent(state) => Some(&state.peer),
            State::AuthSent(state) => Some(&state.peer),
            // Without its first CHILD_SA yet (RFC 6023).
            State::Established(state) if state.children.is_empty() => Some(&state.peer),
            _ => None,
        }
    }

    /// Each inbound SPI has one owner and is not to be chosen again.
    fn audit_spis(&self) -> Result<(), String> {
        let mut owned = Vec::new();
        for sa in self.sas.values() {
            match &sa.state {
                State::AuthSent(state) => owned.push(state.spi_in),
                State::Established(state) => {
                    owned.extend(state.children.iter().map(|child| child.spi_in));
                    owned.extend(state.rekey.as_ref().and_then(|rekey| rekey.spi_in()));
                    let pending = state.pending.as_ref();
                    owned.extend(pending.and_then(|pending| pending.spi_in()));
                }
                _ => {}
            }
        }
        let orphans = self.peers.values().flat_map(|peer| &peer.orphans);
        owned.extend(orphans.map(|(_, child)| child.spi_in));
        let mut seen = BTreeSet::new();
        match owned
            .iter()
            .find(|spi| !seen.insert(**spi) || !self.spis.contains_key(spi))
        {
            Some(spi) => Err(format!("inbound SPI {spi:08x} has two owners or is free")),
            None => Ok(()),
        }
    }

    /// Something will end it, or somebody uses it.
    fn audit_sa(&self, sa: &IkeSa) -> Result<(), String> {
        let set = |timer: Timer| self.timers.is_set(&timer);
        let ends = set(Timer::Expire(sa.spi));
        let asks = set(Timer::Retransmit(sa.spi));
        let gone = matches!(sa.state, State::Closed);
        if !gone && asks != sa.exchanges.pending().is_some() {
            return Err("a request in flight without retransmission, or the reverse".to_owned());
        }
        let State::Established(state) = &sa.state else {
            return match ends || asks {
                true => Ok(()),
                false => Err("nothing will ever end it".to_owned()),
            };
        };
        let listed = self.peers.get(&state.peer);
        let listed = listed.is_some_and(|peer| peer.sas.contains(&sa.spi));
        // One without CHILD_SA waits for what the answer to its rekey brings.
        let used = !state.children.is_empty() || (listed && state.rekey.is_some());
        if listed != used {
            return Err("it has CHILD_SAs and is not listed, or the reverse".to_owned());
        }
        if !(ends || listed && set(Timer::Liveness(sa.spi))) {
            return Err("nothing will ever end it".to_owned());
        }
        match state.rekey.is_some() && !asks {
            true => Err("a rekey that asks nobody".to_owned()),
            false => Ok(()),
        }
    }
}
