//! Messages outside an IKE SA (RFC 7296 §1.5, §2.5, §2.21.4): what is said to those who send one, and what is done about those
//! who say so. Neither is authenticated, so the answer is rare, to configured peers only, and the most that follows from one
//! is a question under SK.

use std::time::{Duration, Instant};

use super::Endpoint;
use super::receive::Received;
use crate::event::Path;
use crate::limits;
use crate::sa::notify;
use crate::timers::Timer;
use crate::wire::{self, Flags, Header, Message, Notify, NotifyType, Payload, PayloadType};

/// How many unprotected answers were given lately.
#[derive(Debug, Default)]
pub(super) struct Strays {
    since: Option<Instant>,
    answers: u32,
}

impl Strays {
    /// Whether one more may be given.
    fn admit(&mut self, now: Instant) -> bool {
        let age = self.since.map(|since| now.saturating_duration_since(since));
        if age.is_none_or(|age| age >= Duration::from_secs(1)) {
            (self.since, self.answers) = (Some(now), 0);
        }
        self.answers += 1;
        self.answers <= limits::STRAY_ANSWERS
    }
}

impl Endpoint {
    /// A datagram that is no IKE message of this version.
    pub(super) fn receive_unreadable(
        &mut self,
        now: Instant,
        path: Path,
        datagram: &[u8],
        error: &wire::Error,
    ) {
        tracing::trace!(remote = %path.remote, "no IKE message: {error}");
        // RFC 7296 §2.5: only a higher version than ours asks for an answer.
        let higher = matches!(error, wire::Error::Version(major) if *major > 2);
        if let (true, Ok(header)) = (higher, Header::peek(datagram)) {
            self.answer_stray(now, path, &header, NotifyType::InvalidMajorVersion);
        }
    }

    /// A protected message under SPIs that this node does not know.
    pub(super) fn receive_stray(&mut self, received: &Received<'_>) {
        let Received {
            now, path, header, ..
        } = *received;
        tracing::trace!("message for no IKE SA of this node dropped");
        self.answer_stray(now, path, &header, NotifyType::InvalidIkeSpi);
    }

    /// Answers a request, without protection and with its SPIs and message ID (RFC 7296 §1.5). Never a response, so that two
    /// nodes do not answer each other for ever.
    fn answer_stray(&mut self, now: Instant, path: Path, header: &Header, kind: NotifyType) {
        let known = self.half_open.knows(path.remote.ip());
        if header.flags.response || !known || !self.strays.admit(now) {
            return;
        }
        let flags = Flags {
            initiator: !header.flags.initiator,
            response: true,
            version: false,
        };
        let header = Header { flags, ..*header };
        let datagram = wire::emit(&header, &[Payload::Notify(Notify::new(kind, &[]))]);
        self.transmit(path, datagram);
    }

    /// The peer says, without protection, that it does not know this IKE SA. Anybody can say that: it is asked under SK, at
    /// most each [`limits::STRAY_LIVENESS`] (RFC 7296 §2.4, §2.21.4). Returns whether the datagram was such a message.
    pub(super) fn receive_invalid_spi(&mut self, spi: u64, received: &Received<'_>) -> bool {
        let told = || {
            let message = Message::parse(received.datagram).ok()?;
            notify(&message.payloads, NotifyType::InvalidIkeSpi).map(drop)
        };
        if received.header.next_payload != PayloadType::Notify || told().is_none() {
            return false;
        }
        let now = received.now;
        let sa = self.sas.get(&spi);
        let quiet = sa.is_some_and(|sa| {
            sa.established().is_some() && now >= sa.heard + limits::STRAY_LIVENESS
        });
        if quiet {
            tracing::debug!("told without proof that the peer does not know this IKE SA: asking");
            // One in flight asks already.
            self.ask_liveness(spi, now);
            self.timers
                .set(Timer::Liveness(spi), now + limits::DPD_IDLE);
        }
        true
    }
}
