//! Development only: what the kernel data plane, the overlay and the agent of a large mesh cost, each beside a counterpart in
//! the same run. No figure fails it; work that was not done does.
//!
//! ```text
//!  host::run ─┬─ part reconcile, part agent        processes in sandboxes of this machine
//!             └─ scripts/kernel/boot.sh ─▶ part wire, part installs     in a guest kernel, which has ESP
//!  each leaves rows in a file ─▶ target/bench/kernel.json
//! ```

mod agent;
mod clock;
mod host;
mod installs;
mod reconcile;
mod rows;
mod wire;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use espalier_bench_ike::mesh;

use host::{Part, Size};

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
    /// One form of packets on the wire.
    #[command(hide = true)]
    Wire(wire::Arguments),
    /// The other nodes of a mesh.
    #[command(hide = true)]
    Mesh(mesh::Arguments),
}

/// What a part's process is told.
#[derive(clap::Args, Debug)]
struct PartArguments {
    /// Which.
    #[arg(value_enum)]
    part: Part,
    /// Where its rows go.
    #[arg(long)]
    rows: PathBuf,
    /// Folder of the binaries.
    #[arg(long)]
    bin: PathBuf,
    /// Folder of wireguard-go and wg.
    #[arg(long)]
    wireguard: Option<PathBuf>,
    #[command(flatten)]
    size: Size,
}

fn main() -> Result<()> {
    match Cli::parse().role {
        Role::Run(arguments) => host::run(&arguments),
        Role::Mesh(arguments) => mesh::run(&arguments),
        Role::Wire(arguments) => wire::one(&arguments),
        Role::Part(arguments) => part(&arguments),
    }
}

fn part(arguments: &PartArguments) -> Result<()> {
    let (bin, size) = (&arguments.bin, &arguments.size);
    // Its forms have a sandbox each.
    if arguments.part == Part::Wire {
        let wireguard = arguments.wireguard.as_deref();
        return wire::run(&arguments.rows, bin, wireguard, &size.forms);
    }
    espalier_testnet::enter()?;
    let rows = rows::Writer::new(&arguments.rows);
    match arguments.part {
        Part::Reconcile => reconcile::run(size, &rows),
        Part::Agent => agent::run(bin, size, &rows),
        Part::Installs => installs::run(bin, size, &rows),
        Part::Wire => Ok(()),
    }
}
