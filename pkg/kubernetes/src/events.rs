//! Events on the Node: what an admin wants to know when looking at it.

use std::time::Duration;

use espalier_api::conditions::{self, Condition, DEGRADED, ENCRYPTED, READY};
use k8s_openapi::api::core::v1::{Event as ApiEvent, EventSource, ObjectReference};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use rand::RngExt as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use crate::report::Report;

/// Events in a burst; then one for each [`REFILL`].
const BURST: u32 = 10;
const REFILL: Duration = Duration::from_secs(30);
/// Things settle before they are told.
const SETTLE: Duration = Duration::from_secs(1);
/// Where events about objects without a namespace are.
const NAMESPACE: &str = "default";
/// The API takes no longer note.
const NOTE_MAX: usize = 1000;

/// Tells of changes until nobody reports any more. An event that cannot be written is not worth a second try.
pub(crate) async fn tell(client: Client, node: String, mut reports: watch::Receiver<Report>) {
    // Of the core group, not of events.k8s.io: there Kubernetes 1.20 refuses events about objects without a namespace.
    let events: Api<ApiEvent> = Api::namespaced(client, NAMESPACE);
    let mut before = Report::default();
    let mut budget = Budget::new(Instant::now());
    while reports.changed().await.is_ok() {
        let report = reports.borrow_and_update().clone();
        if report.node_uid.is_none() {
            continue;
        }
        for event in changes(&before, &report) {
            if budget.take(Instant::now())
                && let Err(error) = events
                    .create(&PostParams::default(), &event.about(&node))
                    .await
            {
                debug!(%error, "event not written");
            }
        }
        before = report;
        tokio::time::sleep(SETTLE).await;
    }
}

/// What is worth an event between two reports.
fn changes(before: &Report, after: &Report) -> Vec<Event> {
    let conditions = |report: &Report| report.status(&[], &conditions::now()).conditions;
    let (old, new) = (conditions(before), conditions(after));
    let first = before.node_uid.is_none();
    let changed = |type_: &str| {
        let new = conditions::find(&new, type_)?;
        let same = conditions::find(&old, type_).is_some_and(|old| old.status == new.status);
        (first || !same).then(|| new.clone())
    };
    let mut events = Vec::new();
    events.extend(changed(READY).map(|c| event(&c, c.holds())));
    if !first && before.mode != after.mode {
        let note = format!(
            "the policy's mode changed from {} to {}",
            before.mode, after.mode
        );
        events.push(of("PolicyModeChanged", note, true));
    }
    let encrypted = changed(ENCRYPTED).filter(|c| c.holds() || !first);
    events.extend(encrypted.map(|c| event(&c, c.holds() || after.mode == "Disabled")));
    let degraded = changed(DEGRADED).filter(|c| c.holds() || !first);
    events.extend(degraded.map(|c| event(&c, !c.holds())));
    events
}

fn event(condition: &Condition, good: bool) -> Event {
    of(&condition.reason, condition.message.clone(), good)
}

fn of(reason: &str, mut note: String, good: bool) -> Event {
    if note.len() > NOTE_MAX {
        let end = (0..=NOTE_MAX).rev().find(|at| note.is_char_boundary(*at));
        note.truncate(end.unwrap_or(0));
    }
    Event {
        type_: if good { "Normal" } else { "Warning" },
        reason: reason.to_owned(),
        note,
    }
}

/// What is told.
struct Event {
    type_: &'static str,
    reason: String,
    note: String,
}

impl Event {
    fn about(self, node: &str) -> ApiEvent {
        let now = conditions::now();
        ApiEvent {
            metadata: ObjectMeta {
                name: Some(format!("{node}.{:016x}", rand::rng().random::<u64>())),
                namespace: Some(NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                // As kubelet does, and as `kubectl describe node` looks for them.
                uid: Some(node.to_owned()),
                ..ObjectReference::default()
            },
            type_: Some(self.type_.to_owned()),
            reason: Some(self.reason),
            message: Some(self.note),
            source: Some(EventSource {
                component: Some("espalier-agent".to_owned()),
                host: Some(node.to_owned()),
            }),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..ApiEvent::default()
        }
    }
}

/// A token bucket.
struct Budget {
    left: u32,
    since: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        while self.left < BURST && now >= self.since + REFILL {
            self.left += 1;
            self.since += REFILL;
        }
        if self.left == BURST {
            self.since = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(mode: &str, not_ready: &[&str]) -> Report {
        Report {
            node_uid: Some("u".to_owned()),
            mode: mode.to_owned(),
            not_ready: not_ready.iter().map(|why| (*why).to_owned()).collect(),
            ..Report::default()
        }
    }

    fn reasons(before: &Report, after: &Report) -> Vec<String> {
        changes(before, after)
            .into_iter()
            .map(|event| event.reason)
            .collect()
    }

    #[test]
    fn changes_are_told_once() {
        let (up, down) = (
            report("Disabled", &[]),
            report("Disabled", &["no data plane"]),
        );
        assert_eq!(reasons(&Report::default(), &up), ["EspalierIsUp"]);
        assert_eq!(reasons(&up, &up), [""; 0]);
        assert_eq!(reasons(&up, &down), ["EspalierNotReady"]);
        let toggled = reasons(&up, &report("Required", &[]));
        assert_eq!(toggled, ["PolicyModeChanged", "NoPeers"]);
    }

    #[test]
    fn a_flapping_node_does_not_flood() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        let taken = (0..100).filter(|_| budget.take(now)).count();
        assert_eq!(taken, 10);
        assert!(budget.take(now + REFILL));
        assert!(!budget.take(now + REFILL));
    }
}
