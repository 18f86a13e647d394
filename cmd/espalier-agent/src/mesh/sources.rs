//! What comes in from manifests and from the data plane.

use std::time::Instant;

use espalier_dataplane_core::{Dataplane, Direction, Event, Hello, Spi};
use espalier_ike::Identity;
use espalier_peers::{Change, Limits, NodeSpec, Pair, PeerSet};
use tracing::{debug, info, warn};

use super::adopt::Found;
use super::peer::PeerState;
use super::{Mesh, PlaneFact, TRAFFIC_POLL};

impl<D: Dataplane> Mesh<D> {
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
            let found = if self.set.own.is_none() {
                self.find().await
            } else {
                Found::default()
            };
            for change in set.changes_since(&self.set) {
                self.take_change(change, &set, &found).await;
            }
            if set.own != self.set.own {
                // The data plane is told this node's own pods with each peer.
                self.peers
                    .values_mut()
                    .for_each(|peer| peer.in_plane = false);
            }
            self.set = set;
        }
        let (mode, limits, now) = (self.snapshot.policy.mode, self.limits(), Instant::now());
        self.peers
            .values_mut()
            .for_each(|peer| peer.pair.set_mode(mode, limits, now));
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            clear_deadline: self.snapshot.policy.transition_deadline,
            ..Limits::default()
        }
    }

    async fn take_change(&mut self, change: Change, set: &PeerSet, found: &Found) {
        match change {
            Change::Removed(name) => self.remove_peer(&name).await,
            Change::Added(spec) => {
                info!(peer = %spec.name, "peer added");
                self.put_peer(spec, set, found);
            }
            Change::Changed(spec) => {
                info!(peer = %spec.name, "peer changed");
                self.put_peer(spec, set, found);
            }
        }
    }

    fn put_peer(&mut self, spec: NodeSpec, set: &PeerSet, found: &Found) {
        let addresses = set
            .own
            .as_ref()
            .and_then(|own| own.address_towards(&spec).zip(spec.address_towards(own)));
        let Some(addresses) = addresses else { return };
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
                let mut peer = PeerState::new(spec, addresses, pair);
                peer.lost_sas = self.set.own.is_none(); // this agent just started
                found.give_sas(&mut peer);
                self.peers.insert(name.clone(), peer);
            }
        }
        self.configure_ike(&name);
    }

    /// Tells IKE what the peer is now.
    pub(super) fn configure_ike(&mut self, name: &str) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let config = peer.for_ike(self.keyring.psks.get(name));
        let put = self.parts.endpoint.put_peer(config, Instant::now());
        peer.config_problem = put.err().map(|e| e.to_string());
        if let Some(problem) = &peer.config_problem {
            warn!(peer = name, %problem, "peer cannot be configured");
        }
    }

    async fn remove_peer(&mut self, name: &str) {
        info!(peer = name, "peer removed");
        self.parts
            .endpoint
            .remove_peer(&Identity(name.into()), Instant::now());
        // Its ChildDown events name SAs that go with the peer below.
        if let Some(peer) = self.peers.remove(name)
            && let Err(e) = self.parts.plane.remove_peer(peer.id()).await
        {
            warn!(peer = name, error = %e, "removing a peer from the data plane; it is done when the data plane is back");
        }
    }

    pub(super) async fn take_plane_fact(&mut self, fact: PlaneFact) {
        match fact {
            PlaneFact::Up(hello) => self.plane_up(hello).await,
            PlaneFact::Down(why) => self.plane_down(&why),
            PlaneFact::Event(Event::FirstPacket { peer, spi }) => {
                self.first_packet(&peer.0, spi).await
            }
            // The kernel's; IKE has its own clock for lifetimes, and SAs are established eagerly.
            PlaneFact::Event(event @ (Event::Acquire { .. } | Event::Expired { .. })) => {
                debug!(?event, "data plane");
            }
        }
    }

    async fn plane_up(&mut self, hello: Hello) {
        info!(
            instance = hello.instance,
            version = hello.version,
            kind = hello.kind,
            "data plane is up"
        );
        let replaced = self
            .hello
            .as_ref()
            .is_some_and(|old| old.instance != hello.instance);
        if replaced {
            self.forget_sas();
        }
        self.peers
            .values_mut()
            .for_each(|peer| peer.in_plane = false);
        self.hello = Some(hello);
        if !replaced {
            self.adopt_sas().await;
        }
    }

    fn plane_down(&mut self, why: &str) {
        warn!(%why, "data plane is away: encrypted pairs are blocked until it is back");
        self.forget_sas();
    }

    /// The data plane's state is gone: the peers are told so (DELETE), and new SAs are negotiated.
    fn forget_sas(&mut self) {
        let now = Instant::now();
        self.hello = None;
        for (name, peer) in &mut self.peers {
            peer.sas.clear();
            (peer.lost_sas, peer.adopted) = (true, Vec::new());
            (peer.active, peer.in_plane, peer.said, peer.drop_adopted_at) =
                (None, false, None, None);
            peer.pair.ike_down(now);
            peer.pair.set_esp(false, now);
            self.parts
                .endpoint
                .disconnect(&Identity(name.as_str().into()), now);
        }
    }

    /// Authenticated ESP counts as a sign of life; what an SA has carried may be enough for it. Each direction counts for its
    /// pair, the outbound one too: its sequence numbers are used up here.
    pub(super) async fn note_traffic(&mut self) {
        if self.hello.is_none() {
            return;
        }
        let Ok(dump) = self.parts.plane.dump().await else {
            return;
        };
        let now = Instant::now();
        let recent =
            |idle: Option<u64>| idle.is_some_and(|ms| u128::from(ms) < TRAFFIC_POLL.as_millis());
        for sa in &dump.sas {
            let Some(spi_in) = self.pair_of(&sa.peer.0, sa.direction, sa.spi) else {
                continue;
            };
            let id = Identity(sa.peer.0.as_str().into());
            let endpoint = &mut self.parts.endpoint;
            endpoint.note_usage(&id, spi_in, sa.bytes, sa.packets, now);
        }
        for sa in dump
            .sas
            .iter()
            .filter(|sa| sa.direction == Direction::In && recent(sa.idle_ms))
        {
            self.parts
                .endpoint
                .note_traffic(&Identity(sa.peer.0.as_str().into()), now);
        }
    }

    /// The inbound SPI of the pair that an SA belongs to; none for adopted ones, which are replaced soon anyway.
    fn pair_of(&self, peer: &str, direction: Direction, spi: Spi) -> Option<u32> {
        let mut pairs = self.peers.get(peer)?.sas.iter();
        let pair = pairs.find(|pair| match direction {
            Direction::In => pair.spi_in == spi,
            Direction::Out => pair.spi_out == spi,
        });
        pair.map(|pair| pair.spi_in.0)
    }
}
