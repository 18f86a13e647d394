//! IKE_INTERMEDIATE (RFC 9242) with the additional key exchange (RFC 9370 §2.2.2): between IKE_SA_INIT and IKE_AUTH, both
//! sides. It is protected by the keys that there are, and nobody is authenticated yet; what it says is, in IKE_AUTH.

use std::time::Instant;

use super::Endpoint;
use super::receive::Received;
use crate::config::Identity;
use crate::crypto::{Kem, KemKey, kem};
use crate::error::Failure;
use crate::event::Role;
use crate::exchange::Request;
use crate::sa::{Covered, IntermediateSent, Negotiated, Opened, State, covered, error_notify};
use crate::timers::Timer;
use crate::wire::{ExchangeType, Header, KeyExchange, Payload};

impl Endpoint {
    pub(super) fn send_intermediate(
        &mut self,
        spi: u64,
        id: &Identity,
        negotiated: Negotiated,
        kem: Kem,
        now: Instant,
    ) -> Result<(), Failure> {
        let kem = KemKey::generate(kem)?;
        let Some(sa) = self.sas.get_mut(&spi) else {
            return Ok(());
        };
        let header = sa.header(ExchangeType::IkeIntermediate, false, 1);
        let public = kem.public().to_vec();
        let method = kem.kem();
        sa.state = State::IntermediateSent(Box::new(IntermediateSent {
            peer: id.clone(),
            negotiated,
            kem,
        }));
        let sealed = sa.seal(&header, &[payload(method, &public)])?;
        self.send_request(spi, Request::Intermediate, sealed, now);
        Ok(())
    }

    pub(super) fn receive_intermediate_response(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        opened: &Opened,
    ) {
        let now = received.now;
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        if !matches!(sa.state, State::IntermediateSent(_)) {
            return;
        }
        sa.exchanges.finish(received.header.message_id);
        let asked = sa.header(
            ExchangeType::IkeIntermediate,
            false,
            received.header.message_id,
        );
        let spis = sa.spis();
        self.timers.cancel(&Timer::Retransmit(spi));
        let State::IntermediateSent(state) = std::mem::replace(&mut sa.state, State::Closed) else {
            return;
        };
        let IntermediateSent {
            peer,
            mut negotiated,
            kem,
        } = *state;
        let sent = covered(&asked, &[payload(kem.kem(), kem.public())]);
        let covered = Covered {
            sent: &sent,
            received: &opened.covered(),
        };
        let added = opened_secret(&peer, kem, opened).and_then(|shared| {
            let added = negotiated.add(&shared, spis, Role::Initiator, covered);
            Ok(added.map(drop)?)
        });
        let sent = added.and_then(|()| self.send_auth(spi, &peer, negotiated, now));
        if let Err(failure) = sent {
            self.attempt_failed(spi, &peer, failure, now);
        }
    }

    pub(super) fn receive_intermediate_request(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        opened: &Opened,
    ) {
        match self.judge_intermediate(spi, opened) {
            Ok(answer) => self.answer_intermediate(spi, received, opened, answer),
            Err(failure) => self.refuse_auth(spi, received, None, failure),
        }
    }

    /// The answer's method and ciphertext, and the secret.
    fn judge_intermediate(&self, spi: u64, opened: &Opened) -> Result<Answer, Failure> {
        let payloads = opened.payloads()?;
        let awaited = self.half_open_state(spi).and_then(|state| state.awaits);
        let method = awaited.ok_or_else(missing_ke)?;
        let public = key_exchange(&payloads, method)?;
        let (ciphertext, shared) = kem::encapsulate(method, public)?;
        Ok(Answer {
            method,
            ciphertext,
            shared,
        })
    }

    /// The answer is sealed with the keys that there were; the next message comes under the new ones.
    fn answer_intermediate(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        opened: &Opened,
        answer: Answer,
    ) {
        let payloads = [payload(answer.method, &answer.ciphertext)];
        self.respond(spi, received, &payloads);
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let Header {
            exchange,
            message_id,
            ..
        } = received.header;
        let sent = covered(&sa.header(exchange, true, message_id), &payloads);
        let spis = sa.spis();
        let State::HalfOpen(state) = &mut sa.state else {
            return;
        };
        let covered = Covered {
            sent: &sent,
            received: &opened.covered(),
        };
        let added = state
            .negotiated
            .add(&answer.shared, spis, Role::Responder, covered);
        match added {
            Ok(before) => {
                state.before = Some(Box::new((before.sealer, before.opener)));
                state.awaits = None;
            }
            Err(error) => tracing::error!("no keys out of IKE_INTERMEDIATE: {error}"),
        }
    }
}

struct Answer {
    method: Kem,
    ciphertext: Vec<u8>,
    shared: crate::crypto::SharedSecret,
}

/// The secret out of an answer, which nobody has authenticated yet.
fn opened_secret(
    peer: &Identity,
    kem: KemKey,
    opened: &Opened,
) -> Result<crate::crypto::SharedSecret, Failure> {
    let payloads = opened.payloads()?;
    if let Some((notify, _)) = error_notify(&payloads) {
        let peer = peer.clone();
        return Err(Failure::PeerNotify { peer, notify });
    }
    let ciphertext = key_exchange(&payloads, kem.kem())?;
    Ok(kem.open(ciphertext)?)
}

fn payload(kem: Kem, data: &[u8]) -> Payload<'_> {
    Payload::Ke(KeyExchange {
        group: kem.transform_id(),
        data,
    })
}

/// The data of the one KE payload, which must be of the method that was agreed.
fn key_exchange<'a>(payloads: &[Payload<'a>], kem: Kem) -> Result<&'a [u8], Failure> {
    let mut kes = payloads.iter().filter_map(|payload| match payload {
        Payload::Ke(ke) => Some(ke),
        _ => None,
    });
    match (kes.next(), kes.next()) {
        (Some(ke), None) if ke.group == kem.transform_id() => Ok(ke.data),
        _ => Err(missing_ke()),
    }
}

fn missing_ke() -> Failure {
    Failure::Missing {
        what: "KE payload of the additional key exchange that was agreed, or it is not the only one,",
        message: "IKE_INTERMEDIATE",
    }
}
