//! The operations of the seam, on plain maps under one lock. The threads see their outcome as a new snapshot.

mod check;
mod frozen;
mod seam;
mod used;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use espalier_dataplane_core::check::spi_taken;
use espalier_dataplane_core::{Direction, Error, Peer, PeerId, Sa, SaInfo, Spi};
use tracing::info;

use crate::rx::Carrier;
use crate::sa::{Inbound, Outbound};
use crate::tables::{PeerEntry, PeerState, Tables};
pub(crate) use check::Ways;
use used::UsedKeys;

/// Everything the data plane was told.
pub(crate) struct Control {
    ways: Ways,
    peers: BTreeMap<PeerId, Arc<PeerEntry>>,
    inbound: BTreeMap<Spi, (Arc<Inbound>, Arc<PeerEntry>)>,
    outbound: BTreeMap<Spi, Arc<Outbound>>,
    used: UsedKeys,
}

impl Control {
    pub(crate) fn new(ways: Ways) -> Self {
        Self {
            ways,
            peers: BTreeMap::new(),
            inbound: BTreeMap::new(),
            outbound: BTreeMap::new(),
            used: UsedKeys::default(),
        }
    }

    pub(crate) fn tables(&self) -> Tables {
        Tables::new(self.peers.values(), self.inbound.values())
    }

    pub(crate) fn put_peer(&mut self, peer: Peer) -> Result<(), Error> {
        let known = self.peers.get(&peer.id);
        if known.is_some_and(|known| known.peer == peer) {
            return Ok(());
        }
        check::peer(&peer, self.peers.values().map(|entry| &entry.peer))?;
        let state = known.map_or_else(Arc::default, |known: &Arc<PeerEntry>| known.state.clone());
        info!(peer = %peer.id, remote = %peer.remote, overlay = ?peer.overlay, "peer put");
        let id = peer.id.clone();
        let entry = Arc::new(PeerEntry::new(peer, state));
        for (_, owner) in self.inbound.values_mut().filter(|(sa, _)| sa.sa.peer == id) {
            *owner = entry.clone();
        }
        self.peers.insert(id, entry);
        Ok(())
    }

    pub(crate) fn remove_peer(&mut self, id: &PeerId) {
        if let Some(entry) = self.peers.remove(id) {
            entry.state.active.store(None);
            self.inbound.retain(|_, (sa, _)| sa.sa.peer != *id);
            self.outbound.retain(|_, sa| sa.sa.peer != *id);
            info!(peer = %id, "peer removed with its SAs");
        }
    }

    pub(crate) fn install_sa(&mut self, sa: Sa, now: Instant) -> Result<(), Error> {
        if self.installed(&sa) {
            return Ok(());
        }
        let entry = self
            .peers
            .get(&sa.peer)
            .ok_or_else(|| Error::NoSuchPeer(sa.peer.clone()))?
            .clone();
        let remote_port = check::sa(&sa, &entry.peer, &self.ways)?;
        if let Some((other, _)) = self
            .inbound
            .get(&sa.spi)
            .filter(|_| sa.direction == Direction::In)
        {
            return Err(spi_taken(sa.spi, &other.sa.peer));
        }
        self.used.claim(&sa)?;
        let (peer, spi, direction) = (sa.peer.clone(), sa.spi, sa.direction);
        match direction {
            Direction::In => {
                let sa = Inbound::new(sa, now).map_err(check::key)?;
                self.inbound.insert(spi, (Arc::new(sa), entry));
            }
            Direction::Out => {
                let sa = Outbound::new(sa, remote_port, now).map_err(check::key)?;
                self.outbound.insert(spi, Arc::new(sa));
            }
        }
        info!(%peer, %spi, ?direction, "SA installed");
        Ok(())
    }

    pub(crate) fn switch_outbound(&self, peer: &PeerId, spi: Option<Spi>) -> Result<(), Error> {
        let entry = self
            .peers
            .get(peer)
            .ok_or_else(|| Error::NoSuchPeer(peer.clone()))?;
        let sa = match spi {
            None => None,
            Some(spi) => {
                let sa = self.outbound.get(&spi).filter(|sa| sa.sa.peer == *peer);
                Some(
                    sa.ok_or_else(|| Error::NoSuchSa(peer.clone(), spi))?
                        .clone(),
                )
            }
        };
        entry.state.active.store(sa);
        info!(%peer, ?spi, "outbound SA switched");
        Ok(())
    }

    pub(crate) fn remove_sa(&mut self, direction: Direction, spi: Spi) {
        let owner = match direction {
            Direction::In => self.inbound.remove(&spi).map(|(sa, _)| sa.sa.peer.clone()),
            Direction::Out => self.outbound.remove(&spi).map(|sa| self.deactivate(&sa)),
        };
        if let Some(peer) = owner {
            info!(%peer, %spi, ?direction, "SA removed");
        }
    }

    /// Raw ESP may come in.
    pub(crate) fn opens_raw(&self) -> bool {
        let mut inbound = self.inbound.values();
        inbound.any(|(sa, _)| sa.carrier() == Carrier::Raw)
    }

    /// Every SA, inbound ones first, by SPI.
    pub(crate) fn sas(&self, now: Instant) -> Vec<SaInfo> {
        let inbound = self.inbound.values().map(|(sa, _)| sa.info(now));
        let outbound = self
            .outbound
            .values()
            .map(|sa| sa.info(self.is_active(sa), now));
        inbound.chain(outbound).collect()
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = &PeerEntry> {
        self.peers.values().map(|entry| &**entry)
    }

    fn installed(&self, sa: &Sa) -> bool {
        match sa.direction {
            Direction::In => self
                .inbound
                .get(&sa.spi)
                .is_some_and(|(known, _)| known.sa == *sa),
            Direction::Out => self
                .outbound
                .get(&sa.spi)
                .is_some_and(|known| known.sa == *sa),
        }
    }

    fn active_of(&self, peer: &PeerId) -> Option<&PeerState> {
        self.peers.get(peer).map(|entry| &*entry.state)
    }

    fn is_active(&self, sa: &Arc<Outbound>) -> bool {
        self.active_of(&sa.sa.peer).is_some_and(|state| {
            state
                .active
                .load()
                .as_ref()
                .is_some_and(|active| Arc::ptr_eq(active, sa))
        })
    }

    /// Lets nothing more be sealed with `sa`; says whose it is.
    fn deactivate(&self, sa: &Arc<Outbound>) -> PeerId {
        if self.is_active(sa) {
            self.active_of(&sa.sa.peer)
                .into_iter()
                .for_each(|state| state.active.store(None));
        }
        sa.sa.peer.clone()
    }
}

#[cfg(test)]
mod tests;
