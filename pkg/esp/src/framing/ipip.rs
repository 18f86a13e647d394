//! IP in IP: ESP in transport mode whose next header is 4 or 41.
//!
//! ```text
//! [outer IP a→b][ESP [IP pod→pod]]
//! ```

use super::{expect, whole_packet};
use crate::error::FrameError;
use crate::next_header;
use crate::wire::ip;

/// Bytes in front of the pod packet: none, its header follows ESP's.
pub const HEADROOM: usize = 0;

/// Checks the pod packet that fills `buffer`. Returns ESP's next header, 4 or 41.
///
/// # Errors
/// [`FrameError`] when it is not one IP packet from end to end.
pub fn emit(buffer: &mut [u8]) -> Result<u8, FrameError> {
    whole_packet(buffer, HEADROOM).map(|packet| packet.next_header())
}

/// The pod packet in an opened payload.
///
/// # Errors
/// [`FrameError`] when next header and IP version do not go together.
pub fn parse(next_header: u8, payload: &[u8]) -> Result<ip::Packet<'_>, FrameError> {
    if !matches!(next_header, next_header::IPV4 | next_header::IPV6) {
        expect(
            "ESP next header",
            next_header::IPV4.into(),
            next_header.into(),
        )?;
    }
    let packet = ip::Packet::parse(payload)?;
    expect(
        "ESP next header",
        packet.next_header().into(),
        next_header.into(),
    )?;
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: [u8; 20] = [
        0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0, 10, 1, 0, 2, 10, 2, 0, 3,
    ];

    #[test]
    fn next_header_and_version_go_together() {
        assert_eq!(emit(&mut V4.clone()), Ok(4));
        assert_eq!(parse(4, &V4).unwrap().bytes, V4);
        let swapped = FrameError::Unexpected {
            field: "ESP next header",
            expected: 4,
            got: 41,
        };
        assert_eq!(parse(41, &V4), Err(swapped));
        let udp = FrameError::Unexpected {
            field: "ESP next header",
            expected: 4,
            got: 17,
        };
        assert_eq!(parse(17, &V4), Err(udp));
    }

    #[test]
    fn tfc_padding_is_cut_when_reading_and_refused_when_writing() {
        let mut padded = V4.to_vec();
        padded.extend_from_slice(&[0; 9]);
        assert_eq!(parse(4, &padded).unwrap().bytes, V4);
        assert!(matches!(
            emit(&mut padded),
            Err(FrameError::Truncated { .. })
        ));
    }
}
