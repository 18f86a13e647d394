//! SAs of single CPUs (RFC 9611), on a guest with several.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use espalier_e2e::{State, until_within};

use crate::ground::{Ground, Populated, indexes};
use crate::load::{Load, nothing_clear};
use crate::tap::Tap;

/// The guest is emulated.
const PATIENCE: Duration = Duration::from_secs(120);
/// Of the SAs once they are rekeyed; there are three of them at each end.
const REKEY_SECONDS: u32 = 20;
/// Echo requests from one CPU.
const BURST: u64 = 40;
/// What else may use an SA meanwhile: neighbour discovery and the like.
const OTHERS: u64 = 5;

/// By outbound SPI: CPU and packets.
type Counters = BTreeMap<u32, (Option<u32>, u64)>;

/// Packets of each CPU are sealed with its own SA; the one of all is there; a restart and rekeys lose nothing.
pub(crate) fn per_cpu(ground: &mut Ground<'_>) -> Result<String> {
    let cpus = u32::try_from(std::thread::available_parallelism()?.get())?;
    ensure!(cpus > 1, "the guest has one processor");
    let mut on = ground.required(2, &[])?;
    let mut said = Vec::new();
    complete(&mut on, cpus, &BTreeSet::new())?;
    let tap = Tap::start(&on.mesh.bridge)?;
    for from in [0, 1] {
        for cpu in 0..cpus {
            said.push(sealed_by_its_own(&on, from, cpu)?);
        }
    }
    let load = Load::start(&on)?;
    let first = all_spis(&on)?;
    for index in indexes(&on.mesh) {
        let node = on.mesh.node(index)?;
        node.rekey_seconds = Some(REKEY_SECONDS);
        node.kill_agent()?;
        load.arrives()?;
        on.mesh.node(index)?.start_agent()?;
        load.arrives()?;
    }
    let second = complete(&mut on, cpus, &first).context("after restarts of the agents")?;
    let third = complete(&mut on, cpus, &second).context("after rekeys")?;
    complete(&mut on, cpus, &third).context("after more rekeys")?;
    load.arrives()?;
    load.ends_without_loss(&on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    tap.tally().only_raw_esp()?;
    Ok(said.join("; "))
}

/// Waits until both ends have one outbound SA for each CPU and one for all, none of them `old`, and seal by CPU; all their SPIs.
fn complete(on: &mut Populated, cpus: u32, old: &BTreeSet<u32>) -> Result<BTreeSet<u32>> {
    until_within(PATIENCE, "new SAs of each CPU at both ends", || {
        let mut all = BTreeSet::new();
        for index in indexes(&on.mesh) {
            let found = counters(on, index)?;
            let fresh: Vec<_> = found.iter().filter(|(spi, _)| !old.contains(spi)).collect();
            let has: BTreeSet<_> = fresh.iter().map(|(_, (cpu, _))| *cpu).collect();
            if has.len() != cpus as usize + 1 {
                return Ok(Err(format!("node-{index} has {found:x?}")));
            }
            let status = on.mesh.node(index)?.status()?;
            let peer = status.map(|status| status.peers.first().map(|peer| peer.cpus));
            if peer != Ok(Some(cpus)) {
                return Ok(Err(format!("node-{index} seals by {peer:?} CPUs")));
            }
            all.extend(found.keys());
        }
        Ok(Ok(all))
    })
}

fn all_spis(on: &Populated) -> Result<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for index in indexes(&on.mesh) {
        all.extend(counters(on, index)?.into_keys());
    }
    Ok(all)
}

fn counters(on: &Populated, index: u8) -> Result<Counters> {
    let count = |state: State| (state.spi, (state.cpu, state.sent));
    Ok(on.outbound(index)?.into_iter().map(count).collect())
}

/// A burst from one CPU goes out by that CPU's SA, and by no other.
fn sealed_by_its_own(on: &Populated, from: usize, cpu: u32) -> Result<String> {
    let index = u8::try_from(from)? + 1;
    let before = counters(on, index)?;
    let (pod, to) = (&on.pods[from], on.pods[1 - from].address.to_string());
    let (cpu_word, count) = (cpu.to_string(), BURST.to_string());
    let mut command = Command::new("taskset");
    command.args(["-c", &cpu_word, "ping", "-n", "-q", "-c", &count]);
    command.args(["-i", "0.02", "-W", "5", &to]);
    pod.netns.output(&mut command)?;
    let mut grown = BTreeMap::new();
    for (spi, (of, sent)) in counters(on, index)? {
        let Some((_, earlier)) = before.get(&spi) else {
            bail!("an SA was replaced meanwhile: {spi:08x}");
        };
        grown.insert(of, sent - earlier);
    }
    let own = grown.get(&Some(cpu)).copied().unwrap_or_default();
    let others: u64 = grown
        .iter()
        .filter(|(of, _)| **of != Some(cpu))
        .map(|(_, by)| by)
        .sum();
    ensure!(
        own >= BURST && others <= OTHERS,
        "node-{index}: {BURST} packets from CPU {cpu} went out by {grown:?}"
    );
    Ok(format!(
        "node-{index} CPU {cpu}: {own} by its own SA, {others} by others"
    ))
}
