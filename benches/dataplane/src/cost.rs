//! What processes cost, by what the kernel counts.

use std::fs;

use anyhow::{Context, Result};

/// CPU time of all threads of a process that run now, in seconds, by the scheduler's nanoseconds.
pub(crate) fn cpu(pid: u32) -> Result<f64> {
    let folder = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&folder).with_context(|| folder.clone())?;
    let mut nanoseconds = 0.0;
    for thread in threads {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let first = text.split_whitespace().next().unwrap_or_default();
        nanoseconds += first.parse::<f64>().with_context(|| text.clone())?;
    }
    Ok(nanoseconds / 1e9)
}

/// Resident memory of a process, KB.
pub(crate) fn rss_kb(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok())
        .with_context(|| format!("expected VmRSS in {path}"))
}
