//! Random schedules of two nodes: rekeys of both kinds from both ends, announcements, disconnects, restarts of either end with and
//! without its data plane, links that are cut for longer than any request is repeated, new configurations, over a network that
//! loses, reorders and duplicates, and that changes.
//!
//! Each seed is one schedule, and always the same one. A failing one is printed as
//!
//! ```text
//! schedule with seed 4711 failed: … repeat with ESPALIER_SEED=4711 cargo test -p espalier-ike --test endpoint schedules
//! ```
//!
//! `ESPALIER_SEED=<seed>` runs that one alone and prints what it does; with `ESPALIER_SEEDS=<count>` so many from there on, to look
//! further, and with `ESPALIER_ML_KEM=1` those with ML-KEM. The schedules are divided among several tests, so that a runner can run them on all cores.
//!
//! What holds after each step (the simulation checks it): no state has two owners or none ([`espalier_ike::Endpoint::audit`]), both
//! ends have the same keys for an SPI, and nobody seals with what the other end cannot open, unless a schedule says that an end
//! gives SAs up alone. At the end: exactly one IKE SA and one CHILD_SA pair, the same on both ends, and nothing else.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use espalier_ike::crypto::KexGroup;
use espalier_ike::{Config, Connect, Event, IkePolicy, PostQuantum, Rekeying};
use rand::RngExt;

use crate::sim::{Net, Weather, id, psk};

/// In all, and in how many tests.
const SEEDS: u64 = 10_000;
const PARTS: u64 = 10;
/// With ML-KEM on both ends from the start: an IKE_FOLLOWUP_KE in each rekey makes twice as many places to be lost or crossed at.
const ML_KEM_SEEDS: u64 = 2_000;
const ACTS: usize = 8;
/// Longer than a request on an established IKE SA is repeated.
const CUT: (u64, u64) = (20, 120);

/// What a schedule has besides rekeys and announcements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing: no IKE SA may be lost.
    Plain,
    /// A new process over the data plane of the old one.
    Restart,
    /// A new process whose data plane is gone, too.
    Fresh,
    /// One end does not want the other for a moment.
    Disconnect,
    /// Nothing arrives for a while, in both directions or in one.
    Cut,
    /// Lifetimes and preferences change.
    Configure,
    /// Any of these, several times.
    All,
}

impl Kind {
    fn of(seed: u64) -> Self {
        match seed / PARTS % 10 {
            0..=2 => Self::Plain,
            3 => Self::Restart,
            4 => Self::Fresh,
            5 => Self::Disconnect,
            6 => Self::Cut,
            7 => Self::Configure,
            _ => Self::All,
        }
    }

    fn pick(self, net: &mut Net) -> Self {
        if self != Self::All {
            return self;
        }
        let others = [
            Self::Plain,
            Self::Restart,
            Self::Fresh,
            Self::Disconnect,
            Self::Cut,
            Self::Configure,
        ];
        others[net.rng.random_range(0..others.len())]
    }

    /// An IKE SA may be lost.
    fn may_lose(self) -> bool {
        !matches!(self, Self::Plain | Self::Configure)
    }
}

/// One schedule under way.
struct Schedule {
    net: Net,
    loud: bool,
    post_quantum: PostQuantum,
}

impl Schedule {
    fn new(seed: u64, loud: bool, post_quantum: PostQuantum) -> Self {
        let mut net = Net::psk_mesh(seed, 2);
        net.post_quantum(post_quantum);
        net.connect_all(Connect::Policy);
        assert!(net.run_until(Duration::from_secs(60), Net::all_settled));
        net.run(Duration::from_secs(1));
        net.loud = loud;
        let mut schedule = Self {
            net,
            loud,
            post_quantum,
        };
        schedule.change_weather();
        schedule
    }

    fn say(&self, what: &str) {
        if self.loud {
            println!("{:>9.3} s: {what}", self.net.age().as_secs_f64());
        }
    }

    fn random(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.net.rng.random_range(range)
    }

    fn change_weather(&mut self) {
        let rng = &mut self.net.rng;
        self.net.weather = Weather {
            latency_ms: (1, rng.random_range(1..300)),
            loss: rng.random_range(0..25),
            duplication: rng.random_range(0..25),
        };
        self.say(&format!("{:?}", self.net.weather));
    }

    fn act(&mut self, count: usize) {
        let own = usize::from(self.random(0..2) == 1);
        match self.random(0..11) {
            0..4 => {
                self.say(&format!("{own} rekeys the CHILD_SA"));
                self.net.rekey_child(own, 1 - own);
            }
            4..7 => {
                self.say(&format!("{own} rekeys the IKE SA"));
                self.net.rekey_ike(own, 1 - own);
            }
            7..10 => {
                self.say(&format!("{own} announces {count}"));
                self.net.announce(own, 1 - own, &[own as u8, count as u8]);
            }
            _ => self.change_weather(),
        }
    }

    fn special(&mut self, kind: Kind) {
        let own = usize::from(self.random(0..2) == 1);
        self.say(&format!("{kind:?} of {own}"));
        match kind {
            Kind::Plain | Kind::All => {}
            Kind::Restart => self.restart(own, Connect::Restart),
            Kind::Fresh => {
                // The other end seals into the void until the two have new ones.
                self.net.strict = false;
                self.net.nodes[own].plane.clear();
                self.restart(own, Connect::Fresh);
            }
            Kind::Disconnect => {
                self.net.strict = false;
                self.net.disconnect(own, 1 - own);
                let pause = self.random(0..600);
                self.net.run(Duration::from_millis(pause));
                self.net.connect(own, 1 - own, Connect::Policy);
            }
            Kind::Cut => self.cut(own),
            Kind::Configure => self.configure(own),
        }
    }

    fn restart(&mut self, own: usize, why: Connect) {
        // Often at once, within whatever is under way.
        let away = self.random(0..4) / 2 * self.random(0..3000);
        self.net.nodes[own].up = false;
        self.net.run(Duration::from_millis(away));
        self.net.nodes[own].up = true;
        self.net.restart(own, &psk(7));
        self.net.connect(own, 1 - own, why);
    }

    fn cut(&mut self, own: usize) {
        let one_way = self.random(0..3) == 0;
        let from = self.net.nodes[own].address;
        self.net.filter = Some(Box::new(move |packet| one_way && packet.path.local != from));
        for count in 0..2 {
            let pause = self.random(CUT.0 / 2..CUT.1 / 2);
            self.net.run(Duration::from_secs(pause));
            self.act(100 + count);
        }
        self.net.filter = None;
    }

    /// Every two of the preferences have a method in common.
    fn configure(&mut self, own: usize) {
        let groups = [
            vec![KexGroup::X25519, KexGroup::P256],
            vec![KexGroup::P256, KexGroup::X25519],
            vec![KexGroup::P256],
            vec![KexGroup::P384, KexGroup::P256],
        ];
        let which = self.random(0..groups.len() as u64) as usize;
        // In the handshakes from now on; an end without it is no hindrance to one that prefers it, but to one that requires it.
        let post_quantum = match (self.post_quantum, self.random(0..2)) {
            (PostQuantum::Required, _) => PostQuantum::Required,
            (_, 0) => PostQuantum::Off,
            _ => PostQuantum::Preferred,
        };
        let rekeying = Rekeying {
            child_soft: Duration::from_secs(self.random(5..60)),
            ike_soft: Duration::from_secs(self.random(5..60)),
            require_pfs: self.random(0..2) == 0,
            ..Rekeying::default()
        };
        let config = Config {
            rekeying,
            ike: IkePolicy {
                groups: groups[which].clone(),
                post_quantum,
                ..IkePolicy::default()
            },
            ..self.net.nodes[own].config.clone()
        };
        self.net.set_config(own, config);
    }

    /// Often at once, sometimes within an exchange, sometimes after it.
    fn pause(&mut self) {
        let pause = match self.random(0..4) {
            0 => 0,
            1 | 2 => self.random(0..200),
            _ => self.random(0..8000),
        };
        self.net.run(Duration::from_millis(pause));
    }

    /// The weather clears up, and all that is under way comes to its end.
    fn finish(&mut self) {
        self.say("the weather clears up");
        self.net.weather = Weather::FINE;
        for node in 0..2 {
            self.net.set_rekeying(node, Rekeying::default());
        }
        self.net.run(Duration::from_secs(200));
        self.net.check_spis();
        assert_same_keys(&self.net);
        assert!(self.net.all_settled(), "not exactly one CHILD_SA pair");
        self.net.assert_nothing_orphaned("at the end");
    }
}

/// Every CHILD_SA that both ends had has the same keys on both, and no SPI was given out twice.
fn assert_same_keys(net: &Net) {
    let ups = [net.child_ups(0), net.child_ups(1)];
    let mut inbound = BTreeMap::new();
    for (_, child, _) in &ups[1] {
        let before = inbound.insert(child.spi_in, child);
        assert!(before.is_none(), "an inbound SPI twice");
    }
    for (_, child, _) in &ups[0] {
        if let Some(other) = inbound.get(&child.spi_out) {
            assert_eq!(other.spi_out, child.spi_in);
            assert_eq!(other.keys_in, child.keys_out);
            assert_eq!(other.keys_out, child.keys_in);
            assert_ne!(child.role, other.role);
        }
    }
}

fn run(seed: u64, loud: bool, post_quantum: PostQuantum) {
    let kind = Kind::of(seed);
    let mut schedule = Schedule::new(seed, loud, post_quantum);
    let often = if kind == Kind::All { 2 } else { ACTS / 2 };
    for count in 0..ACTS {
        if count % often == often - 1 {
            let kind = kind.pick(&mut schedule.net);
            schedule.special(kind);
        }
        schedule.act(count);
        schedule.pause();
    }
    schedule.finish();
    for node in 0..2 {
        let down = |event: &Event| matches!(event, Event::IkeDown { .. });
        let lost = schedule.net.count(node, down);
        assert!(kind.may_lose() || lost == 0, "an IKE SA was lost");
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect(variable))
}

/// The schedules of one of the tests below.
fn part(part: u64, post_quantum: PostQuantum) {
    let alone = number("ESPALIER_SEED");
    let ml_kem = post_quantum != PostQuantum::Off;
    if alone.is_some() && ml_kem != (number("ESPALIER_ML_KEM") == Some(1)) {
        return;
    }
    let all = if ml_kem { ML_KEM_SEEDS } else { SEEDS };
    let count = number("ESPALIER_SEEDS").unwrap_or(if alone.is_some() { 1 } else { all });
    let from = alone.unwrap_or(0);
    for seed in (from..from + count).filter(|seed| seed % PARTS == part) {
        let done = catch_unwind(AssertUnwindSafe(|| run(seed, count == 1, post_quantum)));
        assert!(
            done.is_ok(),
            "schedule with seed {seed} failed: see above; \
             repeat with ESPALIER_ML_KEM={} ESPALIER_SEED={seed} cargo test -p espalier-ike --test endpoint schedules",
            u8::from(ml_kem)
        );
    }
}

macro_rules! parts {
    ($($name:ident: $part:literal),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                part($part, PostQuantum::Off);
            }
        )*

        #[test]
        fn no_schedule_is_left_out() {
            assert_eq!([$($part),*].len() as u64, PARTS);
        }
    };
}

parts!(
    random_schedules_converge: 0,
    random_schedules_converge_1: 1,
    random_schedules_converge_2: 2,
    random_schedules_converge_3: 3,
    random_schedules_converge_4: 4,
    random_schedules_converge_5: 5,
    random_schedules_converge_6: 6,
    random_schedules_converge_7: 7,
    random_schedules_converge_8: 8,
    random_schedules_converge_9: 9,
);

#[test]
fn random_schedules_with_ml_kem_converge() {
    (0..PARTS / 2).for_each(|number| part(number, PostQuantum::Preferred));
}

#[test]
fn random_schedules_with_ml_kem_converge_1() {
    (PARTS / 2..PARTS).for_each(|number| part(number, PostQuantum::Required));
}

/// The identities are in the order that the rules of who begins are about.
#[test]
fn the_nodes_of_a_schedule_are_a_lower_and_a_higher_one() {
    assert!(id(0) < id(1));
}
