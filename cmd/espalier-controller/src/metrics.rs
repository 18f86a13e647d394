//! What a scraper and the kubelet's probes see.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use espalier_telemetry::http::{Page, Site};
use espalier_telemetry::metrics::{Kind, Text};

/// A leader whose last round is so long ago hangs.
const STALLED: Duration = Duration::from_secs(300);

/// Counted since the process started; shared with the HTTP server.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) leading: AtomicBool,
    /// The API server answered once.
    pub(crate) connected: AtomicBool,
    pub(crate) issued: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) rounds: AtomicU64,
    /// Seconds since the epoch.
    pub(crate) last_round: AtomicI64,
    /// Seconds since the epoch; 0: no CA.
    pub(crate) ca_not_after: AtomicI64,
    /// 0 none, 1 distribute, 2 renew.
    pub(crate) rotation: AtomicI64,
    /// When that came to be; seconds since the epoch.
    pub(crate) rotation_since: AtomicI64,
    pub(crate) nodes: AtomicI64,
    pub(crate) nodes_ready: AtomicI64,
    pub(crate) nodes_encrypted: AtomicI64,
    /// What a leader waits for before it can act; `None`: nothing.
    waits_for: Mutex<Option<String>>,
}

pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn set(gauge: &AtomicI64, value: i64) {
    gauge.store(value, Ordering::Relaxed);
}

/// Since the epoch; 0 with a clock before it.
pub(crate) fn now() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Duration::from_secs(now.unwrap_or_default().as_secs())
}

pub(crate) fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

impl Metrics {
    /// What a leader waits for before it can act. True when that is another thing than before.
    pub(crate) fn waits_for(&self, what: Option<String>) -> bool {
        let mut waits = self
            .waits_for
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let changed = *waits != what;
        *waits = what;
        changed
    }

    /// Only of a leader.
    fn waiting(&self) -> Option<String> {
        let waits = self
            .waits_for
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        waits
            .clone()
            .filter(|_| self.leading.load(Ordering::Relaxed))
    }

    /// A leader that hangs is better started anew; a replica that waits for its turn is well.
    fn is_stalled(&self) -> bool {
        let age = seconds(now()) - self.last_round.load(Ordering::Relaxed);
        self.leading.load(Ordering::Relaxed) && age > seconds(STALLED)
    }

    fn text(&self) -> Text {
        let mut text = Text::default();
        let gauge = |value: &AtomicI64| value.load(Ordering::Relaxed);
        let count = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let leading = u8::from(self.leading.load(Ordering::Relaxed));
        text.single(
            "espalier_controller_leading",
            Kind::Gauge,
            "1 in the replica that acts.",
            leading,
        );
        let mut requests = text.family(
            "espalier_controller_certificate_requests_total",
            Kind::Counter,
            "Requests for certificates, by what came of them.",
        );
        requests.sample(&[("result", "issued")], count(&self.issued));
        requests.sample(&[("result", "refused")], count(&self.refused));
        for (name, help, value) in [
            (
                "espalier_controller_errors_total",
                "Steps that failed and are tried again.",
                count(&self.errors),
            ),
            (
                "espalier_controller_rounds_total",
                "Looks at all that is there.",
                count(&self.rounds),
            ),
        ] {
            text.single(name, Kind::Counter, help, value);
        }
        // Only the leader knows the others: two replicas would be summed up.
        if leading == 0 {
            return text;
        }
        let waits = u8::from(self.waiting().is_some());
        text.single(
            "espalier_controller_waiting",
            Kind::Gauge,
            "1: the leader cannot act yet; /readyz says what it waits for.",
            waits,
        );
        for (name, help, value) in [
            (
                "espalier_controller_ca_not_after_timestamp_seconds",
                "When the CA that signs ends; 0: there is none.",
                gauge(&self.ca_not_after),
            ),
            (
                "espalier_controller_ca_rotation_stage",
                "0 none, 1 nodes learn to trust the new CA, 2 nodes get certificates of the new CA.",
                gauge(&self.rotation),
            ),
            (
                "espalier_controller_nodes",
                "Nodes of the mesh.",
                gauge(&self.nodes),
            ),
            (
                "espalier_controller_nodes_ready",
                "Nodes that can enforce the policy.",
                gauge(&self.nodes_ready),
            ),
            (
                "espalier_controller_nodes_encrypted",
                "Nodes with every pair encrypted.",
                gauge(&self.nodes_encrypted),
            ),
        ] {
            text.single(name, Kind::Gauge, help, value);
        }
        text
    }
}

impl Site for Metrics {
    async fn page(&self, path: &str) -> Option<Page> {
        match path {
            "/metrics" => Some(Page::metrics(self.text())),
            "/healthz" if self.is_stalled() => {
                Some(Page::text(503, "leading, but the last round is long ago\n"))
            }
            "/healthz" => Some(Page::text(200, "ok\n")),
            "/readyz" => Some(match self.waiting() {
                _ if !self.connected.load(Ordering::Relaxed) => {
                    Page::text(503, "the API server has not answered yet\n")
                }
                Some(what) => Page::text(503, format!("leading, but waiting: {what}\n")),
                None => Page::text(200, "ok\n"),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn status(metrics: &Metrics, path: &str) -> Option<u16> {
        metrics.page(path).await.map(|page| page.status)
    }

    #[tokio::test]
    async fn a_leader_that_hangs_is_not_healthy_and_a_waiting_replica_is() {
        let metrics = Metrics::default();
        assert_eq!(status(&metrics, "/healthz").await, Some(200));
        assert_eq!(status(&metrics, "/readyz").await, Some(503));
        metrics.connected.store(true, Ordering::Relaxed);
        metrics.leading.store(true, Ordering::Relaxed);
        assert_eq!(status(&metrics, "/readyz").await, Some(200));
        assert_eq!(status(&metrics, "/healthz").await, Some(503));
        set(&metrics.last_round, seconds(now()));
        assert_eq!(status(&metrics, "/healthz").await, Some(200));
        assert_eq!(status(&metrics, "/other").await, None);
        assert!(metrics.waits_for(Some("no CRDs".to_owned())));
        assert!(!metrics.waits_for(Some("no CRDs".to_owned())));
        assert_eq!(status(&metrics, "/readyz").await, Some(503));
        metrics.leading.store(false, Ordering::Relaxed);
        assert_eq!(status(&metrics, "/readyz").await, Some(200));
    }

    #[tokio::test]
    async fn only_the_leader_tells_of_the_mesh() {
        let metrics = Metrics::default();
        let body = metrics.page("/metrics").await.unwrap().body;
        assert!(body.contains("espalier_controller_leading 0") && !body.contains("_nodes"));
        metrics.leading.store(true, Ordering::Relaxed);
        let body = metrics.page("/metrics").await.unwrap().body;
        assert!(body.contains("espalier_controller_nodes_ready 0"), "{body}");
    }
}
