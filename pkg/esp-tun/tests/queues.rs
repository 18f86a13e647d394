//! Engines with several queues and sockets: over socket pairs, and over real TUN devices in two namespaces.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use espalier_dataplane_core::{Dataplane as _, Direction, Frozen, Overlay, Spi};
use espalier_esp_tun::io::{Offload, PacketIo, RawSockets, Tun, Udp};
use espalier_esp_tun::{Config, Engine, Several};
use espalier_ike_io::relay::DataplaneEnd;
use espalier_testnet::{Netns, VethEnd, address, isolated, veth};

use common::{Node, encrypt, now, peer, sa};

const VXLAN: Overlay = Overlay::Vxlan {
    vni: 4789,
    port: 4789,
};
const TUN: &str = "espalier.tun";

/// Only to fail instead of hanging.
const LIMIT: Duration = Duration::from_secs(20);

fn config(tun: Several<Arc<dyn PacketIo>>, udp: Several<Udp>) -> Config {
    Config {
        instance: 7,
        version: "test".into(),
        device: TUN.into(),
        tun,
        udp,
        raw: RawSockets::none("not here"),
        relay: None,
        report: Box::new(|_| {}),
    }
}

/// Queues of socket pairs, and the pods' ends.
fn queues(count: usize) -> (Several<Arc<dyn PacketIo>>, Vec<UnixDatagram>) {
    let pairs: Vec<_> = (0..count).map(|_| UnixDatagram::pair().unwrap()).collect();
    let (mut queues, mut pods) = (Vec::new(), Vec::new());
    for (queue, pod) in pairs {
        queue.set_nonblocking(true).unwrap();
        pod.set_read_timeout(Some(LIMIT)).unwrap();
        queues.push(Arc::new(queue) as Arc<dyn PacketIo>);
        pods.push(pod);
    }
    (Several::of(queues).unwrap(), pods)
}

struct Host {
    node: Node,
    engine: Engine,
    pods: Vec<UnixDatagram>,
}

fn host(n: u8, queue_count: usize, socket_count: usize) -> Host {
    let (tun, pods) = queues(queue_count);
    let udp = Udp::bind_several(0, socket_count).unwrap();
    let engine = Engine::start(config(tun, udp)).unwrap();
    let node = Node {
        n,
        address: [127, 0, 0, n].into(),
        port: engine.port(),
    };
    Host { node, engine, pods }
}

/// A UDP packet of a flow, which its ports tell.
fn packet((from, source): (u8, u16), (to, destination): (u8, u16), number: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend([10, 244, from, 2, 10, 244, to, 2]);
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend([0, 12, 0, 0]);
    packet.extend(number.to_be_bytes());
    packet
}

/// SPI and sequence number of what is on the wire.
fn sequence(wire: &UdpSocket) -> (u32, u64) {
    let mut buffer = [0; 2048];
    let length = wire.recv(&mut buffer).unwrap();
    assert!(length > 16, "{length} bytes");
    let spi = u32::from_be_bytes(buffer[..4].try_into().unwrap());
    (spi, u64::from_be_bytes(buffer[8..16].try_into().unwrap()))
}

/// Sends from all queues at once; every sequence number that was on the wire.
fn sealed(pods: &[UnixDatagram], wire: &UdpSocket, each: u32) -> Vec<u64> {
    std::thread::scope(|scope| {
        for (port, pod) in (0..).zip(pods) {
            scope.spawn(move || {
                for number in 0..each {
                    pod.send(&packet((1, port), (2, 7), number)).unwrap();
                }
            });
        }
        let all = each * u32::try_from(pods.len()).unwrap();
        let came = (0..all).map(|_| sequence(wire));
        came.map(|(spi, sequence)| {
            assert_eq!(spi, 0x1200);
            sequence
        })
        .collect()
    })
}

/// An engine of so many queues goes on with the state of another one; nothing of the numbers is in the state.
fn successor(frozen: Frozen, queue_count: usize, port: u16) -> (Engine, Vec<UnixDatagram>) {
    let (tun, pods) = queues(queue_count);
    let udp = Udp::bind_several(port, queue_count).unwrap();
    (Engine::resume(config(tun, udp), frozen).unwrap(), pods)
}

#[test]
fn s4_no_nonce_repeats_with_several_threads_nor_with_more_or_fewer_after_an_upgrade() {
    let wire = UdpSocket::bind("127.0.0.2:0").unwrap();
    wire.set_read_timeout(Some(LIMIT)).unwrap();
    let one = host(1, 4, 4);
    let two = Node {
        n: 2,
        address: [127, 0, 0, 2].into(),
        port: wire.local_addr().unwrap().port(),
    };
    now(one.engine.put_peer(peer(one.node, two, VXLAN))).unwrap();
    let sa = sa(one.node, two, Direction::Out, Spi(0x1200));
    now(one.engine.install_sa(sa)).unwrap();
    now(one.engine.switch_outbound(two.id(), Some(Spi(0x1200)))).unwrap();
    let (mut engine, mut pods) = (one.engine, one.pods);
    let mut used = HashSet::new();
    for (round, next) in [1, 3, 2, 4].into_iter().enumerate() {
        // Fewer packets than a socket holds at once.
        for number in sealed(&pods, &wire, 40) {
            assert!(used.insert(number), "round {round}: {number} twice");
        }
        assert_eq!(used.len() as u64, used.iter().copied().max().unwrap());
        let frozen = engine.freeze();
        drop(engine);
        (engine, pods) = successor(frozen, next, one.node.port);
    }
}

#[test]
fn what_comes_back_is_written_to_the_queue_of_its_flow() {
    let (one, two) = (host(1, 4, 4), host(2, 1, 1));
    let (a, b) = ((one.node, &one.engine), (two.node, &two.engine));
    now(a.1.put_peer(peer(a.0, b.0, VXLAN))).unwrap();
    now(b.1.put_peer(peer(b.0, a.0, VXLAN))).unwrap();
    encrypt(a, b, Spi(0x1200));
    encrypt(b, a, Spi(0x2100));
    let mut buffer = [0; 2048];
    for port in 0..32_u16 {
        let queue = usize::from(port) % 4;
        let request = packet((1, port), (2, 7), 1);
        one.pods[queue].send(&request).unwrap();
        let length = two.pods[0].recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], request);
        let answer = packet((2, 7), (1, port), 2);
        two.pods[0].send(&answer).unwrap();
        let length = one.pods[queue].recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], answer);
    }
    for host in [one, two] {
        assert_eq!(now(host.engine.dump()).unwrap().drops, []);
    }
}

#[test]
fn ike_passes_whichever_socket_it_comes_to() {
    let dir = tempfile::tempdir().unwrap();
    let udp = Udp::bind_several(0, 4).unwrap();
    let engine = Engine::start(Config {
        relay: Some(DataplaneEnd::bind(dir.path()).unwrap()),
        ..config(queues(2).0, udp)
    })
    .unwrap();
    let agent = UnixDatagram::bind(dir.path().join(espalier_ike_io::AGENT_SOCKET)).unwrap();
    agent.set_read_timeout(Some(LIMIT)).unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], engine.port()));
    // With four sockets a kernel that sends 32 ports to one of them would be a wonder.
    for _ in 0..32 {
        let remote = UdpSocket::bind("127.0.0.9:0").unwrap();
        remote.set_read_timeout(Some(LIMIT)).unwrap();
        remote.send_to(b"\0\0\0\0request", to).unwrap();
        let mut buffer = [0; 2048];
        let length = agent.recv(&mut buffer).unwrap();
        let (path, message) = espalier_ike_io::relay::decode(&buffer[..length]).unwrap();
        assert_eq!(message, b"request");
        assert_eq!(
            (path.local, path.remote),
            (to, remote.local_addr().unwrap())
        );
        let response = espalier_ike_io::relay::encode(&path, b"response").unwrap();
        let plane = dir.path().join(espalier_ike_io::DATAPLANE_SOCKET);
        agent.send_to(&response, plane).unwrap();
        let (length, from) = remote.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"\0\0\0\0response"[..], to));
    }
    assert_eq!(now(engine.dump()).unwrap().drops, []);
}

/// A queue that counts what is read from it.
struct Counted {
    tun: Tun,
    read: Arc<AtomicU64>,
}

impl AsFd for Counted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

impl PacketIo for Counted {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tun
            .recv(buffer)
            .inspect(|_| _ = self.read.fetch_add(1, Ordering::Relaxed))
    }
    fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.tun.send(packet)
    }
    fn send_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.tun.send_parts(parts)
    }
    fn offload(&self) -> Offload {
        self.tun.offload()
    }
}

/// A namespace with its engine of four queues; how many packets each queue gave.
fn node(netns: &Netns, n: u8) -> (Node, Engine, Vec<Arc<AtomicU64>>) {
    let (underlay, mut counts) = (IpAddr::from([192, 0, 2, n]), Vec::new());
    let engine = netns.run(|| {
        address("eth0", underlay, 24).unwrap();
        address("lo", [10, 244, n, 1].into(), 32).unwrap();
        let tun = Tun::open_queues(TUN, 1408, 4).unwrap();
        assert_eq!(tun.count(), 4);
        let tun = tun.map(|tun| -> Arc<dyn PacketIo> {
            let read = Arc::new(AtomicU64::new(0));
            counts.push(read.clone());
            Arc::new(Counted { tun, read })
        });
        Engine::start(config(tun, Udp::bind_several(4500, 4).unwrap())).unwrap()
    });
    let engine = engine.unwrap();
    let (pods, source) = (format!("10.244.{}.0/24", 3 - n), format!("10.244.{n}.1"));
    let route = ["route", "add", &pods, "dev", TUN, "src", &source];
    netns.output(Command::new("ip").args(route)).unwrap();
    let node = Node {
        n,
        address: underlay,
        port: engine.port(),
    };
    (node, engine, counts)
}

/// Both ends of a flow, which begins at one of them.
fn flow(a: &Netns, b: &Netns, number: u16) -> (UdpSocket, UdpSocket) {
    let bind = |netns: &Netns, at: ([u8; 4], u16)| {
        let socket = netns.run(|| UdpSocket::bind(SocketAddr::from(at)).unwrap());
        let socket = socket.unwrap();
        let short = Duration::from_millis(200);
        socket.set_read_timeout(Some(short)).unwrap();
        socket
    };
    let one = bind(a, ([10, 244, 1, 1], 7000 + number));
    let other = bind(b, ([10, 244, 2, 1], 8000 + number));
    one.connect(other.local_addr().unwrap()).unwrap();
    other.connect(one.local_addr().unwrap()).unwrap();
    let ((first, then), mut bytes) = (
        match number % 2 {
            0 => (&one, &other),
            _ => (&other, &one),
        },
        [0; 8],
    );
    for (from, to) in [(first, then), (then, first)] {
        from.send(&[0; 8]).unwrap();
        while to.recv(&mut bytes).is_err() {}
    }
    (one, other)
}

/// Numbers its datagrams, in bursts, until the end.
fn send(socket: &UdpSocket, bursts: u64, pause: Duration, end: &AtomicBool) {
    let mut number = 1_u64;
    while !end.load(Ordering::Relaxed) {
        for _ in 0..bursts {
            // A full queue loses some: that is no change of order.
            let _ = socket.send(&number.to_be_bytes());
            number += 1;
        }
        std::thread::sleep(pause);
    }
}

/// How many came; each behind those before it.
fn receive(socket: &UdpSocket, end: &AtomicBool) -> u64 {
    let (mut last, mut came, mut bytes) = (0, 0, [0; 8]);
    while !end.load(Ordering::Relaxed) {
        if socket.recv(&mut bytes).is_ok() {
            let number = u64::from_be_bytes(bytes);
            assert!(number > last, "{number} came after {last}");
            (last, came) = (number, came + 1);
        }
    }
    came
}

#[test]
fn flows_keep_their_order_over_four_queues_in_both_directions() {
    let name = "flows_keep_their_order_over_four_queues_in_both_directions";
    isolated(name, || {
        let seconds = std::env::var("ESPALIER_SOAK").ok();
        let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(8);
        let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
        let end = |netns| VethEnd {
            netns,
            name: "eth0",
        };
        veth(end(&a), end(&b), 1500).unwrap();
        let (one, engine_one, read_one) = node(&a, 1);
        let (two, engine_two, read_two) = node(&b, 2);
        now(engine_one.put_peer(peer(one, two, VXLAN))).unwrap();
        now(engine_two.put_peer(peer(two, one, VXLAN))).unwrap();
        encrypt((one, &engine_one), (two, &engine_two), Spi(0x1200));
        encrypt((two, &engine_two), (one, &engine_one), Spi(0x2100));
        let flows: Vec<_> = (0..24).map(|number| flow(&a, &b, number)).collect();
        let (stop, began) = (AtomicBool::new(false), Instant::now());
        let came: Vec<u64> = std::thread::scope(|scope| {
            let mut receivers = Vec::new();
            for (number, (one, other)) in flows.iter().enumerate() {
                let stop = &stop;
                // A third streams both ways, a third one way, a third one way with a word back now and then: the kernel forgets
                // after three seconds to which queue such a flow was written.
                let (there, back) = if number / 3 % 2 == 0 {
                    (one, other)
                } else {
                    (other, one)
                };
                let quick = Duration::from_micros(500);
                scope.spawn(move || send(there, 16, quick, stop));
                receivers.push(scope.spawn(move || receive(back, stop)));
                match number % 3 {
                    0 => _ = scope.spawn(move || send(back, 16, quick, stop)),
                    1 => {
                        let seldom = Duration::from_millis(3300);
                        scope.spawn(move || send(back, 1, seldom, stop));
                    }
                    _ => continue,
                }
                receivers.push(scope.spawn(move || receive(there, stop)));
            }
            while began.elapsed() < Duration::from_secs(seconds) {
                std::thread::sleep(Duration::from_millis(100));
            }
            stop.store(true, Ordering::Relaxed);
            receivers.into_iter().map(|r| r.join().unwrap()).collect()
        });
        println!("{came:?} datagrams; read {read_one:?} {read_two:?}");
        // Of the eight flows with a word back now and then those words may be lost in a full queue, too.
        let silent = came.iter().filter(|count| **count == 0).count();
        assert!(silent <= 8, "{came:?}");
        assert!(came.iter().sum::<u64>() > 5000, "{came:?}");
        // Twelve flows begin at each end, and the kernel spreads them by a hash that is another one after each boot: one queue without any
        // is there every fourth time, all flows on one queue in 10 million.
        for read in [&read_one, &read_two] {
            let used = read
                .iter()
                .filter(|read| read.load(Ordering::Relaxed) > 100);
            assert!(used.count() > 1, "one queue has all flows");
        }
        for engine in [&engine_one, &engine_two] {
            let mut drops = now(engine.dump()).unwrap().drops;
            // A thread that the machine stops between sealing and sending is late for the other end's window, since the SA's other
            // threads go on: these are lost (with ESN the ICV is what tells it), and only few.
            let late = |reason: &str| matches!(reason, "bad_icv" | "too_old");
            let lost = drops.iter().filter(|(reason, _)| late(reason));
            let lost: u64 = lost.map(|(_, count)| *count).sum();
            assert!(lost * 100 < came.iter().sum(), "{drops:?}");
            drops.retain(|(reason, _)| reason != "multicast" && !late(reason));
            assert_eq!(drops, []);
        }
    });
}

#[test]
fn a_device_that_is_there_keeps_its_mode() {
    isolated("a_device_that_is_there_keeps_its_mode", || {
        let netns = Netns::new("a").unwrap();
        let add = |more: &str| {
            let words = format!("tuntap add dev {TUN} mode tun {more}");
            let mut command = Command::new("ip");
            netns
                .output(command.args(words.split_whitespace()))
                .unwrap();
        };
        let del = || {
            let words = ["link", "del", TUN];
            netns.output(Command::new("ip").args(words)).unwrap();
        };
        let open = |queues| netns.run(|| Tun::open_queues(TUN, 1408, queues)).unwrap();
        // One that somebody else made for one queue.
        add("");
        assert_eq!(open(4).unwrap().count(), 1);
        del();
        // One that is in use lets nobody in, however many queues are wanted.
        for queues in [1, 2] {
            let held = open(queues).unwrap();
            assert_eq!(held.count(), queues);
            for wanted in [1, 2] {
                let refused = open(wanted).unwrap_err().to_string();
                assert!(refused.contains("taken"), "{refused}");
            }
            drop(held);
        }
    });
}
