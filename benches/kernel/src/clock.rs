//! Wall clock and CPU time of this process and of those that it ran.

use std::time::Instant;

use anyhow::Result;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// What some work took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    /// Wall clock, milliseconds.
    pub(crate) ms: f64,
    /// User and system time of this process and its children that ended, milliseconds.
    pub(crate) cpu_ms: f64,
}

/// Runs `work` and says what it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Took)> {
    let (before, began) = (cpu_ms()?, Instant::now());
    let done = work()?;
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    let cpu_ms = cpu_ms()? - before;
    Ok((done, Took { ms, cpu_ms }))
}

fn cpu_ms() -> Result<f64> {
    let mut microseconds = 0;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        microseconds += usage.user_time().num_microseconds();
        microseconds += usage.system_time().num_microseconds();
    }
    Ok(microseconds as f64 / 1000.0)
}
