//! One case, in a sandbox of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::ground::Ground;
use crate::guest::Plan;
use crate::matrix;
use crate::report::{Measured, Outcome, Row};

/// Which, and what is around it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    name: String,
    /// JSON file of the guest's plan.
    plan: PathBuf,
    /// For its row and, if it fails, its logs.
    folder: PathBuf,
}

/// Runs it and writes its row.
///
/// # Errors
/// No such case, no sandbox, or the row cannot be written.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let case = matrix::find(&options.name).context("no such case")?;
    espalier_testnet::enter()?;
    let plan: Plan = serde_json::from_slice(&std::fs::read(&options.plan)?)?;
    let (mut measured, mut detail) = (Measured::default(), String::new());
    let verdict = espalier_e2e::run(&options.folder, |bench| {
        let mut ground = Ground {
            bench,
            plan: &plan,
            measured: &mut measured,
        };
        detail = (case.run)(&mut ground)?;
        Ok(())
    });
    let result = match verdict {
        Ok(()) => Outcome::Pass,
        Err(failure) => {
            eprintln!("{}\n{}", failure.error, failure.logs);
            detail = shortened(&failure.error);
            Outcome::Fail
        }
    };
    let row = Row {
        kernel: plan.kernel.clone(),
        case: options.name.clone(),
        result,
        measured,
        detail,
    };
    espalier_guest::append(&options.folder.join("row.jsonl"), &row)?;
    Ok(ExitCode::SUCCESS)
}

/// What fits into a report: the whole is in the output.
fn shortened(error: &str) -> String {
    const LINES: usize = 3;
    const LETTERS: usize = 400;
    let lines: Vec<&str> = error.lines().take(LINES).collect();
    let text = lines.join(" ");
    match text.char_indices().nth(LETTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
