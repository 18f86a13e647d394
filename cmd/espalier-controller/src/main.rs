//! `espalier-controller`: signs nodes' certificates, sums up status, keeps the not-ready taint.

mod api;
mod args;
mod ca;
mod caches;
mod events;
#[cfg(test)]
mod fake;
mod leader;
mod lease;
mod metrics;
mod rotation;
mod signer;
mod status;
mod taint;
mod uninstall;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use espalier_kubernetes::{connect, explain};
use kube::api::Api;
use rand::RngExt as _;
use tracing::{info, warn};

use args::{Cli, Command, RunArgs};
use leader::Leader;
use lease::{Elector, Timing};
use metrics::Metrics;

/// Name of the Lease.
const LEASE: &str = "espalier-controller";

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    espalier_telemetry::init("espalier-controller", &cli.log)?;
    match &cli.command {
        Some(Command::Uninstall(args)) => uninstall::run(args).await,
        None => run(&cli.run).await,
    }
}

/// Waits for its turn, acts, and goes back to waiting when it lost the lease, until SIGTERM.
async fn run(args: &RunArgs) -> Result<()> {
    let settings = Arc::new(args.settings());
    let metrics = Arc::new(Metrics::default());
    let mut stop = pin!(espalier_telemetry::stop_signal()?);
    espalier_telemetry::http::serve(args.http, Arc::clone(&metrics))
        .await
        .with_context(|| format!("--http {}", args.http))?;
    let client = connect().await?;
    info!(version = env!("CARGO_PKG_VERSION"), "starting");
    tokio::select! {
        () = greet(&client) => metrics.connected.store(true, Ordering::Relaxed),
        () = &mut stop => return Ok(()),
    }
    let leases = Api::namespaced(client.clone(), &settings.namespace);
    let mut elector = Elector::new(leases, LEASE, identity(), Timing::default());
    loop {
        let mut held = tokio::select! {
            held = elector.acquire() => held,
            () = &mut stop => return Ok(()),
        };
        let leader = Leader::new(client.clone(), Arc::clone(&settings), Arc::clone(&metrics));
        // All that the leader does is in this one future: when the lease is lost it is dropped, and nothing goes on.
        let stopped = tokio::select! {
            () = elector.keep(&mut held) => false,
            () = leader.run() => false,
            () = &mut stop => true,
        };
        metrics.leading.store(false, Ordering::Relaxed);
        if stopped {
            elector.release(held).await;
            return Ok(());
        }
    }
}

/// Until the API server answers.
async fn greet(client: &kube::Client) {
    loop {
        match client.apiserver_version().await {
            Ok(version) => {
                info!(server = version.git_version, "connected");
                return;
            }
            // It answered; that the version is nobody's to know does not matter.
            Err(kube::Error::Api(_)) => return,
            Err(error) => warn!("{}", explain("ask for the version", &error)),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Names this process in the Lease: the pod for people, the rest so that no two are the same.
fn identity() -> String {
    let names = ["POD_NAME", "HOSTNAME"];
    let name = names.into_iter().find_map(|name| std::env::var(name).ok());
    let name = name.unwrap_or_else(|| "espalier-controller".into());
    format!("{name}_{:016x}", rand::rng().random::<u64>())
}
