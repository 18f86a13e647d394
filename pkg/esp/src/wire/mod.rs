//! One file per header: its drawing, its fields, reading and writing.

pub mod checksum;
pub mod ecn;
pub mod esp;
pub mod ethernet;
pub mod flow;
pub mod ip;
pub mod udp;
pub mod virtio;
pub mod vxlan;

use crate::error::FrameError;

/// Splits `N` bytes off the front, or says which header is short.
pub(crate) fn split<'p, const N: usize>(
    bytes: &'p [u8],
    header: &'static str,
) -> Result<(&'p [u8; N], &'p [u8]), FrameError> {
    bytes.split_first_chunk().ok_or(FrameError::Truncated {
        header,
        needed: N,
        got: bytes.len(),
    })
}

/// Big-endian 16 bits at `at` of a header whose length the caller has checked.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
