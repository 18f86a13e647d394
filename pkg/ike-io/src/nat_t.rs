//! What is inside a datagram of UDP 4500 (RFC 3948 §2):
//!
//! ```text
//!  IKE       | 00 00 00 00 | IKE message ...                  (§2.2, non-ESP marker)
//!  ESP       | SPI, not 0  | sequence number | ...            (§2.1)
//!  keepalive | ff |                                           (§2.3)
//! ```

/// Stands before IKE messages on UDP 4500, where ESP has its SPI.
pub const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// Shortest ESP packet: SPI and sequence number (RFC 4303 §2).
const MIN_ESP: usize = 8;

/// A datagram of UDP 4500 by its first bytes. Nothing is authenticated yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// An IKE message, marker taken off.
    Ike(&'a [u8]),
    /// An ESP packet, from its SPI on.
    Esp(&'a [u8]),
    /// Keeps a NAT mapping; to be ignored.
    Keepalive,
    /// Too short for anything.
    Malformed,
}

/// Tells what `payload` is.
#[must_use]
pub fn classify(payload: &[u8]) -> Datagram<'_> {
    match payload.strip_prefix(&NON_ESP_MARKER) {
        Some(message) if !message.is_empty() => Datagram::Ike(message),
        None if payload == [0xff] => Datagram::Keepalive,
        None if payload.len() >= MIN_ESP => Datagram::Esp(payload),
        _ => Datagram::Malformed,
    }
}

/// `message` with the marker before it, as it goes out on UDP 4500.
#[must_use]
pub fn mark(message: &[u8]) -> Vec<u8> {
    [&NON_ESP_MARKER, message].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_messages_come_back() {
        assert_eq!(mark(b"ike"), b"\0\0\0\0ike");
        assert_eq!(classify(&mark(b"ike")), Datagram::Ike(b"ike"));
    }

    #[test]
    fn first_bytes_tell_esp_and_keepalives() {
        let esp = [0, 0, 1, 0, 0, 0, 0, 1];
        assert_eq!(classify(&esp), Datagram::Esp(&esp));
        assert_eq!(classify(&[0xff]), Datagram::Keepalive);
    }

    #[test]
    fn what_is_too_short_is_malformed() {
        for short in [&[][..], &[0], &[0xff, 0xff], &[0; 4], &[1; 7]] {
            assert_eq!(classify(short), Datagram::Malformed, "{short:?}");
        }
    }
}
