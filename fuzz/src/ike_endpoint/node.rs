//! One node with one peer, and the genuine handshake between the two.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use espalier_ike::{
    ChildConfig, Config, Connect, Endpoint, Event, Identity, IkeStatus, Path, PeerAuth, PeerConfig,
    PostQuantum, Role, TrafficSelector, Transmit,
};
use espalier_secret::SecretBytes;

use crate::mutate::Rng;

const UNIX: Duration = Duration::from_secs(1_893_456_000);
pub(super) const PSK: [u8; 32] = [0x42; 32];

/// A node under test, its clock and what it said.
pub(super) struct Node {
    pub(super) endpoint: Endpoint,
    role: Role,
    now: Instant,
    pub(super) events: Vec<Event>,
    pub(super) sent: Vec<Transmit>,
}

/// The lower identity initiates.
pub(super) fn id(role: Role) -> Identity {
    Identity::from(match role {
        Role::Initiator => "node-a",
        Role::Responder => "node-b",
    })
}

pub(super) fn address(role: Role) -> SocketAddr {
    let last = if role == Role::Initiator { 1 } else { 2 };
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)), 4500)
}

/// What a node's CHILD_SA is about on its own side.
pub(super) fn selector(role: Role) -> TrafficSelector {
    let ip = address(role).ip();
    TrafficSelector {
        protocol: 17,
        start_port: 0,
        end_port: u16::MAX,
        start: ip,
        end: ip,
    }
}

pub(super) fn other(role: Role) -> Role {
    match role {
        Role::Initiator => Role::Responder,
        Role::Responder => Role::Initiator,
    }
}

fn peer_config(own: Role) -> PeerConfig {
    let peer = other(own);
    let auth = PeerAuth::Psk(SecretBytes::copy_from(&PSK));
    let child = ChildConfig::new(vec![selector(own)], vec![selector(peer)]);
    PeerConfig {
        announcement: b"announcement".to_vec(),
        ..PeerConfig::new(id(peer), address(own), address(peer), auth, child)
    }
}

/// Another CHILD_SA that may be asked for, and two more of its kind (RFC 9611).
fn further(own: Role) -> ChildConfig {
    let tcp = |role| TrafficSelector {
        protocol: 6,
        ..selector(role)
    };
    ChildConfig {
        per_cpu: Some(2),
        ..ChildConfig::new(vec![tcp(own)], vec![tcp(other(own))])
    }
}

impl Node {
    /// A node that has done nothing yet; the initiator's first request is not taken out.
    pub(super) fn new(role: Role) -> Self {
        Self::with(role, PostQuantum::Off)
    }

    /// The same with or without ML-KEM.
    pub(super) fn with(role: Role, post_quantum: PostQuantum) -> Self {
        let mut config = Config::new(id(role));
        config.ike.post_quantum = post_quantum;
        let rng = Box::new(Rng::new(&id(role).0, 0));
        let now = Instant::now();
        let mut endpoint = Endpoint::new(config, rng).expect("a good configuration");
        endpoint
            .put_peer(peer_config(role), now)
            .expect("a good peer");
        endpoint
            .add_child(&id(other(role)), 1, further(role), now)
            .expect("a good CHILD_SA");
        if role == Role::Initiator {
            endpoint.connect(&id(other(role)), Connect::Restart, now);
        }
        let mut node = Self {
            endpoint,
            role,
            now,
            events: Vec::new(),
            sent: Vec::new(),
        };
        node.drain();
        node
    }

    /// A node that has had 0, 1 or 2 genuine datagrams of its peer: with 2 it is established.
    pub(super) fn at_stage(role: Role, stage: u8) -> Self {
        let mut node = Self::new(role);
        let first = if role == Role::Initiator { 1 } else { 0 };
        let peers = transcript().iter().skip(first).step_by(2);
        for datagram in peers.take(stage.into()) {
            node.receive(datagram);
        }
        let established = node.status() == IkeStatus::Established;
        assert_eq!(established, stage == 2, "the genuine handshake works");
        node.events.clear();
        node
    }

    /// Delivers a datagram from the peer's address; how many the node sent at once.
    pub(super) fn receive(&mut self, datagram: &[u8]) -> usize {
        let path = Path {
            local: address(self.role),
            remote: address(other(self.role)),
        };
        self.endpoint
            .handle_datagram(self.now, UNIX, path, datagram);
        self.drain()
    }

    pub(super) fn status(&self) -> IkeStatus {
        self.endpoint.status(&id(other(self.role)))
    }

    /// Up to 30 timers fire, each once: none may be due again at once.
    pub(super) fn pass_time(&mut self) {
        for _ in 0..30 {
            let Some(at) = self.endpoint.poll_timeout() else {
                return;
            };
            self.now = self.now.max(at);
            self.endpoint.handle_timeout(self.now, UNIX);
            self.drain();
            assert!(
                self.endpoint
                    .poll_timeout()
                    .is_none_or(|next| next > self.now)
            );
        }
    }

    /// As a driver does: events first.
    fn drain(&mut self) -> usize {
        let before = self.sent.len();
        loop {
            if let Some(event) = self.endpoint.poll_event() {
                self.events.push(event);
            } else if let Some(transmit) = self.endpoint.poll_transmit() {
                self.sent.push(transmit);
            } else {
                return self.sent.len() - before;
            }
        }
    }
}

/// Whether the event says something that only the peer can make happen.
pub(super) fn authenticated(event: &Event) -> bool {
    !matches!(event, Event::HandshakeFailed { .. })
}

/// The genuine handshake: IKE_SA_INIT, IKE_AUTH, each request before its response, then what follows.
pub(super) fn transcript() -> &'static [Vec<u8>] {
    static TRANSCRIPT: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let mut nodes = [Node::new(Role::Initiator), Node::new(Role::Responder)];
        let mut datagrams = Vec::new();
        let mut taken = [0, 0];
        for turn in (0..8).map(|turn| turn % 2) {
            let news: Vec<Vec<u8>> = nodes[turn].sent[taken[turn]..]
                .iter()
                .map(|t| t.payload.clone())
                .collect();
            taken[turn] += news.len();
            for datagram in news {
                nodes[1 - turn].receive(&datagram);
                datagrams.push(datagram);
            }
        }
        datagrams
    });
    &TRANSCRIPT
}

/// The datagrams of the genuine handshake, for the corpus.
#[must_use]
pub fn genuine_datagrams() -> &'static [Vec<u8>] {
    transcript()
}
