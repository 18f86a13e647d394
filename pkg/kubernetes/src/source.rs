//! Nodes, the policy and external peers of a cluster, followed live.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use espalier_api::{MeshSnapshot, Problem, Store};
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::info;

use crate::backoff::Backoff;
use crate::feed::{Kind, SOURCE, Told};
use crate::follow::follow;

/// How long is waited for what.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Changes come in groups, such as a node's object and its status; they are taken together.
    pub settle: Duration,
    /// An API server that is away for less is not worth a word.
    pub patience: Duration,
    /// A watch that was begun again and says no error for so long is taken to work: quiet is what it is most of the time.
    pub works_after: Duration,
    /// Between requests that fail.
    pub backoff: Backoff,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(50),
            patience: Duration::from_secs(20),
            works_after: Duration::from_secs(8),
            backoff: Backoff::api(),
        }
    }
}

/// A cluster's objects. What is in force changes only by what the API server says completely: lists broken off, watches that end
/// and a server that is away change nothing.
#[derive(Debug)]
pub struct KubeSource {
    snapshots: watch::Receiver<MeshSnapshot>,
}

impl KubeSource {
    /// Follows the cluster until the last receiver is gone. Needs a tokio runtime. The first snapshot has no policy and no nodes,
    /// and says what is waited for.
    #[must_use]
    pub fn start(client: &Client) -> Self {
        Self::start_with(client, &Timing::default())
    }

    /// [`Self::start`] with other times, for tests.
    #[must_use]
    pub fn start_with(client: &Client, timing: &Timing) -> Self {
        let (told, heard) = mpsc::channel(256);
        for kind in Kind::ALL {
            tokio::spawn(follow(client.clone(), kind, told.clone(), timing.clone()));
        }
        let followed = Followed {
            timing: timing.clone(),
            ..Followed::default()
        };
        let (sender, snapshots) = watch::channel(followed.waiting());
        tokio::spawn(followed.run(heard, sender));
        Self { snapshots }
    }

    /// What is in force, now and later.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<MeshSnapshot> {
        self.snapshots.clone()
    }
}

#[derive(Debug, Default)]
struct Followed {
    timing: Timing,
    store: Store,
    /// Kinds of which all is known.
    listed: BTreeSet<Kind>,
    /// Kinds that fail, since when, and why.
    failing: BTreeMap<Kind, (Instant, String)>,
}

impl Followed {
    async fn run(
        mut self,
        mut heard: mpsc::Receiver<(Kind, Told)>,
        sender: watch::Sender<MeshSnapshot>,
    ) {
        let mut publish_at = None;
        loop {
            tokio::select! {
                () = sender.closed() => return,
                word = heard.recv() => {
                    let Some((kind, told)) = word else { return };
                    if self.take(kind, told) {
                        let soon = Instant::now() + self.timing.settle;
                        publish_at = Some(publish_at.map_or(soon, |at: Instant| at.min(soon)));
                    }
                }
                () = at(publish_at) => {
                    publish(&sender, self.snapshot());
                    publish_at = self.next_complaint();
                }
            }
        }
    }

    /// Whether there may be something to publish.
    fn take(&mut self, kind: Kind, told: Told) -> bool {
        match told {
            Told::All(all) => {
                let first = self.listed.insert(kind);
                self.store.replace(SOURCE, kind.word(), all) || first
            }
            Told::One(read) => self.store.put(SOURCE, read),
            Told::Gone(name) => self.store.remove(SOURCE, kind.word(), &name),
            Told::Failed(why) => {
                let since = self.failing.get(&kind).map(|(since, _)| *since);
                let since = since.unwrap_or_else(Instant::now);
                self.failing.insert(kind, (since, why));
                true
            }
            Told::Works => self.failing.remove(&kind).is_some(),
        }
    }

    fn snapshot(&mut self) -> MeshSnapshot {
        if self.listed.len() < Kind::ALL.len() {
            return self.waiting();
        }
        let mut snapshot = self.store.snapshot();
        let consequence = "what was known of it stays in force";
        let complaints = self
            .failing
            .values()
            .filter(|(since, _)| since.elapsed() >= self.timing.patience);
        let complaints = complaints.map(|(_, why)| complaint(&format!("{why}; {consequence}")));
        snapshot.problems.extend(complaints);
        snapshot
    }

    /// Before all is known, nothing is in force.
    fn waiting(&self) -> MeshSnapshot {
        let missing = Kind::ALL.iter().filter(|kind| !self.listed.contains(kind));
        let problems = missing.map(|kind| match self.failing.get(kind) {
            Some((_, why)) => complaint(why),
            None => complaint(&format!("waiting for the list of {}", kind.plural())),
        });
        MeshSnapshot {
            problems: problems.collect(),
            ..MeshSnapshot::default()
        }
    }

    /// When a failure has lasted long enough to be told.
    fn next_complaint(&self) -> Option<Instant> {
        let due = self
            .failing
            .values()
            .map(|(since, _)| *since + self.timing.patience);
        due.filter(|at| *at > Instant::now()).min()
    }
}

fn complaint(what: &str) -> Problem {
    Problem {
        place: SOURCE.to_owned(),
        key: None,
        what: what.to_owned(),
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn publish(sender: &watch::Sender<MeshSnapshot>, snapshot: MeshSnapshot) {
    sender.send_if_modified(|old| {
        let changed = *old != snapshot;
        if changed {
            info!(nodes = snapshot.nodes.len(), mode = %snapshot.policy.mode, problems = snapshot.problems.len(), "cluster changed");
            *old = snapshot;
        }
        changed
    });
}
