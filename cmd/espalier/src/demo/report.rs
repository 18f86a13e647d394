//! `report.json`: one flat object. A value that was never measured is null.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// The measurements of one run.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) nodes: u8,
    /// Unordered pairs of nodes.
    pub(super) pairs_total: u64,
    /// Those with an enforced SA pair both ways and ESP seen both ways.
    pub(super) pairs_encrypted: u64,
    /// Clear pod packets on the wire while the mode was Disabled: the check itself works.
    pub(super) clear_packets_disabled: Option<u64>,
    /// The same while Required was enforced, all such times together.
    pub(super) clear_packets_required: Option<u64>,
    pub(super) esp_packets: u64,
    pub(super) toggle_lost: Option<u64>,
    pub(super) restart_lost: Option<u64>,
    pub(super) fail_closed_clear: Option<u64>,
    pub(super) pings_sent: u64,
    pub(super) pings_lost: u64,
    /// Packets of the sequenced flows.
    pub(super) sent: u64,
    pub(super) handshake_ms_p50: Option<f64>,
    pub(super) cni_add_ms_p50: Option<f64>,
    pub(super) dataplane: String,
    pub(super) duration_s: f64,
    pub(super) leftovers: Option<u64>,
}

impl Report {
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

/// The middle of the values in milliseconds, to a hundredth.
pub(super) fn median_ms(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = *sorted.get(sorted.len() / 2)?;
    Some((middle * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_the_agreed_keys() {
        let json = serde_json::to_value(Report::default()).unwrap();
        let mut keys: Vec<_> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        keys.sort_unstable();
        let mut agreed: Vec<_> = "nodes, pairs_total, pairs_encrypted, clear_packets_disabled, clear_packets_required, \
            esp_packets, toggle_lost, restart_lost, fail_closed_clear, pings_sent, pings_lost, sent, handshake_ms_p50, \
            cni_add_ms_p50, dataplane, duration_s, leftovers"
            .split(", ")
            .collect();
        agreed.sort_unstable();
        assert_eq!(keys, agreed);
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median_ms(&[9.0, 1.0, 2.345_6]), Some(2.35));
        assert_eq!(median_ms(&[]), None);
    }
}
