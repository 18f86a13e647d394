//! Processes that die.

use std::time::Duration;

use anyhow::Result;
use espalier_e2e::{Cluster, name, until};

use crate::ground::Ground;
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
    on.all_encrypt()?;
    load.arrives()?;
    let said = load.end(&on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    on.works()?;
    Ok(said)
}
