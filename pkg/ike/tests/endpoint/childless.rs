//! IKE SAs that begin without CHILD_SA (RFC 6023), the first one following by CREATE_CHILD_SA.

use std::time::Duration;

use espalier_ike::crypto::{KexGroup, KeyExchange};
use espalier_ike::wire::{
    self, ExchangeType, Nonce, NotifyType, Payload, Transform, TransformType,
};
use espalier_ike::{
    ChildId, CloseReason, Connect, Event, Holdings, IkeStatus, PeerConfig, Role, limits,
};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Raw};
use crate::sim::{AUTH, CREATE_CHILD, INIT, Net, Weather, address, id, peer_config, psk};

const LONG: Duration = Duration::from_secs(300);
const ROUGH: Weather = Weather {
    latency_ms: (1, 120),
    loss: 15,
    duplication: 15,
};

fn put(net: &mut Net, own: usize, change: impl Fn(&mut PeerConfig)) {
    let mut config = peer_config(own, 1 - own, psk(7));
    config.childless = true;
    change(&mut config);
    let now = net.now;
    net.nodes[own].endpoint.put_peer(config, now).unwrap();
}

fn pair(seed: u64) -> Net {
    let mut net = Net::new(seed, 2, None);
    (0..2).for_each(|own| put(&mut net, own, |_| ()));
    net
}

fn sent(net: &Net, exchange: u8) -> usize {
    net.sent
        .iter()
        .filter(|packet| packet.kind().0 == exchange)
        .count()
}

#[test]
fn the_first_child_sa_follows_with_a_key_exchange_of_its_own() {
    for initiator in [0, 1] {
        let mut net = pair(1);
        net.connect(initiator, 1 - initiator, Connect::Fresh);
        assert!(net.run_until(LONG, Net::all_settled));
        let counts = [INIT, AUTH, CREATE_CHILD].map(|exchange| sent(&net, exchange));
        assert_eq!(counts, [2, 2, 2]);
        let [here, there] = [initiator, 1 - initiator].map(|node| net.child_ups(node)[0].clone());
        assert_eq!((here.0, there.0), (Role::Initiator, Role::Responder));
        assert_eq!(
            (&here.1.keys_in, &here.1.keys_out),
            (&there.1.keys_out, &there.1.keys_in)
        );
        assert_eq!((here.1.id, there.1.id), (ChildId::FIRST, ChildId::FIRST));
        net.run(Duration::from_secs(5));
        for node in 0..2 {
            let up = |event: &Event| matches!(event, Event::IkeUp { .. });
            let heard = |event: &Event| matches!(event, Event::Announcement { .. });
            assert_eq!((net.count(node, up), net.count(node, heard)), (1, 1));
            assert_eq!(
                net.nodes[node].endpoint.status(&id(1 - node)),
                IkeStatus::Established
            );
        }
        net.rekey_child(1 - initiator, initiator);
        net.run(limits::REKEYED_LINGER);
        net.assert_nothing_orphaned("after a rekey");
    }
}

#[test]
fn crossing_starts_in_bad_weather_end_with_one_of_each() {
    for seed in 0..100 {
        let mut net = pair(seed);
        if seed % 3 == 0 {
            put(&mut net, (seed / 3 % 2) as usize, |config| {
                config.childless = false
            });
        }
        net.weather = ROUGH;
        for own in 0..2 {
            net.connect(own, 1 - own, Connect::Fresh);
            net.run(Duration::from_millis(seed % 7 * 40));
        }
        assert!(
            net.run_until(LONG, Net::all_settled),
            "seed {seed}: {:?}",
            net.failures(0)
        );
        net.weather = Weather::FINE;
        net.run(limits::REKEYED_LINGER * 2);
        assert!(net.all_settled(), "seed {seed}");
        net.assert_nothing_orphaned(&format!("seed {seed}"));
    }
}

#[test]
fn a_restart_is_without_a_gap() {
    for node in [0, 1] {
        let mut net = pair(1);
        net.connect_all(Connect::Policy);
        assert!(net.run_until(LONG, Net::all_settled));
        net.restart(node, &psk(7));
        put(&mut net, node, |_| ());
        net.connect(node, 1 - node, Connect::Restart);
        net.run(limits::REKEYED_LINGER);
        assert!(net.all_settled());
        net.assert_nothing_orphaned("after a restart");
        let lost = |event: &Event| matches!(event, Event::ChildDown { reason, .. } if *reason != CloseReason::Replaced);
        assert_eq!(net.count(1 - node, lost), 0);
    }
}

#[test]
fn a_refused_child_sa_is_reported_and_tried_again() {
    let mut net = pair(1);
    put(&mut net, 1, |config| config.child.remote_ts[0].protocol = 6);
    net.connect(0, 1, Connect::Policy);
    net.run(Duration::from_secs(20));
    let failures = net.failures(0);
    assert!(failures.len() > 1, "{failures:?}");
    assert!(
        failures[0].contains("refused the CHILD_SA with TsUnacceptable"),
        "{failures:?}"
    );
    let up = |event: &Event| matches!(event, Event::IkeUp { .. });
    assert_eq!((net.count(0, up), net.count(1, up)), (0, 0));
    put(&mut net, 1, |_| ());
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(limits::REKEYED_LINGER);
    net.assert_nothing_orphaned("in the end");
}

#[test]
fn a_peer_that_falls_silent_or_is_not_wanted_any_more_leaves_nothing() {
    for (silent, seed) in (0..40).map(|seed| (seed % 2 == 0, seed)) {
        let mut net = pair(seed);
        net.weather = ROUGH;
        net.strict = false;
        net.connect(0, 1, Connect::Policy);
        net.run(Duration::from_millis(seed * 20));
        if silent {
            net.nodes[1].up = false;
            net.run(Duration::from_secs(150));
            assert_eq!(
                net.nodes[0].endpoint.status(&id(1)),
                IkeStatus::Connecting,
                "seed {seed}"
            );
            net.nodes[1].up = true;
        }
        net.disconnect(0, 1);
        net.disconnect(1, 0);
        net.weather = Weather::FINE;
        net.run(LONG);
        for node in 0..2 {
            assert_eq!(
                net.nodes[node].endpoint.holdings(),
                Holdings::default(),
                "seed {seed}"
            );
        }
    }
}

#[test]
fn a_peer_made_by_hand_may_ask_later_but_not_much_later() {
    for in_time in [true, false] {
        let mut net = Net::psk_mesh(1, 2);
        net.strict = false;
        let mut raw = Raw::init(&mut net, address(1), 0, true);
        let secret = SecretBytes::copy_from(&[7; 32]);
        let answer = raw.auth_psk(&mut net, "node-01", &secret, &[]).unwrap();
        assert_eq!(answer.notifies(), []);
        assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::None);
        let wait = if in_time { 1 } else { 11 };
        net.run(Duration::from_secs(wait));
        let kex = KeyExchange::generate(KexGroup::X25519, &mut net.rng).unwrap();
        let mut said = raw::child(4711, address(1), address(0));
        for payload in &mut said {
            if let Payload::Sa(sa) = payload {
                let ke = Transform::new(TransformType::Ke, 31);
                sa.proposals[0].transforms.push(ke);
            }
        }
        said.push(Payload::Nonce(Nonce(&[5; 32])));
        said.push(Payload::Ke(wire::KeyExchange {
            group: 31,
            data: kex.public(),
        }));
        if !in_time {
            assert_eq!(net.nodes[0].endpoint.holdings(), Holdings::default());
            continue;
        }
        let answer = raw
            .ask(&mut net, ExchangeType::CreateChildSa, &said)
            .unwrap();
        assert_eq!(answer.notifies()[0], NotifyType::UseTransportMode);
        assert_eq!(net.child_ups(0)[0].1.spi_out, 4711);
        assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::Established);
    }
}
