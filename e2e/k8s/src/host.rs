//! Outside of the sandbox: control groups, the interrupt, and what is left to remove at the end.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Groups;
use crate::kind::{self, Kind};
use crate::namespaces::{Namespaces, Shape};
use crate::programs::Programs;
use crate::suite::{self, On, Options};

/// What the inner run is told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Inside {
    /// Control group of the nodes' groups.
    cgroup: String,
    #[command(flatten)]
    options: Options,
}

/// Runs the suite on the cluster that was asked for.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    suite::check(options)?;
    match options.on {
        On::Kind => {
            let status = child(&[kind::INSIDE]);
            kind::remove(&options.logs());
            status
        }
        On::Namespaces => in_sandbox(options),
    }
}

/// Makes a cluster of kind and runs the suite; who started this removes it.
pub(crate) fn on_kind(options: &Options) -> Result<ExitCode> {
    prctl::set_pdeathsig(Signal::SIGTERM).context("asking for a signal at the end")?;
    let image = options.kind_image.as_deref();
    let mut kind = Kind::start(options.nodes, image, &options.logs())?;
    suite::run(options, &mut kind)
}

/// In the sandbox: makes the cluster and runs the suite.
pub(crate) fn inside(inside: &Inside) -> Result<ExitCode> {
    // The outer process may be killed: then this one ends, and with it the sandbox.
    if !espalier_testnet::inside() {
        prctl::set_pdeathsig(Signal::SIGTERM).context("asking for a signal at the end")?;
    }
    espalier_testnet::enter()?;
    let options = &inside.options;
    let shape = Shape {
        nodes: options.nodes,
        programs: Programs::new(options.kubernetes.as_deref().unwrap_or(Path::new("")))?,
        proxy_mode: options.proxy_mode,
        logs: options.logs(),
        cgroup: inside.cgroup.clone(),
    };
    let mut cluster = Namespaces::start(&shape)?;
    suite::run(options, &mut cluster)
}

fn in_sandbox(options: &Options) -> Result<ExitCode> {
    let nodes: Vec<String> = (1..=options.nodes).map(espalier_e2e::name).collect();
    let groups = Groups::new(&nodes)?;
    let status = child(&["inside", groups.name()]);
    let removed = groups.remove();
    let status = status?;
    removed?;
    Ok(status)
}

/// This program again, with the same arguments behind these; ends when an interrupt has ended it.
fn child(arguments: &[&str]) -> Result<ExitCode> {
    let program: PathBuf = std::env::current_exe().context("finding this program's own path")?;
    let mut command = Command::new(program);
    command.args(arguments);
    command.args(std::env::args_os().skip(2));
    let mut child = command.spawn().context("starting the inner run")?;
    // Not before: children inherit the mask.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;
    let inner = Pid::from_raw(i32::try_from(child.id())?);
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            let _ = kill(inner, Signal::SIGTERM);
        }
    });
    let status = child.wait().context("waiting for the inner run")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
