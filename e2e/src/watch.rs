//! What a capture on the wire saw.

use anyhow::{Context, Result, ensure};
use espalier_capture::{Capture, Config, Counters, Interfaces, interface_index};
use espalier_testnet::Bridge;

use crate::plan;

/// A capture on every port of the bridge, now and later.
#[derive(Debug)]
pub struct Watch {
    capture: Capture,
}

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// See [`Capture::start`].
    pub fn start(bridge: &Bridge) -> Result<Self> {
        let capture = bridge.netns().run(|| {
            // A frame enters by one port; the bridge itself and outgoing copies would count it again.
            let bridge = interface_index(Bridge::DEVICE)?;
            Capture::start(Config {
                interfaces: Interfaces::AllBut(vec![bridge]),
                with_outgoing: false,
                pods: vec![plan::cluster_cidr(), plan::cluster_cidr_v6()],
                marker: plan::MARKER.to_vec(),
            })
        })?;
        let capture = capture.context("capturing on the wire")?;
        Ok(Self { capture })
    }

    /// Everything until now.
    ///
    /// # Errors
    /// The capture lost frames or met one it cannot decode: it would prove nothing.
    pub fn now(&self) -> Result<Counters> {
        complete(&self.capture).context("on the wire")
    }

    /// S1: no clear pod packet since `before`. Returns what else was seen since then.
    ///
    /// # Errors
    /// There was one: the text holds its addresses.
    pub fn nothing_clear_since(&self, before: &Counters) -> Result<Counters> {
        let seen = self.now()?.since(before);
        ensure!(
            seen.clear == 0,
            "{} clear pod packets on the wire, the last: {:?}",
            seen.clear,
            seen.samples
        );
        Ok(seen)
    }
}

/// What a capture has seen until now.
///
/// # Errors
/// It lost frames or met one it cannot decode: it would prove nothing.
pub fn complete(capture: &Capture) -> Result<Counters> {
    let seen = capture.snapshot().context("the capture")?;
    ensure!(
        seen.dropped + seen.undecoded == 0,
        "{} frames dropped by the capture, {} not decodable: no proof",
        seen.dropped,
        seen.undecoded
    );
    Ok(seen)
}
