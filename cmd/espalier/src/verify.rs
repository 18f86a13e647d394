//! `espalier verify`: is anything in clear? Asks the agent, the kernel and the wire.

mod kernel;
mod wire;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use espalier_rpc::agent::{PeerStatus, StatusReply};
use ipnet::IpNet;

use crate::mesh::{self, AgentSocket};

/// Options of `espalier verify`.
#[derive(Args, Clone, Debug)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    agent: AgentSocket,
    /// How long to look at the wire.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The underlay interface; by default the one with the node's address.
    #[arg(long)]
    interface: Option<String>,
}

/// Something that is not as it must be, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// Success only without findings.
pub(crate) fn run(args: &VerifyArgs) -> Result<ExitCode> {
    let status = mesh::status(&args.agent.path())?;
    let interface = match &args.interface {
        Some(name) => name.clone(),
        None => wire::interface_with(&status.underlay)?,
    };
    println!(
        "node {}, mode {}, underlay {} on {interface}",
        status.node, status.mode, status.underlay
    );
    let mut findings = of_agent(&status);
    println!(
        "agent: {} peers, {} findings",
        status.peers.len(),
        findings.len()
    );
    let of_kernel = kernel::check(&status, &interface)?;
    println!("kernel: {} findings", of_kernel.len());
    findings.extend(of_kernel);
    findings.extend(wire::check(
        &status,
        &interface,
        Duration::from_secs(args.seconds),
    )?);
    conclude(&findings)
}

fn conclude(findings: &[Finding]) -> Result<ExitCode> {
    if findings.is_empty() {
        println!("nothing found: what the mode promises holds here");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\n{} findings:", findings.len());
    for Finding { what, remedy } in findings {
        println!("  - {what}\n    remedy: {remedy}");
    }
    Ok(ExitCode::FAILURE)
}

/// What the agent itself says.
fn of_agent(status: &StatusReply) -> Vec<Finding> {
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
fn of_peer(peer: &PeerStatus) -> Option<Finding> {
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

fn required(status: &StatusReply) -> bool {
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

    fn peer(mode: &str, path: &str, enforced: bool) -> PeerStatus {
        PeerStatus {
            name: "node-2".into(),
            effective_mode: mode.into(),
            path: path.into(),
            enforced,
            ..PeerStatus::default()
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
        let status = StatusReply {
            problems: vec!["no certificate".into()],
            cluster_cidrs: vec!["10.0.0.0/8".into()],
            ..StatusReply::default()
        };
        let findings = of_agent(&status);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].what.contains("no certificate"));
    }
}
