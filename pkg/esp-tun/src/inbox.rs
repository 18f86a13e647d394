//! Received datagrams until their pod packets are written: opened where they are, joined where they are.

use std::io::IoSlice;
use std::ops::Range;

use espalier_esp::offload::{Coalescer, Offload, Written};

use crate::io::{RawReceived, Received, SLOT};

/// Bytes that one call can receive.
const MOST: usize = 65_535;
/// Room for several such calls, so that what a sender split over two is one packet again.
const CALLS: usize = 4;
/// Packets that wait at most, so that small ones do not wait long.
const PACKETS: usize = 512;

/// One buffer that calls fill one after the other.
pub(crate) struct Inbox {
    buffer: Box<[u8]>,
    filled: usize,
    coalescer: Coalescer,
}

impl Inbox {
    /// For datagrams one after the other.
    pub(crate) fn new(offload: Offload) -> Self {
        Self::of(CALLS * MOST, offload)
    }

    /// For so many packets, each in a slot.
    pub(crate) fn of_slots(count: usize, offload: Offload) -> Self {
        Self::of(count * SLOT, offload)
    }

    fn of(len: usize, offload: Offload) -> Self {
        Self {
            buffer: vec![0; len].into(),
            filled: 0,
            coalescer: Coalescer::new(offload),
        }
    }

    /// Where to receive.
    pub(crate) fn free(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.filled..).unwrap_or_default()
    }

    /// Whether it must be written out before more is received.
    pub(crate) fn is_full(&self) -> bool {
        self.buffer.len() - self.filled < MOST || self.coalescer.waiting() >= PACKETS
    }

    /// Gives each datagram that was received at [`Inbox::free`] to `judge`, which opens it and says where in it a pod packet stands.
    pub(crate) fn take(
        &mut self,
        received: &Received,
        mut judge: impl FnMut(&mut [u8]) -> Option<Range<usize>>,
    ) {
        let end = (self.filled + received.len).min(self.buffer.len());
        let step = received.segment.max(1);
        // An empty datagram is one, too.
        let count = received.len.div_ceil(step).max(1);
        for index in 0..count {
            let from = (self.filled + index * step).min(end);
            self.take_one(from..(from + step).min(end), &mut judge);
        }
        self.fill_to(end);
    }

    /// The same for packets that were received in slots at [`Inbox::free`].
    pub(crate) fn take_slots(
        &mut self,
        received: &[RawReceived],
        mut judge: impl FnMut(&mut [u8], &RawReceived) -> Option<Range<usize>>,
    ) {
        for (index, packet) in received.iter().enumerate() {
            let from = self.filled + index * SLOT;
            self.take_one(from..from + packet.len.min(SLOT), |bytes| {
                judge(bytes, packet)
            });
        }
        self.fill_to(self.filled + received.len() * SLOT);
    }

    fn take_one(
        &mut self,
        at: Range<usize>,
        judge: impl FnOnce(&mut [u8]) -> Option<Range<usize>>,
    ) {
        let from = at.start;
        let place = self.buffer.get_mut(at).and_then(judge);
        // ESP's header is in front of the packet, and longer than what goes there.
        let taken = place.map(|p| self.coalescer.push(&self.buffer, from + p.start, p.len()));
        debug_assert_ne!(taken, Some(false), "a pod packet outside of its datagram");
    }

    /// What holds no packet is room again.
    fn fill_to(&mut self, end: usize) {
        if self.coalescer.waiting() > 0 {
            self.filled = end;
        }
    }

    /// Gives all pod packets to `write`, each with what it stands for.
    pub(crate) fn write_out(&mut self, write: impl FnMut(&[IoSlice<'_>], Written)) {
        self.coalescer.write_out(&mut self.buffer, write);
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(inbox: &mut Inbox, bytes: &[u8], segment: usize) -> Vec<Vec<u8>> {
        inbox.free()[..bytes.len()].copy_from_slice(bytes);
        let mut seen = Vec::new();
        let received = Received {
            len: bytes.len(),
            segment,
            ecn: 0,
            path: None,
        };
        inbox.take(&received, |datagram| {
            seen.push(datagram.to_vec());
            (datagram.len() > 16).then_some(16..datagram.len())
        });
        seen
    }

    #[test]
    fn what_the_kernel_joined_is_taken_apart() {
        let mut inbox = Inbox::new(Offload::Tcp);
        assert_eq!(received(&mut inbox, b"", 0), [b""]);
        assert_eq!(received(&mut inbox, b"abcde", 5), [b"abcde"]);
        assert_eq!(received(&mut inbox, b"abcde", 2), [&b"ab"[..], b"cd", b"e"]);
        assert_eq!(inbox.filled, 0, "nothing was kept");
        received(&mut inbox, &[7; 40], 20);
        received(&mut inbox, &[9; 30], 30);
        assert_eq!(inbox.filled, 70);
        let mut out = Vec::new();
        inbox.write_out(|parts, written| {
            assert_eq!((parts.len(), written.packets), (1, 1));
            out.push(parts[0][10..].to_vec());
        });
        assert_eq!(out, [vec![7; 4], vec![7; 4], vec![9; 14]]);
        assert_eq!(inbox.filled, 0);
    }

    #[test]
    fn it_is_full_while_there_is_room_for_no_further_call() {
        let mut inbox = Inbox::new(Offload::Tcp);
        for call in 0..CALLS {
            assert!(!inbox.is_full(), "call {call}");
            received(&mut inbox, &vec![1; MOST], 1400);
        }
        assert!(inbox.is_full());
        inbox.write_out(|_, _| {});
        for _ in 0..PACKETS {
            assert!(!inbox.is_full());
            received(&mut inbox, &[1; 20], 20);
        }
        assert!(inbox.is_full());
    }
}
