//! Who starts: crossings, full meshes, and ends that wait for each other. See docs/ike-initiator.md.

use std::time::Duration;

use espalier_ike::{Connect, Event, IkeStatus, Role, limits};

use crate::sim::{AUTH, INIT, Net, Weather, id};

const LONG: Duration = Duration::from_secs(300);
const ROUGH: Weather = Weather {
    latency_ms: (1, 60),
    loss: 10,
    duplication: 10,
};

fn assert_one_each(net: &mut Net, context: &str) {
    net.weather = Weather::FINE;
    net.run(Duration::from_secs(90));
    assert!(net.all_settled(), "{context}: not settled");
    let others = net.nodes.len() - 1;
    for node in 0..net.nodes.len() {
        assert_eq!(
            net.ike_sas(node),
            others,
            "{context}: IKE SAs of node {node}"
        );
    }
}

#[test]
fn both_start_at_the_same_instant_and_one_ike_sa_remains() {
    for seed in 0..200 {
        let mut net = Net::psk_mesh(seed, 2);
        net.weather = ROUGH;
        net.connect_all(Connect::Restart);
        assert!(net.run_until(LONG, Net::all_settled), "seed {seed}");
        assert_one_each(&mut net, &format!("seed {seed}"));
    }
}

#[test]
fn a_crossing_without_loss_makes_one_ike_sa_only() {
    for seed in 0..50 {
        let mut net = Net::psk_mesh(seed, 2);
        net.connect_all(Connect::Restart);
        assert!(
            net.run_until(Duration::from_secs(1), Net::all_settled),
            "seed {seed}"
        );
        assert_one_each(&mut net, &format!("seed {seed}"));
        for node in 0..2 {
            assert_eq!(
                net.count(node, |event| matches!(event, Event::ChildUp { .. })),
                1,
                "seed {seed}"
            );
            assert_eq!(net.failures(node), [""; 0], "seed {seed}");
        }
        assert_eq!(
            net.child_ups(0)[0].0,
            Role::Initiator,
            "seed {seed}: the lower identity's goes on"
        );
    }
}

#[test]
fn under_the_policy_the_lower_identity_starts_and_the_higher_one_waits() {
    let mut net = Net::psk_mesh(1, 2);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(limits::PASSIVE_WAIT, Net::all_settled));
    assert!(
        net.sent
            .iter()
            .filter(|packet| packet.kind() == (INIT, false, 0))
            .all(|packet| { packet.path.local == net.nodes[0].address })
    );
}

#[test]
fn the_higher_identity_starts_when_nothing_came() {
    let mut net = Net::psk_mesh(1, 2);
    net.connect(1, 0, Connect::Policy);
    assert_eq!(net.nodes[1].endpoint.status(&id(0)), IkeStatus::Connecting);
    net.run(limits::PASSIVE_WAIT - Duration::from_millis(1));
    assert_eq!(net.sent.len(), 0);
    assert!(net.run_until(Duration::from_secs(3), Net::all_settled));
}

/// The lower identity's own requests never arrive; the higher one's do.
#[test]
fn a_dead_attempt_of_the_lower_identity_does_not_lock_the_other_out() {
    for blocked in [INIT, AUTH] {
        for seed in 0..20 {
            let mut net = Net::psk_mesh(seed, 2);
            let lower = net.nodes[0].address;
            net.filter = Some(Box::new(move |packet| {
                let (exchange, response, _) = packet.kind();
                packet.path.local != lower || exchange != blocked || response
            }));
            net.connect_all(Connect::Restart);
            let within =
                limits::CROSSING_PATIENCE + limits::CROSSING_WAIT * 2 + Duration::from_secs(2);
            assert!(
                net.run_until(within, Net::all_settled),
                "exchange {blocked} seed {seed}"
            );
            assert_eq!(net.child_ups(1)[0].0, Role::Initiator);
            net.filter = None;
            assert_one_each(&mut net, &format!("exchange {blocked} seed {seed}"));
        }
    }
}

/// The lower identity's IKE_AUTH is accepted but its response never arrives; then the other's is accepted, too.
#[test]
fn two_ike_sas_accepted_on_either_end_end_as_one() {
    for seed in 0..50 {
        let mut net = Net::psk_mesh(seed, 2);
        net.weather = ROUGH;
        let higher = net.nodes[1].address;
        net.filter = Some(Box::new(move |packet| {
            let (exchange, response, _) = packet.kind();
            !(packet.path.local == higher && exchange == AUTH && response)
        }));
        net.connect_all(Connect::Restart);
        net.run(Duration::from_millis(300 + 100 * seed));
        net.filter = None;
        assert!(net.run_until(LONG, Net::all_settled), "seed {seed}");
        assert_one_each(&mut net, &format!("seed {seed}"));
    }
}

#[test]
fn connecting_again_changes_nothing() {
    let mut net = Net::psk_mesh(1, 2);
    for _ in 0..3 {
        net.connect(0, 1, Connect::Policy);
        net.connect(0, 1, Connect::Restart);
    }
    assert!(net.run_until(LONG, Net::all_settled));
    net.connect(0, 1, Connect::Fresh);
    assert_one_each(&mut net, "after");
    assert_eq!(net.child_ups(0).len(), 1);
}

#[test]
fn attempts_go_on_for_ever_with_growing_pauses_and_say_why() {
    let mut net = Net::psk_mesh(1, 2);
    net.nodes[1].up = false;
    net.connect(0, 1, Connect::Policy);
    net.run(Duration::from_secs(600));
    let failures = net.failures(0);
    assert!(
        failures.len() > 5 && failures.len() < 20,
        "{} failures",
        failures.len()
    );
    let text = "no answer from 10.9.0.2:4500 after 6 tries: is UDP 4500 open";
    assert!(
        failures.iter().all(|failure| failure.starts_with(text)),
        "{failures:?}"
    );
    net.nodes[1].up = true;
    assert!(net.run_until(limits::RETRY_MAX * 2, Net::all_settled));
}
