//! One pair of nodes between clear and encrypted.
//!
//! Both ends hold a [`Pair`] and tell each other, through IKE, a whole [`Announcement`] at each change. Every rule reads
//! the present facts only (level, not edge), so a lost or repeated announcement does no harm:
//!
//! - the stricter of both modes holds (`effective`);
//! - an end opens its inbound filter before it says so, and leaves ESP only for an end that said so knowing that both ends
//!   are `Disabled`;
//! - an end sends ESP as soon as the other is known to open it;
//! - an end closes its inbound filter only when the other is known to send ESP and to know that `Required` holds, and after
//!   a drain;
//! - under `Required` an end without ESP sends nothing, but for a live pair in transition, until a deadline;
//! - SAs that both ends left are retired after a while: an end that said so does not seal with them again, and they are given
//!   up when both ends said so. An end that returns to a stricter mode before the other retired finds them still open.

use std::time::{Duration, Instant};

use crate::{Mode, Said};

/// What an end does with packets for the other end's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sends {
    /// Drops them.
    #[default]
    Nothing,
    /// Sends them through the clear overlay.
    Clear,
    /// Seals them.
    Esp,
}

/// What an end tells the other one. On the wire eight bytes: version 1, mode (bits 0 to 3: its own, bits 4 to 7: the
/// effective one), flags (bit 0: accepts clear, bit 1: retired), sends, and the newest inbound SPI in network byte order; then,
/// which older versions leave out, the SPI of [`Said::hears`] and flags (bit 0: [`Said::fallback`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Announcement {
    /// Its own policy.
    pub mode: Mode,
    /// The stricter of both ends' policies, as far as it has heard: what its doings below follow.
    pub effective: Mode,
    /// Clear packets are let in.
    pub accepts_clear: bool,
    /// What it does with packets towards the other end.
    pub sends: Sends,
    /// It will not seal with the present SAs any more; they may be given up once both ends say so.
    pub retired: bool,
    /// SPI of the newest inbound SA that it has installed: the other end may seal with it. 0 for none.
    pub opens: u32,
    /// What it says of raw ESP.
    pub way: Said,
}

/// An announcement that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an announcement has eight bytes (version 1, mode 0 to 2, flags, sends 0 to 2, SPI), got {0:02x?}"
)]
pub struct AnnouncementError(Vec<u8>);

impl Announcement {
    const VERSION: u8 = 1;
    const SENDS: [Sends; 3] = [Sends::Nothing, Sends::Clear, Sends::Esp];

    /// For the wire.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let facts = [
            Self::VERSION,
            self.mode as u8 | (self.effective as u8) << 4,
            u8::from(self.accepts_clear) | u8::from(self.retired) << 1,
            self.sends as u8,
        ];
        let Said { hears, fallback } = self.way;
        let mut bytes = [facts, self.opens.to_be_bytes(), hears.to_be_bytes()].concat();
        bytes.push(u8::from(fallback));
        bytes
    }

    /// From the wire; later versions may append bytes.
    ///
    /// # Errors
    /// [`AnnouncementError`] on a short one and on unknown values.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnnouncementError> {
        let bad = || AnnouncementError(bytes.to_vec());
        let [version, mode, flags, sends, o1, o2, o3, o4, ref later @ ..] = *bytes else {
            return Err(bad());
        };
        if version < Self::VERSION {
            return Err(bad());
        }
        let known = |mode: u8| Mode::ALL.get(usize::from(mode)).copied().ok_or_else(bad);
        let (mode, effective) = (known(mode & 0xf)?, known(mode >> 4)?);
        let sends = *Self::SENDS.get(usize::from(sends)).ok_or_else(bad)?;
        Ok(Self {
            mode,
            effective,
            accepts_clear: flags & 1 == 1,
            retired: flags & 2 == 2,
            sends,
            opens: u32::from_be_bytes([o1, o2, o3, o4]),
            way: parse_way(later),
        })
    }
}

fn parse_way(bytes: &[u8]) -> Said {
    match *bytes {
        [h1, h2, h3, h4, flags, ..] => Said {
            hears: u32::from_be_bytes([h1, h2, h3, h4]),
            fallback: flags & 1 == 1,
        },
        _ => Said::default(),
    }
}

/// The two times of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a live pair may still send clear after `Required` came to hold.
    pub clear_deadline: Duration,
    /// How long packets of the old kind may still be under way after the other end said that it sends the new kind.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clear_deadline: Duration::from_secs(60),
            drain: Duration::from_secs(1),
        }
    }
}

/// What a (re)started agent finds in the kernel and the data plane for a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Where the routes to the peer's pods go now.
    pub sends: Sends,
    /// Clear packets of the peer are let in now.
    pub accepts_clear: bool,
    /// The data plane seals for this peer now.
    pub esp: bool,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The stricter of both ends' modes.
    pub effective: Mode,
    /// What to do with packets towards the peer.
    pub sends: Sends,
    /// Let clear packets of the peer in.
    pub accepts_clear: bool,
    /// Have an IKE SA and CHILD_SA with the peer.
    pub wants_sa: bool,
    /// `Required` holds in both directions: nothing clear goes out or comes in.
    pub enforced: bool,
    /// The deadline passed and the pair was cut: `Required` without ESP.
    pub expired: bool,
}

/// One end's state of a pair.
#[derive(Clone, Debug)]
pub struct Pair {
    limits: Limits,
    mode: Mode,
    peer: Option<Announcement>,
    esp: bool,
    sends: Sends,
    accepts_clear: bool,
    /// Since when clear is only tolerated (`Required` without ESP, still sending clear).
    tolerated_since: Option<Instant>,
    /// Since when `Required` holds.
    required_since: Option<Instant>,
    /// Since when the peer is known to send ESP.
    peer_esp_since: Option<Instant>,
    /// Since when both ends send clear under `Disabled`.
    both_clear_since: Option<Instant>,
    /// This end does not seal with the present SAs again, whatever the mode becomes, unless the peer still does.
    retired: bool,
    expired: bool,
}

impl Pair {
    /// A pair whose state `observed` was found; all default for a new peer.
    #[must_use]
    pub fn new(mode: Mode, observed: Observed, limits: Limits, now: Instant) -> Self {
        let mut pair = Self {
            limits,
            mode,
            peer: None,
            esp: observed.esp,
            sends: observed.sends,
            accepts_clear: observed.accepts_clear,
            tolerated_since: None,
            required_since: None,
            peer_esp_since: None,
            both_clear_since: None,
            retired: false,
            expired: false,
        };
        pair.step(now);
        pair
    }

    /// This node's policy changed.
    pub fn set_mode(&mut self, mode: Mode, limits: Limits, now: Instant) {
        (self.mode, self.limits) = (mode, limits);
        self.step(now);
    }

    /// The peer announced.
    pub fn heard(&mut self, announcement: Announcement, now: Instant) {
        self.peer = Some(announcement);
        if announcement.sends != Sends::Esp {
            self.peer_esp_since = None;
        }
        self.step(now);
    }

    /// An authenticated ESP packet of the peer came in: it seals, whether or not its word of it arrived.
    pub fn heard_esp(&mut self, now: Instant) {
        self.peer_esp_since.get_or_insert(now);
        self.step(now);
    }

    /// The peer is known to open what this node seals (`true`), or there is no SA pair any more (`false`).
    pub fn set_esp(&mut self, ready: bool, now: Instant) {
        self.esp = ready;
        if !ready {
            (self.peer_esp_since, self.both_clear_since, self.retired) = (None, None, false);
        }
        self.step(now);
    }

    /// The IKE SA ended: what the peer said of its doings is stale, its mode still holds (the stricter wins).
    pub fn ike_down(&mut self, now: Instant) {
        if let Some(peer) = &mut self.peer {
            (peer.sends, peer.retired) = (Sends::Nothing, false);
            peer.accepts_clear = peer.mode != Mode::Required;
        }
        self.step(now);
    }

    /// Time passed.
    pub fn step(&mut self, now: Instant) {
        self.note_peer(now);
        self.choose_sends(now);
        self.choose_accepts(now);
        self.note_both_clear(now);
    }

    /// When [`Pair::step`] is due next, if no fact changes before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let tolerated = self
            .tolerated_since
            .map(|since| since + self.limits.clear_deadline);
        let closing = self.closes_at();
        let retiring = self.both_clear_since.filter(|_| !self.retired);
        let ending = retiring.map(|since| since + self.limits.drain / 2);
        [tolerated, closing, ending].into_iter().flatten().min()
    }

    /// What is to be done now.
    #[must_use]
    pub fn view(&self) -> View {
        let effective = self.effective();
        View {
            effective,
            sends: self.sends,
            accepts_clear: self.accepts_clear,
            wants_sa: if self.esp {
                !self.left_esp()
            } else {
                effective != Mode::Disabled
            },
            enforced: effective == Mode::Required
                && !self.accepts_clear
                && self.sends != Sends::Clear,
            expired: self.expired,
        }
    }

    /// What to tell the peer, once the view is in force. `opens`, `way`: see [`Announcement`].
    #[must_use]
    pub fn announcement(&self, opens: u32, way: Said) -> Announcement {
        Announcement {
            opens,
            way,
            mode: self.mode,
            effective: self.effective(),
            accepts_clear: self.accepts_clear,
            retired: self.retired,
            sends: self.sends,
        }
    }

    fn effective(&self) -> Mode {
        self.peer.map_or(self.mode, |peer| peer.mode.max(self.mode))
    }

    fn note_peer(&mut self, now: Instant) {
        if self.peer.is_some_and(|peer| peer.sends == Sends::Esp) {
            self.peer_esp_since.get_or_insert(now);
        }
        let required = self.effective() == Mode::Required;
        self.required_since = required.then(|| self.required_since.unwrap_or(now));
    }

    fn choose_sends(&mut self, now: Instant) {
        let effective = self.effective();
        let usable = self.esp && !self.retired;
        self.sends = match (effective, usable) {
            (Mode::Disabled, _) => self.sends_disabled(),
            (_, true) => Sends::Esp,
            (Mode::Permissive, false) => Sends::Clear,
            (Mode::Required, false) => self.sends_required_without_esp(now),
        };
        let tolerated = effective == Mode::Required && self.sends == Sends::Clear;
        self.tolerated_since = tolerated.then(|| self.tolerated_since.unwrap_or(now));
        self.expired &= effective == Mode::Required && !usable;
    }

    /// Leaves ESP only when the peer said that it lets clear in and will go on to: until then ESP is what it surely opens.
    fn sends_disabled(&self) -> Sends {
        let still_esp = self.sends == Sends::Esp && self.esp;
        match self.peer {
            _ if !still_esp => Sends::Clear,
            Some(peer) if peer.accepts_clear && peer.effective == Mode::Disabled => Sends::Clear,
            _ => Sends::Esp,
        }
    }

    fn sends_required_without_esp(&mut self, now: Instant) -> Sends {
        if self.sends != Sends::Clear {
            return Sends::Nothing;
        }
        let since = self.tolerated_since.unwrap_or(now);
        if now < since + self.limits.clear_deadline {
            return Sends::Clear;
        }
        self.expired = true;
        Sends::Nothing
    }

    fn choose_accepts(&mut self, now: Instant) {
        let drained = self.closes_at().is_some_and(|at| now >= at);
        if self.effective() != Mode::Required {
            self.accepts_clear = true;
        } else if self.expired || drained {
            self.accepts_clear = false;
        } else if self.sends == Sends::Clear {
            // A pair that met in a lower mode and is in transition: this end still sends clear, so the peer may too.
            self.accepts_clear = true;
        }
    }

    /// When clear packets need not be let in any more; `None` while that is not in sight.
    fn closes_at(&self) -> Option<Instant> {
        let agreed = self
            .peer
            .is_none_or(|peer| peer.effective == Mode::Required);
        let may_close = agreed && self.accepts_clear && self.sends != Sends::Clear;
        let since = self
            .peer_esp_since
            .zip(self.required_since)
            .map(|(esp, required)| esp.max(required));
        since
            .filter(|_| may_close)
            .map(|since| since + self.limits.drain)
    }

    fn note_both_clear(&mut self, now: Instant) {
        let peer_left = self.peer.is_some_and(|peer| peer.sends != Sends::Esp);
        let both = self.sends == Sends::Clear && self.esp && peer_left;
        let keep = both && (self.retired || self.effective() == Mode::Disabled);
        self.both_clear_since = keep.then(|| self.both_clear_since.unwrap_or(now));
        self.retired = self
            .both_clear_since
            .is_some_and(|since| now >= since + self.limits.drain / 2);
    }

    /// Nobody needs the present SAs: both ends said that they do not seal with them again.
    fn left_esp(&self) -> bool {
        self.retired && self.peer.is_some_and(|peer| peer.retired)
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "a test needs some instant to begin with"
)]
mod tests;
