//! What came out: `target/bench/ike.json` and a table.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use espalier_bench_ike::measure::{machine, median};
use espalier_bench_ike::plan::{Case, Side};

use crate::{charon, ours};

/// Wanted at most: memory per SA.
const TARGET_RSS_KB: f64 = 4.0;
/// Wanted at least: charon's CPU time by ours.
const TARGET_RATIO: f64 = 3.0;

/// One round of everything.
pub(crate) struct Sample {
    /// What was negotiated.
    pub(crate) case: Case,
    /// How often.
    pub(crate) sas: usize,
    /// The hub was initiator.
    pub(crate) initiator: ours::Round,
    /// The hub was responder.
    pub(crate) responder: ours::Round,
    /// charon did the same.
    pub(crate) charon: Option<charon::Round>,
}

impl Sample {
    fn ours(&self, side: Side) -> &ours::Round {
        match side {
            Side::Initiator => &self.initiator,
            Side::Responder => &self.responder,
        }
    }

    /// The spokes that had `side`.
    fn spokes(&self, side: Side) -> &ours::Cost {
        &self.ours(side.other()).spokes
    }

    fn charon(&self, side: Side) -> Option<&ours::Cost> {
        let round = self.charon.as_ref()?;
        Some(match side {
            Side::Initiator => &round.initiator,
            Side::Responder => &round.responder,
        })
    }
}

/// A row of the report: medians over the rounds.
#[derive(Debug, Serialize)]
struct Row {
    case: &'static str,
    sas: usize,
    side: Side,
    cpu_ms: f64,
    rate_per_s: f64,
    rss_kb_per_sa: f64,
    charon_cpu_ms: Option<f64>,
    ratio_to_charon: Option<f64>,
}

/// All samples of a run.
pub(crate) struct Report {
    samples: Vec<Sample>,
    charon: Option<String>,
}

impl Report {
    /// With the version of the counterpart.
    pub(crate) fn new(charon: Option<&str>) -> Self {
        Self {
            samples: Vec::new(),
            charon: charon.map(ToOwned::to_owned),
        }
    }

    /// Adds a round.
    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Writes the JSON array.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let rows: Vec<Row> = self
            .groups()
            .map(|(group, side)| row(&group, side))
            .collect();
        let json = serde_json::to_string_pretty(&rows)? + "\n";
        fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
        Ok(())
    }

    /// The samples of each case and number, for each side.
    fn groups(&self) -> impl Iterator<Item = (Vec<&Sample>, Side)> {
        let mut keys: Vec<(Case, usize)> = Vec::new();
        for sample in &self.samples {
            if !keys.contains(&(sample.case, sample.sas)) {
                keys.push((sample.case, sample.sas));
            }
        }
        keys.into_iter().flat_map(|(case, sas)| {
            let fits = move |sample: &&Sample| (sample.case, sample.sas) == (case, sas);
            let group: Vec<&Sample> = self.samples.iter().filter(fits).collect();
            Side::ALL.map(|side| (group.clone(), side))
        })
    }

    /// The table, with the targets beside the figures; `!` marks what misses its target.
    pub(crate) fn print(&self) {
        println!("\nmachine: {}", machine());
        let charon = self.charon.as_deref().unwrap_or("not run");
        println!("counterpart: {charon}, load-tester with fake kernel");
        println!(
            "CPU: user and system time per handshake; memory: anonymous resident memory per established SA. Median (least to \
             most) of all rounds;\nthe side that is measured is one endpoint with all peers, spokes are as many endpoints in \
             one process. ! misses the target.\n"
        );
        println!(
            "{:<16} {:>5} {:<9} | {:>22} {:>6} | {:>7} {:>6} | {:>7} | {:>6} {:>6} | {:>20} {:>7} {:>6} | {:>7} {:>6}",
            "case",
            "SAs",
            "side",
            "CPU ms",
            "target",
            "mem KB",
            "target",
            "rate/s",
            "spokes",
            "mem KB",
            "charon CPU ms",
            "mem KB",
            "rate/s",
            "ratio",
            "target"
        );
        for (group, side) in self.groups() {
            print_row(&group, side);
        }
        println!();
        self.print_notes();
    }

    fn print_notes(&self) {
        for case in Case::ALL {
            let of = |get: &dyn Fn(&Sample) -> Option<f64>| {
                let fits = self.samples.iter().filter(|sample| sample.case == case);
                median(&fits.filter_map(get).collect::<Vec<_>>())
            };
            if !of(&|sample| Some(sample.responder.datagrams)).is_nan() {
                println!(
                    "{case}: {:.1} datagrams per pair; {:.2} KB per configured peer, not counted above; not counted for charon: \
                     {:.3} and {:.3} ms for certificates that its load-tester issues (initiator, responder)",
                    of(&|sample| Some(sample.responder.datagrams)),
                    of(&|sample| Some(sample.responder.peer_kb)),
                    of(&|sample| Some(sample.charon?.issuing_ms[0])),
                    of(&|sample| Some(sample.charon?.issuing_ms[1])),
                );
            }
        }
    }
}

fn medians(group: &[&Sample], get: impl Fn(&Sample) -> Option<f64>) -> Option<(f64, f64, f64)> {
    let values: Vec<f64> = group.iter().filter_map(|sample| get(sample)).collect();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    (!values.is_empty()).then(|| (median(&values), least, most))
}

fn row(group: &[&Sample], side: Side) -> Row {
    let middle =
        |get: &dyn Fn(&Sample) -> Option<f64>| medians(group, get).map(|(median, ..)| median);
    let (case, sas) = group
        .first()
        .map_or(("", 0), |sample| (sample.case.name(), sample.sas));
    let cpu_ms = middle(&|sample| Some(sample.ours(side).hub.cpu_ms)).unwrap_or(f64::NAN);
    let charon_cpu_ms = middle(&|sample| Some(sample.charon(side)?.cpu_ms));
    Row {
        case,
        sas,
        side,
        cpu_ms: rounded(cpu_ms, 4),
        rate_per_s: rounded(
            middle(&|sample| Some(sample.sas as f64 / sample.ours(side).seconds))
                .unwrap_or(f64::NAN),
            0,
        ),
        rss_kb_per_sa: rounded(
            middle(&|sample| Some(sample.ours(side).hub.rss_kb)).unwrap_or(f64::NAN),
            2,
        ),
        charon_cpu_ms: charon_cpu_ms.map(|ms| rounded(ms, 4)),
        ratio_to_charon: charon_cpu_ms.map(|ms| rounded(ms / cpu_ms, 2)),
    }
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

fn print_row(group: &[&Sample], side: Side) {
    let row = row(group, side);
    let target = group
        .first()
        .map_or(f64::NAN, |sample| sample.case.target_cpu_ms());
    let spread = |get: &dyn Fn(&Sample) -> Option<f64>| {
        medians(group, get).map_or_else(String::new, |(median, least, most)| {
            format!("{median:.3} ({least:.3}-{most:.3})")
        })
    };
    let middle = |get: &dyn Fn(&Sample) -> Option<f64>, digits: usize| {
        medians(group, get).map_or_else(String::new, |(median, ..)| format!("{median:.digits$}"))
    };
    let miss = |missed: bool| if missed { "!" } else { " " };
    let ratio = row
        .ratio_to_charon
        .map_or_else(String::new, |ratio| format!("{ratio:.1}x"));
    println!(
        "{:<16} {:>5} {:<9} | {:>21}{} {:>6} | {:>6.2}{} {:>6} | {:>7.0} | {:>6} {:>6} | {:>20} {:>7} {:>6} | {:>6}{} {:>6}",
        row.case,
        row.sas,
        side.name(),
        spread(&|sample| Some(sample.ours(side).hub.cpu_ms)),
        miss(row.cpu_ms > target),
        target,
        row.rss_kb_per_sa,
        miss(row.rss_kb_per_sa > TARGET_RSS_KB),
        TARGET_RSS_KB,
        row.rate_per_s,
        middle(&|sample| Some(sample.spokes(side).cpu_ms), 3),
        middle(&|sample| Some(sample.spokes(side).rss_kb), 1),
        spread(&|sample| Some(sample.charon(side)?.cpu_ms)),
        middle(&|sample| Some(sample.charon(side)?.rss_kb), 1),
        middle(
            &|sample| Some(sample.sas as f64 / sample.charon?.seconds),
            0
        ),
        ratio,
        miss(
            row.ratio_to_charon
                .is_some_and(|ratio| ratio < TARGET_RATIO)
        ),
        format!("{TARGET_RATIO}x"),
    );
}
