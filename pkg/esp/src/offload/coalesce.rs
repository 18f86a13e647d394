use std::io::IoSlice;

use crate::wire::checksum;
use crate::wire::virtio::{self, Gso};

use super::Offload;
use super::segment::{self, Seen, Segment};

/// Flows that are looked for at once.
const SLOTS: usize = 64;
/// Packets in a large one: what kernels before 6.9 take at most of UDP.
const MAX_PACKETS: usize = 64;
/// Bytes of a large packet: what its length field can say.
const MAX_LEN: usize = 65_535;
/// Neither a slot nor a piece.
const NONE: u32 = u32::MAX;

/// Joins packets that follow each other in a flow. They stay where they are, in one buffer of the caller's, until
/// [`Coalescer::write_out`] has given all of them on.
///
/// The rules are those of Linux's GRO, or stricter: what comes out, taken apart by [`super::Large`] or by the kernel, is the packets
/// that went in, byte for byte (but for identifications of packets that are never fragmented). Checksums are verified of all
/// packets that are joined, since the device takes a large packet's for granted; a packet that is not right goes on alone, as
/// it is. Packets of a flow keep their order: a packet is joined to the last one of its flow only.
#[derive(Debug)]
pub struct Coalescer {
    offload: Offload,
    items: Vec<Item>,
    pieces: Vec<Piece>,
    /// By hash: the item that a flow's next packet may be joined to.
    slots: [u32; SLOTS],
}

/// What was given to the device at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Packets that it stands for.
    pub packets: usize,
    /// Bytes, the virtio header left out.
    pub bytes: usize,
}

/// A packet, or several that were joined.
#[derive(Clone, Copy, Debug)]
struct Item {
    /// Of the first packet in the buffer.
    at: usize,
    len: usize,
    segment: Option<Segment>,
    count: usize,
    /// Payload of all packets.
    payload: usize,
    /// The first packet's checksums were looked at.
    verified: bool,
    pushes: bool,
    /// Of the pieces.
    first: u32,
    last: u32,
}

/// Payload of a packet behind the first one.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: usize,
    len: usize,
    next: u32,
}

impl Coalescer {
    /// For a device that understands `offload`.
    #[must_use]
    pub fn new(offload: Offload) -> Self {
        Self {
            offload,
            items: Vec::new(),
            pieces: Vec::new(),
            slots: [NONE; SLOTS],
        }
    }

    /// Packets and large packets that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.items.len()
    }

    /// Takes the packet of `len` bytes at `at` in `buffer`. The [`Offload::headroom`] bytes in front of it must be free for the virtio
    /// header; false when they are not there, or the packet is not, and then it is not taken.
    #[must_use]
    pub fn push(&mut self, buffer: &[u8], at: usize, len: usize) -> bool {
        let Some(packet) = buffer.get(at..).and_then(|rest| rest.get(..len)) else {
            return false;
        };
        if at < self.offload.headroom() {
            return false;
        }
        match segment::look(packet) {
            _ if self.offload == Offload::None => self.add(at, len, None),
            Seen::Strange => {
                self.add(at, len, None);
                self.slots = [NONE; SLOTS];
            }
            Seen::Flow(hash, segment) => {
                let segment = segment.filter(|s| s.tcp || self.offload == Offload::TcpUdp);
                let slot = hash as usize % SLOTS;
                let open = self.slots.get(slot).copied().unwrap_or(NONE);
                if !segment.is_some_and(|segment| self.join(buffer, open, at, packet, &segment)) {
                    self.add(at, len, segment);
                    let own = self.items.len() as u32 - 1;
                    self.open(slot, own, packet, segment);
                }
            }
        }
        true
    }

    /// Gives everything on, in the order in which each item's first packet came: to `write`, in parts that are one packet to the
    /// device. Headers of large packets are written into `buffer`, the one that they were pushed from.
    pub fn write_out(&mut self, buffer: &mut [u8], mut write: impl FnMut(&[IoSlice<'_>], Written)) {
        for item in &self.items {
            let from = item.prepare(self.offload, buffer);
            let Some(first) = buffer.get(from..item.at + item.len) else {
                continue;
            };
            let mut parts = [IoSlice::new(&[]); MAX_PACKETS];
            let mut used = 0;
            let later = std::iter::successors(self.pieces.get(item.first as usize), |piece| {
                self.pieces.get(piece.next as usize)
            });
            let later = later.filter_map(|piece| buffer.get(piece.at..piece.at + piece.len));
            for (part, bytes) in parts.iter_mut().zip(std::iter::once(first).chain(later)) {
                *part = IoSlice::new(bytes);
                used += 1;
            }
            let head = item.segment.map_or(item.len, |segment| segment.head);
            let written = Written {
                packets: item.count,
                bytes: head + item.payload,
            };
            write(parts.get(..used).unwrap_or_default(), written);
        }
        self.items.clear();
        self.pieces.clear();
        self.slots = [NONE; SLOTS];
    }

    fn add(&mut self, at: usize, len: usize, segment: Option<Segment>) {
        self.items.push(Item {
            at,
            len,
            segment,
            count: 1,
            payload: segment.map_or(0, |segment| segment.payload),
            verified: false,
            pushes: false,
            first: NONE,
            last: NONE,
        });
    }

    /// Lets later packets be joined to a new item, or to none of this slot's.
    fn open(&mut self, slot: usize, item: u32, packet: &[u8], segment: Option<Segment>) {
        let open = segment.is_some_and(|segment| !segment::pushes(packet, &segment));
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = if open { item } else { NONE };
        }
    }

    /// Joins a packet to an open item, if it is what comes next there. Otherwise the caller replaces the item in its slot.
    fn join(
        &mut self,
        buffer: &[u8],
        open: u32,
        at: usize,
        packet: &[u8],
        segment: &Segment,
    ) -> bool {
        let Some(item) = self.items.get_mut(open as usize) else {
            return false;
        };
        if !item.takes(buffer, packet, segment) {
            return false;
        }
        let piece = self.pieces.len() as u32;
        let (at, len) = (at + segment.head, segment.payload);
        self.pieces.push(Piece {
            at,
            len,
            next: NONE,
        });
        match self.pieces.get_mut(item.last as usize) {
            Some(last) => last.next = piece,
            None => item.first = piece,
        }
        item.last = piece;
        item.count += 1;
        item.payload += segment.payload;
        item.pushes = segment::pushes(packet, segment);
        true
    }
}

impl Item {
    /// Whether `packet` continues this item, checksums included. One that does not is the end of it.
    fn takes(&mut self, buffer: &[u8], packet: &[u8], next: &Segment) -> bool {
        let Some((own, first)) = self.segment.zip(buffer.get(self.at..self.at + self.len)) else {
            return false;
        };
        // A shorter one or PSH ends a large packet.
        let whole = self.payload == self.count * own.payload && !self.pushes;
        let fits = next.payload <= own.payload
            && self.count < MAX_PACKETS
            && own.head + self.payload + next.payload <= MAX_LEN;
        let same = (next.tcp, next.start, next.head) == (own.tcp, own.start, own.head);
        if !(whole && fits && same && segment::follows(first, packet, next, self.count)) {
            return false;
        }
        let expected = segment::sequence(first, &own).wrapping_add(self.payload as u32);
        if own.tcp && segment::sequence(packet, next) != expected {
            return false;
        }
        self.verified = self.verified || segment::is_sound(first, &own);
        self.verified && segment::is_sound(packet, next)
    }

    /// Writes the virtio header and what a large packet's own headers must say. Returns where to write from.
    fn prepare(&self, offload: Offload, buffer: &mut [u8]) -> usize {
        let from = self.at - offload.headroom();
        let headers = match (self.segment, self.count) {
            (Some(segment), 2..) => {
                let packet = buffer.get_mut(self.at..self.at + self.len);
                packet.map_or_else(Default::default, |packet| self.enlarge(&segment, packet))
            }
            _ => virtio::Header::default(),
        };
        if let Some(room) = buffer
            .get_mut(from..self.at)
            .filter(|room| !room.is_empty())
        {
            room.copy_from_slice(&headers.emit());
        }
        from
    }

    fn enlarge(&self, segment: &Segment, packet: &mut [u8]) -> virtio::Header {
        let (start, len) = (segment.start, segment.head + self.payload);
        let gso = match (segment.tcp, start) {
            (false, _) => Gso::Udp,
            (true, 20) => Gso::Tcp4,
            (true, _) => Gso::Tcp6,
        };
        if start == 20 {
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[10..12].fill(0);
            let header = !checksum::fold(checksum::sum(&packet[..20]));
            packet[10..12].copy_from_slice(&header.to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&((len - start) as u16).to_be_bytes());
        }
        let pseudo = segment::pseudo_header(packet, segment, len - start);
        let pseudo = checksum::fold(pseudo).to_be_bytes();
        let field = if segment.tcp { 16 } else { 6 };
        packet[start + field..start + field + 2].copy_from_slice(&pseudo);
        if segment.tcp {
            packet[start + 13] |= if self.pushes { 0x08 } else { 0 };
        } else {
            packet[start + 4..start + 6].copy_from_slice(&((len - start) as u16).to_be_bytes());
        }
        virtio::Header {
            needs_checksum: true,
            gso: Some(gso),
            header_len: segment.head as u16,
            segment: segment.payload as u16,
            checksum_start: start as u16,
            checksum_offset: field as u16,
        }
    }
}
