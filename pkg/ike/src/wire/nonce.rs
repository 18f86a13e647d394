//! Ni and Nr, the Nonce payload (RFC 7296 §3.9): 16 to 256 bytes.

use super::{Error, NONCE_LEN};

/// A nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce<'a>(
    /// The bytes; [`NONCE_LEN`] bounds them.
    pub &'a [u8],
);

impl<'a> Nonce<'a> {
    /// Parses a payload's body.
    ///
    /// # Errors
    /// [`Error::Length`] outside [`NONCE_LEN`].
    pub fn parse(body: &'a [u8]) -> Result<Self, Error> {
        if NONCE_LEN.contains(&body.len()) {
            return Ok(Self(body));
        }
        Err(Error::Length {
            what: "Nonce payload",
            expected: "16 to 256 bytes",
            got: body.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_to_256_bytes_are_taken() {
        let bytes = [0x55; 257];
        for len in [16, 32, 256] {
            assert_eq!(Nonce::parse(&bytes[..len]), Ok(Nonce(&bytes[..len])));
        }
        for len in [0, 15, 257] {
            let refused = Nonce::parse(&bytes[..len]);
            assert!(
                matches!(refused, Err(Error::Length { got, .. }) if got == len),
                "{len}"
            );
        }
    }
}
