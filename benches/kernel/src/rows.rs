//! The report's rows: a part appends them to a file, the host collects them.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use espalier_bench_ike::measure::median;
use serde::{Deserialize, Serialize};

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What was measured, with its size.
    pub(crate) mode: String,
    /// Which of its figures.
    pub(crate) metric: String,
    /// The median, where there were several rounds.
    pub(crate) value: f64,
    /// `ms`, `B`, `1/s`, `KB`; empty for counts and ratios.
    pub(crate) unit: String,
    /// Over all rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) min: Option<f64>,
    /// Over all rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max: Option<f64>,
}

/// Where a part leaves its rows: in a file, so that they are kept whatever becomes of its process.
#[derive(Debug)]
pub(crate) struct Writer {
    file: PathBuf,
}

impl Writer {
    pub(crate) fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
        }
    }

    /// Adds the median of the rounds' values; nothing where there are none.
    pub(crate) fn add(&self, mode: &str, metric: &str, unit: &str, values: &[f64]) -> Result<()> {
        let several = values.len() > 1;
        let row = Row {
            mode: mode.to_owned(),
            metric: metric.to_owned(),
            value: rounded(median(values)),
            unit: unit.to_owned(),
            min: several.then(|| rounded(values.iter().copied().fold(f64::INFINITY, f64::min))),
            max: several.then(|| rounded(values.iter().copied().fold(f64::NEG_INFINITY, f64::max))),
        };
        if values.is_empty() {
            return Ok(());
        }
        eprintln!("  {}", line(&row));
        let text = serde_json::to_string(&row)? + "\n";
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.file);
        let mut file = file.with_context(|| format!("opening {}", self.file.display()))?;
        file.write_all(text.as_bytes()).context("writing a row")
    }
}

/// The rows of such a file; none where there is no file. A line that was not finished is passed over.
pub(crate) fn read(file: &Path) -> Vec<Row> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let rows = text.lines().map(serde_json::from_str);
    rows.filter_map(Result::ok).collect()
}

/// Writes all rows as one JSON array.
pub(crate) fn write(file: &Path, rows: &[Row]) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_string_pretty(rows)? + "\n";
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    println!("{}", file.display());
    Ok(())
}

/// The table's line.
pub(crate) fn line(row: &Row) -> String {
    let spread = row.min.zip(row.max);
    let spread = spread.map_or_else(String::new, |(min, max)| format!(" ({min} to {max})"));
    format!(
        "{:<34} {:<34} {:>12} {}{spread}",
        row.mode, row.metric, row.value, row.unit
    )
}

/// Four figures say enough.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = 3 - value.abs().log10().floor() as i32;
    let scale = 10f64.powi(digits.clamp(0, 6));
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_with_their_spread() {
        let file = std::env::temp_dir().join(format!("espalier-rows-{}", std::process::id()));
        let rows = Writer::new(&file);
        rows.add("overlay-1000", "apply", "ms", &[3.0, 1.0, 2.0])
            .unwrap();
        rows.add("overlay-1000", "writes", "", &[12.0]).unwrap();
        rows.add("overlay-1000", "none", "", &[]).unwrap();
        let back = read(&file);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(back.len(), 2);
        assert_eq!(
            (back[0].value, back[0].min, back[0].max),
            (2.0, Some(1.0), Some(3.0))
        );
        assert_eq!((back[1].value, back[1].min), (12.0, None));
    }

    #[test]
    fn four_figures_are_kept_and_whole_numbers_whole() {
        for (value, kept) in [
            (1.234_567, 1.235),
            (123_456.7, 123_457.0),
            (0.012_345_6, 0.012_35),
        ] {
            assert!((rounded(value) - kept).abs() < 1e-9, "{value}");
        }
    }
}
