//! What nodes answered, and whether all of it together means that all is encrypted.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::model::Node;

/// What came of asking: an answer, or why there is none.
pub(crate) type Heard<T> = std::result::Result<T, String>;

/// A node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer<T> {
    pub(crate) node: String,
    pub(crate) heard: Heard<T>,
}

impl<T> Answer<T> {
    pub(super) fn failed(node: &str, why: String) -> Self {
        Self {
            node: node.to_owned(),
            heard: Err(why),
        }
    }
}

/// As JSON: the node's name with `status`, or with `error`.
#[derive(Serialize)]
pub(crate) struct Row<'a, T> {
    node: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a, T> From<&'a Answer<T>> for Row<'a, T> {
    fn from(answer: &'a Answer<T>) -> Self {
        Self {
            node: &answer.node,
            status: answer.heard.as_ref().ok(),
            error: answer.heard.as_ref().err().map(String::as_str),
        }
    }
}

/// Why not everything between the nodes is encrypted; empty: it is. Nodes that did not answer, that another one knows and that have no
/// agent, and that others do not know count as not encrypted. `all`: no node was left out on purpose.
pub(crate) fn verdict(answers: &[Answer<Node>], all: bool) -> Vec<String> {
    let names: BTreeSet<&str> = answers.iter().map(|answer| answer.node.as_str()).collect();
    let mut why = Vec::new();
    let mut strangers = BTreeSet::new();
    for Answer { node: name, heard } in answers {
        let node = match heard {
            Ok(node) => node,
            Err(error) => {
                why.push(format!("{name}: no answer: {error}"));
                continue;
            }
        };
        if !node.ready {
            why.push(format!("{name} is not ready: {}", node.problems.join("; ")));
        }
        for peer in node.node_peers().filter(|peer| !peer.is_encrypted()) {
            let problem = match peer.problem.as_str() {
                "" => String::new(),
                problem => format!(" ({problem})"),
            };
            why.push(format!("{name} → {}: {}{problem}", peer.name, peer.path));
        }
        let mut known: BTreeSet<&str> = node.node_peers().map(|peer| peer.name.as_str()).collect();
        strangers.extend(known.difference(&names).map(|name| (*name).to_owned()));
        known.insert(name);
        let unknown = names.difference(&known);
        why.extend(unknown.map(|other| format!("{name} does not know {other}")));
    }
    if all {
        let unasked = strangers.into_iter();
        why.extend(
            unasked.map(|name| format!("{name}: others know it, but it has no pod of the agent")),
        );
    }
    why
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::Peer;

    /// A node that sends to its peers by these paths.
    pub(crate) fn node(name: &str, peers: &[(&str, &str)]) -> Answer<Node> {
        let peers = peers.iter().map(|(name, path)| Peer {
            name: (*name).to_owned(),
            kind: "node".to_owned(),
            path: (*path).to_owned(),
            effective_mode: "Required".to_owned(),
            ..Peer::default()
        });
        Answer {
            node: name.to_owned(),
            heard: Ok(Node {
                node: name.to_owned(),
                ready: true,
                peers: peers.collect(),
                ..Node::default()
            }),
        }
    }

    #[test]
    fn all_is_encrypted_when_every_node_says_so_of_every_other() {
        let good = [
            node("a", &[("b", "Encrypted")]),
            node("b", &[("a", "OnDemand")]),
        ];
        assert_eq!(verdict(&good, true), Vec::<String>::new());
        assert_eq!(verdict(&[node("alone", &[])], true), Vec::<String>::new());
    }

    #[test]
    fn whatever_is_missing_is_named() {
        let silent = Answer::failed("c", "its agent's pod is Pending".to_owned());
        let mut not_ready = node("b", &[("a", "Encrypted"), ("c", "Blocked"), ("d", "Clear")]);
        if let Ok(node) = &mut not_ready.heard {
            node.ready = false;
            node.problems = vec!["no data plane".to_owned()];
        }
        let answers = [node("a", &[("b", "Authenticated")]), not_ready, silent];
        let why = verdict(&answers, true);
        assert_eq!(
            why,
            [
                "a → b: Authenticated",
                "a does not know c",
                "b is not ready: no data plane",
                "b → c: Blocked",
                "b → d: Clear",
                "c: no answer: its agent's pod is Pending",
                "d: others know it, but it has no pod of the agent",
            ]
        );
        assert_eq!(verdict(&answers, false).len(), why.len() - 1);
    }

    #[test]
    fn gateways_outside_are_not_nodes() {
        let mut answer = node("a", &[("berlin", "Blocked")]);
        if let Ok(node) = &mut answer.heard {
            node.peers[0].kind = "external".to_owned();
        }
        assert_eq!(verdict(&[answer], true), Vec::<String>::new());
    }
}
