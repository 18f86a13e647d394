use std::time::{Duration, Instant};

use espalier_dataplane_core::{Direction, Error, Frozen, Progress, Spi};

use espalier_esp::wire::ecn;

use crate::control::{Control, Ways};
use crate::drops::Reason;
use crate::fixture::{self, PORT, hosts, pod_packet};
use crate::path_tests;
use crate::rx::{self, Verdict};

const THERE: (&str, &str) = ("10.244.1.2", "10.244.2.2");

fn seal(control: &Control) -> Vec<u8> {
    let packet = pod_packet(THERE.0, THERE.1);
    path_tests::seal(&control.tables(), &packet).unwrap()
}

/// How a receiver judges a datagram: none, or why it is dropped.
fn judged(control: &Control, datagram: &[u8]) -> Option<Reason> {
    let mut datagram = datagram.to_vec();
    match rx::judge(
        &control.tables(),
        &mut datagram,
        ecn::NOT_ECT,
        Instant::now(),
    ) {
        Verdict::Packet(..) => None,
        Verdict::Drop(reason, _) => Some(reason),
        other => panic!("{other:?}"),
    }
}

fn sequence(datagram: &[u8]) -> u64 {
    u64::from_be_bytes(datagram[8..16].try_into().unwrap())
}

fn resumed(frozen: &Frozen) -> Control {
    Control::resume(Ways::all(PORT), frozen.clone(), Instant::now()).unwrap()
}

fn refused(frozen: Frozen) -> String {
    let resumed = Control::resume(Ways::all(PORT), frozen, Instant::now());
    resumed.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn what_is_taken_over_is_what_was_frozen() {
    let (one, two) = hosts();
    for _ in 0..5 {
        assert_eq!(judged(&two, &seal(&one)), None);
    }
    let now = Instant::now();
    for control in [one, two] {
        let frozen = control.freeze(now);
        let next = Control::resume(Ways::all(PORT), frozen.clone(), now).unwrap();
        assert_eq!(next.freeze(now), frozen);
        assert_eq!(next.sas(now), control.sas(now));
    }
}

#[test]
fn s3_s4_what_is_there_is_not_older_than_what_was_before_it() {
    let (mut one, _) = hosts();
    // The oldest ones are of SAs that are gone.
    one.remove_sa(Direction::In, Spi(0x2100));
    let young = fixture::sa(2, Direction::In, 0x0100);
    one.install_sa(young, Instant::now()).unwrap();
    let frozen = one.freeze(Instant::now());
    assert_eq!(frozen.used.keys.len(), 3);
    assert_eq!(resumed(&frozen).freeze(Instant::now()).used, frozen.used);
}

#[test]
fn s4_the_sequence_goes_on_behind_the_last_number_used() {
    let (mut one, two) = hosts();
    let mut last = 0;
    for _ in 0..4 {
        for _ in 0..3 {
            let datagram = seal(&one);
            assert_eq!(sequence(&datagram), last + 1);
            assert_eq!(judged(&two, &datagram), None);
            last += 1;
        }
        one = resumed(&one.freeze(Instant::now()));
    }
}

#[test]
fn the_replay_window_is_kept_bit_by_bit() {
    let (one, two) = hosts();
    let datagrams: Vec<_> = (0..2500).map(|_| seal(&one)).collect();
    // Every third is late, some too late for a window of 1,024.
    let late = |at: &usize| at.is_multiple_of(3);
    for at in (0..datagrams.len()).filter(|at| !late(at)) {
        assert_eq!(judged(&two, &datagrams[at]), None);
    }
    let two = resumed(&two.freeze(Instant::now()));
    for (at, datagram) in datagrams.iter().enumerate() {
        let expected = match (at + 1024 < datagrams.len() - 1, late(&at)) {
            (true, _) => Some(Reason::BadIcv), // taken for one of the next 2^32
            (false, true) => None,
            (false, false) => Some(Reason::Replayed),
        };
        assert_eq!(judged(&two, datagram), expected, "packet {at}");
    }
}

#[test]
fn a_proven_sa_is_not_announced_again() {
    let (one, two) = hosts();
    assert_eq!(judged(&two, &seal(&one)), None);
    let two = resumed(&two.freeze(Instant::now()));
    let mut next = seal(&one);
    let verdict = rx::judge(&two.tables(), &mut next, ecn::NOT_ECT, Instant::now());
    assert!(matches!(verdict, Verdict::Packet(_, None)), "{verdict:?}");
}

#[test]
fn s3_s4_keys_and_spis_of_removed_sas_stay_used() {
    let (mut one, _) = hosts();
    one.remove_sa(Direction::Out, Spi(0x1200));
    let mut next = resumed(&resumed(&one.freeze(Instant::now())).freeze(Instant::now()));
    let again = next.install_sa(fixture::sa(2, Direction::Out, 0x1200), Instant::now());
    assert!(
        matches!(again, Err(Error::SpiReused(Spi(0x1200)))),
        "{again:?}"
    );
    let mut same_key = fixture::sa(2, Direction::In, 0x1200);
    same_key.spi = Spi(0x7777);
    let again = next
        .install_sa(same_key, Instant::now())
        .unwrap_err()
        .to_string();
    assert!(again.contains("S3, S4"), "{again}");
}

#[test]
fn ages_go_on() {
    let (one, _) = hosts();
    seal(&one);
    let (now, hour) = (Instant::now(), Duration::from_secs(3600));
    let frozen = one.freeze(now + hour);
    let next = Control::resume(Ways::all(PORT), frozen, now).unwrap();
    let sas = next.sas(now + hour);
    let sealing = sas.iter().find(|sa| sa.active).unwrap();
    let idle = sealing.idle_ms.unwrap();
    assert!((7199..=7201).contains(&sealing.age_s), "{sealing:?}");
    assert!((7_199_000..=7_201_000).contains(&idle), "{sealing:?}");
}

#[test]
fn what_no_process_leaves_is_refused_by_name() {
    let (one, _) = hosts();
    let good = one.freeze(Instant::now());
    let changed = |change: &dyn Fn(&mut Frozen)| {
        let mut frozen = good.clone();
        change(&mut frozen);
        refused(frozen)
    };
    let outbound = good.sas.len() - 1;
    let said = changed(&|frozen| frozen.peers[1] = frozen.peers[0].clone());
    assert!(said.contains("node-2 is there twice"), "{said}");
    let said = changed(&|frozen| frozen.peers.clear());
    assert!(
        said.contains("node-2") && said.contains("not known"),
        "{said}"
    );
    let said = changed(&|frozen| frozen.sas[0].sa.spi = Spi(7));
    assert!(said.contains("spi") && said.contains("reserved"), "{said}");
    let said = changed(&|frozen| frozen.sas.push(frozen.sas[outbound].clone()));
    assert!(said.contains("installed before"), "{said}");
    let said = changed(&|frozen| frozen.sas[0].progress = Progress::Sealed { last: 1 });
    assert!(said.contains("progress"), "{said}");
    let said = changed(&|frozen| {
        if let Progress::Opened { words, .. } = &mut frozen.sas[0].progress {
            words.pop();
        }
    });
    assert!(said.contains("window"), "{said}");
    let said = changed(&|frozen| frozen.peers[0].active = Some(Spi(0x4242)));
    assert!(said.contains("00004242"), "{said}");
}
