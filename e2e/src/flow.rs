//! Numbered UDP packets between pods: every lost one is known.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};

use crate::bench::until;
use crate::plan::{Family, MARKER, POD_PORT};
use crate::pod::Pod;

/// How long a packet may be under way before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(20);

/// Milliseconds between two packets of a flow: more where the machine is slow.
pub const INTERVAL: &str = "ESPALIER_E2E_INTERVAL";

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

/// What became of a flow's packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All of them.
    pub sent: u64,
    /// Those that did not arrive.
    pub lost: u64,
    /// When those were sent, as logs have it.
    pub when: String,
}

/// Between two packets.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// At least this.
    Pause(Duration),
    /// This on average.
    Every(Duration),
}

#[derive(Debug, Default)]
struct Shared {
    sent: AtomicU64,
    arrived: Mutex<BTreeSet<u64>>,
    /// By number, to be compared with the logs.
    sent_at: Mutex<Vec<SystemTime>>,
    stop: AtomicBool,
}

impl Flow {
    /// Starts one packet every two milliseconds, or as [`INTERVAL`] says; the receiver listens on `port`, of its own for each
    /// flow.
    ///
    /// # Errors
    /// A port is taken.
    pub fn start(from: &Pod, to: &Pod, port: u16) -> Result<Self> {
        Self::start_on(Family::V4, from, to, port)
    }

    /// The same in this IP version.
    ///
    /// # Errors
    /// A port is taken, or a pod has no such address.
    pub fn start_on(family: Family, from: &Pod, to: &Pod, port: u16) -> Result<Self> {
        Self::run(family, (from, to), port, Pace::Pause(interval()))
    }

    /// So many packets each second, caught up with where the machine was busy elsewhere.
    ///
    /// # Errors
    /// A port is taken.
    pub fn start_paced(from: &Pod, to: &Pod, port: u16, per_second: u32) -> Result<Self> {
        let pace = Pace::Every(Duration::from_secs(1) / per_second.max(1));
        Self::run(Family::V4, (from, to), port, pace)
    }

    fn run(family: Family, (from, to): (&Pod, &Pod), port: u16, pace: Pace) -> Result<Self> {
        let (sender, receiver) = (from.socket_on(family, 0)?, to.socket_on(family, port)?);
        let target = SocketAddr::new(to.address_on(family)?, port);
        receiver.set_read_timeout(Some(LOOK))?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let sending = std::thread::spawn(move || theirs.send(&sender, target, pace));
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

    /// Packets sent since `mark` until now, and how many of them were lost; waits for stragglers.
    #[must_use]
    pub fn count_since(&self, mark: Mark) -> Count {
        let (now, deadline) = (self.mark(), Instant::now() + PATIENCE);
        loop {
            let missing = self.shared.missing(mark.0, now.0);
            if missing.is_empty() || Instant::now() > deadline {
                return Count {
                    sent: now.0 - mark.0,
                    lost: u64::try_from(missing.len()).unwrap_or(u64::MAX),
                    when: self.shared.times(&missing),
                };
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Fails when a packet sent since `mark` until now was lost; waits for stragglers.
    ///
    /// # Errors
    /// Packets are missing: the text says how many, and which.
    pub fn none_lost_since(&self, mark: Mark) -> Result<()> {
        let Count { sent, lost, when } = self.count_since(mark);
        ensure!(sent > 0, "{}: nothing was sent", self.name);
        ensure!(
            lost == 0,
            "{}: {lost} of {sent} packets lost, sent at (UTC) {when}",
            self.name
        );
        Ok(())
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
    fn send(&self, socket: &UdpSocket, to: SocketAddr, pace: Pace) {
        let mut due = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            lock(&self.sent_at).push(SystemTime::now());
            let number = self.sent.fetch_add(1, Ordering::AcqRel);
            // What the kernel does not take is lost like any other.
            let _ = socket.send_to(&packet(number), to);
            match pace {
                Pace::Pause(pause) => std::thread::sleep(pause),
                Pace::Every(interval) => {
                    due += interval;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            }
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
    send_numbered_to(from, to.into(), count)
}

/// The same to an address of any IP version.
///
/// # Errors
/// The pod has no socket for it.
pub fn send_numbered_to(from: &Pod, to: IpAddr, count: u64) -> Result<()> {
    let socket = from.socket_on(Family::of(to), 0)?;
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
    exchange_on(Family::V4, a, b, count)
}

/// The same in this IP version.
///
/// # Errors
/// Packets are missing, or a pod has no such address.
pub fn exchange_on(family: Family, a: &Pod, b: &Pod, count: u64) -> Result<()> {
    let sockets = (
        a.socket_on(family, POD_PORT)?,
        b.socket_on(family, POD_PORT)?,
    );
    let addresses = (a.address_on(family)?, b.address_on(family)?);
    for number in 0..count {
        sockets
            .0
            .send_to(&packet(number), (addresses.1, POD_PORT))?;
        sockets
            .1
            .send_to(&packet(number), (addresses.0, POD_PORT))?;
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

fn interval() -> Duration {
    let told = std::env::var(INTERVAL)
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_millis(told.unwrap_or(2))
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
