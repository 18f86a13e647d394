//! Results as JSON lines, and the report that they become.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Appends one row: what a guest leaves behind even if it dies.
///
/// # Errors
/// Those of the file system.
pub fn append(file: &Path, row: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(row)?;
    line.push('\n');
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    file.write_all(line.as_bytes()).context("writing a row")
}

/// The rows of such a file; none where there is no file. A line that a guest did not finish is passed over.
#[must_use]
pub fn read<T: DeserializeOwned>(file: &Path) -> Vec<T> {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let rows = text.lines().map(serde_json::from_str);
    rows.filter_map(Result::ok).collect()
}

/// Writes all rows as one JSON array.
///
/// # Errors
/// Those of the file system.
pub fn write_report(file: &Path, rows: &[impl Serialize]) -> Result<()> {
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(file, serde_json::to_vec_pretty(rows)?)
        .with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_last_line_loses_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rows");
        append(&file, &"first").unwrap();
        let mut text = std::fs::read_to_string(&file).unwrap();
        text.push_str("\"seco");
        std::fs::write(&file, text).unwrap();
        assert_eq!(read::<String>(&file), ["first"]);
        assert!(read::<String>(&dir.path().join("none")).is_empty());
    }
}
