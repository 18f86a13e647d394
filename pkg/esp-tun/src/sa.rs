//! An SA at work: cipher state, counters, age.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use espalier_dataplane_core::{
    Encapsulation, FrozenCounters, FrozenSa, Progress, Sa, SaInfo, Suite,
};
use espalier_esp::{Algorithm, InboundSa, KeyError, OutboundSa, ReplayWindow};
use parking_lot::Mutex;

use crate::cipher::Cipher;
use crate::rx::Carrier;

/// Counts from the moment the SA was installed.
#[derive(Debug)]
pub(crate) struct Counters {
    installed: Instant,
    packets: AtomicU64,
    bytes: AtomicU64,
    drops: AtomicU64,
    /// Milliseconds from installation to the last packet.
    last: AtomicU64,
}

/// Seals what goes to a peer.
pub(crate) struct Outbound {
    pub(crate) sa: Sa,
    pub(crate) esp: OutboundSa<Cipher>,
    /// The peer's UDP port; `None`: raw ESP.
    pub(crate) remote_port: Option<u16>,
    pub(crate) counters: Counters,
}

/// Opens what a peer sealed.
pub(crate) struct Inbound {
    pub(crate) sa: Sa,
    /// The RX thread alone takes it.
    pub(crate) esp: Mutex<InboundSa<Cipher>>,
    pub(crate) counters: Counters,
    proven: AtomicBool,
}

impl Outbound {
    pub(crate) fn new(sa: Sa, remote_port: Option<u16>, now: Instant) -> Result<Self, KeyError> {
        let esp = OutboundSa::new(sa.spi.0, algorithm(sa.suite)?, sa.key.expose(), sa.esn)?;
        Ok(Self {
            sa,
            esp,
            remote_port,
            counters: Counters::new(now),
        })
    }

    /// Goes on where another process ended.
    pub(crate) fn after(self, counters: Counters, last: u64) -> Self {
        Self {
            esp: self.esp.after(last),
            counters,
            ..self
        }
    }

    pub(crate) fn freeze(&self, now: Instant) -> FrozenSa {
        FrozenSa {
            sa: self.sa.clone(),
            counters: self.counters.freeze(now),
            progress: Progress::Sealed {
                last: self.esp.last_sequence(),
            },
        }
    }

    /// Its time is over: nothing is sealed by it any more.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.counters.outlived(self.sa.hard_seconds, now)
    }

    pub(crate) fn info(&self, active: bool, now: Instant) -> SaInfo {
        self.counters.info(&self.sa, active, now)
    }
}

impl Inbound {
    pub(crate) fn new(sa: Sa, now: Instant) -> Result<Self, KeyError> {
        let esp = InboundSa::new(
            sa.spi.0,
            algorithm(sa.suite)?,
            sa.key.expose(),
            sa.esn,
            sa.replay_window,
        )?;
        Ok(Self {
            sa,
            esp: Mutex::new(esp),
            counters: Counters::new(now),
            proven: AtomicBool::new(false),
        })
    }

    /// Goes on where another process ended.
    pub(crate) fn after(self, counters: Counters, window: ReplayWindow, proven: bool) -> Self {
        Self {
            esp: Mutex::new(self.esp.into_inner().with_window(window)),
            counters,
            proven: AtomicBool::new(proven),
            ..self
        }
    }

    pub(crate) fn freeze(&self, now: Instant) -> FrozenSa {
        let esp = self.esp.lock();
        let window = esp.window();
        FrozenSa {
            sa: self.sa.clone(),
            counters: self.counters.freeze(now),
            progress: Progress::Opened {
                top: window.top(),
                words: window.words().to_vec(),
                proven: self.proven.load(Ordering::Relaxed),
            },
        }
    }

    /// What its packets must come in.
    pub(crate) fn carrier(&self) -> Carrier {
        match self.sa.encapsulation {
            Encapsulation::Udp { .. } => Carrier::Udp,
            Encapsulation::Raw => Carrier::Raw,
        }
    }

    /// Notes an authenticated packet; true for the first one.
    pub(crate) fn prove(&self) -> bool {
        !self.proven.load(Ordering::Relaxed) && !self.proven.swap(true, Ordering::Relaxed)
    }

    /// Its time is over: nothing is opened by it any more.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.counters.outlived(self.sa.hard_seconds, now)
    }

    pub(crate) fn info(&self, now: Instant) -> SaInfo {
        self.counters
            .info(&self.sa, self.proven.load(Ordering::Relaxed), now)
    }
}

impl Counters {
    fn new(installed: Instant) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            installed,
            packets: zero(),
            bytes: zero(),
            drops: zero(),
            last: zero(),
        }
    }

    /// Those of another process, whose clock is this one's.
    pub(crate) fn resume(frozen: &FrozenCounters, now: Instant) -> Self {
        let age = Duration::from_millis(frozen.age_ms);
        Self {
            installed: now.checked_sub(age).unwrap_or(now),
            packets: AtomicU64::new(frozen.packets),
            bytes: AtomicU64::new(frozen.bytes),
            drops: AtomicU64::new(frozen.drops),
            last: AtomicU64::new(frozen.last_ms),
        }
    }

    fn freeze(&self, now: Instant) -> FrozenCounters {
        FrozenCounters {
            age_ms: u64::try_from(self.age(now).as_millis()).unwrap_or(u64::MAX),
            last_ms: self.last.load(Ordering::Relaxed),
            packets: self.packets.load(Ordering::Acquire),
            bytes: self.bytes.load(Ordering::Relaxed),
            drops: self.drops.load(Ordering::Relaxed),
        }
    }

    /// So many packets with `bytes` of ESP payload together went through.
    pub(crate) fn pass(&self, packets: usize, bytes: usize, now: Instant) {
        if packets == 0 {
            return;
        }
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.last
            .store(self.age(now).as_millis() as u64, Ordering::Relaxed);
        self.packets.fetch_add(packets as u64, Ordering::Release);
    }

    /// So many did not.
    pub(crate) fn drop(&self, packets: usize) {
        self.drops.fetch_add(packets as u64, Ordering::Relaxed);
    }

    /// 0 seconds: no limit.
    fn outlived(&self, hard_seconds: u32, now: Instant) -> bool {
        hard_seconds > 0 && self.age(now) >= Duration::from_secs(hard_seconds.into())
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.installed)
    }

    fn info(&self, sa: &Sa, active: bool, now: Instant) -> SaInfo {
        let packets = self.packets.load(Ordering::Acquire);
        let idle =
            (self.age(now).as_millis() as u64).saturating_sub(self.last.load(Ordering::Relaxed));
        SaInfo {
            peer: sa.peer.clone(),
            direction: sa.direction,
            spi: sa.spi,
            suite: sa.suite,
            encapsulation: sa.encapsulation,
            active,
            age_s: self.age(now).as_secs(),
            packets,
            bytes: self.bytes.load(Ordering::Relaxed),
            drops: self.drops.load(Ordering::Relaxed),
            idle_ms: (packets > 0).then_some(idle),
            cpu: sa.cpu,
        }
    }
}

fn algorithm(suite: Suite) -> Result<Algorithm, KeyError> {
    match suite {
        Suite::Aes128Gcm16 => Ok(Algorithm::Aes128Gcm16),
        Suite::Aes256Gcm16 => Ok(Algorithm::Aes256Gcm16),
        Suite::ChaCha20Poly1305 => Ok(Algorithm::ChaCha20Poly1305),
        Suite::Aes128Gmac | Suite::Aes256Gmac => Err(KeyError::Unsupported("AES-GMAC")),
        Suite::AhHmacSha256 => Err(KeyError::Unsupported("AH")),
    }
}
