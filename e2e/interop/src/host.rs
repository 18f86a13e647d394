//! On the host: one guest kernel per foreign implementation, then the report.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use espalier_ike::crypto::Prf;

use crate::command::run as run_line;
use crate::guest::Plan;
use crate::kdf::{self, FUNCTIONS};
use crate::matrix::{Auth, Case, Foreign, Item, Role, items, name};
use crate::pki;
use crate::report::{self, Outcome, Row};

/// What to run, and where things are.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Folder with the root file systems, made by scripts/interop/fetch.sh.
    #[arg(long)]
    cache: PathBuf,
    /// Folder of the guest kernel, as scripts/kernel/fetch.sh prints it.
    #[arg(long)]
    kernel: PathBuf,
    /// Program that runs a script as the guest's init: scripts/kernel/boot.sh.
    #[arg(long)]
    boot: PathBuf,
    /// Where the report goes.
    #[arg(long, default_value = "target/interop/report.json")]
    report: PathBuf,
    /// Only these foreign implementations.
    #[arg(long)]
    peer: Vec<Foreign>,
    /// Only these cases.
    #[arg(long)]
    case: Vec<Case>,
    /// Only these roles of ours.
    #[arg(long)]
    role: Vec<Role>,
    /// Only these ways to authenticate.
    #[arg(long)]
    auth: Vec<Auth>,
    /// Keep logs, captures and keys of the run in this folder.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Cases at a time in each guest.
    #[arg(long, default_value_t = 4)]
    lanes: usize,
}

/// Further names that make a certificate larger than a datagram.
const ALIASES: usize = 40;
/// Limit of a whole guest.
const GUEST: Duration = Duration::from_secs(20 * 60);

/// Runs everything and prints the table.
///
/// # Errors
/// What keeps the run from starting. Failed cases are in the exit status.
pub fn run(options: &Options) -> Result<ExitCode> {
    let temporary = tempfile::tempdir()?;
    let folder = options
        .keep
        .clone()
        .unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    let pki_folder = folder.join("pki");
    pki::make(&pki_folder, 0).context("certificates")?;
    pki::make(&pki_folder.join(pki::LARGE), ALIASES).context("large certificates")?;
    let psk = hex::encode(random()?);
    let mut plans = Vec::new();
    for foreign in chosen(&options.peer, &Foreign::ALL) {
        plans.push(plan(options, &folder, foreign, &psk)?);
    }
    let mut rows = run_guests(options, &plans);
    rows.extend(
        plans
            .iter()
            .filter(|_| options.case.is_empty())
            .flat_map(kdf_rows),
    );
    espalier_guest::write_report(&options.report, &rows)?;
    print!("{}", report::table(&rows));
    for row in rows.iter().filter(|row| row.result != Outcome::Pass) {
        let Row {
            peer,
            version,
            role,
            auth,
            case,
            detail,
            ..
        } = row;
        println!("{peer} {version} {case} {role} {auth}: {detail}");
    }
    println!("{}", report::summary(&rows));
    let bad = rows.iter().any(|row| row.result == Outcome::Fail);
    Ok(if bad || rows.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// As many guests at a time as there are processors: each has one.
fn run_guests(options: &Options, plans: &[Plan]) -> Vec<Row> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut rows = Vec::new();
        while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
            rows.push((plan.foreign, complete(plan, guest(options, plan))));
        }
        rows
    };
    let mut rows: Vec<(Foreign, Vec<Row>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        let rows = workers.into_iter().filter_map(|worker| worker.join().ok());
        rows.flatten().collect()
    });
    rows.sort_by_key(|(foreign, _)| *foreign);
    rows.into_iter().flat_map(|(_, rows)| rows).collect()
}

fn chosen<T: Copy>(wanted: &[T], all: &[T]) -> Vec<T> {
    if wanted.is_empty() {
        all.to_vec()
    } else {
        wanted.to_vec()
    }
}

fn random() -> Result<[u8; 32]> {
    use std::io::Read as _;
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn plan(options: &Options, folder: &Path, foreign: Foreign, psk: &str) -> Result<Plan> {
    let root = options.cache.join(foreign.root_name());
    let version = run_line(&format!(
        "dpkg-query --admindir={} -W -f ${{Version}} {}",
        root.join("var/lib/dpkg").display(),
        foreign.package()
    ))?;
    let folder = folder.join(foreign.root_name());
    std::fs::create_dir_all(&folder)?;
    let wanted = |item: &Item| {
        chosen(&options.case, Case::value_variants()).contains(&item.case)
            && chosen(&options.role, Role::value_variants()).contains(&item.role)
            && chosen(&options.auth, Auth::value_variants()).contains(&item.auth)
    };
    Ok(Plan {
        foreign,
        items: items(foreign).into_iter().filter(wanted).collect(),
        version: version
            .trim()
            .split(['-', '+'])
            .next()
            .unwrap_or_default()
            .to_owned(),
        root,
        rows: folder.join("rows.jsonl"),
        pki: folder.with_file_name("pki"),
        folder,
        psk: psk.to_owned(),
        lanes: options.lanes,
    })
}

/// Boots a guest for a plan; returns the rows that it left.
fn guest(options: &Options, plan: &Plan) -> Vec<Row> {
    if let Err(error) = boot(options, plan) {
        eprintln!("guest for {}: {error:#}", plan.version);
    }
    espalier_guest::read(&plan.rows)
}

fn boot(options: &Options, plan: &Plan) -> Result<()> {
    // Rows of an earlier run in the same folder are not this one's.
    let _none = std::fs::remove_file(&plan.rows);
    let file = plan.folder.join("plan.json");
    std::fs::write(&file, serde_json::to_vec(plan)?)?;
    espalier_guest::boot(&espalier_guest::Guest {
        boot: &options.boot,
        kernel: &options.kernel,
        folder: &plan.folder,
        files: &[],
        arguments: &["guest", &file.to_string_lossy()],
        limit: GUEST,
    })
}

/// The key schedule beside Libreswan's: neither role nor authentication is in it.
fn kdf_rows(plan: &Plan) -> Vec<Row> {
    let of_libreswan = plan.foreign.peer() == "Libreswan";
    let rows = FUNCTIONS.iter().filter(|_| of_libreswan);
    let row = |(case, hash, prf): &(&str, &str, Prf)| {
        let compared = kdf::compare(&plan.root, hash, *prf);
        let (result, detail) = match compared {
            Ok(detail) => (Outcome::Pass, detail),
            Err(error) => (Outcome::Fail, format!("{error:#}")),
        };
        Row {
            peer: plan.foreign.peer().into(),
            version: plan.version.clone(),
            role: "none".into(),
            auth: "none".into(),
            case: (*case).into(),
            result,
            detail,
        }
    };
    rows.map(row).collect()
}

/// A row that the guest did not write is a failed one.
fn complete(plan: &Plan, mut rows: Vec<Row>) -> Vec<Row> {
    for item in &plan.items {
        let (case, role, auth) = (name(item.case), name(item.role), name(item.auth));
        let is = |row: &Row| (&row.case, &row.role, &row.auth) == (&case, &role, &auth);
        if !rows.iter().any(is) {
            rows.push(Row {
                peer: item.foreign.peer().into(),
                version: plan.version.clone(),
                role,
                auth,
                case,
                result: Outcome::Fail,
                detail: "no result: the guest ended before".into(),
            });
        }
    }
    rows
}
