//! The agent's answer to "what is the state of the mesh?".

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use espalier_rpc::agent::mesh_client::MeshClient;
use espalier_rpc::agent::{StatusReply, StatusRequest};

/// An agent that needs longer is stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where sockets are when nobody says otherwise.
pub(crate) const RUN_DIR: &str = "/run/espalier";

/// Where the agent listens.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct AgentSocket {
    /// Folder with the sockets of this node's Espalier processes; default: /run/espalier.
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// The agent's socket, when it is not RUN_DIR/agent.sock.
    #[arg(long)]
    socket: Option<PathBuf>,
}

impl AgentSocket {
    pub(crate) fn path(&self) -> PathBuf {
        match &self.socket {
            Some(socket) => socket.clone(),
            None => {
                let folder = self.run_dir.as_deref();
                folder.unwrap_or(Path::new(RUN_DIR)).join("agent.sock")
            }
        }
    }

    /// Whether an option names it.
    pub(crate) fn is_given(&self) -> bool {
        self.socket.is_some() || self.run_dir.is_some()
    }
}

/// Asks the agent behind `socket`.
pub(crate) fn status(socket: &Path) -> Result<StatusReply> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(ask(socket))
}

async fn ask(socket: &Path) -> Result<StatusReply> {
    let mut client = MeshClient::new(espalier_rpc::connect_unix(socket)?);
    match tokio::time::timeout(PATIENCE, client.status(StatusRequest {})).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(anyhow!("{}", status.message())),
        Err(_) => Err(anyhow!(
            "the agent behind {} did not answer within {} s; look at its log",
            socket.display(),
            PATIENCE.as_secs()
        )),
    }
}
