//! `establish: OnDemand`: SAs are made when a packet wants them, and given up when there is none for long.
//!
//! Only where a pair without SAs is closed (`Required`) and the kernel can ask (ACQUIRE): its policy names the peer's states, and
//! there are none. Elsewhere SAs are made at once.

use std::time::{Duration, Instant};

use espalier_api::Establish;
use espalier_dataplane_core::Dataplane;
use espalier_ike::{Identity, IkeStatus};
use espalier_peers::{Mode, Sends, View};
use tracing::{debug, info};

use super::peer::PeerState;
use super::{Kernel, Mesh};

/// A pair that was made on demand is given up after this without packets.
pub(super) const IDLE: Duration = Duration::from_secs(600);

/// Whether SAs of this node are made on demand.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnDemand(bool);

impl OnDemand {
    /// For a pair in this state; not for one that is on its way from clear to encrypted.
    pub(super) fn is(self, view: &View) -> bool {
        self.0 && view.effective == Mode::Required && view.sends != Sends::Clear
    }
}

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    pub(super) fn on_demand(&self) -> OnDemand {
        let wanted = self.terms.protection.establish == Establish::OnDemand;
        OnDemand(wanted && self.uplink.is_kernel())
    }

    /// The policy wants what this data plane cannot do, without harm.
    pub(super) fn demand_note(&self) -> Option<String> {
        let wanted = self.terms.protection.establish == Establish::OnDemand;
        let eager = wanted && self.uplink.answers() && !self.uplink.is_kernel();
        eager.then(|| {
            "establish: OnDemand: the userspace data plane makes SAs with all peers at once (Eager)"
                .to_owned()
        })
    }

    /// There is nothing yet, and nobody has asked.
    pub(super) fn is_idle(&self, peer: &PeerState, view: &View) -> bool {
        self.on_demand().is(view) && peer.sas.is_empty() && peer.adopted.is_empty()
    }

    /// XFRM ACQUIRE.
    pub(super) fn acquire(&mut self, name: &str) {
        debug!(peer = name, "a packet wants an SA");
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        if peer.sas.is_empty() {
            peer.demanded.get_or_insert_with(|| {
                info!(peer = name, "an SA is made on demand");
                now
            });
        } else {
            // What its policy names is gone, and the data plane is still to find out.
            self.next_traffic_poll = now;
        }
    }

    /// Gives up what nobody has used for long.
    pub(super) fn give_up_idle(&mut self, now: Instant) {
        let on_demand = self.on_demand();
        for (name, peer) in self.peers.all_mut() {
            let used = peer.seen.traffic_at;
            let last = peer.demanded.map_or(used, |at| at.max(used));
            if !on_demand.is(&peer.pair.view()) || now < last + IDLE {
                continue;
            }
            peer.demanded = None;
            let id = Identity(name.as_str().into());
            if self.parts.endpoint.status(&id) != IkeStatus::None {
                info!(peer = %name, "no packets for long: the SAs are given up");
                self.parts.endpoint.disconnect(&id, now);
            }
        }
    }
}
