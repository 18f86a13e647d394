//! The real binary with two queues, replaced in place under load; ESP in UDP, and raw ESP.
//!
//! ```text
//!  netns a                                                                netns b
//!  10.244.1.1 on lo                                                       10.244.2.1 on lo
//!  two TX and two RX threads ── eth0 192.0.2.1 ═══ESP═══ 192.0.2.2 eth0 ── two TX and two RX threads
//! ```

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use espalier_dataplane_core::{Dataplane as _, Direction, Encapsulation, Overlay, Sa, SaInfo};
use espalier_handover::binary;
use espalier_rpc::DataplaneClient;
use espalier_testnet::{Netns, Process, VethEnd, address, veth};

use common::{answers, in_sandbox, peer, sa, variant};

const FLOWS: u16 = 12;
const UPGRADES: u8 = 4;

struct Node {
    netns: Netns,
    n: u8,
    client: DataplaneClient,
    _process: Process,
    dir: tempfile::TempDir,
}

async fn node(netns: Netns, n: u8) -> Node {
    netns
        .run(|| {
            address("eth0", [192, 0, 2, n].into(), 24).unwrap();
            address("lo", [10, 244, n, 1].into(), 32).unwrap();
        })
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier-dataplane"));
    command.args(["--dataplane", "userspace", "--queues", "2", "--run-dir"]);
    command
        .arg(dir.path())
        .arg("--upgrade-dir")
        .arg(dir.path().join("bin"));
    let mut process = netns.spawn(&mut command).unwrap();
    let client = DataplaneClient::new(dir.path().join("dataplane.sock")).unwrap();
    answers(&mut process, &client).await;
    let (pods, source) = (format!("10.244.{}.0/24", 3 - n), format!("10.244.{n}.1"));
    let route = ["route", "add", &pods, "dev", "espalier.tun", "src", &source];
    netns.output(Command::new("ip").args(route)).unwrap();
    Node {
        netns,
        n,
        client,
        _process: process,
        dir,
    }
}

impl Node {
    async fn connect(&self, raw: bool) {
        let (client, own, other) = (&self.client, self.n, 3 - self.n);
        let sa = |direction, spi| {
            let sa = sa(other, direction, spi);
            let encapsulation = if raw {
                Encapsulation::Raw
            } else {
                sa.encapsulation
            };
            Sa {
                encapsulation,
                ..sa
            }
        };
        let peer = peer(own, other, Overlay::Ipip);
        let id = peer.id.clone();
        client.put_peer(peer).await.unwrap();
        // By who seals.
        let spi = |n| 0x1000 + u32::from(n);
        let inbound = sa(Direction::In, spi(other));
        client.install_sa(inbound).await.unwrap();
        let outbound = sa(Direction::Out, spi(own));
        let active = Some(outbound.spi);
        client.install_sa(outbound).await.unwrap();
        client.switch_outbound(id, active).await.unwrap();
    }

    /// Replaced by another file with the same code.
    async fn upgrade(&self, number: u8) {
        let program = self.dir.path().join("program");
        fs::write(&program, variant(number)).unwrap();
        let bin = self.dir.path().join("bin");
        let digest = binary::install(Path::new(&program), &bin).unwrap();
        let upgraded = self.client.upgrade(&digest.to_string()).await;
        upgraded.unwrap();
        let now = self.client.hello().await.unwrap().digest;
        assert_eq!(now, digest.to_string());
    }

    fn pod(&self, port: u16) -> UdpSocket {
        let at = SocketAddr::from(([10, 244, self.n, 1], port));
        let socket = self.netns.run(|| UdpSocket::bind(at).unwrap()).unwrap();
        let short = Some(Duration::from_millis(500));
        socket.set_read_timeout(short).unwrap();
        socket
    }
}

/// Numbered datagrams until the end; how many.
fn send(from: &UdpSocket, to: SocketAddr, end: &AtomicBool) -> u64 {
    let mut number = 0_u64;
    while !end.load(Ordering::Relaxed) {
        number += 1;
        from.send_to(&number.to_be_bytes(), to).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
    number
}

/// All that come, in their order, until none does after the end; how many.
fn receive(at: &UdpSocket, end: &AtomicBool) -> u64 {
    let (mut last, mut bytes) = (0, [0; 8]);
    loop {
        match at.recv(&mut bytes) {
            Ok(_) => {
                let number = u64::from_be_bytes(bytes);
                assert_eq!(number, last + 1, "none is lost, none changes its place");
                last = number;
            }
            Err(_) if end.load(Ordering::Relaxed) => return last,
            Err(_) => {}
        }
    }
}

#[test]
fn s4_two_queues_are_taken_over_under_load_and_nothing_is_lost() {
    let name = "s4_two_queues_are_taken_over_under_load_and_nothing_is_lost";
    taken_over(name, false);
}

#[test]
fn s4_raw_esp_is_taken_over_under_load_and_nothing_is_lost() {
    let name = "s4_raw_esp_is_taken_over_under_load_and_nothing_is_lost";
    taken_over(name, true);
}

fn taken_over(name: &str, raw: bool) {
    in_sandbox(name, async || {
        let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
        let end = |netns| VethEnd {
            netns,
            name: "eth0",
        };
        veth(end(&a), end(&b), 1500).unwrap();
        let (a, b) = (node(a, 1).await, node(b, 2).await);
        a.connect(raw).await;
        b.connect(raw).await;
        let stop = AtomicBool::new(false);
        let pods: Vec<_> = (0..FLOWS)
            .map(|flow| (a.pod(7000 + flow), b.pod(8000 + flow)))
            .collect();
        let stop = Arc::new(stop);
        let mut flows = Vec::new();
        for (flow, (one, other)) in pods.into_iter().enumerate() {
            let (from, to) = if flow % 2 == 0 {
                (one, other)
            } else {
                (other, one)
            };
            let address = to.local_addr().unwrap();
            let (ends, end) = (stop.clone(), stop.clone());
            let received = std::thread::spawn(move || receive(&to, &ends));
            let sent = std::thread::spawn(move || send(&from, address, &end));
            flows.push((sent, received));
        }
        for number in 0..UPGRADES {
            a.upgrade(number).await;
            b.upgrade(number).await;
        }
        stop.store(true, Ordering::Relaxed);
        let joined = flows.into_iter();
        let counts: Vec<_> = joined
            .map(|(sent, received)| (sent.join().unwrap(), received.join().unwrap()))
            .collect();
        println!("{counts:?}");
        for (sent, received) in counts {
            assert!(sent > 100, "{sent} were sent");
            assert_eq!(sent, received);
        }
        for node in [&a, &b] {
            let dump = node.client.dump().await.unwrap();
            let is_raw = |sa: &SaInfo| sa.encapsulation == Encapsulation::Raw;
            assert!(
                dump.sas
                    .iter()
                    .all(|sa| is_raw(sa) == raw && sa.packets > 100)
            );
            // A number that was used twice would be a replay to the other end.
            let drops: Vec<_> = dump
                .drops
                .iter()
                .filter(|(reason, _)| reason != "multicast")
                .collect();
            assert!(drops.is_empty(), "{drops:?}");
            let threads = format!("/proc/{}/task", node.client.hello().await.unwrap().pid);
            let names = fs::read_dir(threads).unwrap().map(|thread| {
                let name = thread.unwrap().path().join("comm");
                fs::read_to_string(name).unwrap().trim().to_owned()
            });
            let names: Vec<_> = names.filter(|name| name.starts_with("espalier-")).collect();
            for name in [
                "espalier-tx0",
                "espalier-tx1",
                "espalier-rx0",
                "espalier-rx1",
                "espalier-raw0",
            ] {
                assert!(names.iter().any(|found| found == name), "{names:?}");
            }
        }
    });
}
