//! The command line.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Signs the certificates of Espalier's nodes, sums up their status and keeps the not-ready taint.
#[derive(Debug, Parser)]
#[command(
    name = "espalier-controller",
    version,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Log filter: a level, or a list such as `info,espalier_controller=debug`.
    #[arg(long, env = "ESPALIER_LOG", default_value = "info", global = true)]
    pub(crate) log: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Takes Espalier off the cluster: stops it on all nodes, waits until they are clean, removes what it made.
    Uninstall(crate::uninstall::UninstallArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Namespace of the agents, the CA's Secret, the trust ConfigMap and the Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "espalier-system")]
    namespace: String,
    /// Address and port of /metrics, /healthz and /readyz.
    #[arg(long, default_value = "0.0.0.0:9809")]
    pub(crate) http: SocketAddr,
    /// Taint (effect NoSchedule) that a node has while it cannot enforce the policy; empty: none.
    #[arg(long, default_value = "node.espalier.dev/not-ready")]
    taint: String,
    /// Which CA signs.
    #[arg(long, value_enum, default_value_t = CaMode::Generate)]
    ca: CaMode,
    /// Validity of nodes' certificates in days; agents renew at half of it.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
    certificate_days: u32,
}

/// Which CA signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CaMode {
    /// One that is made here once, in the Secret `espalier-ca`, and rotated here.
    Generate,
    /// The one in the Secret `espalier-ca`, made and replaced by others.
    Secret,
    /// None: others sign.
    None,
}

/// What the leader needs to know.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) namespace: String,
    pub(crate) taint: Option<String>,
    pub(crate) ca: CaMode,
    pub(crate) days: u32,
}

impl RunArgs {
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            namespace: self.namespace.clone(),
            taint: Some(self.taint.clone()).filter(|key| !key.is_empty()),
            ca: self.ca,
            days: self.certificate_days,
        }
    }
}

impl Settings {
    /// Of objects that are made here.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let labels = [
            ("app.kubernetes.io/name", "espalier"),
            ("app.kubernetes.io/component", "controller"),
        ];
        labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }
}
