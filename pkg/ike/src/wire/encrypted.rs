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
