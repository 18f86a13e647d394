//! Who is asked: the agent of this host, by its socket, or the agents of a cluster, through its API server.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use crate::mesh::AgentSocket;

/// Of kubectl's plugins: this program under this name is one.
const PLUGIN: &str = "kubectl-espalier";

/// Whom to ask. Without any of these: this host's agent where its socket is there, else the cluster of the kubeconfig.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PlaceArgs {
    #[command(flatten)]
    pub(crate) agent: AgentSocket,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

/// A cluster, and what of it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Ask the agents of a cluster, also on a host that has an agent itself.
    #[arg(long)]
    pub(crate) cluster: bool,
    /// The kubeconfig; default: KUBECONFIG, then ~/.kube/config.
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; default: its current one.
    #[arg(long)]
    pub(crate) context: Option<String>,
    /// Namespace of Espalier's pods; default: espalier-system.
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Only this node; may be given again. Default: all.
    #[arg(long = "node")]
    pub(crate) nodes: Vec<String>,
    /// Seconds that a node has for its answer.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: Option<u64>,
}

impl ClusterArgs {
    fn is_wanted(&self) -> bool {
        self.cluster
            || self.kubeconfig.is_some()
            || self.context.is_some()
            || self.namespace.is_some()
            || !self.nodes.is_empty()
    }
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The agent behind this socket.
    Here(PathBuf),
    /// The agents of the cluster.
    Cluster,
}

impl PlaceArgs {
    /// Decides, and says on standard error what it is.
    ///
    /// # Errors
    /// Options for both, or neither is there.
    pub(crate) fn choose(&self) -> Result<Place> {
        let place = self.decide(&Surroundings {
            is_plugin: is_plugin(),
            socket: self.agent.path().exists(),
            kubeconfig: has_kubeconfig(),
        })?;
        if let Place::Here(socket) = &place {
            eprintln!("asking the agent of this host ({})", socket.display());
        }
        Ok(place)
    }

    fn decide(&self, around: &Surroundings) -> Result<Place> {
        let (here, cluster) = (self.agent.is_given(), self.cluster.is_wanted());
        let socket = self.agent.path();
        Ok(match () {
            () if here && cluster => bail!(
                "--socket and --run-dir ask the agent of this host, --cluster, --kubeconfig, --context, --namespace and --node those of a cluster: give one kind"
            ),
            () if here => Place::Here(socket),
            () if cluster || around.is_plugin => Place::Cluster,
            () if around.socket => Place::Here(socket),
            () if around.kubeconfig => Place::Cluster,
            () => bail!(
                "nobody to ask: no agent runs on this host ({} is not there), and there is no kubeconfig (KUBECONFIG, ~/.kube/config); start the agent, or give --kubeconfig",
                socket.display()
            ),
        })
    }
}

/// What decides where no option does.
#[derive(Clone, Copy, Debug, Default)]
struct Surroundings {
    is_plugin: bool,
    socket: bool,
    kubeconfig: bool,
}

/// Whether this runs as `kubectl espalier`.
pub(crate) fn is_plugin() -> bool {
    let name = std::env::args_os().next();
    let name = name.as_deref().map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name == PLUGIN)
}

fn has_kubeconfig() -> bool {
    let named = std::env::var_os("KUBECONFIG").is_some_and(|list| !list.is_empty());
    let home = std::env::home_dir().map(|home| home.join(".kube/config"));
    named || home.is_some_and(|file| file.exists())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        place: PlaceArgs,
    }

    fn decided(line: &str, around: Surroundings) -> Result<Place> {
        let words = std::iter::once("espalier").chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().place.decide(&around)
    }

    #[test]
    fn options_decide_and_else_what_is_there() {
        let nothing = Surroundings::default();
        let here = |path: &str| Place::Here(PathBuf::from(path));
        let node = Surroundings {
            socket: true,
            kubeconfig: true,
            ..nothing
        };
        let workstation = Surroundings {
            kubeconfig: true,
            ..nothing
        };
        let plugin = Surroundings {
            is_plugin: true,
            ..node
        };
        for (line, around, expected) in [
            ("", node, here("/run/espalier/agent.sock")),
            ("", workstation, Place::Cluster),
            ("", plugin, Place::Cluster),
            ("--cluster", node, Place::Cluster),
            ("--node a --node b", node, Place::Cluster),
            ("--context x", nothing, Place::Cluster),
            ("--socket /x.sock", plugin, here("/x.sock")),
            ("--run-dir /r", workstation, here("/r/agent.sock")),
            // How long to wait says nothing of whom to ask.
            ("--timeout 3", node, here("/run/espalier/agent.sock")),
        ] {
            assert_eq!(
                decided(line, around).unwrap(),
                expected,
                "{line:?} {around:?}"
            );
        }
        for (line, words) in [
            ("", "nobody to ask"),
            ("--socket /x --node a", "give one kind"),
        ] {
            let error = decided(line, nothing).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
