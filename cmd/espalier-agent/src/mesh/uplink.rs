//! The data plane as the mesh sees it: who it is, whether it answers, and what follows when that changes.

use std::collections::BTreeMap;
use std::time::Instant;

use espalier_dataplane_core::{
    Capabilities, Dataplane, Direction, Event, Hello, SaInfo, Spi, Suite,
};
use espalier_ike::Identity;
use espalier_overlay::Engine;
use tracing::{info, warn};

use super::{Gateway, Kernel, Mesh, PlaneFact, TRAFFIC_POLL};

/// Said while the kernel encrypts and the process that drives it is away.
const KERNEL_AWAY: &str = "kernel data plane process is away: no new SAs, UDP-encapsulated pairs are interrupted; is espalier-dataplane running?";

/// What is known of the data plane.
#[derive(Debug, Default)]
pub(super) struct Uplink {
    /// Who answered last. The kernel's stays while its process is away: its SAs carry on. The userspace one's state is gone with it.
    pub(super) hello: Option<Hello>,
    /// It does not answer now.
    away: bool,
    /// A starting agent found policies that name kernel states, and no data plane that answers.
    found_kernel: bool,
}

impl Uplink {
    /// Operations may succeed.
    pub(super) fn answers(&self) -> bool {
        self.hello.is_some() && !self.away
    }

    /// The kernel encrypts, whether or not its process answers.
    pub(super) fn is_kernel(&self) -> bool {
        self.hello
            .as_ref()
            .map_or(self.found_kernel, Hello::is_kernel)
    }

    /// The kernel encrypts and nobody answers for it.
    pub(super) fn is_kernel_away(&self) -> bool {
        self.is_kernel() && !self.answers()
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.is_kernel_away().then(|| KERNEL_AWAY.to_owned())
    }

    pub(super) fn found_kernel(&mut self) {
        self.found_kernel = self.hello.is_none();
    }

    /// An operation was not answered: it is known before the events stream ends.
    pub(super) fn lost(&mut self) {
        self.away = true;
    }

    pub(super) fn engine(&self) -> Engine {
        let device = self.hello.as_ref().and_then(|hello| hello.device.clone());
        match device {
            _ if self.is_kernel() => Engine::Kernel,
            Some(device) => Engine::Tun(device),
            None => Engine::None,
        }
    }

    /// What it can do; before any answered, what every data plane can.
    pub(super) fn can(&self) -> Capabilities {
        let least = || Capabilities {
            suites: vec![
                Suite::Aes256Gcm16,
                Suite::Aes128Gcm16,
                Suite::ChaCha20Poly1305,
            ],
            udp: true,
            esn: true,
            ..Capabilities::default()
        };
        self.hello
            .as_ref()
            .map_or_else(least, |hello| hello.can.clone())
    }
}

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    pub(super) async fn take_plane_fact(&mut self, fact: PlaneFact) {
        let fact = match fact {
            PlaneFact::Event(event) => match self.take_gateway_report(event).await {
                Some(event) => PlaneFact::Event(event),
                None => return,
            },
            other => other,
        };
        match fact {
            PlaneFact::Up(hello) => self.plane_up(hello).await,
            PlaneFact::Down(why) => self.plane_down(&why),
            PlaneFact::Event(Event::FirstPacket { peer, spi }) => {
                self.first_packet(&peer.0, spi).await
            }
            PlaneFact::Event(Event::Acquire { peer }) => self.acquire(&peer.0),
            PlaneFact::Event(Event::Expired {
                peer,
                direction,
                spi,
            }) => self.expired(&peer.0, direction, spi).await,
        }
    }

    async fn plane_up(&mut self, hello: Hello) {
        info!(
            instance = hello.instance,
            version = hello.version,
            kind = hello.kind,
            "data plane is up"
        );
        let old = self.uplink.hello.as_ref();
        let replaced = old.is_some_and(|old| old.instance != hello.instance)
            || self.uplink.found_kernel && !hello.is_kernel();
        if replaced {
            self.forget_sas();
        }
        self.uplink = Uplink {
            hello: Some(hello),
            ..Uplink::default()
        };
        for peer in self.peers.values_mut() {
            (peer.in_plane, peer.switched) = (false, false);
        }
        let gateways = self.gateways.values_mut();
        gateways.for_each(Gateway::tell_plane_again);
        self.take_terms();
        // What this one can is known now.
        self.configure_gateways();
        if !replaced {
            self.adopt_sas().await;
        }
        self.install_waiting().await;
        self.install_waiting_tunnels().await;
    }

    fn plane_down(&mut self, why: &str) {
        if self.uplink.is_kernel() {
            warn!(%why, "{KERNEL_AWAY}");
            return self.uplink.lost();
        }
        warn!(%why, "data plane is away: encrypted pairs are blocked until it is back");
        self.forget_sas();
    }

    /// The data plane's state is gone: the peers are told so (DELETE), and new SAs are negotiated.
    fn forget_sas(&mut self) {
        let now = Instant::now();
        self.uplink = Uplink::default();
        self.removals.clear();
        for (name, peer) in &mut self.peers {
            peer.forget_sas(now);
            self.parts
                .endpoint
                .disconnect(&Identity(name.as_str().into()), now);
        }
        for (name, gateway) in &mut self.gateways {
            gateway.forget_sas();
            let id = Identity(name.as_str().into());
            self.parts.endpoint.disconnect(&id, now);
        }
    }

    /// The kernel ended an SA: at its limit, since the clock jumped beyond that, or because somebody removed it. One that IKE still
    /// counts on is replaced at once; an adopted one has nobody else.
    async fn expired(&mut self, name: &str, direction: Direction, spi: Spi) {
        info!(peer = name, ?direction, %spi, "an SA is gone from the kernel");
        if let Some(spi_in) = self.pair_of(name, direction, spi) {
            let now = Instant::now();
            self.parts.endpoint.rekey_child_sa(spi_in, now);
        }
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let before = peer.adopted.len();
        peer.adopted
            .retain(|sa| (sa.direction, sa.spi) != (direction, spi));
        if peer.adopted.len() < before {
            self.switch_to_best(name).await;
        }
    }

    /// Authenticated ESP counts as a sign of life; what an SA has carried may be enough for it. Each direction counts for its
    /// pair, the outbound one too: its sequence numbers are used up here.
    pub(super) async fn note_traffic(&mut self) {
        if !self.uplink.answers() {
            return;
        }
        let Ok(dump) = self.parts.plane.dump().await else {
            return;
        };
        self.parts.counters.take_dump(&dump);
        let now = Instant::now();
        let mut by_peer: BTreeMap<&str, Vec<&SaInfo>> = BTreeMap::new();
        for sa in &dump.sas {
            by_peer.entry(&sa.peer.0).or_default().push(sa);
        }
        for (name, sas) in by_peer {
            if let Some(peer) = self.peers.get_mut(name) {
                peer.note_counters(&sas, now);
            }
        }
        self.give_up_idle(now);
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
        if let Some(gateway) = self.gateways.get(peer) {
            return gateway.pair_of(direction, spi);
        }
        let mut pairs = self.peers.get(peer)?.sas.iter();
        let pair = pairs.find(|pair| match direction {
            Direction::In => pair.spi_in == spi,
            Direction::Out => pair.spi_out == spi,
        });
        pair.map(|pair| pair.spi_in.0)
    }
}
