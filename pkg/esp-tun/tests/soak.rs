//! Mixed load over a lossy path: nothing is damaged, nothing changes its place in its flow. A few seconds;
//! `ESPALIER_SOAK=600 ESPALIER_TEST_LIMIT=700` makes it ten minutes.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use espalier_dataplane_core::{Dataplane as _, Direction, Overlay, Spi};
use espalier_esp_tun::io::{Offload, PacketIo, RawSockets, Tun, Udp};
use espalier_esp_tun::{Config, Engine, Several};
use espalier_testnet::{Netns, VethEnd, address, isolated, veth};

use common::{Node, encrypt, now, peer};

const TUN: &str = "espalier.tun";
/// Of so many packets that are written to the device, one is lost.
const LOSS: u64 = 97;
const RECORD: usize = 1000;

/// A TUN device that loses some of what it is to take.
struct Lossy {
    tun: Tun,
    written: AtomicU64,
    lost: Arc<AtomicU64>,
}

impl AsFd for Lossy {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

impl PacketIo for Lossy {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tun.recv(buffer)
    }
    fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.send_parts(&[IoSlice::new(packet)])
    }
    fn send_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        if self.written.fetch_add(1, Ordering::Relaxed) % LOSS == LOSS - 1 {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.tun.send_parts(parts)
    }
    fn offload(&self) -> Offload {
        self.tun.offload()
    }
}

fn node(netns: &Netns, n: u8, lost: &Arc<AtomicU64>) -> (Node, Engine) {
    let underlay = IpAddr::from([192, 0, 2, n]);
    let engine = netns.run(|| {
        address("eth0", underlay, 24).unwrap();
        address("lo", [10, 244, n, 1].into(), 32).unwrap();
        Engine::start(Config {
            instance: n.into(),
            version: "test".into(),
            device: TUN.into(),
            tun: Several::one(Arc::new(Lossy {
                tun: Tun::open(TUN, 1408).unwrap(),
                written: AtomicU64::new(0),
                lost: lost.clone(),
            })),
            udp: Several::one(Udp::bind(4500).unwrap()),
            raw: RawSockets::none("not here"),
            relay: None,
            report: Box::new(|_| {}),
        })
        .unwrap()
    });
    let engine = engine.unwrap();
    let (pods, source) = (format!("10.244.{}.0/24", 3 - n), format!("10.244.{n}.1"));
    let route = ["route", "add", &pods, "dev", TUN, "src", &source];
    netns.output(Command::new("ip").args(route)).unwrap();
    let port = engine.port();
    let node = Node {
        n,
        address: underlay,
        port,
    };
    (node, engine)
}

/// A record of a stream: its number, and bytes that follow from it.
fn record(number: u64) -> [u8; RECORD] {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = [0; RECORD];
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// Records over TCP; every one must come, in its place.
fn stream(a: &Netns, b: &Netns, to: SocketAddr, end: &AtomicBool) -> u64 {
    let listener = b.run(|| TcpListener::bind(to).unwrap()).unwrap();
    let mut client = a.run(|| TcpStream::connect(to).unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    std::thread::scope(|scope| {
        let sent = scope.spawn(move || {
            let mut number = 0;
            while !end.load(Ordering::Relaxed) {
                client.write_all(&record(number)).unwrap();
                number += 1;
            }
            number
        });
        let (mut number, mut bytes) = (0, [0; RECORD]);
        while server.read_exact(&mut bytes).is_ok() {
            assert!(bytes == record(number), "record {number}");
            number += 1;
        }
        assert_eq!(number, sent.join().unwrap());
        number
    })
}

/// Records of several lengths over UDP; some are lost, none may be changed or come late.
fn datagrams(a: &Netns, b: &Netns, to: SocketAddr, end: &AtomicBool) -> u64 {
    let sender = a.run(|| UdpSocket::bind("10.244.1.1:0").unwrap()).unwrap();
    let receiver = b.run(|| UdpSocket::bind(to).unwrap()).unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let length = |number: u64| 8 + (number / 50 * 37 % (RECORD as u64 - 8)) as usize;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut number = 1;
            while !end.load(Ordering::Relaxed) {
                let _ = sender.send_to(&record(number)[..length(number)], to);
                number += 1;
                if number % 64 == 0 {
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
        });
        let (mut last, mut came, mut bytes) = (0, 0, [0; 2 * RECORD]);
        while !end.load(Ordering::Relaxed) {
            let Ok(len) = receiver.recv(&mut bytes) else {
                continue;
            };
            let number = u64::from_be_bytes(bytes[..8].try_into().unwrap());
            assert!(number > last, "{number} came after {last}");
            assert!(
                bytes[..len] == record(number)[..length(number)],
                "datagram {number}"
            );
            (last, came) = (number, came + 1);
        }
        came
    })
}

#[test]
fn nothing_is_damaged_or_reordered_under_loss() {
    isolated("nothing_is_damaged_or_reordered_under_loss", || {
        let seconds = std::env::var("ESPALIER_SOAK").ok();
        let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(3);
        let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
        let end = |netns| VethEnd {
            netns,
            name: "eth0",
        };
        veth(end(&a), end(&b), 1500).unwrap();
        let lost = Arc::new(AtomicU64::new(0));
        let (one, engine_one) = node(&a, 1, &lost);
        let (two, engine_two) = node(&b, 2, &lost);
        let overlay = Overlay::Vxlan {
            vni: 4789,
            port: 4789,
        };
        now(engine_one.put_peer(peer(one, two, overlay))).unwrap();
        now(engine_two.put_peer(peer(two, one, overlay))).unwrap();
        encrypt((one, &engine_one), (two, &engine_two), Spi(0x1200));
        encrypt((two, &engine_two), (one, &engine_one), Spi(0x2100));
        let (stop, began) = (AtomicBool::new(false), Instant::now());
        let to = |port| SocketAddr::from(([10, 244, 2, 1], port));
        let (streams, came) = std::thread::scope(|scope| {
            let streams = [7001, 7002].map(|port| {
                let (a, b, stop) = (&a, &b, &stop);
                scope.spawn(move || stream(a, b, to(port), stop))
            });
            let came = scope.spawn(|| datagrams(&a, &b, to(7003), &stop));
            // A rekey now and then, under all of it.
            let mut spi = 0x1201;
            while began.elapsed() < Duration::from_secs(seconds) {
                std::thread::sleep(Duration::from_millis(400));
                encrypt((one, &engine_one), (two, &engine_two), Spi(spi));
                now(engine_one.remove_sa(Direction::Out, Spi(spi - 1))).unwrap();
                spi += 1;
            }
            stop.store(true, Ordering::Relaxed);
            let streams = streams.map(|stream| stream.join().unwrap());
            (streams, came.join().unwrap())
        });
        println!("{streams:?} records, {came} datagrams, {lost:?} writes lost");
        assert!(streams.iter().all(|records| *records > 100) && came > 100);
        assert!(lost.load(Ordering::Relaxed) > 0, "loss was injected");
        for engine in [&engine_one, &engine_two] {
            let mut drops = now(engine.dump()).unwrap().drops;
            drops.retain(|(reason, _)| reason != "multicast");
            assert_eq!(drops, []);
        }
    });
}
