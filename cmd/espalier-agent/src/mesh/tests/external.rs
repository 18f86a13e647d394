//! A node and a gateway outside of the mesh, which is an endpoint alone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use espalier_api::{ExternalAuth, ExternalGateway, MeshSnapshot};
use espalier_dataplane_core::{Direction, Encapsulation, Event, Hello, PeerId, SaMode, Spi};
use espalier_ike::{
    ChildConfig, Config, Endpoint, Event as IkeEvent, Identity, IkeStatus, Path, PeerAuth,
    PeerConfig, TrafficSelector,
};
use espalier_ike_io::{OsRng, unix_now};
use espalier_overlay::{ExternalRoute, Tunnel};
use espalier_peers::Mode;
use espalier_secret::SecretBytes;
use tokio::sync::watch;

use super::world::{Node, agent, kernel, policy, start, userspace};
use crate::mesh::{Mesh, PlaneFact};

const GATEWAY: &str = "gw.berlin.example";
const REMOTE: &str = "192.168.0.0/16";

struct Site {
    node: Node,
    mesh: Mesh<Node, Node>,
    manifests: watch::Sender<MeshSnapshot>,
    gateway: Endpoint,
    /// SPIs that the gateway made, inbound and outbound.
    made: Vec<(u32, u32)>,
    folder: tempfile::TempDir,
}

fn spec(remote: &[&str]) -> ExternalGateway {
    ExternalGateway {
        name: "berlin".to_owned(),
        gateway: "203.0.113.7".parse().unwrap(),
        identity: GATEWAY.to_owned(),
        auth: ExternalAuth::Psk,
        remote_cidrs: remote.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        nodes: Vec::new(),
    }
}

fn manifests(externals: Vec<ExternalGateway>) -> MeshSnapshot {
    let mut all = policy(|policy| policy.mode = Mode::Disabled);
    all.nodes.truncate(1);
    MeshSnapshot { externals, ..all }
}

fn range(start: &str, end: &str) -> TrafficSelector {
    TrafficSelector {
        protocol: 0,
        start_port: 0,
        end_port: u16::MAX,
        start: start.parse().unwrap(),
        end: end.parse().unwrap(),
    }
}

/// It accepts the networks of its site, no more.
fn endpoint(site: TrafficSelector) -> Endpoint {
    let mut gateway = Endpoint::new(Config::new(GATEWAY.into()), Box::new(OsRng)).unwrap();
    let child = ChildConfig {
        transport: false,
        ..ChildConfig::new(vec![site], vec![range("10.244.0.0", "10.244.255.255")])
    };
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let psk = PeerAuth::Psk(SecretBytes::new(vec![0xab; 32]));
    let node = PeerConfig::new(
        "a".into(),
        at("203.0.113.7:4500"),
        at("10.9.0.1:4500"),
        psk,
        child,
    );
    gateway.put_peer(node, Instant::now()).unwrap();
    gateway
}

impl Site {
    async fn new(hello: Hello, snapshot: MeshSnapshot) -> Self {
        Self::with(hello, snapshot, range("192.168.0.0", "192.168.255.255")).await
    }

    async fn with(hello: Hello, snapshot: MeshSnapshot, site: TrafficSelector) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("psk")).unwrap();
        std::fs::write(folder.path().join("psk/berlin.psk"), "ab".repeat(32)).unwrap();
        let node = Node::default();
        node.lock().hello = Some(hello);
        let (mut mesh, manifests) = agent(0, &node, folder.path(), snapshot);
        start(&mut mesh, &node).await;
        Self {
            node,
            mesh,
            manifests,
            gateway: endpoint(site),
            made: Vec::new(),
            folder,
        }
    }

    /// A new agent process; kernel and data plane stay.
    async fn restart(&mut self) {
        let snapshot = self.manifests.borrow().clone();
        let (mesh, manifests) = agent(0, &self.node, self.folder.path(), snapshot);
        (self.mesh, self.manifests) = (mesh, manifests);
        start(&mut self.mesh, &self.node).await;
    }

    async fn set(&mut self, snapshot: MeshSnapshot) {
        self.manifests.send(snapshot).unwrap();
        self.mesh.take_snapshot().await;
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let patience = Instant::now() + Duration::from_secs(30);
        loop {
            self.mesh.settle_world().await;
            self.carry();
            if done(self) {
                return;
            }
            assert!(Instant::now() < patience, "never: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.mesh.take_time().await;
            self.gateway.handle_timeout(Instant::now(), unix_now());
        }
    }

    fn carry(&mut self) {
        let (now, unix) = (Instant::now(), unix_now());
        let back = |path: Path| Path {
            local: path.remote,
            remote: path.local,
        };
        while let Some(sent) = self.mesh.parts.endpoint.poll_transmit() {
            self.gateway
                .handle_datagram(now, unix, back(sent.path), &sent.payload);
        }
        while let Some(event) = self.gateway.poll_event() {
            match event {
                IkeEvent::ChildUp { child, .. } => self.made.push((child.spi_in, child.spi_out)),
                IkeEvent::ChildDown { spi_in, .. } => self.made.retain(|sa| sa.0 != spi_in),
                _ => {}
            }
        }
        while let Some(sent) = self.gateway.poll_transmit() {
            let endpoint = &mut self.mesh.parts.endpoint;
            endpoint.handle_datagram(now, unix, back(sent.path), &sent.payload);
        }
    }

    fn route(&self) -> Option<ExternalRoute> {
        let state = self.node.lock();
        state.desired.as_ref()?.externals.get("berlin").cloned()
    }

    fn tunnel(&self) -> Option<Tunnel> {
        self.route()?.tunnel
    }

    fn spi(&self) -> Option<u32> {
        self.tunnel()?.protect.spi
    }

    fn ike(&self) -> IkeStatus {
        self.mesh.parts.endpoint.status(&Identity::from(GATEWAY))
    }

    fn status(&self) -> espalier_rpc::agent::PeerStatus {
        let gateway = self.mesh.gateways.values().next().unwrap();
        self.mesh.gateway_status(gateway, None)
    }

    /// The gateway's first packet on the newest SA.
    async fn packet(&mut self) {
        let spi = Spi(self.made.last().unwrap().1);
        assert!(self.node.lock().has(Direction::In, spi.0));
        let event = Event::FirstPacket {
            peer: PeerId(GATEWAY.to_owned()),
            spi,
        };
        self.mesh.take_plane_fact(PlaneFact::Event(event)).await;
    }
}

async fn site() -> Site {
    let mut site = Site::new(kernel(1), manifests(vec![spec(&[REMOTE])])).await;
    assert_eq!(site.tunnel(), None);
    site.until("a tunnel", |site| site.tunnel().is_some()).await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_has_a_tunnel_of_its_own_whatever_the_mode_is() {
    let site = site().await;
    let tunnel = site.tunnel().unwrap();
    let made = site.made.last().unwrap();
    assert_eq!(
        (tunnel.protect.spi, tunnel.protect.reqid),
        (Some(made.0), 7)
    );
    let expected = ("10.244.0.0/24".parse().unwrap(), REMOTE.parse().unwrap());
    assert_eq!(tunnel.selectors, [expected]);
    let state = site.node.lock();
    assert_eq!(state.sas.len(), 2);
    let fits = |sa: &espalier_dataplane_core::Sa| {
        (sa.mode, sa.encapsulation) == (SaMode::Tunnel, Encapsulation::Raw)
            && sa.peer.0 == GATEWAY
            && sa.hard_seconds == 24 * 3600
    };
    assert!(state.sas.iter().all(fits), "{:?}", state.sas);
    drop(state);
    let status = site.status();
    assert_eq!(
        (status.name.as_str(), status.kind.as_str()),
        ("berlin", "external")
    );
    assert_eq!(
        (status.path.as_str(), status.ike.as_str()),
        ("Encrypted", "established")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s8_a_userspace_node_refuses_the_gateway_and_closes_its_networks() {
    let mut site = Site::new(userspace(1), manifests(vec![spec(&[REMOTE])])).await;
    site.until("settled", |site| site.route().is_some()).await;
    assert_eq!((site.tunnel(), site.ike()), (None, IkeStatus::None));
    let [problem] = &site.mesh.gateway_problems()[..] else {
        panic!("one problem expected");
    };
    for word in ["berlin", "userspace", "--dataplane kernel", "spec.nodes"] {
        assert!(problem.contains(word), "{problem}");
    }
    assert_eq!(site.status().path, "Blocked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_psk_is_named_and_its_coming_makes_the_tunnel() {
    let mut other = spec(&[REMOTE]);
    other.name = "paris".to_owned();
    let mut site = Site::new(kernel(1), manifests(vec![other])).await;
    site.mesh.settle_world().await;
    let problem = site.mesh.gateway_problems().join("");
    assert!(problem.contains("paris.psk"), "{problem}");
    std::fs::write(site.folder.path().join("psk/paris.psk"), "ab".repeat(32)).unwrap();
    site.mesh.reload_keys();
    let up = |site: &Site| site.node.lock().pinned().len() == 1;
    site.until("a tunnel", up).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateway_does_not_take_stays_closed() {
    let snapshot = manifests(vec![spec(&[REMOTE, "172.16.0.0/12"])]);
    let narrow = range("192.168.5.0", "192.168.6.255");
    let mut site = Site::with(kernel(1), snapshot, narrow).await;
    site.until("a tunnel", |site| site.tunnel().is_some()).await;
    let selectors = site.tunnel().unwrap().selectors;
    let remote: Vec<_> = selectors.iter().map(|(_, to)| to.to_string()).collect();
    assert_eq!(remote, ["192.168.5.0/24", "192.168.6.0/24"]);
    assert_eq!(site.route().unwrap().remote_cidrs.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_rekey_by_the_gateway_the_new_sa_seals_when_the_gateway_has_it() {
    let mut site = site().await;
    let old = site.spi().unwrap();
    site.gateway.rekey_child(&"a".into(), Instant::now());
    site.until("the second pair", |site| site.node.lock().sas.len() == 4)
        .await;
    site.mesh.settle_world().await;
    assert_eq!(site.spi(), Some(old), "its answer may still be under way");
    site.packet().await;
    site.until("the new one seals", |site| site.spi() != Some(old))
        .await;

    // Nothing comes in: then a moment later.
    let old = site.spi().unwrap();
    site.gateway.rekey_child(&"a".into(), Instant::now());
    site.until("the new one seals", |site| site.spi() != Some(old))
        .await;
    let gone = |site: &Site| !site.node.lock().has(Direction::Out, old);
    site.until("the old one is gone", gone).await;
    let few = |site: &Site| site.node.lock().sas.len() == 2;
    assert!(!few(&site), "what is under way to it is still opened");
    site.until("nothing old is left", few).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_goes_on_with_the_tunnel_until_another_is_in_use() {
    let mut site = site().await;
    let before = site.tunnel().unwrap();
    {
        let mut state = site.node.lock();
        state.observed.tunnels = [(before.gateway, before.clone())].into();
        state.applied = 0;
    }
    site.restart().await;
    site.mesh.settle_world().await;
    assert_eq!(site.tunnel().as_ref(), Some(&before));
    let old = before.protect.spi.unwrap();
    site.until("the new one seals", move |site| {
        site.spi().is_some_and(|spi| spi != old)
    })
    .await;
    let there = |site: &Site| site.node.lock().has(Direction::Out, old);
    assert!(there(&site), "the gateway may still seal with its pair");
    site.packet().await;
    site.until("the old one is gone", |site| !there(site)).await;
    assert_eq!(site.node.lock().peers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_goes_on_with_the_tunnel_while_the_data_plane_is_away() {
    let mut site = site().await;
    let before = site.tunnel().unwrap();
    {
        let mut state = site.node.lock();
        state.observed.tunnels = [(before.gateway, before.clone())].into();
        (state.away, state.hello) = (true, None);
    }
    site.restart().await;
    site.mesh.settle_world().await;
    assert_eq!(site.tunnel().as_ref(), Some(&before));
    {
        let mut state = site.node.lock();
        (state.away, state.hello) = (false, Some(kernel(1)));
    }
    site.mesh.take_plane_fact(PlaneFact::Up(kernel(1))).await;
    site.mesh.settle_world().await;
    assert_eq!(site.tunnel().as_ref(), Some(&before));
    let old = before.protect.spi;
    site.until("replaced", |site| site.spi().is_some() && site.spi() != old)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_networks_are_negotiated_anew_and_a_removed_gateway_leaves_nothing() {
    let mut site = site().await;
    let old = site.spi();
    site.set(manifests(vec![spec(&["192.168.4.0/22"])])).await;
    site.until("another tunnel", |site| {
        site.spi().is_some() && site.spi() != old
    })
    .await;
    let to: ipnet::IpNet = "192.168.4.0/22".parse().unwrap();
    assert_eq!(site.tunnel().unwrap().selectors[0].1, to);

    site.set(manifests(Vec::new())).await;
    let nothing = |site: &Site| {
        let state = site.node.lock();
        state.sas.is_empty() && state.peers.is_empty() && site.made.is_empty()
    };
    site.until("nothing is left", nothing).await;
    assert_eq!(site.route(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_somebody_removed_is_made_anew() {
    let mut site = site().await;
    let old = site.spi().unwrap();
    let mut sas = std::mem::take(&mut site.node.lock().sas).into_iter();
    let sas: Vec<_> = sas.by_ref().map(|sa| (sa.direction, sa.spi)).collect();
    site.node.lock().active.clear();
    for (direction, spi) in sas {
        let peer = PeerId(GATEWAY.to_owned());
        let event = Event::Expired {
            peer,
            direction,
            spi,
        };
        site.mesh.take_plane_fact(PlaneFact::Event(event)).await;
    }
    let anew = |site: &Site| site.spi().is_some_and(|spi| spi != old);
    site.until("made anew", anew).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_of_gateways_without_a_tunnel_here_are_closed() {
    let mut elsewhere = spec(&[REMOTE]);
    elsewhere.nodes = vec!["b".to_owned()];
    let mut snapshot = manifests(vec![elsewhere]);
    // Its name is taken, and one of its networks is the mesh's.
    snapshot.left_out = vec![spec(&["172.16.0.0/12", "10.244.0.0/15"])];
    let mut site = Site::new(kernel(1), snapshot).await;
    site.until("settled", |site| site.route().is_some()).await;
    let state = site.node.lock();
    let externals = state.desired.as_ref().unwrap().externals.values();
    let closed: Vec<String> = externals
        .inspect(|external| assert_eq!(external.tunnel, None))
        .flat_map(|external| &external.remote_cidrs)
        .map(ToString::to_string)
        .collect();
    assert_eq!(closed, [REMOTE, "172.16.0.0/12"]);
    assert!(site.mesh.gateways.is_empty());
}
