//! `espalier verify`: is anything in clear? Asks the agent, the kernel, the wire and, by packets of its own, the other nodes; on a
//! cluster on every node at once, and both ends of every pair.

mod kernel;
mod mesh;
mod probe;
mod wire;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::cluster;
use crate::model::{Node, Peer};
use crate::place::{Place, PlaceArgs};
use crate::status::Output;
use probe::Probe;

/// Options of `espalier verify`.
#[derive(Args, Clone, Debug)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// How long to look at the wire of this host; 0: not at all, which needs no right to capture.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The underlay interface; by default the one with the node's address.
    #[arg(long)]
    interface: Option<String>,
    /// Send a few packets to every other node by the way that pods' packets take, and count what SAs sealed. A cluster always does.
    #[arg(long)]
    probe: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Something that is not as it must be, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Finding {
    what: String,
    remedy: String,
}

impl Finding {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}

/// What was found on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Report {
    findings: Vec<Finding>,
    /// Empty: none were sent.
    probes: Vec<Probe>,
    /// Whether packets on the underlay were looked at.
    captured: bool,
    /// As the agent said last.
    status: Node,
}

/// Success only without findings.
pub(crate) fn run(args: &VerifyArgs) -> Result<ExitCode> {
    match args.place.choose()? {
        Place::Cluster => cluster::block_on(mesh::run(&args.place.cluster, args.output)),
        Place::Here(socket) => {
            let report = here(args, &socket)?;
            match args.output {
                Output::Table => conclude(&report.findings),
                Output::Json => println!("{}", serde_json::to_string(&report)?),
            }
            Ok(ExitCode::from(u8::from(!report.findings.is_empty())))
        }
    }
}

fn here(args: &VerifyArgs, socket: &Path) -> Result<Report> {
    let json = args.output == Output::Json;
    let say = |line: &str| {
        if json {
            eprintln!("{line}")
        } else {
            println!("{line}")
        }
    };
    let ask = || crate::mesh::status(socket).map(Node::from);
    let mut status = ask()?;
    let interface = match &args.interface {
        Some(name) => name.clone(),
        None => wire::interface_with(&status.underlay)?,
    };
    say(&format!(
        "node {}, mode {}, underlay {} on {interface}",
        status.node, status.mode, status.underlay
    ));
    let mut findings = of_agent(&status);
    let (peers, found) = (status.peers.len(), findings.len());
    say(&format!("agent: {peers} peers, {found} findings"));
    let of_kernel = kernel::check(&status, &interface)?;
    say(&format!("kernel: {} findings", of_kernel.len()));
    findings.extend(of_kernel);
    let mut probes = Vec::new();
    if args.probe {
        let before = status;
        let answers = probe::send(&before)?;
        status = ask()?;
        probes = probe::count(answers, &before, &status);
        say(&format!("probes: {}", probe::summary(&probes)));
        findings.extend(probe::judge(&probes));
    }
    let captured = args.seconds > 0;
    if captured {
        let time = Duration::from_secs(args.seconds);
        findings.extend(wire::check(&status, &interface, time, say)?);
    }
    Ok(Report {
        findings,
        probes,
        captured,
        status,
    })
}

/// What agent and kernel of this host say, for the support bundle.
pub(crate) fn findings_here(status: &Node) -> Result<String> {
    let interface = wire::interface_with(&status.underlay)?;
    let mut findings = of_agent(status);
    findings.extend(kernel::check(status, &interface)?);
    let lines = findings
        .iter()
        .map(|Finding { what, remedy }| format!("{what}\n  remedy: {remedy}\n"));
    Ok(match findings.len() {
        0 => "nothing found\n".to_owned(),
        _ => lines.collect(),
    })
}

fn conclude(findings: &[Finding]) {
    if findings.is_empty() {
        println!("nothing found: what the mode promises holds here");
        return;
    }
    println!("\n{} findings:", findings.len());
    for Finding { what, remedy } in findings {
        println!("  - {what}\n    remedy: {remedy}");
    }
}

/// What the agent itself says.
fn of_agent(status: &Node) -> Vec<Finding> {
    let problems = status.problems.iter();
    let mut findings: Vec<_> = problems
        .map(|problem| Finding::new(format!("the agent reports: {problem}"), "as the text says"))
        .collect();
    if status.cluster_cidrs.is_empty() {
        findings.push(Finding::new(
            "the policy has no clusterCIDRs: nothing says what a pod address is",
            "set spec.clusterCIDRs of EncryptionPolicy default",
        ));
    }
    findings.extend(status.peers.iter().filter_map(of_peer));
    findings
}

/// A pair under Required must be enforced; a blocked pair is safe, but no pod gets through.
fn of_peer(peer: &Peer) -> Option<Finding> {
    let problem = match peer.problem.as_str() {
        "" => "espalier status, the agents' logs on both ends".to_owned(),
        problem => problem.to_owned(),
    };
    let name = &peer.name;
    let what = match (
        peer.effective_mode.as_str(),
        peer.path.as_str(),
        peer.enforced,
    ) {
        ("Required", "Encrypted" | "Authenticated", true) => return None,
        ("Required", "OnDemand", _) => return None,
        ("Required", "Blocked", _) => {
            format!("{name}: Required, and blocked (safe, but pods cannot talk)")
        }
        ("Required", path, _) => {
            format!("{name}: Required, but {path} and not enforced: clear packets are accepted")
        }
        _ => return None,
    };
    Some(Finding::new(what, problem))
}

fn required(status: &Node) -> bool {
    status.mode == "Required"
}

fn cidrs(texts: &[String]) -> Result<Vec<IpNet>> {
    let parse = |text: &String| {
        text.parse()
            .with_context(|| format!("the agent says {text:?}, which is no CIDR"))
    };
    texts.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(mode: &str, path: &str, enforced: bool) -> Peer {
        Peer {
            name: "node-2".into(),
            effective_mode: mode.into(),
            path: path.into(),
            enforced,
            ..Peer::default()
        }
    }

    #[test]
    fn only_an_enforced_pair_satisfies_required() {
        assert_eq!(of_peer(&peer("Required", "Encrypted", true)), None);
        assert_eq!(of_peer(&peer("Disabled", "Clear", false)), None);
        let clear = of_peer(&peer("Required", "Clear", false)).unwrap();
        assert!(
            clear.what.contains("node-2") && clear.what.contains("clear packets are accepted"),
            "{clear:?}"
        );
        let half = of_peer(&peer("Required", "Encrypted", false)).unwrap();
        assert!(half.what.contains("not enforced"), "{half:?}");
        let blocked = of_peer(&peer("Required", "Blocked", true)).unwrap();
        assert!(blocked.what.contains("blocked"), "{blocked:?}");
    }

    #[test]
    fn what_the_agent_reports_is_found() {
        let status = Node {
            problems: vec!["no certificate".into()],
            cluster_cidrs: vec!["10.0.0.0/8".into()],
            ..Node::default()
        };
        let findings = of_agent(&status);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].what.contains("no certificate"));
    }
}
