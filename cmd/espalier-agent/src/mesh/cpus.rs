//! SAs of single CPUs (RFC 9611): when the kernel may choose among a peer's outbound states (docs/kernel.md).
//!
//! A policy that pins an SPI has everything sealed with that SA. One that names the reqid alone lets the kernel choose among *all* of
//! the peer's outbound states: one of the packet's CPU, else one of no CPU, and of several the newest by the second. It may keep
//! what it has chosen for as long as the policy is the same. So it chooses only while there is no state that must not be used, and
//! before that changes all packets go to the SA of no CPU: each step is one policy written over the other, and nothing is lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use espalier_dataplane_core::{Dataplane, Direction, Spi};
use espalier_overlay::Protect;
use tracing::debug;

use super::peer::{PeerState, SaPair};
use super::removals::Removal;
use super::{Kernel, Mesh};

/// The kernel tells older from newer states by whole seconds.
const APART: Duration = Duration::from_secs(2);

impl PeerState {
    /// How the policy names what seals.
    pub(super) fn sealing(&self, active: Spi) -> Protect {
        let pinned = self.protect(active);
        Protect {
            spi: pinned.spi.filter(|_| self.chooses.is_none()),
            ..pinned
        }
    }

    /// How many CPUs seal with an SA of their own.
    pub(super) fn cpus(&self) -> u32 {
        let chosen = self.chooses.as_ref().map_or(0, BTreeSet::len);
        u32::try_from(chosen.saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// What the kernel would choose: the newest outbound SA of each CPU, and of none. `None`: there are no such SAs, or it could
    /// choose wrong.
    fn choice(&self) -> Option<BTreeSet<Spi>> {
        if self.sas.iter().all(|sa| sa.cpu.is_none()) {
            return None;
        }
        let is_active = |sa: &&SaPair| Some(sa.spi_out) == self.active;
        let active = self.sas.iter().find(is_active)?;
        let fits = |sa: &SaPair| sa.raw == active.raw && sa.suite == active.suite;
        if !self.adopted.is_empty() || !self.sas.iter().all(fits) {
            return None;
        }
        let cpus: BTreeSet<_> = self.sas.iter().map(|sa| sa.cpu).collect();
        let newest = cpus.iter().map(|cpu| self.newest_of(*cpu));
        let choice: BTreeSet<Spi> = newest.collect::<Option<_>>()?;
        choice.contains(&active.spi_out).then_some(choice)
    }

    /// If the kernel cannot take another one for it, and the peer opens it.
    fn newest_of(&self, cpu: Option<u32>) -> Option<Spi> {
        let mut same = self.sas.iter().rev().filter(|sa| sa.cpu == cpu);
        let newest = same.next().filter(|sa| sa.confirmed)?;
        let older = |sa: &SaPair| sa.installed + APART <= newest.installed;
        same.all(older).then_some(newest.spi_out)
    }

    /// For each SA of a single CPU that was adopted there is one that was negotiated since.
    pub(super) fn replaces_adopted(&self) -> bool {
        let mut adopted = self
            .adopted
            .iter()
            .filter(|sa| sa.direction == Direction::Out);
        adopted.all(|old| {
            let replaces = |sa: &SaPair| sa.confirmed && sa.cpu == old.cpu;
            old.cpu.is_none() || self.sas.iter().any(replaces)
        })
    }

    /// The peer has announced that it opens this SA: it has those that it had asked for before, since it asks for one after the
    /// other. Their inbound SPIs.
    pub(super) fn confirm_announced(&mut self, opens: Spi) -> Vec<u32> {
        let at = self.sas.iter().position(|sa| sa.spi_out == opens);
        self.confirm_asked(at.map_or(0, |at| at + 1))
    }

    /// The peer seals with this SA.
    pub(super) fn confirm_used(&mut self, spi_in: Spi) -> Vec<u32> {
        let Some(at) = self.sas.iter().position(|sa| sa.spi_in == spi_in) else {
            return Vec::new();
        };
        let before = match self.sas.get_mut(at) {
            Some(sa) => {
                sa.confirmed = true;
                if sa.granted { at } else { 0 }
            }
            None => 0,
        };
        let mut confirmed = self.confirm_asked(before);
        confirmed.push(spi_in.0);
        confirmed
    }

    fn confirm_asked(&mut self, upto: usize) -> Vec<u32> {
        let sas = self.sas.iter_mut().take(upto);
        let asked = sas.filter(|sa| sa.granted && !sa.confirmed);
        let confirm = |sa: &mut SaPair| {
            sa.confirmed = true;
            sa.spi_in.0
        };
        asked.map(confirm).collect()
    }
}

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    /// Before the kernel is settled: what it chooses from is another now.
    pub(super) fn pin_changed(&mut self, turn: &[String]) {
        self.peers.for_turn(turn, |_, peer| {
            if peer.chooses.is_some() && peer.chooses != peer.choice() {
                peer.chooses = None;
            }
        });
    }

    /// Before a state is installed that must not be used yet.
    pub(super) fn pin(&mut self, name: &str) {
        let chooses = self.peers.get_mut(name).map(|peer| &mut peer.chooses);
        if chooses.is_some_and(|chooses| chooses.take().is_some()) {
            self.settle_kernel(Instant::now());
        }
    }

    /// After the kernel was settled and what is unused removed: where it may choose, it does.
    pub(super) fn let_choose(&mut self, turn: &[String], now: Instant) {
        let removals = &self.removals;
        let mut choosing = Vec::new();
        self.peers.for_turn(turn, |name, peer| {
            if peer.chooses.is_some() {
                return;
            }
            let waits =
                |removal: &Removal| matches!(removal, Removal::Sa { peer, .. } if peer == name);
            peer.chooses = peer.choice().filter(|_| !removals.iter().any(waits));
            if let Some(choice) = &peer.chooses {
                debug!(
                    peer = name,
                    sas = choice.len(),
                    "the kernel chooses SAs by CPU"
                );
                choosing.push(name.to_owned());
            }
        });
        if !choosing.is_empty() {
            self.peers.change(choosing);
            self.settle_kernel(now);
        }
    }
}
