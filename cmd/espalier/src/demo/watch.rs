//! What the captures on the wire and in the gateway saw.

use anyhow::{Context, Result};
use espalier_capture::{Capture, Config, Counters, Interfaces, interface_index};
use espalier_testnet::{Bridge, Netns};

use super::packet::Marker;
use super::plan;

/// The two captures.
#[derive(Debug)]
pub(super) struct Watch {
    wire: Capture,
    gateway: Capture,
}

/// The counts of both at a moment, or between two.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) wire: Counters,
    pub(super) gateway: Counters,
}

impl Watch {
    /// Begins to look at every port of the bridge, now and later, and at the gateway's device.
    pub(super) fn start(bridge: &Bridge, gateway: &Netns, marker: Marker) -> Result<Self> {
        let config = |interfaces, with_outgoing| Config {
            interfaces,
            with_outgoing,
            pods: plan::clusters(),
            marker: marker.to_vec(),
        };
        let wire = bridge.netns().run(|| {
            // A frame enters by one port; the bridge itself and outgoing copies would count it again.
            let bridge = interface_index(Bridge::DEVICE)?;
            Capture::start(config(Interfaces::AllBut(vec![bridge]), false))
        })?;
        let gateway = gateway.run(|| {
            let device = interface_index("eth0")?;
            Capture::start(config(Interfaces::Only(vec![device]), true))
        })?;
        Ok(Self {
            wire: wire.context("capturing on the bridge")?,
            gateway: gateway.context("capturing in the gateway")?,
        })
    }

    /// Everything until now.
    pub(super) fn now(&self) -> Result<Seen> {
        Ok(Seen {
            wire: self.wire.snapshot().context("the capture on the bridge")?,
            gateway: self
                .gateway
                .snapshot()
                .context("the capture in the gateway")?,
        })
    }

    /// Everything since `before`.
    pub(super) fn since(&self, before: &Seen) -> Result<Seen> {
        let now = self.now()?;
        Ok(Seen {
            wire: now.wire.since(&before.wire),
            gateway: now.gateway.since(&before.gateway),
        })
    }
}

impl Seen {
    /// Clear pod packets; what cannot be decoded or was not captured is not called harmless.
    pub(super) fn clear(&self) -> u64 {
        self.wire.clear + self.gateway.clear + self.unproven()
    }

    fn unproven(&self) -> u64 {
        let of = |counters: &Counters| counters.dropped + counters.undecoded;
        of(&self.wire) + of(&self.gateway)
    }

    /// For a report: the last clear packets, and what makes the capture no proof.
    pub(super) fn details(&self) -> Vec<String> {
        let mut details = Vec::new();
        for (place, counters) in [("bridge", &self.wire), ("gateway", &self.gateway)] {
            if counters.dropped + counters.undecoded > 0 {
                details.push(format!(
                    "{place}: {} frames dropped by the capture, {} not decodable: no proof",
                    counters.dropped, counters.undecoded
                ));
            }
            for sample in &counters.samples {
                let outer = sample.outer.map(|(src, dst)| format!("{src} → {dst}"));
                let outer = outer.unwrap_or_else(|| "no IP packet".to_owned());
                details.push(match sample.pod {
                    Some(pod) => format!(
                        "{place}: {outer}: {:?}, {} → {} in clear",
                        pod.carrier, pod.src, pod.dst
                    ),
                    None => format!("{place}: {outer}: the pods' marker in clear"),
                });
            }
        }
        details
    }
}
