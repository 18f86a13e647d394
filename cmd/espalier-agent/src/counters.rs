//! What is counted from the agent's start on, for metrics.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use espalier_dataplane_core::{Direction, Dump};
use espalier_telemetry::metrics::Histogram;

/// Counters, shared by the mesh and the pages.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    handshakes: AtomicU64,
    handshakes_failed: AtomicU64,
    rekeys: AtomicU64,
    pub(crate) handshake_time: Histogram,
    traffic: Mutex<Traffic>,
}

/// Traffic of all SAs there ever were: SAs come and go, and a counter only grows.
#[derive(Debug, Default)]
struct Traffic {
    /// By peer, whether outbound, and SPI: packets and bytes at the last look.
    seen: HashMap<(String, bool, u32), Volume>,
    inbound: Volume,
    outbound: Volume,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Counters {
    pub(crate) fn handshake(&self, took: Duration) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        self.handshake_time.observe(took);
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn rekey(&self) {
        self.rekeys.fetch_add(1, Ordering::Relaxed);
    }

    /// Handshakes that succeeded, and that failed.
    pub(crate) fn handshakes(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.handshakes), load(&self.handshakes_failed))
    }

    pub(crate) fn rekeys(&self) -> u64 {
        self.rekeys.load(Ordering::Relaxed)
    }

    /// Takes the data plane's counters. What an SA did between the last look and its end is not counted.
    pub(crate) fn take_dump(&self, dump: &Dump) {
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut traffic.seen);
        for sa in &dump.sas {
            let out = sa.direction == Direction::Out;
            let key = (sa.peer.0.clone(), out, sa.spi.0);
            let now = Volume {
                packets: sa.packets,
                bytes: sa.bytes,
            };
            let before = old.get(&key).copied().unwrap_or_default();
            let total = match out {
                true => &mut traffic.outbound,
                false => &mut traffic.inbound,
            };
            total.packets += now.packets.saturating_sub(before.packets);
            total.bytes += now.bytes.saturating_sub(before.bytes);
            traffic.seen.insert(key, now);
        }
    }

    /// What was received, and what was sent.
    pub(crate) fn traffic(&self) -> (Volume, Volume) {
        let traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        (traffic.inbound, traffic.outbound)
    }
}

#[cfg(test)]
mod tests {
    use espalier_dataplane_core::{Encapsulation, PeerId, SaInfo, Spi, Suite};

    use super::*;

    fn sa(spi: u32, packets: u64) -> SaInfo {
        SaInfo {
            peer: PeerId("b".to_owned()),
            direction: Direction::Out,
            spi: Spi(spi),
            suite: Suite::Aes256Gcm16,
            encapsulation: Encapsulation::Raw,
            active: true,
            age_s: 1,
            packets,
            bytes: packets * 100,
            drops: 0,
            idle_ms: None,
            cpu: None,
        }
    }

    #[test]
    fn totals_grow_over_rekeys() {
        let counters = Counters::default();
        for sas in [
            vec![sa(1, 10)],
            vec![sa(1, 15), sa(2, 1)],
            vec![sa(2, 4)],
            vec![],
            vec![sa(3, 1)],
        ] {
            counters.take_dump(&Dump {
                sas,
                peers: Vec::new(),
                drops: Vec::new(),
            });
        }
        let (inbound, outbound) = counters.traffic();
        assert_eq!(inbound, Volume::default());
        assert_eq!((outbound.packets, outbound.bytes), (20, 2000));
    }
}
