//! The initiator's side of IKE_SA_INIT and IKE_AUTH (RFC 7296 §1.2).

use std::time::Instant;

use super::informational::{announced, announcement};
use super::receive::Received;
use super::{Connect, Endpoint};
use crate::child;
use crate::config::{ChildId, Identity, PeerConfig, PostQuantum};
use crate::crypto::{KexGroup, KeyExchange, Secrets, SkeySeed, Spis};
use crate::error::Failure;
use crate::event::{ChildSa, Path, Role};
use crate::exchange::Request;
use crate::limits;
use crate::sa::auth::{Proof, node_name, own_id, prove, verify};
use crate::sa::init::{self, Heard, Retry, Say};
use crate::sa::nat::{NAT_PORT, Nat};
use crate::sa::ppk;
use crate::sa::{
    AuthSent, Goodbye, IkeSa, InitSent, Negotiated, Opened, PpkUse, Sealed, State, error_notify,
    notify,
};
use crate::timers::Timer;
use crate::wire::{
    self, CertEncoding, CertificateRequest, ExchangeType, IdType, Identification, Message, Notify,
    NotifyType, Payload,
};

impl Endpoint {
    /// Starts a handshake, if the peer is still wanted and lacks an IKE SA.
    pub(super) fn start_attempt(&mut self, id: &Identity, now: Instant) {
        if !self.may_start(id) {
            return;
        }
        let Some(config) = self.peers.get(id).map(|peer| &peer.config) else {
            return;
        };
        let path = Path {
            local: config.local,
            remote: config.remote,
        };
        let groups = &config.policy(&self.config).groups;
        let group = groups.first().copied().unwrap_or(KexGroup::X25519);
        let kex = match KeyExchange::generate(group, &mut *self.rng) {
            Ok(kex) => kex,
            Err(error) => {
                self.handshake_failed(Some(id.clone()), path, error.into());
                return self.schedule_retry(id, now);
            }
        };
        let (spi, nonce) = (self.fresh_ike_spi(), self.fresh_nonce());
        let state = InitSent {
            peer: id.clone(),
            kex,
            nonce,
            cookie: Vec::new(),
            request: Vec::new(),
            restarts: 0,
            told: None,
        };
        tracing::debug!(peer = %id, spi_i = format_args!("{spi:016x}"), "handshake started");
        let sa = IkeSa::new(
            spi,
            0,
            Role::Initiator,
            path,
            now,
            State::InitSent(Box::new(state)),
        );
        self.sas.insert(spi, Box::new(sa));
        if let Some(peer) = self.peers.get_mut(id) {
            peer.attempt = Some(spi);
        }
        self.send_init(spi, now);
    }

    /// Sends IKE_SA_INIT as its state says: for the first time, or again with a cookie or another group.
    fn send_init(&mut self, spi: u64, now: Instant) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let (header, spis, path) = (
            sa.header(ExchangeType::IkeSaInit, false, 0),
            sa.spis(),
            sa.path,
        );
        let State::InitSent(state) = &mut sa.state else {
            return;
        };
        let Some(peer) = self.peers.get(&state.peer) else {
            return;
        };
        let (cookie, nonce, public, group) = (
            &state.cookie,
            &state.nonce,
            state.kex.public(),
            state.kex.group(),
        );
        let policy = peer.config.policy(&self.config);
        let say = Say {
            spis,
            path,
            cookie,
            sa: init::offer(policy),
            ppk: peer.config.ppk.is_some(),
            childless: false,
            intermediate: policy.post_quantum != PostQuantum::Off,
            group,
            public,
            nonce,
            fragmentation: true,
            certreq: &[],
            pretend_nat: peer.config.force_udp_encapsulation,
        };
        let datagram = say.emit(|payloads| wire::emit(&header, payloads));
        state.request.clone_from(&datagram);
        let sealed = Sealed::plain(datagram.clone());
        let wait = sa.exchanges.restart_init(sealed, &mut *self.rng);
        self.timers.set(Timer::Retransmit(spi), now + wait);
        self.transmit(path, datagram);
    }

    pub(super) fn receive_init_response(&mut self, spi: u64, received: &Received<'_>) {
        let Ok(message) = Message::parse(received.datagram) else {
            return tracing::debug!("malformed answer to IKE_SA_INIT dropped");
        };
        if let Some(retry) = init::retry(&message.payloads) {
            return self.retry_init(spi, retry, received.now);
        }
        let spis = Spis {
            initiator: spi,
            responder: received.header.spi_r,
        };
        // The responder hashed its view of the addresses with both SPIs (RFC 7296 §2.23).
        match Heard::read(&message.payloads, spis, received.path) {
            Ok(heard) if spis.responder != 0 => self.continue_with_auth(spi, received, &heard),
            Ok(_) => tracing::debug!("answer to IKE_SA_INIT without SPI dropped"),
            Err(error) => self.disbelieve(spi, error.to_string()),
        }
    }

    /// Unauthenticated: followed at most [`limits::INIT_RESTARTS`] times, and nothing ends by it.
    fn retry_init(&mut self, spi: u64, retry: Retry<'_>, now: Instant) {
        let Some(State::InitSent(state)) = self.sas.get_mut(&spi).map(|sa| &mut sa.state) else {
            return;
        };
        if state.restarts >= limits::INIT_RESTARTS {
            return;
        }
        match retry {
            Retry::Cookie(cookie) if state.cookie != cookie => state.cookie = cookie.to_vec(),
            Retry::Group(group) if group != state.kex.group().transform_id() => {
                let peer = self.peers.get(&state.peer);
                let groups = peer.map(|peer| &peer.config.policy(&self.config).groups);
                let mut groups = groups.into_iter().flatten().copied();
                let group = groups.find(|known| known.transform_id() == group);
                match group.map(|group| KeyExchange::generate(group, &mut *self.rng)) {
                    Some(Ok(kex)) => state.kex = kex,
                    _ => {
                        return self.disbelieve(
                            spi,
                            "it asked for a key exchange method that was not offered".into(),
                        );
                    }
                }
            }
            Retry::Cookie(_) | Retry::Group(_) => return,
            Retry::Ignore(kind) => return self.disbelieve(spi, format!("it answered {kind:?}")),
        }
        state.restarts += 1;
        self.send_init(spi, now);
    }

    /// Remembers it for the message in case that nothing better comes.
    fn disbelieve(&mut self, spi: u64, told: String) {
        if let Some(State::InitSent(state)) = self.sas.get_mut(&spi).map(|sa| &mut sa.state) {
            tracing::debug!("unauthenticated answer to IKE_SA_INIT: {told}");
            state.told = Some(told);
        }
    }

    fn continue_with_auth(&mut self, spi: u64, received: &Received<'_>, heard: &Heard<'_>) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let State::InitSent(state) = &sa.state else {
            return;
        };
        let Some(peer) = self.peers.get(&state.peer) else {
            return;
        };
        let forced = peer.config.force_udp_encapsulation;
        if peer.config.requires_ppk() && !heard.ppk {
            let told = "it has no post-quantum preshared key (USE_PPK), which is required for it";
            return self.disbelieve(spi, told.into());
        }
        let has_ppk = peer.config.ppk.is_some();
        let policy = peer.config.policy(&self.config);
        let chosen = init::check_answer(heard.sa, policy, state.kex.group());
        let fits = |chosen: &init::Chosen| {
            chosen.group.transform_id() == heard.group
                && (chosen.kem.is_none() || heard.intermediate)
        };
        let Some(chosen) = chosen.filter(fits) else {
            let told = format!("it chose {} out of another offer", init::describe(heard.sa));
            return self.disbelieve(spi, told);
        };
        let State::InitSent(state) = std::mem::replace(&mut sa.state, State::Closed) else {
            return;
        };
        let peer = state.peer.clone();
        sa.exchanges.finish(0);
        sa.heard = received.now;
        sa.remote_spi = received.header.spi_r;
        sa.fragmentation.agreed = heard.fragmentation;
        let nat = heard.nat.map(|nat| Nat { forced, ..nat });
        sa.nat = nat.unwrap_or_default();
        if sa.nat.any() && sa.path.remote.port() != NAT_PORT {
            sa.path.local.set_port(NAT_PORT);
            sa.path.remote.set_port(NAT_PORT);
        }
        self.timers.cancel(&Timer::Retransmit(spi));
        let sent = negotiate(*state, received, heard, chosen).and_then(|mut n| {
            if has_ppk && heard.ppk {
                n.ppk = PpkUse::Agreed;
            }
            self.send_next(spi, &peer, n, received.now)
        });
        if let Err(failure) = sent {
            self.attempt_failed(spi, &peer, failure, received.now);
        }
    }

    /// IKE_AUTH, or before it the key exchange that is left.
    fn send_next(
        &mut self,
        spi: u64,
        id: &Identity,
        negotiated: Negotiated,
        now: Instant,
    ) -> Result<(), Failure> {
        match negotiated.chosen.kem {
            Some(kem) => self.send_intermediate(spi, id, negotiated, kem, now),
            None => self.send_auth(spi, id, negotiated, now),
        }
    }

    pub(super) fn send_auth(
        &mut self,
        spi: u64,
        id: &Identity,
        negotiated: Negotiated,
        now: Instant,
    ) -> Result<(), Failure> {
        let spi_in = self.fresh_esp_spi();
        let wanted = self.peers.get(id).is_some_and(|peer| peer.config.childless);
        let childless = wanted && negotiated.childless;
        let state = AuthSent {
            peer: id.clone(),
            negotiated,
            spi_in,
            childless,
            doomed: false,
        };
        let (Some(sa), Some(peer)) = (self.sas.get_mut(&spi), self.peers.get(id)) else {
            return Ok(());
        };
        let ppk = peer.config.ppk.as_ref();
        let ppk = ppk.filter(|_| state.negotiated.ppk == PpkUse::Agreed);
        let prove_with = |ppk| {
            let (config, negotiated) = (&self.config, &state.negotiated);
            prove(config, &peer.config, negotiated, Role::Initiator, ppk)
        };
        let fallback = ppk.filter(|ppk| !ppk.required).map(|_| prove_with(None));
        let proof = prove_with(ppk);
        let (mesh, message_id) = (state.negotiated.mesh, state.negotiated.auth_id());
        sa.state = State::AuthSent(Box::new(state));
        let (proof, fallback) = (proof?, fallback.transpose()?);
        let ppk_id = ppk.map(ppk::identity);
        let fallback = fallback.as_ref().map(Proof::data);
        let fresh =
            peer.wanted == Some(Connect::Fresh) && peer.sas.is_empty() && peer.orphans.is_empty();
        let certreq = self.config.trust.certreq();
        let mut payloads = vec![Payload::IdI(own_id(&self.config))];
        payloads.extend(certificate_request(&peer.config, &certreq));
        payloads.push(Payload::IdR(Identification::new(
            IdType::Fqdn,
            id.0.as_bytes(),
        )));
        payloads.extend(proof.payloads());
        payloads.extend(ppk_id.iter().flat_map(|id| ppk::said(id, fallback)));
        payloads
            .extend(fresh.then(|| Payload::Notify(Notify::new(NotifyType::InitialContact, &[]))));
        let mobike = sa.path.remote.port() == NAT_PORT;
        payloads
            .extend(mobike.then(|| Payload::Notify(Notify::new(NotifyType::MobikeSupported, &[]))));
        if !childless {
            let child = peer.config.child.within(mesh, sa.nat.any());
            payloads.extend(child::offer_payloads(&child, ChildId::FIRST, spi_in));
            payloads.extend(mesh.then(|| announcement(&peer.announcement)));
        }
        let header = sa.header(ExchangeType::IkeAuth, false, message_id);
        let sealed = sa.seal(&header, &payloads)?;
        self.send_request(spi, Request::Auth, sealed, now);
        Ok(())
    }

    pub(super) fn receive_auth_response(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        opened: &Opened,
    ) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        sa.exchanges.finish(received.header.message_id);
        self.timers.cancel(&Timer::Retransmit(spi));
        let State::AuthSent(state) = &sa.state else {
            return;
        };
        let id = state.peer.clone();
        if state.doomed {
            return self.close_after_auth(spi, Goodbye::Plain, received.now);
        }
        let payloads = opened.payloads().map_err(Failure::from);
        if let Ok(payloads) = &payloads {
            let mobike = notify(payloads, NotifyType::MobikeSupported).is_some();
            sa.mobility.mobike = mobike && sa.path.remote.port() == NAT_PORT;
        }
        let judged = payloads.and_then(|payloads| {
            self.mix_ppk_answered(spi, &payloads)?;
            let judged = self.judge_auth_response(spi, received, &payloads)?;
            Ok((judged, payloads))
        });
        match judged {
            Ok(((child, announcement), payloads)) => {
                match child {
                    Some(child) => self.establish_initiator(spi, child, announcement, received.now),
                    None => self.ask_for_first_child(spi, received.now),
                }
                self.note_auth_lifetime(spi, &payloads, received.now);
            }
            Err(failure) => {
                match goodbye(&failure) {
                    Some(goodbye) => self.close_after_auth(spi, goodbye, received.now),
                    None => self.forget(spi),
                }
                self.attempt_failed(spi, &id, failure, received.now);
            }
        }
    }

    /// PPK_IDENTITY in the answer: the responder has used the PPK (RFC 8784 §3).
    fn mix_ppk_answered(&mut self, spi: u64, payloads: &[Payload<'_>]) -> Result<(), Failure> {
        let Some(State::AuthSent(state)) = self.sas.get_mut(&spi).map(|sa| &mut sa.state) else {
            return Ok(());
        };
        let used = notify(payloads, NotifyType::PpkIdentity).is_some()
            && state.negotiated.ppk == PpkUse::Agreed;
        let peer = self.peers.get(&state.peer).map(|peer| &peer.config);
        match peer.and_then(|peer| peer.ppk.as_ref()).filter(|_| used) {
            Some(ppk) => Ok(state.negotiated.mix(ppk)?),
            None => Ok(()),
        }
    }

    /// The CHILD_SA that the answer brings, if one was asked for, and the announcement.
    fn judge_auth_response(
        &self,
        spi: u64,
        received: &Received<'_>,
        payloads: &[Payload<'_>],
    ) -> Result<(Option<ChildSa>, Option<Vec<u8>>), Failure> {
        let sent = self.sas.get(&spi).and_then(|sa| match &sa.state {
            State::AuthSent(state) => Some((state, &self.peers.get(&state.peer)?.config)),
            _ => None,
        });
        let (state, config) = sent.ok_or(Failure::Missing {
            what: "peer",
            message: "endpoint",
        })?;
        let peer = || config.identity.clone();
        let error = error_notify(payloads).map(|(kind, _)| kind);
        let is_auth = |payload: &Payload<'_>| matches!(payload, Payload::Auth(_));
        if let Some(kind) = error.filter(|_| !payloads.iter().any(is_auth)) {
            return Err(told(&config.identity, kind));
        }
        self.check_responder(config, &state.negotiated, payloads, received)?;
        if let Some(notify) = error {
            let peer = peer();
            return Err(Failure::Childless { peer, notify });
        }
        if state.childless {
            return Ok((None, None));
        }
        let nat = self.sas.get(&spi).is_some_and(|sa| sa.nat.any());
        let offered = config.child.within(state.negotiated.mesh, nat);
        let agreed = child::check(&peer(), &offered, &child::Heard::read(payloads)?)?;
        let (sk_d, nonces) = (&state.negotiated.keys.sk_d, state.negotiated.nonces());
        let child = agreed.key(
            ChildId::FIRST,
            state.spi_in,
            Role::Initiator,
            sk_d,
            nonces,
            Secrets::default(),
        )?;
        let announcement = announced(payloads).filter(|_| state.negotiated.mesh);
        Ok((Some(child), announcement))
    }

    fn check_responder(
        &self,
        peer: &PeerConfig,
        negotiated: &Negotiated,
        payloads: &[Payload<'_>],
        received: &Received<'_>,
    ) -> Result<(), Failure> {
        let id = payloads.iter().find_map(|payload| match payload {
            Payload::IdR(id) => Some(id),
            _ => None,
        });
        let id = id.ok_or(Failure::NoIdentity {
            remote: received.path.remote,
        })?;
        let name = node_name(id);
        if name.as_ref() != Some(&peer.identity) {
            let answered = name.map_or_else(
                || format!("an identity of type {:?}", id.kind),
                |name| name.to_string(),
            );
            return Err(Failure::OtherPeer {
                peer: peer.identity.clone(),
                answered,
            });
        }
        if peer.requires_ppk() && negotiated.ppk != PpkUse::Mixed {
            let peer = peer.identity.clone();
            return Err(Failure::PpkRequired { peer });
        }
        verify(
            &self.config,
            peer,
            negotiated,
            Role::Initiator,
            payloads,
            id,
            received.unix,
        )
    }

    /// This node's own attempt is over without success; its IKE SA is gone or closing.
    pub(super) fn attempt_failed(
        &mut self,
        spi: u64,
        id: &Identity,
        failure: Failure,
        now: Instant,
    ) {
        let path = match (self.sas.get(&spi), self.peers.get(id)) {
            (Some(sa), _) => sa.path,
            (None, Some(peer)) => Path {
                local: peer.config.local,
                remote: peer.config.remote,
            },
            (None, None) => return,
        };
        if self
            .sas
            .get(&spi)
            .is_some_and(|sa| !matches!(sa.state, State::Closing(_)))
        {
            self.forget(spi);
        }
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        if peer.attempt == Some(spi) {
            peer.attempt = None;
        }
        if matches!(failure, Failure::Crossing) {
            return self.schedule_after_crossing(id, now);
        }
        // A crossing attempt that succeeded makes this one's end no news; what stands between the peers and a renewal is.
        if peer.sas.is_empty() || peer.renew {
            self.handshake_failed(Some(id.clone()), path, failure);
        }
        self.schedule_retry(id, now);
    }
}

/// Keys of the IKE SA.
fn negotiate(
    state: InitSent,
    received: &Received<'_>,
    heard: &Heard<'_>,
    chosen: init::Chosen,
) -> Result<Negotiated, Failure> {
    let shared = state.kex.agree(heard.public)?;
    let (nonce_i, nonce_r) = (state.nonce, heard.nonce.to_vec());
    let nonces = crate::crypto::Nonces {
        initiator: &nonce_i,
        responder: &nonce_r,
    };
    let spis = Spis {
        initiator: received.header.spi_i,
        responder: received.header.spi_r,
    };
    let keys = SkeySeed::new(chosen.suite, nonces, &shared).into_keys(nonces, spis)?;
    Ok(Negotiated {
        keys: keys.for_role(Role::Initiator)?,
        sent: state.request,
        received: received.datagram.to_vec(),
        nonce_i,
        nonce_r,
        chosen,
        mesh: heard.mesh,
        hashes: heard.hashes.clone(),
        intermediate: None,
        childless: heard.childless,
        ppk: PpkUse::No,
    })
}

fn certificate_request<'a>(peer: &PeerConfig, authorities: &'a [u8]) -> Option<Payload<'a>> {
    let wanted = peer.auth == crate::config::PeerAuth::Certificate;
    let encoding = CertEncoding::X509Signature;
    wanted.then_some(Payload::CertReq(CertificateRequest {
        encoding,
        authorities,
    }))
}

/// What an error notify in the IKE_AUTH response means.
fn told(peer: &Identity, kind: NotifyType) -> Failure {
    let peer = peer.clone();
    match kind {
        NotifyType::TemporaryFailure => Failure::Crossing,
        NotifyType::AuthenticationFailed => Failure::RefusedByPeer { peer },
        notify => Failure::PeerNotify { peer, notify },
    }
}

/// What the responder must be told: it holds an IKE SA if it did not refuse itself.
fn goodbye(failure: &Failure) -> Option<Goodbye> {
    match failure {
        Failure::Crossing | Failure::RefusedByPeer { .. } | Failure::PeerNotify { .. } => None,
        _ if failure.notify() == NotifyType::AuthenticationFailed => {
            Some(Goodbye::AuthenticationFailed)
        }
        _ => Some(Goodbye::Plain),
    }
}
