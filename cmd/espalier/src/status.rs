//! `espalier status`: what the agent of this host sees, or every agent of a cluster.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::cluster::{self, Cluster};
use crate::mesh;
use crate::model::{Node, Peer};
use crate::overview;
use crate::place::{Place, PlaceArgs};

/// Options of `espalier status`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Show what the data plane of this host, or of each node, was found to be able to do.
    #[arg(long)]
    dataplane: bool,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

/// Of a host: success when the agent answers. Of a cluster: success when all is encrypted.
pub(crate) fn run(args: &StatusArgs) -> Result<ExitCode> {
    match args.place.choose()? {
        Place::Here(socket) => {
            let node = Node::from(mesh::status(&socket)?);
            match args.output {
                Output::Table if args.dataplane => print!("{}", head(&node) + &abilities(&node)),
                Output::Table => print!("{}", table(&node)),
                Output::Json => println!("{}", serde_json::to_string_pretty(&node)?),
            }
            Ok(ExitCode::SUCCESS)
        }
        Place::Cluster => cluster::block_on(async {
            let cluster = Cluster::connect(&args.place.cluster).await?;
            let answers = cluster.statuses().await?;
            let seen = overview::Overview::new(&cluster, &answers);
            match args.output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&seen)?),
                Output::Table if args.dataplane => {
                    for node in answers
                        .iter()
                        .filter_map(|answer| answer.heard.as_ref().ok())
                    {
                        println!("{}", head(node) + &abilities(node));
                    }
                }
                Output::Table => print!("{}", seen.table()),
            }
            Ok(seen.exit_code())
        }),
    }
}

/// A host's, for people.
pub(crate) fn table(status: &Node) -> String {
    let mut text = head(status);
    text.push('\n');
    text.push_str(&peers(status));
    problems(status, &mut text);
    text
}

/// One line for each peer.
pub(crate) fn peers(status: &Node) -> String {
    let columns = [
        "PEER", "ADDRESS", "MODE", "PATH", "IKE", "SUITE", "VIA", "SPI IN", "SPI OUT", "AGE", "IN",
        "OUT", "DROPS",
    ];
    let rows = status.peers.iter().map(row);
    let header = columns.map(str::to_owned);
    align(std::iter::once(header).chain(rows).collect())
}

pub(crate) fn head(status: &Node) -> String {
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

fn row(peer: &Peer) -> [String; 13] {
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
pub(crate) fn via(peer: &Peer) -> String {
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
pub(crate) fn abilities(status: &Node) -> String {
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

fn problems(status: &Node, text: &mut String) {
    // What the node says of an external gateway is not said twice.
    let said = |peer: &&Peer| status.problems.contains(&peer.problem);
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
    for (reason, count) in status.drops.iter().filter(|(_, count)| **count > 0) {
        let _ = writeln!(text, "dropped: {count} packets: {reason}");
    }
}

/// Seconds in the two largest units.
pub(crate) fn age(seconds: u64) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Can;

    fn mesh_of_two() -> Node {
        let encrypted = Peer {
            name: "node-2".into(),
            path: "Encrypted".into(),
            enforced: true,
            suite: "Aes256Gcm16".into(),
            encapsulation: "UDP".into(),
            protocol: "ESP".into(),
            encrypted: true,
            authenticated: true,
            spi_in: 0xabc,
            ..Peer::default()
        };
        let blocked = Peer {
            name: "node-10".into(),
            path: "Blocked".into(),
            problem: "no answer; is its agent running?".into(),
            ..Peer::default()
        };
        Node {
            node: "node-1".into(),
            peers: vec![encrypted, blocked],
            drops: [("replayed".to_owned(), 3), ("unknown spi".to_owned(), 0)].into(),
            ..Node::default()
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
        let can = Can {
            suites: vec!["Aes256Gcm16".into(), "AhHmacSha256".into()],
            raw: true,
            max_replay_window: 4096,
            ..Can::default()
        };
        let status = Node {
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
        let json = serde_json::to_value(&status).unwrap();
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
        status.peers.push(Peer {
            name: "berlin".into(),
            kind: "external".into(),
            effective_mode: "Required".into(),
            path: "Blocked".into(),
            problem: refused.into(),
            ..Peer::default()
        });
        status.problems.push(refused.into());
        let text = table(&status);
        let row = text.lines().find(|line| line.starts_with("berlin"));
        assert!(row.unwrap().contains("external"), "{text}");
        assert_eq!(text.matches(refused).count(), 1, "{text}");
        let json = serde_json::to_value(&status).unwrap();
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
