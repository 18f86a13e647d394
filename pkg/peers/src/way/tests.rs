//! Two ends, a network that carries raw ESP in each direction or not, and changes its mind; IKE between them is reliable and takes
//! its time.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const LATENCY: Duration = Duration::from_millis(20);
/// Short, so that schedules are.
const LIMITS: WayLimits = WayLimits {
    trial: Duration::from_millis(300),
    probe: Duration::from_millis(50),
    retry: Duration::from_secs(3),
    quiet: Duration::from_millis(500),
    broken: Duration::from_millis(400),
    drain: Duration::from_millis(100),
};
const POLL: u64 = 100;

#[derive(Clone, Copy, Debug)]
enum Letter {
    Said(Said),
    /// A raw SA, by the SPIs of the sender and the receiver.
    Raw(u32, u32),
    /// The sender has installed the raw SA that the receiver sends with by this SPI.
    Opens(u32),
    Udp,
}

struct End {
    way: Way,
    said: Said,
    /// The UDP SA is there; asked for.
    udp: (bool, bool),
    inbox: VecDeque<(Instant, Letter)>,
    /// Inbound SPIs of raw SAs.
    opened: Vec<u32>,
    /// Last raw packet in, and raw packets out since the last look.
    heard_at: Option<Instant>,
    sent: bool,
}

struct Sim {
    now: Instant,
    ends: [End; 2],
    /// Raw ESP passes from 0 to 1, and from 1 to 0.
    passes: [bool; 2],
    /// Raw packets under way: arrival, to, SPI, whether it is a probe that asks.
    packets: VecDeque<(Instant, usize, u32, bool)>,
    spi: u32,
    ticks: u64,
    /// Packets of users that were sent raw and did not pass, and that had no SA to be sent with.
    lost: u64,
    blocked: u64,
}

impl Sim {
    fn new(passes: [bool; 2]) -> Self {
        let now = Instant::now();
        let end = |begins| End {
            way: Way::new(begins, LIMITS, now),
            said: Said::default(),
            udp: (false, false),
            inbox: VecDeque::new(),
            opened: Vec::new(),
            heard_at: None,
            sent: false,
        };
        let mut sim = Self {
            now,
            ends: [end(true), end(false)],
            passes,
            packets: VecDeque::new(),
            spi: 1000,
            ticks: 0,
            lost: 0,
            blocked: 0,
        };
        sim.rekey(0);
        sim
    }

    /// The responder has it first.
    fn rekey(&mut self, by: usize) {
        self.spi += 2;
        let (own, other) = (self.spi, self.spi + 1);
        self.ends[1 - by].opened.push(other);
        self.ends[1 - by].way.made_raw(other, own, self.now);
        let due = self.now + LATENCY;
        let letter = Letter::Raw(own, other);
        self.ends[by].inbox.push_back((due, letter));
    }

    fn tick(&mut self) {
        self.now += MS;
        self.ticks += 1;
        for me in 0..2 {
            self.receive(me);
            self.arrive(me);
            self.ends[me].way.step(self.now);
            self.drive(me);
            if self.ticks.is_multiple_of(POLL) {
                self.poll(me);
            }
            if self.ticks.is_multiple_of(10) {
                self.emit(me);
            }
        }
    }

    fn receive(&mut self, me: usize) {
        let now = self.now;
        while self.ends[me]
            .inbox
            .front()
            .is_some_and(|(due, _)| *due <= now)
        {
            let (_, letter) = self.ends[me].inbox.pop_front().unwrap();
            match letter {
                Letter::Said(said) => self.ends[me].way.told(said, now),
                Letter::Raw(own, other) => {
                    self.ends[me].opened.push(own);
                    self.ends[me].way.made_raw(own, other, now);
                    // The responder installed before it answered.
                    self.ends[me].way.opens(other);
                    let opens = (now + LATENCY, Letter::Opens(own));
                    self.ends[1 - me].inbox.push_back(opens);
                }
                Letter::Opens(spi) => self.ends[me].way.opens(spi),
                Letter::Udp => self.ends[me].udp.0 = true,
            }
        }
    }

    fn arrive(&mut self, me: usize) {
        let due = |packet: &&(Instant, usize, u32, bool)| packet.0 <= self.now && packet.1 == me;
        let here: Vec<_> = self.packets.iter().filter(due).copied().collect();
        let now = self.now;
        self.packets
            .retain(|(due, to, ..)| !(*due <= now && *to == me));
        for (_, _, spi, asks) in here {
            let opened = self.ends[me].opened.contains(&spi);
            assert!(opened, "a packet on an SA that is still to be installed");
            self.ends[me].heard_at = Some(now);
            self.ends[me].way.heard(spi, now);
            if asks {
                self.send_raw(me, false);
            }
        }
    }

    fn send_raw(&mut self, me: usize, asks: bool) {
        self.ends[me].sent = true;
        let Some(spi) = self.ends[me].way.tried().next() else {
            return;
        };
        if self.passes[me] {
            self.packets
                .push_back((self.now + MS * 2, 1 - me, spi, asks));
        }
    }

    fn drive(&mut self, me: usize) {
        let (now, due) = (self.now, self.now + LATENCY);
        if self.ends[me].way.wants_probe(now) {
            self.send_raw(me, true);
        }
        if self.ends[me].way.wants_trial(now) {
            self.rekey(me);
        }
        let said = self.ends[me].way.say();
        if said != self.ends[me].said {
            self.ends[me].said = said;
            self.ends[1 - me].inbox.push_back((due, Letter::Said(said)));
        }
        let wanted = self.ends[me].way.wants_udp();
        let other_wants = self.ends[1 - me].way.wants_udp();
        let end = &mut self.ends[me];
        if !wanted && end.udp.0 {
            (self.ends[0].udp, self.ends[1].udp) = ((false, false), (false, false));
        } else if wanted && !end.udp.0 && !end.udp.1 && other_wants {
            end.udp.1 = true;
            self.ends[1 - me].udp.0 = true;
            self.ends[me].inbox.push_back((due, Letter::Udp));
        }
    }

    fn poll(&mut self, me: usize) {
        let now = self.now;
        let end = &mut self.ends[me];
        let silent = end.heard_at.map(|at| now - at);
        let sends = std::mem::take(&mut end.sent);
        end.way.traffic(sends, silent, now);
    }

    /// A packet of a user.
    fn emit(&mut self, me: usize) {
        let end = &self.ends[me];
        if end.way.uses_raw() {
            self.lost += u64::from(!self.passes[me]);
            self.send_raw(me, false);
        } else if !end.udp.0 {
            self.blocked += 1;
        }
    }

    fn run(&mut self, ms: u64) {
        (0..ms).for_each(|_| self.tick());
    }

    fn raw(&self) -> [bool; 2] {
        [0, 1].map(|me| self.ends[me].way.uses_raw())
    }

    fn udp(&self) -> [bool; 2] {
        [0, 1].map(|me| self.ends[me].udp.0)
    }

    /// Nothing is lost and nothing blocked from now on for a while, trials included.
    fn assert_smooth(&mut self, ms: u64) {
        let before = (self.lost, self.blocked);
        self.run(ms);
        assert_eq!((self.lost, self.blocked), before, "{:?}", self.ends[0].way);
    }
}

#[test]
fn a_path_that_carries_raw_esp_is_used_raw_and_needs_no_udp() {
    let mut sim = Sim::new([true, true]);
    sim.run(200);
    assert_eq!((sim.raw(), sim.udp()), ([true; 2], [false; 2]));
    sim.assert_smooth(10_000);
    assert_eq!(sim.udp(), [false; 2]);
    // Rekeys are not tried again.
    for by in [0, 1] {
        sim.rekey(by);
        sim.assert_smooth(1_000);
    }
}

#[test]
fn a_path_that_drops_raw_esp_in_any_direction_is_used_in_udp() {
    for passes in [[false, false], [true, false], [false, true]] {
        let mut sim = Sim::new(passes);
        sim.run(100);
        assert_eq!(sim.raw(), [false; 2], "nothing is sent before it is known");
        sim.run(400);
        assert_eq!((sim.raw(), sim.udp(), sim.lost), ([false; 2], [true; 2], 0));
        assert!(
            sim.ends[0]
                .way
                .problem()
                .unwrap()
                .contains("raw ESP does not arrive")
        );
        sim.assert_smooth(20_000);
    }
}

#[test]
fn a_path_that_begins_to_carry_raw_esp_is_returned_to() {
    let mut sim = Sim::new([true, false]);
    sim.run(5_000);
    sim.passes = [true, true];
    sim.assert_smooth(4_000);
    assert_eq!((sim.raw(), sim.udp()), ([true; 2], [false; 2]));
    assert_eq!(
        sim.ends.each_ref().map(|end| end.way.problem()),
        [None, None]
    );
}

#[test]
fn a_path_that_stops_carrying_raw_esp_is_left() {
    for passes in [[false, false], [true, false], [false, true]] {
        let mut sim = Sim::new([true, true]);
        sim.run(1_000);
        sim.passes = passes;
        sim.run(2_000);
        assert_eq!((sim.raw(), sim.udp()), ([false; 2], [true; 2]));
        sim.assert_smooth(10_000);
    }
}

#[test]
fn an_end_that_restarts_follows_the_other_into_udp_without_waiting_for_its_own_trial() {
    let mut sim = Sim::new([false, false]);
    sim.run(1_000);
    sim.ends[0].way = Way::new(true, LIMITS, sim.now);
    sim.ends[0].said = Said::default();
    sim.rekey(0);
    let said = sim.ends[1].way.say();
    sim.ends[0].way.told(said, sim.now);
    sim.run(50);
    assert!(sim.ends[0].way.wants_udp() && !sim.ends[0].way.uses_raw());
    sim.assert_smooth(5_000);
}

#[test]
fn what_failed_is_remembered_when_all_sas_go() {
    let mut sim = Sim::new([false, false]);
    sim.run(1_000);
    let now = sim.now;
    let way = &mut sim.ends[0].way;
    way.lost(now);
    assert!(way.wants_udp() && !way.uses_raw() && way.say().fallback);
    way.made_udp_only(now);
    assert!(!way.wants_udp() && way.problem().is_none());
}

#[test]
fn a_quiet_pair_is_not_asked() {
    let now = Instant::now();
    let mut way = Way::new(true, LIMITS, now);
    way.found_raw(1, now);
    for second in 0..100 {
        let now = now + Duration::from_secs(second);
        way.traffic(false, None, now);
        assert!(!way.wants_probe(now) && way.uses_raw());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The path changes at any moment, SAs are replaced at any moment, an agent restarts: when it is quiet again, both ends use what
    /// works, and losses end.
    #[test]
    fn whatever_the_path_does_both_ends_end_up_with_what_works(
        changes in proptest::collection::vec((any::<[bool; 2]>(), 0_u64..2_500, 0_usize..6), 1..8),
        last in any::<[bool; 2]>(),
    ) {
        let mut sim = Sim::new([true, true]);
        for (passes, pause, what) in changes {
            sim.passes = passes;
            match what {
                by @ (0 | 1) => sim.rekey(by),
                2 => {
                    sim.ends[0].way = Way::new(true, LIMITS, sim.now);
                    sim.rekey(0);
                    let said = sim.ends[1].way.say();
                    sim.ends[0].way.told(said, sim.now);
                }
                _ => {}
            }
            sim.run(pause);
        }
        sim.passes = last;
        sim.run(12_000);
        let works = last == [true, true];
        prop_assert_eq!((sim.raw(), sim.udp()), ([works; 2], [!works; 2]));
        sim.assert_smooth(8_000);
    }
}
