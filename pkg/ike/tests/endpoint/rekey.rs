//! Rekeys of CHILD_SAs and IKE SAs between two endpoints: hitless, colliding, and against everything else (RFC 7296 §2.8,
//! §2.25). After every step the simulation checks that nobody seals with what the other end cannot open.

use std::collections::BTreeSet;
use std::time::Duration;

use espalier_ike::{CloseReason, Connect, Event, Rekeying, Role, limits};

use crate::sim::{CREATE_CHILD, INIT, Net, Weather, id};

const LONG: Duration = Duration::from_secs(300);
const ROUGH: Weather = Weather {
    latency_ms: (1, 120),
    loss: 15,
    duplication: 15,
};

fn connected(seed: u64) -> Net {
    let mut net = Net::psk_mesh(seed, 2);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled), "seed {seed}");
    net.run(Duration::from_secs(1));
    net
}

fn downs(net: &Net, node: usize) -> Vec<CloseReason> {
    let down = |event: &Event| match event {
        Event::ChildDown { reason, .. } => Some(*reason),
        _ => None,
    };
    net.nodes[node].log.iter().filter_map(down).collect()
}

fn sent(net: &Net, exchange: u8) -> usize {
    let of_kind = |packet: &&crate::sim::Packet| packet.kind().0 == exchange;
    net.sent.iter().filter(of_kind).count()
}

/// One IKE SA and one CHILD_SA pair on both ends, and none that came from outside a rekey.
fn assert_one(net: &mut Net, context: &str) {
    net.weather = Weather::FINE;
    net.run(limits::REKEYED_LINGER + Duration::from_secs(30));
    assert!(net.all_settled(), "{context}: not settled");
    for node in 0..2 {
        assert_eq!(net.ike_sas(node), 1, "{context}: IKE SAs of node {node}");
        let down = |event: &Event| matches!(event, Event::IkeDown { .. });
        assert_eq!(net.count(node, down), 0, "{context}: IkeDown on {node}");
        let replaced = |reason: &CloseReason| *reason == CloseReason::Replaced;
        assert!(downs(net, node).iter().all(replaced), "{context}");
    }
}

#[test]
fn either_end_replaces_a_child_sa_without_a_gap() {
    for initiator in [0, 1] {
        let mut net = connected(1);
        let inits = sent(&net, INIT);
        net.rekey_child(initiator, 1 - initiator);
        net.run(Duration::from_secs(1));
        let ups: Vec<_> = (0..2).map(|node| net.child_ups(node)[1].clone()).collect();
        assert_eq!(ups[initiator].0, Role::Initiator);
        assert_eq!(ups[1 - initiator].0, Role::Responder);
        assert_eq!(ups[0].1.keys_in, ups[1].1.keys_out);
        assert_eq!(ups[0].1.keys_out, ups[1].1.keys_in);
        assert_eq!(ups[0].1.local_ts, ups[1].1.remote_ts);
        assert_ne!(ups[0].1.keys_in, net.child_ups(0)[0].1.keys_in);
        for (node, up) in ups.iter().enumerate() {
            let pair = &net.nodes[node].plane[&id(1 - node)];
            assert_eq!(pair.seals, Some(up.1.spi_out), "both have switched");
            assert_eq!(pair.inbound.len(), 2, "the old one drains");
        }
        net.run(limits::DRAIN + Duration::from_secs(1));
        for node in 0..2 {
            assert_eq!(downs(&net, node), [CloseReason::Replaced]);
        }
        assert_eq!(sent(&net, INIT), inits);
        assert_one(&mut net, "after");
    }
}

#[test]
fn nothing_goes_before_the_peer_is_known_to_be_ready() {
    let mut net = connected(1);
    // The answer arrives, but nothing that the initiator says after it.
    let node = net.nodes[0].address;
    net.filter = Some(Box::new(move |packet| {
        packet.path.local != node || packet.kind().0 == CREATE_CHILD
    }));
    net.rekey_child(0, 1);
    net.run(limits::DRAIN * 2);
    assert_eq!(net.child_ups(1).len(), 2);
    let responder = &net.nodes[1].plane[&id(0)];
    assert_eq!(responder.seals, Some(net.child_ups(1)[0].1.spi_out));
    assert_eq!(downs(&net, 0), []);
    net.filter = None;
    assert!(net.run_until(LONG, Net::all_settled));
    assert_one(&mut net, "after");
}

#[test]
fn what_the_peer_says_by_itself_does_not_end_what_it_still_uses() {
    let mut net = connected(1);
    let node = net.nodes[0].address;
    // The initiator can answer, but its own announcement does not arrive.
    net.filter = Some(Box::new(move |packet| {
        let (exchange, response, _) = packet.kind();
        packet.path.local != node || exchange == CREATE_CHILD || response
    }));
    net.rekey_child(0, 1);
    net.run(Duration::from_millis(100));
    net.announce(1, 0, b"something else");
    net.run(limits::DRAIN * 2);
    assert_eq!(downs(&net, 0), []);
    net.filter = None;
    assert!(net.run_until(LONG, Net::all_settled));
    assert_one(&mut net, "after");
}

#[test]
fn rekeys_in_bad_weather_end_with_one_pair() {
    for seed in 0..100 {
        let mut net = connected(seed);
        net.weather = ROUGH;
        for round in 0..4 {
            net.rekey_child((seed as usize + round) % 2, (seed as usize + round + 1) % 2);
            net.run(Duration::from_secs(9));
        }
        assert_one(&mut net, &format!("seed {seed}"));
        assert!(net.child_ups(0).len() >= 4, "seed {seed}");
    }
}

#[test]
fn both_ends_rekey_the_same_child_sa_at_once() {
    let mut winners = BTreeSet::new();
    for seed in 0..60 {
        let mut net = connected(seed);
        net.rekey_child(0, 1);
        net.rekey_child(1, 0);
        net.run(Duration::from_secs(1));
        // The loser never hands out its own; the winner sees the other's come and go.
        let ups = [net.child_ups(0), net.child_ups(1)];
        let winner = usize::from(ups[1].len() == 3);
        assert_eq!(
            (ups[winner].len(), ups[1 - winner].len()),
            (3, 2),
            "seed {seed}"
        );
        assert_eq!(ups[winner][2].0, Role::Initiator);
        assert_eq!(ups[1 - winner][1].0, Role::Responder);
        winners.insert(winner);
        assert_one(&mut net, &format!("seed {seed}"));
    }
    assert_eq!(winners.len(), 2, "the nonces decide");
}

#[test]
fn crossing_child_rekeys_in_bad_weather_end_with_one_pair() {
    for seed in 0..150 {
        let mut net = connected(seed);
        net.weather = ROUGH;
        net.rekey_child(0, 1);
        net.run(Duration::from_millis(seed % 5 * 40));
        net.rekey_child(1, 0);
        net.run(Duration::from_secs(20));
        assert_one(&mut net, &format!("seed {seed}"));
    }
}

#[test]
fn an_ike_sa_is_rekeyed_and_keeps_its_child_sas() {
    for initiator in [0, 1] {
        let mut net = connected(1);
        net.rekey_ike(initiator, 1 - initiator);
        net.run(Duration::from_secs(2));
        for node in 0..2 {
            assert_eq!(net.child_ups(node).len(), 1, "the CHILD_SA stays");
            assert_eq!(downs(&net, node), []);
        }
        let before = net.sent.len();
        net.announce(0, 1, b"news");
        net.announce(1, 0, b"other news");
        net.run(Duration::from_secs(1));
        let ids = net.sent[before..].iter().map(|packet| packet.kind().2);
        assert!(ids.max() < Some(3), "message IDs start at 0");
        for (node, data) in [(1, &b"news"[..]), (0, b"other news")] {
            let heard =
                |event: &Event| matches!(event, Event::Announcement { data: d, .. } if d == data);
            assert_eq!(net.count(node, heard), 1);
        }
        net.rekey_child(1, 0);
        net.run(Duration::from_secs(10));
        net.rekey_ike(1 - initiator, initiator);
        assert_one(&mut net, "after");
        assert_eq!(net.child_ups(0).len(), 2);
    }
}

#[test]
fn both_ends_rekey_the_ike_sa_at_once() {
    for seed in 0..60 {
        let mut net = connected(seed);
        net.rekey_ike(0, 1);
        net.rekey_ike(1, 0);
        net.run(Duration::from_secs(1));
        net.rekey_child(0, 1);
        net.run(Duration::from_secs(10));
        assert_eq!(net.child_ups(1).len(), 2, "seed {seed}: on the new one");
        assert_one(&mut net, &format!("seed {seed}"));
    }
}

#[test]
fn crossing_rekeys_of_all_kinds_in_bad_weather_end_with_one_of_each() {
    for seed in 0..200 {
        let mut net = connected(seed);
        net.weather = ROUGH;
        net.rekey_ike(0, 1);
        net.run(Duration::from_millis(seed % 7 * 30));
        match seed % 3 {
            0 => net.rekey_ike(1, 0),
            1 => net.rekey_child(1, 0),
            _ => net.announce(1, 0, b"meanwhile"),
        }
        net.run(Duration::from_secs(40));
        assert_one(&mut net, &format!("seed {seed}"));
    }
}

#[test]
fn a_disconnect_within_any_rekey_leaves_nothing_on_either_end() {
    for seed in 0..120 {
        let mut net = connected(seed);
        net.strict = false;
        net.weather = ROUGH;
        match seed % 3 {
            0 => net.rekey_ike(0, 1),
            1 => net.rekey_child(0, 1),
            _ => (0..2).for_each(|node| net.rekey_ike(node, 1 - node)),
        }
        net.run(Duration::from_millis(seed % 9 * 25));
        let now = net.now;
        for node in [0, 1] {
            net.nodes[node].endpoint.disconnect(&id(1 - node), now);
            net.pump(node);
            net.run(Duration::from_millis(seed * 7));
        }
        net.weather = Weather::FINE;
        net.run(LONG);
        for node in 0..2 {
            assert_eq!(net.ike_sas(node), 0, "seed {seed} node {node}");
            let pair = &net.nodes[node].plane[&id(1 - node)];
            assert!(pair.inbound.is_empty(), "seed {seed} node {node}");
        }
    }
}

fn short() -> Rekeying {
    Rekeying {
        child_soft: Duration::from_secs(60),
        ike_soft: Duration::from_secs(600),
        ..Rekeying::default()
    }
}

#[test]
fn the_lower_identity_rekeys_at_the_soft_lifetime() {
    let mut net = Net::psk_mesh(3, 2);
    (0..2).for_each(|node| net.set_rekeying(node, short()));
    net.connect_all(Connect::Policy);
    net.run(Duration::from_secs(3600));
    let ups = net.child_ups(0);
    assert!((60..=68).contains(&ups.len()), "{} CHILD_SAs", ups.len());
    assert!(ups.iter().all(|(role, ..)| *role == Role::Initiator));
    net.run(Duration::from_secs(7));
    assert_one(&mut net, "after an hour");
}

#[test]
fn the_higher_identity_rekeys_if_the_lower_one_does_not() {
    let mut net = Net::psk_mesh(3, 2);
    net.set_rekeying(1, short());
    net.connect_all(Connect::Policy);
    net.run(Duration::from_secs(90));
    let ups = net.child_ups(1);
    assert_eq!(ups.len(), 2);
    assert_eq!(ups[1].0, Role::Initiator);
}

#[test]
fn a_mesh_does_not_rekey_in_step() {
    let mut net = Net::psk_mesh(3, 8);
    (0..8).for_each(|node| net.set_rekeying(node, short()));
    net.connect_all(Connect::Policy);
    net.run(Duration::from_secs(50));
    let before = sent(&net, CREATE_CHILD);
    let mut most = 0;
    for _ in 0..12 {
        let count = sent(&net, CREATE_CHILD);
        net.run(Duration::from_secs(1));
        most = most.max(sent(&net, CREATE_CHILD) - count);
    }
    assert_eq!(sent(&net, CREATE_CHILD) - before, 2 * 28);
    assert!(most < 28, "{most} messages in one second");
}

#[test]
fn nothing_outlives_the_hard_lifetime() {
    let mut net = Net::psk_mesh(3, 2);
    let hard = Rekeying {
        child_hard: Duration::from_secs(100),
        ..Rekeying::default()
    };
    net.set_rekeying(0, hard);
    net.connect_all(Connect::Policy);
    net.run(Duration::from_secs(99));
    assert_eq!(net.child_ups(0).len(), 1);
    net.strict = false;
    net.run(Duration::from_secs(20));
    assert_eq!(downs(&net, 0), [CloseReason::Local]);
    assert_eq!(net.child_ups(0).len(), 2, "a new handshake follows");
    assert!(net.all_settled());
}
