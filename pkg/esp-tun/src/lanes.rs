//! Which queue of the TUN device a flow is on, where there are several.
//!
//! ```text
//!  pod ── flow ──▶ queue 2 ──▶ TX thread 2: the flow is mine ──────────────▶ sealed
//!  pod ◀── flow ── queue 2 ◀── RX thread 0: the flow is on queue 2 ◀──────── opened
//! ```
//!
//! The kernel puts a packet on the queue of its flow's hash, or, for three seconds after one of the flow was written to the device, on the
//! queue that this one was written to (`tun_automq_select_queue`, `tun_flow_update`, `TUN_FLOW_EXPIRE` in drivers/net/tun.c). So a flow
//! can change its queue, and two threads would have packets of it at once. Two rules keep its order:
//!
//! - What comes from a peer is written to the queue on which its flow was seen last. A flow that began here never moves then.
//! - A thread that finds a flow which was another queue's waits until that one's thread has sent everything before it goes on.
//!
//! Flows are remembered by a hash with a random key, so that no pod can choose flows that are taken for each other. A flow that was
//! forgotten, because its place was needed for another, has the kernel's order: nearly always the right one.

use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use espalier_esp::wire::flow::Flow;

use crate::io::is_readable;

/// Flows that are remembered, 8 bytes each.
const FLOWS: usize = 1 << 16;

/// How long a thread waits for another one at most: two that wait for each other go on.
const WAIT: Duration = Duration::from_millis(5);

/// How long the RX threads let the TX threads have what waits in the device when they begin.
const BEGIN: Duration = Duration::from_millis(20);

/// The queues of a device, and where flows are.
pub(crate) struct Lanes {
    key: RandomState,
    /// Most of a flow's hash, and its queue in the last byte; 0: nothing.
    flows: Box<[AtomicU64]>,
    queues: Box<[Lane]>,
}

/// What others see of a TX thread. On a cache line of its own: it is written for each batch.
#[derive(Default)]
#[repr(align(64))]
struct Lane {
    /// Packets may have been taken out of the queue and not sent yet.
    busy: AtomicBool,
    /// It was at rest once.
    began: AtomicBool,
}

impl Lanes {
    /// For so many queues; none are needed for one.
    pub(crate) fn new(queues: usize) -> Option<Self> {
        (queues > 1).then(|| Self {
            key: RandomState::new(),
            flows: (0..FLOWS).map(|_| AtomicU64::new(0)).collect(),
            queues: (0..queues).map(|_| Lane::default()).collect(),
        })
    }

    /// Before the thread of this queue takes something out of it.
    pub(crate) fn begin(&self, queue: usize) {
        let Some(lane) = self.queues.get(queue) else {
            return;
        };
        if !lane.busy.load(Ordering::Relaxed) {
            lane.busy.store(true, Ordering::SeqCst);
            // Before the queue is read: whoever sees it empty then sees this, too.
            fence(Ordering::SeqCst);
        }
    }

    /// The queue was empty, and everything out of it is sent.
    pub(crate) fn rest(&self, queue: usize) {
        if let Some(lane) = self.queues.get(queue) {
            lane.busy.store(false, Ordering::SeqCst);
            lane.began.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that a packet's flow is on this queue; the one on which it was before, if that was another.
    pub(crate) fn settle(&self, packet: &[u8], queue: usize) -> Option<usize> {
        let hash = self.hash(packet)?;
        let flow = self.flows.get(hash as usize % FLOWS)?;
        let (known, now) = (flow.load(Ordering::Relaxed), entry(hash, queue));
        if known == now {
            return None;
        }
        flow.store(now, Ordering::Relaxed);
        queue_of(known, hash)
    }

    /// On which queue a packet's flow was seen; the packet goes the other way.
    pub(crate) fn seen(&self, packet: &[u8]) -> Option<usize> {
        let hash = self.hash(packet)?;
        let flow = self.flows.get(hash as usize % FLOWS)?;
        queue_of(flow.load(Ordering::Relaxed), hash)
    }

    /// Waits until what was in a queue, which has this descriptor, is sent.
    pub(crate) fn wait_for(&self, queue: usize, descriptor: BorrowedFd<'_>) {
        let Some(lane) = self.queues.get(queue) else {
            return;
        };
        wait(WAIT, || {
            let empty = !is_readable(descriptor);
            fence(Ordering::SeqCst);
            empty && !lane.busy.load(Ordering::SeqCst)
        });
    }

    /// Waits until every queue has been empty: flows that wait in the device are known then.
    pub(crate) fn wait_for_beginning(&self) {
        let began = |lane: &Lane| lane.began.load(Ordering::Relaxed);
        wait(BEGIN, || self.queues.iter().all(began));
    }

    /// The same for both directions of a flow.
    fn hash(&self, packet: &[u8]) -> Option<u64> {
        let flow = Flow::read(packet)?.both_ways();
        Some(self.key.hash_one(flow))
    }
}

fn wait(limit: Duration, over: impl Fn() -> bool) {
    let began = Instant::now();
    while !over() && began.elapsed() < limit {
        std::thread::yield_now();
    }
}

/// Queues are counted from 1, so that nothing looks like an entry of zeros.
fn entry(hash: u64, queue: usize) -> u64 {
    (hash & !0xff) | ((queue as u64 + 1) & 0xff)
}

fn queue_of(entry: u64, hash: u64) -> Option<usize> {
    let same = entry & !0xff == hash & !0xff;
    let queue = usize::try_from(entry & 0xff).ok().filter(|_| same)?;
    queue.checked_sub(1)
}
