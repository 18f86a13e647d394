//! Sorting datagrams: header → IKE SA → message ID → SK → only then the state (RFC 7296 §2.21). What is not understood or
//! not authentic is dropped without a trace in any state.

use std::time::{Duration, Instant};

use super::Endpoint;
use crate::error::Failure;
use crate::event::{Path, Role};
use crate::exchange::{Fingerprint, Incoming};
use crate::sa::{IkeSa, State, error_notify};
use crate::wire::{self, ExchangeType, Header, Notify, NotifyType, Payload};

/// A datagram with its circumstances. Of a message in fragments it is the last one that came.
#[derive(Clone, Copy)]
pub(super) struct Received<'a> {
    pub(super) now: Instant,
    pub(super) unix: Duration,
    pub(super) path: Path,
    pub(super) datagram: &'a [u8],
    pub(super) header: Header,
    /// Of a verified request.
    pub(super) fingerprint: Fingerprint,
}

impl Endpoint {
    pub(super) fn receive(&mut self, now: Instant, unix: Duration, path: Path, datagram: &[u8]) {
        let header = match Header::parse(datagram) {
            Ok((header, _)) => header,
            Err(error) => return self.receive_unreadable(now, path, datagram, &error),
        };
        let (spi_i, spi_r) = (
            format_args!("{:016x}", header.spi_i),
            format_args!("{:016x}", header.spi_r),
        );
        let _span = tracing::debug_span!("ike", %spi_i, %spi_r, remote = %path.remote).entered();
        let received = Received {
            now,
            unix,
            path,
            datagram,
            header,
            fingerprint: Fingerprint::default(),
        };
        let first = header.exchange == ExchangeType::IkeSaInit && !header.flags.response;
        if first {
            return self.receive_init(&received);
        }
        let Some(spi) = self.find_sa(&header) else {
            return self.receive_stray(&received);
        };
        if header.flags.response {
            self.receive_response(spi, &received);
        } else {
            self.receive_request(spi, &received);
        }
    }

    /// The IKE SA that both SPIs and the initiator flag point at.
    fn find_sa(&self, header: &Header) -> Option<u64> {
        let (local, remote, role) = if header.flags.initiator {
            (header.spi_r, header.spi_i, Role::Responder)
        } else {
            (header.spi_i, header.spi_r, Role::Initiator)
        };
        let fits = |sa: &IkeSa| {
            let unanswered = matches!(sa.state, State::InitSent(_))
                && header.exchange == ExchangeType::IkeSaInit;
            sa.role == role && (sa.remote_spi == remote || unanswered)
        };
        self.sas.get(&local).filter(|sa| fits(sa)).map(|sa| sa.spi)
    }

    fn receive_request(&mut self, spi: u64, received: &Received<'_>) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let id = received.header.message_id;
        match sa.exchanges.classify(id, received.datagram) {
            Incoming::New => {}
            Incoming::Repeated => return self.respond_again(spi, received.path),
            Incoming::Resembles if sa.is_refragmented(received.datagram) => {
                return self.respond_again(spi, received.path);
            }
            Incoming::Resembles | Incoming::OutOfWindow => {
                return tracing::trace!("request outside the window dropped");
            }
        }
        if !sa.admits_request(received.header.exchange) {
            return tracing::debug!(exchange = ?received.header.exchange, "request not allowed in this state dropped");
        }
        let Some(opened) = sa.open(received.datagram, received.now) else {
            return;
        };
        let received = &Received {
            fingerprint: opened.fingerprint,
            ..*received
        };
        self.heard(spi, received);
        if let Err(error) = opened.payloads()
            && !is_handshake(received.header.exchange)
        {
            return self.receive_malformed(spi, received, error);
        }
        match received.header.exchange {
            ExchangeType::IkeIntermediate => {
                self.receive_intermediate_request(spi, received, &opened);
            }
            ExchangeType::IkeAuth => self.receive_auth_request(spi, received, &opened),
            ExchangeType::CreateChildSa => self.receive_create_child(spi, received, &opened),
            ExchangeType::IkeFollowupKe => self.receive_followup(spi, received, &opened),
            _ => self.receive_informational(spi, received, &opened),
        }
    }

    /// A request that is authentic and cannot be read (RFC 7296 §2.5, §2.21.3).
    fn receive_malformed(&mut self, spi: u64, received: &Received<'_>, error: wire::Error) {
        self.heard_request(spi, received.now);
        let failure = Failure::from(error);
        tracing::warn!("{failure}");
        let data = failure.notify_data();
        let kind = failure.notify();
        self.respond(spi, received, &[Payload::Notify(Notify::new(kind, &data))]);
        if kind == NotifyType::InvalidSyntax {
            self.broken_off(spi, received.now);
        }
    }

    /// The request that was answered last came again.
    pub(super) fn respond_again(&mut self, spi: u64, path: Path) {
        let response = self
            .sas
            .get_mut(&spi)
            .and_then(|sa| sa.exchanges.response_mut());
        let datagrams = response.map(|response| response.datagrams.clone());
        self.transmit_all(path, datagrams.unwrap_or_default());
    }

    fn receive_response(&mut self, spi: u64, received: &Received<'_>) {
        if self.receive_invalid_spi(spi, received) {
            return;
        }
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let Some(request) = sa.exchanges.in_flight(received.header.message_id) else {
            return tracing::trace!("response to nothing in flight dropped");
        };
        let expected = request.exchange();
        if received.header.exchange != expected {
            return tracing::debug!("response of another exchange dropped");
        }
        if expected == ExchangeType::IkeSaInit {
            return self.receive_init_response(spi, received);
        }
        let Some(opened) = sa.open(received.datagram, received.now) else {
            return;
        };
        self.heard(spi, received);
        self.heard_answer(spi);
        let malformed = |payloads: Vec<Payload<'_>>| {
            error_notify(&payloads).is_some_and(|(kind, _)| kind == NotifyType::InvalidSyntax)
        };
        if !is_handshake(expected) && opened.payloads().is_ok_and(malformed) {
            return self.broken_off(spi, received.now);
        }
        match expected {
            ExchangeType::IkeIntermediate => {
                self.receive_intermediate_response(spi, received, &opened);
            }
            ExchangeType::IkeAuth => self.receive_auth_response(spi, received, &opened),
            ExchangeType::CreateChildSa => {
                self.receive_create_child_response(spi, received, &opened);
            }
            ExchangeType::IkeFollowupKe => {
                self.receive_followup_response(spi, received, &opened);
            }
            _ => self.receive_informational_response(spi, received, &opened),
        }
        self.flush_moves(spi, received.now);
    }

    /// The peer is alive, and there. The datagram is authentic and no repetition.
    fn heard(&mut self, spi: u64, received: &Received<'_>) {
        if let Some(sa) = self.sas.get_mut(&spi) {
            sa.heard = received.now;
        }
        self.follow(spi, received.path);
    }
}

/// Before an IKE SA is established: whatever goes wrong ends the attempt.
fn is_handshake(exchange: ExchangeType) -> bool {
    matches!(
        exchange,
        ExchangeType::IkeIntermediate | ExchangeType::IkeAuth
    )
}
