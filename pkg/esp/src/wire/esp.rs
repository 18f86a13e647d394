//! ESP header and trailer (RFC 4303 §2). The drawing of the whole packet is at the top of the crate.

use crate::{HEADER_LEN, ICV_LEN};

/// Least ESP packet: header, pad length and next header, ICV.
pub const MIN_LEN: usize = HEADER_LEN + 2 + ICV_LEN;

/// The clear part in front of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Security Parameters Index.
    pub spi: u32,
    /// Low 32 bits of the sequence number.
    pub sequence_low: u32,
    /// Explicit IV (RFC 4106 §3.1).
    pub iv: [u8; 8],
}

impl Header {
    /// Reads the first [`HEADER_LEN`] bytes; `None` when there are fewer.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (spi, rest) = packet.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let iv = rest.first_chunk()?;
        Some(Self {
            spi: u32::from_be_bytes(*spi),
            sequence_low: u32::from_be_bytes(*sequence),
            iv: *iv,
        })
    }

    /// Writes [`HEADER_LEN`] bytes; `out` is exactly that long.
    pub(crate) fn emit(&self, out: &mut [u8]) {
        out[..4].copy_from_slice(&self.spi.to_be_bytes());
        out[4..8].copy_from_slice(&self.sequence_low.to_be_bytes());
        out[8..16].copy_from_slice(&self.iv);
    }

    /// AAD and its length: SPI and sequence number, the latter of 64 bits with ESN (RFC 4106 §5).
    pub(crate) fn aad(&self, sequence_high: Option<u32>) -> ([u8; 12], usize) {
        let mut aad = [0; 12];
        aad[..4].copy_from_slice(&self.spi.to_be_bytes());
        let low = self.sequence_low.to_be_bytes();
        match sequence_high {
            Some(high) => {
                aad[4..8].copy_from_slice(&high.to_be_bytes());
                aad[8..].copy_from_slice(&low);
                (aad, 12)
            }
            None => {
                aad[4..8].copy_from_slice(&low);
                (aad, 8)
            }
        }
    }
}

/// Bytes of payload, padding, pad length and next header: a multiple of 4.
pub(crate) fn padded_len(payload: usize) -> usize {
    (payload + 2).next_multiple_of(4)
}

/// Writes padding 1, 2, 3, …, pad length and next header behind `payload` bytes, to the end of `text`.
pub(crate) fn emit_trailer(text: &mut [u8], payload: usize, next_header: u8) {
    let trailer = &mut text[payload..];
    let pad_len = trailer.len() - 2;
    for (byte, value) in trailer.iter_mut().zip(1..=pad_len as u8) {
        *byte = value;
    }
    trailer[pad_len] = pad_len as u8;
    trailer[pad_len + 1] = next_header;
}

/// Splits an opened text into payload, pad length and next header. The padding's own bytes are not looked at: the ICV has
/// vouched for them (RFC 4303 §2.4 asks for a look only where there is no integrity).
pub(crate) fn split_trailer(text: &[u8]) -> Option<(&[u8], u8, u8)> {
    let (rest, &[pad_len, next_header]) = text.split_last_chunk()?;
    Some((rest, pad_len, next_header))
}
