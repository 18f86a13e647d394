//! All objects together: what is in force, and what is wrong with the rest.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use espalier_peers::{Mode, NodeSpec};
use ipnet::IpNet;

use crate::claims::Claims;
use crate::crd::Masquerade;
use crate::external::ExternalGateway;
use crate::manifest::{Object, Read, parse};
use crate::protection::Protection;

/// The policy in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// metadata.generation; 0 where nobody counts.
    pub generation: i64,
    /// How strict this node is.
    pub mode: Mode,
    /// What pod addresses are.
    pub cluster_cidrs: Vec<IpNet>,
    /// How long a live pair may still send clear after `Required` came to hold.
    pub transition_deadline: Duration,
    /// By what packets are protected.
    pub protection: Protection,
    /// Whether pods have the node's address out of the cluster.
    pub masquerade: Masquerade,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            generation: 0,
            mode: Mode::Disabled,
            cluster_cidrs: Vec::new(),
            transition_deadline: Duration::from_secs(60),
            protection: Protection::default(),
            masquerade: Masquerade::default(),
        }
    }
}

/// Something an admin has to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File, document and object.
    pub place: String,
    /// Kind and name of the object, where they could be read.
    pub key: Option<(&'static str, String)>,
    /// Field, what was expected, what was found, and the remedy.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// What is in force. Without any policy there are no nodes either: nothing is decided on half of the facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshSnapshot {
    /// The policy.
    pub policy: Policy,
    /// All usable nodes, by name.
    pub nodes: Vec<NodeSpec>,
    /// Gateways outside of the mesh, by name.
    pub externals: Vec<ExternalGateway>,
    /// Gateways that are not in force beside the rest: nothing goes to their networks, least of all in clear.
    pub left_out: Vec<ExternalGateway>,
    /// What is not in force.
    pub problems: Vec<Problem>,
}

impl MeshSnapshot {
    /// The problems as text.
    #[must_use]
    pub fn problem_texts(&self) -> Vec<String> {
        self.problems.iter().map(ToString::to_string).collect()
    }
}

type Key = (&'static str, String);

/// Added to the problem of an object that was good before.
const LAST_GOOD: &str = "; its last good version stays in force";

/// Remembers the last good version of each object, source by source. A source is a file, or the API server.
#[derive(Clone, Debug, Default)]
pub struct Store {
    sources: BTreeMap<String, Held>,
    policy: Option<Policy>,
    /// Names of the nodes in force: of two that conflict the older one stays.
    in_force: HashSet<String>,
}

/// What there is of one source.
#[derive(Clone, Debug, Default)]
struct Held {
    objects: BTreeMap<Key, Object>,
    problems: Vec<Problem>,
}

impl Store {
    /// Takes the complete content of a folder: every file with its text (or why it cannot be read).
    pub fn update(&mut self, files: &BTreeMap<String, Result<String, String>>) -> MeshSnapshot {
        self.sources.retain(|file, _| files.contains_key(file));
        for (file, text) in files {
            let held = self.sources.entry(file.clone()).or_default();
            held.take_file(file, text);
        }
        self.snapshot()
    }

    /// Takes one object of a source that tells of each by itself. Whether anything changed by that.
    pub fn put(&mut self, source: &str, read: Read) -> bool {
        let held = self.sources.entry(source.to_owned()).or_default();
        held.put(read)
    }

    /// The object is no more. Whether it was there.
    pub fn remove(&mut self, source: &str, kind: &'static str, name: &str) -> bool {
        let Some(held) = self.sources.get_mut(source) else {
            return false;
        };
        let key = (kind, name.to_owned());
        let was_bad = held.forgive(&key);
        held.objects.remove(&key).is_some() || was_bad
    }

    /// What there is of this kind in the source is exactly these: takes them, and removes others. Whether anything changed.
    pub fn replace(
        &mut self,
        source: &str,
        kind: &'static str,
        listed: Vec<(String, Read)>,
    ) -> bool {
        let names: HashSet<String> = listed.iter().map(|(name, _)| name.clone()).collect();
        let held = self.sources.entry(source.to_owned()).or_default();
        let mut changed = held.keep_only(kind, &names);
        for (_, read) in listed {
            changed |= held.put(read);
        }
        changed
    }

    /// What is in force now.
    pub fn snapshot(&mut self) -> MeshSnapshot {
        let of_sources = self.sources.values().flat_map(|held| &held.problems);
        let mut problems = of_sources.cloned().collect();
        let Some(policy) = self.choose_policy(&mut problems) else {
            return MeshSnapshot {
                problems,
                ..MeshSnapshot::default()
            };
        };
        let nodes = self.choose_nodes(&policy, &mut problems);
        self.in_force = nodes.iter().map(|node| node.name.clone()).collect();
        let (externals, left_out) = self.choose_externals(&policy, &nodes, &mut problems);
        MeshSnapshot {
            policy,
            nodes,
            externals,
            left_out,
            problems,
        }
    }

    fn objects(&self) -> impl Iterator<Item = (&String, &Object)> {
        let sources = self.sources.iter();
        sources.flat_map(|(source, held)| held.objects.values().map(move |object| (source, object)))
    }

    /// A policy that disappears stays in force: deleting a file must not switch encryption off.
    fn choose_policy(&mut self, problems: &mut Vec<Problem>) -> Option<Policy> {
        let mut policies = self.objects().filter_map(|(file, object)| match object {
            Object::Policy(policy) => Some((file, policy)),
            Object::Node(_) | Object::External(_) => None,
        });
        let first = policies.next();
        for (file, _) in policies {
            let what = format!(
                "a second EncryptionPolicy; the one in {} is in force",
                first.map_or("", |(f, _)| f)
            );
            problems.push(Problem {
                place: file.clone(),
                key: None,
                what,
            });
        }
        let chosen = first.map(|(_, policy)| policy.clone());
        match (chosen, &self.policy) {
            (Some(policy), _) => self.policy = Some(policy),
            (None, Some(_)) => problems.push(missing_policy("the last one stays in force")),
            (None, None) => problems.push(missing_policy("nothing is done until there is one")),
        }
        self.policy.clone()
    }

    /// Of two gateways that conflict the first by name holds; the others are left out.
    fn choose_externals(
        &self,
        policy: &Policy,
        nodes: &[NodeSpec],
        problems: &mut Vec<Problem>,
    ) -> (Vec<ExternalGateway>, Vec<ExternalGateway>) {
        let mut candidates: Vec<(&String, &ExternalGateway)> = self
            .objects()
            .filter_map(|(file, object)| match object {
                Object::External(peer) => Some((file, peer)),
                Object::Node(_) | Object::Policy(_) => None,
            })
            .collect();
        candidates.sort_by_key(|(file, peer)| (&peer.name, *file));
        let mut chosen: Vec<(&String, &ExternalGateway)> = Vec::new();
        let mut left_out = Vec::new();
        for (file, peer) in candidates {
            let Some(what) = peer.conflict(policy, nodes, &chosen) else {
                chosen.push((file, peer));
                continue;
            };
            left_out.push(peer.clone());
            problems.push(Problem {
                place: format!("{file}, ExternalPeer {}", peer.name),
                key: Some(("ExternalPeer", peer.name.clone())),
                what,
            });
        }
        let chosen = chosen.into_iter().map(|(_, peer)| peer.clone()).collect();
        (chosen, left_out)
    }

    fn choose_nodes(&self, policy: &Policy, problems: &mut Vec<Problem>) -> Vec<NodeSpec> {
        let mut candidates: Vec<(&String, &NodeSpec)> = self
            .objects()
            .filter_map(|(file, object)| match object {
                Object::Node(node) => Some((file, node)),
                Object::Policy(_) | Object::External(_) => None,
            })
            .collect();
        let in_force = |node: &NodeSpec| self.in_force.contains(&node.name);
        candidates.sort_by_cached_key(|(file, node)| (!in_force(node), &node.name, *file));
        let mut claims = Claims::default();
        for (file, node) in candidates {
            let taken = match outside(node, policy) {
                None => claims.take(file, node),
                Some(what) => Err(what),
            };
            if let Err(what) = taken {
                let place = format!("{file}, Node {}", node.name);
                problems.push(Problem {
                    place,
                    key: Some(("Node", node.name.clone())),
                    what,
                });
            }
        }
        claims.into_nodes()
    }
}

impl Held {
    fn take_file(&mut self, file: &str, text: &Result<String, String>) {
        let unreadable = |what: &String| Problem {
            place: file.to_owned(),
            key: None,
            what: what.clone(),
        };
        let text = text.as_ref().map_err(unreadable);
        match text.and_then(|text| parse(file, text)) {
            Ok(documents) => {
                self.problems.clear();
                let old = std::mem::take(&mut self.objects);
                self.objects = merge(file, old, documents, &mut self.problems);
            }
            Err(problem) => self.problems = vec![problem],
        }
    }

    fn put(&mut self, read: Read) -> bool {
        match read {
            Ok(object) => {
                let key = object.key();
                let was_bad = self.forgive(&key);
                let changed = self.objects.get(&key) != Some(&object);
                self.objects.insert(key, object);
                changed || was_bad
            }
            Err(problem) => self.note(problem),
        }
    }

    /// Keeps a problem, one per object. Whether it is news.
    fn note(&mut self, mut problem: Problem) -> bool {
        if let Some(key) = &problem.key
            && self.objects.contains_key(key)
        {
            problem.what.push_str(LAST_GOOD);
        }
        if self.problems.contains(&problem) {
            return false;
        }
        if let Some(key) = &problem.key {
            self.problems.retain(|p| p.key.as_ref() != Some(key));
        }
        self.problems.push(problem);
        true
    }

    /// Forgets what was wrong with an object. Whether something was.
    fn forgive(&mut self, key: &Key) -> bool {
        let before = self.problems.len();
        self.problems.retain(|p| p.key.as_ref() != Some(key));
        self.problems.len() != before
    }

    fn keep_only(&mut self, kind: &'static str, names: &HashSet<String>) -> bool {
        let stays = |key: &Key| key.0 != kind || names.contains(&key.1);
        let before = (self.objects.len(), self.problems.len());
        self.objects.retain(|key, _| stays(key));
        self.problems.retain(|p| p.key.as_ref().is_none_or(stays));
        before != (self.objects.len(), self.problems.len())
    }
}

/// What a file says now, with the last good version of what it says badly.
fn merge(
    file: &str,
    mut old: BTreeMap<Key, Object>,
    documents: Vec<Read>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<Key, Object> {
    let mut new = BTreeMap::new();
    let (good, bad): (Vec<_>, Vec<_>) = documents.into_iter().partition(Result::is_ok);
    for object in good.into_iter().flatten() {
        match new.entry(object.key()) {
            Entry::Vacant(free) => drop(free.insert(object)),
            Entry::Occupied(first) => problems.push(twice(file, first.key())),
        }
    }
    let mut nameless = false;
    // After the good ones: a bad document beside a good one of the same object holds nothing back.
    for mut problem in bad.into_iter().filter_map(Result::err) {
        nameless |= problem.key.is_none();
        let missing = problem.key.as_ref().filter(|key| !new.contains_key(*key));
        if let Some((key, last)) = missing.and_then(|key| old.remove_entry(key)) {
            problem.what.push_str(LAST_GOOD);
            new.insert(key, last);
        }
        problems.push(problem);
    }
    if nameless {
        // Any object that this file had may be the one that cannot be told now.
        for (key, last) in old {
            new.entry(key).or_insert(last);
        }
    }
    new
}

fn twice(file: &str, key: &Key) -> Problem {
    let what =
        "metadata.name: this file has two objects of this kind and name; the first is in force";
    Problem {
        place: format!("{file}, {} {}", key.0, key.1),
        key: Some(key.clone()),
        what: what.to_owned(),
    }
}

fn missing_policy(consequence: &str) -> Problem {
    let what = format!(
        "no EncryptionPolicy named default; add one with spec.mode and spec.clusterCIDRs; {consequence}"
    );
    Problem {
        place: "manifests".to_owned(),
        key: None,
        what,
    }
}

/// Why the policy has no place for `node`.
fn outside(node: &NodeSpec, policy: &Policy) -> Option<String> {
    for cidr in &node.pod_cidrs {
        if !policy
            .cluster_cidrs
            .iter()
            .any(|cluster| cluster.contains(cidr))
        {
            let clusters: Vec<_> = policy
                .cluster_cidrs
                .iter()
                .map(ToString::to_string)
                .collect();
            return Some(format!(
                "spec.podCIDRs: {cidr} is not inside clusterCIDRs ({}), so it could not be protected; the node is left out",
                clusters.join(", ")
            ));
        }
    }
    None
}
