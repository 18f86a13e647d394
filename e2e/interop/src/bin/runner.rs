//! `espalier-interop`: runs the cases; see docs/interop.md.

use std::process::ExitCode;

use clap::Parser as _;
use espalier_interop::{fixture, guest, host};

#[derive(clap::Parser)]
#[command(about = "The IKE engine against strongSwan and Libreswan")]
enum Command {
    /// Runs all cases, or those that are chosen, in guest kernels; writes the report.
    Run(host::Options),
    /// Makes a fixture for the engine's tests out of a kept case.
    Fixture(fixture::Options),
    /// Inside a guest: runs the cases of one foreign implementation.
    #[command(hide = true)]
    Guest(guest::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Run(options) => host::run(&options),
        Command::Fixture(options) => fixture::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Guest(options) => guest::run(&options).map(|()| ExitCode::SUCCESS),
    }
}
