//! One node's IKE engine: peers, IKE SAs, timers. Reports facts as events; see the files below in the order of a
//! handshake: [`peer`] decides when to start, [`receive`] sorts datagrams, [`initiate`] and [`respond`] are the two sides ([`intermediate`] both),
//! [`establish`] and [`informational`] what follows, [`close`] how it ends, [`audit`] whether it all fits.

mod accept;
mod address;
mod audit;
mod childless;
mod children;
mod close;
mod establish;
mod followup;
mod half_open;
mod informational;
mod initiate;
mod intermediate;
mod lifetime;
mod linger;
mod peer;
mod policy;
mod reauth;
mod receive;
mod rekey;
mod rekeyed;
mod respond;
mod stray;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_core::{CryptoRng, Rng as _};

use crate::config::{Config, Identity, PeerConfig};
use crate::error::{ConfigError, Failure};
use crate::event::{CloseReason, Event, IkeStatus, Path, Transmit};
use crate::exchange::Request;
use crate::sa::{IkeSa, Sealed};
use crate::timers::{Timer, Timers};

pub use audit::Holdings;
use half_open::{Cookies, HalfOpen};
use peer::Peer;
use stray::Strays;

/// When to start towards a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Connect {
    /// The lower identity starts at once (within [`crate::limits::START_JITTER`]), the higher one after
    /// [`crate::limits::PASSIVE_WAIT`] if nothing came.
    Policy,
    /// Start at once whatever the identity; no INITIAL_CONTACT: this node has adopted SAs of that peer.
    Restart,
    /// Start at once with INITIAL_CONTACT (RFC 7296 §2.4): this node has no SA of that peer.
    Fresh,
}

/// One node's IKE engine. See the crate's documentation for the order in which to drain it.
pub struct Endpoint {
    config: Arc<Config>,
    rng: Box<dyn CryptoRng + Send>,
    peers: BTreeMap<Identity, Box<Peer>>,
    /// By local SPI.
    sas: BTreeMap<u64, Box<IkeSa>>,
    half_open: HalfOpen,
    cookies: Cookies,
    strays: Strays,
    /// Inbound ESP SPIs that must not be chosen: given out and not yet down, or reserved; with whose CHILD_SA it is.
    spis: BTreeMap<u32, Option<Identity>>,
    /// IKE SAs in their last seconds, oldest first, by whose they were; `None`: of those who were refused.
    lingering: BTreeMap<Option<Identity>, VecDeque<u64>>,
    timers: Timers,
    events: VecDeque<Event>,
    transmits: VecDeque<Transmit>,
    /// Peers that may have something to be told.
    talkative: BTreeSet<Identity>,
    /// Counts established IKE SAs.
    order: u64,
    /// The time at the last call.
    now: Option<Instant>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (peers, sas) = (self.peers.len(), self.sas.len());
        f.debug_struct("Endpoint")
            .field("identity", &self.config.identity)
            .field("peers", &peers)
            .field("sas", &sas)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// An endpoint without peers. `rng` must be unpredictable: keys, nonces and SPIs come from it.
    ///
    /// # Errors
    /// [`ConfigError::Identity`], or an [`crate::IkePolicy`] that cannot work.
    pub fn new(config: Config, mut rng: Box<dyn CryptoRng + Send>) -> Result<Self, ConfigError> {
        peer::check_identity(&config.identity)?;
        peer::check_own_policy(&config)?;
        let cookies = Cookies::new(&mut *rng);
        Ok(Self {
            config: Arc::new(config),
            rng,
            cookies,
            peers: BTreeMap::new(),
            sas: BTreeMap::new(),
            half_open: HalfOpen::default(),
            strays: Strays::default(),
            spis: BTreeMap::new(),
            lingering: BTreeMap::new(),
            timers: Timers::default(),
            events: VecDeque::new(),
            transmits: VecDeque::new(),
            talkative: BTreeSet::new(),
            order: 0,
            now: None,
        })
    }

    /// Takes a renewed certificate or another set of CAs. Live SAs stay.
    ///
    /// # Errors
    /// [`ConfigError::IdentityChange`], or what a peer needs and is not there; then nothing changes.
    pub fn set_config(&mut self, config: Config) -> Result<(), ConfigError> {
        if config.identity != self.config.identity {
            let (is, wanted) = (self.config.identity.clone(), config.identity);
            return Err(ConfigError::IdentityChange { is, wanted });
        }
        peer::check_own_policy(&config)?;
        for peer in self.peers.values() {
            peer::check(&config, &peer.config)?;
        }
        self.config = Arc::new(config);
        let peers: Vec<Identity> = self.peers.keys().cloned().collect();
        if let Some(now) = self.now {
            peers.iter().for_each(|id| self.replace_weak(id, now));
        }
        Ok(())
    }

    /// Adds a peer or updates it. Live SAs stay unless the authentication, the UID or the addresses no longer fit.
    ///
    /// # Errors
    /// What cannot work about `peer`; then nothing changes.
    pub fn put_peer(&mut self, peer: PeerConfig, now: Instant) -> Result<(), ConfigError> {
        self.now = Some(now);
        peer::check(&self.config, &peer)?;
        let id = peer.identity.clone();
        peer.addresses
            .iter()
            .for_each(|address| self.half_open.know(*address, &id));
        let Some(known) = self.peers.get_mut(&id) else {
            self.peers.insert(id, Box::new(Peer::new(peer)));
            return Ok(());
        };
        let old = known.replace_config(peer);
        old.addresses
            .iter()
            .for_each(|address| self.half_open.forget(*address, &id));
        if known.pending {
            self.talkative.insert(id.clone());
        }
        self.drop_unfit(&id, &old, now);
        self.replace_weak(&id, now);
        Ok(())
    }

    /// Removes a peer: DELETE is sent, `ChildDown` and `IkeDown` say [`CloseReason::Local`].
    pub fn remove_peer(&mut self, id: &Identity, now: Instant) {
        self.disconnect(id, now);
        if let Some(peer) = self.peers.remove(id) {
            peer.config
                .addresses
                .iter()
                .for_each(|address| self.half_open.forget(*address, id));
        }
        self.talkative.remove(id);
        self.lingering.remove(&Some(id.clone()));
    }

    /// Wants an IKE SA with a CHILD_SA: tried for ever, with backoff and jitter, until [`Endpoint::disconnect`]. Calling it
    /// again changes nothing, but that `Restart` and `Fresh` end a passive wait.
    pub fn connect(&mut self, id: &Identity, why: Connect, now: Instant) {
        self.now = Some(now);
        if self.peers.get_mut(id).is_some_and(|peer| peer.want(why)) {
            self.schedule(id, now);
            self.start_due(now);
            if let Some(spi) = self.newest_sa(id) {
                self.schedule_children(spi, now);
            }
        }
    }

    /// Not wanted any more: as [`Endpoint::remove_peer`], but the peer may still connect to this node.
    pub fn disconnect(&mut self, id: &Identity, now: Instant) {
        self.now = Some(now);
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        peer.wanted = None;
        self.timers.cancel(&Timer::Connect(id.clone()));
        self.abandon_attempt(id, true);
        self.close_all(id, CloseReason::Local);
    }

    /// An inbound SPI that is in use in a data plane already: not chosen until [`Endpoint::release_spi`].
    pub fn reserve_spi(&mut self, spi: u32) {
        self.spis.entry(spi).or_default();
    }

    /// What was reserved is out of use. One that a CHILD_SA of this endpoint has stays with it.
    pub fn release_spi(&mut self, spi: u32) {
        if self.spis.get(&spi).is_some_and(Option::is_none) {
            self.spis.remove(&spi);
        }
    }

    /// Tells a peer something; the newest value wins. Sent reliably as soon as there is an IKE SA, acknowledged by
    /// [`Event::AnnouncementAcked`], and carried in later IKE_AUTHs. More than [`crate::limits::ANNOUNCEMENT_MAX`] bytes are
    /// not sent.
    pub fn announce(&mut self, id: &Identity, data: Vec<u8>, now: Instant) {
        self.now = Some(now);
        if data.len() > crate::limits::ANNOUNCEMENT_MAX {
            tracing::error!(peer = %id, bytes = data.len(), "announcement is too long and not sent");
            return;
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.announcement = data;
            peer.pending = true;
            self.talkative.insert(id.clone());
        }
    }

    /// The driver saw authenticated ESP on `spi_in`, or, where this end was the responder, an announcement about it: what is older
    /// than its IKE SA may go after [`crate::limits::DRAIN`]. An announcement is no proof to an initiator: its peer opens before it
    /// answers, and may seal with an older CHILD_SA until it is told.
    pub fn confirm_child(&mut self, id: &Identity, spi_in: u32, now: Instant) {
        self.now = Some(now);
        let sas = self
            .peers
            .get(id)
            .map(|peer| peer.sas.clone())
            .unwrap_or_default();
        let has = |spi: &u64| {
            self.children(*spi)
                .iter()
                .any(|child| child.spi_in == spi_in)
        };
        if let Some(spi) = sas.into_iter().find(has) {
            self.prove(spi);
            self.confirm(spi, now);
        }
    }

    /// Authenticated ESP came from a peer: it is alive.
    pub fn note_traffic(&mut self, id: &Identity, now: Instant) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.traffic = Some(now);
        }
    }

    /// A datagram came in on `path`, without non-ESP marker. `unix` is the time since the epoch, for certificates.
    pub fn handle_datagram(&mut self, now: Instant, unix: Duration, path: Path, datagram: &[u8]) {
        self.now = Some(now);
        self.receive(now, unix, path, datagram);
        self.start_due(now);
    }

    /// The time of [`Endpoint::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant, _unix: Duration) {
        self.now = Some(now);
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Connect(id) => self.start_attempt(&id, now),
                Timer::Retransmit(spi) => self.retransmit(spi, now),
                Timer::Liveness(spi) => self.check_liveness(spi, now),
                Timer::Drain(spi) => self.drain(spi, now),
                Timer::Expire(spi) => self.expire(spi, now),
                Timer::RekeyIke(spi) => self.rekey_ike_due(spi, now),
                Timer::Pending(spi) => self.forget_pending(spi, now),
                Timer::RekeyChild(spi_in) => self.rekey_child_due(spi_in, now),
                Timer::Reauth(spi) => self.reauth_due(spi, now),
                Timer::EndIke(spi) => self.end_ike(spi, now),
                Timer::MakeChild(spi, id) => self.make_child_due(spi, id, now),
                Timer::DrainChild(spi_in) => self.drain_child(spi_in, now),
                Timer::ExpireChild(spi_in) => self.expire_child(spi_in, now),
                Timer::Concede(spi_in) => self.concede(spi_in, now),
            }
        }
    }

    /// When to call [`Endpoint::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The next event. Act on it before the next step.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next datagram to send; none while there are events, since a response may promise what an event asks for.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        if !self.events.is_empty() {
            return None;
        }
        if self.transmits.is_empty() {
            self.tell_peers();
        }
        self.transmits.pop_front()
    }

    /// How far IKE with a peer is.
    #[must_use]
    pub fn status(&self, id: &Identity) -> IkeStatus {
        match self.peers.get(id) {
            Some(peer) if !peer.sas.is_empty() => IkeStatus::Established,
            Some(peer) if peer.wanted.is_some() || peer.attempt.is_some() => IkeStatus::Connecting,
            _ => IkeStatus::None,
        }
    }

    /// Number of half-open IKE SAs that others began here (RFC 7296 §2.6), for metrics.
    #[must_use]
    pub fn half_open(&self) -> usize {
        self.half_open.len()
    }

    /// Number of IKE SAs in any state, for metrics.
    #[must_use]
    pub fn ike_sas(&self) -> usize {
        self.sas.len()
    }

    // --- What the files below share. ---

    fn fresh_ike_spi(&mut self) -> u64 {
        loop {
            let spi = self.rng.next_u64();
            if spi != 0 && !self.sas.contains_key(&spi) {
                return spi;
            }
        }
    }

    /// An inbound ESP SPI; 0 to 255 are reserved (RFC 4303 §2.1).
    fn fresh_esp_spi(&mut self) -> u32 {
        loop {
            let spi = self.rng.next_u32();
            if spi >= 256 && !self.spis.contains_key(&spi) {
                self.spis.insert(spi, None);
                return spi;
            }
        }
    }

    fn fresh_nonce(&mut self) -> Vec<u8> {
        let mut nonce = vec![0; crate::limits::NONCE_BYTES];
        self.rng.fill_bytes(&mut nonce);
        nonce
    }

    /// Puts a request in flight on an IKE SA and sends it.
    fn send_request(&mut self, spi: u64, request: Request, sealed: Sealed, now: Instant) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let (path, datagrams) = (sa.path, sealed.datagrams.clone());
        let wait = sa.exchanges.begin(request, sealed, &mut *self.rng);
        self.timers.set(Timer::Retransmit(spi), now + wait);
        self.transmit_all(path, datagrams);
    }

    fn transmit_all(&mut self, path: Path, datagrams: Vec<Vec<u8>>) {
        for datagram in datagrams {
            self.transmit(path, datagram);
        }
    }

    fn transmit(&mut self, path: Path, payload: Vec<u8>) {
        self.transmits.push_back(Transmit { path, payload });
    }

    fn handshake_failed(&mut self, peer: Option<Identity>, path: Path, failure: Failure) {
        let who = peer.as_ref().map_or("", |peer| &peer.0);
        tracing::warn!(peer = who, remote = %path.remote, "handshake failed: {failure}");
        self.events.push_back(Event::HandshakeFailed {
            peer,
            remote: path.remote,
            error: failure.into(),
        });
    }
}
