//! Development only: the real binaries over the IPsec of real kernels. `make kernel-test`, docs/kernel-tests.md.
//!
//! ```text
//!  host::run ─ plan ─▶ guest::run (one per kernel) ─▶ case::run (one process and sandbox per case) ─ row ─▶ report
//! ```

mod case;
mod cases;
mod control;
mod ground;
mod guest;
mod host;
mod load;
mod matrix;
mod programs;
mod report;
mod site;
mod tap;

use std::process::ExitCode;

use clap::Parser as _;

#[derive(clap::Parser)]
#[command(about = "Espalier over the IPsec of real kernels")]
enum Command {
    /// Runs all cases, or those that are chosen, in guest kernels; writes the report.
    Run(host::Options),
    /// Prints the cases.
    List,
    /// Inside a guest: runs the plan.
    #[command(hide = true)]
    Guest(guest::Options),
    /// Inside a guest: runs one case.
    #[command(hide = true)]
    Case(case::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Run(options) => host::run(&options),
        Command::List => {
            print!("{}", matrix::list());
            Ok(ExitCode::SUCCESS)
        }
        Command::Guest(options) => guest::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Case(options) => case::run(&options),
    }
}
