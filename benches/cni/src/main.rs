//! Development only: what a pod's start and end cost, beside the reference plugins in the same run, pod by pod in turn.
//!
//! ```text
//!  namespace "hub" (the node)                                         namespaces of pods
//!  this program ── espalier-cni ── agent.sock ── espalier-agent       espalier-1 …  ptp-1 …  bridge-1 …
//!                  ptp, bridge ── host-local
//! ```
//!
//! sequential: one after the other until the node has all its pods, and at the end until it has none. parallel32: of a full
//! node 32 pods end at once, and 32 others start at once. A DEL takes until the veth is gone. What the agent computes counts as
//! its plugin's.

mod call;
mod node;
mod plugin;
mod report;
mod rounds;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use espalier_bench_ike::{pki, wire::Wire};

use node::Node;
use plugin::Plugin;
use report::Report;

/// On the sandbox's private tmpfs; what is to be durable is not there.
const FOLDER: &str = "/run/bench";

/// ADD and DEL: time, CPU time and memory.
#[derive(Parser, Debug)]
#[command(name = "espalier-bench-cni")]
struct Cli {
    /// Where the report goes.
    #[arg(long, default_value = "target/bench/cni.json")]
    out: PathBuf,
    /// Our plugin; the default is beside this program.
    #[arg(long)]
    plugin: Option<PathBuf>,
    /// Folder of the reference plugins.
    #[arg(long, default_value = "/usr/lib/cni")]
    reference: PathBuf,
    /// Pods of each plugin on the node.
    #[arg(long, default_value_t = 250)]
    pods: usize,
    /// How often 32 pods end and start at once.
    #[arg(long, default_value_t = 8)]
    waves: usize,
    /// What leaves the pods' network is masqueraded: by our agent's rules, and by those that the others add for each pod.
    #[arg(long)]
    masquerade: bool,
    /// Only these.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Plugin::ALL)]
    plugins: Vec<Plugin>,
    /// Folder on a disk for leases; the default is beside the report.
    #[arg(long)]
    disk: Option<PathBuf>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    espalier_testnet::enter()?;
    let disk = disk(&cli)?;
    let ran = run(&cli, &disk);
    let _ = fs::remove_dir_all(&disk);
    ran
}

/// A fresh folder: leases are synced, and that is to cost what it costs.
fn disk(cli: &Cli) -> Result<PathBuf> {
    let beside = cli.out.parent().unwrap_or(Path::new("."));
    let folder = cli.disk.as_deref().unwrap_or(beside).join("cni-leases");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(fs::canonicalize(folder)?)
}

fn run(cli: &Cli, disk: &Path) -> Result<()> {
    let bin = std::env::current_exe()?;
    let bin = bin.parent().context("the folder of the binaries")?;
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder).with_context(|| format!("making {FOLDER}"))?;
    pki::make(folder)?;
    let wire = Wire::new()?;
    let node = Node::start(&wire.hub, bin, folder, disk, cli.masquerade)?;
    let place = plugin::Place {
        ours: cli
            .plugin
            .clone()
            .unwrap_or_else(|| bin.join("espalier-cni")),
        reference: cli.reference.clone(),
        socket: node.socket(),
        state: node.state().to_owned(),
        disk: disk.to_owned(),
        masquerade: cli.masquerade,
    };
    let plan = rounds::Plan {
        plugins: cli.plugins.clone(),
        pods: cli.pods,
        waves: cli.waves,
    };
    let measured = wire.hub.run(|| rounds::run(&plan, &place, &node))??;
    let report = Report::new(&measured, cli.masquerade);
    report.print(&cli.reference);
    report.write(&cli.out)
}
