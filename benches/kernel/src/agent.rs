//! What an agent of a large mesh costs: the real `espalier-agent` and `espalier-dataplane` of one node against one process
//! that plays all other nodes.
//!
//! ```text
//!  namespace "hub"                                     namespace "spokes"
//!  espalier-agent ── espalier-dataplane ── UDP 4500 ── one process, an IKE endpoint for each of the other nodes
//! ```
//!
//! bare: the node alone. configured: all Nodes known, mode Disabled. secured: mode Required, and the agent has told every
//! other node that it seals and lets nothing in clear. steady: a while later, with nothing to do.

mod ask;
mod hub;
mod manifests;
mod spokes;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use espalier_bench_ike::measure::Usage;
use espalier_bench_ike::pki;
use espalier_bench_ike::wire::Wire;

use crate::host::Size;
use crate::rows::Writer;
use ask::ask;
use hub::Hub;
use manifests::Policy;
use spokes::Spokes;

/// On the sandbox's private tmpfs.
const FOLDER: &str = "/run/bench";
/// What takes longer hangs.
const LIMIT: Duration = Duration::from_secs(900);
const LOOK: Duration = Duration::from_millis(500);
/// So much CPU time in one look is idle.
const IDLE_MS: f64 = 20.0;

/// All sizes.
pub(crate) fn run(bin: &Path, size: &Size, rows: &Writer) -> Result<()> {
    let wire = Wire::new()?;
    for &nodes in &size.peers {
        let folder = Path::new(FOLDER).join(nodes.to_string());
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        pki::make(&folder)?;
        one_size(&wire, bin, &folder, nodes, size, rows)?;
    }
    Ok(())
}

fn one_size(
    wire: &Wire,
    bin: &Path,
    folder: &Path,
    nodes: usize,
    size: &Size,
    rows: &Writer,
) -> Result<()> {
    let mode = format!("agent-{nodes}");
    let add = |metric: &str, unit: &str, value: f64| rows.add(&mode, metric, unit, &[value]);
    let mut hub = Hub::start(&wire.hub, bin, folder)?;
    let mut spokes = Spokes::start(&wire.spokes, nodes, folder)?;

    hub.await_peers(0)?;
    let bare = memory(&mode, "bare", &hub, rows)?;

    let before = hub.agent()?;
    let began = Instant::now();
    for (number, text) in manifests::nodes(nodes).iter().enumerate() {
        hub.write(&format!("nodes-{number}.yaml"), text)?;
    }
    hub.await_peers(nodes)?;
    add("configure", "s", began.elapsed().as_secs_f64())?;
    hub.await_idle()?;
    add(
        "configure-cpu",
        "s",
        (hub.agent()? - before).cpu_ms / 1000.0,
    )?;
    let configured = memory(&mode, "configured", &hub, rows)?;
    add(
        "per-configured-peer",
        "KB",
        (configured - bare) / nodes as f64,
    )?;

    let before = (hub.agent()?, hub.dataplane()?);
    spokes.begin()?;
    hub.write("policy.yaml", &manifests::policy(Policy::Required))?;
    add("all-up", "s", spokes.await_word("up", &mut hub)?)?;
    add("all-secured", "s", spokes.await_word("secured", &mut hub)?)?;
    hub.await_idle()?;
    let costs = (hub.agent()? - before.0, hub.dataplane()? - before.1);
    add("secure-cpu", "s", costs.0.cpu_ms / 1000.0)?;
    add("secure-cpu-per-peer", "ms", costs.0.cpu_ms / nodes as f64)?;
    add("secure-cpu-dataplane", "s", costs.1.cpu_ms / 1000.0)?;
    let secured = memory(&mode, "secured", &hub, rows)?;
    add("per-secured-peer", "KB", (secured - bare) / nodes as f64)?;

    let before = hub.agent()?;
    let began = Instant::now();
    check(&mut hub, nodes)?;
    add("status", "ms", began.elapsed().as_secs_f64() * 1000.0)?;
    add("status-cpu", "ms", (hub.agent()? - before).cpu_ms)?;
    steady(&mode, &mut hub, size, rows)?;
    memory(&mode, "steady", &hub, rows)?;
    Ok(())
}

/// Memory of both processes; gives the agent's anonymous memory in KB.
fn memory(mode: &str, when: &str, hub: &Hub, rows: &Writer) -> Result<f64> {
    let agent = hub.agent()?;
    rows.add(mode, &format!("{when}-rss-anon"), "KB", &[agent.rss_kb])?;
    rows.add(mode, &format!("{when}-rss"), "KB", &[hub.whole_rss_kb()?])?;
    let dataplane = hub.dataplane()?.rss_kb;
    rows.add(
        mode,
        &format!("{when}-rss-anon-dataplane"),
        "KB",
        &[dataplane],
    )?;
    Ok(agent.rss_kb)
}

/// The work was done: every pair encrypts and refuses clear packets, and every SA is in the data plane.
fn check(hub: &mut Hub, nodes: usize) -> Result<()> {
    let status = hub.status().map_err(anyhow::Error::msg)?;
    let done = |peer: &&_| ask::encrypted(peer);
    let encrypted = status.peers.iter().filter(done).count();
    ensure!(
        encrypted == nodes,
        "{encrypted} of {nodes} pairs are encrypted and enforced; the first other: {:?}",
        status.peers.iter().find(|peer| !ask::encrypted(peer))
    );
    let sas: u32 = status.peers.iter().map(|peer| peer.sas).sum();
    let least = 2 * u32::try_from(nodes)?;
    ensure!(
        sas >= least,
        "{sas} SAs in the data plane, expected {least}"
    );
    Ok(())
}

fn steady(mode: &str, hub: &mut Hub, size: &Size, rows: &Writer) -> Result<()> {
    let time = Duration::from_secs(size.steady_seconds);
    if time.is_zero() {
        return Ok(());
    }
    let before = (hub.agent()?, hub.dataplane()?);
    std::thread::sleep(time);
    hub.alive()?;
    let after = (hub.agent()?, hub.dataplane()?);
    let per_minute = |usage: Usage| usage.cpu_ms / time.as_secs_f64() * 60.0;
    let agent = per_minute(after.0 - before.0);
    rows.add(mode, "steady-cpu-per-minute", "ms", &[agent])?;
    let dataplane = per_minute(after.1 - before.1);
    rows.add(mode, "steady-cpu-per-minute-dataplane", "ms", &[dataplane])
}

/// Looks until `look` says that it is there.
fn until(what: &str, mut look: impl FnMut() -> Result<Result<(), String>>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match look()? {
            Ok(()) => return Ok(()),
            Err(missing) if Instant::now() > deadline => {
                bail!("expected {what} within {} s; {missing}", LIMIT.as_secs())
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}
