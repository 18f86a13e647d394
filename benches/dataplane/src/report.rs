//! The report: one row per measurement, with the spread of its rounds.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use espalier_bench_ike::measure::{machine, median};
use serde::Serialize;

/// What is compared with it.
const PLAIN: &str = "plain-veth";

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) mtu: u16,
    pub(crate) test: String,
    pub(crate) streams: usize,
    pub(crate) name: String,
}

/// One row.
#[derive(Clone, Debug, Serialize)]
struct Row {
    /// Which path.
    name: String,
    test: String,
    /// Of the underlay, bytes.
    mtu: u16,
    /// 0 where it says nothing.
    streams: usize,
    /// The median of the rounds.
    value: f64,
    unit: String,
    /// By the same of the plain path.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_to_plain: Option<f64>,
    /// CPU time of both daemons by bytes carried.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_s_per_gb: Option<f64>,
    /// Over all rounds.
    min: f64,
    max: f64,
}

/// Values of all rounds.
#[derive(Debug, Default)]
pub(crate) struct Samples(BTreeMap<Key, Values>);

#[derive(Debug, Default)]
struct Values {
    unit: String,
    values: Vec<f64>,
    cpu: Vec<f64>,
}

impl Samples {
    pub(crate) fn add(&mut self, key: Key, unit: &str, value: f64, cpu: Option<f64>) {
        let shown = cpu.map_or_else(String::new, |cpu| format!(", {cpu:.2} CPU-s/GB"));
        eprintln!("  {} ({}): {value:.4} {unit}{shown}", key.test, key.streams);
        let values = self.0.entry(key).or_default();
        unit.clone_into(&mut values.unit);
        values.values.push(value);
        values.cpu.extend(cpu);
    }

    fn rows(&self) -> Vec<Row> {
        let row = |(key, values): (&Key, &Values)| {
            let plain = Key {
                name: PLAIN.to_owned(),
                ..key.clone()
            };
            let value = median(&values.values);
            let plain = self.0.get(&plain).map(|plain| median(&plain.values));
            let ends = values.values.iter().copied();
            Row {
                name: key.name.clone(),
                test: key.test.clone(),
                mtu: key.mtu,
                streams: key.streams,
                value: rounded(value),
                unit: values.unit.clone(),
                ratio_to_plain: plain.map(|plain| rounded(value / plain)),
                cpu_s_per_gb: (!values.cpu.is_empty()).then(|| rounded(median(&values.cpu))),
                min: rounded(ends.clone().fold(f64::INFINITY, f64::min)),
                max: rounded(ends.fold(f64::NEG_INFINITY, f64::max)),
            }
        };
        self.0.iter().map(row).collect()
    }
}

/// Prints the table and writes the file.
pub(crate) fn write(file: &Path, samples: &Samples) -> Result<()> {
    let rows = samples.rows();
    println!("\nmachine: {}\n", machine());
    println!("| MTU | test | streams | path | median | spread | by plain | CPU-s/GB |");
    println!("|---|---|---|---|---|---|---|---|");
    let or_none = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    for row in &rows {
        println!(
            "| {} | {} | {} | {} | {} {} | {} to {} | {} | {} |",
            row.mtu,
            row.test,
            row.streams,
            row.name,
            row.value,
            row.unit,
            row.min,
            row.max,
            or_none(row.ratio_to_plain),
            or_none(row.cpu_s_per_gb)
        );
    }
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_string_pretty(&rows)? + "\n";
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// Three figures say enough.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = 2 - value.abs().log10().floor() as i32;
    let scale = 10f64.powi(digits.clamp(0, 6));
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_compared_with_the_plain_path_of_the_same_test() {
        let mut samples = Samples::default();
        let key = |name: &str, mtu| Key {
            mtu,
            test: "tcp".to_owned(),
            streams: 1,
            name: name.to_owned(),
        };
        for value in [20.0, 10.0, 19.0] {
            samples.add(key(PLAIN, 1500), "Gbit/s", value, None);
        }
        samples.add(key("tunnel", 1500), "Gbit/s", 9.5, Some(1.25));
        samples.add(key("tunnel", 9000), "Gbit/s", 12.0, None);
        let rows = samples.rows();
        let row = |name: &str, mtu| {
            let found = rows.iter().find(|row| row.name == name && row.mtu == mtu);
            found.map(|row| (row.value, row.ratio_to_plain, row.cpu_s_per_gb))
        };
        assert_eq!(row(PLAIN, 1500), Some((19.0, Some(1.0), None)));
        assert_eq!(row("tunnel", 1500), Some((9.5, Some(0.5), Some(1.25))));
        assert_eq!(row("tunnel", 9000), Some((12.0, None, None)));
        assert_eq!((rows[0].min, rows[0].max), (10.0, 20.0));
    }
}
