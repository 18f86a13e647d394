//! What ESP protects: a pod packet in the framing that two hosts agreed on. Both directions, in place.

pub mod ipip;
pub mod vxlan;

use crate::error::FrameError;
use crate::wire::ip;

/// Most bytes that a framing puts in front of a pod packet.
pub const MAX_HEADROOM: usize = vxlan::HEADROOM;

/// Framing of one pair of hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// UDP, VXLAN, Ethernet.
    Vxlan(vxlan::Vxlan),
    /// Nothing: the packet follows ESP.
    Ipip,
}

impl Framing {
    /// Bytes in front of the pod packet.
    #[must_use]
    pub fn headroom(&self) -> usize {
        match self {
            Self::Vxlan(_) => vxlan::HEADROOM,
            Self::Ipip => ipip::HEADROOM,
        }
    }

    /// Frames the pod packet that stands in `buffer` behind [`Framing::headroom`] bytes. Returns ESP's next header.
    ///
    /// # Errors
    /// [`FrameError`] when it is not one IP packet from end to end.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<u8, FrameError> {
        match self {
            Self::Vxlan(vxlan) => vxlan.emit(buffer),
            Self::Ipip => ipip::emit(buffer),
        }
    }

    /// The pod packet in an opened payload.
    ///
    /// # Errors
    /// [`FrameError`] when the payload is framed otherwise.
    pub fn parse<'p>(
        &self,
        next_header: u8,
        payload: &'p [u8],
    ) -> Result<ip::Packet<'p>, FrameError> {
        match self {
            Self::Vxlan(vxlan) => vxlan.parse(next_header, payload),
            Self::Ipip => ipip::parse(next_header, payload),
        }
    }
}

/// Checks ESP's next header against the framing.
pub(crate) fn expect(field: &'static str, expected: u32, got: u32) -> Result<(), FrameError> {
    if expected == got {
        Ok(())
    } else {
        Err(FrameError::Unexpected {
            field,
            expected,
            got,
        })
    }
}

/// The packet behind `headroom` bytes, which must fill the buffer.
pub(crate) fn whole_packet(buffer: &[u8], headroom: usize) -> Result<ip::Packet<'_>, FrameError> {
    let bytes = buffer.get(headroom..).unwrap_or_default();
    let packet = ip::Packet::parse(bytes)?;
    if packet.bytes.len() == bytes.len() {
        Ok(packet)
    } else {
        Err(FrameError::Truncated {
            header: "IP",
            needed: bytes.len(),
            got: packet.bytes.len(),
        })
    }
}
