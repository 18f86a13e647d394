//! By which policy this end speaks and judges: of the peers that have an address before it knows which one it is, of the peer
//! afterwards.

use std::net::IpAddr;
use std::time::Instant;

use super::Endpoint;
use crate::config::{Identity, IkePolicy, PostQuantum};

impl Endpoint {
    /// By which policies an IKE_SA_INIT from `address` is judged, in this order.
    pub(super) fn policies_at(&self, address: IpAddr) -> Vec<&IkePolicy> {
        let peers = self.half_open.peers_at(address);
        let peers = peers.filter_map(|id| self.peers.get(id));
        let mut policies: Vec<&IkePolicy> = Vec::new();
        for policy in peers.map(|peer| peer.config.policy(&self.config)) {
            if !policies.contains(&policy) {
                policies.push(policy);
            }
        }
        if policies.is_empty() {
            policies.push(&self.config.ike);
        }
        policies
    }

    /// [`PeerConfig::force_udp_encapsulation`] of a peer at `address`; which one it is, is not known yet.
    pub(super) fn pretends_nat(&self, address: IpAddr) -> bool {
        let peers = self.half_open.peers_at(address);
        let mut peers = peers.filter_map(|id| self.peers.get(id));
        peers.any(|peer| peer.config.force_udp_encapsulation)
    }

    /// A peer that has `address` has a post-quantum preshared key.
    pub(super) fn has_ppk_at(&self, address: IpAddr) -> bool {
        let mut peers = self.half_open.peers_at(address);
        peers.any(|id| {
            self.peers
                .get(id)
                .is_some_and(|peer| peer.config.ppk.is_some())
        })
    }

    /// What protects IKE SAs with the peer of an established one.
    pub(super) fn policy_of(&self, spi: u64) -> &IkePolicy {
        let peer = self.sas.get(&spi).and_then(|sa| sa.established());
        let peer = peer.and_then(|sa| self.peers.get(&sa.peer));
        peer.map_or(&self.config.ike, |peer| peer.config.policy(&self.config))
    }

    /// The policy for a peer may have changed: an IKE SA without ML-KEM is replaced where that is required now, make before
    /// break, since no rekey can bring it in.
    pub(super) fn replace_weak(&mut self, id: &Identity, now: Instant) {
        let Some(spi) = self.newest_sa(id) else {
            return;
        };
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        let without = established.is_some_and(|sa| !sa.kem);
        if without && self.policy_of(spi).post_quantum == PostQuantum::Required {
            self.renew(spi, now);
        }
    }

    /// What a rekey offers or takes: ML-KEM where it is in the keys that there are, or has to be.
    pub(super) fn rekey_policy(&self, spi: u64) -> IkePolicy {
        let mut policy = self.policy_of(spi).clone();
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        let kem = established.is_some_and(|sa| sa.kem);
        // The first CHILD_SA of a childless handshake comes from keys that are new: it needs no more.
        let first = self.awaits_answer(spi) || self.awaits_request(spi);
        if first || (policy.post_quantum == PostQuantum::Preferred && !kem) {
            policy.post_quantum = PostQuantum::Off;
        }
        policy
    }
}
