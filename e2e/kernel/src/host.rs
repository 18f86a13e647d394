//! On the host: one guest per kernel, one after the other, then the report.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use espalier_guest::Guest;

use crate::cases;
use crate::guest::Plan;
use crate::matrix::{self, Case, Expected, Kernel, Set};
use crate::programs::{self, Tests};
use crate::report::{self, Outcome, Row};

/// What to run, and where things are.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Folder of fetch.sh, boot.sh and qemu.sh.
    #[arg(long, default_value = "scripts/kernel")]
    scripts: PathBuf,
    /// Folder of the binaries under test.
    #[arg(long, default_value = "target/debug")]
    bin: PathBuf,
    /// Where the report and the logs of what failed go.
    #[arg(long, default_value = "target/kernel")]
    out: PathBuf,
    /// Only these kernels.
    #[arg(long)]
    kernel: Vec<Kernel>,
    /// Only these cases: names, or the beginning of names with `*` at its end.
    #[arg(long)]
    case: Vec<String>,
    /// On every kernel its core cases only.
    #[arg(long)]
    core: bool,
    /// A test program whose tests are cases, too, GROUP::TEST: those that are ignored elsewhere, or else all.
    #[arg(long, value_name = "GROUP=PROGRAM", value_parser = programs::parse)]
    tests: Vec<Tests>,
    /// Root file system with strongSwan, for cases with a foreign gateway.
    #[arg(long)]
    strongswan: Option<PathBuf>,
    /// Folder of kube-apiserver and kubectl, for cases with an API server.
    #[arg(long)]
    kubernetes: Option<PathBuf>,
    /// Folder of CRDs and of what the chart installs.
    #[arg(long, requires = "kubernetes")]
    manifests: Option<PathBuf>,
    /// Which data plane is to be tested.
    #[arg(long, value_enum, default_value = "kernel")]
    plane: Expected,
    /// Cases at a time in a guest: they mostly wait.
    #[arg(long, default_value_t = 2)]
    lanes: usize,
    /// Guests of one processor at a time, which share the cases; default: one for each processor, two at most.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    guests: Option<u8>,
}

/// What is under test, in `--bin`.
const PROGRAMS: [&str; 4] = [
    "espalier-agent",
    "espalier-dataplane",
    "espalier-cni",
    "espalier",
];
/// Limit of a whole guest.
const GUEST: Duration = Duration::from_secs(90 * 60);

/// Runs everything and prints the table.
///
/// # Errors
/// What keeps the run from starting. Failed cases are in the exit status.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut plans = Vec::new();
    for kernel in chosen(options) {
        plans.push(plan(options, kernel)?);
    }
    ensure!(
        plans.iter().any(|plan| !plan.cases.is_empty()),
        "no case of that name for these kernels; `espalier-e2e-kernel list` prints all"
    );
    let mut rows = Vec::new();
    for plan in plans.iter().filter(|plan| !plan.cases.is_empty()) {
        rows.extend(run_guests(options, plan));
    }
    espalier_guest::write_report(&options.out.join("report.json"), &rows)?;
    println!("\n{}", report::table(&rows));
    for row in rows.iter().filter(|row| row.result == Outcome::Fail) {
        println!("{} {}: {}", row.kernel, row.case, row.detail);
    }
    println!("{}", report::summary(&rows));
    let bad = rows.iter().any(|row| row.result == Outcome::Fail);
    Ok(if bad {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn chosen(options: &Options) -> Vec<Kernel> {
    if options.kernel.is_empty() {
        vec![Kernel::UmlBookworm]
    } else {
        let all = Kernel::value_variants().iter().copied();
        all.filter(|kernel| options.kernel.contains(kernel))
            .collect()
    }
}

fn plan(options: &Options, kernel: Kernel) -> Result<Plan> {
    let folder = absolute(&options.out)?.join(kernel.name());
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let scripts = absolute(&options.scripts)?;
    let place = fetch(&scripts, kernel)?;
    let version = std::fs::read_dir(place.join("modules"))?.next();
    let version = version.context("the kernel has no modules")??.file_name();
    let own = cases::ALL
        .iter()
        .filter(|case| by_default(options, kernel, case));
    let own = own.map(|case| case.name.to_owned());
    let (mut programs, mut others) = (Vec::new(), Vec::new());
    for tests in options.tests.iter().filter(|tests| kernel.has_tests(tests)) {
        let tests = tests.find()?;
        others.extend(tests.names());
        programs.push(tests);
    }
    let wanted = |case: &String| {
        options.case.is_empty() || options.case.iter().any(|pattern| fits(case, pattern))
    };
    Ok(Plan {
        kernel: format!("{} {}", kernel.name(), version.to_string_lossy()),
        place,
        cases: own.chain(others).filter(wanted).collect(),
        bin: absolute(&options.bin)?,
        tests: programs,
        strongswan: options.strongswan.as_deref().map(absolute).transpose()?,
        kubernetes: options.kubernetes.as_deref().map(absolute).transpose()?,
        manifests: options.manifests.as_deref().map(absolute).transpose()?,
        rows: folder.join("rows.jsonl"),
        folder,
        scripts,
        expected: options.plane,
        lanes: options.lanes,
    })
}

/// What is named is run, wherever: a case that cannot run there fails.
fn by_default(options: &Options, kernel: Kernel, case: &Case) -> bool {
    let named = options.case.iter().any(|name| name == case.name);
    named || (kernel.has(case) && (!options.core || case.set != Set::Once))
}

fn fits(case: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => case.starts_with(beginning),
        None => case == pattern,
    }
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("finding {}", path.display()))
}

/// The folder of the kernel.
fn fetch(scripts: &Path, kernel: Kernel) -> Result<PathBuf> {
    let mut command = Command::new(scripts.join("fetch.sh"));
    let output = command
        .args(kernel.fetched_by())
        .stderr(std::process::Stdio::inherit());
    let output = output.output().context("starting fetch.sh")?;
    ensure!(
        output.status.success(),
        "kernel {} could not be fetched",
        kernel.name()
    );
    let said = String::from_utf8(output.stdout)?;
    Ok(said.trim().into())
}

/// Boots the guests of a plan; returns the rows that they left, in the plan's order.
fn run_guests(options: &Options, plan: &Plan) -> Vec<Row> {
    let shares = shares(plan, guests(options, plan));
    println!(
        "{}: {} cases, {} at a time",
        plan.kernel,
        plan.cases.len(),
        shares.len() * plan.lanes
    );
    let mut rows: Vec<Row> = std::thread::scope(|scope| {
        let one = |share| scope.spawn(move || run_guest(options, share));
        let guests: Vec<_> = shares.iter().map(one).collect();
        let rows = |guest: std::thread::ScopedJoinHandle<'_, Vec<Row>>| {
            guest
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        guests.into_iter().flat_map(rows).collect()
    });
    let place = |row: &Row| plan.cases.iter().position(|case| *case == row.case);
    rows.sort_by_key(place);
    rows
}

/// A guest with several processors has this machine for itself.
fn guests(options: &Options, plan: &Plan) -> usize {
    let several = plan
        .cases
        .iter()
        .any(|case| matrix::find(case).is_some_and(|case| case.set == Set::PerCpu));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    match options.guests {
        _ if several => 1,
        Some(guests) => guests.into(),
        None => processors.min(2),
    }
}

/// A plan's cases dealt out to so many guests, of which none is without one.
fn shares(plan: &Plan, guests: usize) -> Vec<Plan> {
    let share = |guest: usize| {
        let folder = plan.folder.join(format!("guest-{}", guest + 1));
        Plan {
            cases: plan
                .cases
                .iter()
                .skip(guest)
                .step_by(guests)
                .cloned()
                .collect(),
            rows: folder.join("rows.jsonl"),
            folder,
            ..plan.clone()
        }
    };
    (0..guests.min(plan.cases.len())).map(share).collect()
}

/// Boots one guest.
fn run_guest(options: &Options, plan: &Plan) -> Vec<Row> {
    let ended = boot(options, plan);
    let mut rows: Vec<Row> = espalier_guest::read(&plan.rows);
    let why = match &ended {
        Ok(()) => String::new(),
        Err(error) => format!("; {error:#}"),
    };
    // A row that the guest did not write is a failed one.
    for case in &plan.cases {
        if !rows.iter().any(|row| row.case == *case) {
            let detail = format!("no result: the guest ended before{why}");
            rows.push(Row::failed(&plan.kernel, case, detail));
        }
    }
    rows
}

fn boot(options: &Options, plan: &Plan) -> Result<()> {
    std::fs::create_dir_all(&plan.folder)?;
    let file = plan.folder.join("plan.json");
    std::fs::write(&file, serde_json::to_vec(plan)?)?;
    let programs = PROGRAMS.map(|name| plan.bin.join(name)).to_vec();
    espalier_guest::boot(&Guest {
        boot: &absolute(&options.scripts)?.join("boot.sh"),
        kernel: &plan.place,
        folder: &plan.folder,
        files: &[programs, vec![plan.scripts.clone()]].concat(),
        arguments: &["guest", &file.to_string_lossy()],
        limit: GUEST,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_share_all_cases() {
        let plan = Plan {
            cases: ["a", "b", "c"].map(str::to_owned).into(),
            ..Plan::default()
        };
        let cases = |guests| {
            shares(&plan, guests)
                .into_iter()
                .map(|share| share.cases.join(" "))
                .collect::<Vec<_>>()
        };
        assert_eq!(cases(1), ["a b c"]);
        assert_eq!(cases(2), ["a c", "b"]);
        assert_eq!(cases(8), ["a", "b", "c"]);
    }

    #[test]
    fn a_pattern_is_a_name_or_a_beginning() {
        assert!(fits("s1_flushed", "s1_*") && fits("udp", "udp") && fits("udp", "*"));
        assert!(!fits("s10", "s1_*") && !fits("udp_fallback", "udp"));
    }
}
