//! The responder's side of IKE_SA_INIT and IKE_AUTH (RFC 7296 §1.2, §2.6, §2.21.1, §2.21.2).

use super::Endpoint;
use super::accept::{Verdict, agree_child};
use super::half_open::Admission;
use super::informational::announced;
use super::receive::Received;
use crate::config::{Identity, IkePolicy, PeerConfig};
use crate::crypto::{CryptoError, Nonces, SkeySeed, Spis, kex};
use crate::error::Failure;
use crate::event::Role;
use crate::exchange::{Fingerprint, Incoming};
use crate::identity::TrustAnchors;
use crate::limits;
use crate::sa::auth::{node_name, verify};
use crate::sa::init::{self, Chosen, Heard, Say};
use crate::sa::nat::{NAT_PORT, Nat};
use crate::sa::{HalfOpen, IkeSa, Negotiated, Opened, PpkUse, Sealed, State, notify, ppk};
use crate::timers::Timer;
use crate::wire::{
    self, ExchangeType, Header, Identification, Message, Notify, NotifyType, Payload,
};

impl Endpoint {
    pub(super) fn receive_init(&mut self, received: &Received<'_>) {
        let Received {
            header,
            datagram,
            path,
            ..
        } = *received;
        let first = header.spi_i != 0
            && header.spi_r == 0
            && header.message_id == 0
            && header.flags.initiator;
        if !first || datagram.len() > limits::INIT_BYTES {
            return tracing::trace!(
                "IKE_SA_INIT with a header that it cannot have, or too large, dropped"
            );
        }
        if let Some(spi) = self.half_open.find(path.remote, header.spi_i) {
            return self.repeat_init(spi, received);
        }
        let message = match Message::parse(datagram) {
            Ok(message) => message,
            Err(error @ wire::Error::UnsupportedCritical(kind)) => {
                return self.refuse_init(received, error.notify(), &[kind]);
            }
            Err(error) => return tracing::debug!("malformed IKE_SA_INIT dropped: {error}"),
        };
        if self.admit(received, &message.payloads) {
            self.answer_init(received, &message.payloads);
        }
    }

    /// The same request again gets the same response; another one under the same SPI is not believed.
    fn repeat_init(&mut self, spi: u64, received: &Received<'_>) {
        let sa = self.sas.get(&spi);
        let repeated = sa.map(|sa| sa.exchanges.classify(0, received.datagram));
        if let Some(Incoming::Repeated) = repeated {
            self.respond_again(spi, received.path);
        }
    }

    /// Applies the limits on half-open IKE SAs; nothing is stored for a request that must show a cookie first.
    fn admit(&mut self, received: &Received<'_>, payloads: &[Payload<'_>]) -> bool {
        let remote = received.path.remote;
        let threshold = self.config.cookie_threshold;
        match self.half_open.admission(remote.ip(), threshold) {
            Admission::Free => return true,
            Admission::Full => return false,
            Admission::WithCookie => {}
        }
        let Some(nonce) = init::nonce(payloads) else {
            return false;
        };
        let (spi_i, now) = (received.header.spi_i, received.now);
        let shown = notify(payloads, NotifyType::Cookie);
        if shown.is_some_and(|cookie| {
            self.cookies
                .check(cookie, remote, spi_i, nonce, now, &mut *self.rng)
        }) {
            return true;
        }
        let cookie = self.cookies.make(remote, spi_i, nonce, now, &mut *self.rng);
        self.refuse_init(received, NotifyType::Cookie, &cookie);
        false
    }

    fn answer_init(&mut self, received: &Received<'_>, payloads: &[Payload<'_>]) {
        let spis = Spis {
            initiator: received.header.spi_i,
            responder: 0,
        };
        let heard = match Heard::read(payloads, spis, received.path) {
            Ok(heard) => heard,
            Err(error) => {
                tracing::debug!("IKE_SA_INIT refused: {error}");
                return self.refuse_init(received, error.notify(), &[]);
            }
        };
        let policies = self.policies_at(received.path.remote.ip());
        let (sa, group, additional) = (heard.sa, heard.group, heard.intermediate);
        let choose = |policy: &&IkePolicy| init::choose(sa, policy, group, additional);
        let Some(chosen) = policies.iter().find_map(choose) else {
            return self.refuse_proposals(received, heard.sa);
        };
        if chosen.group.transform_id() != heard.group {
            let wanted = chosen.group.transform_id().to_be_bytes();
            return self.refuse_init(received, NotifyType::InvalidKePayload, &wanted);
        }
        if let Err(error) = self.open_half(received, &heard, chosen) {
            tracing::debug!("IKE_SA_INIT dropped: {error}");
        }
    }

    /// Makes a half-open IKE SA and answers.
    fn open_half(
        &mut self,
        received: &Received<'_>,
        heard: &Heard<'_>,
        chosen: Chosen,
    ) -> Result<(), CryptoError> {
        let Received {
            header,
            path,
            datagram,
            now,
            ..
        } = *received;
        let (public, shared) = kex::respond(chosen.group, heard.public, &mut *self.rng)?;
        let (spi, nonce_r) = (self.fresh_ike_spi(), self.fresh_nonce());
        let spis = Spis {
            initiator: header.spi_i,
            responder: spi,
        };
        let nonces = Nonces {
            initiator: heard.nonce,
            responder: &nonce_r,
        };
        let keys = SkeySeed::new(chosen.suite, nonces, &shared).into_keys(nonces, spis)?;
        let forced = heard.nat.is_some() && self.pretends_nat(path.remote.ip());
        let fragmentation = heard.fragmentation;
        // Nodes of a mesh send their certificates unasked.
        let trust = (!heard.mesh).then_some(&self.config.trust);
        let certreq = trust.map(TrustAnchors::certreq).unwrap_or_default();
        let ppk = heard.ppk && self.has_ppk_at(path.remote.ip());
        let sent = init_response(&Say {
            spis,
            path,
            cookie: &[],
            sa: chosen.answer(),
            group: chosen.group,
            public: &public,
            nonce: &nonce_r,
            fragmentation,
            certreq: &certreq,
            pretend_nat: forced,
            intermediate: chosen.kem.is_some(),
            ppk,
            childless: true,
        });
        let negotiated = Negotiated {
            keys: keys.for_role(Role::Responder)?,
            sent: sent.clone(),
            received: datagram.to_vec(),
            nonce_i: heard.nonce.to_vec(),
            nonce_r,
            chosen,
            mesh: heard.mesh,
            hashes: heard.hashes.clone(),
            intermediate: None,
            childless: true,
            ppk: if ppk { PpkUse::Agreed } else { PpkUse::No },
        };
        let state = State::HalfOpen(Box::new(HalfOpen {
            negotiated,
            from: path.remote,
            awaits: chosen.kem,
            before: None,
        }));
        let mut sa = IkeSa::new(spi, header.spi_i, Role::Responder, path, now, state);
        sa.fragmentation.agreed = fragmentation;
        sa.nat = heard
            .nat
            .map(|nat| Nat { forced, ..nat })
            .unwrap_or_default();
        sa.exchanges
            .respond(Fingerprint::of(datagram), Sealed::plain(sent.clone()));
        self.sas.insert(spi, Box::new(sa));
        if let Some(evicted) = self.half_open.insert(path.remote, header.spi_i, spi) {
            self.forget(evicted);
        }
        self.timers
            .set(Timer::Expire(spi), now + limits::HALF_OPEN_LIFETIME);
        self.transmit(path, sent);
        Ok(())
    }

    fn refuse_proposals(&mut self, received: &Received<'_>, offered: &wire::Sa) {
        let policies = self.policies_at(received.path.remote.ip());
        let own = policies
            .iter()
            .map(|policy| init::describe(&init::offer(policy)));
        let own = own.collect::<Vec<_>>().join("; ");
        let offered = init::describe(offered);
        let failure = Failure::NoIkeProposal { offered, own };
        self.refuse_init(received, failure.notify(), &[]);
        // From elsewhere it is noise that anybody can make.
        if self.half_open.knows(received.path.remote.ip()) {
            self.handshake_failed(None, received.path, failure);
        }
    }

    /// An unprotected answer without state: SPIr 0, as it is for a request that makes no IKE SA (RFC 7296 §2.6).
    fn refuse_init(&mut self, received: &Received<'_>, kind: NotifyType, data: &[u8]) {
        let flags = wire::Flags {
            initiator: false,
            response: true,
            version: false,
        };
        let header = Header {
            flags,
            ..received.header
        };
        let datagram = wire::emit(&header, &[Payload::Notify(Notify::new(kind, data))]);
        self.transmit(received.path, datagram);
    }

    pub(super) fn receive_auth_request(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        opened: &Opened,
    ) {
        let payloads = match opened.payloads() {
            Ok(payloads) => payloads,
            Err(error) => return self.refuse_auth(spi, received, None, error.into()),
        };
        // Offered and answered on port 4500 only: from another one it would have to be left first (RFC 4555 §3.3).
        let mobike = notify(&payloads, NotifyType::MobikeSupported).is_some();
        if let Some(sa) = self.sas.get_mut(&spi) {
            sa.mobility.mobike = mobike && received.path.local.port() == NAT_PORT;
        }
        match self.judge_auth_request(spi, received, &payloads) {
            Ok(verdict) => self.accept_auth(spi, received, verdict),
            Err(failure) => {
                let claimed = find_id(&payloads, true).and_then(node_name);
                self.refuse_auth(spi, received, claimed, failure);
            }
        }
    }

    /// Who it is and what it gets.
    fn judge_auth_request(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        payloads: &[Payload<'_>],
    ) -> Result<Verdict, Failure> {
        let fallback = self.mix_ppk_asked(spi, payloads)?;
        let replaced = fallback.map(|data| ppk::with_auth(payloads, data));
        let payloads = replaced.as_deref().unwrap_or(payloads);
        let peer = self.authenticate(spi, received, payloads)?.clone();
        self.check_crossing(&peer.identity, received.now)?;
        let spi_in = self.fresh_esp_spi();
        let state = self.half_open_state(spi).ok_or_else(no_state)?;
        let nat = self.sas.get(&spi).is_some_and(|sa| sa.nat.any());
        let child = agree_child(&peer, state, nat, spi_in, payloads);
        let announcement = announced(payloads).filter(|_| state.negotiated.mesh);
        if !matches!(child, Ok(Some(_))) {
            self.spis.remove(&spi_in);
        }
        Ok(Verdict {
            peer: peer.identity,
            child,
            announcement,
        })
    }

    /// Mixes in the PPK that the peer claims to have used; the proof must bear it out. Else the AUTH data that counts in
    /// the place of that in the AUTH payload.
    fn mix_ppk_asked<'a>(
        &mut self,
        spi: u64,
        payloads: &[Payload<'a>],
    ) -> Result<Option<&'a [u8]>, Failure> {
        let Some(State::HalfOpen(state)) = self.sas.get_mut(&spi).map(|sa| &mut sa.state) else {
            return Ok(None);
        };
        let claimed = find_id(payloads, true).and_then(node_name);
        let Some(peer) = claimed.and_then(|id| self.peers.get(&id)) else {
            return Ok(None);
        };
        let agreed = state.negotiated.ppk == PpkUse::Agreed;
        match ppk::judge(&peer.config, agreed, payloads)? {
            ppk::Proof::Plain => Ok(None),
            ppk::Proof::Fallback(data) => Ok(Some(data)),
            ppk::Proof::With(ppk) => {
                state.negotiated.mix(ppk)?;
                Ok(None)
            }
        }
    }

    pub(super) fn half_open_state(&self, spi: u64) -> Option<&HalfOpen> {
        match &self.sas.get(&spi)?.state {
            State::HalfOpen(state) => Some(state),
            _ => None,
        }
    }

    /// Identity → configured peer → source address → proof, in this order.
    fn authenticate(
        &self,
        spi: u64,
        received: &Received<'_>,
        payloads: &[Payload<'_>],
    ) -> Result<&PeerConfig, Failure> {
        let remote = received.path.remote;
        let state = self.half_open_state(spi).ok_or_else(no_state)?;
        let id = find_id(payloads, true).and_then(|id| Some((id, node_name(id)?)));
        let (id, claimed) = id.ok_or(Failure::NoIdentity { remote })?;
        let peer = self.peers.get(&claimed).map(|peer| &peer.config);
        let peer = peer.ok_or_else(|| Failure::UnknownPeer {
            claimed: claimed.clone(),
            remote,
        })?;
        if !peer.addresses.contains(&remote.ip()) {
            let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
            return Err(Failure::WrongAddress {
                claimed,
                remote: remote.ip(),
                addresses: addresses.join(", "),
            });
        }
        verify(
            &self.config,
            peer,
            &state.negotiated,
            Role::Responder,
            payloads,
            id,
            received.unix,
        )?;
        self.check_wanted_name(&claimed, payloads)?;
        let chosen = &state.negotiated.chosen;
        if !chosen.is_allowed(peer.policy(&self.config)) {
            let (peer, chosen) = (claimed, init::describe(&chosen.answer()));
            return Err(Failure::IkePolicy { peer, chosen });
        }
        Ok(peer)
    }

    /// IDr, where the initiator sent one, says whom it wants (RFC 7296 §1.2).
    fn check_wanted_name(&self, peer: &Identity, payloads: &[Payload<'_>]) -> Result<(), Failure> {
        let own = &self.config.identity;
        match find_id(payloads, false) {
            Some(wanted) if node_name(wanted).as_ref() != Some(own) => {
                let wanted = String::from_utf8_lossy(wanted.data)
                    .escape_debug()
                    .take(limits::IDENTITY_MAX)
                    .collect();
                Err(Failure::NotMe {
                    peer: peer.clone(),
                    wanted,
                    own: own.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    /// The rule of docs/ike-initiator.md for two handshakes that cross: the lower identity's goes on, while it has hope.
    pub(super) fn check_crossing(
        &self,
        id: &Identity,
        now: std::time::Instant,
    ) -> Result<(), Failure> {
        let attempt = self.peers.get(id).and_then(|peer| peer.attempt);
        let Some(own) = attempt.and_then(|spi| self.sas.get(&spi)) else {
            return Ok(());
        };
        let hopeful = now < own.heard + limits::CROSSING_PATIENCE;
        if self.config.identity < *id && hopeful {
            Err(Failure::Crossing)
        } else {
            Ok(())
        }
    }

    /// Refused in an SK payload; the IKE SA is gone but for that response.
    pub(super) fn refuse_auth(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        peer: Option<Identity>,
        failure: Failure,
    ) {
        let data = failure.notify_data();
        let payloads = [Payload::Notify(Notify::new(failure.notify(), &data))];
        self.respond(spi, received, &payloads);
        self.leave_half_open(spi);
        if let Some(sa) = self.sas.get_mut(&spi) {
            sa.state = State::Closed;
        }
        self.timers
            .set(Timer::Expire(spi), received.now + limits::CLOSED_LINGER);
        self.linger(None, spi);
        if !matches!(failure, Failure::Crossing) {
            self.handshake_failed(peer, received.path, failure);
        }
    }

    pub(super) fn half_open_older(&self, spi: u64) -> Vec<u64> {
        let Some(sa) = self.sas.get(&spi) else {
            return Vec::new();
        };
        let from = self.half_open_state(spi).map(|state| state.from);
        from.map(|from| self.half_open.older_than(from, sa.remote_spi))
            .unwrap_or_default()
    }

    /// Takes an IKE SA out of the table of half-open ones.
    pub(super) fn leave_half_open(&mut self, spi: u64) {
        let Some(from) = self.half_open_state(spi).map(|state| state.from) else {
            return;
        };
        if let Some(sa) = self.sas.get(&spi) {
            self.half_open.remove(from, sa.remote_spi);
        }
    }
}

pub(super) fn no_state() -> Failure {
    Failure::Missing {
        what: "IKE SA",
        message: "endpoint",
    }
}

fn init_response(say: &Say<'_>) -> Vec<u8> {
    let header = Header {
        spi_i: say.spis.initiator,
        spi_r: say.spis.responder,
        next_payload: wire::PayloadType::None,
        exchange: ExchangeType::IkeSaInit,
        flags: wire::Flags {
            initiator: false,
            response: true,
            version: false,
        },
        message_id: 0,
    };
    say.emit(|payloads| wire::emit(&header, payloads))
}

fn find_id<'a, 'b>(payloads: &'b [Payload<'a>], initiator: bool) -> Option<&'b Identification<'a>> {
    payloads.iter().find_map(|payload| match payload {
        Payload::IdI(id) if initiator => Some(id),
        Payload::IdR(id) if !initiator => Some(id),
        _ => None,
    })
}
