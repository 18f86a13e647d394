use crate::error::FrameError;
use crate::wire::virtio::{self, Gso};
use crate::wire::{be16, checksum, ip};

use super::Offload;

/// Offsets of a TCP header's fields.
const TCP_SEQUENCE: usize = 4;
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A packet from a TUN device: one, or one that stands for several. [`Large::write`] makes each of them.
#[derive(Clone, Copy, Debug)]
pub struct Large<'p> {
    packet: &'p [u8],
    /// Headers that every packet has; all of the packet when it is one.
    head: usize,
    /// Payload of each packet but the last.
    segment: usize,
    count: usize,
    sum: Option<Sum>,
    gso: Option<Gso>,
}

/// A checksum that is to be finished.
#[derive(Clone, Copy, Debug)]
struct Sum {
    start: usize,
    field: usize,
    /// The pseudo-header's sum, its length left out.
    base: u64,
}

impl<'p> Large<'p> {
    /// Reads what a device gave: with a virtio header, unless `offload` is [`Offload::None`].
    ///
    /// # Errors
    /// [`FrameError`] when the header does not fit the packet.
    pub fn parse(offload: Offload, bytes: &'p [u8]) -> Result<Self, FrameError> {
        if offload == Offload::None {
            return Ok(Self::one(bytes, None));
        }
        let (header, packet) = virtio::Header::parse(bytes)?;
        match header.gso {
            Some(gso) => Self::several(&header, gso, packet),
            None if header.needs_checksum => {
                let sum = Sum::new(&header, packet)?;
                Ok(Self::one(packet, Some(Sum { base: 0, ..sum })))
            }
            None => Ok(Self::one(packet, None)),
        }
    }

    fn one(packet: &'p [u8], sum: Option<Sum>) -> Self {
        Self {
            packet,
            head: packet.len(),
            segment: 0,
            count: 1,
            sum,
            gso: None,
        }
    }

    fn several(header: &virtio::Header, gso: Gso, packet: &'p [u8]) -> Result<Self, FrameError> {
        let whole = ip::Packet::parse(packet)?.bytes.len();
        let sum = Sum::new(header, packet)?;
        let (least, field) = match gso {
            Gso::Tcp4 | Gso::Tcp6 => (20, TCP_CHECKSUM),
            Gso::Udp => (8, UDP_CHECKSUM),
        };
        let transport = packet.get(sum.start..).unwrap_or_default();
        let own = match (gso, transport.get(TCP_DATA_OFFSET)) {
            (Gso::Udp, _) => least,
            (_, Some(data_offset)) => usize::from(data_offset >> 4) * 4,
            (_, None) => 0,
        };
        let head = sum.start + own;
        expect("large packet's length", packet.len(), whole)?;
        expect("checksum field", sum.start + field, sum.field)?;
        expect("IP header", ip_header_len(packet, sum.start), sum.start)?;
        if own < least || packet.len() < head {
            return Err(truncated("transport", head.max(sum.start + least), packet));
        }
        if !header.needs_checksum || header.segment == 0 {
            return Err(unexpected("segment", 1, header.segment.into()));
        }
        let segment = usize::from(header.segment);
        Ok(Self {
            packet,
            head,
            segment,
            count: (packet.len() - head).div_ceil(segment).max(1),
            sum: Some(sum),
            gso: Some(gso),
        })
    }

    /// The packet as it came, without the virtio header; its addresses are those of all.
    #[must_use]
    pub fn bytes(&self) -> &'p [u8] {
        self.packet
    }

    /// How many packets it stands for, at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of packet `index`, counted from 0.
    #[must_use]
    pub fn len(&self, index: usize) -> usize {
        self.head + self.payload(index).len()
    }

    /// Writes packet `index` to the front of `out`: headers, payload, checksums. Returns its bytes; `None` when there is no room.
    pub fn write(&self, index: usize, out: &mut [u8]) -> Option<usize> {
        let payload = self.payload(index);
        let out = out.get_mut(..self.head + payload.len())?;
        let (head, body) = out.split_at_mut_checked(self.head)?;
        head.copy_from_slice(self.packet.get(..self.head)?);
        body.copy_from_slice(payload);
        if let (Some(gso), Some(sum)) = (self.gso, self.sum) {
            self.patch(gso, sum.start, index, out);
        }
        if let Some(sum) = self.sum {
            sum.finish(self.gso.is_some(), out);
        }
        Some(out.len())
    }

    fn payload(&self, index: usize) -> &'p [u8] {
        let all = self.packet.get(self.head..).unwrap_or_default();
        let from = (index * self.segment).min(all.len());
        let to = (from + self.segment).min(all.len());
        &all[from..to]
    }

    /// Brings the copied headers to what packet `index` has.
    fn patch(&self, gso: Gso, start: usize, index: usize, packet: &mut [u8]) {
        patch_ip(index, start, packet);
        let len = packet.len() - start;
        let transport = &mut packet[start..];
        if gso == Gso::Udp {
            transport[4..6].copy_from_slice(&(len as u16).to_be_bytes());
            return;
        }
        let at = TCP_SEQUENCE..TCP_SEQUENCE + 4;
        let first = u32::from_be_bytes(transport[at.clone()].try_into().unwrap_or_default());
        let sequence = first.wrapping_add((index * self.segment) as u32);
        transport[at].copy_from_slice(&sequence.to_be_bytes());
        if index + 1 < self.count {
            transport[TCP_FLAGS] &= !(FIN | PSH);
        }
        if index > 0 {
            transport[TCP_FLAGS] &= !CWR;
        }
    }
}

impl Sum {
    fn new(header: &virtio::Header, packet: &[u8]) -> Result<Self, FrameError> {
        let start = usize::from(header.checksum_start);
        let field = start + usize::from(header.checksum_offset);
        if packet.len() < field + 2 {
            return Err(truncated("checksum", field + 2, packet));
        }
        // It holds the sum of the pseudo-header with the length of the large packet's transport part.
        let len = (packet.len() - start) as u16;
        let base = u64::from(be16(packet, field)) + u64::from(!len);
        Ok(Self { start, field, base })
    }

    /// Writes the checksum of a packet that is otherwise complete. Of a large packet's the field is begun anew, since the length in
    /// it is another.
    fn finish(&self, anew: bool, packet: &mut [u8]) {
        if anew {
            packet[self.field..self.field + 2].fill(0);
        }
        let transport = &packet[self.start..];
        let len = if anew { transport.len() as u64 } else { 0 };
        let sum = self.base + len + checksum::sum(transport);
        packet[self.field..self.field + 2].copy_from_slice(&checksum::field(sum).to_be_bytes());
    }
}

/// Length, identification and checksum of IPv4; payload length of IPv6.
fn patch_ip(index: usize, header_len: usize, packet: &mut [u8]) {
    let len = packet.len();
    if packet[0] >> 4 == 6 {
        packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        return;
    }
    let id = be16(packet, 4).wrapping_add(index as u16);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[10..12].fill(0);
    let header = !checksum::fold(checksum::sum(&packet[..header_len]));
    packet[10..12].copy_from_slice(&header.to_be_bytes());
}

/// Where the transport header begins: in IPv6 behind extension headers, if the device says so.
fn ip_header_len(packet: &[u8], said: usize) -> usize {
    match packet.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 0x0f) * 4,
        _ => said.max(40),
    }
}

fn expect(field: &'static str, expected: usize, got: usize) -> Result<(), FrameError> {
    if expected == got {
        Ok(())
    } else {
        Err(unexpected(field, expected, got))
    }
}

fn unexpected(field: &'static str, expected: usize, got: usize) -> FrameError {
    FrameError::Unexpected {
        field,
        expected: expected as u32,
        got: got as u32,
    }
}

fn truncated(header: &'static str, needed: usize, packet: &[u8]) -> FrameError {
    FrameError::Truncated {
        header,
        needed,
        got: packet.len(),
    }
}
