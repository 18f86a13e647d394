//! `espalier status`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use clap::{Args, ValueEnum};
use espalier_rpc::agent::{Capabilities, PeerStatus, StatusReply};
use serde::Serialize;

use crate::mesh::{self, AgentSocket};

/// Options of `espalier status`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    agent: AgentSocket,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Show what this node's data plane was found to be able to do.
    #[arg(long)]
    node: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

pub(crate) fn run(args: &StatusArgs) -> Result<()> {
    let status = mesh::status(&args.agent.path())?;
    match args.output {
        Output::Table if args.node => print!("{}", head(&status) + &abilities(&status)),
        Output::Table => print!("{}", table(&status)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&Node::from(&status))?),
    }
    Ok(())
}

fn table(status: &StatusReply) -> String {
    let mut text = head(status);
    let columns = [
        "PEER", "ADDRESS", "MODE", "PATH", "IKE", "SUITE", "VIA", "SPI IN", "SPI OUT", "AGE", "IN",
        "OUT", "DROPS",
    ];
    let rows = status.peers.iter().map(row);
    let header = columns.map(str::to_owned);
    text.push('\n');
    text.push_str(&align(std::iter::once(header).chain(rows).collect()));
    problems(status, &mut text);
    text
}

fn head(status: &StatusReply) -> String {
    let ready = if status.ready { "ready" } else { "NOT READY" };
    let encrypted = status.peers.iter().filter(|peer| peer.path == "Encrypted");
    format!(
        "node {} ({}), {ready}, espalier {}, up {}\n\
         mode {}, {} of {} peers encrypted, data plane {}\n\
         pods {} of {}, MTU {}, {} leases\n",
        status.node,
        status.underlay,
        status.version,
        age(status.uptime_s),
        status.mode,
        encrypted.count(),
        status.peers.len(),
        status.dataplane,
        status.pod_cidrs.join(" "),
        status.cluster_cidrs.join(" "),
        status.mtu,
        status.leases,
    )
}

fn row(peer: &PeerStatus) -> [String; 13] {
    let path = match (peer.path.as_str(), peer.enforced) {
        (path @ ("Encrypted" | "Authenticated"), true) => format!("{path}, enforced"),
        (path, _) => path.to_owned(),
    };
    let has_sa = !peer.suite.is_empty();
    let or_dash = |text: String| if has_sa { text } else { "-".to_owned() };
    [
        peer.name.clone(),
        peer.address.clone(),
        match peer.kind.as_str() {
            "external" => peer.kind.clone(),
            _ => peer.effective_mode.clone(),
        },
        path,
        peer.ike.clone(),
        or_dash(peer.suite.clone()),
        or_dash(via(peer)),
        or_dash(format!("{:08x}", peer.spi_in)),
        or_dash(format!("{:08x}", peer.spi_out)),
        or_dash(age(peer.age_s)),
        amount(peer.packets_in, peer.bytes_in),
        amount(peer.packets_out, peer.bytes_out),
        peer.drops.to_string(),
    ]
}

/// Protocol, what is around it, and how many CPUs have SAs of their own.
fn via(peer: &PeerStatus) -> String {
    let protocol = &peer.protocol;
    let cpus = match peer.cpus {
        0 => String::new(),
        cpus => format!(", {cpus} CPUs"),
    };
    match peer.encapsulation.as_str() {
        "" => "-".to_owned(),
        "UDP" => format!("{protocol} in UDP{cpus}"),
        way => format!("{protocol} {way}{cpus}"),
    }
}

/// What the data plane can do, and what it found.
fn abilities(status: &StatusReply) -> String {
    let mut text = format!("overlay {}, protocol {}\n", status.overlay, status.protocol);
    let yes = |can: bool| if can { "yes" } else { "no" };
    match &status.can {
        None => text.push_str("data plane: never answered; is espalier-dataplane running?\n"),
        Some(can) => {
            let cpus = match can.cpus {
                0 => "no".to_owned(),
                cpus => cpus.to_string(),
            };
            let _ = write!(
                text,
                "data plane {} {}, as probed:\n  suites {}\n  raw {}, ESP in UDP {}, tunnel mode {}, \
                 64-bit sequence numbers {}, replay window up to {}, SAs per CPU {cpus}\n",
                status.dataplane,
                status.dataplane_version,
                can.suites.join(", "),
                yes(can.raw),
                yes(can.udp),
                yes(can.tunnel),
                yes(can.esn),
                can.max_replay_window,
            );
        }
    }
    for note in &status.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn problems(status: &StatusReply, text: &mut String) {
    // What the node says of an external gateway is not said twice.
    let said = |peer: &&PeerStatus| status.problems.contains(&peer.problem);
    let of_peers = status.peers.iter().filter(|peer| !peer.problem.is_empty());
    let of_peers = of_peers.filter(|peer| !said(peer));
    let of_peers = of_peers.map(|peer| format!("{}: {}", peer.name, peer.problem));
    let of_node = status.problems.iter().cloned();
    for (index, problem) in of_node.chain(of_peers).enumerate() {
        if index == 0 {
            text.push_str("\nproblems:\n");
        }
        let _ = writeln!(text, "  - {problem}");
    }
    let mut drops: Vec<_> = status
        .drops
        .iter()
        .filter(|(_, count)| **count > 0)
        .collect();
    drops.sort();
    for (reason, count) in drops {
        let _ = writeln!(text, "dropped: {count} packets: {reason}");
    }
}

/// Seconds in the two largest units.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86400, seconds / 3600 % 24),
    }
}

fn amount(packets: u64, bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{packets} ({bytes} B)"),
        10_000..10_000_000 => format!("{packets} ({} kB)", bytes / 1000),
        _ => format!("{packets} ({} MB)", bytes / 1_000_000),
    }
}

/// Columns two spaces apart.
pub(crate) fn align<const N: usize>(rows: Vec<[String; N]>) -> String {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths);
        let text: String = cells
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        text.trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// The node as JSON; the names are those of `agent.proto`.
#[derive(Serialize)]
struct Node<'a> {
    node: &'a str,
    version: &'a str,
    dataplane: &'a str,
    dataplane_version: &'a str,
    mode: &'a str,
    ready: bool,
    problems: &'a [String],
    peers: Vec<Peer<'a>>,
    leases: u32,
    uptime_s: u64,
    pid: u32,
    pod_cidrs: &'a [String],
    cluster_cidrs: &'a [String],
    underlay: &'a str,
    mtu: u32,
    drops: BTreeMap<&'a str, u64>,
    protocol: &'a str,
    overlay: &'a str,
    can: Option<Can<'a>>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct Can<'a> {
    suites: &'a [String],
    raw: bool,
    udp: bool,
    tunnel: bool,
    esn: bool,
    max_replay_window: u32,
    cpus: u32,
}

impl<'a> From<&'a Capabilities> for Can<'a> {
    fn from(can: &'a Capabilities) -> Self {
        Self {
            suites: &can.suites,
            raw: can.raw,
            udp: can.udp,
            tunnel: can.tunnel,
            esn: can.esn,
            max_replay_window: can.max_replay_window,
            cpus: can.cpus,
        }
    }
}

#[derive(Serialize)]
struct Peer<'a> {
    name: &'a str,
    kind: &'a str,
    address: &'a str,
    pod_cidrs: &'a [String],
    effective_mode: &'a str,
    path: &'a str,
    accepts_clear: bool,
    enforced: bool,
    ike: &'a str,
    suite: &'a str,
    protocol: &'a str,
    encapsulation: &'a str,
    encrypted: bool,
    authenticated: bool,
    spi_in: u32,
    spi_out: u32,
    sas: u32,
    cpus: u32,
    age_s: u64,
    packets_in: u64,
    packets_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    drops: u64,
    handshake_us: Option<u64>,
    problem: &'a str,
}

impl<'a> From<&'a StatusReply> for Node<'a> {
    fn from(status: &'a StatusReply) -> Self {
        let drops = status.drops.iter();
        Self {
            node: &status.node,
            version: &status.version,
            dataplane: &status.dataplane,
            dataplane_version: &status.dataplane_version,
            mode: &status.mode,
            ready: status.ready,
            problems: &status.problems,
            peers: status.peers.iter().map(Peer::from).collect(),
            leases: status.leases,
            uptime_s: status.uptime_s,
            pid: status.pid,
            pod_cidrs: &status.pod_cidrs,
            cluster_cidrs: &status.cluster_cidrs,
            underlay: &status.underlay,
            mtu: status.mtu,
            protocol: &status.protocol,
            overlay: &status.overlay,
            can: status.can.as_ref().map(Can::from),
            notes: &status.notes,
            drops: drops
                .map(|(reason, count)| (reason.as_str(), *count))
                .collect(),
        }
    }
}

impl<'a> From<&'a PeerStatus> for Peer<'a> {
    fn from(peer: &'a PeerStatus) -> Self {
        Self {
            name: &peer.name,
            kind: &peer.kind,
            address: &peer.address,
            pod_cidrs: &peer.pod_cidrs,
            effective_mode: &peer.effective_mode,
            path: &peer.path,
            accepts_clear: peer.accepts_clear,
            enforced: peer.enforced,
            ike: &peer.ike,
            suite: &peer.suite,
            protocol: &peer.protocol,
            encapsulation: &peer.encapsulation,
            encrypted: peer.encrypted,
            authenticated: peer.authenticated,
            spi_in: peer.spi_in,
            spi_out: peer.spi_out,
            sas: peer.sas,
            cpus: peer.cpus,
            age_s: peer.age_s,
            packets_in: peer.packets_in,
            packets_out: peer.packets_out,
            bytes_in: peer.bytes_in,
            bytes_out: peer.bytes_out,
            drops: peer.drops,
            handshake_us: peer.handshake_us,
            problem: &peer.problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh_of_two() -> StatusReply {
        let encrypted = PeerStatus {
            name: "node-2".into(),
            path: "Encrypted".into(),
            enforced: true,
            suite: "Aes256Gcm16".into(),
            encapsulation: "UDP".into(),
            protocol: "ESP".into(),
            encrypted: true,
            authenticated: true,
            spi_in: 0xabc,
            ..PeerStatus::default()
        };
        let blocked = PeerStatus {
            name: "node-10".into(),
            path: "Blocked".into(),
            problem: "no answer; is its agent running?".into(),
            ..PeerStatus::default()
        };
        StatusReply {
            node: "node-1".into(),
            peers: vec![encrypted, blocked],
            drops: [("replayed".to_owned(), 3), ("unknown spi".to_owned(), 0)].into(),
            ..StatusReply::default()
        }
    }

    #[test]
    fn the_table_shows_peers_and_problems() {
        let text = table(&mesh_of_two());
        assert!(text.contains("1 of 2 peers encrypted"), "{text}");
        assert!(
            text.contains("Encrypted, enforced")
                && text.contains("00000abc")
                && text.contains("ESP in UDP"),
            "{text}"
        );
        assert!(
            text.contains("  - node-10: no answer; is its agent running?"),
            "{text}"
        );
        assert!(text.contains("dropped: 3 packets: replayed"), "{text}");
        assert!(!text.contains("unknown spi"), "{text}");
        let column = |line: &str| {
            line.find("Blocked")
                .or(line.find("Encrypted, "))
                .or(line.find("PATH"))
        };
        let columns: Vec<_> = text.lines().filter_map(column).collect();
        assert_eq!(columns.len(), 3, "{text}");
        assert!(columns.iter().all(|at| *at == columns[0]), "{text}");
    }

    #[test]
    fn what_was_probed_is_shown() {
        let can = Capabilities {
            suites: vec!["Aes256Gcm16".into(), "AhHmacSha256".into()],
            raw: true,
            max_replay_window: 4096,
            ..Capabilities::default()
        };
        let status = StatusReply {
            can: Some(can),
            overlay: "VXLAN".into(),
            notes: vec!["no SAs per CPU before Linux 6.13".into()],
            ..mesh_of_two()
        };
        let text = abilities(&status);
        for words in [
            "Aes256Gcm16, AhHmacSha256",
            "raw yes, ESP in UDP no",
            "replay window up to 4096",
            "note: no SAs per CPU",
        ] {
            assert!(text.contains(words), "{text}");
        }
        assert!(abilities(&mesh_of_two()).contains("is espalier-dataplane running?"));
    }

    #[test]
    fn the_json_has_the_same_words() {
        let status = mesh_of_two();
        let json = serde_json::to_value(Node::from(&status)).unwrap();
        assert_eq!(json["peers"][0]["spi_in"], 0xabc);
        assert_eq!(json["peers"][1]["handshake_us"], serde_json::Value::Null);
        assert_eq!(json["drops"]["replayed"], 3);
        assert_eq!(json["peers"][0]["encapsulation"], "UDP");
        assert_eq!(json["can"], serde_json::Value::Null);
    }

    #[test]
    fn external_gateways_are_told_apart_and_their_problems_are_said_once() {
        let mut status = mesh_of_two();
        let refused = "ExternalPeer berlin: needs tunnel mode";
        status.peers.push(PeerStatus {
            name: "berlin".into(),
            kind: "external".into(),
            effective_mode: "Required".into(),
            path: "Blocked".into(),
            problem: refused.into(),
            ..PeerStatus::default()
        });
        status.problems.push(refused.into());
        let text = table(&status);
        let row = text.lines().find(|line| line.starts_with("berlin"));
        assert!(row.unwrap().contains("external"), "{text}");
        assert_eq!(text.matches(refused).count(), 1, "{text}");
        let json = serde_json::to_value(Node::from(&status)).unwrap();
        assert_eq!(json["peers"][2]["kind"], "external");
    }

    #[test]
    fn ages_have_two_units() {
        assert_eq!(
            [59, 61, 3700, 90_000].map(age),
            ["59s", "1m1s", "1h1m", "1d1h"]
        );
    }
}
