//! Flows between the suite's pods while something happens, and what they and the captures say in the end.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use espalier_capture::Counters;
use espalier_e2e::{Flow, Flows, Pod};

use crate::ground::Ground;

/// Packets each second each way between the first two pods, with some room.
const FAST: u32 = 1050;
/// The same between every other two.
const SLOW: u32 = 55;
/// What at least is to be sent; less says that the machine is too slow to prove anything.
const FAST_AT_LEAST: f64 = 1000.0;

/// Flows each way between each two pods of different nodes.
pub(crate) struct Load {
    flows: Flows,
    wire: Counters,
    gateway: Counters,
    begun: Instant,
}

/// What became of a load.
pub(crate) struct Ended {
    /// What was lost when, for the case's detail.
    pub(crate) said: String,
}

impl Load {
    /// Returns when packets of all flows arrive; what counts begins then.
    pub(crate) fn start(ground: &Ground<'_>, pods: &[Pod]) -> Result<Self> {
        let mut flows = Vec::new();
        for (i, from) in pods.iter().enumerate() {
            for (j, to) in pods.iter().enumerate().filter(|(j, _)| *j != i) {
                let port = Flows::FIRST_PORT + u16::try_from(flows.len())?;
                let rate = if i + j == 1 { FAST } else { SLOW };
                flows.push(Flow::start_paced(from, to, port, rate)?);
            }
        }
        Ok(Self {
            flows: Flows::count_from_now(flows)?,
            wire: ground.harness.wire()?,
            gateway: ground.harness.gateway()?,
            begun: Instant::now(),
        })
    }

    /// Lets it run on for this long.
    pub(crate) fn run(&self, duration: Duration) {
        std::thread::sleep(duration);
    }

    /// Waits until packets that are sent from now on arrive.
    pub(crate) fn arrives(&self) -> Result<()> {
        self.flows.arrive()
    }

    /// Ends the flows and adds what was counted.
    pub(crate) fn end(self, ground: &mut Ground<'_>) -> Result<Ended> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let counts = self.flows.counts();
        let mut said = Vec::new();
        for count in &counts {
            add(&mut ground.measured.sent, count.sent);
            add(&mut ground.measured.lost, count.lost);
            if count.lost > 0 {
                said.push(format!(
                    "{} of {} lost, sent at {}",
                    count.lost, count.sent, count.when
                ));
            }
        }
        let wire = ground.harness.wire()?.since(&self.wire);
        let gateway = ground.harness.gateway()?.since(&self.gateway);
        add(&mut ground.measured.esp_packets, wire.esp);
        add(&mut ground.measured.clear_packets, leaked(&wire));
        add(&mut ground.measured.gateway_clear_packets, leaked(&gateway));
        if leaked(&wire) > 0 {
            said.push(format!("in clear, the last: {:?}", wire.samples.back()));
        }
        // The first is one of the two fast flows.
        #[allow(clippy::cast_precision_loss, reason = "no flow has 2^52 packets")]
        let rate = counts
            .first()
            .map_or(0.0, |count| count.sent as f64 / seconds);
        ensure!(
            rate >= FAST_AT_LEAST,
            "expected {FAST_AT_LEAST} packets each second, {rate:.0} were sent: the machine is too busy to prove anything"
        );
        Ok(Ended {
            said: said.join("; "),
        })
    }

    /// [`Self::end`] of a load of which nothing may be lost or clear.
    pub(crate) fn ends_whole(self, ground: &mut Ground<'_>) -> Result<()> {
        let ended = self.end(ground)?;
        let m = &ground.measured;
        let whole =
            m.lost == Some(0) && m.clear_packets == Some(0) && m.gateway_clear_packets == Some(0);
        ensure!(
            whole,
            "expected nothing lost and nothing in clear, found: {}",
            ended.said
        );
        Ok(())
    }

    /// [`Self::end`] of a load of which nothing may be in clear; what was lost is said.
    pub(crate) fn ends_hidden(self, ground: &mut Ground<'_>) -> Result<String> {
        let ended = self.end(ground)?;
        let m = &ground.measured;
        let hidden = m.clear_packets == Some(0) && m.gateway_clear_packets == Some(0);
        ensure!(hidden, "expected nothing in clear, found: {}", ended.said);
        Ok(ended.said)
    }
}

/// Packets between two pods in clear, and those of the suite's own wherever they are. Pod and host, pod and outside are
/// traffic of hosts: docs/security.md.
pub(crate) fn leaked(seen: &Counters) -> u64 {
    seen.clear_between_pods.max(seen.marked)
}

fn add(sum: &mut Option<u64>, more: u64) {
    *sum = Some(sum.unwrap_or_default() + more);
}
