//! All of it, to be taken over by another process, and the taking over.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use espalier_dataplane_core::check::{require, spi_taken};
use espalier_dataplane_core::{
    Direction, Error, Frozen, FrozenPeer, FrozenSa, PeerId, Progress, Spi,
};
use espalier_esp::ReplayWindow;

use super::{Control, Ways, check};
use crate::sa::{Counters, Inbound, Outbound};
use crate::tables::{PeerEntry, PeerState};

impl Control {
    /// A copy of everything. Exact only while no thread uses it.
    pub(crate) fn freeze(&self, now: Instant) -> Frozen {
        let peers = self.peers.values().map(|entry| FrozenPeer {
            peer: entry.peer.clone(),
            stats: entry.state.stats(),
            active: entry.state.active.load().as_ref().map(|sa| sa.sa.spi),
        });
        let inbound = self.inbound.values().map(|(sa, _)| sa.freeze(now));
        let outbound = self.outbound.values().map(|sa| sa.freeze(now));
        Frozen {
            peers: peers.collect(),
            sas: inbound.chain(outbound).collect(),
            used: self.used.freeze(),
            ..Frozen::default()
        }
    }

    /// Takes it over, with the checks of the operations that made it.
    pub(crate) fn resume(ways: Ways, frozen: Frozen, now: Instant) -> Result<Self, Error> {
        let mut control = Self::new(ways);
        let mut active = Vec::new();
        for FrozenPeer {
            peer,
            stats,
            active: spi,
        } in frozen.peers
        {
            let id = peer.id.clone();
            require(!control.peers.contains_key(&id), "peers", || {
                format!("{id} is there twice")
            })?;
            check::peer(&peer, control.peers.values().map(|entry| &entry.peer))?;
            let state = Arc::new(PeerState::resume(&stats));
            let entry = PeerEntry::new(peer, state);
            control.peers.insert(id.clone(), Arc::new(entry));
            active.extend(spi.map(|spi| (id, spi)));
        }
        for sa in frozen.sas {
            control.resume_sa(sa, now)?;
        }
        // Those of SAs that are there now have their place among the others, which are older or younger.
        let there = std::mem::take(&mut control.used).freeze();
        control.used.resume(&frozen.used);
        control.used.resume(&there);
        for (peer, spi) in active {
            control.switch_outbound(&peer, Some(spi))?;
        }
        Ok(control)
    }

    fn resume_sa(&mut self, frozen: FrozenSa, now: Instant) -> Result<(), Error> {
        let FrozenSa {
            sa,
            counters,
            progress,
        } = frozen;
        let (spi, direction) = (sa.spi, sa.direction);
        let entry = self.owner(&sa.peer)?;
        let remote_port = check::sa(&sa, &entry.peer, &self.ways)?;
        self.used.claim(&sa)?;
        let counters = Counters::resume(&counters, now);
        match (direction, progress) {
            (Direction::Out, Progress::Sealed { last }) => {
                let sa = Outbound::new(sa, remote_port, now).map_err(check::key)?;
                self.outbound
                    .insert(spi, Arc::new(sa.after(counters, last)));
            }
            (Direction::In, Progress::Opened { top, words, proven }) => {
                if let Some((other, _)) = self.inbound.get(&spi) {
                    return Err(spi_taken(spi, &other.sa.peer));
                }
                let window = ReplayWindow::resume(sa.replay_window, top, &words);
                let window = window.ok_or_else(|| no_window(spi))?;
                let sa = Inbound::new(sa, now).map_err(check::key)?;
                let sa = sa.after(counters, window, proven);
                self.inbound.insert(spi, (Arc::new(sa), entry));
            }
            (direction, _) => return Err(other_direction(spi, direction)),
        }
        Ok(())
    }

    fn owner(&self, peer: &PeerId) -> Result<Arc<PeerEntry>, Error> {
        let entry = self.peers.get(peer);
        entry
            .cloned()
            .ok_or_else(|| Error::NoSuchPeer(peer.clone()))
    }
}

fn no_window(spi: Spi) -> Error {
    Error::Invalid {
        field: "window",
        why: format!("the bits of inbound SA {spi} are those of no replay window of its size"),
    }
}

fn other_direction(spi: Spi, direction: Direction) -> Error {
    Error::Invalid {
        field: "progress",
        why: format!(
            "SA {spi} is {direction:?} and has the sequence numbers of the other direction"
        ),
    }
}

impl PeerState {
    fn resume(stats: &espalier_dataplane_core::PeerStats) -> Self {
        let state = Self::default();
        state
            .no_sa_drops
            .store(stats.no_sa_drops, Ordering::Relaxed);
        state
            .policy_drops
            .store(stats.policy_drops, Ordering::Relaxed);
        state
    }
}

#[cfg(test)]
mod tests;
