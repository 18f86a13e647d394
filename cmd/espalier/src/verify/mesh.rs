//! Every node of a cluster at once, and what both ends of each pair say.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{Finding, Report, probe};
use crate::cluster::{AgentPod, Answer, Cluster, Row};
use crate::model::Node;
use crate::peers::pairs;
use crate::place::ClusterArgs;
use crate::status::{Output, align};

/// Probes of peers that do not answer take so long, beside the answer itself.
const PROBING: Duration = Duration::from_secs(40);
/// Between two looks at pairs whose ends do not agree: SAs may be on their way.
const SETTLE: Duration = Duration::from_secs(3);
/// What cannot be seen from there.
const NOT_SEEN: &str =
    "the wire was not looked at: agents may not capture; `espalier verify` on a node does";

/// As JSON, and for people.
#[derive(Serialize)]
struct Whole<'a> {
    context: &'a str,
    server: &'a str,
    namespace: &'a str,
    findings: Vec<OfNode<'a>>,
    nodes: Vec<Row<'a, Report>>,
}

#[derive(Serialize)]
struct OfNode<'a> {
    /// A node, or two.
    node: String,
    #[serde(flatten)]
    finding: &'a Finding,
}

/// Success only when every node answered and nothing was found.
pub(super) async fn run(args: &ClusterArgs, output: Output) -> Result<ExitCode> {
    let cluster = Cluster::connect(args).await?;
    let command = |agent: &AgentPod| {
        agent.command(&["verify", "--seconds", "0", "--probe", "--output", "json"])
    };
    let patience = cluster.patience + PROBING;
    let reports = cluster.ask(command, patience, |output| match output.code {
        // 1: there are findings.
        Ok(0 | 1) if !output.stdout.is_empty() => serde_json::from_slice::<Report>(&output.stdout)
            .context("its report cannot be read; is it of another version?"),
        _ => Err(output.failure()),
    });
    let reports = reports.await?;
    let between = disagreements(&cluster, &reports).await?;
    let silent = silent(&reports);
    let findings = all(&reports, &silent, &between);
    let code = ExitCode::from(u8::from(!findings.is_empty()));
    let whole = Whole {
        context: &cluster.context,
        server: &cluster.server,
        namespace: &cluster.namespace,
        findings,
        nodes: reports.iter().map(Row::from).collect(),
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&whole)?),
        Output::Table => print!(
            "{}\n\n{}",
            cluster.describe(),
            text(&reports, &whole.findings)
        ),
    }
    Ok(code)
}

/// Pairs whose ends say different things, twice.
async fn disagreements(
    cluster: &Cluster,
    reports: &[Answer<Report>],
) -> Result<Vec<(String, Finding)>> {
    let first: Vec<Answer<Node>> = reports.iter().map(status).collect();
    let suspects = mismatches(&first);
    if suspects.is_empty() {
        return Ok(Vec::new());
    }
    tokio::time::sleep(SETTLE).await;
    let second = mismatches(&cluster.statuses().await?);
    let still = second
        .into_iter()
        .filter(|(pair, _)| suspects.iter().any(|(seen, _)| seen == pair));
    Ok(still.collect())
}

fn status(answer: &Answer<Report>) -> Answer<Node> {
    Answer {
        node: answer.node.clone(),
        heard: answer
            .heard
            .as_ref()
            .map(|report| report.status.clone())
            .map_err(Clone::clone),
    }
}

fn mismatches(answers: &[Answer<Node>]) -> Vec<(String, Finding)> {
    let finding = |what| {
        Finding::new(
            what,
            "espalier peers says more; the agents' logs on both ends",
        )
    };
    let pairs = pairs(answers);
    let found = pairs.iter().filter_map(|pair| {
        Some((
            format!("{} – {}", pair.a, pair.b),
            finding(pair.mismatch()?),
        ))
    });
    found.collect()
}

fn silent(reports: &[Answer<Report>]) -> Vec<(String, Finding)> {
    let remedy = "nothing is known of this node: is its agent's pod running?";
    let silent = reports.iter().filter_map(|answer| {
        let why = answer.heard.as_ref().err()?;
        Some((
            answer.node.clone(),
            Finding::new(format!("no answer: {why}"), remedy),
        ))
    });
    silent.collect()
}

fn all<'a>(
    reports: &'a [Answer<Report>],
    silent: &'a [(String, Finding)],
    between: &'a [(String, Finding)],
) -> Vec<OfNode<'a>> {
    let own = reports.iter().flat_map(|answer| {
        let findings = answer.heard.iter().flat_map(|report| &report.findings);
        findings.map(|finding| OfNode {
            node: answer.node.clone(),
            finding,
        })
    });
    let others = silent.iter().chain(between).map(|(node, finding)| OfNode {
        node: node.clone(),
        finding,
    });
    own.chain(others).collect()
}

fn text(reports: &[Answer<Report>], findings: &[OfNode<'_>]) -> String {
    let columns = ["NODE", "MODE", "DATA PLANE", "PROBES", "FINDINGS"];
    let header = columns.map(str::to_owned);
    let rows = reports.iter().map(row);
    let mut text = align(std::iter::once(header).chain(rows).collect());
    text.push_str(&format!("\n{NOT_SEEN}\n"));
    if findings.is_empty() {
        text.push_str("nothing found: what the mode promises holds on every node\n");
        return text;
    }
    text.push_str(&format!("\n{} findings:\n", findings.len()));
    for OfNode { node, finding } in findings {
        let Finding { what, remedy } = finding;
        text.push_str(&format!("  - {node}: {what}\n    remedy: {remedy}\n"));
    }
    text
}

fn row(answer: &Answer<Report>) -> [String; 5] {
    let node = answer.node.clone();
    match &answer.heard {
        Err(_) => [node, "-".into(), "-".into(), "no answer".into(), "1".into()],
        Ok(report) => [
            node,
            report.status.mode.clone(),
            report.status.dataplane.clone(),
            probe::summary(&report.probes),
            report.findings.len().to_string(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_and_what_others_found_are_told_with_their_remedies() {
        let report = Report {
            findings: vec![Finding::new("no unreachable route", "restart the agent")],
            ..Report::default()
        };
        let reports = [
            Answer {
                node: "a".to_owned(),
                heard: Ok(report),
            },
            Answer {
                node: "b".to_owned(),
                heard: Err("its pod is Pending".to_owned()),
            },
        ];
        let silent = silent(&reports);
        let between = vec![(
            "a – b".to_owned(),
            Finding::new("they do not agree", "look"),
        )];
        let findings = all(&reports, &silent, &between);
        let text = text(&reports, &findings);
        for words in [
            "3 findings",
            "  - a: no unreachable route\n    remedy: restart the agent",
            "  - b: no answer: its pod is Pending",
            "  - a – b: they do not agree",
        ] {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_report_is_read_as_it_is_written() {
        let report = Report {
            findings: vec![Finding::new("what", "remedy")],
            probes: vec![super::probe::Probe::default()],
            captured: true,
            status: Node::default(),
        };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
