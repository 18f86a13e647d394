//! KE, the Key Exchange payload (RFC 7296 §3.4).
//!
//! ```text
//! +------------------------------+------------------------------+
//! |   Key Exchange Method (2)    |         RESERVED (2)         |
//! +------------------------------+------------------------------+
//! |                    Key Exchange Data                        |
//! +-------------------------------------------------------------+
//! ```

use super::Error;
use super::codec::{Reader, Writer};

/// Public value (or, for a KEM, encapsulation key or ciphertext: RFC 9370) of a key exchange method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyExchange<'a> {
    /// Method, see [`super::kex`].
    pub group: u16,
    /// Public value; its length is checked by the method.
    pub data: &'a [u8],
}

impl<'a> KeyExchange<'a> {
    /// Parses a payload's body.
    ///
    /// # Errors
    /// [`Error::Truncated`], or [`Error::Length`] without public value.
    pub fn parse(body: &'a [u8]) -> Result<Self, Error> {
        let mut r = Reader::new("KE payload", body);
        let group = r.u16()?;
        r.u16()?;
        if r.is_empty() {
            return Err(Error::Length {
                what: "KE payload",
                expected: "a public value of at least one byte",
                got: 0,
            });
        }
        Ok(Self {
            group,
            data: r.rest(),
        })
    }

    pub(super) fn emit(&self, w: &mut Writer) {
        w.u16(self.group);
        w.u16(0);
        w.bytes(self.data);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Payload, kex};
    use super::*;

    #[test]
    fn reads_and_writes_a_public_value() {
        let ke = KeyExchange {
            group: kex::CURVE25519,
            data: &[0xaa, 0xbb],
        };
        assert_eq!(KeyExchange::parse(&[0, 31, 0, 0, 0xaa, 0xbb]), Ok(ke));
        assert_eq!(Payload::Ke(ke).body(), [0, 31, 0, 0, 0xaa, 0xbb]);
    }

    #[test]
    fn reserved_bytes_are_ignored() {
        assert_eq!(
            KeyExchange::parse(&[0, 31, 9, 9, 1]),
            KeyExchange::parse(&[0, 31, 0, 0, 1])
        );
    }

    #[test]
    fn no_public_value_is_refused() {
        assert!(matches!(
            KeyExchange::parse(&[0, 31, 0, 0]),
            Err(Error::Length { got: 0, .. })
        ));
        assert!(matches!(
            KeyExchange::parse(&[0, 31, 0]),
            Err(Error::Truncated { .. })
        ));
    }
}
