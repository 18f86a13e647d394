//! Events on the Node: what an admin wants to know when looking at it.

use std::time::Duration;

use espalier_api::conditions::{self, Condition, DEGRADED, ENCRYPTED, READY};
use kube::Client;
use tokio::sync::watch;

use crate::recorder::{About, Event, Recorder};
use crate::report::Report;

/// Events in a burst; then one for each [`REFILL`].
const BURST: u32 = 10;
const REFILL: Duration = Duration::from_secs(30);
/// Things settle before they are told.
const SETTLE: Duration = Duration::from_secs(1);

/// Tells of changes until nobody reports any more.
pub(crate) async fn tell(client: Client, node: String, mut reports: watch::Receiver<Report>) {
    let mut recorder = Recorder::new(client, "espalier-agent", Some(&node), BURST, REFILL);
    let mut before = Report::default();
    while reports.changed().await.is_ok() {
        let report = reports.borrow_and_update().clone();
        if report.node_uid.is_none() {
            continue;
        }
        for event in changes(&node, &before, &report) {
            recorder.tell(event).await;
        }
        before = report;
        tokio::time::sleep(SETTLE).await;
    }
}

/// What is worth an event between two reports.
fn changes(node: &str, before: &Report, after: &Report) -> Vec<Event> {
    let conditions = |report: &Report| report.status(&[], &conditions::now()).conditions;
    let (old, new) = (conditions(before), conditions(after));
    let first = before.node_uid.is_none();
    let changed = |type_: &str| {
        let new = conditions::find(&new, type_)?;
        let same = conditions::find(&old, type_).is_some_and(|old| old.status == new.status);
        (first || !same).then(|| new.clone())
    };
    let of =
        |reason: &str, note: String, good: bool| Event::new(About::node(node), !good, reason, note);
    let event = |c: &Condition, good: bool| of(&c.reason, c.message.clone(), good);
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
        changes("a", before, after)
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
}
