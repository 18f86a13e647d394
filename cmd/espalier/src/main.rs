//! `espalier`: the command line, for a workstation or a node.

mod cleanup;
mod demo;
mod install_cni;
mod mesh;
mod pki;
mod status;
mod upgrade_dataplane;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Encrypted pod networking: looks at a node, checks it, and shows it.
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
    /// Shows this node's peers, modes, SAs, counters and problems.
    Status(status::StatusArgs),
    /// Checks that no pod packet leaves this node in clear, on the wire and in the kernel's state.
    Verify(verify::VerifyArgs),
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

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Status(args) => status::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Verify(args) => verify::run(&args),
        Command::Pki(command) => pki::run(&command).map(|()| ExitCode::SUCCESS),
        Command::InstallCni(args) => install_cni::run(&args).map(|()| ExitCode::SUCCESS),
        Command::UpgradeDataplane(args) => {
            upgrade_dataplane::run(&args).map(|()| ExitCode::SUCCESS)
        }
        Command::CleanupNode(args) => cleanup::run(&args).map(|()| ExitCode::SUCCESS),
    }
}
