//! Two nodes on one link.

use std::future::Future;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::pin;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use espalier_dataplane_core::{
    Dataplane as _, Direction, Encapsulation, Event, Overlay, Peer, PeerId, Reqid, Sa, SaInfo,
    SaMode, Spi, Suite,
};
use espalier_secret::SecretBytes;
use espalier_testnet::{Netns, VethEnd, address, veth};
use espalier_xfrm::{Config, KernelPlane, probe, take_esp_in_udp};

/// Only to fail instead of hanging.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const PORT: u16 = 4500;
/// What the policies of these tests protect: UDP to this port.
pub(crate) const SERVICE: u16 = 7777;

pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) number: u8,
    plane: Option<KernelPlane>,
    pub(crate) events: Receiver<Event>,
    /// Held: the plane's thread waits with its next event.
    pub(crate) gate: Arc<Mutex<()>>,
    pub(crate) run_dir: tempfile::TempDir,
    _sockets: Vec<UdpSocket>,
}

/// The operations of this plane never wait.
pub(crate) fn done<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("an operation waits"),
    }
}

pub(crate) fn pair() -> (Node, Node) {
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    let end = |netns| VethEnd {
        netns,
        name: "eth0",
    };
    veth(end(&a), end(&b), 1500).unwrap();
    (Node::new(a, 1), Node::new(b, 2))
}

pub(crate) fn host(v6: bool, number: u8) -> IpAddr {
    if v6 {
        format!("fd00:e::{number}").parse().unwrap()
    } else {
        [192, 0, 2, number].into()
    }
}

impl Node {
    fn new(netns: Netns, number: u8) -> Self {
        netns
            .run(|| {
                // No duplicate address detection to wait for.
                espalier_testnet::sysctl("ipv6/conf/eth0/accept_dad", "0").unwrap();
                address("eth0", host(false, number), 24).unwrap();
                address("eth0", host(true, number), 64).unwrap();
            })
            .unwrap();
        netns
            .output(Command::new("ip").args(["link", "set", "eth0", "down"]))
            .unwrap();
        netns
            .output(Command::new("ip").args(["link", "set", "eth0", "up"]))
            .unwrap();
        netns
            .run(|| drop(address("eth0", host(true, number), 64)))
            .unwrap();
        let bind = |at: &str| {
            let socket = netns.run(|| UdpSocket::bind(at)).unwrap().unwrap();
            take_esp_in_udp(&socket).unwrap();
            socket
        };
        let sockets = vec![
            bind("0.0.0.0:4500"),
            bind(&format!("[{}]:4500", host(true, number))),
        ];
        let mut node = Self {
            netns,
            number,
            plane: None,
            events: channel().1,
            gate: Arc::default(),
            run_dir: tempfile::tempdir().unwrap(),
            _sockets: sockets,
        };
        node.restart();
        node
    }

    /// The process ends, however it ends, and another one takes over.
    pub(crate) fn restart(&mut self) {
        self.plane = None;
        let (sender, events) = channel();
        let gate = self.gate.clone();
        let config = Config {
            run_dir: self.run_dir.path().to_owned(),
            version: "test".into(),
            port: PORT,
            findings: self.netns.run(probe).unwrap(),
            report: Box::new(move |event| {
                drop(gate.lock().unwrap());
                let _ = sender.send(event);
            }),
        };
        assert_eq!(config.findings.problem, None, "{:?}", config.findings);
        self.plane = Some(
            self.netns
                .run(|| KernelPlane::open(config))
                .unwrap()
                .unwrap(),
        );
        self.events = events;
    }

    pub(crate) fn stop(&mut self) {
        self.plane = None;
    }

    pub(crate) fn plane(&self) -> &KernelPlane {
        self.plane.as_ref().unwrap()
    }

    pub(crate) fn put(&self, other: &Self, v6: bool) -> Reqid {
        done(self.plane().put_peer(self.peer(other.number, v6))).unwrap()
    }

    pub(crate) fn peer(&self, other: u8, v6: bool) -> Peer {
        Peer {
            id: name(other),
            local: host(v6, self.number),
            remote: host(v6, other),
            pod_cidrs: vec![format!("10.244.{other}.0/24").parse().unwrap()],
            own_cidrs: vec![format!("10.244.{}.0/24", self.number).parse().unwrap()],
            overlay: Overlay::Vxlan {
                vni: 4789,
                port: 4789,
            },
            local_mac: [2, 0, 0, 0, 0, self.number],
            remote_mac: [2, 0, 0, 0, 0, other],
        }
    }

    pub(crate) fn install(&self, sa: Sa) {
        done(self.plane().install_sa(sa)).unwrap();
    }

    pub(crate) fn switch(&self, peer: u8, spi: u32) {
        done(self.plane().switch_outbound(name(peer), Some(Spi(spi)))).unwrap();
    }

    pub(crate) fn sas(&self) -> Vec<SaInfo> {
        done(self.plane().dump()).unwrap().sas
    }

    pub(crate) fn sa(&self, direction: Direction, spi: u32) -> SaInfo {
        let sas = self.sas();
        let found = sas
            .iter()
            .find(|sa| sa.direction == direction && sa.spi == Spi(spi));
        found
            .unwrap_or_else(|| panic!("{spi:x} in {sas:?}"))
            .clone()
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        let words = arguments.split_whitespace();
        self.netns
            .output(Command::new("ip").args(words))
            .unwrap_or_else(|error| panic!("ip {arguments}: {error:#}"))
    }

    pub(crate) fn bind(&self, v6: bool, port: u16) -> UdpSocket {
        let at = SocketAddr::new(host(v6, self.number), port);
        self.bind_at(at)
    }

    pub(crate) fn bind_at(&self, at: SocketAddr) -> UdpSocket {
        let socket = self.netns.run(|| UdpSocket::bind(at)).unwrap().unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }

    /// Until this event comes; others may come before.
    pub(crate) fn wait_for(&self, wanted: &Event) {
        loop {
            match self.events.recv_timeout(LIMIT) {
                Ok(event) if event == *wanted => return,
                Ok(_) => {}
                Err(error) => panic!("{wanted:?}: {error}"),
            }
        }
    }
}

pub(crate) fn name(number: u8) -> PeerId {
    PeerId(format!("node-{number}"))
}

/// An SA of the node's pair with `peer`. Both ends make the same key from the SPI.
pub(crate) fn sa(peer: u8, direction: Direction, spi: u32, suite: Suite) -> Sa {
    let mut key = vec![0x17; suite.key_material_len()];
    key[..4].copy_from_slice(&spi.to_be_bytes());
    Sa {
        peer: name(peer),
        direction,
        spi: Spi(spi),
        suite,
        mode: SaMode::Transport,
        key: SecretBytes::new(key),
        esn: true,
        replay_window: 4096,
        encapsulation: Encapsulation::Raw,
        hard_seconds: 0,
        cpu: None,
    }
}

pub(crate) const UDP: Encapsulation = Encapsulation::Udp {
    local_port: PORT,
    remote_port: PORT,
};

/// Both directions of a pair: `spi` from a to b, `spi + 1` back.
pub(crate) fn connect(a: &Node, b: &Node, spi: u32, change: impl Fn(&mut Sa)) {
    for (from, to, spi) in [(a, b, spi), (b, a, spi + 1)] {
        for (node, peer, direction) in [(to, from, Direction::In), (from, to, Direction::Out)] {
            let mut sa = sa(peer.number, direction, spi, Suite::Aes256Gcm16);
            change(&mut sa);
            if sa.key.len() != sa.suite.key_material_len() {
                sa = Sa {
                    key: self::sa(1, direction, spi, sa.suite).key,
                    ..sa
                };
            }
            node.install(sa);
        }
    }
    a.switch(b.number, spi);
    b.switch(a.number, spi + 1);
}

/// What a policy of the agent would say.
#[derive(Clone, Copy)]
pub(crate) struct Protect {
    pub(crate) v6: bool,
    pub(crate) reqid: Reqid,
    pub(crate) spi: Option<u32>,
    pub(crate) ah: bool,
}

impl Node {
    /// Out and in policies for UDP to and from [`SERVICE`].
    pub(crate) fn protect(&self, other: &Self, protect: Protect) {
        let Protect {
            v6,
            reqid: Reqid(reqid),
            spi,
            ah,
        } = protect;
        let (here, there) = (host(v6, self.number), host(v6, other.number));
        let proto = if ah { "ah" } else { "esp" };
        let spi = spi.map_or_else(String::new, |spi| format!("spi {spi:#x}"));
        self.ip(&format!(
            "xfrm policy update dir out src {here} dst {there} proto udp dport {SERVICE} \
             tmpl src {here} dst {there} proto {proto} {spi} reqid {reqid} mode transport"
        ));
        self.ip(&format!(
            "xfrm policy update dir in src {there} dst {here} proto udp dport {SERVICE} \
             tmpl src {there} dst {here} proto {proto} reqid {reqid} mode transport"
        ));
    }
}

pub(crate) fn passes(from: &UdpSocket, to: &UdpSocket, message: &[u8]) {
    from.send_to(message, to.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 2048];
    let (length, _) = to.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], message);
}
