//! Development only: what the kernel data plane, the overlay and the agent of a large mesh cost, each beside a counterpart in
//! the same run. No figure fails it; work that was not done does.
//!
//! Each part is a process of its own, in a sandbox or in a guest kernel, and leaves its rows in a file.

mod agent;
mod clock;
mod host;
mod reconcile;
mod rows;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use espalier_bench_ike::mesh;

/// The kernel data plane, the overlay, and the agent of a large mesh.
#[derive(Parser, Debug)]
#[command(name = "espalier-bench-kernel")]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand, Debug)]
enum Role {
    /// Runs the parts and writes the report.
    Run(host::Arguments),
    /// One of the benchmark's own processes.
    #[command(hide = true)]
    Part(PartArguments),
    /// The other nodes of a mesh.
    #[command(hide = true)]
    Mesh(mesh::Arguments),
}

/// What a part's process is told.
#[derive(clap::Args, Debug)]
struct PartArguments {
    /// Which.
    #[arg(value_enum)]
    part: host::Part,
    /// Where its rows go.
    #[arg(long)]
    rows: PathBuf,
    /// Folder of the binaries.
    #[arg(long)]
    bin: PathBuf,
    #[command(flatten)]
    size: host::Size,
}

fn main() -> Result<()> {
    match Cli::parse().role {
        Role::Run(arguments) => host::run(&arguments),
        Role::Mesh(arguments) => mesh::run(&arguments),
        Role::Part(arguments) => {
            espalier_testnet::enter()?;
            let rows = rows::Writer::new(&arguments.rows);
            match arguments.part {
                host::Part::Reconcile => reconcile::run(&arguments.size, &rows),
                host::Part::Agent => agent::run(&arguments.bin, &arguments.size, &rows),
            }
        }
    }
}
