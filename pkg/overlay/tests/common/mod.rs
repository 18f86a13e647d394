//! Nodes on a wire, each with one pod.
//!
//! ```text
//!  pod 10.244.N.2 ── "podN" ┐                               ┌ eth0 192.0.2.N of the other nodes
//!                           node N ── eth0 192.0.2.N ── br0 ┤
//!  espalier.vx 10.244.N.1 ──┘                               └ capture on every port
//! ```
//!
//! The node's default route leads to the wire too, so that whatever has no better route would be seen there.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use espalier_capture::{Capture, Config, Counters, Interfaces};
use espalier_overlay::{
    Applied, Desired, Engine, Error, Framing, Observed, Overlay, PeerRoute, RoutePath, Vtep,
};
use espalier_testnet::{Bridge, Netns};

pub(crate) const PORT: u16 = 7000;
pub(crate) const TUN: &str = "espalier.tun";
/// Pods put it into every packet.
const MARKER: &[u8] = b"a pod's secret";
/// Far more than a packet needs on one machine; a test that waits for it fails.
const LONG: Duration = Duration::from_secs(5);

pub(crate) struct Wire {
    bridge: Bridge,
    capture: Option<Capture>,
}

impl Wire {
    pub(crate) fn new() -> Self {
        Self {
            bridge: Bridge::new("wire", 1500).unwrap(),
            capture: None,
        }
    }

    fn connect(&self, node: &Netns, number: u8) {
        self.bridge
            .connect(node, "eth0", &format!("port{number}"))
            .unwrap();
        ip(node, &format!("addr add 192.0.2.{number}/24 dev eth0"));
        ip(node, "route add default via 192.0.2.254");
        // Else the default route ends in ARP that nobody answers, and nothing would show on the wire.
        ip(
            node,
            "neigh add 192.0.2.254 lladdr 02:ff:ff:ff:ff:fe dev eth0",
        );
    }

    /// Gives a node its underlay interface back.
    pub(crate) fn plug(&self, node: &Node, number: u8) {
        self.connect(&node.netns, number);
    }

    /// Takes a node's underlay interface away.
    pub(crate) fn unplug(&self, number: u8) {
        self.bridge.disconnect(&format!("port{number}")).unwrap();
    }

    /// Clear pod packets seen so far. The capture starts with the first call.
    pub(crate) fn seen(&mut self) -> Counters {
        let capture = self.capture.get_or_insert_with(|| {
            let config = Config {
                interfaces: Interfaces::AllBut(vec![index(self.bridge.netns(), Bridge::DEVICE)]),
                with_outgoing: false,
                pods: vec![
                    "10.244.0.0/16".parse().unwrap(),
                    "fd00:10::/32".parse().unwrap(),
                ],
                marker: MARKER.to_vec(),
            };
            self.bridge
                .netns()
                .run(|| Capture::start(config))
                .unwrap()
                .unwrap()
        });
        let counters = capture.snapshot().unwrap();
        assert_eq!(
            counters.dropped, 0,
            "the capture lost frames and proves nothing"
        );
        counters
    }
}

pub(crate) struct Node {
    pub(crate) number: u8,
    pub(crate) netns: Netns,
    pub(crate) pod: Pod,
    pub(crate) overlay: Overlay,
}

pub(crate) struct Pod {
    pub(crate) netns: Netns,
    socket: UdpSocket,
}

impl Node {
    pub(crate) fn new(wire: &Wire, number: u8) -> Self {
        let netns = Netns::new(&format!("node{number}")).unwrap();
        netns
            .run(|| espalier_testnet::sysctl("ipv6/conf/default/addr_gen_mode", "1"))
            .unwrap()
            .unwrap();
        wire.connect(&netns, number);
        let pod = Pod::new(&netns, number);
        let overlay = netns.run(Overlay::open).unwrap().unwrap();
        Self {
            number,
            netns,
            pod,
            overlay,
        }
    }

    /// All of the node's peers with one path; the test changes what it is about.
    pub(crate) fn desired(&self, peers: &[u8], path: RoutePath) -> Desired {
        let peer = |n: &u8| {
            let route = PeerRoute {
                remote: underlay(*n),
                mac: mac(*n),
                pod_cidrs: vec![format!("10.244.{n}.0/24").parse().unwrap()],
                path,
                accept_clear: path == RoutePath::Clear,
                protect: None,
                trial: None,
            };
            (name(*n), route)
        };
        Desired {
            local: underlay(self.number),
            vtep: Vtep {
                mac: mac(self.number),
                vni: 4789,
                port: 4789,
                mtu: None,
            },
            gateways: vec![Ipv4Addr::new(10, 244, self.number, 1).into()],
            pod_cidrs: vec![format!("10.244.{}.0/24", self.number).parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            engine: Engine::None,
            framing: Framing::Vxlan,
            deny_clear: false,
            peers: peers.iter().map(peer).collect(),
            externals: [].into(),
            masquerade: true,
        }
    }

    pub(crate) fn try_apply(&mut self, desired: &Desired) -> Result<Applied, Error> {
        self.netns.run(|| self.overlay.apply(desired)).unwrap()
    }

    pub(crate) fn apply(&mut self, desired: &Desired) -> Applied {
        self.try_apply(desired).unwrap()
    }

    /// The same over IPv6: both ends' underlay addresses are.
    pub(crate) fn over_v6(&self, desired: &mut Desired) {
        self.ip(&format!(
            "addr replace {}/64 dev eth0 nodad",
            underlay6(self.number)
        ));
        desired.local = underlay6(self.number);
        for (peer, route) in &mut desired.peers {
            let number = peer.trim_start_matches("node").parse().unwrap();
            route.remote = underlay6(number);
        }
    }

    /// IPv6 pods beside the IPv4 ones, here and at the peer.
    pub(crate) fn add_v6_pods(&self, desired: &mut Desired, other: u8) {
        let own = self.number;
        desired
            .gateways
            .push(format!("fd00:10:{own}::1").parse().unwrap());
        desired
            .pod_cidrs
            .push(format!("fd00:10:{own}::/64").parse().unwrap());
        desired.cluster_cidrs.push("fd00:10::/32".parse().unwrap());
        let peer = desired.peers.get_mut(&name(other)).unwrap();
        peer.pod_cidrs
            .push(format!("fd00:10:{other}::/64").parse().unwrap());
    }

    /// The pod's IPv6 address, when the node forwards IPv6.
    pub(crate) fn give_v6_address(&self) {
        let own = self.number;
        self.pod
            .ip(&format!("addr add fd00:10:{own}::2/128 dev eth0 nodad"));
        self.ip(&format!("addr add fe80::1/64 dev pod{own} nodad"));
        self.ip(&format!(
            "route add fd00:10:{own}::2/128 dev pod{own} proto 229"
        ));
        self.pod.ip("route add default via fe80::1 dev eth0");
    }

    pub(crate) fn apply_changes(&mut self, desired: &Desired) -> Applied {
        self.netns
            .run(|| self.overlay.apply_changes(desired))
            .unwrap()
            .unwrap()
    }

    /// Applies, and again: the second time there is nothing to do.
    pub(crate) fn settle(&mut self, desired: &Desired) -> Applied {
        let applied = self.apply(desired);
        let again = self.apply(desired);
        assert_eq!(again.writes, 0, "the second time: {}", self.state());
        applied
    }

    pub(crate) fn observe(&mut self) -> Observed {
        let cluster = [
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10::/32".parse().unwrap(),
        ];
        self.netns
            .run(|| self.overlay.observe(&cluster))
            .unwrap()
            .unwrap()
    }

    pub(crate) fn remove_all(&mut self) {
        self.netns
            .run(|| self.overlay.remove_all())
            .unwrap()
            .unwrap();
    }

    pub(crate) fn ip(&self, args: &str) -> String {
        ip(&self.netns, args)
    }

    /// Everything that the overlay could have touched, as iproute2 shows it.
    pub(crate) fn state(&self) -> String {
        let commands = [
            "-o link",
            "-o addr",
            "route show table all",
            "-6 route show table all",
            "xfrm policy",
            "neigh",
        ];
        let mut state: String = commands
            .iter()
            .map(|c| format!("# {c}\n{}", self.ip(c)))
            .collect();
        state += &self
            .netns
            .output(Command::new("bridge").args(["fdb", "show"]))
            .unwrap();
        state
    }

    /// A TUN without a reader, as `espalier-dataplane` would make it: packets routed to it go nowhere.
    pub(crate) fn add_tun(&self) {
        self.ip(&format!("tuntap add dev {TUN} mode tun"));
    }

    /// Sends from the host itself, by the source address that the route says.
    pub(crate) fn send(&self, to: SocketAddr, text: &[u8]) -> io::Result<()> {
        self.netns
            .run(|| {
                UdpSocket::bind("0.0.0.0:0")?
                    .send_to(&marked(text), to)
                    .map(drop)
            })
            .unwrap()
    }

    /// The device that packets to this address leave by; none where they are refused.
    pub(crate) fn device_to(&self, address: &str) -> Option<String> {
        let route = self
            .netns
            .output(Command::new("ip").args(["route", "get", address]))
            .ok()?;
        let words: Vec<&str> = route.split_whitespace().collect();
        words
            .windows(2)
            .find(|w| w[0] == "dev")
            .map(|w| w[1].to_owned())
    }
}

impl Pod {
    fn new(node: &Netns, number: u8) -> Self {
        let netns = Netns::new(&format!("pod{number}")).unwrap();
        let path = netns.path().display().to_string();
        ip(
            node,
            &format!("link add pod{number} type veth peer name eth0 netns {path}"),
        );
        ip(node, &format!("link set pod{number} up"));
        ip(
            node,
            &format!("route add 10.244.{number}.2/32 dev pod{number} proto 229"),
        );
        // What the CNI plugin will do; the overlay itself is what is tested here.
        ip(&netns, "link set eth0 up");
        ip(&netns, &format!("addr add 10.244.{number}.2/32 dev eth0"));
        ip(
            &netns,
            &format!("route add 10.244.{number}.1 dev eth0 scope link"),
        );
        ip(&netns, &format!("route add default via 10.244.{number}.1"));
        let socket = netns
            .run(|| UdpSocket::bind(("0.0.0.0", PORT)))
            .unwrap()
            .unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self { netns, socket }
    }

    pub(crate) fn send(&self, to: SocketAddr, text: &[u8]) {
        self.socket.send_to(&marked(text), to).unwrap();
    }

    /// The next datagram's text and source.
    pub(crate) fn receive(&self) -> (Vec<u8>, IpAddr) {
        let mut buffer = [0; 2000];
        let (length, from) = self
            .socket
            .recv_from(&mut buffer)
            .expect("a datagram within 5 s");
        (buffer[MARKER.len()..length].to_vec(), from.ip())
    }

    /// Largest datagram that leaves the pod in one packet is what its device's MTU allows.
    pub(crate) fn set_mtu(&self, mtu: u32) {
        ip(&self.netns, &format!("link set eth0 mtu {mtu}"));
    }

    pub(crate) fn ip(&self, args: &str) -> String {
        ip(&self.netns, args)
    }

    pub(crate) fn udp(&self, bind: &str) -> UdpSocket {
        let socket = self.netns.run(|| UdpSocket::bind(bind)).unwrap().unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket
    }
}

pub(crate) fn name(number: u8) -> String {
    format!("node{number}")
}

pub(crate) fn underlay(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

pub(crate) fn underlay6(number: u8) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into()
}

pub(crate) fn mac(number: u8) -> [u8; 6] {
    [2, 0x45, 0x53, 0, 0, number]
}

/// Address and port of a node's pod.
pub(crate) fn pod(number: u8) -> SocketAddr {
    (Ipv4Addr::new(10, 244, number, 2), PORT).into()
}

/// Both ways, from pod to pod.
pub(crate) fn assert_pods_talk(a: &Node, b: &Node, text: &[u8]) {
    for (from, to) in [(a, b), (b, a)] {
        from.pod.send(pod(to.number), text);
        assert_eq!(to.pod.receive(), (text.to_vec(), pod(from.number).ip()));
    }
}

/// Node 1, which sends to node 2's pod without pause, is brought from Disabled to Required and back by `apply`, many times. A moment
/// without a route would answer "unreachable", one with a block "not permitted".
pub(crate) fn switch_under_load(
    a: &mut Node,
    mut desired: Desired,
    clear_device: &str,
    apply: impl Fn(&mut Node, &Desired),
) {
    a.apply(&desired);
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let socket = a
        .netns
        .run(|| UdpSocket::bind("0.0.0.0:0").unwrap())
        .unwrap();
    let flow = || -> io::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            socket.send_to(b"flow", pod(2))?;
            sent.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let flow = scope.spawn(flow);
        for step in 0..120_usize {
            let so_far = sent.load(Ordering::Relaxed);
            // Disabled → both accepted → encrypted, still accepting → enforced, and back.
            let order = [0, 1, 2, 3, 2, 1][step % 6];
            desired.deny_clear = order >= 1;
            let peer = desired.peers.get_mut(&name(2)).unwrap();
            let (path, device) = match order {
                0 | 1 => (RoutePath::Clear, clear_device),
                _ => (RoutePath::Encrypted, TUN),
            };
            (peer.path, peer.accept_clear) = (path, order < 3);
            apply(a, &desired);
            assert_eq!(a.device_to("10.244.2.2").as_deref(), Some(device));
            while sent.load(Ordering::Relaxed) < so_far + 50 && !flow.is_finished() {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
        let flow = flow.join().unwrap();
        flow.expect("every packet has a way at every moment");
    });
    assert!(sent.load(Ordering::Relaxed) >= 6000);
}

pub(crate) fn ip(netns: &Netns, args: &str) -> String {
    netns
        .output(Command::new("ip").args(args.split_whitespace()))
        .unwrap()
}

fn index(netns: &Netns, device: &str) -> u32 {
    netns
        .run(|| espalier_capture::interface_index(device))
        .unwrap()
        .unwrap()
}

fn marked(text: &[u8]) -> Vec<u8> {
    [MARKER, text].concat()
}
