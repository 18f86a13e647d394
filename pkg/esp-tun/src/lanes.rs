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
//! Flows are remembered by a hash with a random key, so that no pod can choose flows that are taken for each other. Two cases have the kernel's
//! order, which is nearly always the right one: a flow that was forgotten, because its place was needed for another; and the first
//! packets of one that begins at both ends at the same moment, which nobody has seen yet when the other end's first packet is written.

use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use espalier_esp::wire::flow::Flow;

use crate::io::{Interest, is_ready};

/// Flows that are remembered, 8 bytes each.
const FLOWS: usize = 1 << 16;

/// How long a thread waits for another one at most: two that wait for each other go on.
const LIMIT: Duration = Duration::from_millis(20);

/// How long the RX threads let the TX threads have what waits in the device when they begin.
const BEGIN: Duration = Duration::from_millis(20);

/// The queues of a device, and where flows are.
pub(crate) struct Lanes {
    key: RandomState,
    /// Most of a flow's hash, and its queue in the last byte; 0: nothing.
    flows: Box<[AtomicU64]>,
    queues: Box<[Lane]>,
    limit: Duration,
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
            limit: LIMIT,
        })
    }

    #[cfg(test)]
    pub(crate) fn patient(queues: usize, limit: Duration) -> Self {
        let lanes = Self::new(queues).expect("several queues");
        Self { limit, ..lanes }
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

    /// Notes that a packet's flow is on this queue. Where it was on another before, `wait` is called first with that one, whose thread
    /// goes on with the flow's packets until then as if nothing had happened.
    pub(crate) fn settle(&self, packet: &[u8], queue: usize, wait: impl FnOnce(usize)) {
        let Some(hash) = self.hash(packet) else {
            return;
        };
        let Some(flow) = self.flows.get(hash as usize % FLOWS) else {
            return;
        };
        let (known, now) = (flow.load(Ordering::Relaxed), entry(hash, queue));
        if known != now {
            if let Some(before) = queue_of(known, hash) {
                wait(before);
            }
            flow.store(now, Ordering::Relaxed);
        }
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
        wait(self.limit, || {
            let empty = !is_ready(descriptor, Interest::Readable);
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::fixture::pod_packet;

    /// Only to fail instead of hanging.
    const LONG: Duration = Duration::from_secs(20);

    fn lanes(queues: usize) -> Lanes {
        Lanes::patient(queues, LONG)
    }

    /// What comes back for [`pod_packet`]: ports are the other way round, too.
    fn answer(here: &str, there: &str) -> Vec<u8> {
        let mut packet = pod_packet(there, here);
        let ports = packet.len() - 12;
        packet[ports..ports + 4].rotate_left(2);
        packet
    }

    fn moved(lanes: &Lanes, packet: &[u8], queue: usize) -> Option<usize> {
        let mut from = None;
        lanes.settle(packet, queue, |before| from = Some(before));
        from
    }

    #[test]
    fn one_queue_needs_nothing() {
        assert!(Lanes::new(1).is_none());
    }

    #[test]
    fn a_flow_is_known_from_both_sides_and_told_when_it_moves() {
        let lanes = lanes(3);
        for (here, there) in [("10.244.1.2", "10.244.2.3"), ("fd00:1::2", "fd00:2::3")] {
            let (out, back) = (pod_packet(here, there), answer(here, there));
            assert_eq!(lanes.seen(&back), None);
            assert_eq!(moved(&lanes, &out, 2), None, "new");
            assert_eq!(moved(&lanes, &out, 2), None, "still there");
            assert_eq!(lanes.seen(&back), Some(2));
            // A large packet's first part holds its headers and not all that they tell of.
            assert_eq!(lanes.seen(&back[..back.len() - 1]), Some(2));
            assert_eq!(moved(&lanes, &out, 0), Some(2), "moved");
            assert_eq!(lanes.seen(&back), Some(0));
        }
        assert_eq!(moved(&lanes, b"no packet", 1), None);
        assert_eq!(lanes.seen(b"no packet"), None);
    }

    #[test]
    fn flows_are_told_apart() {
        let lanes = lanes(2);
        for last in 0..=255 {
            let packet = pod_packet(&format!("10.244.1.{last}"), "10.244.2.3");
            assert_eq!(moved(&lanes, &packet, usize::from(last % 2 == 0)), None);
        }
        let known = (0..=255_u8).filter(|last| {
            let packet = pod_packet(&format!("10.244.1.{last}"), "10.244.2.3");
            lanes.seen(&packet) == Some(usize::from(last % 2 == 0))
        });
        // Two of 256 may need one place of 65,536.
        assert!(known.count() > 250);
    }

    #[test]
    fn it_is_waited_until_the_queue_is_empty_and_its_packets_are_sent() {
        let lanes = lanes(2);
        let (queue, pods) = UnixDatagram::pair().unwrap();
        lanes.begin(1);
        pods.send(b"packet").unwrap();
        let sent = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                lanes.wait_for(1, queue.as_fd());
                assert!(sent.load(Ordering::SeqCst), "it waited");
            });
            // At rest, and something has come since.
            lanes.rest(1);
            std::thread::sleep(Duration::from_millis(10));
            lanes.begin(1);
            queue.recv(&mut [0; 8]).unwrap();
            std::thread::sleep(Duration::from_millis(10));
            sent.store(true, Ordering::SeqCst);
            lanes.rest(1);
            waits.join().unwrap();
        });
    }

    #[test]
    fn waiting_ends_when_the_other_thread_hangs() {
        let lanes = Lanes::new(2).unwrap();
        let (queue, _pods) = UnixDatagram::pair().unwrap();
        lanes.begin(1);
        let began = Instant::now();
        lanes.wait_for(1, queue.as_fd());
        lanes.wait_for_beginning();
        assert!(began.elapsed() >= LIMIT);
    }
}
