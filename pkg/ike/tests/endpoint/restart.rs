//! Endpoints that start anew while data planes and the other ends go on. After each step of these tests the network checks
//! that nobody seals with an SPI that the other end cannot open.

use std::time::Duration;

use espalier_ike::{CloseReason, Connect, Event, limits};

use crate::sim::{Net, Weather, id, psk};

const LONG: Duration = Duration::from_secs(300);
const ROUGH: Weather = Weather {
    latency_ms: (1, 60),
    loss: 15,
    duplication: 10,
};

fn connected(seed: u64) -> Net {
    let mut net = Net::psk_mesh(seed, 2);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled), "seed {seed}");
    net.run(Duration::from_secs(20));
    net.weather = ROUGH;
    net
}

fn seals(net: &Net, node: usize) -> Option<u32> {
    net.nodes[node]
        .plane
        .values()
        .next()
        .and_then(|pair| pair.seals)
}

fn assert_replaced(net: &mut Net, old: [Option<u32>; 2], context: &str) {
    assert!(old.iter().all(Option::is_some));
    let moved = |net: &Net| (0..2).all(|node| seals(net, node) != old[node]);
    assert!(
        net.run_until(LONG, |net| moved(net) && net.all_settled()),
        "{context}"
    );
    net.weather = Weather::FINE;
    net.run(Duration::from_secs(90));
    assert!(
        net.all_settled() && (net.ike_sas(0), net.ike_sas(1)) == (1, 1),
        "{context}"
    );
}

#[test]
fn one_end_restarts_and_its_sas_are_replaced_without_a_gap() {
    for seed in 0..100 {
        for restarted in [0, 1] {
            let mut net = connected(seed);
            let old = [seals(&net, 0), seals(&net, 1)];
            net.restart(restarted, &psk(7));
            net.connect(restarted, 1 - restarted, Connect::Restart);
            assert_replaced(&mut net, old, &format!("seed {seed}, node {restarted}"));
            let replaced = |event: &Event| {
                matches!(
                    event,
                    Event::ChildDown {
                        reason: CloseReason::Replaced,
                        ..
                    }
                )
            };
            // In weather like this a first new one may be lost again on one end.
            let before_the_last = net.child_ups(1 - restarted).len() - 1;
            let gone = net.count(1 - restarted, replaced);
            assert_eq!(gone, before_the_last, "seed {seed}");
        }
    }
}

#[test]
fn both_ends_restart_and_their_sas_are_replaced_without_a_gap() {
    for seed in 0..100 {
        let mut net = connected(seed);
        let old = [seals(&net, 0), seals(&net, 1)];
        net.restart(0, &psk(7));
        net.restart(1, &psk(7));
        net.connect_all(Connect::Restart);
        assert_replaced(&mut net, old, &format!("seed {seed}"));
    }
}

#[test]
fn an_end_restarts_again_and_again_before_anything_is_confirmed() {
    for seed in 0..40 {
        let mut net = connected(seed);
        let old = [seals(&net, 0), seals(&net, 1)];
        for round in 0..4 {
            let restarted = usize::from((seed + round) % 3 == 0);
            net.restart(restarted, &psk(7));
            net.connect(restarted, 1 - restarted, Connect::Restart);
            net.run(Duration::from_millis(37 * (seed % 7)));
        }
        assert_replaced(&mut net, old, &format!("seed {seed}"));
    }
}

#[test]
fn the_old_sas_stay_until_the_new_one_is_confirmed_and_drained() {
    let mut net = connected(1);
    net.weather = Weather::FINE;
    net.nodes[0].log.clear();
    net.restart(1, &psk(7));
    net.connect(1, 0, Connect::Restart);
    let confirmed =
        |net: &Net| net.count(0, |event| matches!(event, Event::Announcement { .. })) > 0;
    assert!(net.run_until(LONG, confirmed));
    let down = |event: &Event| matches!(event, Event::ChildDown { .. });
    net.run(limits::DRAIN - Duration::from_millis(10));
    assert_eq!(net.count(0, down), 0);
    net.run(Duration::from_millis(20));
    assert_eq!(net.count(0, down), 1);
    assert_eq!(
        net.count(0, |event| matches!(event, Event::IkeDown { .. })),
        0
    );
}

/// A node that lost its data plane, too, says so; the other end's old SAs go only after the new one works.
#[test]
fn a_node_that_lost_everything_starts_afresh() {
    for seed in 0..50 {
        let mut net = connected(seed);
        let lost = usize::from(seed % 2 == 0);
        net.strict = false;
        net.nodes[lost].plane.clear();
        net.restart(lost, &psk(7));
        net.connect(lost, 1 - lost, Connect::Fresh);
        assert!(net.run_until(LONG, Net::all_settled), "seed {seed}");
        net.strict = true;
        net.run(Duration::from_secs(60));
        assert!(net.all_settled(), "seed {seed}");
    }
}

/// Both ends hold an IKE SA; the one that makes a new one deletes the old one at the other end.
#[test]
fn reserved_spis_are_not_chosen() {
    let mut net = connected(3);
    let adopted: Vec<u32> = net.nodes[0].plane[&id(1)].inbound.keys().copied().collect();
    net.restart(0, &psk(7));
    net.connect(0, 1, Connect::Restart);
    assert!(net.run_until(LONG, |net| !net.child_ups(0).is_empty()));
    assert!(
        net.child_ups(0)
            .iter()
            .all(|(_, child, _)| !adopted.contains(&child.spi_in))
    );
}
