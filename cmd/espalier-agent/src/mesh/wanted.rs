//! What the kernel should hold, kept from one settling to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use espalier_api::Masquerade;
use espalier_dataplane_core::Dataplane;
use espalier_overlay::{Desired, PeerRoute, Vtep};
use espalier_peers::{Mode, gateway, vtep_mac};

use super::peer::{VNI, VXLAN_PORT};
use super::{Kernel, Mesh};

/// The kernel's part of all peers, and what it was brought to.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// `None` before this node's own Node object is known.
    pub(super) desired: Option<Desired>,
    /// The kernel was brought to it.
    pub(super) applied: bool,
    /// Until there is `desired`.
    peers: BTreeMap<String, PeerRoute>,
    /// Peers with whom nothing may be clear.
    enforced: BTreeSet<String>,
}

impl Wanted {
    fn put_peer(&mut self, name: String, new: Option<(PeerRoute, bool)>) {
        let Some((route, enforced)) = new else {
            self.enforced.remove(&name);
            self.applied &= self.peers.remove(&name).is_none();
            return;
        };
        match enforced {
            true => self.enforced.insert(name.clone()),
            false => self.enforced.remove(&name),
        };
        if self.peers.get(&name) != Some(&route) {
            self.peers.insert(name, route);
            self.applied = false;
        }
    }

    fn put_rest(&mut self, rest: Option<Desired>) {
        self.applied &= self.desired == rest;
        self.desired = rest;
    }
}

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    /// After this `wanted` is what should be now.
    pub(super) fn want(&mut self) {
        if let Some(desired) = &mut self.wanted.desired {
            self.wanted.peers = mem::take(&mut desired.peers);
        }
        for name in self.peers.take_changed() {
            let new = self.peers.get(&name).map(|peer| {
                let view = peer.pair.view();
                let idle = self.is_idle(peer, &view);
                let route = peer.for_kernel(&view, self.terms.ah(), idle);
                (route, view.enforced)
            });
            self.wanted.put_peer(name, new);
        }
        self.wanted.put_rest(self.all_but_peers());
        if let Some(desired) = &mut self.wanted.desired {
            desired.peers = mem::take(&mut self.wanted.peers);
        }
    }

    fn all_but_peers(&self) -> Option<Desired> {
        let own = self.set.own.as_ref()?;
        let strict =
            self.snapshot.policy.mode == Mode::Required || !self.wanted.enforced.is_empty();
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
            masquerade: self.snapshot.policy.masquerade == Masquerade::Auto,
            peers: BTreeMap::new(),
        })
    }
}
