//! Reauthentication, make before break: periodic, after a renewal, through the rotation of a CA, and as a peer wants it
//! (RFC 4478). After every step the simulation checks that nobody seals with what the other end cannot open.

use std::time::Duration;

use espalier_ike::wire::{ExchangeType, Notify, NotifyType, Payload};
use espalier_ike::{CloseReason, Config, Connect, Event, IkeStatus, PeerAuth, Rekeying, limits};
use espalier_secret::SecretBytes;

use crate::sim::pki::Ca;
use crate::sim::raw::{self, Raw};
use crate::sim::{INIT, Net, Weather, address, id};

const LONG: Duration = Duration::from_secs(300);
const PERIOD: Duration = Duration::from_secs(600);

fn every(period: Duration) -> Rekeying {
    Rekeying {
        reauth: Some(period),
        ..Rekeying::default()
    }
}

fn ike_ups(net: &Net, node: usize) -> usize {
    net.count(node, |event| matches!(event, Event::IkeUp { .. }))
}

/// Never without an SA, and never an end that was not a replacement.
fn assert_no_gap(net: &Net, context: &str) {
    for (index, node) in net.nodes.iter().enumerate() {
        for event in &node.log {
            match event {
                Event::ChildDown { reason, .. } => {
                    assert_eq!(*reason, CloseReason::Replaced, "{context}: node {index}");
                }
                Event::IkeDown { .. } => panic!("{context}: IkeDown on node {index}"),
                _ => {}
            }
        }
    }
}

#[test]
fn the_lower_identity_authenticates_anew_at_its_time_without_a_gap() {
    for (mine, theirs) in [
        (Some(PERIOD), Some(PERIOD)),
        (Some(PERIOD), None),
        (None, Some(PERIOD)),
    ] {
        let mut net = Net::psk_mesh(1, 2);
        for (node, reauth) in [mine, theirs].into_iter().enumerate() {
            let rekeying = Rekeying {
                reauth,
                ..Rekeying::default()
            };
            net.set_rekeying(node, rekeying);
        }
        net.connect_all(Connect::Policy);
        net.run(Duration::from_secs(3600));
        net.run(limits::CLOSED_LINGER + limits::DRAIN * 2);
        let ups = ike_ups(&net, 0);
        assert!((5..=8).contains(&ups), "{ups} IKE SAs in an hour");
        assert_no_gap(&net, "reauthentication");
        assert!(net.all_settled());
        net.assert_nothing_orphaned("at the end");
    }
}

#[test]
fn a_rekey_does_not_put_it_off_and_bad_weather_does_not_break_it() {
    for seed in 0..30 {
        let mut net = Net::psk_mesh(seed, 2);
        let rekeying = Rekeying {
            ike_soft: Duration::from_secs(100),
            child_soft: Duration::from_secs(70),
            ..every(Duration::from_secs(250))
        };
        (0..2).for_each(|node| net.set_rekeying(node, rekeying));
        net.weather = Weather {
            latency_ms: (1, 120),
            loss: 10,
            duplication: 10,
        };
        net.connect_all(Connect::Policy);
        net.run(Duration::from_secs(1200));
        let ups = ike_ups(&net, 0);
        assert!(
            (5..=9).contains(&ups),
            "seed {seed}: {ups} IKE SAs in 20 minutes"
        );
        assert_no_gap(&net, &format!("seed {seed}"));
    }
}

fn rotate(net: &mut Net, change: impl Fn(&str, Config) -> Config) {
    for node in 0..net.nodes.len() {
        let config = net.nodes[node].config.clone();
        let config = change(&id(node).0, config);
        net.set_config(node, config);
        net.run(Duration::from_secs(1));
    }
}

fn reauthenticate_all(net: &mut Net) {
    for node in 0..net.nodes.len() {
        for peer in (0..net.nodes.len()).filter(|peer| *peer != node) {
            let now = net.now;
            net.nodes[node].endpoint.reauthenticate(&id(peer), now);
        }
        net.pump(node);
    }
    net.run(Duration::from_secs(60));
}

#[test]
fn a_ca_is_rotated_without_a_gap_and_certificates_of_the_old_one_are_refused_then() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let mut net = Net::new(1, 4, Some(&old));
    net.introduce_all(&PeerAuth::Certificate);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    // Both are trusted; then each node gets a certificate of the new one; then the old one is taken out.
    rotate(&mut net, |_, config| Config {
        trust: Ca::trust_all(&[&old, &new]),
        ..config
    });
    reauthenticate_all(&mut net);
    rotate(&mut net, |name, config| Config {
        credentials: Some(new.issue(name)),
        ..config
    });
    reauthenticate_all(&mut net);
    rotate(&mut net, |_, config| Config {
        trust: new.trust(),
        ..config
    });
    reauthenticate_all(&mut net);
    assert!(net.run_until(LONG, Net::all_settled));
    for node in 0..4 {
        assert!(ike_ups(&net, node) >= 4 * 3, "each pair, each time");
        assert_eq!(net.failures(node), [""; 0]);
    }
    assert_no_gap(&net, "rotation");
    net.run(limits::REKEYED_LINGER);
    net.assert_nothing_orphaned("after the rotation");

    // A node that was left behind, or whoever has stolen its old key.
    net.nodes[3].config.credentials = Some(old.issue("node-03"));
    net.restart(3, &PeerAuth::Certificate);
    net.strict = false;
    net.connect(3, 0, Connect::Fresh);
    net.run(Duration::from_secs(30));
    assert_eq!(net.nodes[3].endpoint.status(&id(0)), IkeStatus::Connecting);
    assert!(
        net.failures(3)[0].contains("refused this node's identity"),
        "{:?}",
        net.failures(3)
    );
    assert!(
        net.failures(0).iter().any(|text| text.contains("node-03")),
        "{:?}",
        net.failures(0)
    );
}

#[test]
fn a_peer_that_cannot_authenticate_any_more_is_out_after_twice_the_time() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let mut net = Net::new(1, 2, Some(&old));
    net.introduce_all(&PeerAuth::Certificate);
    let config = Config {
        rekeying: every(PERIOD),
        ..net.nodes[0].config.clone()
    };
    net.set_config(0, config);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    let config = Config {
        trust: new.trust(),
        ..net.nodes[0].config.clone()
    };
    net.set_config(0, config);
    net.run(PERIOD * 3 / 2);
    assert!(net.all_settled(), "what there is stays for now");
    assert!(!net.failures(0).is_empty());
    net.strict = false;
    net.run(PERIOD);
    for node in 0..2 {
        let pair = &net.nodes[node].plane[&id(1 - node)];
        assert!(pair.inbound.is_empty() && pair.outbound.is_empty());
        assert_eq!(
            net.nodes[node].endpoint.status(&id(1 - node)),
            IkeStatus::Connecting
        );
    }
}

#[test]
fn a_responder_says_how_long_an_authentication_lasts_and_the_initiator_keeps_to_it() {
    let mut net = Net::psk_mesh(1, 2);
    net.set_rekeying(1, every(Duration::from_secs(100)));
    net.connect(0, 1, Connect::Policy);
    net.run(Duration::from_secs(140));
    assert_eq!(ike_ups(&net, 0), 1);
    // 80 per cent of 200 seconds, less up to a tenth.
    net.run(Duration::from_secs(25));
    assert_eq!(ike_ups(&net, 0), 2);
    assert_no_gap(&net, "AUTH_LIFETIME");
}

fn inits(net: &Net) -> usize {
    net.sent
        .iter()
        .filter(|packet| packet.kind() == (INIT, false, 0))
        .count()
}

#[test]
fn a_lifetime_that_comes_later_is_kept_to_but_cannot_cause_a_storm() {
    for (seconds, earliest, latest) in [(100_u32, 72, 81), (0, 10, 11)] {
        let mut net = Net::psk_mesh(1, 2);
        net.nodes[1].up = false;
        net.strict = false;
        let mut raw = Raw::init(&mut net, address(1), 0, true);
        let child = raw::child(4711, address(1), address(0));
        let psk = SecretBytes::copy_from(&[7; 32]);
        raw.auth_psk(&mut net, "node-01", &psk, &child).unwrap();
        net.connect(0, 1, Connect::Policy);
        let data = seconds.to_be_bytes();
        let said = Payload::Notify(Notify::new(NotifyType::AuthLifetime, &data));
        let short = Payload::Notify(Notify::new(NotifyType::AuthLifetime, &[1]));
        for payload in [short, said] {
            raw.ask(&mut net, ExchangeType::Informational, &[payload])
                .unwrap();
        }
        for _ in 0..earliest - 1 {
            assert_eq!(inits(&net), 0, "{seconds}");
            raw.ask(&mut net, ExchangeType::Informational, &[]).unwrap();
            net.run(Duration::from_secs(1));
        }
        net.run(Duration::from_secs(latest - earliest + 2));
        assert!(inits(&net) > 0, "{seconds}");
    }
}
