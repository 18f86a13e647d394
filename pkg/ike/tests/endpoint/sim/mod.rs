//! A simulated network of endpoints: seeded latency, loss, reordering and duplication, a clock that jumps to what is next,
//! and a driver per node that acts as the agent does. After every step it checks that no node seals with an SPI that the
//! other side cannot open.

pub mod pki;
pub mod plane;
pub mod raw;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use espalier_ike::{
    ChildConfig, Config, Connect, Endpoint, Event, Identity, Path, PeerAuth, PeerConfig, Rekeying,
    Role, TrafficSelector, Transmit,
};
use espalier_secret::SecretBytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use pki::{Ca, NOW};
use plane::Plane;

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

/// One node.
pub struct Node {
    pub id: Identity,
    pub address: SocketAddr,
    pub endpoint: Endpoint,
    pub plane: Plane,
    /// All events so far, oldest first.
    pub log: Vec<Event>,
    /// A node that is down neither receives nor sends.
    pub up: bool,
}

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
    /// Every datagram that was sent, whatever became of it.
    pub sent: Vec<Packet>,
    queue: BTreeMap<(Instant, u64), Packet>,
    count: u64,
    /// Checks [`Net::check_spis`] after each step. Off where one side deletes what the other still uses, as after a
    /// disconnect.
    pub strict: bool,
}

pub fn id(index: usize) -> Identity {
    Identity(format!("node-{index:02}"))
}

pub fn address(index: usize) -> SocketAddr {
    SocketAddr::new(ip(index), 4500)
}

pub fn ip(index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 9, 0, u8::try_from(index + 1).unwrap()))
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
            sent: Vec::new(),
            queue: BTreeMap::new(),
            count: 0,
            strict: true,
        };
        for index in 0..size {
            let credentials = ca.map(|ca| ca.issue(&id(index).0));
            let trust = ca.map(Ca::trust).unwrap_or_default();
            let config = Config {
                credentials,
                trust,
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
            let config = peer_config(own, peer, auth.clone());
            self.nodes[own].endpoint.put_peer(config, self.now).unwrap();
        }
    }

    pub fn add(&mut self, address: SocketAddr, config: Config) {
        let seed = self.rng.random();
        self.nodes.push(Node {
            id: config.identity.clone(),
            address,
            endpoint: Endpoint::new(config, Box::new(StdRng::seed_from_u64(seed))).unwrap(),
            plane: Plane::new(),
            log: Vec::new(),
            up: true,
        });
    }

    /// A new process on a node: the endpoint forgets, the data plane does not.
    pub fn restart(&mut self, node: usize, auth: &PeerAuth) {
        let seed = self.rng.random();
        let config = Config::new(id(node));
        let mut endpoint = Endpoint::new(config, Box::new(StdRng::seed_from_u64(seed))).unwrap();
        for pair in self.nodes[node].plane.values_mut() {
            pair.inbound
                .keys()
                .for_each(|spi| endpoint.reserve_spi(*spi));
            pair.adopt();
        }
        self.nodes[node].endpoint = endpoint;
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
            ..Config::new(id(node))
        };
        self.nodes[node].endpoint.set_config(config).unwrap();
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
                None => return,
            }
        }
    }

    /// What the agent does with an event.
    fn act(&mut self, node: usize, event: Event) {
        let now = self.now;
        let Node {
            endpoint,
            plane,
            log,
            ..
        } = &mut self.nodes[node];
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
                if let Some(spi_in) = pair.switch() {
                    endpoint.confirm_child(peer, spi_in, now);
                    // The peer has switched to this SA before it announced: nothing comes on adopted ones any more.
                    pair.drop_adopted();
                }
            }
            Event::AnnouncementAcked { peer, .. } => {
                let pair = plane.entry(peer.clone()).or_default();
                if pair.newest.is_some() {
                    pair.drop_adopted();
                }
            }
            _ => {}
        }
        log.push(event);
    }

    fn send(&mut self, node: usize, transmit: Transmit) {
        let packet = Packet {
            path: transmit.path,
            payload: transmit.payload,
        };
        assert_eq!(packet.path.local.ip(), self.nodes[node].address.ip());
        if self.nodes[node].up {
            self.sent.push(packet.clone());
            self.carry(packet);
        }
    }

    /// Puts a datagram on the network.
    pub fn carry(&mut self, packet: Packet) {
        if self.filter.as_mut().is_some_and(|keep| !keep(&packet)) {
            return;
        }
        let copies = 1 + u32::from(self.rng.random_range(0..100) < self.weather.duplication);
        for _ in 0..copies {
            if self.rng.random_range(0..100) >= self.weather.loss {
                let (least, most) = self.weather.latency_ms;
                let way = Duration::from_millis(self.rng.random_range(least..=most));
                self.count += 1;
                self.queue
                    .insert((self.now + way, self.count), packet.clone());
            }
        }
    }

    /// Hands a datagram to the node at its destination, at once.
    pub fn deliver(&mut self, packet: &Packet) {
        let path = Path {
            local: packet.path.remote,
            remote: packet.path.local,
        };
        let to = self
            .nodes
            .iter()
            .position(|node| node.address.ip() == path.local.ip() && node.up);
        if let Some(to) = to {
            let (now, unix) = (self.now, self.unix());
            self.nodes[to]
                .endpoint
                .handle_datagram(now, unix, path, &packet.payload);
            self.pump(to);
        }
    }

    /// Jumps to what is next and does it. False when nothing will ever happen.
    pub fn step(&mut self) -> bool {
        let timer = |(index, node): (usize, &Node)| {
            node.endpoint
                .poll_timeout()
                .filter(|_| node.up)
                .map(|at| (at, index))
        };
        let timeout = self.nodes.iter().enumerate().filter_map(timer).min();
        let packet = self.queue.keys().next().copied();
        match (packet, timeout) {
            (Some(key), timeout) if timeout.is_none_or(|(at, _)| key.0 <= at) => {
                self.now = self.now.max(key.0);
                if let Some(packet) = self.queue.remove(&key) {
                    self.deliver(&packet);
                }
            }
            (_, Some((at, index))) => {
                self.now = self.now.max(at);
                let (now, unix) = (self.now, self.unix());
                self.nodes[index].endpoint.handle_timeout(now, unix);
                self.pump(index);
            }
            _ => return false,
        }
        if self.strict {
            self.check_spis();
        }
        true
    }

    /// Runs for so long.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.next_at().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = until;
    }

    /// Runs until `done`, at most `time`. Returns whether it is done.
    pub fn run_until(&mut self, time: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let until = self.now + time;
        while !done(self) {
            if self.next_at().is_none_or(|at| at > until) {
                return false;
            }
            self.step();
        }
        true
    }

    fn next_at(&self) -> Option<Instant> {
        let timers = self
            .nodes
            .iter()
            .filter(|node| node.up)
            .filter_map(|node| node.endpoint.poll_timeout());
        timers
            .chain(self.queue.keys().next().map(|(at, _)| *at))
            .min()
    }

    pub fn unix(&self) -> Duration {
        self.unix + (self.now - self.start)
    }

    /// What a node seals with, the other one can open, with the same key.
    pub fn check_spis(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            for (peer, pair) in &node.plane {
                let (Some(seals), Some(other)) = (pair.seals, self.index_of(peer)) else {
                    continue;
                };
                let theirs = self.nodes[other].plane.get(&self.nodes[index].id);
                let opens = theirs.and_then(|theirs| theirs.inbound.get(&seals));
                let key = pair
                    .outbound
                    .iter()
                    .find(|(spi, _)| *spi == seals)
                    .map(|(_, key)| key);
                assert_eq!(
                    opens, key,
                    "{} seals towards {peer} with {seals:08x}, which it cannot open",
                    node.id
                );
            }
        }
    }

    pub fn index_of(&self, id: &Identity) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == *id)
    }

    /// Both ends have exactly one CHILD_SA of each other, the same one, and seal with it.
    pub fn settled(&self, a: usize, b: usize) -> bool {
        let pair = |own: usize, peer: usize| self.nodes[own].plane.get(&self.nodes[peer].id);
        let (Some(here), Some(there)) = (pair(a, b), pair(b, a)) else {
            return false;
        };
        let one = |pair: &plane::Pair| pair.inbound.len() == 1 && pair.outbound.len() == 1;
        let fits = |from: &plane::Pair, to: &plane::Pair| {
            from.seals.is_some_and(|spi| to.inbound.contains_key(&spi))
        };
        one(here) && one(there) && fits(here, there) && fits(there, here)
    }

    pub fn all_settled(&self) -> bool {
        let size = self.nodes.len();
        (0..size).all(|a| (a + 1..size).all(|b| self.settled(a, b)))
    }

    /// Number of IKE SAs that a node holds in any state, after all lingering ones had time to go.
    pub fn ike_sas(&self, node: usize) -> usize {
        self.nodes[node].endpoint.ike_sas()
    }

    pub fn failures(&self, node: usize) -> Vec<String> {
        let text = |event: &Event| match event {
            Event::HandshakeFailed { error, .. } => Some(error.to_string()),
            _ => None,
        };
        self.nodes[node].log.iter().filter_map(text).collect()
    }

    pub fn count(&self, node: usize, matches: impl Fn(&Event) -> bool) -> usize {
        self.nodes[node]
            .log
            .iter()
            .filter(|event| matches(event))
            .count()
    }

    pub fn child_ups(&self, node: usize) -> Vec<(Role, espalier_ike::ChildSa, Option<Vec<u8>>)> {
        let up = |event: &Event| match event {
            Event::ChildUp {
                child,
                announcement,
                ..
            } => Some((child.role, (**child).clone(), announcement.clone())),
            _ => None,
        };
        self.nodes[node].log.iter().filter_map(up).collect()
    }
}
