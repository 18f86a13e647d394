//! Raw ESP or ESP in UDP, for one pair of nodes, by what arrives.
//!
//! That IKE passes proves nothing about ESP: paths drop protocol 50, some in one direction only. So a raw SA is *tried*: both ends
//! send small packets through it, and nothing else, until each knows that the other hears it. What an end hears it learns from
//! authenticated packets on its inbound SA; what the other one hears it is told ([`Said`], part of the announcement).
//!
//! ```text
//!          raw SA made             both directions heard
//!   Idle ─────────────► Trying ───────────────────────────► Raw
//!                        │  ▲                                │ unanswered for `broken`,
//!     `trial` has passed │  │ a new raw SA,                  │ or the other end fell back
//!                        ▼  │ every `retry`                  │
//!                       Fallback ◄──────────────────────────-┘
//! ```
//!
//! From the first failure to the next success both ends want a CHILD_SA in UDP beside the raw one, and packets use it: a trial
//! disturbs nothing. What one end gives up the other one does, too, as soon as it is told.

use std::time::{Duration, Instant};

/// All times of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WayLimits {
    /// A trial that has not passed after this has failed.
    pub trial: Duration,
    /// Probes are this far apart.
    pub probe: Duration,
    /// A way that failed is tried again after this; the end that does not begin waits a tenth longer.
    pub retry: Duration,
    /// Packets go out raw, none came in for this long: the other end is asked by probes, which it answers.
    pub quiet: Duration,
    /// Without any packet for this long after that the way is broken.
    pub broken: Duration,
    /// After the return to raw the CHILD_SA in UDP stays for this long: packets may be under way in it.
    pub drain: Duration,
}

impl Default for WayLimits {
    fn default() -> Self {
        Self {
            trial: Duration::from_secs(3),
            probe: Duration::from_millis(250),
            retry: Duration::from_secs(300),
            quiet: Duration::from_secs(5),
            broken: Duration::from_secs(10),
            drain: Duration::from_secs(2),
        }
    }
}

/// What an end tells the other one about its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Said {
    /// SPI of its newest raw inbound SA if it has heard an authenticated packet on it, else 0.
    pub hears: u32,
    /// It wants a CHILD_SA in UDP: raw has failed and not passed since.
    pub fallback: bool,
}

/// How far a pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There was no raw SA yet.
    Idle,
    Trying {
        until: Instant,
    },
    Raw {
        since: Instant,
        /// The other end was heard to be there, too.
        agreed: bool,
        /// Since when it is asked by probes.
        asked: Option<Instant>,
    },
    Fallback {
        retry: Instant,
    },
}

/// One end's view of a pair's way.
#[derive(Clone, Debug)]
pub struct Way {
    limits: WayLimits,
    begins: bool,
    state: State,
    /// The newest raw SA: inbound and outbound SPI.
    raw: Option<(u32, u32)>,
    /// The outbound SPI of the newest raw SA that the other end is known to have.
    opened: Option<u32>,
    /// An authenticated packet came in on it.
    heard: bool,
    /// The other end's last word.
    told: Said,
    /// Raw failed and has not passed since.
    fallen: bool,
    next_probe: Instant,
    /// A CHILD_SA in UDP is wanted; once nobody needs it, until then.
    udp: Option<Option<Instant>>,
}

impl Way {
    /// A pair without SAs. `begins`: this end has the lower identity, and asks for the new SAs of trials.
    #[must_use]
    pub fn new(begins: bool, limits: WayLimits, now: Instant) -> Self {
        Self {
            limits,
            begins,
            state: State::Idle,
            raw: None,
            opened: None,
            heard: false,
            told: Said::default(),
            fallen: false,
            next_probe: now,
            udp: None,
        }
    }

    /// A raw SA was made and is installed at this end. Where raw works it is as good as its predecessor. Probes wait until
    /// [`Way::opens`] names it, or a packet on it came in.
    pub fn made_raw(&mut self, spi_in: u32, spi_out: u32, now: Instant) {
        (self.raw, self.heard) = (Some((spi_in, spi_out)), false);
        if !matches!(self.state, State::Raw { .. }) {
            let until = now + self.limits.trial;
            self.state = State::Trying { until };
            self.next_probe = now;
        }
        self.step(now);
    }

    /// The other end is known to have installed the SA that this end sends with by this SPI.
    pub fn opens(&mut self, spi_out: u32) {
        if self.raw.is_some_and(|(_, own)| own == spi_out) {
            self.opened = Some(spi_out);
        }
    }

    /// The pair's SA is in UDP because both ends agreed on that, or a NAT wants it: there is nothing to try.
    pub fn made_udp_only(&mut self, now: Instant) {
        *self = Self::new(self.begins, self.limits, now);
    }

    /// A restarted agent found that packets go raw, by this SPI.
    pub fn found_raw(&mut self, spi_out: u32, now: Instant) {
        (self.state, self.opened) = (raw_since(now), Some(spi_out));
    }

    /// There are no SAs any more. That raw has failed is not forgotten.
    pub fn lost(&mut self, now: Instant) {
        (self.raw, self.opened) = (None, None);
        (self.heard, self.told) = (false, Said::default());
        if self.fallen {
            self.fall_back(now);
        } else {
            self.state = State::Idle;
        }
        self.step(now);
    }

    /// An authenticated packet came in on an inbound SA.
    pub fn heard(&mut self, spi_in: u32, now: Instant) {
        if let Some((_, spi_out)) = self.raw.filter(|(own, _)| *own == spi_in) {
            (self.heard, self.opened) = (true, Some(spi_out));
        }
        self.step(now);
    }

    /// The other end announced.
    pub fn told(&mut self, said: Said, now: Instant) {
        self.told = said;
        self.opens(said.hears);
        self.step(now);
    }

    /// What the counters of the raw SAs say: whether packets went out since the last call, and how long ago the last one came in.
    pub fn traffic(&mut self, sends: bool, silent: Option<Duration>, now: Instant) {
        let quiet = silent.is_none_or(|silent| silent >= self.limits.quiet);
        if let State::Raw { asked, .. } = &mut self.state {
            if !quiet {
                *asked = None;
            } else if sends && asked.is_none() {
                (*asked, self.next_probe) = (Some(now), now);
            }
        }
        self.step(now);
    }

    /// Time passed.
    pub fn step(&mut self, now: Instant) {
        match self.state {
            State::Idle | State::Fallback { .. } => {}
            State::Trying { until } => {
                let other_hears = self.raw.is_some_and(|(_, out)| out == self.told.hears);
                // The other end has failed before, perhaps while this one's agent was away: packets need not wait.
                self.fallen |= self.told.fallback;
                if self.heard && other_hears {
                    (self.state, self.fallen) = (raw_since(now), false);
                } else if now >= until {
                    self.fall_back(now);
                }
            }
            State::Raw { .. } => self.step_raw(now),
        }
        self.note_udp(now);
    }

    fn step_raw(&mut self, now: Instant) {
        let State::Raw {
            since,
            agreed,
            asked,
        } = &mut self.state
        else {
            return;
        };
        *agreed |= !self.told.fallback;
        let broken = asked.is_some_and(|at| now >= at + self.limits.broken);
        // Its last word may be older than this end's success.
        let stays_behind = *agreed || now >= *since + self.limits.trial;
        if broken || (self.told.fallback && stays_behind) {
            self.fall_back(now);
        }
    }

    fn fall_back(&mut self, now: Instant) {
        let wait = self.limits.retry;
        let wait = if self.begins { wait } else { wait + wait / 10 };
        self.state = State::Fallback { retry: now + wait };
        self.fallen = true;
    }

    fn note_udp(&mut self, now: Instant) {
        let needed = self.fallen || self.told.fallback;
        self.udp = match self.udp {
            _ if needed => Some(None),
            Some(None) => Some(Some(now + self.limits.drain)),
            Some(Some(until)) if now >= until => None,
            udp => udp,
        };
    }

    /// When [`Way::step`], [`Way::wants_probe`] or [`Way::wants_trial`] is due next, if nothing happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let (main, probes) = match self.state {
            State::Idle => (None, false),
            State::Trying { until } => (Some(until), true),
            State::Raw { asked, since, .. } => {
                let broken = asked.map(|at| at + self.limits.broken);
                let behind = self.told.fallback.then_some(since + self.limits.trial);
                (broken.into_iter().chain(behind).min(), asked.is_some())
            }
            State::Fallback { retry } => (Some(retry), false),
        };
        let probe = (probes && self.may_probe()).then_some(self.next_probe);
        let drained = self.udp.flatten();
        [main, probe, drained].into_iter().flatten().min()
    }

    /// A probe on an SA that the other end is still to install would be an error there.
    fn may_probe(&self) -> bool {
        self.raw.is_none_or(|(_, out)| self.opened == Some(out))
    }

    /// Whether to send a probe through the newest raw SA now; if so, the next one is due later.
    pub fn wants_probe(&mut self, now: Instant) -> bool {
        let asks = match self.state {
            State::Trying { .. } => true,
            State::Raw { asked, .. } => asked.is_some(),
            State::Idle | State::Fallback { .. } => false,
        };
        let due = asks && self.may_probe() && now >= self.next_probe;
        if due {
            self.next_probe = now + self.limits.probe;
        }
        due
    }

    /// Whether to make a new raw SA now, for another trial; if so, the next one is due later.
    pub fn wants_trial(&mut self, now: Instant) -> bool {
        let due = matches!(self.state, State::Fallback { retry } if now >= retry);
        if due {
            self.fall_back(now);
        }
        due
    }

    /// Whether packets may use raw SAs.
    #[must_use]
    pub fn uses_raw(&self) -> bool {
        matches!(self.state, State::Raw { .. })
    }

    /// Whether there is to be a CHILD_SA in UDP beside the raw one.
    #[must_use]
    pub fn wants_udp(&self) -> bool {
        self.udp.is_some()
    }

    /// Raw is being tried, or was and did not pass.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        match self.state {
            State::Fallback { .. } | State::Trying { .. } if self.fallen => Some(format!(
                "path ESP-in-UDP: raw ESP does not arrive; trying again every {}",
                period(self.limits.retry)
            )),
            _ => None,
        }
    }

    /// The raw outbound SAs that probes go through, the best first: the newest that the other end is known to have, then one that
    /// it surely has as soon as it asks.
    pub fn tried(&self) -> impl Iterator<Item = u32> {
        let newest = self.raw.map(|(_, spi_out)| spi_out);
        self.opened.into_iter().chain(newest)
    }

    /// What to tell the other end.
    #[must_use]
    pub fn say(&self) -> Said {
        let heard = self.raw.filter(|_| self.heard);
        Said {
            hears: heard.map_or(0, |(spi_in, _)| spi_in),
            fallback: self.fallen,
        }
    }
}

fn raw_since(now: Instant) -> State {
    State::Raw {
        since: now,
        agreed: false,
        asked: None,
    }
}

fn period(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds >= 60 && seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "a test needs some instant to begin with"
)]
mod tests;
