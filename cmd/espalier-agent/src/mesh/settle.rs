//! After every fact: kernel first, then IKE, then what is said to peers.

use std::time::Instant;

use espalier_dataplane_core::Dataplane;
use espalier_ike::{Identity, IkeStatus};
use tracing::{debug, info, warn};

use super::peer::PeerState;
use super::{Kernel, Mesh, RESYNC, RETRY};

/// Settling makes IKE events, which are settled in turn; more than this wait for the next fact.
const ROUNDS: usize = 4;

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    /// Brings kernel, IKE and peers in line with what is known now.
    pub(super) async fn settle(&mut self) {
        self.settle_world().await;
        self.publish_facts();
        self.send_datagrams().await;
        self.serve_probes();
        for peer in std::mem::take(&mut self.asked) {
            self.probes.ask(peer);
        }
    }

    /// All but the datagrams that follow from it.
    pub(super) async fn settle_world(&mut self) {
        // What connect and disconnect say must be acted on before the datagrams that follow from it.
        for round in 0..ROUNDS {
            if !self.take_ike_events().await && round > 0 {
                break;
            }
            self.settle_once().await;
        }
    }

    async fn settle_once(&mut self) {
        let now = Instant::now();
        let turn = self.peers.take_turn(now);
        self.settle_ways(&turn, now);
        self.drop_adopted(&turn, now).await;
        self.fill_plane(&turn).await;
        self.fill_gateways(now).await;
        self.peers.for_turn(&turn, |_, peer| peer.pair.step(now));
        self.pin_changed(&turn);
        let in_line = self.settle_kernel(now);
        if in_line {
            self.remove_unused().await;
            self.let_choose(&turn, now);
            self.settle_ike(&turn, now);
            self.settle_gateways(now);
            self.announce(&turn, now);
            let asked = self.due_probes(&turn, now);
            self.asked.extend(asked);
        }
        self.peers.end_turn(turn, in_line);
    }

    /// Every peer is in the data plane in all modes: a stricter peer may begin at any moment.
    async fn fill_plane(&mut self, turn: &[String]) {
        if !self.uplink.answers() {
            return;
        }
        let tries = self.terms.tries();
        let stale =
            |peer: &PeerState| !peer.in_plane || !peer.switched || peer.best(tries) != peer.active;
        for name in turn {
            if !self.peers.get(name).is_some_and(stale) {
                continue;
            }
            if let Err(e) = self.put_in_plane(name).await {
                warn!(peer = name, error = %e, "the data plane does not take the peer");
                if let Some(peer) = self.peers.get_mut(name) {
                    peer.problem = Some(e.to_string());
                }
                continue;
            }
            self.switch_to_best(name).await;
        }
    }

    /// True when the kernel is as it should be.
    pub(super) fn settle_kernel(&mut self, now: Instant) -> bool {
        self.want();
        let Some(desired) = &self.wanted.desired else {
            return true;
        };
        let read_at = self.read_at.filter(|at| now < *at + RESYNC);
        if self.wanted.applied && read_at.is_some() {
            return true;
        }
        if self.retry_kernel_at.is_some_and(|at| now < at) {
            return false;
        }
        let overlay = &mut self.parts.overlay;
        let applied = tokio::task::block_in_place(|| match read_at {
            Some(_) => overlay.apply_changes(desired),
            None => overlay.apply(desired),
        });
        self.wanted.applied = applied.is_ok();
        match applied {
            Ok(done) => {
                if done.writes > 0 {
                    debug!(writes = done.writes, "kernel brought in line");
                }
                self.pod_mtu = done.pod_mtu;
                self.kernel_note = done.note;
                self.read_at = Some(read_at.unwrap_or(now));
                (self.kernel_problem, self.retry_kernel_at) = (None, None);
                true
            }
            Err(e) => {
                warn!(error = %e, "the kernel cannot be brought in line; trying again");
                (self.read_at, self.kernel_problem) = (None, Some(e.to_string()));
                self.retry_kernel_at = Some(now + RETRY);
                false
            }
        }
    }

    /// IKE SAs where they are wanted, and only there.
    fn settle_ike(&mut self, turn: &[String], now: Instant) {
        if self.uplink.is_kernel_away() {
            return; // what there is carries on
        }
        let plane_is_up = self.uplink.answers();
        let on_demand = self.on_demand();
        let endpoint = &mut self.parts.endpoint;
        self.peers.for_turn(turn, |name, peer| {
            let id = Identity(name.into());
            let status = endpoint.status(&id);
            let (connected, established) =
                (status != IkeStatus::None, status == IkeStatus::Established);
            let view = peer.pair.view();
            let wanted = view.wants_sa && plane_is_up && peer.config_problem.is_none();
            // Made by the first packet, at either end, and kept while there are any.
            let wanted = wanted && (!on_demand.is(&view) || peer.demanded.is_some() || established);
            if wanted && !connected {
                let why = peer.why_connect();
                info!(peer = name, ?why, "connecting");
                endpoint.connect(&id, why, now);
            } else if !wanted && connected {
                info!(peer = name, "SAs are not needed any more");
                endpoint.disconnect(&id, now);
            }
            peer.lost_sas &= !plane_is_up;
        });
    }

    /// Tells peers what has changed on this end. Only what is in force is said.
    fn announce(&mut self, turn: &[String], now: Instant) {
        let endpoint = &mut self.parts.endpoint;
        self.peers.for_turn(turn, |name, peer| {
            let news = peer.announcement();
            if peer.said != Some(news) {
                debug!(peer = name, ?news, "announcing");
                endpoint.announce(&Identity(name.into()), news.to_bytes(), now);
                peer.said = Some(news);
            }
        });
    }

    async fn send_datagrams(&mut self) {
        // Without the kernel's process nothing can be installed that they might promise. IKE sends them again.
        let silent = self.uplink.is_kernel_away();
        while let Some(transmit) = self.parts.endpoint.poll_transmit() {
            if silent {
                continue;
            }
            if let Err(e) = self.parts.io.send(&transmit).await {
                debug!(remote = %transmit.path.remote, error = %e, "an IKE datagram could not be sent; IKE sends it again");
            }
        }
    }
}
