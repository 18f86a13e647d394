//! /metrics, /healthz and /readyz.

use std::sync::Arc;
use std::time::Duration;

use espalier_rpc::agent::StatusReply;
use espalier_telemetry::http::{Page, Site};
use espalier_telemetry::metrics::{Kind, Text};
use tokio::sync::{mpsc, oneshot, watch};

use crate::counters::Counters;
use crate::mesh::{NodeFacts, Query, Summary};
use crate::pods::Pods;

/// The mesh answers in milliseconds; when it does not for so long, it hangs.
const PATIENCE: Duration = Duration::from_secs(10);
const STATES: [&str; 5] = ["Encrypted", "Authenticated", "Clear", "Blocked", "OnDemand"];
const MODES: [&str; 3] = ["Disabled", "Permissive", "Required"];

/// What the pages are made from.
pub(crate) struct Pages {
    pub(crate) queries: mpsc::Sender<Query>,
    pub(crate) facts: watch::Receiver<NodeFacts>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pods: Arc<Pods>,
}

impl Site for Pages {
    async fn page(&self, path: &str) -> Option<Page> {
        match path {
            "/healthz" => Some(self.health().await),
            "/readyz" => Some(self.ready()),
            "/metrics" => Some(self.metrics().await),
            _ => None,
        }
    }
}

impl Pages {
    async fn health(&self) -> Page {
        match ask(&self.queries, Query::Summary).await {
            Some(_) => Page::text(200, "ok\n"),
            None => Page::text(503, "the mesh task does not answer; restart the agent\n"),
        }
    }

    /// Ready: can enforce the policy, and takes pods.
    fn ready(&self) -> Page {
        let facts = self.facts.borrow();
        match facts.why_not_ready().as_slice() {
            [] => Page::text(200, "ok\n"),
            why => Page::text(503, why.join("\n") + "\n"),
        }
    }

    async fn metrics(&self) -> Page {
        let status = ask(&self.queries, Query::Status).await;
        let summary = ask(&self.queries, Query::Summary).await;
        match status.zip(summary) {
            Some((mut status, summary)) => {
                status.leases = self.pods.leases();
                Page::metrics(text(&status, &summary, &self.counters))
            }
            None => Page::text(503, "the mesh task does not answer\n"),
        }
    }
}

/// Asks the mesh; `None`: it is gone or hangs.
pub(crate) async fn ask<T>(
    queries: &mpsc::Sender<Query>,
    query: impl FnOnce(oneshot::Sender<T>) -> Query,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        queries.send(query(reply)).await.ok()?;
        answer.await.ok()
    };
    tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
}

fn text(status: &StatusReply, summary: &Summary, counters: &Counters) -> Text {
    let mut text = Text::default();
    node(&mut text, status, summary);
    peers(&mut text, status);
    traffic(&mut text, status, counters);
    handshakes(&mut text, counters);
    text
}

fn node(text: &mut Text, status: &StatusReply, summary: &Summary) {
    let help = "What runs on this node; always 1.";
    let labels = [
        ("node", status.node.as_str()),
        ("version", &status.version),
        ("dataplane", &status.dataplane),
        ("dataplane_version", &status.dataplane_version),
    ];
    text.family("espalier_info", Kind::Gauge, help)
        .sample(&labels, 1);
    let help = "1: this node can enforce the policy and takes pods.";
    text.single("espalier_ready", Kind::Gauge, help, u8::from(status.ready));
    let mut family = text.family(
        "espalier_policy_mode",
        Kind::Gauge,
        "1 for the policy's mode.",
    );
    for mode in MODES {
        family.sample(&[("mode", mode)], u8::from(status.mode == mode));
    }
    let help = "metadata.generation of the policy in force; 0 without Kubernetes.";
    text.single(
        "espalier_policy_generation",
        Kind::Gauge,
        help,
        summary.generation,
    );
    let help = "Things that somebody has to mend; `espalier status` says what.";
    text.single(
        "espalier_problems",
        Kind::Gauge,
        help,
        status.problems.len(),
    );
    let help = "Addresses of pods that are in use.";
    text.single("espalier_pod_addresses", Kind::Gauge, help, status.leases);
    let help = "Maximum transmission unit of pods.";
    text.single("espalier_pod_mtu_bytes", Kind::Gauge, help, status.mtu);
    if let Some(certificate) = &summary.certificate {
        let help = "When this node's certificate ends, in seconds since the epoch.";
        let ends = certificate.not_after.0.as_second();
        text.single(
            "espalier_certificate_expiry_timestamp_seconds",
            Kind::Gauge,
            help,
            ends,
        );
    }
}

fn peers(text: &mut Text, status: &StatusReply) {
    let help = "Peers by what is sent to them; kind: node or external.";
    let mut family = text.family("espalier_peers", Kind::Gauge, help);
    for kind in ["node", "external"] {
        for state in STATES {
            let of = |peer: &&_| is(peer, kind, state);
            let count = status.peers.iter().filter(of).count();
            family.sample(&[("kind", kind), ("state", state)], count);
        }
    }
    let help = "Peers whose pairs refuse clear packets in both directions.";
    let enforced = status.peers.iter().filter(|peer| peer.enforced).count();
    text.single("espalier_peers_enforced", Kind::Gauge, help, enforced);
    let help = "ESP and AH security associations, both directions.";
    let sas: u64 = status.peers.iter().map(|peer| u64::from(peer.sas)).sum();
    text.single("espalier_security_associations", Kind::Gauge, help, sas);
}

fn is(peer: &espalier_rpc::agent::PeerStatus, kind: &str, state: &str) -> bool {
    peer.kind == kind && peer.path == state
}

fn traffic(text: &mut Text, status: &StatusReply, counters: &Counters) {
    let (inbound, outbound) = counters.traffic();
    let directions = [("in", inbound), ("out", outbound)];
    let help = "Packets opened (in) and sealed (out).";
    let mut family = text.family("espalier_esp_packets_total", Kind::Counter, help);
    for (direction, volume) in directions {
        family.sample(&[("direction", direction)], volume.packets);
    }
    let help = "Bytes of ESP payload opened (in) and sealed (out).";
    let mut family = text.family("espalier_esp_bytes_total", Kind::Counter, help);
    for (direction, volume) in directions {
        family.sample(&[("direction", direction)], volume.bytes);
    }
    let help = "Packets that the data plane dropped, by reason.";
    let mut family = text.family("espalier_drops_total", Kind::Counter, help);
    let mut drops: Vec<_> = status.drops.iter().collect();
    drops.sort();
    for (reason, count) in drops {
        family.sample(&[("reason", reason)], count);
    }
}

fn handshakes(text: &mut Text, counters: &Counters) {
    let (succeeded, failed) = counters.handshakes();
    let help = "IKE handshakes by result.";
    let mut family = text.family("espalier_handshakes_total", Kind::Counter, help);
    family.sample(&[("result", "success")], succeeded);
    family.sample(&[("result", "failure")], failed);
    let help = "How long IKE handshakes took that succeeded.";
    let name = "espalier_handshake_duration_seconds";
    text.histogram(name, help, &counters.handshake_time);
    let help = "SA pairs that replaced another one of the same peer.";
    text.single(
        "espalier_rekeys_total",
        Kind::Counter,
        help,
        counters.rekeys(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_written_once_with_its_labels() {
        let status = StatusReply {
            node: "a".to_owned(),
            mode: "Required".to_owned(),
            ready: true,
            drops: [("unknown_spi".to_owned(), 3)].into(),
            ..StatusReply::default()
        };
        let page = text(&status, &Summary::default(), &Counters::default()).into_string();
        for line in [
            "espalier_ready 1",
            "espalier_policy_mode{mode=\"Required\"} 1",
            "espalier_policy_mode{mode=\"Disabled\"} 0",
            "espalier_peers{kind=\"node\",state=\"Encrypted\"} 0",
            "espalier_drops_total{reason=\"unknown_spi\"} 3",
            "espalier_handshake_duration_seconds_count 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in {page}");
        }
        let heads: Vec<_> = page
            .lines()
            .filter(|line| line.starts_with("# TYPE"))
            .collect();
        let once: std::collections::BTreeSet<_> = heads.iter().collect();
        assert_eq!(heads.len(), once.len(), "{page}");
    }
}
