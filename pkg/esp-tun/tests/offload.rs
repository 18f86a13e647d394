//! Two whole engines with large packets: over socket pairs that speak as a TUN device with offloads does, and over real TUN devices
//! with TCP between namespaces, in UDP and in raw ESP.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use espalier_dataplane_core::{Dataplane as _, Encapsulation, Overlay, Sa, SaInfo, Spi};
use espalier_esp::offload::Large;
use espalier_esp::wire::{checksum, virtio};
use espalier_esp_tun::io::{Offload, PacketIo, RawSockets, Tun, Udp};
use espalier_esp_tun::{Config, Engine, Several};
use espalier_testnet::{Netns, VethEnd, address, isolated, sysctl, veth};
use socket2::{Domain, Protocol, Socket, Type};

use common::{Node, encrypt_as, in_ip, now, peer};

const VXLAN: Overlay = Overlay::Vxlan {
    vni: 4789,
    port: 4789,
};

/// Only to fail instead of hanging.
const LIMIT: Duration = Duration::from_secs(20);

/// One end of a socket pair whose packets are behind virtio headers.
struct Large4(UnixDatagram);

impl AsFd for Large4 {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PacketIo for Large4 {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }
    fn send(&self, packet: &[u8]) -> io::Result<()> {
        // Unlike a TUN device a socket pair takes a few packets only: wait for the test to read them.
        let began = std::time::Instant::now();
        loop {
            match self.0.send(packet) {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && began.elapsed() < LIMIT =>
                {
                    std::thread::yield_now();
                }
                sent => return sent.map(|_| ()),
            }
        }
    }
    fn send_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let whole: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        self.send(&whole)
    }
    fn offload(&self) -> Offload {
        Offload::TcpUdp
    }
}

struct Host {
    node: Node,
    engine: Engine,
    pods: UnixDatagram,
}

fn host(n: u8, underlay: [u8; 4]) -> Host {
    let (tun, pods) = UnixDatagram::pair().unwrap();
    tun.set_nonblocking(true).unwrap();
    pods.set_read_timeout(Some(LIMIT)).unwrap();
    let engine = start(n, "none", Arc::new(Large4(tun)));
    let node = Node {
        n,
        address: underlay.into(),
        port: engine.port(),
    };
    Host { node, engine, pods }
}

fn start(n: u8, device: &str, tun: Arc<dyn PacketIo>) -> Engine {
    Engine::start(Config {
        instance: n.into(),
        version: "test".into(),
        device: device.into(),
        tun: Several::one(tun),
        udp: Several::one(Udp::bind(if device == "none" { 0 } else { 4500 }).unwrap()),
        raw: match device {
            "none" => RawSockets::none("not here"),
            _ => RawSockets::open(),
        },
        relay: None,
        report: Box::new(|_| {}),
    })
    .unwrap()
}

fn pair((one, two): (&(Node, &Engine), &(Node, &Engine)), overlay: Overlay, change: fn(Sa) -> Sa) {
    now(one.1.put_peer(peer(one.0, two.0, overlay))).unwrap();
    now(two.1.put_peer(peer(two.0, one.0, overlay))).unwrap();
    encrypt_as(*one, *two, Spi(0x1200), change);
    encrypt_as(*two, *one, Spi(0x2100), change);
}

/// A TCP packet that stands for `payload` in segments of 1,000 bytes.
fn large(port: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let len = (40 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 9, 0x40, 0, 64, 6, 0, 0, 10, 244, 1, 2, 10, 244, 2, 3]);
    packet.extend([0x13, 0x88, 0, port]);
    packet.extend(sequence.to_be_bytes());
    packet.extend([0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    let header = !checksum::fold(checksum::sum(&packet[..20]));
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    let pseudo = checksum::sum(&packet[12..20]) + 6 + u64::from(len) - 20;
    packet[36..38].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    packet.extend(payload);
    let header = virtio::Header {
        needs_checksum: true,
        gso: Some(virtio::Gso::Tcp4),
        header_len: 40,
        segment: 1000,
        checksum_start: 20,
        checksum_offset: 16,
    };
    [&header.emit()[..], &packet].concat()
}

/// The port and payload of a packet that came.
fn received(pods: &UnixDatagram) -> (u8, u32, Vec<u8>) {
    let mut buffer = vec![0; 70_000];
    let len = pods.recv(&mut buffer).unwrap();
    let whole = Large::parse(Offload::TcpUdp, &buffer[..len]).unwrap();
    let packet = whole.bytes();
    let sequence = u32::from_be_bytes(packet[24..28].try_into().unwrap());
    (packet[23], sequence, packet[40..].to_vec())
}

#[test]
fn large_packets_arrive_with_every_byte_in_its_place() {
    let (one, two) = (host(1, [127, 0, 0, 1]), host(2, [127, 0, 0, 2]));
    pair(
        (&(one.node, &one.engine), &(two.node, &two.engine)),
        VXLAN,
        |sa| sa,
    );
    let payload = |round: u32, port: u8, len: usize| -> Vec<u8> {
        (0..len)
            .map(|at| (at as u32 ^ round ^ u32::from(port)) as u8)
            .collect()
    };
    let mut expected = 0;
    for round in 0..60_u32 {
        for port in [7, 8] {
            let payload = payload(round, port, 60_000 - 999 * round as usize);
            one.pods.send(&large(port, 1, &payload)).unwrap();
            expected += payload.len().div_ceil(1000);
            let (mut next, mut all) = (1, Vec::new());
            while all.len() < payload.len() {
                let (got, sequence, part) = received(&two.pods);
                assert_eq!((got, sequence), (port, next), "in order");
                next += part.len() as u32;
                all.extend(part);
            }
            assert!(all == payload, "round {round}");
        }
    }
    let dump = now(two.engine.dump()).unwrap();
    assert_eq!(dump.drops, []);
    let opened: u64 = dump.sas.iter().map(|sa| sa.packets).sum();
    assert_eq!(
        opened, expected as u64,
        "every segment was a packet of its own"
    );
}

#[test]
fn a_flow_keeps_its_order_among_others() {
    let (one, two) = (host(1, [127, 0, 0, 1]), host(2, [127, 0, 0, 2]));
    pair(
        (&(one.node, &one.engine), &(two.node, &two.engine)),
        VXLAN,
        |sa| sa,
    );
    // One flow's packets of several sizes, large ones and small ones, between those of others.
    let sizes = [100, 2500, 999, 1000, 7000, 1, 3000];
    let (mut sequences, rounds) = ([1_u32; 4], 40);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..rounds {
                for (port, sequence) in (0_u8..).zip(&mut sequences) {
                    let len = sizes[(round + usize::from(port)) % sizes.len()];
                    one.pods
                        .send(&large(port, *sequence, &vec![port; len]))
                        .unwrap();
                    *sequence += len as u32;
                }
            }
        });
        let mut next = [1_u32; 4];
        let last = |port: usize| -> u32 {
            1 + (0..rounds)
                .map(|round| sizes[(round + port) % sizes.len()] as u32)
                .sum::<u32>()
        };
        while (0..4).any(|port| next[port] < last(port)) {
            let (port, sequence, payload) = received(&two.pods);
            let expected = &mut next[usize::from(port)];
            assert_eq!(sequence, *expected, "flow {port}");
            assert!(payload.iter().all(|byte| *byte == port));
            *expected += payload.len() as u32;
        }
    });
}

#[test]
fn what_no_device_should_give_is_counted() {
    let one = host(1, [127, 0, 0, 1]);
    let mut nonsense = large(7, 1, &[0; 3000]);
    nonsense[6] = 250;
    one.pods.send(&nonsense).unwrap();
    one.pods.send(b"short").unwrap();
    let drops = || now(one.engine.dump()).unwrap().drops;
    while drops() != [("bad_offload".to_owned(), 2)] {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Two namespaces whose pods are on `lo`, with an engine each; the underlay's MTU.
fn namespaces(
    mtu: u32,
    underlay_v6: bool,
    (overlay, change): (Overlay, fn(Sa) -> Sa),
    body: impl FnOnce(&Netns, &Netns, [&Engine; 2]),
) {
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    let end = |netns| VethEnd {
        netns,
        name: "eth0",
    };
    veth(end(&a), end(&b), mtu).unwrap();
    let [(one, engine_one), (two, engine_two)] = [(&a, 1), (&b, 2)].map(|(netns, n)| {
        let underlay: IpAddr = if underlay_v6 {
            format!("2001:db8::{n}").parse().unwrap()
        } else {
            [192, 0, 2, n].into()
        };
        let engine = netns.run(|| {
            sysctl("ipv6/conf/eth0/accept_dad", "0").unwrap();
            address("eth0", underlay, if underlay_v6 { 64 } else { 24 }).unwrap();
            address("lo", [10, 244, n, 1].into(), 32).unwrap();
            address("lo", format!("fd00:{n}::1").parse().unwrap(), 128).unwrap();
            start(
                n,
                "espalier.tun",
                Arc::new(Tun::open("espalier.tun", 1388).unwrap()),
            )
        });
        let engine = engine.unwrap();
        let other = 3 - n;
        for (pods, source) in [
            (format!("10.244.{other}.0/24"), format!("10.244.{n}.1")),
            (format!("fd00:{other}::/64"), format!("fd00:{n}::1")),
        ] {
            let route = ["route", "add", &pods, "dev", "espalier.tun", "src", &source];
            netns.output(Command::new("ip").args(route)).unwrap();
        }
        let node = Node {
            n,
            address: underlay,
            port: engine.port(),
        };
        (node, engine)
    });
    pair((&(one, &engine_one), &(two, &engine_two)), overlay, change);
    body(&a, &b, [&engine_one, &engine_two]);
}

/// Sends numbered bytes both ways over one connection and checks each of them.
fn stream(a: &Netns, b: &Netns, to: &str, bytes: usize) {
    let to: SocketAddr = to.parse().unwrap();
    let listener = b.run(|| TcpListener::bind(to).unwrap()).unwrap();
    let client = a.run(|| TcpStream::connect(to).unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
    }
    let text: Vec<u8> = (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect();
    std::thread::scope(|scope| {
        for mut stream in [&client, &server] {
            let text = &text;
            scope.spawn(move || stream.write_all(text).unwrap());
        }
        for mut stream in [&server, &client] {
            let mut got = vec![0; bytes];
            stream.read_exact(&mut got).unwrap();
            assert!(got == text, "every byte as it was");
        }
    });
}

fn lost(engine: &Engine) -> Vec<(String, u64)> {
    let drops = now(engine.dump()).unwrap().drops;
    drops
        .into_iter()
        .filter(|(reason, _)| reason != "multicast")
        .collect()
}

#[test]
fn tcp_in_both_families_and_framings_is_whole() {
    isolated("tcp_in_both_families_and_framings_is_whole", || {
        for (underlay_v6, overlay) in [(false, VXLAN), (true, VXLAN), (false, Overlay::Ipip)] {
            namespaces(1500, underlay_v6, (overlay, |sa| sa), |a, b, engines| {
                stream(a, b, "10.244.2.1:7000", 4 << 20);
                stream(a, b, "[fd00:2::1]:7000", 4 << 20);
                for engine in engines {
                    assert_eq!(lost(engine), []);
                }
            });
        }
    });
}

/// Datagrams of UDP that this namespace's sockets were given.
fn udp_datagrams(netns: &Netns) -> u64 {
    let text = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let text = text.unwrap();
    let numbers = text.lines().filter(|line| line.starts_with("Udp:")).nth(1);
    numbers.unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn tcp_in_raw_esp_is_whole_and_nothing_of_it_is_in_udp() {
    isolated(
        "tcp_in_raw_esp_is_whole_and_nothing_of_it_is_in_udp",
        || {
            for underlay_v6 in [false, true] {
                for overlay in [VXLAN, Overlay::Ipip] {
                    namespaces(1500, underlay_v6, (overlay, in_ip), |a, b, engines| {
                        stream(a, b, "10.244.2.1:7000", 4 << 20);
                        stream(a, b, "[fd00:2::1]:7000", 4 << 20);
                        assert_eq!([a, b].map(udp_datagrams), [0, 0]);
                        for engine in engines {
                            assert_eq!(lost(engine), []);
                            let sas = now(engine.dump()).unwrap().sas;
                            let raw = |sa: &SaInfo| sa.encapsulation == Encapsulation::Raw;
                            assert!(sas.iter().all(|sa| raw(sa) && sa.packets > 1000), "{sas:?}");
                        }
                    });
                }
            }
        },
    );
}

/// What somebody else makes of a packet on its way: raw ESP of an SA in UDP, and the reverse.
#[test]
fn what_comes_otherwise_than_agreed_is_counted_and_not_opened() {
    isolated(
        "what_comes_otherwise_than_agreed_is_counted_and_not_opened",
        || {
            for is_raw in [false, true] {
                let change = if is_raw { in_ip } else { |sa| sa };
                namespaces(1500, false, (VXLAN, change), |a, _, [_, engine]| {
                    let esp = [&0x1200_u32.to_be_bytes()[..], &[0, 0, 0, 1], &[0; 56]].concat();
                    let udp = a.run(|| UdpSocket::bind("192.0.2.1:0").unwrap()).unwrap();
                    let raw = a.run(|| {
                        let protocol = Some(Protocol::from(50));
                        Socket::new(Domain::IPV4, Type::RAW, protocol).unwrap()
                    });
                    let to: SocketAddr = "192.0.2.2:0".parse().unwrap();
                    raw.unwrap().send_to(&esp, &to.into()).unwrap();
                    // What is wrong shows first.
                    std::thread::sleep(Duration::from_millis(100));
                    udp.send_to(&esp, "192.0.2.2:4500").unwrap();
                    // One is refused for its way, the other one for its ICV; while there is no raw SA no raw packet is looked at.
                    let expected: &[(&str, u64)] = match is_raw {
                        true => &[("bad_icv", 1), ("encapsulation", 1)],
                        false => &[("bad_icv", 1)],
                    };
                    let began = Instant::now();
                    loop {
                        let got = lost(engine);
                        let got: Vec<_> = got.iter().map(|(name, n)| (name.as_str(), *n)).collect();
                        if got == expected {
                            break;
                        }
                        assert!(began.elapsed() < LIMIT, "{got:?}");
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
            }
        },
    );
}

#[test]
fn a_path_with_a_smaller_mtu_takes_fragments_one_by_one() {
    isolated(
        "a_path_with_a_smaller_mtu_takes_fragments_one_by_one",
        || {
            // A datagram of a full-sized pod packet is larger than this underlay, so several cannot be sent by one call.
            let unchanged: fn(Sa) -> Sa = |sa| sa;
            for (underlay_v6, change) in [(false, unchanged), (false, in_ip), (true, in_ip)] {
                namespaces(1400, underlay_v6, (VXLAN, change), |a, b, engines| {
                    stream(a, b, "10.244.2.1:7000", 1 << 20);
                    for engine in engines {
                        assert_eq!(lost(engine), []);
                    }
                });
            }
        },
    );
}
