//! Numbered UDP packets between pods: every lost one is known.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};

use crate::bench::until;
use crate::plan::{MARKER, POD_PORT};
use crate::pod::Pod;

/// How long a packet may be under way before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(20);

/// A stream of packets from one pod to another until it is dropped.
#[derive(Debug)]
pub struct Flow {
    name: String,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// How far a flow was at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

#[derive(Debug, Default)]
struct Shared {
    sent: AtomicU64,
    arrived: Mutex<BTreeSet<u64>>,
    /// By number, to be compared with the logs.
    sent_at: Mutex<Vec<SystemTime>>,
    stop: AtomicBool,
}

impl Flow {
    /// Starts one packet every two milliseconds; the receiver listens on `port`, of its own for each flow.
    ///
    /// # Errors
    /// A port is taken.
    pub fn start(from: &Pod, to: &Pod, port: u16) -> Result<Self> {
        let (sender, receiver) = (from.socket(0)?, to.socket(port)?);
        receiver.set_read_timeout(Some(LOOK))?;
        let shared = Arc::new(Shared::default());
        let (theirs, target) = (Arc::clone(&shared), (to.address, port));
        let sending = std::thread::spawn(move || theirs.send(&sender, target));
        let theirs = Arc::clone(&shared);
        let receiving = std::thread::spawn(move || theirs.receive(&receiver));
        Ok(Self {
            name: format!("{} → {}", from.name, to.name),
            shared,
            threads: vec![sending, receiving],
        })
    }

    /// Where it is now.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.shared.sent.load(Ordering::Acquire))
    }

    /// Waits until packets sent after `mark` arrive.
    ///
    /// # Errors
    /// None does.
    pub fn await_since(&self, mark: Mark) -> Result<()> {
        until(&format!("packets of {}", self.name), || {
            let newer = lock(&self.shared.arrived).range(mark.0..).next().is_some();
            Ok(newer.then_some(()).ok_or_else(|| "none arrives".to_owned()))
        })
    }

    /// Fails when a packet sent since `mark` until now was lost; waits for stragglers.
    ///
    /// # Errors
    /// Packets are missing: the text says how many, and which.
    pub fn none_lost_since(&self, mark: Mark) -> Result<()> {
        let (now, deadline) = (self.mark(), Instant::now() + PATIENCE);
        loop {
            let missing = self.shared.missing(mark.0, now.0);
            if missing.is_empty() {
                ensure!(now.0 > mark.0, "{}: nothing was sent", self.name);
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{}: {} of {} packets lost, sent at (UTC) {}",
                self.name,
                missing.len(),
                now.0 - mark.0,
                self.shared.times(&missing)
            );
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn send(&self, socket: &UdpSocket, to: (Ipv4Addr, u16)) {
        while !self.stop.load(Ordering::Relaxed) {
            lock(&self.sent_at).push(SystemTime::now());
            let number = self.sent.fetch_add(1, Ordering::AcqRel);
            // What the kernel does not take is lost like any other.
            let _ = socket.send_to(&packet(number), to);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn receive(&self, socket: &UdpSocket) {
        let mut buffer = [0; 256];
        while !self.stop.load(Ordering::Relaxed) {
            if let Ok(length) = socket.recv(&mut buffer)
                && let Some(number) = number_of(&buffer[..length])
            {
                lock(&self.arrived).insert(number);
            }
        }
    }

    fn missing(&self, from: u64, to: u64) -> Vec<u64> {
        let arrived = lock(&self.arrived);
        (from..to)
            .filter(|number| !arrived.contains(number))
            .collect()
    }

    /// Minute, second and fraction, as logs have them.
    fn times(&self, numbers: &[u64]) -> String {
        let sent_at = lock(&self.sent_at);
        let time = |number: &u64| {
            let at = sent_at.get(usize::try_from(*number).ok()?)?;
            let at = at.duration_since(UNIX_EPOCH).ok()?;
            let (minute, second) = (at.as_secs() / 60 % 60, at.as_secs() % 60);
            Some(format!("{minute:02}:{second:02}.{:03}", at.subsec_millis()))
        };
        let times: Vec<String> = numbers.iter().filter_map(time).collect();
        match &times[..] {
            [first, .., last] if times.len() > 8 => format!("{first} to {last}"),
            _ => times.join(", "),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends `count` packets to an address, whatever becomes of them.
///
/// # Errors
/// The pod has no socket for it.
pub fn send_numbered(from: &Pod, to: Ipv4Addr, count: u64) -> Result<()> {
    let socket = from.socket(0)?;
    for number in 0..count {
        // The host may well answer that there is no way.
        let _ = socket.send_to(&packet(number), (to, POD_PORT));
    }
    Ok(())
}

/// Sends `count` packets each way between two pods and fails unless all arrive.
///
/// # Errors
/// Packets are missing.
pub fn exchange(a: &Pod, b: &Pod, count: u64) -> Result<()> {
    let sockets = (a.socket(POD_PORT)?, b.socket(POD_PORT)?);
    for number in 0..count {
        sockets.0.send_to(&packet(number), (b.address, POD_PORT))?;
        sockets.1.send_to(&packet(number), (a.address, POD_PORT))?;
    }
    for (socket, from, to) in [(&sockets.0, b, a), (&sockets.1, a, b)] {
        let arrived = collect(socket, count)?;
        let got = arrived.len();
        ensure!(
            u64::try_from(got)? == count,
            "{} → {}: {got} of {count} packets arrived",
            from.name,
            to.name
        );
    }
    Ok(())
}

fn collect(socket: &UdpSocket, count: u64) -> Result<BTreeSet<u64>> {
    socket.set_read_timeout(Some(LOOK))?;
    let (mut arrived, mut buffer) = (BTreeSet::new(), [0; 256]);
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && (0..count).any(|number| !arrived.contains(&number)) {
        if let Ok(length) = socket.recv(&mut buffer) {
            arrived.extend(number_of(&buffer[..length]));
        }
    }
    Ok(arrived)
}

fn packet(number: u64) -> [u8; 128] {
    let mut packet = [0; 128];
    packet[..16].copy_from_slice(MARKER);
    packet[16..24].copy_from_slice(&number.to_be_bytes());
    packet
}

fn number_of(packet: &[u8]) -> Option<u64> {
    let rest = packet.strip_prefix(MARKER)?;
    Some(u64::from_be_bytes(rest.get(..8)?.try_into().ok()?))
}
