//! Inside a guest: each case in a process of its own that is ended in time.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use espalier_guest::Daemon;

use crate::matrix::{self, Expected};
use crate::programs::Tests;
use crate::report::{Measured, Outcome, Row};

/// What the host tells.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// JSON file of [`Plan`].
    plan: PathBuf,
}

/// What is to be done in this guest.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Plan {
    /// Its name and version.
    pub(crate) kernel: String,
    /// Its folder.
    pub(crate) place: PathBuf,
    pub(crate) cases: Vec<String>,
    pub(crate) bin: PathBuf,
    pub(crate) tests: Vec<Tests>,
    /// Root file system with strongSwan.
    pub(crate) strongswan: Option<PathBuf>,
    /// Folder of kube-apiserver and kubectl.
    pub(crate) kubernetes: Option<PathBuf>,
    /// Folder of CRDs and of what the chart installs.
    pub(crate) manifests: Option<PathBuf>,
    /// Of this guest.
    pub(crate) folder: PathBuf,
    /// JSON lines.
    pub(crate) rows: PathBuf,
    pub(crate) scripts: PathBuf,
    pub(crate) expected: Expected,
    pub(crate) lanes: usize,
}

/// A packet every so many milliseconds in every flow: the guest has one slow processor.
const INTERVAL: &str = "10";
/// Limit of a test of a program; those of `e2e/` have one of their own below this.
const TEST_LIMIT: Duration = Duration::from_secs(480);

/// Works the plan off; rows go to its file.
///
/// # Errors
/// An unreadable plan. A case that fails is a row.
pub(crate) fn run(options: &Options) -> Result<()> {
    let plan = std::fs::read(&options.plan)
        .with_context(|| format!("reading {}", options.plan.display()))?;
    let plan: Plan = serde_json::from_slice(&plan)?;
    let is_alone = |name: &String| matrix::find(name).is_some_and(|case| case.alone);
    let (alone, together): (Vec<_>, Vec<_>) = plan.cases.iter().partition(|name| is_alone(name));
    in_lanes(&plan, &together, plan.lanes);
    in_lanes(&plan, &alone, 1);
    Ok(())
}

fn in_lanes(plan: &Plan, cases: &[&String], lanes: usize) {
    let next = AtomicUsize::new(0);
    let file = Mutex::new(());
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let row =
                one(plan, case).unwrap_or_else(|error| failed(plan, case, format!("{error:#}")));
            let _one_writer = file.lock();
            say(&row, start.elapsed());
            if let Err(error) = espalier_guest::append(&plan.rows, &row) {
                eprintln!("{error:#}");
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(work);
        }
    });
}

fn say(row: &Row, took: Duration) {
    let result = match row.result {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
    };
    let (case, detail, seconds) = (&row.case, &row.detail, took.as_secs());
    println!("{result} {case} ({seconds} s): {detail}");
}

fn failed(plan: &Plan, case: &str, detail: String) -> Row {
    Row::failed(&plan.kernel, case, detail)
}

fn one(plan: &Plan, name: &str) -> Result<Row> {
    let folder = plan.folder.join(name.replace("::", "-"));
    std::fs::create_dir_all(&folder)?;
    let row = folder.join("row.jsonl");
    let (mut command, limit) = match matrix::find(name) {
        Some(case) => {
            let mut command = Command::new(std::env::current_exe()?);
            command
                .args(["case", name])
                .arg(plan.folder.join("plan.json"))
                .arg(&folder);
            (command, case.limit())
        }
        None => (test(plan, name)?, TEST_LIMIT),
    };
    command
        .env(espalier_e2e::BINARIES, &plan.bin)
        .env(espalier_e2e::INTERVAL, INTERVAL);
    // Below, nobody reads from the console.
    let output = folder.join("output.txt");
    let ended = Daemon::logged(&mut command, &output)?.wait(limit);
    let rows: Vec<Row> = espalier_guest::read(&row);
    match (rows.into_iter().next(), ended) {
        (Some(row), _) => Ok(row),
        (None, Ok(well)) if matrix::find(name).is_none() => Ok(test_row(plan, name, well)),
        (None, Ok(_)) => Ok(failed(
            plan,
            name,
            format!("no result; {}", output.display()),
        )),
        (None, Err(error)) => Ok(failed(plan, name, format!("{error:#}"))),
    }
}

fn test(plan: &Plan, name: &str) -> Result<Command> {
    let mut programs = plan.tests.iter();
    let found = programs.find_map(|tests| tests.command(name));
    found.with_context(|| format!("no test program has {name}"))
}

fn test_row(plan: &Plan, name: &str, well: bool) -> Row {
    let output = plan.folder.join(name.replace("::", "-")).join("output.txt");
    let text = std::fs::read_to_string(&output).unwrap_or_default();
    if well && text.contains("1 passed") {
        return Row {
            result: Outcome::Pass,
            measured: Measured::default(),
            ..failed(plan, name, "a test program's".to_owned())
        };
    }
    let panic = text
        .lines()
        .skip_while(|line| !line.contains("failed in its sandbox"));
    let line = panic
        .skip(1)
        .find(|line| !line.trim().is_empty() && !line.starts_with("running"));
    let said = line.unwrap_or("did not pass").trim();
    failed(plan, name, format!("{said}; {}", output.display()))
}
