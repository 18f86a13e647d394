//! IDi and IDr, the Identification payloads (RFC 7296 §3.5).
//!
//! ```text
//! +--------------+----------------------------------------------+
//! |   ID Type    |                 RESERVED (3)                 |
//! +--------------+----------------------------------------------+
//! |                   Identification Data                       |
//! +-------------------------------------------------------------+
//! ```

use super::Error;
use super::codec::{Reader, Writer};

wire_enum! {
    /// Kinds of identity.
    pub enum IdType: u8 {
        /// ID_IPV4_ADDR, four bytes.
        Ipv4Addr = 1,
        /// ID_FQDN, without terminator.
        Fqdn = 2,
        /// ID_RFC822_ADDR.
        Rfc822Addr = 3,
        /// ID_IPV6_ADDR, 16 bytes.
        Ipv6Addr = 5,
        /// ID_DER_ASN1_DN.
        DerAsn1Dn = 9,
        /// ID_DER_ASN1_GN.
        DerAsn1Gn = 10,
        /// ID_KEY_ID, opaque.
        KeyId = 11,
        /// ID_NULL (RFC 7619).
        Null = 13,
    }
}

/// An identity, as its owner claims it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identification<'a> {
    /// Kind.
    pub kind: IdType,
    /// Ignored, but AUTH covers it as it was received (RFC 7296 §2.15): zero when emitted first.
    pub reserved: [u8; 3],
    /// Identification data. Not checked: text may be no UTF-8.
    pub data: &'a [u8],
}

impl<'a> Identification<'a> {
    /// An identity to send.
    #[must_use]
    pub fn new(kind: IdType, data: &'a [u8]) -> Self {
        Self {
            kind,
            reserved: [0; 3],
            data,
        }
    }

    /// Parses a payload's body.
    ///
    /// # Errors
    /// [`Error::Truncated`].
    pub fn parse(body: &'a [u8]) -> Result<Self, Error> {
        let mut r = Reader::new("ID payload", body);
        Ok(Self {
            kind: r.u8()?.into(),
            reserved: r.array()?,
            data: r.rest(),
        })
    }

    /// `RestOfIDPayload` of RFC 7296 §2.15: what AUTH covers, the body as it was or will be on the wire.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let mut w = Writer::default();
        self.emit(&mut w);
        w.into_vec()
    }

    pub(super) fn emit(&self, w: &mut Writer) {
        w.u8(self.kind.into());
        w.bytes(&self.reserved);
        w.bytes(self.data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_a_name() {
        let bytes = [2, 0, 0, 0, b'n', b'1'];
        assert_eq!(
            Identification::parse(&bytes),
            Ok(Identification::new(IdType::Fqdn, b"n1"))
        );
        assert_eq!(Identification::new(IdType::Fqdn, b"n1").body(), bytes);
    }

    #[test]
    fn reserved_bytes_are_kept_for_auth() {
        let bytes = [11, 1, 2, 3, 0xff];
        let id = Identification::parse(&bytes).unwrap();
        assert_eq!((id.kind, id.data), (IdType::KeyId, &[0xff][..]));
        assert_eq!(id.body(), bytes);
    }

    #[test]
    fn a_type_without_name_keeps_its_number() {
        let id = Identification::parse(&[200, 0, 0, 0]).unwrap();
        assert_eq!((id.kind, u8::from(id.kind)), (IdType::Unknown(200), 200));
    }

    #[test]
    fn a_cut_payload_is_refused() {
        for end in 0..4 {
            assert!(
                Identification::parse(&[2, 0, 0, 0][..end]).is_err(),
                "{end}"
            );
        }
    }
}
