//! How fast SAs come into the kernel: through the data plane process (gRPC on its socket), as the agent does it, beside
//! `ip -batch` adding the same states. In a guest kernel, whose clock is coarse: what counts is the ratio.

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
    batch: Vec<f64>,
    ratio: Vec<f64>,
}

impl Rounds {
    /// Both in the same round, one after the other.
    fn one(&mut self, bin: &Path, pairs: usize) -> Result<()> {
        let (ours, theirs) = (Netns::new("ours")?, Netns::new("theirs")?);
        let plane = plane::Process::start(&ours, bin)?;
        let seconds = plane.install(pairs)?;
        let states = batch::States::of(&ours)?;
        let sas = 2 * pairs;
        ensure!(
            states.count() == sas,
            "{} states in the kernel, expected {sas}",
            states.count()
        );
        drop(plane);
        let file = states.write()?;
        let ((), took) = timed(|| batch::run(&theirs, &file))?;
        let there = batch::States::of(&theirs)?;
        ensure!(there == states, "ip -batch did not add the same states");
        self.socket.push(sas as f64 / seconds);
        self.batch.push(sas as f64 / took.ms * 1000.0);
        self.ratio.push(took.ms / 1000.0 / seconds);
        Ok(())
    }

    fn report(&self, pairs: usize, rows: &Writer) -> Result<()> {
        let mode = format!("installs-{pairs}-pairs");
        rows.add(&mode, "by-socket", "SAs/s", &self.socket)?;
        rows.add(&mode, "ip-batch", "SAs/s", &self.batch)?;
        rows.add(&mode, "by-socket-by-ip-batch", "", &self.ratio)
    }
}
