//! All that the steps work on, and how they wait.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use espalier_rpc::agent::{PeerStatus, StatusReply};
use espalier_testnet::{Bridge, Netns, address, sysctl};

use super::board::Board;
use super::flow::{Traffic, ping};
use super::node::{Node, Shared};
use super::packet::{Marker, new_marker};
use super::plan;
use super::pod::Pod;
use super::report::Report;
use super::watch::{Seen, Watch};

/// How often agents are asked while a step waits.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// The demo's state.
#[derive(Debug)]
pub(super) struct World {
    pub(super) board: Board,
    pub(super) report: Report,
    pub(super) shared: Shared,
    pub(super) marker: Marker,
    /// Length of an observation.
    pub(super) observe: Duration,
    // Flows end before the pods' namespaces do, and those before the wire.
    pub(super) traffic: Option<Traffic>,
    pub(super) nodes: Vec<Node>,
    /// Ids of all containers there ever were: logs may name them.
    pub(super) containers: Vec<String>,
    pub(super) watch: Watch,
    pub(super) bridge: Bridge,
    gateway: Option<Netns>,
    failure: Option<String>,
}

impl World {
    /// The wire and the gateway; no node yet.
    pub(super) fn new(nodes: u8, seconds: f64, shared: Shared) -> Result<Self> {
        let bridge = Bridge::new("wire", plan::UNDERLAY_MTU)?;
        let gateway = Netns::new("gateway")?;
        bridge.connect(&gateway, "eth0", "gateway")?;
        gateway.run(|| {
            address("eth0", plan::GATEWAY.into(), plan::UNDERLAY_PREFIX)?;
            sysctl("ipv4/ip_forward", "1")
        })??;
        let marker = new_marker();
        let pairs = u64::from(nodes) * u64::from(nodes - 1) / 2;
        Ok(Self {
            board: Board::new(),
            report: Report {
                nodes,
                pairs_total: pairs,
                ..Report::default()
            },
            shared,
            marker,
            observe: Duration::try_from_secs_f64(seconds).context("--seconds")?,
            traffic: None,
            nodes: Vec::new(),
            containers: Vec::new(),
            watch: Watch::start(&bridge, &gateway, marker)?,
            bridge,
            gateway: Some(gateway),
            failure: None,
        })
    }

    /// All steps; the first that cannot be done ends the run with a broken claim.
    pub(super) fn run(&mut self) {
        let result = self.steps();
        self.report.sent = self
            .report
            .sent
            .max(self.traffic.as_ref().map_or(0, Traffic::sent));
        let value = match result {
            Ok(()) => "yes".to_owned(),
            Err(error) => {
                let text = format!("{error:#}");
                self.board.done(&format!("FAILED: {text}"));
                self.failure = Some(text);
                "no, see above".to_owned()
            }
        };
        let holds = self.failure.is_none();
        self.board
            .claim("every step could be done", value, "yes", holds);
    }

    fn steps(&mut self) -> Result<()> {
        self.set_up()?;
        self.disabled()?;
        self.required()?;
        self.restart_agent()?;
        self.fail_closed()?;
        self.add_and_remove_node()?;
        self.toggle_again()?;
        self.tear_down()
    }

    /// The running flows.
    pub(super) fn traffic(&self) -> Result<&Traffic> {
        self.traffic.as_ref().context("the flows are not running")
    }

    /// Lets time pass in which captures and flows are looked at; a progress line tells.
    pub(super) fn observe(&self, what: &str) {
        let end = Instant::now() + self.observe;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.board
                .live(&format!("{what}, {:.1} s more", left.as_secs_f64()));
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    /// Counts clear packets of a time in which Required was enforced.
    pub(super) fn count_required(&mut self, seen: &Seen) {
        let total = self.report.clear_packets_required.unwrap_or(0) + seen.clear();
        self.report.clear_packets_required = Some(total);
        self.report.esp_packets += seen.wire.esp;
    }

    /// Gives every node the policy.
    pub(super) fn set_mode(&self, mode: &str) -> Result<()> {
        let policy = plan::policy_manifest(mode);
        self.nodes
            .iter()
            .try_for_each(|node| node.write_manifest("policy.yaml", &policy))
    }

    /// Asks every agent until `missing` finds nothing missing in any answer; returns how long that took.
    pub(super) fn await_nodes(
        &mut self,
        what: &str,
        limit: Duration,
        missing: impl Fn(&StatusReply) -> Vec<String>,
    ) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            let mut open = Vec::new();
            for node in &mut self.nodes {
                match node.status()? {
                    None => open.push(format!("{}: its agent does not answer", node.name)),
                    Some(status) => {
                        let missing = missing(&status).into_iter();
                        open.extend(missing.map(|text| format!("{}: {text}", node.name)));
                    }
                }
            }
            match open.first() {
                None => return Ok(begin.elapsed()),
                Some(first) => self
                    .board
                    .live(&format!("{what}; {} to go: {first}", open.len())),
            }
            if begin.elapsed() > limit {
                open.truncate(6);
                bail!(
                    "expected {what} within {} s; still: {}",
                    limit.as_secs(),
                    open.join("; ")
                );
            }
            std::thread::sleep(ASK_AGAIN);
        }
    }

    /// Waits until all pairs of all nodes are on `path`, and enforced if that is Encrypted.
    pub(super) fn await_path(&mut self, path: &'static str, limit: Duration) -> Result<Duration> {
        let peers = self.nodes.len() - 1;
        self.await_nodes(&format!("every pair {path}"), limit, |status| {
            not_on(status, peers, path)
        })
    }

    /// Every pod pings every other one; with what did not answer as text.
    pub(super) fn ping_all(&mut self) -> Result<(u64, Vec<String>)> {
        let pods: Vec<&Pod> = self.nodes.iter().flat_map(|node| &node.pods).collect();
        let marker = self.marker;
        let all: Vec<Ipv4Addr> = pods.iter().map(|pod| pod.address).collect();
        let answers = std::thread::scope(|scope| {
            let threads = pods.iter().map(|pod| {
                let to: Vec<_> = all
                    .iter()
                    .copied()
                    .filter(|to| *to != pod.address)
                    .collect();
                scope.spawn(move || ping(pod, &to, marker).map(|lost| (pod, lost)))
            });
            let threads: Vec<_> = threads.collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.collect::<Vec<_>>()
        });
        let sent = u64::try_from(all.len() * (all.len() - 1)).unwrap_or(u64::MAX);
        let mut lost = Vec::new();
        for answer in answers {
            let Ok(answer) = answer else {
                bail!("a thread that pings has panicked");
            };
            let (pod, missing) = answer?;
            let lines = missing
                .iter()
                .map(|to| format!("{} got no answer from {to}", pod.name));
            lost.extend(lines);
        }
        self.report.pings_sent += sent;
        self.report.pings_lost += u64::try_from(lost.len()).unwrap_or(u64::MAX);
        Ok((sent, lost))
    }

    /// Ends the gateway.
    pub(super) fn remove_gateway(&mut self) {
        self.gateway = None;
    }

    /// The logs to show after a failure: of the nodes that the failure names, or of the first.
    pub(super) fn logs_of_interest(&self) -> Vec<PathBuf> {
        let failure = self.failure.as_deref().unwrap_or_default();
        let named = |node: &&Node| {
            failure.contains(&format!("{}:", node.name))
                || failure.contains(&format!("{} ", node.name))
        };
        let mut nodes: Vec<&Node> = self.nodes.iter().filter(named).collect();
        if nodes.is_empty() {
            nodes.extend(self.nodes.first());
        }
        let logs = nodes.iter().take(2).flat_map(|node| {
            ["agent", "dataplane"].map(|what| node.logs().join(format!("{}-{what}.log", node.name)))
        });
        logs.collect()
    }
}

/// What keeps a node's pairs from being on `path`.
fn not_on(status: &StatusReply, peers: usize, path: &str) -> Vec<String> {
    let there = |peer: &&PeerStatus| peer.path == path && (path != "Encrypted" || peer.enforced);
    let mut missing: Vec<_> = status
        .peers
        .iter()
        .filter(|peer| !there(peer))
        .map(|peer| {
            let enforced = if peer.enforced { "" } else { ", not enforced" };
            format!(
                "{} is {}{enforced}, IKE {} {}",
                peer.name, peer.path, peer.ike, peer.problem
            )
        })
        .collect();
    if status.peers.len() != peers {
        missing.push(format!("knows {} peers, not {peers}", status.peers.len()));
    }
    if status.dataplane == "unreachable" {
        missing.push("its agent does not reach the data plane yet".to_owned());
    }
    if !status.ready {
        missing.push(format!("not ready: {}", status.problems.join("; ")));
    }
    missing
}
