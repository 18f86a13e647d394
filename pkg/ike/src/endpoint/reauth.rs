//! Reauthentication, make before break: a whole new IKE SA beside the old one, which goes by the rules of a restart
//! (docs/ike-initiator.md). And the end of an IKE SA that nothing has replaced.

use std::time::{Duration, Instant};

use super::Endpoint;
use crate::config::{Identity, Rekeying};
use crate::event::CloseReason;
use crate::limits;
use crate::sa::{Goodbye, Reauth, notify};
use crate::timers::{Timer, up_to};
use crate::wire::{NotifyType, Payload};

/// An authentication ends at so many times the age at which it is to be repeated ([`Rekeying::reauth`]).
const REAUTH_ENDS: u32 = 2;

impl Endpoint {
    /// Makes a new IKE SA with a peer beside the one there is, with the credentials and CAs of now: after a renewal of this
    /// node's certificate, or before a CA is taken out. The old one goes when the new one is in use. Nothing happens where
    /// there is none, or where the peer is not wanted.
    pub fn reauthenticate(&mut self, id: &Identity, now: Instant) {
        self.now = Some(now);
        if let Some(spi) = self.newest_sa(id) {
            self.renew(spi, now);
            self.start_due(now);
        }
    }

    /// An IKE SA is authenticated now.
    pub(super) fn start_auth_lifetime(&mut self, id: &Identity, spi: u64, now: Instant) {
        let Some(lifetime) = self.config.rekeying.reauth else {
            return;
        };
        let due = now + self.soft(id, lifetime);
        if let Some(established) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) {
            established.reauth = Reauth {
                due: Some(due),
                ends: Some(now + lifetime * REAUTH_ENDS),
            };
        }
    }

    /// Sets when the IKE SA is replaced and when it ends, by its own age and by that of its authentication.
    pub(super) fn start_ike_end(&mut self, spi: u64, now: Instant) {
        let Some(reauth) = self
            .sas
            .get(&spi)
            .and_then(|sa| sa.established())
            .map(|sa| sa.reauth)
        else {
            return;
        };
        let hard = self.config.rekeying.ike_hard;
        let renew = now + hard * limits::RENEW_PERCENT / 100;
        let earlier = |at: Option<Instant>, other: Instant| at.map_or(other, |at| at.min(other));
        self.timers
            .set(Timer::Reauth(spi), earlier(reauth.due, renew));
        self.timers
            .set(Timer::EndIke(spi), earlier(reauth.ends, now + hard));
    }

    /// AUTH_LIFETIME: the peer ends the IKE SA when its authentication is this old (RFC 4478).
    pub(super) fn note_auth_lifetime(&mut self, spi: u64, payloads: &[Payload<'_>], now: Instant) {
        let seconds = notify(payloads, NotifyType::AuthLifetime);
        let Some(seconds) = seconds.and_then(|data| data.try_into().ok()) else {
            return;
        };
        let lifetime = Duration::from_secs(u32::from_be_bytes(seconds).into());
        let due = lifetime * limits::AUTH_LIFETIME_PERCENT / 100;
        let early = up_to(due * limits::REKEY_JITTER_PERCENT / 100, &mut *self.rng);
        let due = now + (due - early).max(limits::REAUTH_MIN);
        let Some(established) = self.sas.get_mut(&spi).and_then(|sa| sa.established_mut()) else {
            return;
        };
        tracing::debug!(peer = %established.peer, ?lifetime, "the peer limits its authentication");
        let sooner = established.reauth.due.map_or(due, |own| own.min(due));
        established.reauth.due = Some(sooner);
        let timer = Timer::Reauth(spi);
        if self.timers.due(&timer).is_none_or(|at| sooner < at) {
            self.timers.set(timer, sooner);
        }
    }

    pub(super) fn reauth_due(&mut self, spi: u64, now: Instant) {
        let newest = self
            .peer_of(spi)
            .filter(|id| self.newest_sa(id) == Some(spi));
        if let Some(peer) = newest {
            tracing::debug!(%peer, "a new IKE SA is to replace the one there is");
            self.renew(spi, now);
        }
    }

    /// The hard lifetime: it could neither be rekeyed nor replaced.
    pub(super) fn end_ike(&mut self, spi: u64, now: Instant) {
        let Some(id) = self.peer_of(spi).filter(|id| self.is_listed(id, spi)) else {
            return;
        };
        tracing::warn!(peer = %id, "hard lifetime of an IKE SA, or of its authentication, reached");
        self.retire(spi, CloseReason::Local, Some(Goodbye::Plain));
        self.after_loss(&id, CloseReason::Local, now);
    }
}

/// AUTH_LIFETIME's data: when this end, as responder, ends an IKE SA that was not authenticated anew (RFC 4478 §2).
pub(super) fn auth_lifetime(rekeying: &Rekeying) -> Option<[u8; 4]> {
    let ends = rekeying.reauth? * REAUTH_ENDS;
    let seconds = u32::try_from(ends.as_secs()).unwrap_or(u32::MAX);
    Some(seconds.to_be_bytes())
}
