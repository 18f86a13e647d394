//! What came out, as a table and as `cni.json`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use espalier_bench_ike::measure::{machine, median};
use serde::Serialize;

use crate::plugin::Plugin;
use crate::rounds::{Calls, Kind, Measured, Mode, Op};

/// Of an ADD and of a DEL, one after the other.
const TARGET_MS: f64 = 4.0;
/// Of ptp's ADD.
const TARGET_RATIO: f64 = 0.2;
/// Of what 32 would take on this machine's cores at the sequential pace.
const TARGET_PARALLEL: f64 = 2.0;

/// One row of the report.
#[derive(Clone, Debug, Serialize)]
struct Row {
    plugin: Plugin,
    op: Op,
    mode: Mode,
    masquerade: bool,
    p50_ms: f64,
    p99_ms: f64,
    /// Of one call, with all its processes; the agent's share counts as ours.
    cpu_ms: f64,
    /// p50 over that of ptp in the same run.
    ratio_to_ptp: Option<f64>,
    /// The most memory of the plugin's process in an ADD.
    rss_kb: Option<f64>,
    /// Of the agent with all pods.
    agent_rss_kb: Option<f64>,
    calls: usize,
}

/// All of it.
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(measured: &Measured, masquerade: bool) -> Self {
        let row = |(kind, calls): (&Kind, &Calls)| {
            let (plugin, op, mode) = *kind;
            let ptp = measured.calls.get(&(Plugin::Ptp, op, mode));
            let p50 = median(&calls.took_ms);
            Row {
                plugin,
                op,
                mode,
                masquerade,
                p50_ms: rounded(p50),
                p99_ms: rounded(percentile(&calls.took_ms, 99)),
                cpu_ms: rounded(calls.cpu_ms / calls.took_ms.len() as f64),
                ratio_to_ptp: ptp.map(|ptp| rounded(p50 / median(&ptp.took_ms))),
                rss_kb: measured.rss_kb.get(&plugin).copied(),
                agent_rss_kb: (plugin == Plugin::Espalier).then_some(measured.agent_rss_kb),
                calls: calls.took_ms.len(),
            }
        };
        let calls = measured.calls.iter();
        let rows = calls.filter(|(_, calls)| !calls.took_ms.is_empty());
        Self {
            rows: rows.map(row).collect(),
        }
    }

    /// A "!" is behind each figure of ours that misses its target.
    pub(crate) fn print(&self, reference: &Path) {
        println!("{}", machine());
        println!("reference plugins: {}", version(reference));
        println!(
            "{:<9} {:<4} {:<10} | {:>10} {:>10} {:>10} | {:>7} | {:>9}",
            "plugin", "op", "mode", "p50 ms", "p99 ms", "CPU ms", "of ptp", "RSS KB"
        );
        for row in &self.rows {
            let [p50, p99, ratio] = self
                .missed(row)
                .map(|missed| if missed { "!" } else { " " });
            println!(
                "{:<9} {:<4} {:<10} | {:>9.2}{p50} {:>9.2}{p99} {:>10.2} | {:>6}{ratio} | {:>9}",
                row.plugin.name(),
                format!("{:?}", row.op),
                format!("{:?}", row.mode),
                row.p50_ms,
                row.p99_ms,
                row.cpu_ms,
                row.ratio_to_ptp
                    .map_or(String::new(), |r| format!("{r:.2}")),
                row.rss_kb.unwrap_or(f64::NAN),
            );
        }
        let agent = self.rows.iter().find_map(|row| row.agent_rss_kb);
        if let Some(kb) = agent {
            println!("the agent's anonymous memory with all pods: {kb} KB");
        }
    }

    /// Of ours: p50, p99 and ratio.
    fn missed(&self, row: &Row) -> [bool; 3] {
        if row.plugin != Plugin::Espalier {
            return [false; 3];
        }
        if row.mode == Mode::Sequential {
            let ratio = row.ratio_to_ptp.is_some_and(|ratio| ratio > TARGET_RATIO);
            return [row.p50_ms > TARGET_MS, false, row.op == Op::Add && ratio];
        }
        let alone = |other: &&Row| {
            (other.plugin, other.op, other.mode) == (row.plugin, row.op, Mode::Sequential)
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let pace = self.rows.iter().find(alone).map_or(f64::NAN, |r| r.p50_ms);
        [
            false,
            row.p99_ms > TARGET_PARALLEL * pace * 32.0 / cores,
            false,
        ]
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let text = serde_json::to_string_pretty(&self.rows)? + "\n";
        fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
        println!("{}", file.display());
        Ok(())
    }
}

/// Without a verb a reference plugin tells its version on stderr.
fn version(folder: &Path) -> String {
    let output = Command::new(folder.join("ptp")).env_clear().output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stderr).trim().to_owned());
    text.unwrap_or_else(|error| error.to_string())
}

/// The smallest value that so many percent do not exceed (nearest rank).
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// To microseconds.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=250).map(f64::from).collect();
        assert_eq!(percentile(&values, 99), 248.0);
        assert_eq!(percentile(&[3.0, 1.0], 99), 3.0);
        assert!(percentile(&[], 99).is_nan());
    }
}
