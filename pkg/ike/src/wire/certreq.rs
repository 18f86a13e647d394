//! CERTREQ, the Certificate Request payload (RFC 7296 §3.7).
//!
//! ```text
//! +--------------+----------------------------------------------+
//! | Cert Encoding|  Certification Authority, SHA-1 hashes ...   |
//! +--------------+----------------------------------------------+
//! ```

use super::codec::{Reader, Writer};
use super::{CertEncoding, Error};

/// What certificates the sender would take: a hint, to which nobody is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateRequest<'a> {
    /// Encoding asked for.
    pub encoding: CertEncoding,
    /// For X.509, SHA-1 hashes of trusted CAs' SubjectPublicKeyInfo, 20 bytes each, one behind the other.
    pub authorities: &'a [u8],
}

impl<'a> CertificateRequest<'a> {
    /// Parses a payload's body.
    ///
    /// # Errors
    /// [`Error::Truncated`].
    pub fn parse(body: &'a [u8]) -> Result<Self, Error> {
        let mut r = Reader::new("CERTREQ payload", body);
        Ok(Self {
            encoding: r.u8()?.into(),
            authorities: r.rest(),
        })
    }

    /// The hashes; a rest of less than 20 bytes is left out.
    pub fn hashes(&self) -> impl Iterator<Item = &'a [u8; 20]> + use<'a> {
        self.authorities.as_chunks().0.iter()
    }

    pub(super) fn emit(&self, w: &mut Writer) {
        w.u8(self.encoding.into());
        w.bytes(self.authorities);
    }
}
