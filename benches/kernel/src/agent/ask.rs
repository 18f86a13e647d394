//! Asks an agent for its status.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use espalier_rpc::agent::mesh_client::MeshClient;
use espalier_rpc::agent::{PeerStatus, StatusReply, StatusRequest};

/// What the agent at `socket` says.
pub(crate) fn ask(socket: PathBuf) -> Result<StatusReply> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    runtime.block_on(async {
        let mut client = MeshClient::new(espalier_rpc::connect_unix(socket)?);
        let reply = client.status(StatusRequest {}).await;
        let reply = reply.map_err(|status| anyhow!("{}", status.message()))?;
        Ok(reply.into_inner())
    })
}

/// The pair encrypts and refuses clear packets.
pub(crate) fn encrypted(peer: &PeerStatus) -> bool {
    peer.path == "Encrypted" && peer.enforced && !peer.accepts_clear
}
