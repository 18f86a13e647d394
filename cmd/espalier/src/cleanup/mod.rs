//! `espalier cleanup-node`: everything that Espalier made on this host goes, and nothing else.

mod files;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use espalier_overlay::Overlay;

use files::{Folders, Removed};

/// How often it is asked whether somebody still runs.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Arguments of `espalier cleanup-node`.
#[derive(Args, Clone, Debug)]
pub(crate) struct CleanupArgs {
    /// Sockets of this node's Espalier processes.
    #[arg(long, default_value = "/run/espalier")]
    run_dir: PathBuf,
    /// Durable state: address leases, certificate and key.
    #[arg(long, default_value = "/var/lib/espalier")]
    state_dir: PathBuf,
    /// The container runtime's folder of CNI configurations.
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// The container runtime's folder of CNI plugins.
    #[arg(long, default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Seconds to wait for Espalier's processes to end, instead of refusing at once.
    #[arg(long, default_value_t = 0)]
    wait: u64,
    /// Remove nothing, and wait to be told to end (SIGTERM, SIGINT): for the container of a DaemonSet, which must not end, after
    /// another one that removed everything.
    #[arg(long, exclusive = true)]
    hold: bool,
}

/// Removes, prints what, and goes on after an error. Can be repeated.
pub(crate) fn run(args: &CleanupArgs) -> Result<()> {
    if args.hold {
        return hold();
    }
    let folders = Folders {
        run: args.run_dir.clone(),
        state: args.state_dir.clone(),
        cni_conf: args.cni_conf_dir.clone(),
        cni_bin: args.cni_bin_dir.clone(),
    };
    until_nobody_runs(&folders, Duration::from_secs(args.wait))?;
    clean(&folders)
}

fn until_nobody_runs(folders: &Folders, patience: Duration) -> Result<()> {
    let end = Instant::now() + patience;
    while let Some(who) = folders.who_runs() {
        if Instant::now() >= end {
            bail!("{who}; stop it first: it would make again what is removed here");
        }
        std::thread::sleep(ASK_AGAIN.min(patience));
    }
    Ok(())
}

fn clean(folders: &Folders) -> Result<()> {
    // Without its configuration no new pod comes meanwhile.
    let steps = [
        ("CNI plugin", folders.remove_cni()),
        ("pods' interfaces", pods()),
        ("overlay", overlay()),
        ("IPsec states", states()),
        ("files", folders.remove_own()),
    ];
    let mut errors = Vec::new();
    let mut count = 0;
    for (step, outcome) in steps {
        match outcome {
            Ok(removed) => {
                removed
                    .gone
                    .iter()
                    .for_each(|what| println!("removed {what}"));
                removed.left.iter().for_each(|what| println!("left {what}"));
                count += removed.gone.len();
            }
            Err(error) => errors.push(format!("{step}: {error:#}")),
        }
    }
    if !errors.is_empty() {
        bail!(
            "not everything could be removed; try again (as root):\n  {}",
            errors.join("\n  ")
        );
    }
    if count == 0 {
        println!("nothing of Espalier is on this node");
    }
    Ok(())
}

fn pods() -> Result<Removed> {
    let names = espalier_podnet::teardown_all()?;
    Ok(Removed::of("pod interface", names))
}

fn overlay() -> Result<Removed> {
    Ok(Removed::of("", Overlay::open()?.remove_all()?))
}

fn states() -> Result<Removed> {
    Ok(Removed::of("state", espalier_xfrm::remove_states()?))
}

fn hold() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let told = espalier_telemetry::stop_signal().context("waiting for SIGTERM and SIGINT")?;
        told.await;
        Ok(())
    })
}

#[cfg(test)]
mod tests;
