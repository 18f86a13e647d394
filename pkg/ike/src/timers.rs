//! When what is due: a set ordered by time, one entry per key. Callers report facts, timers decide.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand_core::CryptoRng;

use crate::config::{ChildId, Identity};
use crate::limits;

/// What can be due.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Start an attempt towards a peer.
    Connect(Identity),
    /// Repeat the request in flight of the IKE SA with this local SPI, or give up.
    Retransmit(u64),
    /// Ask whether the peer of this IKE SA is alive.
    Liveness(u64),
    /// Remove what this confirmed IKE SA replaced.
    Drain(u64),
    /// Rekey the IKE SA with this local SPI.
    RekeyIke(u64),
    /// Authenticate the peer of this IKE SA anew, or replace it because it could not be rekeyed.
    Reauth(u64),
    /// This IKE SA has reached its hard lifetime.
    EndIke(u64),
    /// Forget what the peer's CREATE_CHILD_SA on the IKE SA with this local SPI has begun.
    Pending(u64),
    /// Rekey the CHILD_SA with this inbound SPI.
    RekeyChild(u32),
    /// Make this CHILD_SA under the IKE SA with this local SPI, if it is missing.
    MakeChild(u64, ChildId),
    /// Remove what the CHILD_SA with this inbound SPI replaced.
    DrainChild(u32),
    /// The CHILD_SA with this inbound SPI has reached its hard lifetime.
    ExpireChild(u32),
    /// The peer was to delete the CHILD_SA with this inbound SPI of ours: its own rekey lost against one of this end.
    Concede(u32),
    /// Forget this IKE SA: half-open, childless or closed for long enough.
    Expire(u64),
}

/// The timers of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    order: BTreeSet<(Instant, Timer)>,
    at: BTreeMap<Timer, Instant>,
}

impl Timers {
    /// Sets `timer` to `at`, in place of an earlier setting.
    pub(crate) fn set(&mut self, timer: Timer, at: Instant) {
        self.cancel(&timer);
        self.order.insert((at, timer.clone()));
        self.at.insert(timer, at);
    }

    /// Takes `timer` out; nothing happens when it is not set.
    pub(crate) fn cancel(&mut self, timer: &Timer) {
        if let Some(at) = self.at.remove(timer) {
            self.order.remove(&(at, timer.clone()));
        }
    }

    /// Takes out all timers of the IKE SA with local SPI `spi`.
    pub(crate) fn cancel_sa(&mut self, spi: u64) {
        for timer in [
            Timer::Retransmit(spi),
            Timer::Liveness(spi),
            Timer::Drain(spi),
            Timer::Expire(spi),
            Timer::RekeyIke(spi),
            Timer::Pending(spi),
            Timer::Reauth(spi),
            Timer::EndIke(spi),
        ] {
            self.cancel(&timer);
        }
        let children = Timer::MakeChild(spi, ChildId::FIRST)..=Timer::MakeChild(spi, ChildId::LAST);
        let children: Vec<Timer> = self
            .at
            .range(children)
            .map(|(timer, _)| timer.clone())
            .collect();
        children.iter().for_each(|timer| self.cancel(timer));
    }

    /// Takes out all timers of the CHILD_SA with inbound SPI `spi`.
    pub(crate) fn cancel_child(&mut self, spi: u32) {
        for timer in [
            Timer::RekeyChild(spi),
            Timer::DrainChild(spi),
            Timer::ExpireChild(spi),
            Timer::Concede(spi),
        ] {
            self.cancel(&timer);
        }
    }

    /// Takes `timer` out; when it was due.
    pub(crate) fn take(&mut self, timer: &Timer) -> Option<Instant> {
        let at = self.at.get(timer).copied();
        self.cancel(timer);
        at
    }

    /// When `timer` is due.
    pub(crate) fn due(&self, timer: &Timer) -> Option<Instant> {
        self.at.get(timer).copied()
    }

    /// Whether `timer` is set.
    pub(crate) fn is_set(&self, timer: &Timer) -> bool {
        self.at.contains_key(timer)
    }

    /// The earliest time at which something is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes out the first timer if it is due at `now` and starts an attempt.
    pub(crate) fn pop_due_connect(&mut self, now: Instant) -> Option<Identity> {
        let (at, Timer::Connect(id)) = self.order.first()? else {
            return None;
        };
        let due = (*at <= now).then(|| id.clone())?;
        self.cancel(&Timer::Connect(due.clone()));
        Some(due)
    }

    /// Takes out one timer that is due at `now`.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let (_, timer) = self.order.pop_first()?;
        self.at.remove(&timer);
        Some(timer)
    }
}

/// `base` stretched by up to [`limits::JITTER_PERCENT`].
pub(crate) fn jittered(base: Duration, rng: &mut dyn CryptoRng) -> Duration {
    base + up_to(base * limits::JITTER_PERCENT as u32 / 100, rng)
}

/// A random duration of at most `most`.
pub(crate) fn up_to(most: Duration, rng: &mut dyn CryptoRng) -> Duration {
    let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX - 1);
    Duration::from_micros(rng.next_u64() % (micros + 1))
}

/// The `n`-th interval (from 0) of an exponential backoff.
pub(crate) fn backoff(first: Duration, most: Duration, n: u32) -> Duration {
    first.saturating_mul(1 << n.min(16)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)] // a base to count from; nothing waits
    fn timers_come_out_in_order_and_a_new_setting_replaces_the_old() {
        let base = Instant::now();
        let after = |s| base + Duration::from_secs(s);
        let mut timers = Timers::default();
        timers.set(Timer::Liveness(1), after(3));
        timers.set(Timer::Retransmit(1), after(2));
        timers.set(Timer::Liveness(1), after(1));
        assert_eq!(timers.next(), Some(after(1)));
        assert_eq!(timers.pop_due(base), None);
        assert_eq!(timers.pop_due(after(9)), Some(Timer::Liveness(1)));
        assert_eq!(timers.pop_due(after(9)), Some(Timer::Retransmit(1)));
        assert_eq!(timers.pop_due(after(9)), None);
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // a base to count from; nothing waits
    fn cancelling_an_ike_sa_leaves_the_others() {
        let base = Instant::now();
        let mut timers = Timers::default();
        for spi in [1, 2] {
            timers.set(Timer::Drain(spi), base);
            timers.set(Timer::Expire(spi), base);
        }
        timers.cancel_sa(1);
        assert!(!timers.is_set(&Timer::Drain(1)) && !timers.is_set(&Timer::Expire(1)));
        assert!(timers.is_set(&Timer::Drain(2)) && timers.is_set(&Timer::Expire(2)));
    }

    #[test]
    fn backoff_doubles_up_to_its_cap_and_never_overflows() {
        let (first, most) = (Duration::from_millis(500), Duration::from_secs(8));
        let waits: Vec<u128> = (0..6)
            .map(|n| backoff(first, most, n).as_millis())
            .collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 8000]);
        assert_eq!(backoff(first, most, u32::MAX), most);
    }
}
