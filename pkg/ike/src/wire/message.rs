//! A message: the header and its chain of payloads (RFC 7296 §3.1, §3.2).

use super::codec::{Reader, Writer};
use super::{
    Encrypted, Error, Fragment, HEADER_LEN, Header, MAX_MESSAGE, MAX_PAYLOADS, Payload, PayloadType,
};

/// A parsed message. SK and SKF stand last and are not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Header.
    pub header: Header,
    /// Payloads in the order received, without unknown ones that are not critical.
    pub payloads: Vec<Payload<'a>>,
}

impl<'a> Message<'a> {
    /// Parses a datagram without non-ESP marker.
    ///
    /// # Errors
    /// See [`Error`]; nothing in the message is authenticated yet.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Error> {
        let (header, body) = Header::parse(datagram)?;
        let mut chain = Chain::new(header.next_payload, body);
        let mut payloads = Vec::new();
        while let Some(raw) = chain.next()? {
            let sealed = matches!(raw.kind, PayloadType::Encrypted | PayloadType::Fragment);
            let payload = if sealed {
                Some(chain.end(&raw)?)
            } else {
                raw.open()?
            };
            payloads.extend(payload);
        }
        Ok(Self { header, payloads })
    }
}

/// Parses a chain of payloads: the inner ones of an SK payload, whose first type is [`Encrypted::inner_first`].
///
/// # Errors
/// See [`Error`]; an SK or SKF payload inside is refused.
pub fn parse_chain(first: PayloadType, bytes: &[u8]) -> Result<Vec<Payload<'_>>, Error> {
    if bytes.len() > MAX_MESSAGE {
        return Err(Error::Length {
            what: "payload chain",
            expected: "at most 65535 bytes",
            got: bytes.len(),
        });
    }
    let mut chain = Chain::new(first, bytes);
    let mut payloads = Vec::new();
    while let Some(raw) = chain.next()? {
        if matches!(raw.kind, PayloadType::Encrypted | PayloadType::Fragment) {
            return Err(Error::Value {
                what: "payload inside an SK payload",
                expected: "any type but SK and SKF",
                got: u8::from(raw.kind).into(),
            });
        }
        payloads.extend(raw.open()?);
    }
    Ok(payloads)
}

/// Writes a message. Next-payload fields and lengths come from the payloads; [`Header::next_payload`] is not looked at.
/// SK and SKF payloads belong at the end; to seal one, begin with [`super::emit_encrypted_prefix`].
#[must_use]
pub fn emit(header: &Header, payloads: &[Payload<'_>]) -> Vec<u8> {
    let (first, chain) = emit_chain(payloads);
    let mut w = Writer::default();
    header.emit(first, HEADER_LEN + chain.len(), &mut w);
    w.bytes(&chain);
    w.into_vec()
}

/// Writes a chain of payloads and returns it with the type of its first.
#[must_use]
pub fn emit_chain(payloads: &[Payload<'_>]) -> (PayloadType, Vec<u8>) {
    let mut w = Writer::default();
    let followers = payloads
        .iter()
        .skip(1)
        .map(|next| Some(next.kind()))
        .chain([None]);
    for (payload, next) in payloads.iter().zip(followers) {
        payload.emit(next.unwrap_or_else(|| payload.next_if_last()), &mut w);
    }
    let first = payloads.first().map_or(PayloadType::None, Payload::kind);
    (first, w.into_vec())
}

/// Walks over generic payload headers.
struct Chain<'a> {
    next: PayloadType,
    reader: Reader<'a>,
    length: usize,
    seen: usize,
}

/// A payload whose body is not parsed yet.
struct Raw<'a> {
    kind: PayloadType,
    critical: bool,
    body: &'a [u8],
}

impl<'a> Chain<'a> {
    fn new(first: PayloadType, bytes: &'a [u8]) -> Self {
        let reader = Reader::new("payload chain", bytes);
        Self {
            next: first,
            reader,
            length: bytes.len(),
            seen: 0,
        }
    }

    fn next(&mut self) -> Result<Option<Raw<'a>>, Error> {
        if self.next == PayloadType::None {
            self.reader.clone().finish()?;
            return Ok(None);
        }
        self.seen += 1;
        if self.seen > MAX_PAYLOADS {
            return Err(Error::TooMany {
                what: "payloads",
                limit: MAX_PAYLOADS,
            });
        }
        let kind = self.next;
        self.next = self.reader.u8()?.into();
        let critical = self.reader.u8()? & 0x80 != 0;
        let body = self.reader.sized("payload")?.rest();
        Ok(Some(Raw {
            kind,
            critical,
            body,
        }))
    }

    /// Takes an SK or SKF payload, which ends the chain: its next-payload field speaks of what is inside.
    fn end(&mut self, raw: &Raw<'a>) -> Result<Payload<'a>, Error> {
        let inner_first = std::mem::replace(&mut self.next, PayloadType::None);
        let body_at = HEADER_LEN + self.length - self.reader.left() - raw.body.len();
        match raw.kind {
            PayloadType::Fragment => {
                Fragment::parse(inner_first, raw.body, body_at).map(Payload::Fragment)
            }
            _ => Ok(Payload::Encrypted(Encrypted {
                inner_first,
                body: raw.body,
                aad_len: body_at,
            })),
        }
    }
}

impl<'a> Raw<'a> {
    fn open(&self) -> Result<Option<Payload<'a>>, Error> {
        let payload = Payload::parse(self.kind, self.body)?;
        if payload.is_none() && self.critical {
            return Err(Error::UnsupportedCritical(self.kind.into()));
        }
        Ok(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Delete, ExchangeType, Flags, Notify, NotifyType, VendorId};
    use super::*;

    const HEADER: Header = Header {
        spi_i: 1,
        spi_r: 0,
        next_payload: PayloadType::Notify,
        exchange: ExchangeType::IkeSaInit,
        flags: Flags {
            initiator: true,
            response: false,
            version: false,
        },
        message_id: 0,
    };

    /// The chain N(COOKIE), type 200, V, where the second is critical or not.
    fn chain(critical: u8) -> Vec<u8> {
        vec![
            200, 0, 0, 9, 0, 0, 0x40, 0x06, 0xcc, // N, 16390
            43, critical, 0, 6, 1, 2, // unknown
            0, 0x80, 0, 5, b'E', // V; a critical bit on a known type means nothing
        ]
    }

    #[test]
    fn unknown_payloads_are_skipped_unless_critical() {
        let notify = Payload::Notify(Notify::new(NotifyType::Cookie, &[0xcc]));
        let wanted = vec![notify, Payload::VendorId(VendorId(b"E"))];
        assert_eq!(parse_chain(PayloadType::Notify, &chain(0x7f)), Ok(wanted));
        let bytes = chain(0x80);
        let critical = parse_chain(PayloadType::Notify, &bytes);
        assert_eq!(critical, Err(Error::UnsupportedCritical(200)));
    }

    #[test]
    fn a_message_is_its_header_and_its_chain() {
        let payloads = [
            Payload::VendorId(VendorId(b"Es")),
            Payload::Delete(Delete::Ike),
        ];
        let bytes = emit(&HEADER, &payloads);
        let tail = [42, 0, 0, 6, b'E', b's', 0, 0, 0, 8, 1, 0, 0, 0];
        assert_eq!(bytes[16], 43, "the first payload's type, not the header's");
        assert_eq!(bytes[24..28], [0, 0, 0, 42]);
        assert_eq!(bytes[28..], tail);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.header.next_payload, PayloadType::VendorId);
        assert_eq!(message.payloads, payloads);
    }

    #[test]
    fn a_message_may_have_no_payload() {
        let bytes = emit(&HEADER, &[]);
        assert_eq!(bytes.len(), HEADER_LEN);
        assert_eq!(Message::parse(&bytes).unwrap().payloads, []);
        assert_eq!(parse_chain(PayloadType::None, &[]), Ok(vec![]));
    }

    #[test]
    fn a_chain_ends_where_its_bytes_do() {
        let trailing = parse_chain(PayloadType::None, &[0]);
        assert!(matches!(trailing, Err(Error::Trailing { extra: 1, .. })));
        let missing = parse_chain(PayloadType::VendorId, &[43, 0, 0, 4]);
        assert!(matches!(missing, Err(Error::Truncated { .. })));
        let small = parse_chain(PayloadType::VendorId, &[0, 0, 0, 3]);
        assert!(matches!(small, Err(Error::Length { got: 3, .. })));
    }

    #[test]
    fn payloads_are_bounded_skipped_ones_too() {
        let mut bytes = [200, 0, 0, 4].repeat(MAX_PAYLOADS + 1);
        let many = parse_chain(PayloadType::Unknown(200), &bytes);
        assert_eq!(
            many,
            Err(Error::TooMany {
                what: "payloads",
                limit: MAX_PAYLOADS
            })
        );
        bytes.truncate(4 * MAX_PAYLOADS);
        bytes[4 * (MAX_PAYLOADS - 1)] = 0;
        assert_eq!(parse_chain(PayloadType::Unknown(200), &bytes), Ok(vec![]));
    }

    #[test]
    fn no_sk_inside_sk() {
        for kind in [PayloadType::Encrypted, PayloadType::Fragment] {
            let nested = parse_chain(kind, &[0, 0, 0, 8, 0, 1, 0, 1]);
            assert!(matches!(nested, Err(Error::Value { .. })), "{kind:?}");
        }
    }

    #[test]
    fn ikev1_payload_types_and_reserved_ones_are_unknown() {
        assert_eq!(PayloadType::from(1), PayloadType::Unknown(1));
        assert_eq!(
            parse_chain(PayloadType::Unknown(1), &[0, 0, 0, 4]),
            Ok(vec![])
        );
    }

    #[test]
    fn each_error_has_its_notify() {
        assert_eq!(Error::Version(3).notify(), NotifyType::InvalidMajorVersion);
        let critical = Error::UnsupportedCritical(200).notify();
        assert_eq!(critical, NotifyType::UnsupportedCriticalPayload);
        let other = parse_chain(PayloadType::Nonce, &[0, 0, 0, 4]).unwrap_err();
        assert_eq!(other.notify(), NotifyType::InvalidSyntax);
        assert_eq!(
            other.to_string(),
            "Nonce payload: expected 16 to 256 bytes, got 0 bytes"
        );
    }
}
