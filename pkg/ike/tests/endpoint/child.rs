//! What two endpoints, and one and a peer made by hand, agree on for a CHILD_SA: suites, modes, sequence numbers, traffic
//! selectors (RFC 7296 §2.9, §2.17, §3.3, §3.13.1).

use std::net::IpAddr;
use std::time::Duration;

use espalier_ike::wire::{
    Delete, ExchangeType, Notify, NotifyType, Payload, ProtocolId, TrafficSelectors, Transform,
    TransformType,
};
use espalier_ike::{
    ChildSa, ChildSuite, Connect, EspSuite, Event, Integrity, PeerConfig, Role, TrafficSelector,
    limits,
};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Raw};
use crate::sim::{Net, Weather, address, id, peer_config, psk};

const LONG: Duration = Duration::from_secs(300);
const INTEGRITY: [Integrity; 3] = [
    Integrity::HmacSha256,
    Integrity::HmacSha384,
    Integrity::HmacSha512,
];

/// Two nodes whose configuration of each other `set` changes; the first argument is whose it is.
fn pair(seed: u64, set: impl Fn(usize, &mut PeerConfig)) -> Net {
    let mut net = Net::new(seed, 2, None);
    for own in 0..2 {
        let mut config = peer_config(own, 1 - own, psk(7));
        set(own, &mut config);
        let now = net.now;
        net.nodes[own].endpoint.put_peer(config, now).unwrap();
    }
    net
}

/// `initiator` connects alone, so that it is the initiator.
fn connect(net: &mut Net, initiator: usize) -> [ChildSa; 2] {
    net.connect(initiator, 1 - initiator, Connect::Fresh);
    assert!(
        net.run_until(LONG, Net::all_settled),
        "{:?}",
        net.failures(0)
    );
    let first = |node| net.child_ups(node).first().cloned().expect("a CHILD_SA");
    let (role, ours, _) = first(initiator);
    assert_eq!(role, Role::Initiator);
    [ours, first(1 - initiator).1]
}

fn assert_same(ends: &[ChildSa; 2]) {
    let [a, b] = ends;
    assert_eq!((a.spi_in, a.spi_out), (b.spi_out, b.spi_in));
    assert_eq!((&a.keys_in, &a.keys_out), (&b.keys_out, &b.keys_in));
    assert_ne!(a.keys_in, a.keys_out);
    assert_eq!((a.suite, a.esn, a.transport), (b.suite, b.esn, b.transport));
    assert_eq!((&a.local_ts, &a.remote_ts), (&b.remote_ts, &b.local_ts));
}

fn all_suites() -> Vec<(ChildSuite, usize, usize)> {
    let esp = |suite: EspSuite, key, integrity| (suite.into(), key, integrity);
    let mut all = vec![
        esp(EspSuite::Aes256Gcm16, 36, 0),
        esp(EspSuite::Aes128Gcm16, 20, 0),
        esp(EspSuite::ChaCha20Poly1305, 36, 0),
        esp(EspSuite::Aes256Gmac, 36, 0),
        esp(EspSuite::Aes128Gmac, 20, 0),
    ];
    for (hmac, len) in INTEGRITY.into_iter().zip([32, 48, 64]) {
        all.push(esp(EspSuite::Aes256Cbc(hmac), 32, len));
        all.push(esp(EspSuite::Aes128Cbc(hmac), 16, len));
        all.push((ChildSuite::Ah(hmac), 0, len));
    }
    all
}

#[test]
fn every_suite_is_agreed_on_and_rekeyed_in_both_modes_roles_and_bad_weather() {
    for (seed, (suite, key, integrity)) in (0..).zip(all_suites()) {
        for transport in [true, false] {
            let initiator = usize::from(transport);
            let mut net = pair(seed, |_, config| {
                config.child.suites = vec![suite];
                config.child.transport = transport;
            });
            net.weather = Weather::BAD;
            let ends = connect(&mut net, initiator);
            assert_same(&ends);
            assert_eq!((ends[0].suite, ends[0].transport), (suite, transport));
            for keys in [&ends[0].keys_in, &ends[0].keys_out] {
                assert_eq!((keys.key.len(), keys.integrity.len()), (key, integrity));
            }
            net.weather = Weather::FINE;
            net.run(limits::DRAIN * 2);
            net.rekey_child(1 - initiator, initiator);
            net.run(limits::DRAIN * 2);
            assert!(net.all_settled(), "{suite:?}");
            let rekeyed = [0, 1].map(|node| net.child_ups(node)[1].1.clone());
            assert_same(&rekeyed);
            assert_eq!(rekeyed[0].suite, suite);
            assert_ne!(rekeyed[0].keys_in, ends[initiator].keys_in);
        }
    }
}

#[test]
fn the_first_proposal_that_both_can_use_is_taken_of_several() {
    let cbc = EspSuite::Aes128Cbc(Integrity::HmacSha256).into();
    let gcm = EspSuite::Aes128Gcm16.into();
    let ah = ChildSuite::Ah(Integrity::HmacSha384);
    for (ours, theirs, expected) in [
        (vec![gcm, cbc], vec![cbc], cbc),
        (vec![gcm, cbc], vec![cbc, gcm], gcm),
        (vec![ah, cbc, gcm], vec![gcm, cbc], cbc),
        (vec![gcm, ah], vec![ah], ah),
    ] {
        for initiator in [0, 1] {
            let mut net = pair(1, |own, config| {
                let suites = if own == initiator { &ours } else { &theirs };
                config.child.suites.clone_from(suites);
            });
            let ends = connect(&mut net, initiator);
            assert_same(&ends);
            assert_eq!(ends[0].suite, expected);
        }
    }
}

#[test]
fn extended_sequence_numbers_are_used_where_both_want_them() {
    for (wants, expected) in [
        ([true, true], true),
        ([true, false], false),
        ([false, true], false),
        ([false, false], false),
    ] {
        for initiator in [0, 1] {
            let mut net = pair(1, |own, config| config.child.esn = wants[own]);
            let ends = connect(&mut net, initiator);
            assert_same(&ends);
            assert_eq!(ends[0].esn, expected, "{wants:?} by {initiator}");
        }
    }
}

fn ts(protocol: u8, ports: (u16, u16), start: &str, end: &str) -> TrafficSelector {
    TrafficSelector {
        protocol,
        start_port: ports.0,
        end_port: ports.1,
        start: start.parse().unwrap(),
        end: end.parse().unwrap(),
    }
}

const ANY: (u16, u16) = (0, u16::MAX);

#[test]
fn several_selectors_of_both_families_are_narrowed_to_what_both_have() {
    let wide = [
        ts(0, ANY, "10.0.0.0", "10.0.255.255"),
        ts(0, ANY, "fd00:a::", "fd00:a::ffff"),
        ts(0, ANY, "192.168.0.0", "192.168.0.255"),
    ];
    let narrow = [
        ts(6, (443, 443), "10.0.7.0", "10.0.9.255"),
        ts(17, (5000, 6000), "fd00:a::1", "fd00:a::1"),
        ts(0, ANY, "172.16.0.0", "172.16.0.255"),
    ];
    let far = [
        ts(0, ANY, "fd00:b::", "fd00:b::ffff"),
        ts(1, (0x0800, 0x08ff), "10.1.0.0", "10.1.0.9"),
    ];
    for initiator in [0, 1] {
        for whose_is_wide in [0, 1] {
            // Node 0 has the pair's left side, node 1 the right one.
            let mut net = pair(1, |own, config| {
                let left = if own == whose_is_wide { &wide } else { &narrow };
                let (here, there) = (left.to_vec(), far.to_vec());
                let child = &mut config.child;
                child.transport = false;
                (child.local_ts, child.remote_ts) = if own == 0 {
                    (here, there)
                } else {
                    (there, here)
                };
            });
            let ends = connect(&mut net, initiator);
            assert_same(&ends);
            let node_0 = &ends[initiator];
            assert_eq!(
                node_0.local_ts,
                narrow[..2],
                "wide at {whose_is_wide} by {initiator}"
            );
            assert_eq!(node_0.remote_ts, far);
            net.run(limits::DRAIN * 2);
            net.rekey_child(initiator, 1 - initiator);
            net.run(Duration::from_secs(1));
            assert_eq!(
                net.child_ups(0)[1].1.local_ts,
                narrow[..2],
                "a rekey keeps them"
            );
        }
    }
}

fn connected(net: &mut Net, child: &[Payload<'_>]) -> (Raw, Vec<NotifyType>) {
    net.strict = false;
    let mut raw = Raw::init(net, address(1), 0, true);
    let psk = SecretBytes::copy_from(&[7; 32]);
    let answer = raw.auth_psk(net, "node-01", &psk, child).unwrap();
    let notifies = answer.notifies();
    (raw, notifies)
}

/// The first CHILD_SA of a peer made by hand with other selectors.
fn asking(theirs: Vec<TrafficSelector>, ours: Vec<TrafficSelector>) -> Vec<Payload<'static>> {
    let mut payloads = raw::child(4711, address(1), address(0));
    for payload in &mut payloads {
        match payload {
            Payload::TsI(list) => list.0.clone_from(&theirs),
            Payload::TsR(list) => list.0.clone_from(&ours),
            _ => {}
        }
    }
    payloads
}

fn everything() -> Vec<TrafficSelector> {
    vec![
        ts(0, ANY, "0.0.0.0", "255.255.255.255"),
        ts(0, ANY, "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ]
}

fn is_at(ts: &[TrafficSelector], at: IpAddr) -> bool {
    matches!(ts, [one] if (one.start, one.end, one.protocol) == (at, at, 17))
}

#[test]
fn an_authenticated_peer_that_asks_for_everything_gets_its_own_only() {
    let mut net = Net::psk_mesh(1, 3);
    let (_, notifies) = connected(&mut net, &asking(everything(), everything()));
    assert_eq!(notifies[0], NotifyType::UseTransportMode);
    let up = &net.child_ups(0)[0].1;
    assert!(is_at(&up.remote_ts, address(1).ip()), "{:?}", up.remote_ts);
    assert!(is_at(&up.local_ts, address(0).ip()), "{:?}", up.local_ts);
}

#[test]
fn selectors_of_somebody_else_are_unacceptable() {
    let at = |node: usize| {
        ts(
            17,
            ANY,
            &address(node).ip().to_string(),
            &address(node).ip().to_string(),
        )
    };
    let opaque = TrafficSelector {
        start_port: u16::MAX,
        end_port: 0,
        ..at(1)
    };
    let echo = TrafficSelector {
        protocol: 1,
        start_port: 0x0800,
        end_port: 0x08ff,
        ..at(1)
    };
    for theirs in [
        at(2),
        at(0),
        opaque,
        echo,
        ts(17, ANY, "fd00::1", "fd00::2"),
    ] {
        let mut net = Net::psk_mesh(1, 3);
        let (_, notifies) = connected(&mut net, &asking(vec![theirs], vec![at(0)]));
        assert_eq!(notifies, [NotifyType::TsUnacceptable]);
        assert_eq!(net.child_ups(0), []);
    }
}

#[test]
fn an_answer_that_widens_the_selectors_is_not_used_and_deleted() {
    let mut net = Net::psk_mesh(1, 2);
    let (mut raw, _) = connected(&mut net, &raw::child(4711, address(1), address(0)));
    raw.ask(&mut net, ExchangeType::Informational, &[]).unwrap();
    net.rekey_child(0, 1);
    let (_, asked) = raw.asked(&net);
    let mut answer = raw::granted(&asked, 4712, address(0), address(1));
    for payload in &mut answer {
        if let Payload::TsR(list) = payload {
            *list = TrafficSelectors(everything());
        }
    }
    raw.answer(&mut net, &answer);
    assert_eq!(net.child_ups(0).len(), 1);
    let (header, said) = raw.asked(&net);
    assert_eq!(header.exchange, ExchangeType::Informational);
    let deletes = |payload: &Payload<'_>| matches!(payload, Payload::Delete(Delete::Child { .. }));
    assert!(said.payloads().iter().any(deletes));
}

#[test]
fn ah_and_esp_with_the_same_spi_are_two_things() {
    let suite = ChildSuite::Ah(Integrity::HmacSha256);
    let mut net = pair(1, |_, config| config.child.suites = vec![suite]);
    let mut child = raw::child(4711, address(1), address(0));
    for payload in &mut child {
        if let Payload::Sa(sa) = payload {
            sa.proposals[0].protocol = ProtocolId::Ah;
            sa.proposals[0].transforms = vec![
                Transform::new(TransformType::Integ, 12),
                Transform::new(TransformType::Esn, 1),
            ];
        }
    }
    let (mut raw, notifies) = connected(&mut net, &child);
    assert_eq!(notifies[0], NotifyType::UseTransportMode);
    let up = net.child_ups(0)[0].1.clone();
    assert_eq!(
        (up.suite, up.keys_in.key.len(), up.keys_in.integrity.len()),
        (suite, 0, 32)
    );
    let delete = |protocol, spi| {
        Payload::Delete(Delete::Child {
            protocol,
            spis: vec![spi],
        })
    };
    let mut said =
        |payloads: &[Payload<'_>], exchange| raw.ask(&mut net, exchange, payloads).unwrap();
    let esp = said(
        &[delete(ProtocolId::Esp, 4711)],
        ExchangeType::Informational,
    );
    assert_eq!(esp.payloads(), []);
    let rekey = Payload::Notify(Notify::about_esp(NotifyType::RekeySa, 4711));
    let refused = said(
        &[&[rekey], &child[..]].concat(),
        ExchangeType::CreateChildSa,
    );
    assert_eq!(refused.notifies(), [NotifyType::ChildSaNotFound]);
    let ah = said(&[delete(ProtocolId::Ah, 4711)], ExchangeType::Informational);
    assert_eq!(ah.payloads(), [delete(ProtocolId::Ah, up.spi_in)]);
    let down = |event: &Event| matches!(event, Event::ChildDown { peer, .. } if *peer == id(1));
    assert_eq!(net.count(0, down), 1);
}
