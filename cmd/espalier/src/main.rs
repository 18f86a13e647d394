//! `espalier`: the command line, for a workstation or a node; as `kubectl-espalier` a plugin of kubectl.

mod bundle;
mod cleanup;
mod cluster;
mod demo;
mod install_cni;
mod mesh;
mod model;
mod overview;
mod peers;
mod pki;
mod place;
mod status;
mod upgrade_dataplane;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

/// Nobody could be asked, or something else went wrong; 1 is an answer. Wrong arguments have it, too.
const FAILED: u8 = 2;

/// Encrypted pod networking: looks at a node or a whole cluster, checks it, and shows it.
#[derive(Debug, Parser)]
#[command(name = "espalier", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a mesh of several nodes on this machine and proves what it promises.
    Demo(demo::DemoArgs),
    /// Shows this node's peers, modes, SAs, counters and problems, or all nodes of a cluster.
    Status(status::StatusArgs),
    /// Shows every pair of nodes of a cluster, as both ends see it, or this node's peers.
    Peers(peers::PeersArgs),
    /// Checks that no pod packet leaves this node, or any node of a cluster, in clear: wire, kernel's state, probes.
    Verify(verify::VerifyArgs),
    /// Puts what helps to find a fault into a .tar.gz: status, logs, metrics, objects, kernel; no keys, no Secrets.
    SupportBundle(bundle::BundleArgs),
    /// Prints what `support-bundle` wants to know of this node.
    #[command(hide = true)]
    NodeReport(bundle::NodeReportArgs),
    /// Makes the CA, certificates and PSKs of a mesh without Kubernetes.
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// Copies the CNI plugin into the container runtime's folder.
    InstallCni(install_cni::InstallCniArgs),
    /// Replaces the running data plane by another program in place: nothing is lost.
    UpgradeDataplane(upgrade_dataplane::UpgradeArgs),
    /// Removes everything that Espalier made on this host, when nothing of it runs any more.
    CleanupNode(cleanup::CleanupArgs),
}

fn main() -> ExitCode {
    let mut command = Cli::command();
    if place::is_plugin() {
        command = command.bin_name("kubectl espalier");
    }
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:?}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::SupportBundle(args) => bundle::run(&args),
        Command::NodeReport(args) => bundle::report(&args).map(done),
        Command::Pki(command) => pki::run(&command).map(done),
        Command::InstallCni(args) => install_cni::run(&args).map(done),
        Command::UpgradeDataplane(args) => upgrade_dataplane::run(&args).map(done),
        Command::CleanupNode(args) => cleanup::run(&args).map(done),
    }
}
