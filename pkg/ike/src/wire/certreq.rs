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

#[cfg(test)]
mod tests {
    use super::super::Payload;
    use super::*;

    #[test]
    fn reads_and_writes_hashes() {
        let mut body = vec![4];
        body.extend([[0xaa; 20], [0xbb; 20]].concat());
        let request = CertificateRequest::parse(&body).unwrap();
        assert_eq!(request.encoding, CertEncoding::X509Signature);
        assert!(request.hashes().eq([&[0xaa; 20], &[0xbb; 20]]));
        assert_eq!(Payload::CertReq(request).body(), body);
    }

    #[test]
    fn no_hash_and_part_of_one_are_no_hashes() {
        assert_eq!(CertificateRequest::parse(&[4]).unwrap().hashes().count(), 0);
        assert_eq!(
            CertificateRequest::parse(&[4; 20])
                .unwrap()
                .hashes()
                .count(),
            0
        );
        assert!(CertificateRequest::parse(&[]).is_err());
    }
}
