//! Inside a guest kernel: the cases of one foreign implementation, several at a time, since they mostly wait.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::cases;
use crate::foreign::Place;
use crate::matrix::{Foreign, Item, name};
use crate::report::{Outcome, Row};

/// What the host tells.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// JSON file of [`Plan`].
    plan: PathBuf,
}

/// What is to be done in this guest.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Plan {
    pub(crate) foreign: Foreign,
    pub(crate) items: Vec<Item>,
    pub(crate) version: String,
    /// Root file system of the foreign implementation.
    pub(crate) root: PathBuf,
    /// Of this guest.
    pub(crate) folder: PathBuf,
    pub(crate) pki: PathBuf,
    pub(crate) psk: String,
    pub(crate) lanes: usize,
    /// JSON lines.
    pub(crate) rows: PathBuf,
}

/// Works the plan off; rows go to its file.
///
/// # Errors
/// An unreadable plan. A case that fails is a row.
pub fn run(options: &Options) -> Result<()> {
    let plan = std::fs::read(&options.plan)
        .with_context(|| format!("reading {}", options.plan.display()))?;
    let plan: Plan = serde_json::from_slice(&plan)?;
    let next = AtomicUsize::new(0);
    let file = Mutex::new(());
    std::thread::scope(|scope| {
        for _ in 0..plan.lanes {
            scope.spawn(|| {
                while let Some((at, item)) = take(&next, &plan.items) {
                    let row = one(&plan, item, at);
                    let _one_writer = file.lock();
                    if let Err(error) = espalier_guest::append(&plan.rows, &row) {
                        eprintln!("{error:#}");
                    }
                }
            });
        }
    });
    Ok(())
}

fn take(next: &AtomicUsize, items: &[Item]) -> Option<(usize, Item)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    items.get(at).map(|item| (at, *item))
}

fn one(plan: &Plan, item: Item, at: usize) -> Row {
    let start = Instant::now();
    let (case, role, auth) = (name(item.case), name(item.role), name(item.auth));
    let folder = plan.folder.join(format!("{case}-{role}-{auth}"));
    let place = Place {
        foreign: item.foreign,
        root: plan.root.clone(),
        folder: folder.clone(),
        pki: plan.pki.clone(),
        namespace: String::new(),
        psk: plan.psk.clone(),
    };
    let verdict = prepare(&folder).and_then(|()| cases::run(item, &place, &format!("i{at}")));
    let (result, detail) = verdict.unwrap_or_else(|error| (Outcome::Fail, format!("{error:#}")));
    let peer = item.foreign.peer().to_owned();
    let seconds = start.elapsed().as_secs();
    println!(
        "{} {peer} {} {case} {role} {auth} ({seconds} s): {detail}",
        name_of(result),
        plan.version
    );
    Row {
        peer,
        version: plan.version.clone(),
        role,
        auth,
        case,
        result,
        detail,
    }
}

fn name_of(result: Outcome) -> &'static str {
    match result {
        Outcome::Pass => "pass      ",
        Outcome::PeerLimit => "peer-limit",
        Outcome::Fail => "FAIL      ",
    }
}

/// Empty, whatever an earlier run left there.
fn prepare(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))
}
