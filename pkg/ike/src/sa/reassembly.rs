//! Joining the fragments of one message (RFC 7383 §2.6). What is kept is authentic, of bounded size, and not for long.

use std::collections::BTreeMap;
use std::time::Instant;

use zeroize::Zeroizing;

use crate::exchange::Fingerprint;
use crate::limits;
use crate::wire::{Fragment, PayloadType};

/// At most one incomplete message.
#[derive(Debug, Default)]
pub(crate) struct Reassembly(Option<Box<Partial>>);

#[derive(Debug)]
struct Partial {
    message_id: u32,
    total: u16,
    parts: BTreeMap<u16, Zeroizing<Vec<u8>>>,
    bytes: usize,
    /// Of the first fragment: the type of the first payload, and what tells a retransmission.
    first: Option<(PayloadType, Fingerprint)>,
    since: Instant,
}

/// A message that is complete: the type of its first payload, its inner payloads, and what tells a retransmission.
pub(crate) type Joined = (PayloadType, Zeroizing<Vec<u8>>, Fingerprint);

impl Reassembly {
    /// Whether a fragment is worth verifying: of a message that may still become complete, and not there yet. The caller has
    /// checked that a message with this ID is expected.
    pub(crate) fn wants(&mut self, message_id: u32, fragment: &Fragment<'_>, now: Instant) -> bool {
        self.expire(now);
        let first = fragment.number == 1 || fragment.inner_first == PayloadType::None;
        let news = self.0.as_ref().is_none_or(|partial| {
            partial.message_id != message_id
                || partial.total < fragment.total
                || (partial.total == fragment.total
                    && !partial.parts.contains_key(&fragment.number))
        });
        first && news && fragment.total <= limits::FRAGMENTS_MAX
    }

    /// Adds a verified fragment that was wanted; the message once it is complete. More fragments than before: the sender has
    /// made smaller ones, and those that came are of no use (RFC 7383 §2.6).
    pub(crate) fn add(
        &mut self,
        message_id: u32,
        fragment: &Fragment<'_>,
        part: Zeroizing<Vec<u8>>,
        fingerprint: Option<Fingerprint>,
        now: Instant,
    ) -> Option<Joined> {
        let same = |p: &Partial| p.message_id == message_id && p.total == fragment.total;
        if !self.0.as_deref().is_some_and(same) {
            self.0 = Some(Box::new(Partial {
                message_id,
                total: fragment.total,
                parts: BTreeMap::new(),
                bytes: 0,
                first: None,
                since: now,
            }));
        }
        let partial = self.0.as_mut()?;
        partial.bytes += part.len();
        if partial.bytes > limits::REASSEMBLY_BYTES {
            let most = limits::REASSEMBLY_BYTES;
            tracing::warn!("message in fragments dropped: it has more than {most} bytes");
            self.clear();
            return None;
        }
        if let Some(fingerprint) = fingerprint {
            partial.first = Some((fragment.inner_first, fingerprint));
        }
        partial.parts.insert(fragment.number, part);
        if partial.parts.len() < usize::from(partial.total) {
            return None;
        }
        let partial = self.0.take()?;
        let (first, fingerprint) = partial.first?;
        let mut whole = Zeroizing::new(Vec::with_capacity(partial.bytes));
        for part in partial.parts.values() {
            whole.extend_from_slice(part);
        }
        Some((first, whole, fingerprint))
    }

    /// Drops the message if it is incomplete for too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        let stale = |partial: &mut Box<Partial>| now >= partial.since + limits::REASSEMBLY_TIME;
        self.0.take_if(stale);
    }

    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }
}
