//! Two ends, an ordered lossless channel with latency between them (what IKE makes of the network) and packets that take
//! their own time. Every packet sent must be let in when it arrives.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug)]
enum Letter {
    Announce(Announcement),
    /// IKE_AUTH request: the initiator opens nothing yet.
    Offer(Announcement),
    /// IKE_AUTH response: the responder has its inbound SA.
    Accept(Announcement),
    Delete,
}

struct End {
    pair: Pair,
    /// The inbound SA is installed.
    opens_esp: bool,
    ike: bool,
    asked: bool,
    said: Option<Announcement>,
    inbox: VecDeque<(Instant, Letter)>,
}

struct Sim {
    now: Instant,
    latency: Duration,
    ends: [End; 2],
    /// (arrival, to, sealed)
    packets: VecDeque<(Instant, usize, bool)>,
    lost: Vec<String>,
}

impl Sim {
    fn new(mode: Mode) -> Self {
        Self::with_latency(mode, 40)
    }

    fn with_latency(mode: Mode, latency_ms: u32) -> Self {
        let now = Instant::now();
        let end = || End {
            pair: Pair::new(mode, Observed::default(), Limits::default(), now),
            opens_esp: false,
            ike: false,
            asked: false,
            said: None,
            inbox: VecDeque::new(),
        };
        Self {
            now,
            latency: MS * latency_ms,
            ends: [end(), end()],
            packets: VecDeque::new(),
            lost: Vec::new(),
        }
    }

    fn send(&mut self, from: usize, letter: Letter) {
        let due = self.now + self.latency;
        self.ends[1 - from].inbox.push_back((due, letter));
    }

    /// One millisecond.
    fn tick(&mut self) {
        self.now += MS;
        for me in 0..2 {
            self.receive(me);
            self.ends[me].pair.step(self.now);
            self.drive(me);
            self.emit(me);
        }
        while self
            .packets
            .front()
            .is_some_and(|(due, ..)| *due <= self.now)
        {
            let (_, to, sealed) = self.packets.pop_front().unwrap();
            let end = &self.ends[to];
            let let_in = if sealed {
                end.opens_esp
            } else {
                end.pair.view().accepts_clear
            };
            if !let_in {
                self.lost
                    .push(format!("to {to}, sealed {sealed}, receiver {:?}", end.pair));
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
            let end = &mut self.ends[me];
            match letter {
                Letter::Announce(said) if end.ike => {
                    end.pair.heard(said, now);
                    end.pair.set_esp(true, now); // the initiator is ready: it announces after it installed
                }
                Letter::Announce(_) => {}
                Letter::Offer(said) => {
                    (end.opens_esp, end.ike, end.said) = (true, true, None);
                    end.pair.heard(said, now);
                    let reply = end.pair.announcement(0, Said::default());
                    self.send(me, Letter::Accept(reply));
                }
                Letter::Accept(said) => {
                    (end.opens_esp, end.ike, end.asked, end.said) = (true, true, false, None);
                    end.pair.heard(said, now);
                    end.pair.set_esp(true, now);
                }
                Letter::Delete => self.end_ike(me),
            }
        }
    }

    fn end_ike(&mut self, me: usize) {
        let now = self.now;
        let end = &mut self.ends[me];
        if end.ike {
            (end.opens_esp, end.ike) = (false, false);
            end.pair.ike_down(now);
            end.pair.set_esp(false, now);
        }
    }

    /// End 0 is the deterministic initiator; end 1 offers only what end 0 does not.
    fn drive(&mut self, me: usize) {
        let view = self.ends[me].pair.view();
        let end = &mut self.ends[me];
        let may_ask = me == 0
            || view.effective != Mode::Disabled
                && !end.ike
                && self.ends[0].pair.mode == Mode::Disabled;
        let end = &mut self.ends[me];
        if end.ike && !view.wants_sa && end.pair.esp {
            self.end_ike(me);
            self.send(me, Letter::Delete);
        } else if !end.ike && !end.asked && view.wants_sa && may_ask {
            end.asked = true;
            let said = end.pair.announcement(0, Said::default());
            self.send(me, Letter::Offer(said));
        }
        let end = &mut self.ends[me];
        let news = end.pair.announcement(0, Said::default());
        if end.ike && end.said != Some(news) && (end.pair.esp || end.said.is_some()) {
            end.said = Some(news);
            self.send(me, Letter::Announce(news));
        }
    }

    fn emit(&mut self, me: usize) {
        let due = self.now + MS * 3;
        match self.ends[me].pair.view().sends {
            Sends::Nothing => self
                .lost
                .push(format!("end {me} blocked: {:?}", self.ends[me].pair)),
            sends => self.packets.push_back((due, 1 - me, sends == Sends::Esp)),
        }
    }

    fn run(&mut self, ms: u64) {
        (0..ms).for_each(|_| self.tick());
    }

    fn set(&mut self, me: usize, mode: Mode) {
        let now = self.now;
        self.ends[me].pair.set_mode(mode, Limits::default(), now);
    }

    fn views(&self) -> [View; 2] {
        [self.ends[0].pair.view(), self.ends[1].pair.view()]
    }

    fn assert_settled(&self, mode: Mode) {
        assert_eq!(self.lost, Vec::<String>::new());
        for view in self.views() {
            let expected = if mode == Mode::Disabled {
                Sends::Clear
            } else {
                Sends::Esp
            };
            assert_eq!((view.effective, view.sends), (mode, expected));
            assert_eq!(view.enforced, mode == Mode::Required);
            assert_eq!(view.accepts_clear, mode != Mode::Required);
        }
        assert!(
            mode != Mode::Disabled || self.ends.iter().all(|end| !end.ike),
            "SAs nobody needs are given up"
        );
    }
}

#[test]
fn toggling_both_ends_through_all_modes_loses_nothing() {
    let mut sim = Sim::new(Mode::Disabled);
    for mode in [
        Mode::Required,
        Mode::Disabled,
        Mode::Permissive,
        Mode::Required,
        Mode::Permissive,
        Mode::Disabled,
    ] {
        sim.set(0, mode);
        sim.run(70);
        sim.set(1, mode);
        sim.run(5_000);
        sim.assert_settled(mode);
    }
}

#[test]
fn the_stricter_end_wins_while_policies_differ() {
    let mut sim = Sim::new(Mode::Disabled);
    sim.set(1, Mode::Required);
    sim.run(5_000);
    sim.assert_settled(Mode::Required);
    sim.set(0, Mode::Permissive);
    sim.run(2_000);
    sim.assert_settled(Mode::Required);
}

#[test]
fn s1_a_new_peer_under_required_is_blocked_until_esp_is_ready() {
    let now = Instant::now();
    let mut pair = Pair::new(Mode::Required, Observed::default(), Limits::default(), now);
    let view = pair.view();
    assert_eq!(
        (view.sends, view.accepts_clear, view.wants_sa),
        (Sends::Nothing, false, true)
    );
    pair.step(now + Duration::from_secs(3600));
    assert_eq!(pair.view().sends, Sends::Nothing);
    pair.set_esp(true, now);
    assert_eq!(pair.view().sends, Sends::Esp);
    pair.set_esp(false, now);
    assert_eq!(
        pair.view().sends,
        Sends::Nothing,
        "a lost SA blocks, it never opens"
    );
}

#[test]
fn s1_a_live_pair_without_esp_is_cut_at_the_deadline() {
    let now = Instant::now();
    let mut pair = Pair::new(Mode::Disabled, Observed::default(), Limits::default(), now);
    pair.set_mode(Mode::Required, Limits::default(), now);
    assert_eq!(pair.view().sends, Sends::Clear);
    let deadline = pair.next_timeout().unwrap();
    assert_eq!(deadline, now + Duration::from_secs(60));
    pair.step(deadline);
    let view = pair.view();
    assert_eq!(
        (view.sends, view.accepts_clear, view.enforced, view.expired),
        (Sends::Nothing, false, true, true)
    );
    pair.set_esp(true, deadline);
    assert!(!pair.view().expired);
}

#[test]
fn a_restarted_agent_keeps_what_it_finds() {
    let now = Instant::now();
    let found = Observed {
        sends: Sends::Esp,
        accepts_clear: false,
        esp: true,
    };
    for mode in Mode::ALL {
        let view = Pair::new(mode, found, Limits::default(), now).view();
        assert_eq!(
            (view.sends, view.wants_sa),
            (Sends::Esp, true),
            "{mode}: leaves ESP only by agreement"
        );
    }
    let found = Observed {
        sends: Sends::Clear,
        accepts_clear: true,
        esp: false,
    };
    let view = Pair::new(Mode::Required, found, Limits::default(), now).view();
    assert_eq!(
        (view.sends, view.accepts_clear),
        (Sends::Clear, true),
        "a live pair in transition goes on, until the deadline"
    );
}

#[test]
fn a_peer_that_goes_away_keeps_its_strictness() {
    let now = Instant::now();
    let mut pair = Pair::new(Mode::Disabled, Observed::default(), Limits::default(), now);
    pair.heard(
        Announcement {
            mode: Mode::Required,
            effective: Mode::Required,
            accepts_clear: false,
            retired: false,
            sends: Sends::Esp,
            opens: 7,
            way: Said::default(),
        },
        now,
    );
    pair.set_esp(true, now);
    pair.ike_down(now);
    pair.set_esp(false, now);
    let view = pair.view();
    assert_eq!(
        (view.effective, view.sends, view.wants_sa),
        (Mode::Required, Sends::Nothing, true)
    );
}

#[test]
fn announcements_round_trip_and_bad_ones_are_refused() {
    for mode in Mode::ALL {
        for sends in Announcement::SENDS {
            for accepts_clear in [false, true] {
                let said = Announcement {
                    mode,
                    effective: Mode::Required,
                    accepts_clear,
                    retired: !accepts_clear,
                    sends,
                    opens: 0xdead_beef,
                    way: Said {
                        hears: 0xcafe_babe,
                        fallback: accepts_clear,
                    },
                };
                let bytes = said.to_bytes();
                assert_eq!(Announcement::parse(&bytes), Ok(said));
                let older = Announcement {
                    way: Said::default(),
                    ..said
                };
                assert_eq!(Announcement::parse(&bytes[..8]), Ok(older));
                let newer = [&bytes[..], &[1, 2, 3]].concat();
                assert_eq!(Announcement::parse(&newer), Ok(said));
            }
        }
    }
    for bad in [
        &[][..],
        &[1, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 0],
        &[1, 3, 0, 0, 0, 0, 0, 0],
        &[1, 0x30, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 3, 0, 0, 0, 0],
    ] {
        assert_eq!(
            Announcement::parse(bad),
            Err(AnnouncementError(bad.to_vec()))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Modes change at any moment, on either end, also in the middle of the last change.
    #[test]
    fn no_schedule_of_toggles_loses_a_packet(
        changes in proptest::collection::vec((0_usize..2, 0_usize..3, 0_u64..2_500), 1..10),
        last in 0_usize..3,
        latency_ms in 1_u32..300,
    ) {
        let mut sim = Sim::with_latency(Mode::Disabled, latency_ms);
        for (end, mode, pause) in changes {
            sim.set(end, Mode::ALL[mode]);
            sim.run(pause);
        }
        sim.set(0, Mode::ALL[last]);
        sim.set(1, Mode::ALL[last]);
        sim.run(8_000);
        sim.assert_settled(Mode::ALL[last]);
    }
}
