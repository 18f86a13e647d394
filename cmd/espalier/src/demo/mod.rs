//! `espalier demo`: a mesh of several nodes on this machine, by the real binaries, and proof of what it promises.
//!
//! ```text
//!   sandbox (espalier-testnet)
//!   ┌ node-1 ─────────────────┐  ┌ node-2 … ┐   ┌ gateway ┐
//!   │ agent, data plane       │  │           │   │ default │
//!   │ pod-1  pod-2 (CNI ADD)  │  │           │   │ route   │
//!   └────────┬ eth0 ──────────┘  └─────┬─────┘   └───┬─────┘
//!        ════╧══════════ bridge ═══════╧═════════════╧═══    a capture on every port, one in the gateway
//! ```

mod board;
mod fault_steps;
mod flow;
mod leftovers;
mod life_steps;
mod mesh_steps;
mod node;
mod packet;
mod plan;
mod pod;
mod report;
mod secrets;
mod watch;
mod world;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use espalier_testnet::{Privilege, enter, entered_with, inside};

use node::Shared;
use world::World;

const PROGRAMS: [&str; 3] = ["espalier-agent", "espalier-dataplane", "espalier-cni"];
/// The sandbox's own `/run`.
const ROOT: &str = "/run/demo";

/// Options of `espalier demo`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DemoArgs {
    /// How many nodes; one more is added and removed while it runs.
    #[arg(long, env = "NODES", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=30))]
    nodes: u8,
    /// Where the measurements go, as JSON; the logs go to a folder beside it.
    #[arg(long, default_value = "target/demo/report.json")]
    report: PathBuf,
    /// How long each observation takes.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

/// Success only when every claim holds.
pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode> {
    let bin_dir = bin_dir()?;
    let logs = prepare_target(&args.report)?;
    enter()?;
    if !inside() {
        bail!("the sandbox was not entered");
    }
    check_tun()?;
    let shared = Shared {
        bin_dir,
        root: PathBuf::from(ROOT),
        pki: Path::new(ROOT).join("pki"),
        logs,
    };
    let mut world = World::new(args.nodes, args.seconds, shared)?;
    let how = match entered_with() {
        Some(Privilege::UserNamespace) => "without root, in an unprivileged user namespace",
        _ => "as root, in namespaces of its own",
    };
    world
        .board
        .note(&format!("{} nodes on this machine, {how}", args.nodes));
    world.run();
    conclude(&mut world, &args.report)
}

/// Writes the report, prints the table, and the logs' ends when something failed.
fn conclude(world: &mut World, report: &Path) -> Result<ExitCode> {
    world.report.duration_s = (world.board.seconds() * 10.0).round() / 10.0;
    world.report.write(report)?;
    println!("\n{}", world.board.table());
    let broken: Vec<_> = world.board.broken().map(str::to_owned).collect();
    println!(
        "{:.1} s; report: {}",
        world.report.duration_s,
        report.display()
    );
    if broken.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("\n{} claims do not hold:", broken.len());
    for text in &broken {
        println!("  - {text}");
    }
    for log in world.logs_of_interest() {
        println!("\nlast lines of {}:", log.display());
        for line in last_lines(&log, 12) {
            println!("  {line}");
        }
    }
    println!("\nall logs: {}", world.shared.logs.display());
    Ok(ExitCode::FAILURE)
}

/// The folder of this program, which must hold the others.
fn bin_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program's path")?;
    let dir = own.parent().context("this program has no folder")?;
    for program in PROGRAMS {
        if !dir.join(program).exists() {
            bail!(
                "expected {program} beside {}, found none: build all of it with `cargo build --workspace` or `make build`",
                own.display()
            );
        }
    }
    Ok(dir.to_owned())
}

/// The userspace data plane needs the device; said here once instead of by every node.
fn check_tun() -> Result<()> {
    const TUN: &str = "/dev/net/tun";
    let opened = fs::File::options().read(true).write(true).open(TUN);
    let remedy = match opened.as_ref().map_err(std::io::Error::kind) {
        Ok(_) => return Ok(()),
        Err(ErrorKind::PermissionDenied) => {
            "run as root, or let users open it: chmod 666 /dev/net/tun"
        }
        Err(_) => "load the module (modprobe tun); in a container, pass the device in",
    };
    opened
        .map(drop)
        .with_context(|| format!("expected to open {TUN}: {remedy}"))
}

/// Makes the report's folder and an empty folder for the logs in it; returns the latter, absolute.
fn prepare_target(report: &Path) -> Result<PathBuf> {
    let dir = match report.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let logs = dir.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("creating {}", logs.display()))?;
    for entry in fs::read_dir(&logs)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    fs::canonicalize(&logs).context("the logs' folder")
}

fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines
        .iter()
        .skip(from)
        .map(|line| (*line).to_owned())
        .collect()
}
