//! Peers, and when this node starts towards one (docs/ike-initiator.md).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Connect, Endpoint};
use crate::config::{
    ChildConfig, Config, Identity, IkePolicy, PeerAuth, PeerConfig, PostQuantum, Ppk,
    TrafficSelector,
};
use crate::crypto::SkCipher;
use crate::error::ConfigError;
use crate::limits;
use crate::sa::auth::is_node_name;
use crate::sa::{ChildRef, Goodbye, State};
use crate::timers::{Timer, backoff, jittered, up_to};

/// One peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) config: PeerConfig,
    /// Further CHILD_SAs, by number from 1 on.
    pub(super) more: BTreeMap<u32, ChildConfig>,
    /// The newest one.
    pub(super) announcement: Vec<u8>,
    /// How to start; `None`: do not.
    pub(super) wanted: Option<Connect>,
    /// Local SPI of this node's own handshake under way.
    pub(super) attempt: Option<u64>,
    /// Attempts that failed since the last IKE SA.
    pub(super) failures: u32,
    /// Established IKE SAs with a CHILD_SA, oldest first.
    pub(super) sas: Vec<u64>,
    /// CHILD_SAs whose IKE SA timed out, with its age, oldest first.
    pub(super) orphans: Vec<(u64, ChildRef)>,
    /// The announcement is not acknowledged.
    pub(super) pending: bool,
    /// Last authenticated ESP.
    pub(super) traffic: Option<Instant>,
    /// The peer does not rekey: a new IKE SA is to replace the one there is.
    pub(super) renew: bool,
}

impl Peer {
    pub(super) fn new(config: PeerConfig) -> Self {
        Self {
            announcement: config.announcement.clone(),
            config,
            more: BTreeMap::new(),
            wanted: None,
            attempt: None,
            failures: 0,
            sas: Vec::new(),
            orphans: Vec::new(),
            pending: false,
            traffic: None,
            renew: false,
        }
    }

    /// Returns the configuration before. The announcement in it is news only if it changed: a later `announce` holds.
    pub(super) fn replace_config(&mut self, config: PeerConfig) -> PeerConfig {
        let said = &config.announcement;
        if *said != self.config.announcement && *said != self.announcement {
            self.announcement.clone_from(said);
            self.pending = true;
        }
        std::mem::replace(&mut self.config, config)
    }

    /// Returns whether that is news to be scheduled.
    pub(super) fn want(&mut self, why: Connect) -> bool {
        let sooner =
            self.wanted == Some(Connect::Policy) && why != Connect::Policy && self.failures == 0;
        let news = self.wanted.is_none() || sooner;
        if news {
            self.wanted = Some(why);
        }
        news
    }

    /// Something is missing that an attempt could bring: an IKE SA, or the successor of a CHILD_SA without one.
    fn lacks_sa(&self) -> bool {
        self.attempt.is_none() && (self.sas.is_empty() || !self.orphans.is_empty() || self.renew)
    }
}

impl Endpoint {
    /// Sets the time of the next attempt by the rule of who starts, if the peer is wanted and lacks an IKE SA.
    pub(super) fn schedule(&mut self, id: &Identity, now: Instant) {
        let Some(peer) = self.peers.get(id).filter(|peer| peer.lacks_sa()) else {
            return;
        };
        let lower = self.config.identity < *id;
        let wait = match peer.wanted {
            None => return,
            Some(Connect::Restart | Connect::Fresh) => Duration::ZERO,
            Some(Connect::Policy) if lower => up_to(limits::START_JITTER, &mut *self.rng),
            Some(Connect::Policy) => jittered(limits::PASSIVE_WAIT, &mut *self.rng),
        };
        self.timers.set(Timer::Connect(id.clone()), now + wait);
    }

    /// Sets the time of the next attempt after one that failed.
    pub(super) fn schedule_retry(&mut self, id: &Identity, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let base = backoff(limits::RETRY_FIRST, limits::RETRY_MAX, peer.failures);
        peer.failures = peer.failures.saturating_add(1);
        self.retry_in(id, base, now);
    }

    /// The other side's handshake goes first: wait for it before starting again.
    pub(super) fn schedule_after_crossing(&mut self, id: &Identity, now: Instant) {
        self.retry_in(id, limits::CROSSING_WAIT, now);
    }

    fn retry_in(&mut self, id: &Identity, base: Duration, now: Instant) {
        if self
            .peers
            .get(id)
            .is_some_and(|peer| peer.wanted.is_some() && peer.lacks_sa())
        {
            let wait = jittered(base, &mut *self.rng);
            self.timers.set(Timer::Connect(id.clone()), now + wait);
        }
    }

    /// Starts what is due at once, so that its first datagram goes out without another round of the driver.
    pub(super) fn start_due(&mut self, now: Instant) {
        while let Some(id) = self.timers.pop_due_connect(now) {
            self.start_attempt(&id, now);
        }
    }

    /// True when an attempt towards this peer makes sense now.
    pub(super) fn may_start(&self, id: &Identity) -> bool {
        self.peers
            .get(id)
            .is_some_and(|peer| peer.wanted.is_some() && peer.lacks_sa())
    }

    /// Ends this node's own handshake under way, without a word. Where the peer may have answered IKE_AUTH already and
    /// `delete` is set, it goes on until that answer comes and the IKE SA can be deleted.
    pub(super) fn abandon_attempt(&mut self, id: &Identity, delete: bool) {
        let attempt = self.peers.get_mut(id).and_then(|peer| peer.attempt.take());
        let Some((spi, sa)) = attempt.and_then(|spi| Some((spi, self.sas.get_mut(&spi)?))) else {
            return;
        };
        match &mut sa.state {
            State::AuthSent(state) if delete => state.doomed = true,
            State::Established(_) => {
                if let Some(now) = self.now {
                    self.begin_closing(spi, Some(Goodbye::Plain), now);
                }
            }
            _ => self.forget(spi),
        }
    }

    /// After [`Endpoint::put_peer`]: drops what the new configuration would not have let in.
    pub(super) fn drop_unfit(&mut self, id: &Identity, old: &PeerConfig, now: Instant) {
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        let new = &peer.config;
        let renamed = matches!((&old.uid, &new.uid), (Some(old), Some(new)) if old != new);
        let other_auth = (&old.auth, &old.ppk) != (&new.auth, &new.ppk) || renamed;
        let moved = |spi: &u64| {
            self.sas.get(spi).is_some_and(|sa| {
                !new.addresses.contains(&sa.path.remote.ip())
                    || sa.path.local.ip() != new.local.ip()
            })
        };
        let unfit = other_auth || peer.sas.iter().any(moved);
        let restart = unfit
            || (old.remote, old.local, &old.child, &old.ike)
                != (new.remote, new.local, &new.child, &new.ike);
        if unfit {
            self.close_all(id, crate::event::CloseReason::Local);
        }
        if restart {
            self.abandon_attempt(id, true);
            self.schedule(id, now);
        }
    }
}

/// A name that fits into ID_FQDN.
pub(super) fn check_identity(id: &Identity) -> Result<(), ConfigError> {
    if is_node_name(&id.0) {
        Ok(())
    } else {
        Err(ConfigError::Identity(id.to_string()))
    }
}

/// Whether `peer` can work for a node with `config`.
pub(super) fn check(config: &Config, peer: &PeerConfig) -> Result<(), ConfigError> {
    let who = || peer.identity.clone();
    check_identity(&peer.identity)?;
    if peer.identity == config.identity {
        return Err(ConfigError::Own(who()));
    }
    match &peer.auth {
        PeerAuth::Psk(psk) if psk.len() < limits::PSK_MIN => {
            return Err(ConfigError::ShortPsk {
                peer: who(),
                got: psk.len(),
            });
        }
        PeerAuth::Certificate if config.credentials.is_none() => {
            return Err(ConfigError::NoCredentials(who()));
        }
        PeerAuth::Certificate if config.trust.is_empty() => {
            return Err(ConfigError::NoTrust(who()));
        }
        PeerAuth::Psk(_) | PeerAuth::Certificate => {}
    }
    let good = |ppk: &Ppk| {
        ppk.key.len() >= limits::PPK_MIN && (1..=limits::PPK_ID_MAX).contains(&ppk.id.len())
    };
    if let Some(ppk) = peer.ppk.as_ref().filter(|ppk| !good(ppk)) {
        return Err(ConfigError::Ppk {
            peer: who(),
            name: ppk.id.len(),
            got: ppk.key.len(),
        });
    }
    check_content(peer)
}

/// This node's own policy: for anybody, so AES-CBC has no place in it.
pub(super) fn check_own_policy(config: &Config) -> Result<(), ConfigError> {
    let is_cbc = |cipher: &SkCipher| cipher.integrity().is_some();
    if config.ike.ciphers.iter().any(is_cbc) {
        return Err(ConfigError::CbcForAll);
    }
    check_policy(&config.ike, || "of this node".into())
}

fn check_policy(policy: &IkePolicy, of: impl Fn() -> String) -> Result<(), ConfigError> {
    let IkePolicy {
        ciphers,
        prfs,
        groups,
        post_quantum,
        kems,
    } = policy;
    let no_kem = *post_quantum != PostQuantum::Off && kems.is_empty();
    for (empty, what) in [
        (ciphers.is_empty(), "cipher"),
        (prfs.is_empty(), "PRF"),
        (groups.is_empty(), "key exchange method"),
        (no_kem, "key encapsulation mechanism"),
    ] {
        if empty {
            return Err(ConfigError::NoIkeAlgorithm { of: of(), what });
        }
    }
    Ok(())
}

fn check_content(peer: &PeerConfig) -> Result<(), ConfigError> {
    let who = || peer.identity.clone();
    if peer.addresses.is_empty() {
        return Err(ConfigError::NoAddress(who()));
    }
    if let Some(policy) = &peer.ike {
        check_policy(policy, || format!("for peer {}", peer.identity))?;
    }
    check_child(&peer.identity, &peer.child)?;
    if peer.announcement.len() > limits::ANNOUNCEMENT_MAX {
        return Err(ConfigError::Announcement {
            peer: who(),
            got: peer.announcement.len(),
        });
    }
    Ok(())
}

/// Whether a CHILD_SA can be made of this.
pub(super) fn check_child(peer: &Identity, child: &ChildConfig) -> Result<(), ConfigError> {
    let who = || peer.clone();
    if !(1..=limits::SUITES_MAX).contains(&child.suites.len()) {
        return Err(ConfigError::NoSuites(who()));
    }
    if ![&child.local_ts, &child.remote_ts]
        .into_iter()
        .all(|side| are_selectors(side))
    {
        return Err(ConfigError::Selectors(who()));
    }
    let asked = child.per_cpu.unwrap_or(0);
    if asked > limits::PER_CPU_MAX {
        let peer = who();
        return Err(ConfigError::PerCpu { peer, asked });
    }
    Ok(())
}

fn are_selectors(side: &[TrafficSelector]) -> bool {
    (1..=limits::SELECTORS_MAX).contains(&side.len())
        && side.iter().all(crate::child::select::is_valid)
}
