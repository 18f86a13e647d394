//! Sorting datagrams: header → IKE SA → message ID → SK → only then the state (RFC 7296 §2.21). What is not understood or
//! not authentic is dropped without a trace in any state.

use std::time::{Duration, Instant};

use super::Endpoint;
use crate::event::{Path, Role};
use crate::exchange::{Fingerprint, Incoming, Request};
use crate::sa::{IkeSa, State};
use crate::wire::{ExchangeType, Header};

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
            Err(error) => return tracing::trace!(remote = %path.remote, "no IKE message: {error}"),
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
            return tracing::trace!("message for no IKE SA of this node dropped");
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
        let fits = |sa: &&IkeSa| {
            let unanswered = matches!(sa.state, State::InitSent(_))
                && header.exchange == ExchangeType::IkeSaInit;
            sa.role == role && (sa.remote_spi == remote || unanswered)
        };
        self.sas.get(&local).filter(fits).map(|sa| sa.spi)
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
        self.heard(spi, received.now);
        match received.header.exchange {
            ExchangeType::IkeAuth => self.receive_auth_request(spi, received, &opened),
            ExchangeType::CreateChildSa => self.receive_create_child(spi, received, &opened),
            _ => self.receive_informational(spi, received, &opened),
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
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let expected = match sa.exchanges.in_flight(received.header.message_id) {
            Some(Request::Init) => ExchangeType::IkeSaInit,
            Some(Request::Auth) => ExchangeType::IkeAuth,
            Some(Request::Rekey) => ExchangeType::CreateChildSa,
            Some(_) => ExchangeType::Informational,
            None => return tracing::trace!("response to nothing in flight dropped"),
        };
        if received.header.exchange != expected {
            return tracing::debug!("response of another exchange dropped");
        }
        if expected == ExchangeType::IkeSaInit {
            return self.receive_init_response(spi, received);
        }
        let Some(opened) = sa.open(received.datagram, received.now) else {
            return;
        };
        self.heard(spi, received.now);
        match expected {
            ExchangeType::IkeAuth => self.receive_auth_response(spi, received, &opened),
            ExchangeType::CreateChildSa => {
                self.receive_create_child_response(spi, received, &opened);
            }
            _ => self.receive_informational_response(spi, received),
        }
    }

    /// The peer is alive.
    fn heard(&mut self, spi: u64, now: Instant) {
        if let Some(sa) = self.sas.get_mut(&spi) {
            sa.heard = now;
        }
    }
}
