//! The states that are ours, as they were installed or found.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use espalier_dataplane_core::{
    Direction, Encapsulation, Peer, PeerId, Sa, SaInfo, SaMode, Spi, Suite,
};

use crate::used::{KeyPrint, Used};
use crate::wire::state::State;
use crate::wire::state_id::StateId;

/// Order: all states of a peer stand together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) reqid: u32,
    pub(super) direction: Direction,
    pub(super) id: StateId,
}

/// Everything that makes two SAs the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Print {
    key: KeyPrint,
    source: IpAddr,
    suite: Suite,
    mode: SaMode,
    esn: bool,
    /// Inbound only.
    window: u32,
    ports: Option<(u16, u16)>,
    hard_seconds: u64,
    cpu: Option<u32>,
}

/// What is remembered of a state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) print: Print,
    /// Inbound states without an authenticated packet so far.
    watch: Option<Watch>,
    seen: Seen,
}

/// What the packet counter was when it was last seen to have grown.
#[derive(Clone, Copy, Debug)]
struct Seen {
    packets: u64,
    at: Instant,
}

impl Known {
    /// A state that is new.
    pub(super) fn installed(print: Print, watch: Option<Watch>, now: Instant) -> Self {
        let seen = Seen {
            packets: 0,
            at: now,
        };
        Self { print, watch, seen }
    }

    /// A state that was found: all that is known of its packets is when the first one came.
    pub(super) fn adopted(print: Print, state: &State, now: Instant) -> Self {
        let unconfirmed = state.direction == Direction::In && state.packets == 0;
        let since = Duration::from_secs(wall_clock().saturating_sub(state.first_used));
        Self {
            print,
            watch: unconfirmed.then(|| Watch::new(now)),
            seen: Seen {
                packets: state.packets,
                at: now.checked_sub(since).unwrap_or(now),
            },
        }
    }

    /// Time since the last packet, for kernels that do not tell (before 6.2): since the counter was seen to have grown.
    fn idle(&mut self, packets: u64, now: Instant) -> Option<Duration> {
        if packets != self.seen.packets {
            self.seen = Seen { packets, at: now };
        }
        (packets > 0).then(|| now.saturating_duration_since(self.seen.at))
    }
}

/// Seconds since 1970, as the kernel counts the ages of states.
fn wall_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// When to look next whether a packet came. One packet alone makes the kernel say nothing; those that follow do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    due: Instant,
    wait: Duration,
}

impl Watch {
    const FIRST: Duration = Duration::from_millis(50);
    /// SAs that are not used for long cost next to nothing.
    const LONGEST: Duration = Duration::from_secs(10);

    pub(super) fn new(now: Instant) -> Self {
        Self {
            due: now + Self::FIRST,
            wait: Self::FIRST,
        }
    }

    fn later(self, now: Instant) -> Self {
        let wait = (self.wait * 2).min(Self::LONGEST);
        Self {
            due: now + wait,
            wait,
        }
    }
}

/// The states by name.
#[derive(Debug, Default)]
pub(super) struct States {
    all: BTreeMap<Name, Known>,
    by_spi: BTreeSet<(Direction, u32, Name)>,
    /// Those that are watched, by when to look: thousands may be there that nobody has to look at.
    watched: BTreeSet<(Instant, Name)>,
}

impl States {
    pub(super) fn get(&self, name: &Name) -> Option<&Known> {
        self.all.get(name)
    }

    pub(super) fn get_mut(&mut self, name: &Name) -> Option<&mut Known> {
        self.all.get_mut(name)
    }

    pub(super) fn insert(&mut self, name: Name, known: Known) {
        self.remove(&name);
        self.by_spi.insert((name.direction, name.id.spi, name));
        self.watched
            .extend(known.watch.map(|watch| (watch.due, name)));
        self.all.insert(name, known);
    }

    pub(super) fn remove(&mut self, name: &Name) -> Option<Known> {
        self.by_spi.remove(&(name.direction, name.id.spi, *name));
        let known = self.all.remove(name)?;
        self.forget_look(name, known.watch);
        Some(known)
    }

    /// Ends the watch over a state; `None` if there was none.
    pub(super) fn unwatch(&mut self, name: &Name) -> Option<()> {
        let watch = self.all.get_mut(name)?.watch.take()?;
        self.forget_look(name, Some(watch));
        Some(())
    }

    /// When the first of the watched states is to be looked at.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.watched.first().map(|(due, _)| *due)
    }

    /// The states that are to be looked at now, up to `most`, those first that have waited longest; they are looked at again later.
    pub(super) fn take_due(&mut self, now: Instant, most: usize) -> Vec<Name> {
        let mut due = Vec::new();
        while due.len() < most
            && let Some((at, name)) = self.watched.first().copied()
            && at <= now
        {
            self.watched.pop_first();
            let known = self.all.get_mut(&name);
            if let Some(watch) = known.and_then(|known| known.watch.as_mut()) {
                *watch = watch.later(now);
                self.watched.insert((watch.due, name));
                due.push(name);
            }
        }
        due
    }

    fn forget_look(&mut self, name: &Name, watch: Option<Watch>) {
        if let Some(watch) = watch {
            self.watched.remove(&(watch.due, *name));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Name, &Known)> {
        self.all.iter()
    }

    pub(super) fn of(&self, reqid: u32) -> impl Iterator<Item = &Name> {
        self.all.range(all_of(reqid)).map(|(name, _)| name)
    }

    pub(super) fn named(&self, direction: Direction, spi: Spi) -> impl Iterator<Item = &Name> {
        let lowest = (direction, spi.0, *all_of(0).start());
        let highest = (direction, spi.0, *all_of(u32::MAX).end());
        self.by_spi.range(lowest..=highest).map(|(_, _, name)| name)
    }
}

fn all_of(reqid: u32) -> RangeInclusive<Name> {
    let lowest = StateId {
        destination: IpAddr::from([0; 4]),
        spi: 0,
        protocol: 0,
    };
    let highest = StateId {
        destination: IpAddr::from([0xff; 16]),
        spi: u32::MAX,
        protocol: u8::MAX,
    };
    let name = |direction, id| Name {
        reqid,
        direction,
        id,
    };
    name(Direction::In, lowest)..=name(Direction::Out, highest)
}

impl Print {
    pub(super) fn of_sa(sa: &Sa, peer: &Peer, used: &Used) -> Self {
        let (source, _) = ends(peer, sa.direction);
        Self {
            key: used.print(sa.key.expose()),
            source,
            suite: sa.suite,
            mode: sa.mode,
            esn: sa.esn,
            window: window(sa.direction, sa.replay_window),
            ports: ports(sa),
            hard_seconds: sa.hard_seconds.into(),
            cpu: sa.cpu,
        }
    }

    /// `None`: an algorithm that this data plane does not install.
    pub(super) fn of_state(state: &State, used: &Used) -> Option<Self> {
        Some(Self {
            key: used.print(state.key.expose()),
            source: state.source,
            suite: state.suite?,
            mode: state.mode,
            esn: state.esn,
            window: window(state.direction, state.window),
            ports: state.ports,
            hard_seconds: state.hard_seconds,
            cpu: state.cpu,
        })
    }

    pub(super) fn key(&self) -> KeyPrint {
        self.key
    }
}

fn window(direction: Direction, packets: u32) -> u32 {
    match direction {
        Direction::In => packets,
        Direction::Out => 0,
    }
}

/// Source and destination address.
pub(super) fn ends(peer: &Peer, direction: Direction) -> (IpAddr, IpAddr) {
    match direction {
        Direction::In => (peer.remote, peer.local),
        Direction::Out => (peer.local, peer.remote),
    }
}

/// Source and destination port, where ESP is in UDP.
pub(super) fn ports(sa: &Sa) -> Option<(u16, u16)> {
    let Encapsulation::Udp {
        local_port,
        remote_port,
    } = sa.encapsulation
    else {
        return None;
    };
    Some(match sa.direction {
        Direction::In => (remote_port, local_port),
        Direction::Out => (local_port, remote_port),
    })
}

impl Name {
    pub(super) fn of_state(state: &State) -> Self {
        Self {
            reqid: state.reqid,
            direction: state.direction,
            id: state.id,
        }
    }

    pub(super) fn spi(&self) -> Spi {
        Spi(self.id.spi)
    }

    /// The peer's address.
    pub(super) fn remote(&self, print: &Print) -> IpAddr {
        match self.direction {
            Direction::In => print.source,
            Direction::Out => self.id.destination,
        }
    }
}

/// A row of the dump.
pub(super) fn row(
    state: &State,
    suite: Suite,
    peer: PeerId,
    active: bool,
    known: Option<&mut Known>,
) -> SaInfo {
    let encapsulation = match (state.ports, state.direction) {
        (None, _) => Encapsulation::Raw,
        (Some((remote_port, local_port)), Direction::In)
        | (Some((local_port, remote_port)), Direction::Out) => Encapsulation::Udp {
            local_port,
            remote_port,
        },
    };
    let now = wall_clock();
    let told = (state.last_used > 0).then(|| now.saturating_sub(state.last_used) * 1000);
    let counted = known.and_then(|known| known.idle(state.packets, Instant::now()));
    let counted = counted.map(|idle| u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
    SaInfo {
        peer,
        direction: state.direction,
        spi: state.spi(),
        suite,
        encapsulation,
        active,
        age_s: now.saturating_sub(state.added),
        packets: state.packets,
        bytes: state.bytes,
        drops: state.drops,
        idle_ms: told.or(counted),
        cpu: state.cpu,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(spi: u32) -> Name {
        Name {
            reqid: 1,
            direction: Direction::In,
            id: StateId {
                destination: [192, 0, 2, 1].into(),
                spi,
                protocol: 50,
            },
        }
    }

    fn known(installed: Instant) -> Known {
        let print = Print {
            key: Used::default().print(&[7; 36]),
            source: [192, 0, 2, 2].into(),
            suite: Suite::Aes256Gcm16,
            mode: SaMode::Transport,
            esn: true,
            window: 4096,
            ports: None,
            hard_seconds: 86_400,
            cpu: None,
        };
        Known::installed(print, Some(Watch::new(installed)), installed)
    }

    #[test]
    fn those_that_wait_longest_are_looked_at_first_and_later_again() {
        let start = Instant::now();
        let after = |millis: u64| start + Duration::from_millis(millis);
        let mut states = States::default();
        for spi in 1..=5 {
            states.insert(name(spi), known(after(spi.into())));
        }
        assert_eq!(states.take_due(after(50), 10), []);
        assert_eq!(states.take_due(after(54), 3), [1, 2, 3].map(name));
        assert_eq!(states.next_look(), Some(after(54)), "the fourth is late");
        assert_eq!(states.take_due(after(60), 3), [4, 5].map(name));
        assert_eq!(states.next_look(), Some(after(154)), "the first ones again");
        states.unwatch(&name(2)).unwrap();
        assert_eq!(states.take_due(after(154), 10), [1, 3].map(name));
        assert_eq!(states.next_look(), Some(after(160)));
    }
}
