//! The data plane's program is replaced in place.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use espalier_capture::{Interfaces, Reader, Received, interface_index};
use espalier_e2e::{
    Bench, Cluster, Flow, Flows, INTERVAL, Mode, Node, Plane, encrypted, test, until,
};
use espalier_testnet::Bridge;

/// How much is done: less where the machine is told to be slow, as an emulated one, in which each upgrade takes many seconds.
struct Amount {
    /// Packets of each flow a second.
    rate: u32,
    /// Upgrades of one node, in turns.
    single: u8,
    /// Of both at once.
    double: u8,
}

impl Amount {
    fn here() -> Self {
        match std::env::var_os(INTERVAL) {
            None => Self {
                rate: 1000,
                single: 10,
                double: 4,
            },
            Some(_) => Self {
                rate: 50,
                single: 2,
                double: 1,
            },
        }
    }
}

/// Between two upgrades.
const PAUSE: Duration = Duration::from_millis(300);

#[test]
fn data_planes_are_replaced_under_flows_and_nothing_is_lost() {
    test(
        "upgrade::data_planes_are_replaced_under_flows_and_nothing_is_lost",
        |bench| {
            let mut mesh = Cluster::prepare(bench, 2, Mode::Required)?;
            for node in &mut mesh.nodes {
                (node.plane, node.rekey_seconds) = (Some(Plane::Userspace), Some(10));
                // One folder for both: a guest's memory has no room for more copies.
                node.programs = bench.root.join("programs");
            }
            mesh.start_all()?;
            let pods = mesh.pods(&[1, 2])?;
            mesh.works(&[1, 2], &pods)?;
            let Amount {
                rate,
                single,
                double,
            } = Amount::here();
            let programs = [variant(bench, 0)?, bench.bin.join("espalier-dataplane")];
            let put = |program: &PathBuf| mesh.node_ref(1)?.put_program(program);
            let programs: Vec<String> = programs.iter().map(put).collect::<Result<_>>()?;
            let flows = Flows::count_from_now(vec![
                Flow::start_paced(&pods[0], &pods[1], 7001, rate)?,
                Flow::start_paced(&pods[1], &pods[0], 7002, rate)?,
            ])?;
            let (nonces, capture) = (Nonces::start(&mesh)?, mesh.watch.now()?);
            let before = mesh
                .nodes
                .iter()
                .map(Node::hello)
                .collect::<Result<Vec<_>>>()?;

            // One node after the other, then both at once.
            for round in 0..single {
                let node = mesh.node_ref(1 + round % 2)?;
                node.upgrade(&programs[usize::from(round / 2 % 2)])?;
                std::thread::sleep(PAUSE);
            }
            for round in 0..double {
                let program = &programs[usize::from(single / 2 + round) % 2];
                let both: Vec<Result<()>> = std::thread::scope(|scope| {
                    let upgrade = |node| scope.spawn(move || Node::upgrade(node, program));
                    let running: Vec<_> = mesh.nodes.iter().map(upgrade).collect();
                    let joined = running.into_iter().map(|thread| thread.join());
                    joined
                        .map(|ended| ended.map_err(|_| anyhow!("panic"))?)
                        .collect()
                });
                both.into_iter().collect::<Result<Vec<()>>>()?;
                std::thread::sleep(PAUSE);
            }
            // One that cannot go on leaves everything as it was.
            let node = mesh.node_ref(1)?;
            let other = node.put_program(Path::new("/bin/true"))?;
            let refused = node.upgrade(&other).map_err(|e| e.to_string());
            let said = refused
                .err()
                .context("/bin/true was taken for a data plane")?;
            ensure!(said.contains("goes on as it was"), "{said}");

            flows.arrive()?;
            mesh.await_pairs(&[1, 2], encrypted)?;
            for count in flows.counts() {
                let enough = u64::from(rate * u32::from(single));
                ensure!(count.lost == 0 && count.sent > enough / 2, "{count:?}");
            }
            mesh.watch.nothing_clear_since(&capture)?;
            drop(flows);
            nonces.were_unique(rate)?;
            for (node, before) in mesh.nodes.iter().zip(before) {
                let after = node.hello()?;
                let same = (after.instance, after.pid) == (before.instance, before.pid);
                ensure!(same, "{before:?} became {after:?}");
                let gaps = gaps(node)?;
                println!("{}: packets waited, in microseconds: {gaps:?}", node.name);
                let expected = usize::from(single / 2 + double);
                ensure!(
                    gaps.len() == expected,
                    "expected {expected} upgrades, found {gaps:?}"
                );
                let problems = node.log("agent")?;
                ensure!(
                    !problems.contains("handshake is given up"),
                    "SAs were not installed"
                );
            }
            Ok(())
        },
    );
}

/// What the agent of a release does that comes with another data plane.
#[test]
fn an_agent_brings_the_data_plane_to_its_release() {
    test(
        "upgrade::an_agent_brings_the_data_plane_to_its_release",
        |bench| {
            let mut mesh = Cluster::start(bench, 2, Mode::Required)?;
            let pods = mesh.pods(&[1, 2])?;
            mesh.works(&[1, 2], &pods)?;
            let flows = Flows::count_from_now(vec![
                Flow::start(&pods[0], &pods[1], 7001)?,
                Flow::start(&pods[1], &pods[0], 7002)?,
            ])?;
            let before = mesh.node_ref(1)?.hello()?;
            let node = mesh.node(1)?;
            node.carried = Some(variant(bench, 7)?);
            node.kill_agent()?;
            node.start_agent()?;
            let after = until("another program", || {
                let now = mesh.node_ref(1)?.hello()?;
                let other = now.digest != before.digest;
                Ok(other.then_some(now).ok_or_else(|| "the old one".to_owned()))
            })?;
            ensure!(
                (after.instance, after.pid) == (before.instance, before.pid),
                "{after:?}"
            );
            mesh.await_status(1, "no problem", |status| {
                let none = status.problems.is_empty();
                none.then_some(()).ok_or_else(|| status.problems.join("; "))
            })?;
            mesh.await_pairs(&[1, 2], encrypted)?;
            flows.arrive()?;

            // A program that is none: said, and everything goes on.
            let node = mesh.node(1)?;
            node.carried = Some(PathBuf::from("/bin/true"));
            node.kill_agent()?;
            node.start_agent()?;
            mesh.await_problem(1, &["goes on as it was", "espalier upgrade-dataplane"])?;
            ensure!(mesh.node_ref(1)?.hello()? == after, "it changed");
            for count in flows.counts() {
                ensure!(count.lost == 0, "{count:?}");
            }
            mesh.works(&[1, 2], &pods)
        },
    );
}

/// The data plane's program with something behind it that nobody reads: another file, the same code.
fn variant(bench: &Bench, number: u8) -> Result<PathBuf> {
    let mut bytes = fs::read(bench.bin.join("espalier-dataplane"))?;
    bytes.push(number);
    let path = bench.root.join(format!("dataplane-{number}"));
    fs::write(&path, bytes)?;
    Ok(path)
}

/// How long packets waited at each upgrade, in microseconds.
fn gaps(node: &Node) -> Result<Vec<u64>> {
    let log = node.log("dataplane")?;
    let lines = log.lines().filter_map(|line| line.split_once("gap_us="));
    let gap = |(_, rest): (&str, &str)| {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        digits
            .unwrap_or_default()
            .parse()
            .context("a gap in the log")
    };
    lines.map(gap).collect()
}

/// Sender, SPI and sequence number of every ESP packet on the wire.
struct Nonces {
    stop: Arc<AtomicBool>,
    reading: JoinHandle<Result<(usize, usize)>>,
}

impl Nonces {
    fn start(mesh: &Cluster) -> Result<Self> {
        let mut frames = mesh.bridge.netns().run(|| {
            let bridge = interface_index(Bridge::DEVICE)?;
            Reader::open(Interfaces::AllBut(vec![bridge]), false, 32 << 20)
        })??;
        frames.set_timeout(Duration::from_millis(50))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let reading = std::thread::spawn(move || {
            let (mut seen, mut again) = (HashSet::new(), 0);
            loop {
                match frames.receive()? {
                    Received::Frame { bytes, .. } => {
                        if let Some(nonce) = nonce(bytes) {
                            again += usize::from(!seen.insert(nonce));
                        }
                    }
                    _ if told.load(Ordering::Relaxed) => break,
                    _ => {}
                }
            }
            ensure!(frames.dropped() == 0, "the capture lost frames");
            Ok((seen.len(), again))
        });
        Ok(Self { stop, reading })
    }

    fn were_unique(self, at_least: u32) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self
            .reading
            .join()
            .map_err(|_| anyhow!("the capture panicked"))?;
        let (seen, again) = ended?;
        println!("{seen} ESP packets, {again} of them with a nonce seen before");
        ensure!(
            seen > usize::try_from(at_least)?,
            "only {seen} ESP packets were seen"
        );
        ensure!(again == 0, "S4: {again} of {seen} nonces came again");
        Ok(())
    }
}

/// Of ESP in UDP over IPv4 (no options): the IV is the whole sequence number.
fn nonce(frame: &[u8]) -> Option<([u8; 4], [u8; 4], [u8; 8])> {
    let is_udp = frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17);
    let port = frame.get(36..38) == Some(&4500_u16.to_be_bytes());
    let part = |at: usize, len| frame.get(at..at + len);
    let spi: [u8; 4] = part(42, 4)?.try_into().ok()?;
    let known = is_udp && port && spi != [0; 4];
    let sender = part(26, 4)?.try_into().ok()?;
    known.then_some((sender, spi, part(50, 8)?.try_into().ok()?))
}
