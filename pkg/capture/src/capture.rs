//! A capture that runs in the background.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::classify::classify;
use crate::counters::Counters;
use crate::error::CaptureError;
use crate::reader::{Interfaces, Probe, Reader, Received};

/// How often the reading thread looks whether it shall end.
const TICK: Duration = Duration::from_millis(50);
/// A probe is sent again after this time: it may have met a full queue.
const PROBE_AGAIN: Duration = Duration::from_millis(100);
/// How long [`Capture::snapshot`] waits for its probe.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// Room for about 30,000 frames.
const RECEIVE_BUFFER: usize = 64 << 20;

/// What a capture looks at, and for.
#[derive(Clone, Debug)]
pub struct Config {
    /// The interfaces of the calling thread's network namespace.
    pub interfaces: Interfaces,
    /// Count frames that this host sends, too: right on a node, wrong on a bridge's ports (each frame twice).
    pub with_outgoing: bool,
    /// Prefixes of pod addresses.
    pub pods: Vec<IpNet>,
    /// Octets that the pods put into their packets; found anywhere in a frame, even in one that looks like ESP, the
    /// frame counts as clear. Empty: none.
    pub marker: Vec<u8>,
}

/// A running capture; ends when dropped.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    probe: Probe,
    next_probe: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    counters: Counters,
    /// The highest probe read.
    probe: u64,
    failure: Option<String>,
}

impl Capture {
    /// Starts a capture in the calling thread's network namespace. Frames count from now on.
    ///
    /// # Errors
    /// See [`Reader::open`].
    pub fn start(config: Config) -> Result<Self, CaptureError> {
        let reader = Reader::open(
            config.interfaces.clone(),
            config.with_outgoing,
            RECEIVE_BUFFER,
        )?;
        reader.set_timeout(TICK)?;
        let probe = reader.probe()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || theirs.run(reader, &config))
            .map_err(CaptureError::Read)?;
        Ok(Self {
            shared,
            probe,
            next_probe: AtomicU64::new(1),
            thread: Some(thread),
        })
    }

    /// The counts of every frame that was queued before this call, and of every frame the kernel dropped until then.
    ///
    /// # Errors
    /// The reading thread failed, or its probe did not come back.
    pub fn snapshot(&self) -> Result<Counters, CaptureError> {
        let number = self.next_probe.fetch_add(1, Ordering::Relaxed);
        let deadline = Instant::now() + PROBE_LIMIT;
        while Instant::now() < deadline {
            self.probe.send(number)?;
            let (state, _) = self
                .shared
                .changed
                .wait_timeout_while(self.shared.lock(), PROBE_AGAIN, |state| {
                    state.probe < number && state.failure.is_none()
                })
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(failure) = &state.failure {
                return Err(CaptureError::Ended(failure.clone()));
            }
            if state.probe >= number {
                return Ok(state.counters.clone());
            }
        }
        Err(CaptureError::NoProbe {
            seconds: PROBE_LIMIT.as_secs(),
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut reader: Reader, config: &Config) {
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.step(&mut reader, config) {
                self.lock().failure = Some(error.to_string());
                self.changed.notify_all();
                return;
            }
        }
    }

    fn step(&self, reader: &mut Reader, config: &Config) -> Result<(), CaptureError> {
        match reader.receive()? {
            Received::Frame { interface, bytes } => {
                let frame = classify(bytes, &config.pods);
                let marked = contains(bytes, &config.marker);
                self.lock().counters.add(interface, &frame, marked);
            }
            Received::Probe(number) => {
                let dropped = reader.dropped();
                let mut state = self.lock();
                state.counters.dropped = dropped;
                state.probe = state.probe.max(number);
                self.changed.notify_all();
            }
            Received::Nothing | Received::TimedOut => {}
        }
        Ok(())
    }
}

fn contains(frame: &[u8], marker: &[u8]) -> bool {
    let Some(first) = marker.first() else {
        return false;
    };
    let mut rest = frame;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        let found = &rest[at..];
        if found.starts_with(marker) {
            return true;
        }
        rest = &found[1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_found_wherever_it_is() {
        assert!(contains(b"xxabababcyy", b"ababc"));
        assert!(contains(b"ababc", b"ababc"));
        assert!(!contains(b"xxababab", b"ababc"));
        assert!(!contains(b"anything", b""));
        assert!(!contains(b"", b"a"));
    }
}
