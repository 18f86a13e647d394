//! The data plane process: ESP in the kernel or over a TUN device, and holder of UDP 4500. Driven by the agent over a unix
//! socket; goes on passing traffic when the agent is gone. What the kernel encrypts goes on when this process is gone, too.

mod args;
mod choice;
mod kept;
mod kernel;
mod own;
mod queues;
mod resume;
mod run_dir;
mod upgrade;
mod userspace;
mod wrap;

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use espalier_dataplane_core::{Dataplane, Event};
use espalier_handover::{Plane, Role};
use espalier_rpc::dataplane::dataplane_server::DataplaneServer;
use espalier_rpc::{DataplaneService, SocketFile, bind_unix, resume_unix, serve_bound};
use nix::sys::resource::{Resource, setrlimit};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, broadcast, mpsc, watch};
use tracing::{info, warn};

use crate::args::Args;
use crate::choice::Decision;
use crate::kept::Kept;
use crate::own::Own;
use crate::resume::Inherited;
use crate::run_dir::RunDir;
use crate::upgrade::{Keeps, Upgrade};
use crate::wrap::{Refusing, Told};

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
    if args.resume_check {
        return resume::check(&args);
    }
    espalier_telemetry::init("espalier-dataplane", &args.log)?;
    // Keys are in this process' memory: none of it goes into a core file.
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        warn!(%error, "core files could not be turned off");
    }
    let mut inherited = match args.resume {
        true => Some(Inherited::take()?),
        false => None,
    };
    let run_dir = match &mut inherited {
        Some(inherited) => RunDir::resume(&args.run_dir, inherited.one(Role::Lock)?),
        None => RunDir::claim(&args.run_dir)?,
    };
    let told = told_to_end()?;
    let (events, _) = broadcast::channel(EVENT_BACKLOG);
    let (failed, failures) = mpsc::channel(1);
    let parts = Parts {
        args: &args,
        run_dir: &run_dir,
        events,
        failed,
    };
    match inherited {
        Some(inherited) => go_on(&parts, inherited, told, failures).await,
        None => begin(&parts, told, failures).await,
    }
}

/// Goes on where the program before was, whatever would be chosen now.
async fn go_on(
    parts: &Parts<'_>,
    mut inherited: Inherited,
    told: watch::Receiver<bool>,
    mut failures: mpsc::Receiver<anyhow::Error>,
) -> Result<()> {
    // The program was executed by its descriptor, and has that one's number for a name.
    let _ = nix::sys::prctl::set_name(c"espalier-datapl");
    let mut kept = Kept::default();
    let (at, notes) = (inherited.state.frozen_at_ns, inherited.state.notes.clone());
    let own = Own::known(inherited.state.digest);
    let writer = inherited.state.writer.clone();
    let bound = |inherited: &mut Inherited| {
        let listener = inherited.one(Role::Listener)?;
        Ok::<_, anyhow::Error>(resume_unix(parts.run_dir.socket(), listener)?)
    };
    match std::mem::replace(&mut inherited.state.plane, Plane::Kernel) {
        Plane::Userspace(frozen) => {
            let plane = userspace::resume(parts, &mut kept, &mut inherited, frozen)?;
            Inherited::report(&writer, at);
            let told_plane = Told { plane, notes, own };
            let bound = bound(&mut inherited)?;
            serve_upgradable(parts, told_plane, kept, bound, until(told, &mut failures)).await
        }
        Plane::Kernel => {
            let findings = choice::ask().await?;
            if let Some(problem) = &findings.problem {
                warn!(%problem, "the kernel cannot do any more what it could; its states go on");
            }
            let plane = kernel::resume(parts, &mut kept, &mut inherited, findings)?;
            Inherited::report(&writer, at);
            let told_plane = Told { plane, notes, own };
            let bound = bound(&mut inherited)?;
            serve_upgradable(parts, told_plane, kept, bound, until(told, &mut failures)).await
        }
    }
}

/// Chooses who encrypts, and serves the agent.
async fn begin(
    parts: &Parts<'_>,
    told: watch::Receiver<bool>,
    mut failures: mpsc::Receiver<anyhow::Error>,
) -> Result<()> {
    let (mut kept, own) = (Kept::default(), Own::find());
    loop {
        match choice::decide(parts.args.dataplane).await? {
            Decision::Kernel(findings) => {
                let plane = kernel::start(parts, &mut kept, *findings)?;
                let notes = Vec::new();
                let told_plane = Told { plane, notes, own };
                let bound = bind_unix(parts.run_dir.socket()).await?;
                let end = until(told, &mut failures);
                return serve_upgradable(parts, told_plane, kept, bound, end).await;
            }
            Decision::Userspace(note) => {
                let plane = userspace::start(parts, &mut kept)?;
                let notes = note.into_iter().collect();
                let told_plane = Told { plane, notes, own };
                let bound = bind_unix(parts.run_dir.socket()).await?;
                let end = until(told, &mut failures);
                return serve_upgradable(parts, told_plane, kept, bound, end).await;
            }
            Decision::Nobody(reason) => {
                let end = async {
                    tokio::select! {
                        () = choice::kernel_can() => Ok(()),
                        end = until(told.clone(), &mut failures) => end,
                    }
                };
                let service =
                    DataplaneService::server(Arc::new(Refusing { reason }), parts.events.clone());
                let bound = bind_unix(parts.run_dir.socket()).await?;
                serve(service, bound, end).await?;
                if *told.borrow() {
                    return Ok(());
                }
            }
        }
    }
}

/// Serves the agent, and lets itself be replaced.
async fn serve_upgradable<P: Dataplane + Keeps>(
    parts: &Parts<'_>,
    plane: Told<P>,
    mut kept: Kept,
    bound: (UnixListener, SocketFile),
    end: impl Future<Output = Result<()>>,
) -> Result<()> {
    kept.keep(Role::Lock, parts.run_dir.lock())?;
    kept.keep(Role::Listener, &bound.0)?;
    let told = Arc::new(plane);
    let upgrade = Upgrade {
        own: told.own.clone(),
        told: told.clone(),
        kept,
        folder: parts.args.upgrade_dir.clone(),
        failed: parts.failed.clone(),
        one_at_a_time: Mutex::default(),
    };
    let service = DataplaneService::upgradable(told, parts.events.clone(), Arc::new(upgrade));
    serve(service, bound, end).await
}

/// Serves until the end, which is an error when something broke.
async fn serve<D: Dataplane>(
    service: DataplaneServer<DataplaneService<D>>,
    bound: (UnixListener, SocketFile),
    end: impl Future<Output = Result<()>>,
) -> Result<()> {
    let router = tonic::transport::Server::builder().add_service(service);
    info!("ready");
    let mut outcome = Ok(());
    let ended = async { outcome = end.await };
    serve_bound(bound, router, ended).await?;
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
