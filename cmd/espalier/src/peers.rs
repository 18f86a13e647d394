//! `espalier peers`: every pair of nodes, as both of its ends see it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::cluster::{self, Answer, Cluster, verdict};
use crate::mesh;
use crate::model::{Node, Peer};
use crate::overview::conclusion;
use crate::place::{Place, PlaceArgs};
use crate::status::{self, Output, age, align};

/// Options of `espalier peers`.
#[derive(Args, Clone, Debug)]
pub(crate) struct PeersArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Success when all pairs are encrypted: those of the cluster, or those of this host.
pub(crate) fn run(args: &PeersArgs) -> Result<ExitCode> {
    match args.place.choose()? {
        Place::Here(socket) => {
            let node = Node::from(mesh::status(&socket)?);
            match args.output {
                Output::Table => print!("{}", status::peers(&node)),
                Output::Json => println!("{}", serde_json::to_string_pretty(&node.peers)?),
            }
            let all = node.node_peers().all(Peer::is_encrypted);
            Ok(ExitCode::from(u8::from(!all)))
        }
        Place::Cluster => cluster::block_on(async {
            let cluster = Cluster::connect(&args.place.cluster).await?;
            let answers = cluster.statuses().await?;
            let pairs = pairs(&answers);
            let why = verdict(&answers, cluster.asks_all());
            match args.output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&pairs)?),
                Output::Table => print!(
                    "{}\n\n{}\n{}",
                    cluster.describe(),
                    table(&pairs),
                    conclusion(&why, answers.len())
                ),
            }
            Ok(ExitCode::from(u8::from(!why.is_empty())))
        }),
    }
}

/// A pair; each field from the end that it is about, `null` where that end did not answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Pair<'a> {
    /// Names in order.
    pub(crate) a: &'a str,
    pub(crate) b: &'a str,
    mode: &'a str,
    /// What is sent from one to the other: Encrypted, Authenticated, Clear, Blocked, OnDemand.
    a_to_b: Option<&'a str>,
    b_to_a: Option<&'a str>,
    enforced: bool,
    suite: &'a str,
    via: String,
    age_s: u64,
    /// SPIs as the sender and as the receiver says; they differ while an SA is replaced.
    spi_a_to_b: [u32; 2],
    spi_b_to_a: [u32; 2],
    /// Packets sealed by the sender, and opened by the receiver, with the SAs that there are.
    packets_a_to_b: [u64; 2],
    packets_b_to_a: [u64; 2],
    problems: Vec<String>,
}

impl<'a> Pair<'a> {
    /// `at_a` is what a says of b.
    fn new(a: &'a str, b: &'a str, at_a: Option<&'a Peer>, at_b: Option<&'a Peer>) -> Self {
        let one = at_a.or(at_b);
        let of = |peer: Option<&Peer>, field: fn(&Peer) -> u32| peer.map_or(0, field);
        let count = |peer: Option<&Peer>, field: fn(&Peer) -> u64| peer.map_or(0, field);
        let problem = |name: &str, peer: Option<&Peer>| {
            let said = peer.map(|peer| peer.problem.as_str()).unwrap_or_default();
            (!said.is_empty()).then(|| format!("{name} says: {said}"))
        };
        Self {
            a,
            b,
            mode: one.map_or("", |peer| &peer.effective_mode),
            a_to_b: at_a.map(|peer| peer.path.as_str()),
            b_to_a: at_b.map(|peer| peer.path.as_str()),
            enforced: [at_a, at_b]
                .iter()
                .all(|end| end.is_some_and(|peer| peer.enforced)),
            suite: one.map_or("", |peer| &peer.suite),
            via: one.map(status::via).unwrap_or_default(),
            age_s: count(one, |peer| peer.age_s),
            spi_a_to_b: [of(at_a, |p| p.spi_out), of(at_b, |p| p.spi_in)],
            spi_b_to_a: [of(at_b, |p| p.spi_out), of(at_a, |p| p.spi_in)],
            packets_a_to_b: [
                count(at_a, |p| p.packets_out),
                count(at_b, |p| p.packets_in),
            ],
            packets_b_to_a: [
                count(at_b, |p| p.packets_out),
                count(at_a, |p| p.packets_in),
            ],
            problems: [problem(a, at_a), problem(b, at_b)]
                .into_iter()
                .flatten()
                .collect(),
        }
    }

    /// What both ends say does not fit together, in a moment when no SA is being replaced.
    pub(crate) fn mismatch(&self) -> Option<String> {
        let (a, b) = (self.a, self.b);
        let (Some(there), Some(back)) = (self.a_to_b, self.b_to_a) else {
            return None;
        };
        if there != back {
            return Some(format!("{a} sends {there} to {b}, which sends {back}"));
        }
        let differ = |spis: &[u32; 2]| there == "Encrypted" && spis[0] != spis[1];
        if differ(&self.spi_a_to_b) || differ(&self.spi_b_to_a) {
            let [out, opened] = self.spi_a_to_b;
            let [back, open] = self.spi_b_to_a;
            return Some(format!(
                "{a} and {b} do not use the same SAs: {a} seals with {out:08x} and opens {open:08x}, {b} seals with {back:08x} and opens {opened:08x}"
            ));
        }
        None
    }

    fn row(&self) -> [String; 10] {
        let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        let path = |path: Option<&str>| match (path, self.enforced) {
            (None, _) => "?".to_owned(),
            (Some(path @ "Encrypted"), true) => format!("{path}, enforced"),
            (Some(path), _) => path.to_owned(),
        };
        let packets = |[sealed, opened]: [u64; 2]| format!("{sealed}/{opened}");
        [
            self.a.to_owned(),
            self.b.to_owned(),
            or_dash(self.mode),
            path(self.a_to_b),
            path(self.b_to_a),
            or_dash(self.suite),
            or_dash(&self.via),
            age(self.age_s),
            packets(self.packets_a_to_b),
            packets(self.packets_b_to_a),
        ]
    }
}

/// All pairs of which at least one end answered, in order.
pub(crate) fn pairs(answers: &[Answer<Node>]) -> Vec<Pair<'_>> {
    let mut ends: BTreeMap<(&str, &str), [Option<&Peer>; 2]> = BTreeMap::new();
    for Answer { node: name, heard } in answers {
        let peers = heard.iter().flat_map(Node::node_peers);
        for peer in peers {
            let (name, other) = (name.as_str(), peer.name.as_str());
            let [at_a, at_b] = ends.entry((name.min(other), name.max(other))).or_default();
            let end = if name < other { at_a } else { at_b };
            *end = Some(peer);
        }
    }
    let both = ends.into_iter();
    both.map(|((a, b), [at_a, at_b])| Pair::new(a, b, at_a, at_b))
        .collect()
}

fn table(pairs: &[Pair<'_>]) -> String {
    let columns = [
        "A",
        "B",
        "MODE",
        "A → B",
        "B → A",
        "SUITE",
        "VIA",
        "AGE",
        "A → B SEALED/OPENED",
        "B → A SEALED/OPENED",
    ];
    let header = columns.map(str::to_owned);
    let mut text = align(
        std::iter::once(header)
            .chain(pairs.iter().map(Pair::row))
            .collect(),
    );
    for pair in pairs {
        for problem in &pair.problems {
            text.push_str(&format!("  {} – {}: {problem}\n", pair.a, pair.b));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::answers_for_tests::node;

    fn sa(answer: &mut Answer<Node>, out: u32, inbound: u32, sealed: u64, opened: u64) {
        let peer = &mut answer.heard.as_mut().unwrap().peers[0];
        (peer.spi_out, peer.spi_in) = (out, inbound);
        (peer.packets_out, peer.packets_in) = (sealed, opened);
    }

    #[test]
    fn a_pair_is_told_once_from_both_ends() {
        let mut answers = [
            node("a", &[("b", "Encrypted")]),
            node("b", &[("a", "Encrypted")]),
        ];
        sa(&mut answers[0], 1, 2, 10, 20);
        sa(&mut answers[1], 2, 1, 21, 9);
        let pairs = pairs(&answers);
        assert_eq!(pairs.len(), 1);
        assert_eq!(pairs[0].packets_a_to_b, [10, 9]);
        assert_eq!(pairs[0].packets_b_to_a, [21, 20]);
        assert_eq!(pairs[0].mismatch(), None);
        let line = table(&pairs);
        assert!(line.lines().nth(1).unwrap().contains("10/9"), "{line}");
    }

    #[test]
    fn ends_that_do_not_agree_are_found() {
        let mut answers = [
            node("a", &[("b", "Encrypted")]),
            node("b", &[("a", "Encrypted")]),
        ];
        sa(&mut answers[0], 1, 2, 0, 0);
        sa(&mut answers[1], 2, 7, 0, 0);
        let said = pairs(&answers)[0].mismatch().unwrap();
        assert!(
            said.contains("seals with 00000001") && said.contains("opens 00000007"),
            "{said}"
        );
        let other = [node("a", &[("b", "Clear")]), node("b", &[("a", "Blocked")])];
        let said = pairs(&other)[0].mismatch().unwrap();
        assert_eq!(said, "a sends Clear to b, which sends Blocked");
    }

    #[test]
    fn a_pair_with_a_silent_end_is_told_by_the_other() {
        let silent = Answer {
            node: "a".to_owned(),
            heard: Err("no answer".to_owned()),
        };
        let answers = [silent, node("b", &[("a", "Encrypted")])];
        let pairs = pairs(&answers);
        assert_eq!((pairs[0].a, pairs[0].b), ("a", "b"));
        assert_eq!(
            (pairs[0].a_to_b, pairs[0].b_to_a),
            (None, Some("Encrypted"))
        );
        assert_eq!(pairs[0].mismatch(), None);
    }
}
