//! Under an established IKE SA: announcements, liveness, and the ways to end it.

use std::time::Duration;

use espalier_ike::{
    CloseReason, Config, ConfigError, Connect, Event, Identity, IkeStatus, PeerAuth, limits,
};
use espalier_secret::SecretBytes;

use crate::sim::pki::Ca;
use crate::sim::{INFORMATIONAL, Net, Weather, id, ip, peer_config, psk};

const LONG: Duration = Duration::from_secs(300);
const LOSSY: Weather = Weather {
    latency_ms: (1, 300),
    loss: 30,
    duplication: 20,
};

fn connected(seed: u64) -> Net {
    let mut net = Net::psk_mesh(seed, 2);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled), "seed {seed}");
    net.run(Duration::from_secs(10));
    net
}

fn announce(net: &mut Net, own: usize, data: &[u8]) {
    let now = net.now;
    net.nodes[own]
        .endpoint
        .announce(&id(1 - own), data.to_vec(), now);
    net.pump(own);
}

fn last_heard(net: &Net, node: usize) -> Option<&[u8]> {
    net.nodes[node]
        .log
        .iter()
        .rev()
        .find_map(|event| match event {
            Event::Announcement { data, .. } => Some(data.as_slice()),
            Event::ChildUp { announcement, .. } => announcement.as_deref(),
            _ => None,
        })
}

fn last_acked(net: &Net, node: usize) -> Option<&[u8]> {
    net.nodes[node]
        .log
        .iter()
        .rev()
        .find_map(|event| match event {
            Event::AnnouncementAcked { data, .. } => Some(data.as_slice()),
            _ => None,
        })
}

#[test]
fn announcements_arrive_and_the_newest_wins() {
    for seed in 0..100 {
        let mut net = connected(seed);
        net.weather = LOSSY;
        for round in 0..20u8 {
            announce(&mut net, 0, &[0, round]);
            announce(&mut net, 1, &[1, round]);
            net.run(Duration::from_millis(97));
        }
        let done = |net: &Net| {
            last_heard(net, 1) == Some(&[0, 19])
                && last_heard(net, 0) == Some(&[1, 19])
                && last_acked(net, 0) == Some(&[0, 19])
                && last_acked(net, 1) == Some(&[1, 19])
        };
        assert!(net.run_until(LONG, done), "seed {seed}");
        net.run(Duration::from_secs(60));
        assert!(done(&net), "seed {seed}");
    }
}

#[test]
fn announcements_survive_restarts_of_the_other_end() {
    for seed in 0..60 {
        let mut net = connected(seed);
        net.weather = LOSSY;
        net.restart(1, &psk(7));
        net.connect(1, 0, Connect::Restart);
        for round in 0..10u8 {
            announce(&mut net, 0, &[round]);
            net.run(Duration::from_millis(50 + seed * 7));
        }
        let done = |net: &Net| last_heard(net, 1) == Some(&[9]) && last_acked(net, 0) == Some(&[9]);
        assert!(net.run_until(LONG, done), "seed {seed}");
        net.weather = Weather::FINE;
        net.run(Duration::from_secs(90));
        assert!(done(&net) && net.all_settled(), "seed {seed}");
    }
}

#[test]
fn an_announcement_made_before_there_is_an_ike_sa_is_carried_in_it() {
    let mut net = Net::psk_mesh(1, 2);
    announce(&mut net, 0, b"early");
    announce(&mut net, 1, b"early, too");
    net.connect(0, 1, Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    assert_eq!(net.child_ups(0)[0].2.as_deref(), Some(&b"early, too"[..]));
    assert_eq!(net.child_ups(1)[0].2.as_deref(), Some(&b"early"[..]));
    net.run(Duration::from_secs(1));
    assert_eq!(last_acked(&net, 0), Some(&b"early"[..]));
    assert_eq!(last_acked(&net, 1), Some(&b"early, too"[..]));
}

#[test]
fn putting_the_same_peer_again_says_and_changes_nothing() {
    let mut net = connected(1);
    announce(&mut net, 0, b"newer than the configuration");
    net.run(Duration::from_secs(1));
    let sent = net.sent.len();
    net.introduce_all(&psk(7));
    (0..2).for_each(|node| net.pump(node));
    net.run(Duration::from_secs(1));
    assert_eq!(net.sent.len(), sent);
    let mut news = peer_config(0, 1, psk(7));
    news.announcement = b"news".to_vec();
    let now = net.now;
    net.nodes[0].endpoint.put_peer(news, now).unwrap();
    net.pump(0);
    net.run(Duration::from_secs(1));
    assert_eq!(last_heard(&net, 1), Some(&b"news"[..]));
}

#[test]
fn silence_is_asked_about_and_an_answer_is_enough() {
    let mut net = connected(1);
    let before = net.sent.len();
    net.run(Duration::from_secs(600));
    let asked = net.sent[before..]
        .iter()
        .filter(|packet| packet.kind().0 == INFORMATIONAL)
        .count();
    assert!(asked >= 2 * 10, "{asked}");
    assert!(net.all_settled());
    assert_eq!(
        net.count(0, |event| matches!(event, Event::IkeDown { .. })),
        0
    );
}

#[test]
fn authenticated_traffic_makes_questions_needless() {
    let mut net = connected(1);
    let before = net.sent.len();
    for _ in 0..60 {
        let now = net.now;
        (0..2).for_each(|node| net.nodes[node].endpoint.note_traffic(&id(1 - node), now));
        net.run(limits::DPD_IDLE / 2);
    }
    assert_eq!(net.sent.len(), before);
}

#[test]
fn a_dead_peer_is_noticed_and_its_child_sas_stay_until_they_are_replaced() {
    let mut net = connected(1);
    net.nodes[1].up = false;
    let gone = |net: &Net| {
        net.count(0, |event| {
            matches!(
                event,
                Event::IkeDown {
                    reason: CloseReason::Timeout,
                    ..
                }
            )
        }) == 1
    };
    assert!(net.run_until(Duration::from_secs(120), gone));
    net.run(Duration::from_secs(300));
    let down = |event: &Event| matches!(event, Event::ChildDown { .. });
    assert_eq!(net.count(0, down), 0);
    assert_eq!(net.nodes[0].plane[&id(1)].inbound.len(), 1);
    assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::Connecting);

    net.restart(1, &psk(7));
    net.nodes[1].up = true;
    net.connect(1, 0, Connect::Restart);
    net.run(Duration::from_secs(30));
    assert!(net.all_settled());
    let replaced = |event: &Event| {
        matches!(
            event,
            Event::ChildDown {
                reason: CloseReason::Replaced,
                ..
            }
        )
    };
    assert_eq!((net.count(0, down), net.count(0, replaced)), (1, 1));
}

#[test]
fn a_partition_is_healed_without_a_gap() {
    for seed in 0..20 {
        let mut net = connected(seed);
        net.filter = Some(Box::new(|_| false));
        net.run(Duration::from_secs(90 + seed * 5));
        net.filter = None;
        net.run(Duration::from_secs(120));
        assert!(net.all_settled(), "seed {seed}");
        assert_eq!((net.ike_sas(0), net.ike_sas(1)), (1, 1), "seed {seed}");
        assert!(
            net.child_ups(0).len() >= 2 && net.child_ups(1).len() >= 2,
            "seed {seed}"
        );
    }
}

#[test]
fn disconnecting_ends_both_sides_in_bad_weather() {
    for seed in 0..100 {
        let mut net = connected(seed);
        net.strict = false;
        net.weather = LOSSY;
        let now = net.now;
        net.nodes[1].endpoint.disconnect(&id(0), now);
        net.nodes[0]
            .endpoint
            .disconnect(&id(1), now + Duration::from_millis(seed * 3));
        (0..2).for_each(|node| net.pump(node));
        net.run(LONG);
        for node in 0..2 {
            assert!(
                net.nodes[node].plane[&id(1 - node)].inbound.is_empty(),
                "seed {seed}"
            );
            assert_eq!(
                net.nodes[node].endpoint.status(&id(1 - node)),
                IkeStatus::None,
                "seed {seed}"
            );
            assert_eq!(net.ike_sas(node), 0, "seed {seed}");
        }
    }
}

#[test]
fn a_disconnect_reaches_the_other_end_which_comes_back_if_it_wants() {
    let mut net = connected(1);
    net.strict = false;
    let now = net.now;
    net.nodes[0].endpoint.disconnect(&id(1), now);
    net.pump(0);
    let local = |event: &Event| {
        matches!(
            event,
            Event::ChildDown {
                reason: CloseReason::Local,
                ..
            }
        )
    };
    assert_eq!(net.count(0, local), 1);
    net.run(Duration::from_secs(1));
    let peer = |event: &Event| {
        matches!(
            event,
            Event::ChildDown {
                reason: CloseReason::Peer,
                ..
            }
        )
    };
    assert_eq!(net.count(1, peer), 1);
    assert_eq!(
        net.count(1, |event| matches!(
            event,
            Event::IkeDown {
                reason: CloseReason::Peer,
                ..
            }
        )),
        1
    );
    // Node 1 still wants it, and node 0 still knows node 1.
    assert!(net.run_until(limits::PASSIVE_WAIT * 2, Net::all_settled));
}

/// The answer to IKE_AUTH may be under way when a peer is no longer wanted: the other end must not keep an IKE SA for it.
#[test]
fn a_disconnect_within_the_handshake_leaves_nothing_behind() {
    for messages in 1..6 {
        let mut net = Net::psk_mesh(1, 2);
        net.strict = false;
        net.connect(0, 1, Connect::Restart);
        assert!(net.run_until(LONG, |net| net.sent.len() >= messages));
        let now = net.now;
        net.nodes[0].endpoint.disconnect(&id(1), now);
        net.pump(0);
        net.run(Duration::from_secs(90));
        for node in 0..2 {
            assert_eq!(
                net.ike_sas(node),
                0,
                "node {node} after {messages} messages"
            );
            let left = net.nodes[node]
                .plane
                .get(&id(1 - node))
                .map_or(0, |pair| pair.inbound.len());
            assert_eq!(left, 0, "node {node} after {messages} messages");
        }
    }
}

#[test]
fn a_removed_peer_is_deleted_and_not_let_in_again() {
    let mut net = connected(1);
    net.strict = false;
    let now = net.now;
    net.nodes[0].endpoint.remove_peer(&id(1), now);
    net.pump(0);
    net.run(Duration::from_secs(60));
    assert!(net.nodes[0].plane[&id(1)].inbound.is_empty());
    assert!(
        net.failures(0)
            .iter()
            .any(|text| text.contains("which is no peer of this node"))
    );
    assert_eq!(net.nodes[1].endpoint.status(&id(0)), IkeStatus::Connecting);
}

#[test]
fn a_peer_whose_address_or_key_changed_is_connected_anew() {
    for auth in [psk(7), psk(8)] {
        let mut net = connected(1);
        net.strict = false;
        let changed = auth != psk(7);
        let mut config = peer_config(0, 1, auth.clone());
        config.addresses = if changed {
            vec![ip(1)]
        } else {
            vec![ip(1), ip(5)]
        };
        let now = net.now;
        net.nodes[0].endpoint.put_peer(config, now).unwrap();
        net.pump(0);
        let local = |event: &Event| {
            matches!(
                event,
                Event::ChildDown {
                    reason: CloseReason::Local,
                    ..
                }
            )
        };
        assert_eq!(net.count(0, local), usize::from(changed));
        net.introduce(1, &auth);
        net.pump(1);
        assert!(net.run_until(LONG, Net::all_settled));
    }
}

#[test]
fn a_renewed_certificate_keeps_what_is_there_and_serves_what_comes() {
    let ca = Ca::new("CA");
    let mut net = Net::new(1, 2, Some(&ca));
    net.introduce_all(&PeerAuth::Certificate);
    net.connect(0, 1, Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    let config = |name: &Identity| Config {
        credentials: Some(ca.issue(&name.0)),
        trust: ca.trust(),
        ..Config::new(name.clone())
    };
    net.nodes[0].endpoint.set_config(config(&id(0))).unwrap();
    net.run(Duration::from_secs(60));
    assert!(net.all_settled() && net.child_ups(0).len() == 1);
    let other = net.nodes[0].endpoint.set_config(config(&id(3)));
    assert!(matches!(other, Err(ConfigError::IdentityChange { .. })));
    let nothing = Config {
        credentials: None,
        ..config(&id(0))
    };
    assert_eq!(
        net.nodes[0].endpoint.set_config(nothing),
        Err(ConfigError::NoCredentials(id(1)))
    );
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let mut net = Net::new(1, 1, None);
    let now = net.now;
    let mut put = |change: fn(&mut espalier_ike::PeerConfig)| {
        let mut config = peer_config(0, 1, psk(1));
        change(&mut config);
        net.nodes[0]
            .endpoint
            .put_peer(config, now)
            .unwrap_err()
            .to_string()
    };
    for (error, text) in [
        (put(|c| c.identity = id(0)), "this node's own identity"),
        (
            put(|c| c.identity = Identity("a\nb".into())),
            "is no node name",
        ),
        (
            put(|c| c.auth = PeerAuth::Certificate),
            "this node has no certificate",
        ),
        (
            put(|c| c.auth = PeerAuth::Psk(SecretBytes::copy_from(b"short"))),
            "has 5 bytes, at least 32 expected",
        ),
        (put(|c| c.addresses.clear()), "has no address"),
        (put(|c| c.child.suites.clear()), "1 to 16 ESP or AH suites"),
        (put(|c| c.child.local_ts.clear()), "traffic selectors"),
        (
            put(|c| c.announcement = vec![0; 65]),
            "65 bytes, at most 64 fit",
        ),
    ] {
        assert!(error.contains(text), "{error}");
    }
}
