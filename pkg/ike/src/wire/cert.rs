//! CERT, the Certificate payload (RFC 7296 §3.6).
//!
//! ```text
//! +--------------+----------------------------------------------+
//! | Cert Encoding|  Certificate Data, one certificate ...       |
//! +--------------+----------------------------------------------+
//! ```

use super::Error;
use super::codec::{Reader, Writer};

wire_enum! {
    /// Certificate encodings.
    pub enum CertEncoding: u8 {
        /// PKCS #7 wrapped X.509 certificate, deprecated.
        Pkcs7 = 1,
        /// DNS signed key, deprecated.
        DnsSignedKey = 3,
        /// One DER X.509 certificate, whose key made AUTH or which helps to verify that one.
        X509Signature = 4,
        /// Certificate revocation list.
        Crl = 7,
        /// Hash and URL of a certificate. Never fetched.
        HashAndUrl = 12,
        /// Hash and URL of a bundle. Never fetched.
        HashAndUrlBundle = 13,
        /// OCSP content (RFC 4806).
        Ocsp = 14,
        /// Raw public key (RFC 7670).
        RawPublicKey = 15,
    }
}

/// One certificate; the end-entity certificate comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate<'a> {
    /// Encoding.
    pub encoding: CertEncoding,
    /// Certificate, as the encoding says.
    pub data: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// Parses a payload's body; not the certificate in it.
    ///
    /// # Errors
    /// [`Error::Truncated`].
    pub fn parse(body: &'a [u8]) -> Result<Self, Error> {
        let mut r = Reader::new("CERT payload", body);
        Ok(Self {
            encoding: r.u8()?.into(),
            data: r.rest(),
        })
    }

    pub(super) fn emit(&self, w: &mut Writer) {
        w.u8(self.encoding.into());
        w.bytes(self.data);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Payload;
    use super::*;

    #[test]
    fn reads_and_writes_a_certificate() {
        let cert = Certificate {
            encoding: CertEncoding::X509Signature,
            data: &[0x30, 0x00],
        };
        assert_eq!(Certificate::parse(&[4, 0x30, 0x00]), Ok(cert));
        assert_eq!(Payload::Cert(cert).body(), [4, 0x30, 0x00]);
    }

    #[test]
    fn an_empty_payload_is_refused() {
        assert!(matches!(
            Certificate::parse(&[]),
            Err(Error::Truncated {
                need: 1,
                have: 0,
                ..
            })
        ));
    }
}
