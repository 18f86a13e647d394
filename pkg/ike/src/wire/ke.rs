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
