//! AUTH, the Authentication payload (RFC 7296 §3.8), and the form of its data for digital signatures (RFC 7427 §3).
//!
//! ```text
//! +--------------+----------------------------------------------+
//! | Auth Method  |                 RESERVED (3)                 |
//! +--------------+----------------------------------------------+
//! |                   Authentication Data                       |   method 14: length (1), AlgorithmIdentifier, signature
//! +-------------------------------------------------------------+
//! ```

use super::Error;
use super::codec::{Reader, Writer};

wire_enum! {
    /// Authentication methods.
    pub enum AuthMethod: u8 {
        /// RSA with PKCS #1 v1.5. Never accepted.
        RsaSignature = 1,
        /// Shared Key Message Integrity Code.
        SharedKey = 2,
        /// DSS. Never accepted.
        DssSignature = 3,
        /// ECDSA with SHA-256 on P-256 (RFC 4754).
        Ecdsa256 = 9,
        /// ECDSA with SHA-384 on P-384 (RFC 4754).
        Ecdsa384 = 10,
        /// ECDSA with SHA-512 on P-521 (RFC 4754).
        Ecdsa521 = 11,
        /// Generic Secure Password (RFC 6467).
        GenericSecurePassword = 12,
        /// NULL authentication (RFC 7619). Never accepted.
        Null = 13,
        /// Digital Signature (RFC 7427).
        DigitalSignature = 14,
    }
}

/// Proof of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Auth<'a> {
    /// Method.
    pub method: AuthMethod,
    /// Data, as the method says.
    pub data: &'a [u8],
}

impl<'a> Auth<'a> {
    /// Parses a payload's body.
    ///
    /// # Errors
    /// [`Error::Truncated`].
    pub fn parse(body: &'a [u8]) -> Result<Self, Error> {
        let mut r = Reader::new("AUTH payload", body);
        let method = r.u8()?.into();
        r.array::<3>()?;
        Ok(Self {
            method,
            data: r.rest(),
        })
    }

    pub(super) fn emit(&self, w: &mut Writer) {
        w.u8(self.method.into());
        w.bytes(&[0; 3]);
        w.bytes(self.data);
    }
}

/// Authentication data of [`AuthMethod::DigitalSignature`] (RFC 7427 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigitalSignature<'a> {
    /// DER AlgorithmIdentifier: to be compared as a whole, never interpreted.
    pub algorithm: &'a [u8],
    /// Signature value.
    pub signature: &'a [u8],
}

impl<'a> DigitalSignature<'a> {
    /// Parses [`Auth::data`].
    ///
    /// # Errors
    /// [`Error::Truncated`].
    pub fn parse(data: &'a [u8]) -> Result<Self, Error> {
        let mut r = Reader::new("AUTH payload's digital signature", data);
        let length = r.u8()?;
        Ok(Self {
            algorithm: r.bytes(length.into())?,
            signature: r.rest(),
        })
    }

    /// Writes [`Auth::data`]. An AlgorithmIdentifier has at most 255 bytes; a longer one would be cut.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let (length, algorithm) = super::codec::countable(self.algorithm);
        let mut w = Writer::default();
        w.u8(length);
        w.bytes(algorithm);
        w.bytes(self.signature);
        w.into_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Payload;
    use super::*;

    #[test]
    fn reads_and_writes_a_mac() {
        let auth = Auth {
            method: AuthMethod::SharedKey,
            data: &[1, 2, 3],
        };
        assert_eq!(Auth::parse(&[2, 0, 0, 0, 1, 2, 3]), Ok(auth));
        assert_eq!(Payload::Auth(auth).body(), [2, 0, 0, 0, 1, 2, 3]);
    }

    #[test]
    fn reads_and_writes_a_digital_signature() {
        // ecdsa-with-SHA256 (RFC 7427 appendix A.3.2), then a signature of two bytes.
        let data = [
            0x0c, 0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02, 0xde,
            0xad,
        ];
        let signature = DigitalSignature::parse(&data).unwrap();
        assert_eq!(signature.algorithm, &data[1..13]);
        assert_eq!(signature.signature, [0xde, 0xad]);
        assert_eq!(signature.emit(), data);
    }

    #[test]
    fn a_cut_algorithm_identifier_is_refused() {
        let cut = Err(Error::Truncated {
            what: "AUTH payload's digital signature",
            need: 12,
            have: 2,
        });
        assert_eq!(DigitalSignature::parse(&[12, 0x30, 0x0a]), cut);
        assert!(DigitalSignature::parse(&[]).is_err());
        assert!(Auth::parse(&[14, 0, 0]).is_err());
    }
}
