//! Adopt, never flush: what a restarted agent finds goes on as it is, and is replaced pair by pair by fresh handshakes.

use std::net::IpAddr;
use std::time::Instant;

use espalier_api::Establish;
use espalier_dataplane_core::{
    Dataplane, Direction, Dump, Encapsulation, PeerId, Reqid, SaInfo, Spi,
};
use espalier_overlay::{Observed as KernelState, RoutePath, Tunnel};
use espalier_peers::{NodeSpec, Observed, Sends};
use ipnet::IpNet;
use tracing::{info, warn};

use super::peer::{Adopted, PeerState};
use super::{Kernel, Mesh};

/// State of the kernel and the data plane at start. Empty for peers that come later.
#[derive(Debug, Default)]
pub(super) struct Found {
    kernel: Option<KernelState>,
    /// `None`: the data plane does not answer, and what policies name is all that is known.
    sas: Option<Vec<SaInfo>>,
    /// A policy without SPI is none that waits for a packet.
    eager: bool,
}

/// Whether the peer's clear packets come in.
fn accepts_clear(kernel: &KernelState, spec: &NodeSpec, remote: IpAddr) -> bool {
    let accepted = |cidr: &IpNet| kernel.accepting_pods.iter().any(|net| net.contains(cidr));
    !kernel.base_block
        || kernel.accepting.contains(&remote)
        || !spec.pod_cidrs.is_empty() && spec.pod_cidrs.iter().all(accepted)
}

impl Found {
    /// What was found for one peer, whose underlay address is `remote`.
    pub(super) fn of(&self, spec: &NodeSpec, remote: IpAddr) -> Observed {
        let Some(kernel) = &self.kernel else {
            return Observed::default();
        };
        let path = spec
            .pod_cidrs
            .first()
            .and_then(|cidr| kernel.paths.get(cidr));
        let protect = kernel.protects.get(&remote);
        let pinned = protect.is_some_and(|protect| match protect.spi {
            Some(spi) => self.may_have_outbound(&spec.name, spi),
            // The kernel chooses by CPU, or there is no SA yet.
            None => match self.sas {
                Some(_) => self.sas_of(&spec.name).any(seals),
                None => self.eager,
            },
        });
        Observed {
            sends: match path {
                Some(_) if pinned => Sends::Esp,
                // A policy without SA: the kernel asks for one when there is a packet, which it does not let out.
                Some(_) if protect.is_some() => Sends::Nothing,
                Some(RoutePath::Clear) => Sends::Clear,
                Some(RoutePath::Encrypted) => Sends::Esp,
                Some(RoutePath::Blocked) | None => Sends::Nothing,
            },
            accepts_clear: path.is_some() && accepts_clear(kernel, spec, remote),
            esp: pinned || self.sas_of(&spec.name).any(seals),
        }
    }

    /// The tunnel with the gateway at this address, as policies say.
    pub(super) fn tunnel(&self, gateway: IpAddr) -> Option<&Tunnel> {
        self.kernel.as_ref()?.tunnels.get(&gateway)
    }

    /// The data plane has told which SAs there are.
    pub(super) fn knows_sas(&self) -> bool {
        self.sas.is_some()
    }

    pub(super) fn sas_of<'a>(&'a self, peer: &'a str) -> impl Iterator<Item = &'a SaInfo> + Clone {
        let all = self.sas.iter().flatten();
        all.filter(move |sa| sa.peer.0 == peer)
    }

    /// A policy may name a state that is gone (flushed, expired): such a pair does not encrypt, it is blocked.
    fn may_have_outbound(&self, peer: &str, spi: u32) -> bool {
        let is_it = |sa: &SaInfo| (sa.direction, sa.spi.0) == (Direction::Out, spi);
        self.sas.is_none() || self.sas_of(peer).any(is_it)
    }

    /// Hands the SAs of a peer to it. What a policy names is what seals; where the data plane does not answer, it is all that is
    /// known.
    pub(super) fn give_sas(&self, peer: &mut PeerState) {
        let name = peer.spec.name.clone();
        let own = self.sas_of(&name);
        let kernel = self.kernel.as_ref();
        let protect = kernel.and_then(|kernel| kernel.protects.get(&peer.addresses.1));
        let named = protect
            .and_then(|protect| protect.spi)
            .or(peer.active.map(|spi| spi.0));
        peer.adopted = own.clone().map(adopted).collect();
        // Of those that the kernel chose from the newest is pinned now, which is for every CPU.
        let sealing = own.clone().filter(|sa| seals(sa));
        peer.active = sealing.min_by_key(|sa| sa.age_s).map(|sa| sa.spi);
        let is_out =
            |spi: u32| move |sa: &Adopted| (sa.direction, sa.spi.0) == (Direction::Out, spi);
        if let Some(spi) = named.filter(|spi| peer.adopted.iter().any(is_out(*spi))) {
            peer.active = Some(Spi(spi));
        }
        if let Some(protect) = protect {
            peer.reqid = Reqid(protect.reqid);
        }
        if let (Some(protect), true) = (protect, self.sas.is_none()) {
            peer.active = protect.spi.map(Spi);
            let out = peer.active.map(|spi| Adopted {
                direction: Direction::Out,
                spi,
                ah: protect.ah,
                raw: false,
                cpu: None,
            });
            peer.adopted = out.into_iter().collect();
        }
        let seals_raw = |sa: &&Adopted| sa.raw && Some(sa.spi) == peer.active;
        if let Some(sa) = peer.adopted.iter().find(seals_raw) {
            peer.way.found_raw(sa.spi.0, Instant::now());
        }
        if !peer.adopted.is_empty() {
            info!(peer = %peer.spec.name, sas = peer.adopted.len(), "adopted SAs; a handshake will replace them");
        }
    }
}

pub(super) fn adopted(sa: &SaInfo) -> Adopted {
    Adopted {
        direction: sa.direction,
        spi: sa.spi,
        ah: sa.suite.is_ah(),
        raw: sa.encapsulation == Encapsulation::Raw,
        cpu: sa.cpu,
    }
}

/// For packets of every CPU.
fn seals(sa: &SaInfo) -> bool {
    sa.direction == Direction::Out && sa.active && sa.cpu.is_none()
}

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    /// Looks at the kernel and the data plane before anything is changed.
    pub(super) async fn find(&mut self) -> Found {
        let clusters = self.snapshot.policy.cluster_cidrs.clone();
        let kernel = self.parts.overlay.observe(&clusters);
        match &kernel {
            Err(e) => warn!(error = %e, "the kernel's state cannot be read; starting from nothing"),
            Ok(found) if !(found.protects.is_empty() && found.tunnels.is_empty()) => {
                self.uplink.found_kernel();
            }
            Ok(_) => {}
        }
        let dump = self.plane_dump().await;
        Found {
            kernel: kernel.ok(),
            sas: dump.map(|dump| dump.sas),
            eager: self.terms.protection.establish == Establish::Eager,
        }
    }

    /// A data plane is back that this agent lost sight of: its SAs are taken over again.
    pub(super) async fn adopt_sas(&mut self) {
        let Some(Dump { sas, .. }) = self.plane_dump().await else {
            return;
        };
        let found = Found {
            sas: Some(sas),
            ..Found::default()
        };
        let now = Instant::now();
        for (_, peer) in self.peers.all_mut().filter(|(_, peer)| peer.sas.is_empty()) {
            found.give_sas(peer);
            peer.pair.set_esp(peer.active.is_some(), now);
        }
        let gateways = self.gateways.values_mut();
        let lost = gateways.filter(|gateway| !gateway.has_sas());
        lost.for_each(|gateway| gateway.take_found(&found));
    }

    /// The data plane's state; its peers that are no nodes any more are removed, and its inbound SPIs are reserved.
    async fn plane_dump(&mut self) -> Option<Dump> {
        if !self.uplink.answers() {
            return None;
        }
        let mut dump = match self.parts.plane.dump().await {
            Ok(dump) => dump,
            Err(e) => {
                warn!(error = %e, "the data plane cannot be dumped");
                return None;
            }
        };
        for sa in dump.sas.iter().filter(|sa| sa.direction == Direction::In) {
            self.parts.endpoint.reserve_spi(sa.spi.0);
        }
        self.remove_strangers(&mut dump).await;
        Some(dump)
    }

    /// Peers that were removed while no agent ran. Only with a complete list of nodes at hand.
    async fn remove_strangers(&mut self, dump: &mut Dump) {
        if self.snapshot.nodes.is_empty() {
            return;
        }
        let known = |id: &PeerId| {
            let mut gateways = self.snapshot.externals.iter();
            gateways.any(|gateway| gateway.identity == id.0 && gateway.concerns(&self.parts.node))
                || self.snapshot.nodes.iter().any(|node| node.name == id.0)
        };
        for (peer, _) in dump.peers.iter().filter(|(peer, _)| !known(&peer.id)) {
            info!(peer = %peer.id, "removing a peer that is no node any more");
            if let Err(e) = self.parts.plane.remove_peer(peer.id.clone()).await {
                warn!(peer = %peer.id, error = %e, "removing a peer from the data plane");
            }
        }
        dump.sas.retain(|sa| known(&sa.peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pods' networks are what a guard tells, hosts what policies tell.
    #[test]
    fn whose_clear_packets_come_in_is_found_by_pods_or_hosts() {
        let remote: IpAddr = "192.0.2.2".parse().unwrap();
        let nets = |all: &[&str]| all.iter().map(|net| net.parse().unwrap()).collect();
        let spec = |pods: &[&str]| NodeSpec {
            name: "b".to_owned(),
            uid: None,
            addresses: vec![remote],
            pod_cidrs: nets(pods),
        };
        let both = spec(&["10.244.2.0/24", "fd00:2::/64"]);
        let guarded = |accepted: &[&str]| KernelState {
            base_block: true,
            accepting_pods: nets(accepted),
            ..KernelState::default()
        };
        for (accepted, comes_in) in [
            (&["10.244.2.0/23", "fd00:2::/64"][..], true),
            (&["10.244.2.0/24"], false),
            (&["10.244.3.0/24", "fd00:2::/64"], false),
            (&[], false),
        ] {
            let found = accepts_clear(&guarded(accepted), &both, remote);
            assert_eq!(found, comes_in, "{accepted:?}");
        }
        assert!(!accepts_clear(
            &guarded(&["10.0.0.0/8"]),
            &spec(&[]),
            remote
        ));
        assert!(accepts_clear(&KernelState::default(), &both, remote));
        let policies = KernelState {
            accepting: [remote].into(),
            ..guarded(&[])
        };
        assert!(accepts_clear(&policies, &both, remote));
    }
}
