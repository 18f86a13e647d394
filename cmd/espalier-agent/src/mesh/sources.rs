//! What comes in from manifests.

use std::time::Instant;

use espalier_dataplane_core::Dataplane;
use espalier_ike::Identity;
use espalier_peers::{Change, Limits, NodeSpec, Pair, PeerSet, Way};
use tracing::{info, warn};

use super::adopt::Found;
use super::peer::PeerState;
use super::removals::Removal;
use super::terms::{Ends, Terms, cpus_among};
use super::{Kernel, Mesh};

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    /// Brings peers and modes in line with the newest manifests.
    pub(super) async fn take_snapshot(&mut self) {
        self.snapshot = self.parts.snapshots.borrow_and_update().clone();
        for problem in &self.snapshot.problems {
            warn!(%problem, "manifests");
        }
        let set = PeerSet::new(&self.parts.node, &self.snapshot.nodes);
        if set.own.is_none() && self.set.own.is_some() {
            warn!("this node's Node object is gone; its peers stay as they are until it is back");
        } else {
            self.take_nodes(set).await;
        }
        let (mode, limits, now) = (self.snapshot.policy.mode, self.limits(), Instant::now());
        self.peers
            .all_mut()
            .for_each(|(_, peer)| peer.pair.set_mode(mode, limits, now));
    }

    async fn take_nodes(&mut self, set: PeerSet) {
        let starting = self.set.own.is_none();
        let found = if starting {
            // Nothing of another policy is known that would have to be ended.
            self.terms = self.terms_now();
            self.configure_endpoint();
            self.find().await
        } else {
            Found::default()
        };
        let mut changed = Vec::new();
        for change in set.changes_since(&self.set) {
            changed.extend(self.take_change(change, &set, &found));
        }
        if set.own != self.set.own {
            // The data plane is told this node's own pods with each peer, and so is IKE.
            self.peers
                .all_mut()
                .for_each(|(_, peer)| peer.in_plane = false);
            changed = self.peers.names();
        }
        self.set = set;
        changed.iter().for_each(|name| self.configure_ike(name));
        self.take_gateways(&found);
        self.take_terms();
        let all = self.peers.values().map(|peer| peer.addresses.1);
        self.probes.answer_to(all);
    }

    fn terms_now(&self) -> Terms {
        Terms {
            protection: self.snapshot.policy.protection.clone(),
            can: self.uplink.can(),
            cpus: cpus_among(self.snapshot.nodes.len()),
        }
    }

    /// What is negotiated follows the policy and the data plane. Another overlay or protocol needs other SAs: pairs start anew.
    pub(super) fn take_terms(&mut self) {
        let terms = self.terms_now();
        if terms == self.terms {
            return;
        }
        let old = std::mem::replace(&mut self.terms, terms);
        if old.protection.rekey != self.terms.protection.rekey {
            self.configure_endpoint();
        }
        self.configure_gateways();
        let anew = old.needs_other_sas(&self.terms);
        for name in self.peers.names() {
            self.configure_ike(&name);
            if anew {
                self.start_anew(&name);
            }
        }
    }

    /// Ends what there is with a peer; what is wanted is made again.
    fn start_anew(&mut self, name: &str) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.in_plane = false;
        let gone: Vec<_> = std::mem::take(&mut peer.adopted);
        if !gone.is_empty() {
            (peer.active, peer.drop_adopted_at) = (None, None);
            peer.pair.set_esp(false, now);
        }
        self.remove_later(name, gone.into_iter().map(|sa| (sa.direction, sa.spi)));
        self.parts.endpoint.disconnect(&Identity(name.into()), now);
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            clear_deadline: self.snapshot.policy.transition_deadline,
            ..Limits::default()
        }
    }

    /// The peer that is there now and is to be told to IKE.
    fn take_change(&mut self, change: Change, set: &PeerSet, found: &Found) -> Option<String> {
        let (spec, what) = match change {
            Change::Removed(name) => {
                self.remove_peer(&name);
                return None;
            }
            Change::Added(spec) => (spec, "added"),
            Change::Changed(spec) => (spec, "changed"),
        };
        info!(peer = %spec.name, "peer {what}");
        self.put_peer(spec, set, found)
    }

    fn put_peer(&mut self, spec: NodeSpec, set: &PeerSet, found: &Found) -> Option<String> {
        let addresses = set
            .own
            .as_ref()
            .and_then(|own| own.address_towards(&spec).zip(spec.address_towards(own)));
        let addresses = addresses?;
        let name = spec.name.clone();
        match self.peers.get_mut(&name) {
            Some(peer) => (peer.spec, peer.addresses, peer.in_plane) = (spec, addresses, false),
            None => {
                let mode = self.snapshot.policy.mode;
                let pair = Pair::new(
                    mode,
                    found.of(&spec, addresses.1),
                    self.limits(),
                    Instant::now(),
                );
                let begins = self.parts.node < spec.name;
                let way = Way::new(begins, self.parts.ways, Instant::now());
                let mut peer = PeerState::new(spec, addresses, pair, way);
                peer.lost_sas = self.set.own.is_none(); // this agent just started
                found.give_sas(&mut peer);
                self.peers.insert(name.clone(), peer);
            }
        }
        Some(name)
    }

    /// Tells IKE what the peer is now.
    pub(super) fn configure_ike(&mut self, name: &str) {
        let (Some(peer), Some(own)) = (self.peers.get_mut(name), &self.set.own) else {
            return;
        };
        let (local, remote) = peer.addresses;
        let child = self.terms.child(&Ends {
            own,
            peer: &peer.spec,
            local,
            remote,
        });
        peer.has_fallback = false; // and wanted again, as it is now, if it is
        let config = peer.for_ike(child, self.keyring.psks.get(name));
        let put = self.parts.endpoint.put_peer(config, Instant::now());
        peer.config_problem = put.err().map(|e| e.to_string());
        if let Some(problem) = &peer.config_problem {
            warn!(peer = name, %problem, "peer cannot be configured");
        }
    }

    fn remove_peer(&mut self, name: &str) {
        info!(peer = name, "peer removed");
        self.parts
            .endpoint
            .remove_peer(&Identity(name.into()), Instant::now());
        // Its ChildDown events name SAs that go with the peer, when no policy names them any more.
        if let Some(peer) = self.peers.remove(name) {
            self.removals.push_back(Removal::Peer(peer.id()));
        }
    }
}
