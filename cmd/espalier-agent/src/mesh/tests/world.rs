//! Two whole agents without network, kernel and data plane: IKE's datagrams are carried by hand, and what the agents do to the
//! world is checked when they do it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use clap::Parser as _;
use espalier_api::{MeshSnapshot, NodeSpec, Policy};
use espalier_dataplane_core::{
    Capabilities, Dataplane, Direction, Dump, Encapsulation, Error, Event, Hello, KERNEL, Peer,
    PeerId, PeerStats, Reqid, Sa, SaInfo, Spi, Suite, USERSPACE,
};
use espalier_ike::{Config, Endpoint, Identity, Path};
use espalier_ike_io::{IkeIo, OsRng, unix_now};
use espalier_overlay::{Applied, Desired, Engine, Observed, PeerRoute, RoutePath};
use espalier_peers::{Mode, WayLimits};
use tokio::sync::{mpsc, watch};

use crate::args::Args;
use crate::credentials::KeyFiles;
use crate::mesh::{Kernel, Mesh, NodeFacts, Parts, PlaneFact};

/// What one node's kernel and data plane hold.
#[derive(Default)]
pub(super) struct State {
    pub(super) hello: Option<Hello>,
    /// The process does not answer.
    pub(super) away: bool,
    pub(super) peers: BTreeMap<PeerId, Peer>,
    pub(super) sas: Vec<Sa>,
    pub(super) active: BTreeMap<PeerId, Spi>,
    pub(super) desired: Option<Desired>,
    pub(super) observed: Observed,
    pub(super) applied: usize,
    /// Packets that came in, by SPI.
    pub(super) packets: BTreeMap<u32, u64>,
}

#[derive(Clone, Default)]
pub(super) struct Node(Arc<Mutex<State>>);

impl Node {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn answering(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.lock();
        match state.away {
            true => Err(Error::Unreachable("gone".to_owned())),
            false => Ok(state),
        }
    }
}

impl State {
    /// Outbound SPIs that pods' packets are sealed with; probes may go by others.
    fn sealing(&self) -> Vec<u32> {
        let peers = self.desired.iter().flat_map(|d| d.peers.values());
        let protects = peers.filter_map(|peer| peer.protect);
        let pinned = protects.filter_map(|protect| protect.spi);
        pinned.chain(self.chosen()).collect()
    }

    /// What the kernel chooses where no SPI is pinned: the newest of each CPU, and of none. There is one peer.
    pub(super) fn chosen(&self) -> Vec<u32> {
        let peers = self.desired.iter().flat_map(|d| d.peers.values());
        let mut open = peers.filter(|peer| peer.path == RoutePath::Encrypted);
        if !open.any(|peer| peer.protect.is_some_and(|p| p.spi.is_none())) {
            return Vec::new();
        }
        let outbound = self.sas.iter().filter(|sa| sa.direction == Direction::Out);
        let newest: BTreeMap<_, _> = outbound.map(|sa| (sa.cpu, sa.spi.0)).collect();
        // With the first on demand it has no choice.
        let by_cpu = newest.keys().any(Option::is_some);
        newest.into_values().filter(|_| by_cpu).collect()
    }

    /// Outbound SPIs that the kernel's policies name.
    pub(super) fn pinned(&self) -> Vec<u32> {
        let peers = self
            .desired
            .iter()
            .flat_map(|desired| desired.peers.values());
        let protects = peers.flat_map(|peer| [peer.protect, peer.trial]);
        let externals = self.desired.iter().flat_map(|d| d.externals.values());
        let tunnels = externals.filter_map(|external| external.tunnel.as_ref());
        protects
            .flatten()
            .chain(tunnels.map(|tunnel| tunnel.protect))
            .filter_map(|protect| protect.spi)
            .collect()
    }

    pub(super) fn has(&self, direction: Direction, spi: u32) -> bool {
        let mut sas = self.sas.iter();
        sas.any(|sa| (sa.direction, sa.spi) == (direction, Spi(spi)))
    }

    pub(super) fn find(&self, direction: Direction, spi: u32) -> Sa {
        let mut sas = self.sas.iter();
        let found = sas.find(|sa| (sa.direction, sa.spi) == (direction, Spi(spi)));
        found.expect("a policy names a state that is there").clone()
    }

    fn count(&mut self, spi: u32) -> u64 {
        let count = self.packets.entry(spi).or_default();
        *count += 1;
        *count
    }

    pub(super) fn route(&self, peer: &str) -> PeerRoute {
        self.desired.as_ref().unwrap().peers[peer].clone()
    }
}

impl Dataplane for Node {
    async fn hello(&self) -> Result<Hello, Error> {
        Ok(self.answering()?.hello.clone().unwrap())
    }

    async fn dump(&self) -> Result<Dump, Error> {
        let state = self.answering()?;
        let info = |sa: &Sa| SaInfo {
            peer: sa.peer.clone(),
            direction: sa.direction,
            spi: sa.spi,
            suite: sa.suite,
            encapsulation: sa.encapsulation,
            active: sa.direction == Direction::Out && state.active.get(&sa.peer) == Some(&sa.spi),
            age_s: 1,
            packets: state.packets.get(&sa.spi.0).copied().unwrap_or_default(),
            bytes: 0,
            drops: 0,
            idle_ms: None,
            cpu: sa.cpu,
        };
        let peers = state.peers.values().cloned();
        Ok(Dump {
            peers: peers.map(|peer| (peer, PeerStats::default())).collect(),
            sas: state.sas.iter().map(info).collect(),
            drops: Vec::new(),
        })
    }

    async fn put_peer(&self, peer: Peer) -> Result<Reqid, Error> {
        self.answering()?.peers.insert(peer.id.clone(), peer);
        Ok(Reqid(7))
    }

    async fn remove_peer(&self, peer: PeerId) -> Result<(), Error> {
        let mut state = self.answering()?;
        let named = state
            .desired
            .as_ref()
            .is_some_and(|desired| desired.peers.contains_key(&peer.0));
        assert!(!named, "the kernel still has a route for {peer}");
        state.peers.remove(&peer);
        state.sas.retain(|sa| sa.peer != peer);
        Ok(())
    }

    async fn install_sa(&self, sa: Sa) -> Result<(), Error> {
        let mut state = self.answering()?;
        assert!(state.peers.contains_key(&sa.peer), "put the peer first");
        assert_eq!(sa.key.len(), sa.suite.key_material_len());
        let chosen = sa.direction == Direction::Out && state.chosen().len() > 1;
        assert!(!chosen, "the kernel would take {} at once", sa.spi);
        state.sas.push(sa);
        Ok(())
    }

    async fn switch_outbound(&self, peer: PeerId, spi: Option<Spi>) -> Result<(), Error> {
        let mut state = self.answering()?;
        match spi {
            Some(spi) => {
                assert!(state.has(Direction::Out, spi.0), "{spi} is not installed");
                state.active.insert(peer, spi);
            }
            None => drop(state.active.remove(&peer)),
        }
        Ok(())
    }

    async fn remove_sa(&self, direction: Direction, spi: Spi) -> Result<(), Error> {
        let mut state = self.answering()?;
        let out = direction == Direction::Out;
        let named = out && state.pinned().contains(&spi.0);
        assert!(!named, "a policy still names {spi}");
        let used = out && state.chosen().contains(&spi.0);
        assert!(!used, "the kernel has chosen {spi}");
        state
            .sas
            .retain(|sa| (sa.direction, sa.spi) != (direction, spi));
        Ok(())
    }
}

impl Kernel for Node {
    fn apply_changes(&mut self, desired: &Desired) -> Result<Applied, espalier_overlay::Error> {
        self.apply(desired)
    }

    fn observe(&mut self, _: &[ipnet::IpNet]) -> Result<Observed, espalier_overlay::Error> {
        Ok(self.lock().observed.clone())
    }

    fn apply(&mut self, desired: &Desired) -> Result<Applied, espalier_overlay::Error> {
        let mut state = self.lock();
        state.desired = Some(desired.clone());
        state.applied += 1;
        if desired.engine == Engine::Kernel && !state.away {
            for spi in state.pinned() {
                assert!(
                    state.has(Direction::Out, spi),
                    "a policy names {spi:08x}, which is not there"
                );
            }
        }
        Ok(Applied {
            writes: 1,
            pod_mtu: 1400,
            note: None,
        })
    }
}

pub(super) fn kernel(instance: u64) -> Hello {
    Hello {
        instance,
        version: "test".to_owned(),
        digest: String::new(),
        kind: KERNEL.to_owned(),
        device: None,
        pid: 1,
        can: Capabilities {
            suites: Suite::ALL.to_vec(),
            raw: true,
            raw_untried: false,
            udp: true,
            tunnel: true,
            esn: true,
            max_replay_window: 4096,
            cpus: 0,
            notes: Vec::new(),
        },
    }
}

pub(super) fn userspace(instance: u64) -> Hello {
    Hello {
        kind: USERSPACE.to_owned(),
        device: Some("espalier.tun".to_owned()),
        can: Capabilities {
            suites: vec![Suite::Aes256Gcm16, Suite::Aes128Gcm16],
            raw_untried: true,
            udp: true,
            esn: true,
            max_replay_window: 8192,
            ..Capabilities::default()
        },
        ..kernel(instance)
    }
}

pub(super) fn spec(index: u8) -> NodeSpec {
    NodeSpec {
        name: NAMES[usize::from(index)].to_owned(),
        uid: None,
        addresses: vec![IpAddr::from([10, 9, 0, index + 1])],
        pod_cidrs: vec![format!("10.244.{index}.0/24").parse().unwrap()],
    }
}

pub(super) const NAMES: [&str; 2] = ["a", "b"];

pub(super) fn policy(change: impl FnOnce(&mut Policy)) -> MeshSnapshot {
    let mut policy = Policy {
        mode: Mode::Required,
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        ..Policy::default()
    };
    change(&mut policy);
    MeshSnapshot {
        policy,
        nodes: vec![spec(0), spec(1)],
        externals: Vec::new(),
        left_out: Vec::new(),
        problems: Vec::new(),
    }
}

pub(super) struct World {
    pub(super) nodes: [Node; 2],
    pub(super) agents: [Mesh<Node, Node>; 2],
    policies: [watch::Sender<MeshSnapshot>; 2],
    /// Raw ESP passes from the first to the second, and back.
    pub(super) passes: [bool; 2],
    folder: tempfile::TempDir,
}

pub(super) fn agent(
    index: usize,
    node: &Node,
    folder: &std::path::Path,
    snapshot: MeshSnapshot,
) -> (Mesh<Node, Node>, watch::Sender<MeshSnapshot>) {
    let run_dir = folder.join(format!("{index}-{:p}", &snapshot));
    std::fs::create_dir_all(&run_dir).unwrap();
    let psk_dir = folder.join("psk");
    let text = [
        "espalier-agent",
        "--node",
        NAMES[index],
        "--manifests",
        "x",
        "--psk-dir",
    ];
    let args = Args::parse_from(text.iter().copied().chain([psk_dir.to_str().unwrap()]));
    let (policy, snapshots) = watch::channel(snapshot);
    let identity = Identity::from(NAMES[index]);
    let mesh = Mesh::new(Parts {
        node: NAMES[index].to_owned(),
        keys: KeyFiles::new(&args),
        endpoint: Endpoint::new(Config::new(identity), Box::new(OsRng)).unwrap(),
        rekeying: args.rekeying(),
        ways: WayLimits {
            trial: Duration::from_millis(400),
            probe: Duration::from_millis(20),
            retry: Duration::from_millis(800),
            drain: Duration::from_millis(50),
            ..WayLimits::default()
        },
        io: IkeIo::bind_port(&run_dir, 0).unwrap(),
        overlay: node.clone(),
        plane: Arc::new(node.clone()),
        plane_facts: mpsc::channel(1).1,
        snapshots,
        queries: mpsc::channel(1).1,
        facts: watch::channel(NodeFacts::default()).0,
        counters: Arc::default(),
        complaints: Vec::new(),
        run_dir,
    });
    (mesh, policy)
}

pub(super) async fn start(agent: &mut Mesh<Node, Node>, node: &Node) {
    let hello = node.lock().hello.clone();
    agent.reload_keys();
    if let Some(hello) = hello {
        agent.take_plane_fact(PlaneFact::Up(hello)).await;
    }
    agent.take_snapshot().await;
}

impl World {
    /// Both agents have started; `None`: the data plane does not answer.
    pub(super) async fn new(hellos: [Option<Hello>; 2], snapshot: &MeshSnapshot) -> Self {
        let mut world = Self::starting(hellos, snapshot);
        world.start_all().await;
        world
    }

    /// Nothing has started yet.
    pub(super) fn starting(hellos: [Option<Hello>; 2], snapshot: &MeshSnapshot) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let psks = folder.path().join("psk");
        std::fs::create_dir_all(&psks).unwrap();
        for name in NAMES {
            std::fs::write(psks.join(format!("{name}.psk")), "ab".repeat(32)).unwrap();
        }
        let nodes = [Node::default(), Node::default()];
        let [one, two] = [0, 1].map(|i| agent(i, &nodes[i], folder.path(), snapshot.clone()));
        for (node, hello) in nodes.iter().zip(hellos) {
            let mut state = node.lock();
            (state.away, state.hello) = (hello.is_none(), hello);
        }
        Self {
            nodes,
            agents: [one.0, two.0],
            policies: [one.1, two.1],
            passes: [true; 2],
            folder,
        }
    }

    pub(super) async fn start_all(&mut self) {
        self.start(0).await;
        self.start(1).await;
    }

    async fn start(&mut self, index: usize) {
        start(&mut self.agents[index], &self.nodes[index]).await;
    }

    /// A new agent process; kernel and data plane stay.
    pub(super) async fn restart(&mut self, index: usize) {
        let snapshot = self.policies[index].borrow().clone();
        let (mesh, policy) = agent(index, &self.nodes[index], self.folder.path(), snapshot);
        (self.agents[index], self.policies[index]) = (mesh, policy);
        self.start(index).await;
    }

    pub(super) async fn set_policy(&mut self, index: usize, snapshot: MeshSnapshot) {
        self.policies[index].send(snapshot).unwrap();
        self.agents[index].take_snapshot().await;
    }

    /// Both settle and speak until nothing happens any more.
    pub(super) async fn run(&mut self) {
        for _ in 0..200 {
            let mut quiet = true;
            for me in 0..2 {
                self.agents[me].settle_world().await;
                quiet &= !self.carry(me);
                quiet &= !self.probe(me).await;
            }
            if quiet {
                return;
            }
        }
        panic!("never quiet");
    }

    /// Runs until `done`; timers of IKE may have to pass.
    pub(super) async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let patience = Instant::now() + Duration::from_secs(30);
        loop {
            self.run().await;
            if done(self) {
                return;
            }
            assert!(Instant::now() < patience, "never: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
            for agent in &mut self.agents {
                agent.take_time().await;
            }
        }
    }

    /// Probes and their answers, as the kernel sends them: through the state that the policy for probes names.
    async fn probe(&mut self, from: usize) -> bool {
        let asked = std::mem::take(&mut self.agents[from].asked);
        // A userspace data plane drops probes: no policy brings them to the agent.
        let answers = self.agents[1 - from].uplink.is_kernel();
        for _ in &asked {
            if self.through(from).await && answers {
                self.through(1 - from).await;
            }
        }
        !asked.is_empty()
    }

    async fn through(&mut self, from: usize) -> bool {
        let trial = self.nodes[from].lock().route(NAMES[1 - from]).trial;
        let Some(spi) = trial.and_then(|trial| trial.spi) else {
            return false;
        };
        let to = 1 - from;
        let sa = self.nodes[from].lock().find(Direction::Out, spi);
        assert_eq!(sa.encapsulation, Encapsulation::Raw);
        if !self.passes[from] || !self.nodes[to].lock().has(Direction::In, spi) {
            return false;
        }
        let count = self.nodes[to].lock().count(spi);
        if count == 1 {
            let event = Event::FirstPacket {
                peer: PeerId(NAMES[from].to_owned()),
                spi: Spi(spi),
            };
            self.agents[to]
                .take_plane_fact(PlaneFact::Event(event))
                .await;
        }
        true
    }

    fn carry(&mut self, from: usize) -> bool {
        let mut any = false;
        let cut = self.agents[from].uplink.is_kernel_away()
            || self.agents[1 - from].uplink.is_kernel_away();
        while let Some(sent) = self.agents[from].parts.endpoint.poll_transmit() {
            any = true;
            if cut {
                continue;
            }
            self.check(from);
            let path = Path {
                local: sent.path.remote,
                remote: sent.path.local,
            };
            let endpoint = &mut self.agents[1 - from].parts.endpoint;
            endpoint.handle_datagram(Instant::now(), unix_now(), path, &sent.payload);
        }
        any
    }

    /// Nobody seals with what the other end cannot open.
    fn check(&self, from: usize) {
        let pinned = self.nodes[from].lock().sealing();
        let active: Vec<u32> = self.nodes[from]
            .lock()
            .active
            .values()
            .map(|spi| spi.0)
            .collect();
        for spi in pinned.into_iter().chain(active) {
            let other = self.nodes[1 - from].lock();
            assert!(
                other.has(Direction::In, spi),
                "{spi:08x} is sealed with and cannot be opened"
            );
        }
    }

    pub(super) fn protected(&self) -> bool {
        [0, 1].into_iter().all(|i| {
            let state = self.nodes[i].lock();
            let route = state
                .desired
                .as_ref()
                .and_then(|d| d.peers.get(NAMES[1 - i]).cloned());
            route.is_some_and(|route| {
                route.path == RoutePath::Encrypted
                    && route.protect.is_some_and(|protect| protect.spi.is_some())
            })
        })
    }

    pub(super) fn encapsulations(&self) -> Vec<Encapsulation> {
        let all = self.nodes.iter().map(Node::lock);
        all.flat_map(|state| {
            state
                .sas
                .iter()
                .map(|sa| sa.encapsulation)
                .collect::<Vec<_>>()
        })
        .collect()
    }
}
