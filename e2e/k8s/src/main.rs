//! Development only: Espalier on a real Kubernetes cluster. `make e2e`, `make e2e-kind`, docs/e2e.md.
//!
//! ```text
//!  host::run ── cgroups ─▶ inside (own PID, mount and network namespace) ─▶ Namespaces: a cluster ─┐
//!  host::run ─────────────▶ Kind: clusters of Docker's ──────────────────────────────────────────▶ suite::run ─▶ report
//! ```

mod cases;
mod cgroup;
mod control;
mod ground;
mod harness;
mod host;
mod images;
mod kind;
mod load;
mod machine;
mod namespaces;
mod oci;
mod pki;
mod pods;
mod programs;
mod report;
mod suite;

use std::process::ExitCode;

use clap::Parser as _;

#[derive(clap::Parser)]
#[command(about = "Espalier on a real Kubernetes cluster")]
enum Command {
    /// Makes a cluster, runs all cases or those that are chosen, writes the report, removes the cluster.
    Run(suite::Options),
    /// Prints the cases.
    List,
    /// In a sandbox of its own: the cluster and the cases.
    #[command(hide = true)]
    Inside(host::Inside),
    /// A cluster of kind and the cases.
    #[command(hide = true)]
    OnKind(suite::Options),
    /// A node's mounts and containerd.
    #[command(hide = true)]
    Node(machine::Holder),
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Run(options) => host::run(&options),
        Command::List => {
            print!("{}", cases::list());
            Ok(ExitCode::SUCCESS)
        }
        Command::Inside(inside) => host::inside(&inside),
        Command::OnKind(options) => host::on_kind(&options),
        Command::Node(holder) => machine::hold(&holder),
    }
}
