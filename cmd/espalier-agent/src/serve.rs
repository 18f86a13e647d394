//! gRPC for the CNI plugin and the command line, on one unix socket.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use espalier_rpc::agent::cni_server::CniServer;
use espalier_rpc::agent::mesh_server::{Mesh as MeshService, MeshServer};
use espalier_rpc::agent::{StatusReply, StatusRequest};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

use crate::mesh::Query;
use crate::pods::Pods;

/// Serves until `stop`.
pub(crate) async fn until(
    stop: impl Future<Output = ()> + Send + 'static,
    run_dir: &Path,
    pods: Arc<Pods>,
    queries: mpsc::Sender<Query>,
) -> Result<()> {
    let router = tonic::transport::Server::builder()
        .add_service(CniServer::from_arc(pods.clone()))
        .add_service(MeshServer::new(Mesh { queries, pods }));
    let socket = run_dir.join("agent.sock");
    espalier_rpc::serve_unix(&socket, router, stop)
        .await
        .with_context(|| format!("socket {}", socket.display()))
}

struct Mesh {
    queries: mpsc::Sender<Query>,
    pods: Arc<Pods>,
}

#[tonic::async_trait]
impl MeshService for Mesh {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let gone = || Status::unavailable("the agent is stopping; ask again in a moment");
        let (reply, answer) = oneshot::channel();
        self.queries
            .send(Query::Status(reply))
            .await
            .map_err(|_| gone())?;
        let mut status = answer.await.map_err(|_| gone())?;
        status.leases = self.pods.leases();
        Ok(Response::new(status))
    }
}
