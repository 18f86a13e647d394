//! The whole run: each part in a process of its own, then the report.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use espalier_bench_ike::measure::machine;

use crate::rows;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The overlay's objects in the kernel, in a namespace of this machine.
    Reconcile,
    /// The agent with all the nodes of a large mesh, in a namespace of this machine.
    Agent,
}

impl Part {
    const ALL: [Self; 2] = [Self::Reconcile, Self::Agent];

    fn name(self) -> &'static str {
        match self {
            Self::Reconcile => "reconcile",
            Self::Agent => "agent",
        }
    }
}

/// How much of it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Size {
    /// Numbers of peers.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000])]
    pub(crate) peers: Vec<usize>,
    /// How often what is short is measured; the medians count.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// How long an agent that has nothing to do is watched.
    #[arg(long, default_value_t = 60)]
    pub(crate) steady_seconds: u64,
}

impl Size {
    fn arguments(&self) -> Vec<String> {
        let peers: Vec<String> = self.peers.iter().map(ToString::to_string).collect();
        let words = [
            ("--peers", peers.join(",")),
            ("--rounds", self.rounds.to_string()),
            ("--steady-seconds", self.steady_seconds.to_string()),
        ];
        let words = words.into_iter();
        words.flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }
}

/// What the run is told.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Where the report goes.
    #[arg(long, default_value = "target/bench/kernel.json")]
    out: PathBuf,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Part::ALL)]
    only: Vec<Part>,
    #[command(flatten)]
    size: Size,
}

/// Runs the parts, prints the table and writes the report.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let folder = arguments.out.with_extension("parts");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let folder = folder.canonicalize()?;
    let mut all = Vec::new();
    for part in &arguments.only {
        let file = folder.join(format!("{}.jsonl", part.name()));
        let _none = std::fs::remove_file(&file);
        eprintln!("{}", part.name());
        run_part(*part, &arguments.size, &file)?;
        all.extend(rows::read(&file));
    }
    println!("\nmachine: {}\n", machine());
    for row in &all {
        println!("{}", rows::line(row));
    }
    rows::write(&arguments.out, &all)
}

fn run_part(part: Part, size: &Size, file: &Path) -> Result<()> {
    let program = std::env::current_exe()?;
    let bin = program.parent().context("this program's folder")?;
    let mut command = Command::new(&program);
    command.args(["part", part.name(), "--rows"]).arg(file);
    command.arg("--bin").arg(bin).args(size.arguments());
    let status = command.status().context("starting a part")?;
    if !status.success() {
        bail!("{}: {status}", part.name());
    }
    Ok(())
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
