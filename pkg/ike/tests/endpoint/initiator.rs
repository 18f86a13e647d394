//! The rows of docs/ike-initiator.md that are not about crossings (mesh.rs) and restarts (restart.rs) alone.

use std::time::Duration;

use espalier_ike::wire::{Delete, ExchangeType, Payload};
use espalier_ike::{CloseReason, Connect, Event, IkeStatus, limits};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Raw};
use crate::sim::{ASK, AUTH, INFORMATIONAL, INIT, Net, Weather, address, id, psk};

const LONG: Duration = Duration::from_secs(300);

fn connected(seed: u64) -> Net {
    let mut net = Net::psk_mesh(seed, 2);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled), "seed {seed}");
    net.run(Duration::from_secs(1));
    net
}

fn finish(net: &mut Net, context: &str) {
    net.weather = Weather::FINE;
    net.run(Duration::from_secs(150));
    assert!(net.all_settled(), "{context}");
    net.assert_nothing_orphaned(context);
}

#[test]
fn one_end_restarts_while_the_others_handshake_is_under_way() {
    for seed in 0..120 {
        let mut net = Net::psk_mesh(seed, 2);
        net.weather = Weather {
            latency_ms: (1, 30),
            loss: 5,
            duplication: 5,
        };
        let restarts = usize::from(seed % 2 == 0);
        net.connect(1 - restarts, restarts, Connect::Restart);
        net.run(Duration::from_millis(seed));
        net.restart(restarts, &psk(7));
        net.connect(restarts, 1 - restarts, Connect::Restart);
        finish(&mut net, &format!("seed {seed}"));
    }
}

#[test]
fn one_end_restarts_afresh_while_the_other_replaces_what_it_has() {
    for seed in 0..60 {
        let mut net = connected(seed);
        net.strict = false; // the other end seals into the void meanwhile
        let lost = usize::from(seed % 2 == 0);
        net.restart(1 - lost, &psk(7));
        net.connect(1 - lost, lost, Connect::Restart);
        net.run(Duration::from_millis(seed / 8));
        net.nodes[lost].plane.clear();
        net.restart(lost, &psk(7));
        net.connect(lost, 1 - lost, Connect::Fresh);
        finish(&mut net, &format!("seed {seed}"));
    }
}

/// By the length of IKE_AUTH: the notify has eight bytes, and all else is the same.
#[test]
fn only_a_fresh_start_says_initial_contact_and_says_it_once() {
    let request = |why| {
        let mut net = Net::psk_mesh(1, 2);
        net.connect(0, 1, why);
        net.run(Duration::from_secs(2));
        let auth = |net: &Net| {
            let asks = |packet: &&crate::sim::Packet| {
                let (exchange, answer, _) = packet.kind();
                (exchange, answer) == (AUTH, ASK)
            };
            let sent: Vec<usize> = net
                .sent
                .iter()
                .filter(asks)
                .map(|p| p.payload.len())
                .collect();
            sent
        };
        let first = auth(&net);
        assert_eq!(first.len(), 1);
        // The peer is gone and comes back: what this node has of it is not nothing any more.
        net.nodes[1].up = false;
        net.run(Duration::from_secs(120));
        net.restart(1, &psk(7));
        net.nodes[1].up = true;
        net.run(Duration::from_secs(60));
        (first[0], auth(&net)[1])
    };
    let ((policy, _), (restart, again)) = (request(Connect::Policy), request(Connect::Restart));
    let (fresh, later) = request(Connect::Fresh);
    assert_eq!(
        (policy, restart, again, later),
        (restart, again, later, policy)
    );
    assert_eq!(fresh, restart + 8);
}

#[test]
fn initial_contact_deletes_nothing_before_the_new_child_sa_is_confirmed_and_drained() {
    let mut net = connected(1);
    net.strict = false;
    net.by_hand();
    net.nodes[1].plane.clear();
    net.restart(1, &psk(7));
    net.connect(1, 0, Connect::Fresh);
    net.exchange(1, INIT);
    net.exchange(1, AUTH);
    let down = |event: &Event| matches!(event, Event::ChildDown { .. });
    let open = |net: &Net| net.nodes[0].plane[&id(1)].inbound.len();
    assert_eq!((open(&net), net.count(0, down)), (2, 0), "both are there");
    net.exchange(1, INFORMATIONAL);
    net.run(limits::DRAIN - Duration::from_millis(10));
    assert_eq!((open(&net), net.count(0, down)), (2, 0), "and drain");
    net.run(Duration::from_millis(20));
    assert_eq!((open(&net), net.count(0, down)), (1, 1));
    net.let_go();
    finish(&mut net, "after");
}

#[test]
fn a_delete_of_a_newer_ike_sa_that_was_never_used_leaves_the_older_one_in_use() {
    let mut net = Net::psk_mesh(1, 2);
    let [mut older, mut newer] = [4711, 4712].map(|spi| {
        let mut raw = Raw::init(&mut net, address(1), 0, true);
        let child = raw::child(spi, address(1), address(0));
        let psk = SecretBytes::copy_from(&[7; 32]);
        raw.auth_psk(&mut net, "node-01", &psk, &child).unwrap();
        raw
    });
    let delete = [Payload::Delete(Delete::Ike)];
    newer
        .ask(&mut net, ExchangeType::Informational, &delete)
        .unwrap();
    assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::Established);
    let outbound: Vec<u32> = net.nodes[0].plane[&id(1)]
        .outbound
        .iter()
        .map(|(spi, _)| *spi)
        .collect();
    assert_eq!(outbound, [4711]);
    assert!(
        older
            .ask(&mut net, ExchangeType::Informational, &[])
            .is_some()
    );
    // The DELETE of the last one takes all with it.
    older
        .ask(&mut net, ExchangeType::Informational, &delete)
        .unwrap();
    let gone = |event: &Event| matches!(event, Event::IkeDown { reason, .. } if *reason == CloseReason::Peer);
    assert_eq!(net.count(0, gone), 1);
    assert!(net.nodes[0].plane[&id(1)].inbound.is_empty());
}
