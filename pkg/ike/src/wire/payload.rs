//! Payload types, and the generic payload header (RFC 7296 §3.2).
//!
//! ```text
//! +--------------+-+------------+-------------------------------+
//! | Next Payload |C|  RESERVED  | Payload Length, header included|
//! +--------------+-+------------+-------------------------------+
//! ```
//!
//! The critical bit means something for unknown payload types only; it is sent as zero.

use super::codec::Writer;
use super::{
    Auth, Certificate, CertificateRequest, Delete, Encrypted, Error, Fragment, Identification,
    KeyExchange, Nonce, Notify, Opaque, Sa, TrafficSelectors, VendorId,
};

wire_enum! {
    /// Payload types.
    pub enum PayloadType: u8 {
        /// No further payload.
        None = 0,
        /// SA, Security Association.
        Sa = 33,
        /// KE, Key Exchange.
        Ke = 34,
        /// IDi, Identification of the initiator.
        IdI = 35,
        /// IDr, Identification of the responder.
        IdR = 36,
        /// CERT, Certificate.
        Cert = 37,
        /// CERTREQ, Certificate Request.
        CertReq = 38,
        /// AUTH, Authentication.
        Auth = 39,
        /// Ni or Nr, Nonce.
        Nonce = 40,
        /// N, Notify.
        Notify = 41,
        /// D, Delete.
        Delete = 42,
        /// V, Vendor ID.
        VendorId = 43,
        /// TSi, Traffic Selectors of the initiator.
        TsI = 44,
        /// TSr, Traffic Selectors of the responder.
        TsR = 45,
        /// SK, Encrypted and Authenticated.
        Encrypted = 46,
        /// CP, Configuration.
        Configuration = 47,
        /// EAP, Extensible Authentication.
        Eap = 48,
        /// SKF, Encrypted and Authenticated Fragment (RFC 7383).
        Fragment = 53,
    }
}

/// One payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// SA.
    Sa(Sa),
    /// KE.
    Ke(KeyExchange<'a>),
    /// IDi.
    IdI(Identification<'a>),
    /// IDr.
    IdR(Identification<'a>),
    /// CERT.
    Cert(Certificate<'a>),
    /// CERTREQ.
    CertReq(CertificateRequest<'a>),
    /// AUTH.
    Auth(Auth<'a>),
    /// Ni or Nr.
    Nonce(Nonce<'a>),
    /// N.
    Notify(Notify<'a>),
    /// D.
    Delete(Delete),
    /// V.
    VendorId(VendorId<'a>),
    /// TSi.
    TsI(TrafficSelectors),
    /// TSr.
    TsR(TrafficSelectors),
    /// SK, always the last one.
    Encrypted(Encrypted<'a>),
    /// SKF, always the last one.
    Fragment(Fragment<'a>),
    /// CP or EAP.
    Opaque(Opaque<'a>),
}

impl<'a> Payload<'a> {
    /// Parses the body of a payload of the given type. `None` when the type is not known here: SK and SKF are not, for only
    /// a whole message can have them.
    ///
    /// # Errors
    /// What the payload's own `parse` says.
    pub fn parse(kind: PayloadType, body: &'a [u8]) -> Result<Option<Self>, Error> {
        Ok(Some(match kind {
            PayloadType::Sa => Self::Sa(Sa::parse(body)?),
            PayloadType::Ke => Self::Ke(KeyExchange::parse(body)?),
            PayloadType::IdI => Self::IdI(Identification::parse(body)?),
            PayloadType::IdR => Self::IdR(Identification::parse(body)?),
            PayloadType::Cert => Self::Cert(Certificate::parse(body)?),
            PayloadType::CertReq => Self::CertReq(CertificateRequest::parse(body)?),
            PayloadType::Auth => Self::Auth(Auth::parse(body)?),
            PayloadType::Nonce => Self::Nonce(Nonce::parse(body)?),
            PayloadType::Notify => Self::Notify(Notify::parse(body)?),
            PayloadType::Delete => Self::Delete(Delete::parse(body)?),
            PayloadType::VendorId => Self::VendorId(VendorId::parse(body)),
            PayloadType::TsI => Self::TsI(TrafficSelectors::parse(body)?),
            PayloadType::TsR => Self::TsR(TrafficSelectors::parse(body)?),
            PayloadType::Configuration | PayloadType::Eap => Self::Opaque(Opaque { kind, body }),
            PayloadType::None
            | PayloadType::Encrypted
            | PayloadType::Fragment
            | PayloadType::Unknown(_) => return Ok(None),
        }))
    }

    /// Its type.
    #[must_use]
    pub fn kind(&self) -> PayloadType {
        match self {
            Self::Sa(_) => PayloadType::Sa,
            Self::Ke(_) => PayloadType::Ke,
            Self::IdI(_) => PayloadType::IdI,
            Self::IdR(_) => PayloadType::IdR,
            Self::Cert(_) => PayloadType::Cert,
            Self::CertReq(_) => PayloadType::CertReq,
            Self::Auth(_) => PayloadType::Auth,
            Self::Nonce(_) => PayloadType::Nonce,
            Self::Notify(_) => PayloadType::Notify,
            Self::Delete(_) => PayloadType::Delete,
            Self::VendorId(_) => PayloadType::VendorId,
            Self::TsI(_) => PayloadType::TsI,
            Self::TsR(_) => PayloadType::TsR,
            Self::Encrypted(_) => PayloadType::Encrypted,
            Self::Fragment(_) => PayloadType::Fragment,
            Self::Opaque(opaque) => opaque.kind,
        }
    }

    /// The body's bytes, without the generic header.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let mut w = Writer::default();
        self.emit_body(&mut w);
        w.into_vec()
    }

    /// Writes the generic header and the body.
    pub(super) fn emit(&self, next: PayloadType, w: &mut Writer) {
        w.u8(next.into());
        w.u8(0);
        w.sized(|w| self.emit_body(w));
    }

    /// What stands in this payload's Next Payload field if it is the last one: for SK and SKF the type of the first payload
    /// inside (RFC 7296 §3.14), else nothing.
    pub(super) fn next_if_last(&self) -> PayloadType {
        match self {
            Self::Encrypted(encrypted) => encrypted.inner_first,
            Self::Fragment(fragment) => fragment.inner_first,
            _ => PayloadType::None,
        }
    }

    fn emit_body(&self, w: &mut Writer) {
        match self {
            Self::Sa(sa) => sa.emit(w),
            Self::Ke(ke) => ke.emit(w),
            Self::IdI(id) | Self::IdR(id) => id.emit(w),
            Self::Cert(cert) => cert.emit(w),
            Self::CertReq(request) => request.emit(w),
            Self::Auth(auth) => auth.emit(w),
            Self::Nonce(nonce) => w.bytes(nonce.0),
            Self::Notify(notify) => notify.emit(w),
            Self::Delete(delete) => delete.emit(w),
            Self::VendorId(vendor) => w.bytes(vendor.0),
            Self::TsI(ts) | Self::TsR(ts) => ts.emit(w),
            Self::Encrypted(encrypted) => w.bytes(encrypted.body),
            Self::Fragment(fragment) => fragment.emit(w),
            Self::Opaque(opaque) => w.bytes(opaque.body),
        }
    }
}
