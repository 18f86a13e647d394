//! Messages as datagrams: sealed in one SK payload or, where it is too large, in fragments, and opened from either (RFC 7383).

use std::time::Instant;

use zeroize::Zeroizing;

use super::IkeSa;
use super::reassembly::Reassembly;
use crate::crypto::{CryptoError, Sealer};
use crate::exchange::Fingerprint;
use crate::limits;
use crate::wire::{
    self, Fragment, HEADER_LEN, Header, Message, PAYLOAD_HEADER_LEN, Payload, PayloadType,
};

/// Bytes of a message around the body of its SK payload.
const SK_AROUND: usize = HEADER_LEN + PAYLOAD_HEADER_LEN;
/// The same of a fragment: SKF has its number and the total besides.
const SKF_AROUND: usize = SK_AROUND + 4;

/// What an IKE SA knows about the size of datagrams, and what it holds of messages in fragments.
#[derive(Debug, Default)]
pub(crate) struct Fragmentation {
    /// Both ends sent IKEV2_FRAGMENTATION_SUPPORTED.
    pub(crate) agreed: bool,
    /// Datagrams of the usual size do not arrive.
    pub(crate) small: bool,
    /// At most one incomplete message per direction.
    requests: Reassembly,
    responses: Reassembly,
}

impl Fragmentation {
    /// For an IKE SA that takes the place of this one.
    pub(crate) fn inherited(&self) -> Self {
        Self {
            agreed: self.agreed,
            small: self.small,
            ..Self::default()
        }
    }

    /// Drops what is incomplete for too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.requests.expire(now);
        self.responses.expire(now);
    }
}

/// A message ready to be sent, and sent again: the same bytes each time.
#[derive(Debug, Default)]
pub(crate) struct Sealed {
    pub(crate) datagrams: Vec<Vec<u8>>,
    /// What it takes to seal it again in smaller datagrams; only where they can be smaller.
    whole: Option<Box<Whole>>,
}

impl Sealed {
    /// A message that is no fragment and never will be.
    pub(crate) fn plain(mut datagram: Vec<u8>) -> Self {
        datagram.shrink_to_fit();
        Self {
            datagrams: vec![datagram],
            whole: None,
        }
    }

    /// Bytes on the wire.
    pub(crate) fn len(&self) -> usize {
        self.datagrams.iter().map(Vec::len).sum()
    }

    fn take_whole(&mut self) -> Option<Box<Whole>> {
        self.whole.take()
    }
}

#[derive(Debug)]
struct Whole {
    header: Header,
    first: PayloadType,
    inner: Zeroizing<Vec<u8>>,
}

impl Whole {
    /// In one datagram, or in fragments where it exceeds `most` bytes and `fragmentation` was agreed.
    fn seal(
        &self,
        sealer: &mut Sealer,
        most: usize,
        fragmentation: bool,
    ) -> Result<Vec<Vec<u8>>, CryptoError> {
        let Self {
            header,
            first,
            inner,
        } = self;
        if !fragmentation || inner.len() <= sealer.inner_room(most - SK_AROUND) {
            let mut datagram = sealer.seal_message(header, *first, inner)?;
            datagram.shrink_to_fit();
            return Ok(vec![datagram]);
        }
        let parts = inner.chunks(sealer.inner_room(most - SKF_AROUND));
        let total = u16::try_from(parts.len());
        let total = total.map_err(|_| CryptoError::SkLimit("too many fragments, send less"))?;
        let mut datagrams = Vec::with_capacity(parts.len());
        for (number, part) in (1..=total).zip(parts) {
            // RFC 7383 §2.5: the type of the first payload is in the first fragment only.
            let first = if number == 1 {
                *first
            } else {
                PayloadType::None
            };
            let mut datagram = sealer.seal_fragment(header, first, (number, total), part)?;
            datagram.shrink_to_fit();
            datagrams.push(datagram);
        }
        Ok(datagrams)
    }
}

/// What is authenticated of an IKE_INTERMEDIATE message with `payloads` (RFC 9242 §3.3.2), whichever way it is sealed.
pub(crate) fn covered(header: &Header, payloads: &[Payload<'_>]) -> Zeroizing<Vec<u8>> {
    let (first, inner) = wire::emit_chain(payloads);
    let inner = Zeroizing::new(inner);
    covered_whole(header, first, &inner)
}

fn covered_whole(header: &Header, first: PayloadType, inner: &[u8]) -> Zeroizing<Vec<u8>> {
    let prefix = wire::emit_encrypted_prefix(header, first, inner.len());
    Zeroizing::new([&prefix, inner].concat())
}

impl IkeSa {
    /// A message with `payloads` sealed: one datagram, or several where it is too large for one and the peer can join them.
    pub(crate) fn seal(
        &mut self,
        header: &Header,
        payloads: &[Payload<'_>],
    ) -> Result<Sealed, CryptoError> {
        let (first, inner) = wire::emit_chain(payloads);
        let whole = Whole {
            header: *header,
            first,
            inner: Zeroizing::new(inner),
        };
        let datagrams = self.seal_whole(&whole)?;
        let fits = self
            .sealer_now()?
            .inner_room(limits::MESSAGE_SMALL - SK_AROUND);
        let divisible =
            self.fragmentation.agreed && !self.fragmentation.small && whole.inner.len() > fits;
        Ok(Sealed {
            datagrams,
            whole: divisible.then(|| Box::new(whole)),
        })
    }

    fn seal_whole(&mut self, whole: &Whole) -> Result<Vec<Vec<u8>>, CryptoError> {
        let (most, agreed) = (self.largest_message(), self.fragmentation.agreed);
        whole.seal(self.sealer_now()?, most, agreed)
    }

    fn sealer_now(&mut self) -> Result<&mut Sealer, CryptoError> {
        let none = CryptoError::SkLimit("it has no keys in this state");
        self.sealer().ok_or(none)
    }

    fn largest_message(&self) -> usize {
        match (self.fragmentation.small, self.path.remote.is_ipv6()) {
            (true, _) => limits::MESSAGE_SMALL,
            (false, true) => limits::MESSAGE_V6,
            (false, false) => limits::MESSAGE_V4,
        }
    }

    /// The request in flight was sent often enough in large datagrams: from now on they are small (RFC 7383 §2.5.2). It is
    /// sealed anew, under the same message ID and with more fragments, as that section wants it.
    pub(crate) fn shrink_request(&mut self) {
        if self.exchanges.sendings() != Some(limits::FULL_SIZE_TRIES) {
            return;
        }
        let whole = self.exchanges.request_mut().and_then(Sealed::take_whole);
        if let Some(datagrams) = whole.and_then(|whole| self.shrunk(&whole)) {
            tracing::debug!(fragments = datagrams.len(), "no answer: smaller datagrams");
            if let Some(sealed) = self.exchanges.request_mut() {
                sealed.datagrams = datagrams;
            }
        }
    }

    /// The peer sends a request again in smaller datagrams: perhaps the response was too large for the path, too.
    fn shrink_response(&mut self) {
        let whole = self.exchanges.response_mut().and_then(Sealed::take_whole);
        let datagrams = whole.and_then(|whole| match self.before() {
            Some((sealer, _)) => whole.seal(sealer, limits::MESSAGE_SMALL, true).ok(),
            None => self.shrunk(&whole),
        });
        if let Some(datagrams) = datagrams
            && let Some(sealed) = self.exchanges.response_mut()
        {
            sealed.datagrams = datagrams;
        }
    }

    fn shrunk(&mut self, whole: &Whole) -> Option<Vec<Vec<u8>>> {
        self.fragmentation.small = true;
        let sealed = self.seal_whole(whole);
        sealed
            .inspect_err(|error| tracing::error!("not sealed again: {error}"))
            .ok()
    }

    /// Opens a datagram of the message that is expected. `None`: it is not authentic, or its message is not complete.
    pub(crate) fn open(&mut self, datagram: &[u8], now: Instant) -> Option<Opened> {
        let message = Message::parse(datagram)
            .inspect_err(|error| tracing::debug!("malformed message dropped: {error}"))
            .ok()?;
        match message.payloads.last() {
            Some(Payload::Encrypted(sk)) => {
                let bytes = self.authentic(datagram, sk.aad_len)?;
                // RFC 7383 §2.6: a whole message makes its fragments superfluous.
                self.reassembly(message.header.flags.response).clear();
                Some(Opened {
                    header: message.header,
                    first: sk.inner_first,
                    bytes,
                    fingerprint: Fingerprint::of(datagram),
                })
            }
            Some(Payload::Fragment(fragment)) => {
                self.open_fragment(datagram, &message.header, fragment, now)
            }
            _ => {
                tracing::debug!("unprotected message dropped");
                None
            }
        }
    }

    fn open_fragment(
        &mut self,
        datagram: &[u8],
        header: &Header,
        fragment: &Fragment<'_>,
        now: Instant,
    ) -> Option<Opened> {
        let agreed = self.fragmentation.agreed;
        let id = header.message_id;
        let reassembly = self.reassembly(header.flags.response);
        if !agreed || !reassembly.wants(id, fragment, now) {
            tracing::trace!("fragment dropped");
            return None;
        }
        // Nothing of it is kept before this (S6).
        let part = self.authentic(datagram, fragment.aad_len)?;
        let first = fragment.number == 1 && fragment.total > 1;
        if first && datagram.len() <= limits::MESSAGE_SMALL {
            // The peer has its reasons; the same path leads back.
            self.fragmentation.small = true;
        }
        let fingerprint = (fragment.number == 1).then(|| Fingerprint::of(datagram));
        let reassembly = self.reassembly(header.flags.response);
        let (first, bytes, fingerprint) = reassembly.add(id, fragment, part, fingerprint, now)?;
        Some(Opened {
            header: *header,
            first,
            bytes,
            fingerprint,
        })
    }

    fn reassembly(&mut self, response: bool) -> &mut Reassembly {
        if response {
            &mut self.fragmentation.responses
        } else {
            &mut self.fragmentation.requests
        }
    }

    fn authentic(&self, datagram: &[u8], aad_len: usize) -> Option<Zeroizing<Vec<u8>>> {
        let opened = self.opener()?.open(datagram, aad_len);
        opened
            .inspect_err(|error| tracing::debug!("message dropped: {error}"))
            .ok()
    }

    /// Whether other bytes under the message ID of the last request are that request in other fragments. RFC 7383 §2.6.1: only
    /// a first fragment may bring the response again.
    pub(crate) fn is_refragmented(&mut self, datagram: &[u8]) -> bool {
        let Ok(message) = Message::parse(datagram) else {
            return false;
        };
        let Some(Payload::Fragment(fragment)) = message.payloads.last() else {
            return false;
        };
        let authentic = match self.before() {
            Some((_, opener)) => opener.open(datagram, fragment.aad_len).is_ok(),
            None => self.authentic(datagram, fragment.aad_len).is_some(),
        };
        let again = self.fragmentation.agreed && fragment.number == 1 && authentic;
        if again {
            self.shrink_response();
        }
        again
    }
}

/// The verified inner payloads of a message, whole.
#[derive(Clone)]
pub(crate) struct Opened {
    header: Header,
    first: PayloadType,
    bytes: Zeroizing<Vec<u8>>,
    /// Tells a retransmission: of the datagram, or of the first fragment.
    pub(crate) fingerprint: Fingerprint,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opened({} bytes, redacted)", self.bytes.len())
    }
}

impl Opened {
    pub(crate) fn payloads(&self) -> Result<Vec<Payload<'_>>, wire::Error> {
        wire::parse_chain(self.first, &self.bytes)
    }

    /// What is authenticated of it if it is an IKE_INTERMEDIATE message (RFC 9242 §3.3.2).
    pub(crate) fn covered(&self) -> Zeroizing<Vec<u8>> {
        covered_whole(&self.header, self.first, &self.bytes)
    }
}
