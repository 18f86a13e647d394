//! Requests in flight and responses given: the message-ID windows of one IKE SA (RFC 7296 §2.1 to §2.3), window size 1.

use std::time::Duration;

use aws_lc_rs::digest;
use rand_core::CryptoRng;

use crate::event::Path;
use crate::limits;
use crate::sa::{ChildRef, Sealed};
use crate::timers::{backoff, jittered};
use crate::wire::ExchangeType;

/// Why a request was sent: what its response, or the lack of one, means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// IKE_SA_INIT.
    Init,
    /// IKE_INTERMEDIATE.
    Intermediate,
    /// IKE_AUTH.
    Auth,
    /// Empty INFORMATIONAL (RFC 7296 §2.4).
    Liveness,
    /// INFORMATIONAL with this announcement.
    Announce(Vec<u8>),
    /// INFORMATIONAL with DELETE of the IKE SA.
    Delete,
    /// INFORMATIONAL with DELETE of these CHILD_SAs.
    DeleteChildren(Vec<ChildRef>),
    /// INFORMATIONAL with UPDATE_SA_ADDRESSES, from the first path to the second (RFC 4555).
    Update(Box<(Path, Path)>),
    /// INFORMATIONAL with this COOKIE2 on that path (RFC 4555).
    Check(Box<(Path, Vec<u8>)>),
    /// CREATE_CHILD_SA; what for is with the IKE SA.
    Rekey,
    /// IKE_FOLLOWUP_KE of the same.
    FollowUp,
}

impl Request {
    /// Of which exchange type request and response are.
    pub(crate) fn exchange(&self) -> ExchangeType {
        match self {
            Self::Init => ExchangeType::IkeSaInit,
            Self::Intermediate => ExchangeType::IkeIntermediate,
            Self::Auth => ExchangeType::IkeAuth,
            Self::Rekey => ExchangeType::CreateChildSa,
            Self::FollowUp => ExchangeType::IkeFollowupKe,
            Self::Liveness
            | Self::Announce(_)
            | Self::Delete
            | Self::DeleteChildren(_)
            | Self::Update(_)
            | Self::Check(_) => ExchangeType::Informational,
        }
    }

    fn tries(&self) -> u32 {
        match self {
            Self::Init | Self::Intermediate | Self::Auth => limits::HANDSHAKE_TRIES,
            Self::Liveness
            | Self::Announce(_)
            | Self::DeleteChildren(_)
            | Self::Update(_)
            | Self::Check(_)
            | Self::Rekey
            | Self::FollowUp => limits::REQUEST_TRIES,
            Self::Delete => limits::DELETE_TRIES,
        }
    }
}

#[derive(Debug)]
struct InFlight {
    id: u32,
    request: Request,
    sealed: Sealed,
    sent: u32,
}

/// Tells a retransmission of a request, which is the same bytes, from anything else: a part of its SHA-256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// Of a datagram; of a message in fragments the first one counts (RFC 7383 §2.6.1).
    pub(crate) fn of(datagram: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, datagram);
        let (head, _) = digest
            .as_ref()
            .split_first_chunk()
            .unwrap_or((&[0; 16], &[]));
        Self(*head)
    }
}

/// A response kept for retransmissions of its request (RFC 7296 §2.1).
#[derive(Debug)]
struct Answered {
    request: Fingerprint,
    response: Sealed,
    /// How often it was looked at since.
    age: u32,
}

/// What a request's message ID says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// The next one: verify and act.
    New,
    /// The one answered last: send the response again.
    Repeated,
    /// Other bytes under the message ID of the one answered last.
    Resembles,
    /// None of these: drop.
    OutOfWindow,
}

/// What to do when a retransmission timer fires.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Retry<'a> {
    /// Send this again and come back after the given time.
    Send(&'a [Vec<u8>], Duration),
    /// No answer after so many sendings.
    GiveUp(Request, u32),
}

/// Both windows of one IKE SA.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    next: u32,
    in_flight: Option<InFlight>,
    expected: u32,
    answered: Option<Answered>,
}

impl Exchanges {
    /// The message ID that the next request of this side will carry; `None` while one is in flight, and when the IDs are
    /// used up (RFC 7296 §2.2: they never wrap).
    pub(crate) fn next_id(&self) -> Option<u32> {
        (self.in_flight.is_none() && self.next != u32::MAX).then_some(self.next)
    }

    /// Takes over a request made with [`Exchanges::next_id`]; returns when to retransmit it.
    pub(crate) fn begin(
        &mut self,
        request: Request,
        sealed: Sealed,
        rng: &mut dyn CryptoRng,
    ) -> Duration {
        let id = self.next;
        self.next = self.next.saturating_add(1);
        self.in_flight = Some(InFlight {
            id,
            request,
            sealed,
            sent: 1,
        });
        jittered(limits::RETRANSMIT_FIRST, rng)
    }

    /// Starts IKE_SA_INIT over with message ID 0 and new content (RFC 7296 §2.6, §2.7).
    pub(crate) fn restart_init(&mut self, sealed: Sealed, rng: &mut dyn CryptoRng) -> Duration {
        self.next = 0;
        self.begin(Request::Init, sealed, rng)
    }

    /// The request in flight.
    pub(crate) fn pending(&self) -> Option<&Request> {
        self.in_flight.as_ref().map(|sent| &sent.request)
    }

    /// The request in flight, if its message ID is `id`.
    pub(crate) fn in_flight(&self, id: u32) -> Option<&Request> {
        self.in_flight
            .as_ref()
            .filter(|sent| sent.id == id)
            .map(|sent| &sent.request)
    }

    /// The response to `id` came and was verified: takes its request out of flight.
    pub(crate) fn finish(&mut self, id: u32) -> Option<Request> {
        self.in_flight
            .take_if(|sent| sent.id == id)
            .map(|sent| sent.request)
    }

    /// A retransmission timer fired.
    pub(crate) fn retry(&mut self, rng: &mut dyn CryptoRng) -> Option<Retry<'_>> {
        let exhausted = self
            .in_flight
            .take_if(|sent| sent.sent >= sent.request.tries());
        if let Some(sent) = exhausted {
            return Some(Retry::GiveUp(sent.request, sent.sent));
        }
        let sent = self.in_flight.as_mut()?;
        let wait = backoff(limits::RETRANSMIT_FIRST, limits::RETRANSMIT_MAX, sent.sent);
        sent.sent += 1;
        Some(Retry::Send(&sent.sealed.datagrams, jittered(wait, rng)))
    }

    /// How often the request in flight was sent.
    pub(crate) fn sendings(&self) -> Option<u32> {
        self.in_flight.as_ref().map(|sent| sent.sent)
    }

    /// The datagrams of the request in flight.
    pub(crate) fn request_mut(&mut self) -> Option<&mut Sealed> {
        self.in_flight.as_mut().map(|sent| &mut sent.sealed)
    }

    /// The datagrams of the last response.
    pub(crate) fn response_mut(&mut self) -> Option<&mut Sealed> {
        self.answered
            .as_mut()
            .map(|answered| &mut answered.response)
    }

    /// Judges a request by its message ID and, if it was answered already, by its bytes.
    pub(crate) fn classify(&self, id: u32, datagram: &[u8]) -> Incoming {
        if id == self.expected && id != u32::MAX {
            return Incoming::New;
        }
        match &self.answered {
            Some(answered) if id.checked_add(1) == Some(self.expected) => {
                if answered.request == Fingerprint::of(datagram) {
                    Incoming::Repeated
                } else {
                    Incoming::Resembles
                }
            }
            _ => Incoming::OutOfWindow,
        }
    }

    /// The expected request was verified and is answered with `response`.
    pub(crate) fn respond(&mut self, request: Fingerprint, response: Sealed) {
        self.expected = self.expected.saturating_add(1);
        self.answered = Some(Answered {
            request,
            response,
            age: 0,
        });
    }

    /// Lets go of a large response once it is so old that no retransmission of its request is expected any more. To be called
    /// each [`limits::DPD_IDLE`] or less often.
    pub(crate) fn age_response(&mut self) {
        let steps = limits::ANSWER_LINGER.as_secs() / limits::DPD_IDLE.as_secs();
        self.answered.take_if(|answered| {
            answered.age = answered.age.saturating_add(1);
            u64::from(answered.age) > steps && answered.response.len() > limits::ANSWER_KEPT
        });
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn only_the_next_request_is_new_and_only_the_same_bytes_are_a_repetition() {
        let mut exchanges = Exchanges::default();
        assert_eq!(exchanges.classify(0, b"first"), Incoming::New);
        exchanges.respond(Fingerprint::of(b"first"), Sealed::plain(b"answer".to_vec()));
        assert_eq!(exchanges.classify(0, b"first"), Incoming::Repeated);
        assert_eq!(exchanges.classify(0, b"forged"), Incoming::Resembles);
        assert_eq!(exchanges.classify(2, b"early"), Incoming::OutOfWindow);
        assert_eq!(exchanges.classify(1, b"second"), Incoming::New);
        exchanges.respond(Fingerprint::of(b"second"), Sealed::plain(b"other".to_vec()));
        assert_eq!(exchanges.classify(0, b"first"), Incoming::OutOfWindow);
    }

    #[test]
    fn one_request_is_in_flight_at_a_time() {
        let mut exchanges = Exchanges::default();
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(exchanges.next_id(), Some(0));
        exchanges.begin(Request::Liveness, Sealed::plain(vec![1]), &mut rng);
        assert_eq!(exchanges.next_id(), None);
        assert_eq!(exchanges.finish(7), None);
        assert_eq!(exchanges.finish(0), Some(Request::Liveness));
        assert_eq!(exchanges.next_id(), Some(1));
    }

    #[test]
    fn retransmissions_are_the_same_bytes_at_growing_intervals_and_end() {
        let mut exchanges = Exchanges::default();
        let mut rng = StdRng::seed_from_u64(1);
        let mut waits = vec![exchanges.begin(Request::Init, Sealed::plain(vec![1, 2]), &mut rng)];
        let sent = loop {
            match exchanges.retry(&mut rng) {
                Some(Retry::Send(datagrams, wait)) => {
                    assert_eq!(datagrams, [[1, 2]]);
                    waits.push(wait);
                }
                Some(Retry::GiveUp(Request::Init, sent)) => break sent,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(sent, limits::HANDSHAKE_TRIES);
        assert_eq!(waits.len() as u32, limits::HANDSHAKE_TRIES);
        assert!(
            waits
                .windows(2)
                .all(|pair| pair[0] < pair[1] || pair[0] >= limits::RETRANSMIT_MAX)
        );
        assert_eq!(exchanges.retry(&mut rng), None);
    }

    #[test]
    fn message_ids_never_wrap() {
        let mut exchanges = Exchanges {
            next: u32::MAX,
            expected: u32::MAX,
            ..Exchanges::default()
        };
        assert_eq!(exchanges.next_id(), None);
        assert_eq!(exchanges.classify(u32::MAX, b"x"), Incoming::OutOfWindow);
        exchanges.respond(Fingerprint::of(b"x"), Sealed::plain(vec![]));
        assert_eq!(exchanges.classify(0, b"x"), Incoming::OutOfWindow);
    }
}
