//! SK, the Encrypted and Authenticated payload (RFC 7296 §3.14, RFC 5282 §3 for AEAD).
//!
//! ```text
//! +--------------+-+------------+-------------------------------+
//! | Next Payload*|C|  RESERVED  |        Payload Length         |  * type of the first payload inside
//! +--------------+-+------------+-------------------------------+
//! |   IV (AEAD: 8 bytes), ciphertext of payloads, padding and   |
//! |           pad length (1), ICV (AEAD: 16 bytes)              |
//! +-------------------------------------------------------------+
//! ```

use super::codec::Writer;
use super::{HEADER_LEN, Header, PAYLOAD_HEADER_LEN, PayloadType};

/// An SK payload that is not opened. The AAD (RFC 5282 §5.1) is `datagram[..aad_len]`: header, payloads in front, and the
/// generic header of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encrypted<'a> {
    /// Type of the first payload inside.
    pub inner_first: PayloadType,
    /// IV, ciphertext and ICV, of any length: the cipher checks it.
    pub body: &'a [u8],
    /// Where `body` begins in the datagram. Emitting does not look at it.
    pub aad_len: usize,
}

/// The bytes in front of the body of a message that has nothing but an SK payload: its AAD. Appending `body_len` bytes of
/// IV, ciphertext and ICV makes the message.
#[must_use]
pub fn emit_encrypted_prefix(
    header: &Header,
    inner_first: PayloadType,
    body_len: usize,
) -> Vec<u8> {
    prefix(header, PayloadType::Encrypted, inner_first, body_len).into_vec()
}

/// IKE header and generic payload header of a message of one payload of `kind` with `body_len` bytes.
pub(super) fn prefix(
    header: &Header,
    kind: PayloadType,
    inner_first: PayloadType,
    body_len: usize,
) -> Writer {
    let payload_len = PAYLOAD_HEADER_LEN + body_len;
    let mut w = Writer::default();
    header.emit(kind, HEADER_LEN + payload_len, &mut w);
    w.u8(inner_first.into());
    w.u8(0);
    w.u16(u16::try_from(payload_len).unwrap_or(u16::MAX));
    w
}

#[cfg(test)]
mod tests {
    use super::super::{ExchangeType, Flags, Message, Notify, NotifyType, Payload, emit};
    use super::*;

    fn header() -> Header {
        Header {
            spi_i: 1,
            spi_r: 2,
            next_payload: PayloadType::Encrypted,
            exchange: ExchangeType::Informational,
            flags: Flags::default(),
            message_id: 3,
        }
    }

    #[test]
    fn the_prefix_is_the_aad_of_the_message_that_it_makes() {
        let mut datagram = emit_encrypted_prefix(&header(), PayloadType::Delete, 5);
        let aad = datagram.clone();
        assert_eq!(aad[16], 46, "SK comes first");
        assert_eq!(aad[24..], [0, 0, 0, 37, 42, 0, 0, 9], "lengths, inner type");
        datagram.extend([1, 2, 3, 4, 5]);
        let sk = Encrypted {
            inner_first: PayloadType::Delete,
            body: &[1, 2, 3, 4, 5],
            aad_len: aad.len(),
        };
        let message = Message::parse(&datagram).unwrap();
        assert_eq!(
            message,
            Message {
                header: header(),
                payloads: vec![Payload::Encrypted(sk)]
            }
        );
        assert_eq!(emit(&header(), &message.payloads), datagram);
    }

    #[test]
    fn payloads_in_front_belong_to_the_aad() {
        let cookie = Payload::Notify(Notify::new(NotifyType::Cookie, &[7]));
        let sk = Encrypted {
            inner_first: PayloadType::None,
            body: &[9; 24],
            aad_len: 0,
        };
        let datagram = emit(&header(), &[cookie, Payload::Encrypted(sk)]);
        let message = Message::parse(&datagram).unwrap();
        let Some(Payload::Encrypted(sk)) = message.payloads.last() else {
            panic!("no SK payload in {message:?}")
        };
        assert_eq!(sk.aad_len, 28 + 9 + 4);
        assert_eq!(datagram[sk.aad_len..], *sk.body);
    }

    #[test]
    fn nothing_may_follow() {
        let mut datagram = emit_encrypted_prefix(&header(), PayloadType::Delete, 1);
        datagram.extend([1, 42, 0, 0, 4]);
        datagram[27] += 4;
        assert!(matches!(
            Message::parse(&datagram),
            Err(super::super::Error::Trailing { .. })
        ));
    }
}
