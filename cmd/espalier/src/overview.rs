//! `espalier status` of a cluster: one line for each node, and whether all is encrypted.

use std::process::ExitCode;

use serde::Serialize;

use crate::cluster::{Answer, Cluster, Row, verdict};
use crate::model::Node;
use crate::status::{age, align};

/// As JSON, and for people.
#[derive(Serialize)]
pub(crate) struct Overview<'a> {
    context: &'a str,
    server: &'a str,
    namespace: &'a str,
    /// Every node that was asked answered, is ready, and encrypts with every other.
    encrypted: bool,
    /// Why not.
    why: Vec<String>,
    nodes: Vec<Row<'a, Node>>,
    #[serde(skip)]
    head: String,
    #[serde(skip)]
    answers: &'a [Answer<Node>],
}

impl<'a> Overview<'a> {
    pub(crate) fn new(cluster: &'a Cluster, answers: &'a [Answer<Node>]) -> Self {
        let why = verdict(answers, cluster.asks_all());
        Self {
            context: &cluster.context,
            server: &cluster.server,
            namespace: &cluster.namespace,
            encrypted: why.is_empty(),
            why,
            nodes: answers.iter().map(Row::from).collect(),
            head: cluster.describe(),
            answers,
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(u8::from(!self.encrypted))
    }

    pub(crate) fn table(&self) -> String {
        let columns = [
            "NODE",
            "ADDRESS",
            "READY",
            "MODE",
            "DATA PLANE",
            "ENCRYPTED",
            "ENFORCED",
            "EXTERNAL",
            "PODS",
            "MTU",
            "UP",
            "VERSION",
        ];
        let header = columns.map(str::to_owned);
        let rows = self.answers.iter().map(row);
        let table = align(std::iter::once(header).chain(rows).collect());
        let verdict = conclusion(&self.why, self.answers.len());
        format!("{}\n\n{table}\n{verdict}", self.head)
    }
}

/// The last lines of what is printed of a cluster.
pub(crate) fn conclusion(why: &[String], nodes: usize) -> String {
    if why.is_empty() {
        return format!("all is encrypted between {nodes} nodes\n");
    }
    let lines: String = why.iter().map(|line| format!("  - {line}\n")).collect();
    format!("NOT all is encrypted:\n{lines}")
}

fn row(answer: &Answer<Node>) -> [String; 12] {
    let dash = || "-".to_owned();
    let Ok(node) = &answer.heard else {
        let mut cells = [(); 12].map(|()| dash());
        let [name, address, ..] = &mut cells;
        name.clone_from(&answer.node);
        "no answer".clone_into(address);
        return cells;
    };
    let all = node.node_peers().count();
    let encrypted = node.node_peers().filter(|peer| peer.is_encrypted()).count();
    let enforced = node.node_peers().filter(|peer| peer.enforced).count();
    let mut outside = node
        .peers
        .iter()
        .filter(|peer| peer.kind == "external")
        .peekable();
    let external = match outside.peek() {
        None => dash(),
        Some(_) => {
            let (up, all) = outside.fold((0, 0), |(up, all), peer| {
                (up + usize::from(peer.is_encrypted()), all + 1)
            });
            format!("{up} of {all}")
        }
    };
    [
        answer.node.clone(),
        node.underlay.clone(),
        if node.ready { "yes" } else { "NO" }.to_owned(),
        node.mode.clone(),
        node.dataplane.clone(),
        format!("{encrypted} of {all}"),
        format!("{enforced} of {all}"),
        external,
        node.leases.to_string(),
        node.mtu.to_string(),
        age(node.uptime_s),
        node.version.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::answers_for_tests::node;

    #[test]
    fn every_node_has_a_line_also_a_silent_one() {
        let silent = Answer {
            node: "c".to_owned(),
            heard: Err("no answer within 20 s".to_owned()),
        };
        let answers = [node("a", &[("c", "Encrypted")]), silent];
        let rows: Vec<_> = answers.iter().map(row).collect();
        assert_eq!(rows[0][5], "1 of 1");
        assert_eq!(rows[1][..2], ["c", "no answer"]);
        let said = conclusion(&verdict(&answers, true), answers.len());
        assert!(said.starts_with("NOT all is encrypted:\n  - c: no answer: no answer within 20 s"));
        assert_eq!(conclusion(&[], 3), "all is encrypted between 3 nodes\n");
    }
}
