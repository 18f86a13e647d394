//! A healthy mesh: traffic, rekeys, toggles, handshakes on demand.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use espalier_e2e::{Mode, Plane, exchange, on_path, until};

use super::forms::have;
use crate::ground::{Ground, Populated};
use crate::load::{Load, nothing_clear};
use crate::tap::Tap;

const REKEYS: usize = 20;
const TOGGLES: usize = 10;
/// XFRMA_REPLAY_ESN_MAX: 4096 packets.
const WINDOW: u32 = 4096;
/// Not below what the agent allows: soft lifetimes have a jitter, and a shorter one would test the limits instead.
pub(super) const REKEY_SECONDS: u32 = 10;

/// Pings and flows between pods on raw ESP, nothing else.
pub(crate) fn basic(ground: &mut Ground<'_>) -> Result<String> {
    let mut on = ground.required(2, &[])?;
    let tap = Tap::start(&on.mesh.bridge)?;
    let load = Load::start(&on)?;
    for (from, to) in [(0, 1), (1, 0)] {
        on.ping(from, on.pods[to].address.into(), &[])?;
    }
    load.run(Duration::from_secs(3));
    load.ends_without_loss(&on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    let tally = tap.tally();
    if ground.in_kernel() {
        tally.only_raw_esp()?;
        replay_is_checked(&on)?;
    } else {
        tally.only_udp_esp()?;
    }
    on.works()?;
    Ok(format!("{tally:?}"))
}

/// Inbound SAs have 64-bit sequence numbers and the largest window that the kernel has.
fn replay_is_checked(on: &Populated) -> Result<()> {
    let own = on.mesh.setup.shape.underlay(1);
    let inbound: Vec<_> = on
        .states(1)?
        .into_iter()
        .filter(|state| state.dst == own)
        .collect();
    let right = |state: &espalier_e2e::State| state.esn && state.replay_window == WINDOW;
    let all = !inbound.is_empty() && inbound.iter().all(right);
    ensure!(
        all,
        "expected ESN and a window of {WINDOW}, found {inbound:?}"
    );
    Ok(())
}

/// Every SA is replaced many times under load.
pub(crate) fn rekeys(ground: &mut Ground<'_>) -> Result<String> {
    let mut mesh = ground.prepare(2, Mode::Required, &[])?;
    for node in &mut mesh.nodes {
        node.rekey_seconds = Some(REKEY_SECONDS);
    }
    let mut on = ground.populate(mesh)?;
    on.works()?;
    let load = Load::start(&on)?;
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    for _ in 0..=REKEYS {
        let [first, second] = &mut seen;
        for (peer, seen) in [(2, first), (1, second)] {
            next_spi(&mut on, peer, seen)?;
        }
    }
    load.arrives()?;
    load.ends_without_loss(&on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    Ok(format!("{REKEYS} rekeys in each direction"))
}

/// Waits until node 3 − `peer` sends to it with an SPI that is not in `seen`.
fn next_spi(on: &mut Populated, peer: u8, seen: &mut BTreeSet<u32>) -> Result<()> {
    let (node, name) = (3 - peer, espalier_e2e::name(peer));
    let next = until("the next outbound SA", || {
        let spi = on.mesh.node(node)?.peer(&name)?.spi_out;
        let fresh = spi != 0 && !seen.contains(&spi);
        Ok(fresh
            .then_some(spi)
            .ok_or_else(|| format!("still {spi:08x}")))
    })?;
    seen.insert(next);
    Ok(())
}

/// Disabled, Required and back under load; `planes`: a pair of these.
pub(crate) fn toggles(
    ground: &mut Ground<'_>,
    spec: &[&str],
    planes: Option<[Plane; 2]>,
) -> Result<String> {
    let mut mesh = ground.prepare(2, Mode::Disabled, spec)?;
    if let Some(planes) = planes {
        have(&mut mesh, planes);
    }
    let mut on = ground.populate(mesh)?;
    on.all(|peer| on_path(peer, "Clear"))?;
    let load = Load::start(&on)?;
    let mut clear = 0;
    for _ in 0..TOGGLES {
        on.mesh.set_mode(Mode::Required)?;
        on.all_encrypt()?;
        let before = on.mesh.watch.now()?;
        load.arrives()?;
        clear += on.mesh.watch.now()?.since(&before).clear;
        on.mesh.set_mode(Mode::Disabled)?;
        on.all(|peer| on_path(peer, "Clear"))?;
        load.arrives()?;
    }
    load.toggled_without_loss(&on.mesh, clear, ground.measured)?;
    Ok(format!("{TOGGLES} times Disabled → Required → Disabled"))
}

/// No SA before there is traffic; the first packet asks for it, and none goes out in clear.
pub(crate) fn on_demand(ground: &mut Ground<'_>) -> Result<String> {
    let mesh = ground.prepare(2, Mode::Required, &["establish: OnDemand"])?;
    let on = ground.populate(mesh)?;
    // Time enough for a handshake that nobody asked for.
    std::thread::sleep(Duration::from_secs(5));
    for index in [1, 2] {
        let states = on.states(index)?;
        ensure!(
            states.is_empty(),
            "there are states without traffic: {states:?}"
        );
    }
    let before = on.mesh.watch.now()?;
    until("packets after a handshake on demand", || {
        let passed = exchange(&on.pods[0], &on.pods[1], 5);
        Ok(passed.map_err(|error| format!("{error:#}")))
    })?;
    let states = on.states(1)?;
    ensure!(!states.is_empty(), "packets pass without a state");
    let seen = on.mesh.watch.nothing_clear_since(&before)?;
    ground.measured.clear_packets = Some(seen.clear);
    Ok("no state before the first packet".into())
}
