//! `espalier-agent`: the per-node agent.

mod args;
mod cluster;
mod cni_conf;
mod counters;
mod credentials;
mod mesh;
mod news;
mod pages;
mod pods;
mod serve;
mod upgrade;

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser as _;
use espalier_api::FolderSource;
use espalier_ike::{Config, Endpoint, Identity};
use espalier_ike_io::{IkeIo, OsRng};
use espalier_overlay::Overlay;
use espalier_rpc::DataplaneClient;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info};

use args::Args;
use cluster::Cluster;
use counters::Counters;
use credentials::KeyFiles;
use mesh::{Mesh, NodeFacts, Parts};
use pages::Pages;

/// Handshakes need much more memory than the SAs that they make. When a whole mesh has connected at once, the C library's
/// allocator cannot give the difference back, this one does (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The allocator asks for huge pages and gives back what rests: after each pause the kernel would clear 2 MB for a thread that needs some KB
/// (docs/cni.md).
fn without_huge_pages() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        info!(%error, "huge pages stay as they are");
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let args = Args::parse();
    espalier_telemetry::init("espalier-agent", &args.log)?;
    without_huge_pages();
    info!(
        node = args.node,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    std::fs::create_dir_all(&args.run_dir)
        .with_context(|| format!("--run-dir {}", args.run_dir.display()))?;

    let cluster = match args.kubernetes {
        true => Some(Cluster::join(&args).await?),
        false => None,
    };
    let folder = args
        .manifests
        .as_ref()
        .map(FolderSource::start)
        .transpose()?;
    let snapshots = cluster.as_ref().map(|cluster| cluster.source.snapshots());
    let snapshots = snapshots.or_else(|| folder.map(|folder| folder.snapshots()));
    let snapshots = snapshots.context("give --kubernetes or --manifests")?;
    let (facts, facts_seen) = watch::channel(NodeFacts::default());
    let (queries, queries_in) = mpsc::channel(16);
    let (plane_facts, plane_facts_in) = mpsc::channel(64);
    let plane = DataplaneClient::new(args.run_dir.join("dataplane.sock"))?;
    tokio::spawn(mesh::follow(plane.clone(), plane_facts));

    let counters = Arc::new(Counters::default());
    let obstacles = cluster
        .as_ref()
        .and_then(|cluster| cluster.enrolment.clone());
    let conf = args.cni_conf().map(|conf| conf.start(facts_seen.clone()));
    let carried = args.carried(&plane).map(upgrade::Carried::start);
    let (strays, strays_seen) = watch::channel(Vec::new());
    let complaints = obstacles.into_iter().chain(conf).chain(carried);
    let complaints = complaints.chain([strays_seen]).collect();
    let mesh = Mesh::new(Parts {
        node: args.node.clone(),
        keys: KeyFiles::new(&args),
        endpoint: endpoint(&args)?,
        rekeying: args.rekeying(),
        ways: args.ways(),
        io: IkeIo::bind(&args.run_dir)?,
        overlay: Overlay::open()?,
        plane: Arc::new(plane),
        plane_facts: plane_facts_in,
        snapshots,
        queries: queries_in,
        facts,
        counters: counters.clone(),
        complaints,
        run_dir: args.run_dir.clone(),
    });
    let (stop_mesh, mesh_stops) = oneshot::channel();
    let (alive, mesh_ended) = oneshot::channel();
    let running = tokio::spawn(async move {
        let _alive: oneshot::Sender<()> = alive;
        mesh.run(mesh_stops).await
    });
    let pods = pods::Pods::open(args.state_dir.clone(), facts_seen.clone());
    tokio::spawn(pods.clone().complain_of_strays(strays));
    if let Some(address) = args.http {
        let pages = Pages {
            queries: queries.clone(),
            facts: facts_seen,
            counters,
            pods: pods.clone(),
        };
        let bound = espalier_telemetry::http::serve(address, Arc::new(pages)).await;
        let bound = bound.with_context(|| format!("--http {address}"))?;
        info!(%bound, "serving /metrics, /healthz and /readyz");
    }
    if let Some(cluster) = cluster {
        cluster.tell(args.node.clone(), queries.clone());
    }
    let stop = first(espalier_telemetry::stop_signal()?, mesh_ended);
    serve::until(stop, &args.run_dir, pods, queries).await?;

    // What is in the kernel and the data plane stays: pods go on.
    let _ = stop_mesh.send(());
    running.await??;
    info!("stopped; traffic goes on");
    Ok(())
}

fn endpoint(args: &Args) -> Result<Endpoint> {
    let config = Config {
        rekeying: args.rekeying(),
        ..Config::new(Identity(args.node.as_str().into()))
    };
    Ok(Endpoint::new(config, Box::new(OsRng))?)
}

/// Completes on `signal`, and when the mesh task is gone, which drops its end of `mesh` also in a panic: an agent without it
/// must end, so that its supervisor starts a new one.
async fn first(signal: impl Future<Output = ()>, mesh: oneshot::Receiver<()>) {
    tokio::select! {
        () = signal => {}
        _ = mesh => error!("the mesh task has ended; the agent ends, too"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_memory_has_no_huge_pages() {
        without_huge_pages();
        assert_eq!(nix::sys::prctl::get_thp_disable(), Ok(true));
    }

    #[tokio::test]
    async fn the_agent_ends_when_its_mesh_task_panics() {
        let (alive, mesh_ended) = oneshot::channel();
        let running = tokio::spawn(async move {
            let _alive: oneshot::Sender<()> = alive;
            panic!("as a bug would");
        });
        first(std::future::pending(), mesh_ended).await;
        assert!(running.await.is_err_and(|error| error.is_panic()));
    }
}
