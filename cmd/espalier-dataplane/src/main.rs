//! The userspace data plane process: ESP over a TUN device, and holder of UDP 4500. Driven by the agent over a unix socket;
//! goes on passing traffic when the agent is gone.

mod args;
mod run_dir;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use espalier_dataplane_core::Event;
use espalier_esp_tun::io::{Tun, Udp};
use espalier_esp_tun::{Config, Engine, Error, Report};
use espalier_ike_io::relay::DataplaneEnd;
use espalier_rpc::{DataplaneService, serve_unix};
use nix::sys::resource::{Resource, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc};
use tracing::{error, info, warn};

use crate::args::Args;
use crate::run_dir::RunDir;

/// Events that a subscriber may be behind: one per inbound SA of a large mesh.
const EVENT_BACKLOG: usize = 8192;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("espalier-dataplane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    espalier_telemetry::init("espalier-dataplane", &args.log)?;
    // Keys are in this process' memory: none of it goes into a core file.
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        warn!(%error, "core files could not be turned off");
    }
    let run_dir = RunDir::claim(&args.run_dir)?;
    let (events, _) = broadcast::channel(EVENT_BACKLOG);
    let (failed, failures) = mpsc::channel(1);
    let engine = Arc::new(start(&args, &run_dir, events.clone(), failed)?);
    let router =
        tonic::transport::Server::builder().add_service(DataplaneService::server(engine, events));
    let (ended, mut end) = mpsc::channel(1);
    let until = until_told(failures, ended)?;
    info!(socket = %run_dir.socket().display(), "ready");
    serve_unix(run_dir.socket(), router, until).await?;
    match end.recv().await {
        Some(failure) => Err(failure).context("the data plane is broken"),
        None => Ok(()),
    }
}

/// Takes every resource, then starts the engine; what is missing or taken is named before anything runs.
fn start(
    args: &Args,
    run_dir: &RunDir,
    events: broadcast::Sender<Event>,
    failed: mpsc::Sender<Error>,
) -> Result<Engine> {
    let relay = DataplaneEnd::bind(run_dir.path())?;
    let udp = Udp::bind(args.listen_port)?;
    let tun = Tun::open(&args.tun, args.mtu)?;
    let report = move |report| match report {
        // Nobody listens while the agent is away: it dumps when it is back.
        Report::Event(event) => drop(events.send(event)),
        Report::Failed(failure) => {
            error!(%failure, "a thread has ended");
            drop(failed.try_send(failure));
        }
    };
    let engine = Engine::start(Config {
        instance: rand::random(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device: args.tun.clone(),
        tun: Arc::new(tun),
        udp,
        relay: Some(relay),
        report: Box::new(report),
    })?;
    Ok(engine)
}

/// Resolves on SIGTERM, SIGINT, or when the engine fails; a failure is passed on.
fn until_told(
    mut failures: mpsc::Receiver<Error>,
    ended: mpsc::Sender<Error>,
) -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM"),
            _ = interrupt.recv() => info!("SIGINT"),
            Some(failure) = failures.recv() => drop(ended.try_send(failure)),
        }
    })
}
