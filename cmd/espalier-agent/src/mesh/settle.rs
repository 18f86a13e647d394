//! After every fact: kernel first, then IKE, then what is said to peers.

use std::time::Instant;

use espalier_dataplane_core::Dataplane;
use espalier_ike::{Identity, IkeStatus};
use espalier_overlay::{Desired, Vtep};
use espalier_peers::{Mode, View, gateway, vtep_mac};
use tracing::{debug, info, warn};

use super::peer::{PeerState, VNI, VXLAN_PORT};
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
        self.settle_ways(now);
        self.drop_adopted(now).await;
        self.fill_plane().await;
        self.fill_gateways(now).await;
        for peer in self.peers.values_mut() {
            peer.pair.step(now);
        }
        self.pin_changed();
        if self.settle_kernel(now) {
            self.remove_unused().await;
            self.let_choose(now);
            self.settle_ike(now);
            self.settle_gateways(now);
            self.announce(now);
            let asked = self.due_probes(now);
            self.asked.extend(asked);
        }
    }

    /// Every peer is in the data plane in all modes: a stricter peer may begin at any moment.
    async fn fill_plane(&mut self) {
        if !self.uplink.answers() {
            return;
        }
        let tries = self.terms.tries();
        let stale =
            |peer: &PeerState| !peer.in_plane || !peer.switched || peer.best(tries) != peer.active;
        let names: Vec<String> = self
            .peers
            .iter()
            .filter(|(_, peer)| stale(peer))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            if let Err(e) = self.put_in_plane(&name).await {
                warn!(peer = name, error = %e, "the data plane does not take the peer");
                if let Some(peer) = self.peers.get_mut(&name) {
                    peer.problem = Some(e.to_string());
                }
                continue;
            }
            self.switch_to_best(&name).await;
        }
    }

    /// True when the kernel is as it should be.
    pub(super) fn settle_kernel(&mut self, now: Instant) -> bool {
        let Some(desired) = self.desired() else {
            return true;
        };
        // When all was read last, if that is not too long ago.
        let read_at = self.applied.as_ref().map(|(_, at)| *at);
        let read_at = read_at.filter(|at| now < *at + RESYNC);
        let same = self
            .applied
            .as_ref()
            .is_some_and(|(applied, _)| *applied == desired);
        if same && read_at.is_some() {
            return true;
        }
        if self.retry_kernel_at.is_some_and(|at| now < at) {
            return false;
        }
        let overlay = &mut self.parts.overlay;
        let applied = tokio::task::block_in_place(|| match read_at {
            Some(_) => overlay.apply_changes(&desired),
            None => overlay.apply(&desired),
        });
        match applied {
            Ok(done) => {
                if done.writes > 0 {
                    debug!(writes = done.writes, "kernel brought in line");
                }
                self.pod_mtu = done.pod_mtu;
                self.applied = Some((desired, read_at.unwrap_or(now)));
                (self.kernel_problem, self.retry_kernel_at) = (None, None);
                true
            }
            Err(e) => {
                warn!(error = %e, "the kernel cannot be brought in line; trying again");
                (self.applied, self.kernel_problem) = (None, Some(e.to_string()));
                self.retry_kernel_at = Some(now + RETRY);
                false
            }
        }
    }

    /// What the kernel should hold; `None` before this node's own Node object is known.
    fn desired(&self) -> Option<Desired> {
        let own = self.set.own.as_ref()?;
        let views: Vec<(&String, View)> = self
            .peers
            .iter()
            .map(|(name, peer)| (name, peer.pair.view()))
            .collect();
        let strict = self.snapshot.policy.mode == Mode::Required
            || views.iter().any(|(_, view)| view.enforced);
        let peers = self.peers.iter().zip(&views);
        Some(Desired {
            local: *own.addresses.first()?,
            vtep: Vtep {
                mac: vtep_mac(&own.name),
                vni: VNI,
                port: VXLAN_PORT,
                mtu: None,
            },
            pod_cidrs: own.pod_cidrs.clone(),
            gateways: own.pod_cidrs.iter().map(|cidr| gateway(*cidr)).collect(),
            cluster_cidrs: self.snapshot.policy.cluster_cidrs.clone(),
            framing: self.terms.framing(),
            engine: self.uplink.engine(),
            deny_clear: strict,
            externals: self.external_routes(),
            peers: peers
                .map(|((name, peer), (_, view))| {
                    let idle = self.is_idle(peer, view);
                    (name.clone(), peer.for_kernel(view, self.terms.ah(), idle))
                })
                .collect(),
        })
    }

    /// IKE SAs where they are wanted, and only there.
    fn settle_ike(&mut self, now: Instant) {
        if self.uplink.is_kernel_away() {
            return; // what there is carries on
        }
        let plane_is_up = self.uplink.answers();
        let on_demand = self.on_demand();
        for (name, peer) in &mut self.peers {
            let id = Identity(name.as_str().into());
            let status = self.parts.endpoint.status(&id);
            let (connected, established) =
                (status != IkeStatus::None, status == IkeStatus::Established);
            let view = peer.pair.view();
            let wanted = view.wants_sa && plane_is_up && peer.config_problem.is_none();
            // Made by the first packet, at either end, and kept while there are any.
            let wanted = wanted && (!on_demand.is(&view) || peer.demanded.is_some() || established);
            if wanted && !connected {
                let why = peer.why_connect();
                info!(peer = %name, ?why, "connecting");
                self.parts.endpoint.connect(&id, why, now);
            } else if !wanted && connected {
                info!(peer = %name, "SAs are not needed any more");
                self.parts.endpoint.disconnect(&id, now);
            }
            peer.lost_sas &= !plane_is_up;
        }
    }

    /// Tells peers what has changed on this end. Only what is in force is said.
    fn announce(&mut self, now: Instant) {
        for (name, peer) in &mut self.peers {
            let news = peer.announcement();
            if peer.said != Some(news) {
                let id = Identity(name.as_str().into());
                debug!(peer = %name, ?news, "announcing");
                self.parts.endpoint.announce(&id, news.to_bytes(), now);
                peer.said = Some(news);
            }
        }
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
