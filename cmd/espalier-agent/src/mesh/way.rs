//! Raw ESP or ESP in UDP: what a pair's [`espalier_peers::Way`] wants is done (docs/encapsulation.md).

use std::net::IpAddr;
use std::time::Instant;

use espalier_dataplane_core::{Dataplane, Direction, Encapsulation, SaInfo};
use espalier_ike::Identity;
use espalier_peers::Said;
use tracing::{info, warn};

use super::peer::{FALLBACK, PeerState};
use super::terms::Ends;
use super::{Kernel, Mesh};

impl PeerState {
    /// An SA of number 0 was installed.
    pub(super) fn note_first_child(&mut self, raw: bool, now: Instant) {
        match self.sas.last() {
            Some(sa) if raw => {
                self.way.made_raw(sa.spi_in.0, sa.spi_out.0, now);
                if sa.confirmed {
                    self.way.opens(sa.spi_out.0);
                }
            }
            _ => self.way.made_udp_only(now),
        }
    }

    /// The peer has the SAs with these inbound SPIs.
    pub(super) fn note_opened(&mut self, spis: &[u32]) {
        for sa in self.sas.iter().filter(|sa| spis.contains(&sa.spi_in.0)) {
            self.way.opens(sa.spi_out.0);
        }
    }

    /// What the data plane's counters say of this peer's SAs. Silence is counted from what changed here: what a kernel says of its last
    /// use is not the same everywhere.
    pub(super) fn note_counters(&mut self, sas: &[&SaInfo], now: Instant) {
        let raw = |sa: &&&SaInfo| sa.encapsulation == Encapsulation::Raw;
        let sum = |direction| -> u64 {
            let of = sas.iter().filter(|sa| sa.direction == direction);
            of.map(|sa| sa.packets).sum()
        };
        let raw_sum = |direction| -> u64 {
            let of = sas
                .iter()
                .filter(raw)
                .filter(|sa| sa.direction == direction);
            of.map(|sa| sa.packets).sum()
        };
        let seen = &mut self.seen;
        let all = sum(Direction::In).wrapping_add(sum(Direction::Out));
        if all != seen.all {
            (seen.all, seen.traffic_at) = (all, now);
        }
        let (came, went) = (raw_sum(Direction::In), raw_sum(Direction::Out));
        if came != seen.raw_in {
            (seen.raw_in, seen.raw_in_at) = (came, now);
        }
        let sends = went != std::mem::replace(&mut seen.raw_out, went);
        let silent = now.saturating_duration_since(seen.raw_in_at);
        for sa in sas.iter().filter(raw) {
            // The event may have come before this agent listened.
            if sa.direction == Direction::In && sa.packets > 0 {
                self.way.heard(sa.spi.0, now);
            }
        }
        self.way.traffic(sends, Some(silent), now);
    }
}

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    pub(super) fn told_way(&mut self, name: &str, said: Said) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.way.told(said, Instant::now());
        }
    }

    /// Before the kernel is settled: which SAs there are to be.
    pub(super) fn settle_ways(&mut self, turn: &[String], now: Instant) {
        let tries = self.terms.tries();
        let mut changed = Vec::new();
        self.peers.for_turn(turn, |name, peer| {
            peer.way.step(now);
            if !tries && !peer.has_fallback {
                return;
            }
            if peer.way.wants_trial(now) && !self.uplink.is_kernel_away() {
                info!(peer = name, "raw ESP is tried again");
                self.parts.endpoint.rekey_child(&Identity(name.into()), now);
            }
            if (tries && peer.way.wants_udp()) != peer.has_fallback {
                changed.push(name.to_owned());
            }
        });
        changed
            .iter()
            .for_each(|name| self.toggle_fallback(name, now));
    }

    /// A CHILD_SA in UDP beside the raw one, or no longer.
    fn toggle_fallback(&mut self, name: &str, now: Instant) {
        let (Some(peer), Some(own)) = (self.peers.get_mut(name), &self.set.own) else {
            return;
        };
        let id = Identity(name.into());
        peer.has_fallback = !peer.has_fallback;
        if !peer.has_fallback {
            info!(peer = name, "raw ESP passes; ESP in UDP is given up");
            return self.parts.endpoint.remove_child(&id, FALLBACK, now);
        }
        warn!(
            peer = name,
            "raw ESP does not arrive at both ends: ESP in UDP"
        );
        let (local, remote) = peer.addresses;
        let ends = Ends {
            own,
            peer: &peer.spec,
            local,
            remote,
        };
        let child = self.terms.fallback(&ends);
        if let Err(error) = self.parts.endpoint.add_child(&id, FALLBACK, child, now) {
            warn!(peer = name, %error, "no CHILD_SA in UDP");
        }
    }

    /// After the kernel was settled: the policies put probes through the SA that they are to try. Whom to ask.
    pub(super) fn due_probes(&mut self, turn: &[String], now: Instant) -> Vec<IpAddr> {
        if !self.uplink.is_kernel() {
            return Vec::new();
        }
        let mut due = Vec::new();
        self.peers.for_turn(turn, |_, peer| {
            due.extend(peer.way.wants_probe(now).then_some(peer.addresses.1));
        });
        due
    }

    pub(super) fn serve_probes(&mut self) {
        let Some(own) = &self.set.own else {
            return;
        };
        let mut pairs = self.peers.values().map(|peer| peer.addresses);
        let local = pairs.next().map(|(local, _)| local);
        let local = local.or(own.addresses.first().copied());
        if let Some(local) = local.filter(|_| self.uplink.is_kernel()) {
            self.probes.serve(local);
        }
    }
}
