//! A simulated network of endpoints: seeded latency, loss, reordering and duplication, a clock that jumps to what is next,
//! and a driver per node that acts as the agent does. After every step it checks that no node seals with an SPI that the
//! other side cannot open.

mod checks;
mod hands;
mod network;
pub mod pki;
pub mod plane;
pub mod raw;
mod rng;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use espalier_ike::{
    ChildConfig, Config, Connect, Endpoint, Event, Identity, IkePolicy, Path, PeerAuth, PeerConfig,
    PostQuantum, Rekeying, TrafficSelector,
};
use espalier_secret::SecretBytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use hands::{ANSWER, ASK};
use network::Agenda;
use pki::{Ca, NOW};
use plane::Plane;
use rng::{FirstByte, SimRng};

/// How bad the network is.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Shortest and longest way of a datagram; the difference reorders.
    pub latency_ms: (u64, u64),
    /// Per cent.
    pub loss: u32,
    /// Per cent.
    pub duplication: u32,
}

impl Weather {
    pub const FINE: Self = Self {
        latency_ms: (1, 1),
        loss: 0,
        duplication: 0,
    };
    pub const BAD: Self = Self {
        latency_ms: (1, 400),
        loss: 25,
        duplication: 25,
    };
}

/// A datagram under way.
#[derive(Clone, Debug)]
pub struct Packet {
    pub path: Path,
    pub payload: Vec<u8>,
}

impl Packet {
    /// Exchange type, is a response, message ID.
    pub fn kind(&self) -> (u8, bool, u32) {
        let id = u32::from_be_bytes(self.payload[20..24].try_into().unwrap());
        (self.payload[18], self.payload[19] & 0x20 != 0, id)
    }
}

pub const INIT: u8 = 34;
pub const AUTH: u8 = 35;
pub const CREATE_CHILD: u8 = 36;
pub const INFORMATIONAL: u8 = 37;
pub const INTERMEDIATE: u8 = 43;
pub const FOLLOWUP: u8 = 44;

/// One node.
pub struct Node {
    pub id: Identity,
    pub address: SocketAddr,
    pub endpoint: Endpoint,
    /// What the endpoint, and one that takes its place, is made with.
    pub config: Config,
    /// Of its nonces.
    pub first_byte: FirstByte,
    pub plane: Plane,
    /// All events so far, oldest first.
    pub log: Vec<Event>,
    /// A node that is down neither receives nor sends.
    pub up: bool,
}

/// Changes the addresses of a datagram on its way, as a NAT does. `None`: it leads nowhere.
pub type Translate = Box<dyn FnMut(Path) -> Option<Path>>;

/// Decides what happens to a datagram: keep, or drop.
pub type Filter = Box<dyn FnMut(&Packet) -> bool>;

pub struct Net {
    pub now: Instant,
    start: Instant,
    pub unix: Duration,
    pub rng: StdRng,
    pub weather: Weather,
    pub nodes: Vec<Node>,
    pub filter: Option<Filter>,
    pub translate: Option<Translate>,
    /// Every datagram that was sent, whatever became of it.
    pub sent: Vec<Packet>,
    /// Whether `sent` and the nodes' logs are kept: not where there are very many.
    pub record: bool,
    /// Prints each datagram that arrives and each event: for one schedule that failed.
    pub loud: bool,
    agenda: Agenda,
    /// Datagrams that wait for a hand to move them, in the order in which they were sent; see [`Net::by_hand`].
    held: Option<Vec<Packet>>,
    /// Checks [`Net::check_spis`] of what each step touched, and of all after a run. Off where one side deletes what the other still
    /// uses, as after a disconnect.
    pub strict: bool,
    touched: Vec<Identity>,
    by_name: HashMap<Identity, usize>,
    by_ip: HashMap<IpAddr, usize>,
}

pub fn id(index: usize) -> Identity {
    Identity(format!("node-{index:02}").into())
}

pub fn address(index: usize) -> SocketAddr {
    SocketAddr::new(ip(index), 4500)
}

pub fn ip(index: usize) -> IpAddr {
    let [high, low] = u16::try_from(index + 1).unwrap().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 9, high, low))
}

pub fn psk(seed: u8) -> PeerAuth {
    PeerAuth::Psk(SecretBytes::copy_from(&[seed; 32]))
}

fn selector(address: IpAddr) -> TrafficSelector {
    TrafficSelector {
        protocol: 17,
        start_port: 0,
        end_port: u16::MAX,
        start: address,
        end: address,
    }
}

/// `peer` as `own` knows it.
pub fn peer_config(own: usize, peer: usize, auth: PeerAuth) -> PeerConfig {
    let child = ChildConfig::new(vec![selector(ip(own))], vec![selector(ip(peer))]);
    PeerConfig {
        announcement: format!("hello from {own}").into_bytes(),
        ..PeerConfig::new(id(peer), address(own), address(peer), auth, child)
    }
}

/// Without ML-KEM, so that a handshake has four messages; [`Net::post_quantum`] is for the others.
pub fn classic() -> IkePolicy {
    IkePolicy {
        post_quantum: PostQuantum::Off,
        ..IkePolicy::default()
    }
}

impl Net {
    /// `size` nodes without peers. With a CA each has a certificate.
    pub fn new(seed: u64, size: usize, ca: Option<&Ca>) -> Self {
        #[allow(clippy::disallowed_methods)] // a base to count from; nothing waits
        let start = Instant::now();
        let mut net = Self {
            now: start,
            start,
            unix: NOW,
            rng: StdRng::seed_from_u64(seed),
            weather: Weather::FINE,
            nodes: Vec::new(),
            filter: None,
            translate: None,
            sent: Vec::new(),
            record: true,
            loud: false,
            agenda: Agenda::default(),
            held: None,
            strict: true,
            touched: Vec::new(),
            by_name: HashMap::new(),
            by_ip: HashMap::new(),
        };
        for index in 0..size {
            let credentials = ca.map(|ca| ca.issue(&id(index).0));
            let trust = ca.map(Ca::trust).unwrap_or_default();
            let config = Config {
                credentials,
                trust,
                ike: classic(),
                ..Config::new(id(index))
            };
            net.add(address(index), config);
        }
        net
    }

    /// `size` nodes that all know each other by PSK.
    pub fn psk_mesh(seed: u64, size: usize) -> Self {
        let mut net = Self::new(seed, size, None);
        net.introduce_all(&psk(7));
        net
    }

    pub fn introduce_all(&mut self, auth: &PeerAuth) {
        for own in 0..self.nodes.len() {
            self.introduce(own, auth);
        }
    }

    /// Tells a node all others.
    pub fn introduce(&mut self, own: usize, auth: &PeerAuth) {
        for peer in (0..self.nodes.len()).filter(|peer| *peer != own) {
            self.introduce_to(own, peer, auth);
        }
    }

    /// Tells a node one other.
    pub fn introduce_to(&mut self, own: usize, peer: usize, auth: &PeerAuth) {
        let config = peer_config(own, peer, auth.clone());
        self.nodes[own].endpoint.put_peer(config, self.now).unwrap();
    }

    pub fn add(&mut self, address: SocketAddr, config: Config) {
        let (rng, first_byte) = SimRng::new(self.rng.random());
        let index = self.nodes.len();
        self.by_name.insert(config.identity.clone(), index);
        self.by_ip.insert(address.ip(), index);
        self.nodes.push(Node {
            id: config.identity.clone(),
            address,
            endpoint: Endpoint::new(config.clone(), Box::new(rng)).unwrap(),
            config,
            first_byte,
            plane: Plane::new(),
            log: Vec::new(),
            up: true,
        });
    }

    /// A node gets another address; what is sent to the old one is lost.
    pub fn readdress(&mut self, node: usize, address: SocketAddr) {
        let old = std::mem::replace(&mut self.nodes[node].address, address);
        self.by_ip.remove(&old.ip());
        self.by_ip.insert(address.ip(), node);
    }

    /// A new process on a node: the endpoint forgets, the data plane does not.
    pub fn restart(&mut self, node: usize, auth: &PeerAuth) {
        let (rng, first_byte) = SimRng::new(self.rng.random());
        let config = self.nodes[node].config.clone();
        let mut endpoint = Endpoint::new(config, Box::new(rng)).unwrap();
        for pair in self.nodes[node].plane.values_mut() {
            let inbound = pair.each().flat_map(|pair| pair.inbound.keys());
            inbound.for_each(|spi| endpoint.reserve_spi(*spi));
            pair.adopt();
        }
        self.nodes[node].endpoint = endpoint;
        self.nodes[node].first_byte = first_byte;
        self.nodes[node].log.clear();
        self.introduce(node, auth);
    }

    pub fn connect(&mut self, own: usize, peer: usize, why: Connect) {
        let now = self.now;
        self.nodes[own].endpoint.connect(&id(peer), why, now);
        self.pump(own);
    }

    pub fn connect_all(&mut self, why: Connect) {
        for own in 0..self.nodes.len() {
            for peer in (0..self.nodes.len()).filter(|peer| *peer != own) {
                self.connect(own, peer, why);
            }
        }
    }

    /// Sets the lifetimes of SAs made from now on.
    pub fn set_rekeying(&mut self, node: usize, rekeying: Rekeying) {
        let config = Config {
            rekeying,
            ..self.nodes[node].config.clone()
        };
        self.set_config(node, config);
    }

    /// Sets ML-KEM for all nodes and all peers.
    pub fn post_quantum(&mut self, post_quantum: PostQuantum) {
        for node in 0..self.nodes.len() {
            self.set_post_quantum(node, post_quantum);
        }
    }

    pub fn set_post_quantum(&mut self, node: usize, post_quantum: PostQuantum) {
        let mut config = self.nodes[node].config.clone();
        config.ike.post_quantum = post_quantum;
        self.set_config(node, config);
    }

    pub fn set_config(&mut self, node: usize, config: Config) {
        self.nodes[node]
            .endpoint
            .set_config(config.clone())
            .unwrap();
        self.nodes[node].config = config;
    }

    /// Not wanted any more by `own`.
    pub fn disconnect(&mut self, own: usize, peer: usize) {
        let now = self.now;
        self.nodes[own].endpoint.disconnect(&id(peer), now);
        self.pump(own);
    }

    pub fn add_child(&mut self, own: usize, peer: usize, number: u32, config: ChildConfig) {
        let now = self.now;
        let endpoint = &mut self.nodes[own].endpoint;
        endpoint.add_child(&id(peer), number, config, now).unwrap();
        self.pump(own);
    }

    pub fn remove_child(&mut self, own: usize, peer: usize, number: u32) {
        let now = self.now;
        let endpoint = &mut self.nodes[own].endpoint;
        endpoint.remove_child(&id(peer), number, now);
        self.pump(own);
    }

    pub fn rekey_child(&mut self, own: usize, peer: usize) {
        let now = self.now;
        self.nodes[own].endpoint.rekey_child(&id(peer), now);
        self.pump(own);
    }

    pub fn rekey_ike(&mut self, own: usize, peer: usize) {
        let now = self.now;
        self.nodes[own].endpoint.rekey_ike(&id(peer), now);
        self.pump(own);
    }

    pub fn announce(&mut self, own: usize, peer: usize, data: &[u8]) {
        let now = self.now;
        let endpoint = &mut self.nodes[own].endpoint;
        endpoint.announce(&id(peer), data.to_vec(), now);
        self.pump(own);
    }

    /// The driver's loop: events before transmits.
    pub fn pump(&mut self, node: usize) {
        loop {
            while let Some(event) = self.nodes[node].endpoint.poll_event() {
                self.act(node, event);
            }
            match self.nodes[node].endpoint.poll_transmit() {
                Some(transmit) => self.send(node, transmit),
                None if self.nodes[node]
                    .endpoint
                    .poll_timeout()
                    .is_some_and(|at| at <= self.now) =>
                {
                    let (now, unix) = (self.now, self.unix());
                    self.nodes[node].endpoint.handle_timeout(now, unix);
                }
                None => break,
            }
        }
        self.plan(node);
        self.check_touched(node);
    }

    /// What a peer opens when its announcement comes; `None`: all that is asked about. The agents' announcements carry an SPI; those
    /// of the tests say what they like, and the simulation knows. A peer that is made by hand has no data plane.
    fn opened_by(&self, peer: &Identity, node: usize) -> Option<Vec<u32>> {
        let other = &self.nodes[self.index_of(peer)?].plane;
        let theirs = other.get(&self.nodes[node].id)?;
        let spis = theirs.each().flat_map(|pair| pair.inbound.keys().copied());
        Some(spis.collect()).filter(|spis: &Vec<u32>| !spis.is_empty())
    }

    /// What the agent does with an event.
    fn act(&mut self, node: usize, event: Event) {
        let now = self.now;
        let opened = match &event {
            Event::Announcement { peer, .. } => self.opened_by(peer, node),
            _ => None,
        };
        let Node {
            endpoint,
            plane,
            log,
            ..
        } = &mut self.nodes[node];
        self.touched.extend(about(&event).cloned());
        if self.loud {
            let at = (now - self.start).as_secs_f64();
            println!("{at:>9.3} s:     node {node}: {}", summary(&event));
        }
        match &event {
            Event::ChildUp { peer, child, .. } => plane.entry(peer.clone()).or_default().up(child),
            Event::ChildDown {
                peer,
                spi_in,
                spi_out,
                ..
            } => {
                plane
                    .get_mut(peer)
                    .expect("ChildDown without ChildUp")
                    .down(*spi_in, *spi_out);
            }
            Event::Announcement { peer, .. } => {
                let pair = plane.entry(peer.clone()).or_default();
                let opens = |spi| opened.as_ref().is_none_or(|spis| spis.contains(&spi));
                if let Some(spi_in) = pair.switch(&opens, endpoint) {
                    endpoint.confirm_child(peer, spi_in, now);
                }
            }
            Event::AnnouncementAcked { peer, .. } => {
                let pair = plane.entry(peer.clone()).or_default();
                if pair.newest.is_some() {
                    pair.drop_adopted(endpoint);
                }
            }
            _ => {}
        }
        if self.record {
            log.push(event);
        }
    }
}

/// Whose SAs an event may change.
fn about(event: &Event) -> Option<&Identity> {
    match event {
        Event::ChildUp { peer, .. }
        | Event::ChildDown { peer, .. }
        | Event::Announcement { peer, .. }
        | Event::AnnouncementAcked { peer, .. } => Some(peer),
        _ => None,
    }
}

/// An event in a line, without keys.
fn summary(event: &Event) -> String {
    match event {
        Event::ChildUp { child, .. } => {
            let (spi_in, spi_out) = (child.spi_in, child.spi_out);
            format!("ChildUp {spi_in:08x} {spi_out:08x} {:?}", child.role)
        }
        Event::ChildDown {
            spi_in,
            spi_out,
            reason,
            ..
        } => format!("ChildDown {spi_in:08x} {spi_out:08x} {reason:?}"),
        other => format!("{other:?}"),
    }
}
