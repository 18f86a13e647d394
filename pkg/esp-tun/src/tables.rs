//! What the threads read: one immutable snapshot, replaced as a whole by each operation.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use espalier_dataplane_core::{Overlay, Peer, PeerStats};
use espalier_esp::framing::Framing;
use espalier_esp::framing::vxlan::Vxlan;

use crate::routes::Routes;
use crate::sa::{Inbound, Outbound};
use crate::tx::To;

/// The snapshot.
pub(crate) struct Tables {
    /// Destination of a pod packet → peer.
    pub(crate) routes: Routes<Arc<PeerEntry>>,
    /// SPI → inbound SA and whose it is.
    pub(crate) inbound: HashMap<u32, (Arc<Inbound>, Arc<PeerEntry>), BuildHasherDefault<SpiHasher>>,
}

/// Of SPIs, which this node chose at random: nobody else can make them collide.
#[derive(Default)]
pub(crate) struct SpiHasher(u64);

impl Hasher for SpiHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }

    fn write_u32(&mut self, spi: u32) {
        self.0 = (self.0 ^ u64::from(spi)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A peer as it was last put, with what outlives that.
pub(crate) struct PeerEntry {
    pub(crate) peer: Peer,
    pub(crate) framing: Framing,
    pub(crate) state: Arc<PeerState>,
}

/// Lives as long as the peer is known, however often it is put.
#[derive(Default)]
pub(crate) struct PeerState {
    /// Seals what is sent from now on.
    pub(crate) active: ArcSwapOption<Outbound>,
    pub(crate) no_sa_drops: AtomicU64,
    pub(crate) policy_drops: AtomicU64,
}

impl PeerEntry {
    pub(crate) fn new(peer: Peer, state: Arc<PeerState>) -> Self {
        let framing = match peer.overlay {
            Overlay::Vxlan { vni, port } => {
                let between = (peer.local, peer.remote);
                Framing::Vxlan(Vxlan::new(
                    vni,
                    port,
                    peer.local_mac,
                    peer.remote_mac,
                    between,
                ))
            }
            // A tunnel's packets look the same (RFC 4303 §3.1.2): the pod packet follows ESP's header.
            Overlay::Ipip | Overlay::Native => Framing::Ipip,
        };
        Self {
            peer,
            framing,
            state,
        }
    }

    /// Where packets of `sa` go.
    pub(crate) fn destination(&self, sa: &Outbound) -> To {
        let remote = self.peer.remote;
        let udp = |port| To::Udp(SocketAddr::new(remote, port));
        sa.remote_port.map_or(To::Raw(remote), udp)
    }
}

impl PeerState {
    pub(crate) fn stats(&self) -> PeerStats {
        PeerStats {
            no_sa_drops: self.no_sa_drops.load(Ordering::Relaxed),
            policy_drops: self.policy_drops.load(Ordering::Relaxed),
        }
    }
}

impl Tables {
    /// Builds a snapshot from scratch: nothing of an old one can be left over.
    pub(crate) fn new<'a>(
        peers: impl Iterator<Item = &'a Arc<PeerEntry>>,
        inbound: impl Iterator<Item = &'a (Arc<Inbound>, Arc<PeerEntry>)>,
    ) -> Self {
        let cidrs = peers.flat_map(|entry| {
            entry
                .peer
                .pod_cidrs
                .iter()
                .map(|cidr| (*cidr, entry.clone()))
        });
        Self {
            routes: Routes::new(cidrs),
            inbound: inbound
                .map(|(sa, peer)| (sa.sa.spi.0, (sa.clone(), peer.clone())))
                .collect(),
        }
    }
}
