//! SKF, the Encrypted and Authenticated Fragment payload (RFC 7383 §2.5).
//!
//! ```text
//! +--------------+-+------------+-------------------------------+
//! | Next Payload*|C|  RESERVED  |        Payload Length         |  * of the first fragment only, else 0
//! +--------------+-+------------+-------------------------------+
//! |   Fragment Number, from 1    |       Total Fragments        |
//! +-------------------------------------------------------------+
//! |        IV, ciphertext, padding, pad length, ICV             |
//! +-------------------------------------------------------------+
//! ```

use super::codec::{Reader, Writer};
use super::encrypted::prefix;
use super::{Error, Header, PayloadType};

/// Bytes between the generic header and the IV.
const FIELDS_LEN: usize = 4;

/// An SKF payload that is not opened. The AAD is `datagram[..aad_len]`: it ends behind Total Fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// Type of the first payload inside the whole; [`PayloadType::None`] but in the first fragment.
    pub inner_first: PayloadType,
    /// Number of this fragment, 1 to `total`.
    pub number: u16,
    /// How many there are.
    pub total: u16,
    /// IV, ciphertext and ICV.
    pub body: &'a [u8],
    /// Where `body` begins in the datagram. Emitting does not look at it.
    pub aad_len: usize,
}

impl<'a> Fragment<'a> {
    /// Parses a payload's body, which begins at `body_at` in the datagram.
    pub(super) fn parse(
        inner_first: PayloadType,
        body: &'a [u8],
        body_at: usize,
    ) -> Result<Self, Error> {
        let mut r = Reader::new("SKF payload", body);
        let (number, total) = (r.u16()?, r.u16()?);
        if number == 0 || number > total {
            return Err(Error::Value {
                what: "SKF payload's fragment number",
                expected: "1 to the total",
                got: number.into(),
            });
        }
        Ok(Self {
            inner_first,
            number,
            total,
            body: r.rest(),
            aad_len: body_at + FIELDS_LEN,
        })
    }

    pub(super) fn emit(&self, w: &mut Writer) {
        emit_fields(self.number, self.total, w);
        w.bytes(self.body);
    }
}

/// The bytes in front of IV, ciphertext and ICV (`body_len` bytes) of a message that has nothing but an SKF payload: its AAD.
#[must_use]
pub fn emit_fragment_prefix(
    header: &Header,
    inner_first: PayloadType,
    (number, total): (u16, u16),
    body_len: usize,
) -> Vec<u8> {
    let mut w = prefix(
        header,
        PayloadType::Fragment,
        inner_first,
        FIELDS_LEN + body_len,
    );
    emit_fields(number, total, &mut w);
    w.into_vec()
}

fn emit_fields(number: u16, total: u16, w: &mut Writer) {
    w.u16(number);
    w.u16(total);
}

#[cfg(test)]
mod tests {
    use super::super::{ExchangeType, Flags, Message, Payload, emit};
    use super::*;

    fn header() -> Header {
        Header {
            spi_i: 1,
            spi_r: 2,
            next_payload: PayloadType::Fragment,
            exchange: ExchangeType::IkeAuth,
            flags: Flags {
                initiator: true,
                ..Flags::default()
            },
            message_id: 1,
        }
    }

    #[test]
    fn the_prefix_is_the_aad_of_the_message_that_it_makes() {
        let mut datagram = emit_fragment_prefix(&header(), PayloadType::IdI, (1, 3), 2);
        assert_eq!(datagram[24..], [0, 0, 0, 38, 35, 0, 0, 10, 0, 1, 0, 3]);
        let aad_len = datagram.len();
        datagram.extend([0xaa, 0xbb]);
        let message = Message::parse(&datagram).unwrap();
        let skf = Fragment {
            inner_first: PayloadType::IdI,
            number: 1,
            total: 3,
            body: &[0xaa, 0xbb],
            aad_len,
        };
        assert_eq!(message.payloads, [Payload::Fragment(skf)]);
        assert_eq!(emit(&header(), &message.payloads), datagram);
    }

    #[test]
    fn numbers_run_from_one_to_the_total() {
        let parse = |bytes: &[u8]| Fragment::parse(PayloadType::None, bytes, 32).is_ok();
        assert!(parse(&[0, 3, 0, 3]) && parse(&[0xff, 0xff, 0xff, 0xff, 1]));
        assert!(!parse(&[0, 0, 0, 3]) && !parse(&[0, 4, 0, 3]) && !parse(&[0, 0, 0, 0]));
        assert!(!parse(&[0, 1, 0]));
    }
}
