//! How fast SAs come into the kernel: through the data plane process (gRPC on its socket), as the agent does it, and by the same
//! code without the process between, beside `ip -batch` adding the same states. In a guest kernel, whose clock is coarse: what counts is the ratio.

mod batch;
mod plane;

use std::path::Path;

use anyhow::{Result, ensure};
use espalier_testnet::Netns;

use crate::clock::timed;
use crate::host::Size;
use crate::rows::Writer;

/// All sizes.
pub(crate) fn run(bin: &Path, size: &Size, rows: &Writer) -> Result<()> {
    for &pairs in &size.peers {
        let mut rounds = Rounds::default();
        for _ in 0..size.rounds {
            rounds.one(bin, pairs)?;
        }
        rounds.report(pairs, rows)?;
    }
    Ok(())
}

/// SAs per second.
#[derive(Default)]
struct Rounds {
    socket: Vec<f64>,
    direct: Vec<f64>,
    batch: Vec<f64>,
    socket_by_batch: Vec<f64>,
    direct_by_batch: Vec<f64>,
}

impl Rounds {
    /// All three in the same round, one after the other.
    fn one(&mut self, bin: &Path, pairs: usize) -> Result<()> {
        let sas = 2 * pairs;
        let rate = |seconds: f64| sas as f64 / seconds;
        let netns = Netns::new("direct")?;
        let direct = rate(plane::direct(&netns, pairs)?);
        has(&netns, sas)?;
        let netns = Netns::new("ours")?;
        let process = plane::Process::start(&netns, bin)?;
        let socket = rate(process.install(pairs)?);
        drop(process);
        let states = has(&netns, sas)?;
        let netns = Netns::new("theirs")?;
        let file = states.write()?;
        let ((), took) = timed(|| batch::run(&netns, &file))?;
        ensure!(
            has(&netns, sas)? == states,
            "ip -batch did not add the same states"
        );
        let batch = rate(took.ms / 1000.0);
        self.socket.push(socket);
        self.direct.push(direct);
        self.batch.push(batch);
        self.socket_by_batch.push(socket / batch);
        self.direct_by_batch.push(direct / batch);
        Ok(())
    }

    fn report(&self, pairs: usize, rows: &Writer) -> Result<()> {
        let mode = format!("installs-{pairs}-pairs");
        rows.add(&mode, "direct", "SAs/s", &self.direct)?;
        rows.add(&mode, "by-socket", "SAs/s", &self.socket)?;
        rows.add(&mode, "ip-batch", "SAs/s", &self.batch)?;
        rows.add(&mode, "direct-by-ip-batch", "", &self.direct_by_batch)?;
        rows.add(&mode, "by-socket-by-ip-batch", "", &self.socket_by_batch)
    }
}

/// The states of a namespace, which are that many.
fn has(netns: &Netns, sas: usize) -> Result<batch::States> {
    let states = batch::States::of(netns)?;
    ensure!(
        states.count() == sas,
        "{} states in the kernel, expected {sas}",
        states.count()
    );
    Ok(states)
}
