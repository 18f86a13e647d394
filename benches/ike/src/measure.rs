//! What a process costs, by what the kernel counts.

use std::fs;
use std::ops::Sub;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Nothing was sent for this long: the handshakes are over, or wait for a retransmission.
const QUIET: Duration = Duration::from_millis(700);
const LOOK: Duration = Duration::from_millis(50);

/// Of one process since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time.
    pub cpu_ms: f64,
    /// Anonymous resident memory (`RssAnon`): without the pages of the program's own files.
    pub rss_kb: f64,
}

impl Usage {
    /// Of the process `pid`.
    ///
    /// # Errors
    /// There is no such process, or the kernel says something else than expected.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = read(pid, "stat")?;
        // Fields 14 and 15 (proc_pid_stat(5)); the name in field 2 may hold blanks.
        let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
        let fields: Vec<&str> = after_name.unwrap_or_default().split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok());
        let (Some(user), Some(system)) = (ticks(11), ticks(12)) else {
            bail!("expected times in /proc/{pid}/stat, found {stat:?}");
        };
        let status = read(pid, "status")?;
        let anon = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let anon = anon.and_then(|value| value.split_whitespace().next()?.parse().ok());
        Ok(Self {
            cpu_ms: (user + system) * 1000.0 / ticks_per_second()?,
            rss_kb: anon.context("expected RssAnon in /proc/PID/status")?,
        })
    }
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            cpu_ms: self.cpu_ms - before.cpu_ms,
            rss_kb: self.rss_kb - before.rss_kb,
        }
    }
}

fn ticks_per_second() -> Result<f64> {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
    Ok(ticks.context("the kernel's clock ticks")? as f64)
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| format!("reading {path}"))
}

/// Waits until the network namespace of `pid` has sent no UDP datagram for a while; returns when the last one was sent.
///
/// # Errors
/// It goes on after `deadline`, or the process is gone.
pub fn quiet(pid: u32, deadline: Instant) -> Result<Instant> {
    let (mut seen, mut last) = (sent(pid)?, Instant::now());
    while last.elapsed() < QUIET {
        if Instant::now() > deadline {
            bail!("handshakes still go on after the time limit");
        }
        std::thread::sleep(LOOK);
        let now = sent(pid)?;
        if now != seen {
            (seen, last) = (now, Instant::now());
        }
    }
    Ok(last)
}

/// UDP datagrams sent in the network namespace of `pid`.
///
/// # Errors
/// There is no such process.
pub fn sent(pid: u32) -> Result<u64> {
    let snmp = read(pid, "net/snmp")?;
    let mut udp = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (
        udp.next().unwrap_or_default(),
        udp.next().unwrap_or_default(),
    );
    let value = names
        .split_whitespace()
        .zip(values.split_whitespace())
        .find_map(|(name, value)| (name == "OutDatagrams").then(|| value.parse().ok())?);
    value.with_context(|| format!("expected OutDatagrams in /proc/{pid}/net/snmp"))
}

/// Processor, cores, memory, kernel.
#[must_use]
pub fn machine() -> String {
    let file = |path| fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or("?", |(_, value)| value.trim()).to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{}, {cores} cores, {} memory, Linux {}",
        value(&file("/proc/cpuinfo"), "model name"),
        value(&file("/proc/meminfo"), "MemTotal"),
        file("/proc/sys/kernel/osrelease").trim(),
    )
}

/// The middle one, or the mean of the two in the middle.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let at = |n: usize| sorted.get(n).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 {
        at(middle)
    } else {
        (at(middle.wrapping_sub(1)) + at(middle)) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_own_process_costs_something() {
        let own = std::process::id();
        let before = Usage::of(own).unwrap();
        let block = vec![1u8; 8 << 20];
        let after = Usage::of(own).unwrap();
        assert!(before.rss_kb > 0.0);
        assert!(
            (after - before).rss_kb >= 8000.0,
            "{block:?}",
            block = block.len()
        );
        assert!(sent(own).is_ok());
    }
}
