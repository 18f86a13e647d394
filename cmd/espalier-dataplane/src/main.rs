//! The data plane process: ESP in the kernel or over a TUN device, and holder of UDP 4500. Driven by the agent over a unix
//! socket; goes on passing traffic when the agent is gone. What the kernel encrypts goes on when this process is gone, too.

mod args;
mod choice;
mod kernel;
mod run_dir;
mod userspace;
mod wrap;

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use espalier_dataplane_core::{Dataplane, Event};
use espalier_rpc::{DataplaneService, serve_unix};
use nix::sys::resource::{Resource, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc, watch};
use tracing::{info, warn};

use crate::args::Args;
use crate::choice::Decision;
use crate::run_dir::RunDir;
use crate::wrap::{Noted, Refusing};

/// Events that a subscriber may be behind: one per inbound SA of a large mesh.
const EVENT_BACKLOG: usize = 8192;

/// What a data plane is made from.
pub(crate) struct Parts<'a> {
    args: &'a Args,
    run_dir: &'a RunDir,
    events: broadcast::Sender<Event>,
    failed: mpsc::Sender<anyhow::Error>,
}

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
    let told = told_to_end()?;
    let (events, _) = broadcast::channel(EVENT_BACKLOG);
    let (failed, mut failures) = mpsc::channel(1);
    let parts = Parts {
        args: &args,
        run_dir: &run_dir,
        events,
        failed,
    };
    loop {
        match choice::decide(args.dataplane).await? {
            Decision::Kernel(findings) => {
                let plane = kernel::start(&parts, *findings)?;
                return serve(&parts, plane, until(told, &mut failures)).await;
            }
            Decision::Userspace(note) => {
                let plane = Noted {
                    plane: userspace::start(&parts)?,
                    notes: note.into_iter().collect(),
                };
                return serve(&parts, plane, until(told, &mut failures)).await;
            }
            Decision::Nobody(reason) => {
                let end = async {
                    tokio::select! {
                        () = choice::kernel_can() => Ok(()),
                        end = until(told.clone(), &mut failures) => end,
                    }
                };
                serve(&parts, Refusing { reason }, end).await?;
                if *told.borrow() {
                    return Ok(());
                }
            }
        }
    }
}

/// Serves the agent until the end, which is an error when something broke.
async fn serve(
    parts: &Parts<'_>,
    plane: impl Dataplane,
    end: impl Future<Output = Result<()>>,
) -> Result<()> {
    let service = DataplaneService::server(Arc::new(plane), parts.events.clone());
    let router = tonic::transport::Server::builder().add_service(service);
    let socket = parts.run_dir.socket();
    info!(socket = %socket.display(), "ready");
    let mut outcome = Ok(());
    let ended = async { outcome = end.await };
    serve_unix(socket, router, ended).await?;
    outcome.context("the data plane is broken")
}

/// Becomes true at SIGTERM or SIGINT.
fn told_to_end() -> Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let (tell, told) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM"),
            _ = interrupt.recv() => info!("SIGINT"),
        }
        tell.send_replace(true);
        // Whoever waits compares the value, and must find somebody who may still change it.
        tell.closed().await;
    });
    Ok(told)
}

/// Resolves when told to end, or with what broke.
async fn until(
    mut told: watch::Receiver<bool>,
    failures: &mut mpsc::Receiver<anyhow::Error>,
) -> Result<()> {
    tokio::select! {
        _ = told.wait_for(|told| *told) => Ok(()),
        Some(failure) = failures.recv() => Err(failure),
    }
}
