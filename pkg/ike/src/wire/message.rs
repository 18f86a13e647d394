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
