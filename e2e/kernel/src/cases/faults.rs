//! Processes that die, nodes that boot, clocks that jump.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use espalier_e2e::{Cluster, Mode, Node, Pod, encrypted, name, until};

use crate::ground::{Ground, Populated, ip};
use crate::load::{Load, nothing_clear};

const KILLS: u8 = 10;

/// SIGKILL to an agent, ten times in turn at both ends: nothing is lost, and its successor replaces the SAs that it adopts.
pub(crate) fn agent_killed_ten_times(ground: &mut Ground<'_>) -> Result<String> {
    let mut on = ground.required(2, &[])?;
    let load = Load::start(&on)?;
    for kill in 0..KILLS {
        let (index, peer) = (1 + kill % 2, 2 - kill % 2);
        let old = spi_out(&mut on.mesh, index, peer)?;
        on.mesh.node(index)?.kill_agent()?;
        load.arrives()?;
        on.mesh.node(index)?.start_agent()?;
        until("the adopted SAs to be replaced", || {
            let status = on.mesh.node(index)?.status()?;
            let spi = status.ok().and_then(|status| {
                let mut peers = status.peers.into_iter();
                peers.find(|p| p.name == name(peer)).map(|p| p.spi_out)
            });
            let new = spi.filter(|spi| *spi != 0 && *spi != old);
            Ok(new.ok_or_else(|| format!("{spi:?}")))
        })?;
        on.all_encrypt()?;
    }
    load.arrives()?;
    load.ends_without_loss(&on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    Ok(format!("{KILLS} times, in turn at both ends"))
}

fn spi_out(mesh: &mut Cluster, index: u8, peer: u8) -> Result<u32> {
    Ok(mesh.node(index)?.peer(&name(peer))?.spi_out)
}

/// SIGKILL to the data plane process: nothing in clear; what is lost is counted.
pub(crate) fn dataplane_killed(ground: &mut Ground<'_>) -> Result<String> {
    let mut on = ground.required(2, &[])?;
    let load = Load::start(&on)?;
    on.mesh.node(1)?.kill_dataplane()?;
    load.run(Duration::from_secs(2));
    on.mesh.node(1)?.start_dataplane()?;
    recovered(ground, on, load)
}

/// All pairs encrypt again: nothing was in clear; what was lost is said.
fn recovered(ground: &mut Ground<'_>, mut on: Populated, load: Load) -> Result<String> {
    on.all_encrypt()?;
    load.arrives()?;
    let said = load.end(&on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    on.works()?;
    Ok(said)
}

/// A node boots: what was in its kernel and in its run-time folder is gone, its disk is as it was, and its peer still has the states
/// of before.
pub(crate) fn reboot(ground: &mut Ground<'_>) -> Result<String> {
    let mut on = ground.required(2, &[])?;
    let before = on.mesh.watch.now()?;
    on.pods.pop().context("no pod on node 2")?;
    let node = on.mesh.node(2)?;
    node.kill_agent()?;
    node.kill_dataplane()?;
    forget(node)?;
    node.start()?;
    on.mesh.await_pairs(&[1, 2], encrypted)?;
    on.pods.push(Pod::add(on.mesh.node_ref(2)?, 2)?);
    on.works()?;
    ground.measured.clear_packets = Some(on.mesh.watch.now()?.since(&before).clear);
    nothing_clear(ground.measured)?;
    Ok(String::new())
}

/// All that a kernel forgets, and `/run`.
fn forget(node: &Node) -> Result<()> {
    let ours = espalier_overlay::PROTOCOL;
    for words in ["xfrm state flush", "xfrm policy flush"] {
        ip(node, words)?;
    }
    for family in ["-4", "-6"] {
        ip(
            node,
            &format!("{family} route flush table all proto {ours}"),
        )?;
        ip(node, &format!("{family} rule flush protocol {ours}"))?;
    }
    for line in ip(node, "-o link show")?.lines() {
        let device = line.split(": ").nth(1).unwrap_or_default();
        if device.starts_with("espalier") {
            ip(node, &format!("link delete {device}"))?;
        }
    }
    let run = node.run_dir();
    std::fs::remove_dir_all(&run)?;
    std::fs::create_dir(&run)?;
    Ok(())
}

/// Somebody flushes all states of a node that works: what is lost is counted, nothing is in clear, and new SAs come by themselves.
pub(crate) fn flushed_under_load(ground: &mut Ground<'_>) -> Result<String> {
    let mut on = ground.required(2, &[])?;
    let load = Load::start(&on)?;
    let old = spi_out(&mut on.mesh, 1, 2)?;
    ip(on.mesh.node_ref(1)?, "xfrm state flush")?;
    next_spi(&mut on.mesh, old)?;
    recovered(ground, on, load)
}

/// The wall clock jumps a day forward and back under load: lifetimes are not measured by it. (But for the first second of a state,
/// when Linux looks at it: such a state is gone, and replaced as one that was flushed.)
pub(crate) fn clock_jumps(ground: &mut Ground<'_>) -> Result<String> {
    const JUMPS: [&str; 3] = ["+26 hours", "-50 hours", "+24 hours"];
    const FIRST_LOOK: Duration = Duration::from_millis(2500);
    let mut mesh = ground.prepare(2, Mode::Required, &[])?;
    for node in &mut mesh.nodes {
        node.rekey_seconds = Some(super::life::REKEY_SECONDS);
    }
    let mut on = ground.populate(mesh)?;
    on.works()?;
    let load = Load::start(&on)?;
    for jump in JUMPS {
        load.run(FIRST_LOOK);
        let old = spi_out(&mut on.mesh, 1, 2)?;
        let set = Command::new("date").arg(format!("--set={jump}")).output()?;
        ensure!(set.status.success(), "the clock cannot be set: {set:?}");
        next_spi(&mut on.mesh, old)?;
        load.arrives()?;
    }
    load.ends_without_loss(&on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    Ok(format!("{JUMPS:?}"))
}

/// Waits until node 1 sends to node 2 with another SPI.
fn next_spi(mesh: &mut Cluster, old: u32) -> Result<()> {
    until("the next SA", || {
        let spi = spi_out(mesh, 1, 2)?;
        let next = spi != 0 && spi != old;
        Ok(next.then_some(()).ok_or_else(|| format!("still {spi:08x}")))
    })
}
