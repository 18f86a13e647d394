//! Several CHILD_SAs under one IKE SA (RFC 7296 §1.3.1) and CHILD_SAs per CPU (RFC 9611). After every step the simulation
//! checks that nobody seals with what the other end cannot open.

use std::collections::BTreeSet;
use std::time::Duration;

use espalier_ike::crypto::{KexGroup, KeyExchange};
use espalier_ike::wire::{
    self, Delete, ExchangeType, Nonce, Notify, NotifyType, Payload, ProtocolId, Transform,
    TransformType,
};
use espalier_ike::{
    ChildConfig, ChildId, CloseReason, Connect, EspSuite, Event, IkeStatus, Rekeying, Role,
    TrafficSelector, limits,
};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Answer, Raw};
use crate::sim::{CREATE_CHILD, Net, Weather, address, id, ip, peer_config, psk};

const LONG: Duration = Duration::from_secs(300);
const ROUGH: Weather = Weather {
    latency_ms: (1, 120),
    loss: 15,
    duplication: 15,
};

/// TCP on one port.
fn tcp(own: usize, peer: usize, number: u32) -> ChildConfig {
    let port = 4000 + u16::try_from(number).unwrap();
    let at = |node| TrafficSelector {
        protocol: 6,
        start_port: port,
        end_port: port,
        start: ip(node),
        end: ip(node),
    };
    ChildConfig::new(vec![at(own)], vec![at(peer)])
}

fn with_children(seed: u64, count: u32) -> Net {
    let mut net = Net::psk_mesh(seed, 2);
    for number in 1..=count {
        for own in 0..2 {
            net.add_child(own, 1 - own, number, tcp(own, 1 - own, number));
        }
    }
    net
}

/// What each end has besides the first one: each the same, once, and used.
fn kinds(net: &Net) -> Option<BTreeSet<ChildId>> {
    let mut found = Vec::new();
    for node in 0..2 {
        let here = &net.nodes[node].plane.get(&id(1 - node))?.more;
        let there = &net.nodes[1 - node].plane.get(&id(node))?.more;
        let used = here.iter().filter(|(_, pair)| !pair.inbound.is_empty());
        for (_, pair) in used.clone() {
            let seals = pair.seals?;
            let opens = |other: &crate::sim::plane::Pair| other.inbound.contains_key(&seals);
            if pair.inbound.len() != 1 || !there.values().any(opens) {
                return None;
            }
        }
        found.push(used.map(|(id, _)| *id).collect::<BTreeSet<ChildId>>());
    }
    (found[0] == found[1]).then(|| found[0].clone())
}

fn has(net: &Net, count: usize) -> bool {
    net.all_settled() && kinds(net).is_some_and(|kinds| kinds.len() == count)
}

fn connected(seed: u64, count: u32) -> Net {
    let mut net = with_children(seed, count);
    net.connect_all(Connect::Policy);
    let all = |net: &Net| has(net, count as usize);
    assert!(
        net.run_until(LONG, all),
        "seed {seed}: {:?}",
        net.failures(0)
    );
    net.run(Duration::from_secs(10));
    net
}

fn downs(net: &Net, node: usize) -> Vec<CloseReason> {
    let down = |event: &Event| match event {
        Event::ChildDown { reason, .. } => Some(*reason),
        _ => None,
    };
    net.nodes[node].log.iter().filter_map(down).collect()
}

#[test]
fn further_child_sas_are_made_under_the_same_ike_sa_with_keys_and_selectors_of_their_own() {
    for require_pfs in [true, false] {
        let mut net = with_children(1, 3);
        let rekeying = Rekeying {
            require_pfs,
            ..Rekeying::default()
        };
        (0..2).for_each(|node| net.set_rekeying(node, rekeying));
        net.connect_all(Connect::Policy);
        assert!(net.run_until(LONG, |net| has(net, 3)));
        assert_eq!([net.ike_sas(0), net.ike_sas(1)], [1, 1]);
        let mut keys = BTreeSet::new();
        let theirs = net.child_ups(1);
        for (role, up, _) in net.child_ups(0) {
            assert_eq!(role, Role::Initiator, "the lower identity begins");
            let other = theirs.iter().find(|(_, other, _)| other.id == up.id);
            let other = &other.expect("the other end has the same").1;
            assert_eq!(
                (&up.keys_in, &up.keys_out),
                (&other.keys_out, &other.keys_in)
            );
            assert_eq!(
                (&up.local_ts, &up.remote_ts),
                (&other.remote_ts, &other.local_ts)
            );
            let number = up.id.number;
            if number > 0 {
                assert_eq!(up.local_ts, tcp(0, 1, number).local_ts);
            }
            keys.insert(up.keys_in.key.expose().to_vec());
            keys.insert(up.keys_out.key.expose().to_vec());
        }
        assert_eq!(keys.len(), 8, "all keys differ");
    }
}

#[test]
fn each_is_rekeyed_and_removed_by_itself() {
    let mut net = connected(1, 3);
    for (node, number) in [(0, 2), (1, 3)] {
        let ups = net.child_ups(node);
        let of_number = |up: &&(Role, espalier_ike::ChildSa, _)| up.1.id.number == number;
        let spi_in = ups.iter().find(of_number).unwrap().1.spi_in;
        let now = net.now;
        net.nodes[node].endpoint.rekey_child_sa(spi_in, now);
        net.pump(node);
        net.run(limits::DRAIN * 2);
        let last = net.child_ups(node).pop().unwrap().1;
        assert_eq!(last.id, ChildId { number, cpu: None });
        assert_eq!(last.local_ts, tcp(node, 1 - node, number).local_ts);
        assert!(has(&net, 3), "the others stay");
    }
    for node in 0..2 {
        assert_eq!(downs(&net, node), [CloseReason::Replaced; 2]);
    }
    net.strict = false; // the remover is gone before the other end hears of it
    net.remove_child(1, 0, 2);
    net.remove_child(0, 1, 2);
    net.run(Duration::from_secs(1));
    net.strict = true;
    assert!(has(&net, 2));
    for node in 0..2 {
        assert_eq!(net.nodes[node].endpoint.holdings().children, 3);
        let reasons = downs(&net, node);
        assert!(matches!(
            reasons[2..],
            [CloseReason::Local | CloseReason::Peer]
        ));
    }
    assert_eq!([net.ike_sas(0), net.ike_sas(1)], [1, 1]);
}

#[test]
fn an_ike_sa_takes_them_along_when_it_is_rekeyed() {
    let mut net = connected(1, 3);
    for initiator in [0, 1] {
        net.rekey_ike(initiator, 1 - initiator);
        net.run(Duration::from_secs(100));
        assert!(has(&net, 3));
    }
    assert_eq!(net.child_ups(0).len(), 4, "none was made anew");
    assert_eq!(downs(&net, 0), []);
    assert_eq!(net.nodes[0].endpoint.holdings().children, 4);
}

#[test]
fn what_only_one_end_wants_is_refused_reported_and_made_once_the_other_wants_it_too() {
    for late in [0, 1] {
        let mut net = Net::psk_mesh(1, 2);
        net.add_child(1 - late, late, 7, tcp(1 - late, late, 7));
        net.connect_all(Connect::Policy);
        net.run(Duration::from_secs(30));
        assert!(has(&net, 0));
        let failures = net.failures(1 - late);
        assert_eq!(failures.len(), 1, "{failures:?}");
        let text = "refused CHILD_SA 7 with TsUnacceptable";
        assert!(failures[0].contains(text), "{failures:?}");
        net.add_child(late, 1 - late, 7, tcp(late, 1 - late, 7));
        net.run(limits::CHILD_REFUSED_RETRY * 3 / 2);
        assert!(has(&net, 1));
        net.assert_one_ike_sa();
    }
}

#[test]
fn a_restart_replaces_all_of_them_before_the_old_ones_go() {
    for node in [0, 1] {
        let mut net = connected(1, 3);
        net.restart(node, &psk(7));
        for number in 1..=3 {
            net.add_child(node, 1 - node, number, tcp(node, 1 - node, number));
        }
        net.connect(node, 1 - node, Connect::Restart);
        let until = net.now + Duration::from_secs(120);
        while net.now < until && net.step() {
            for own in 0..2 {
                let pair = &net.nodes[own].plane[&id(1 - own)];
                let used = pair.each().filter(|pair| pair.seals.is_some());
                assert_eq!(used.count(), 4, "nothing is ever without an SA");
            }
        }
        assert!(has(&net, 3));
        let held = net.nodes[1 - node].endpoint.holdings();
        assert_eq!((held.established, held.children, held.orphans), (1, 4, 0));
    }
}

#[test]
fn a_dead_peer_leaves_all_of_them_until_they_are_replaced() {
    let mut net = connected(1, 2);
    net.nodes[1].up = false;
    net.run(Duration::from_secs(120));
    assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::Connecting);
    assert_eq!(
        (downs(&net, 0), net.nodes[0].endpoint.holdings().orphans),
        (vec![], 3)
    );
    net.nodes[1].up = true;
    assert!(net.run_until(LONG, |net| has(net, 2)));
    net.run(Duration::from_secs(60));
    assert!(has(&net, 2));
    assert_eq!(downs(&net, 0), [CloseReason::Replaced; 3]);
}

#[test]
fn bad_weather_rekeys_and_changes_end_with_one_of_each() {
    for seed in 0..80 {
        let mut net = with_children(seed, 2);
        net.weather = ROUGH;
        net.connect_all(Connect::Policy);
        net.run(Duration::from_secs(10 + seed % 10));
        net.rekey_ike((seed % 2) as usize, (1 - seed % 2) as usize);
        net.run(Duration::from_millis(seed % 7 * 50));
        for own in 0..2 {
            net.add_child(own, 1 - own, 3, tcp(own, 1 - own, 3));
        }
        net.run(Duration::from_millis(seed % 5 * 40));
        net.rekey_child(0, 1);
        net.run(Duration::from_secs(30));
        net.weather = Weather::FINE;
        let all = |net: &Net| has(net, 3);
        net.run(limits::CHILD_REFUSED_RETRY * 2);
        assert!(all(&net), "seed {seed}: {:?}", net.failures(0));
        for node in 0..2 {
            let held = net.nodes[node].endpoint.holdings();
            assert_eq!((held.established, held.children), (1, 4), "seed {seed}");
            assert_eq!((held.orphans, held.spis), (0, 4), "seed {seed}");
        }
    }
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let mut net = with_children(1, 2);
    let now = net.now;
    let endpoint = &mut net.nodes[0].endpoint;
    let mut add = |peer, number, change: fn(&mut ChildConfig)| {
        let mut config = tcp(0, 1, 1);
        change(&mut config);
        let added = endpoint.add_child(&id(peer), number, config, now);
        added.unwrap_err().to_string()
    };
    for (error, text) in [
        (add(1, 0, |_| ()), "number from 1 on"),
        (add(9, 1, |_| ()), "put the peer before"),
        (add(1, 3, |config| config.suites.clear()), "1 to 16"),
        (
            add(1, 3, |config| config.local_ts.clear()),
            "traffic selectors",
        ),
        (
            add(1, 3, |config| config.per_cpu = Some(129)),
            "at most 128",
        ),
    ] {
        assert!(error.contains(text), "{error}");
    }
    for number in 3..=15 {
        net.add_child(0, 1, number, tcp(0, 1, number));
    }
    let one_more = net.nodes[0]
        .endpoint
        .add_child(&id(1), 16, tcp(0, 1, 16), now);
    assert!(one_more.unwrap_err().to_string().contains("at most 15"));
}

// --- Against a peer that is made by hand ---

const FIRST: u32 = 4711;

/// The peer is `name` and node `node` answers.
fn by_hand(net: &mut Net, name: usize, node: usize) -> Raw {
    net.strict = false;
    let mut raw = Raw::init(net, address(name), node, true);
    let child = raw::child(FIRST, address(name), address(node));
    let secret = SecretBytes::copy_from(&[7; 32]);
    raw.auth_psk(net, &id(name).0, &secret, &child).unwrap();
    raw
}

/// The payloads for a CHILD_SA of `config` with a key exchange.
fn payloads(net: &mut Net, spi: u32, config: &ChildConfig) -> Vec<Payload<'static>> {
    let mut payloads = raw::child(spi, address(0), address(1));
    for payload in &mut payloads {
        match payload {
            Payload::Sa(sa) => {
                let ke = Transform::new(TransformType::Ke, 31);
                sa.proposals[0].transforms.push(ke);
            }
            Payload::TsI(list) => list.0.clone_from(&config.local_ts),
            Payload::TsR(list) => list.0.clone_from(&config.remote_ts),
            _ => {}
        }
    }
    let kex = KeyExchange::generate(KexGroup::X25519, &mut net.rng).unwrap();
    payloads.push(Payload::Nonce(Nonce(&[5; 32])));
    let data: &'static [u8] = kex.public().to_vec().leak();
    payloads.push(Payload::Ke(wire::KeyExchange { group: 31, data }));
    payloads
}

fn ask(net: &mut Net, raw: &mut Raw, said: &[Payload<'_>]) -> Answer {
    raw.ask(net, ExchangeType::CreateChildSa, said).unwrap()
}

#[test]
fn a_peer_gets_what_is_configured_once_and_no_more() {
    let mut net = Net::psk_mesh(1, 2);
    net.add_child(0, 1, 1, tcp(0, 1, 1));
    let mut raw = by_hand(&mut net, 1, 0);
    let said = payloads(&mut net, 5001, &tcp(1, 0, 1));
    let answer = ask(&mut net, &mut raw, &said);
    assert_eq!(answer.notifies(), [NotifyType::UseTransportMode]);
    let up = net.child_ups(0)[1].1.clone();
    assert_eq!((up.id.number, up.spi_out), (1, 5001));
    let said = payloads(&mut net, 5002, &tcp(1, 0, 1));
    let answer = ask(&mut net, &mut raw, &said);
    assert_eq!(answer.notifies(), [NotifyType::NoAdditionalSas]);
    let said = payloads(&mut net, 5003, &tcp(1, 0, 2));
    let answer = ask(&mut net, &mut raw, &said);
    assert_eq!(answer.notifies(), [NotifyType::TsUnacceptable]);
    assert_eq!(net.child_ups(0).len(), 2);
}

#[test]
fn the_ike_sa_stays_while_there_is_one_of_any_kind() {
    let mut net = Net::psk_mesh(1, 2);
    net.add_child(0, 1, 1, tcp(0, 1, 1));
    let mut raw = by_hand(&mut net, 1, 0);
    let said = payloads(&mut net, 5001, &tcp(1, 0, 1));
    ask(&mut net, &mut raw, &said);
    let mut delete = |net: &mut Net, spi| {
        let protocol = ProtocolId::Esp;
        let delete = Payload::Delete(Delete::Child {
            protocol,
            spis: vec![spi],
        });
        raw.ask(net, ExchangeType::Informational, &[delete])
            .unwrap();
    };
    delete(&mut net, FIRST);
    assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::Established);
    assert_eq!(downs(&net, 0), [CloseReason::Peer]);
    delete(&mut net, 5001);
    assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::None);
    assert_eq!(downs(&net, 0), [CloseReason::Peer; 2]);
}

/// Node `node` has asked the peer made by hand for CHILD_SA 1.
fn asked(net: &mut Net, name: usize, node: usize) -> Raw {
    net.nodes[name].up = false;
    let mut raw = by_hand(net, name, node);
    raw.ask(net, ExchangeType::Informational, &[]).unwrap();
    net.connect(node, name, Connect::Policy);
    net.add_child(node, name, 1, tcp(node, name, 1));
    let created = |net: &Net| {
        net.sent
            .iter()
            .any(|packet| packet.kind().0 == CREATE_CHILD)
    };
    assert!(net.run_until(Duration::from_secs(10), created));
    raw
}

#[test]
fn of_two_requests_that_cross_the_lower_identitys_goes_on() {
    for (name, node) in [(1, 0), (0, 1)] {
        let mut net = Net::psk_mesh(1, 2);
        let mut raw = asked(&mut net, name, node);
        let said = payloads(&mut net, 5001, &tcp(name, node, 1));
        let answer = ask(&mut net, &mut raw, &said);
        let lower = node == 0;
        let expected = match lower {
            true => NotifyType::TemporaryFailure,
            false => NotifyType::UseTransportMode,
        };
        assert_eq!(answer.notifies(), [expected]);
        assert_eq!(net.child_ups(node).len(), if lower { 1 } else { 2 });
        // The other end does the same.
        let refusal = Payload::Notify(Notify::new(NotifyType::TemporaryFailure, &[]));
        raw.answer(&mut net, &[refusal]);
        let before = net.sent.len();
        net.run(limits::REKEY_RETRY * 2);
        let again = net.sent[before..]
            .iter()
            .filter(|packet| packet.kind().0 == CREATE_CHILD);
        assert_eq!(again.count() > 0, lower, "who has none asks again");
    }
}

// --- RFC 9611 ---

fn per_cpu(seed: u64, wanted: [Option<u32>; 2]) -> Net {
    let mut net = Net::new(seed, 2, None);
    for (own, wanted) in wanted.into_iter().enumerate() {
        let mut config = peer_config(own, 1 - own, psk(7));
        config.child.per_cpu = wanted;
        let now = net.now;
        net.nodes[own].endpoint.put_peer(config, now).unwrap();
    }
    net
}

#[test]
fn as_many_for_cpus_are_made_as_both_ends_want_beside_the_fallback() {
    for (wanted, made) in [
        ([Some(4), Some(4)], 4),
        ([Some(4), Some(2)], 2),
        ([Some(2), Some(4)], 2),
        ([Some(4), None], 0),
        ([None, Some(4)], 0),
        ([Some(4), Some(0)], 0),
    ] {
        let mut net = per_cpu(1, wanted);
        net.connect_all(Connect::Policy);
        net.run(Duration::from_secs(60));
        assert!(has(&net, made), "{wanted:?}: {:?}", kinds(&net));
        for node in 0..2 {
            let first = net.child_ups(node)[0].1.clone();
            assert_eq!((first.id, first.per_cpu), (ChildId::FIRST, made > 0));
            let cpus: BTreeSet<u32> = net
                .child_ups(node)
                .iter()
                .filter_map(|up| up.1.id.cpu)
                .collect();
            assert_eq!(cpus, (0..u32::try_from(made).unwrap()).collect());
            for (_, up, _) in net.child_ups(node) {
                assert_eq!(
                    (up.suite, up.esn, up.transport),
                    (first.suite, first.esn, true)
                );
                assert_eq!(up.local_ts, first.local_ts);
            }
            assert_eq!(net.failures(node), [""; 0]);
        }
    }
}

#[test]
fn those_for_cpus_survive_bad_weather_rekeys_and_restarts() {
    for seed in 0..20 {
        let mut net = per_cpu(seed, [Some(3), Some(3)]);
        net.weather = ROUGH;
        net.connect_all(Connect::Policy);
        net.run(Duration::from_secs(30));
        net.weather = Weather::FINE;
        assert!(net.run_until(LONG, |net| has(net, 3)), "seed {seed}");
        let before = kinds(&net).unwrap();
        let node = (seed % 2) as usize;
        for (_, up, _) in net.child_ups(node) {
            let now = net.now;
            net.nodes[node].endpoint.rekey_child_sa(up.spi_in, now);
            net.pump(node);
            net.run(Duration::from_secs(2));
        }
        net.run(limits::DRAIN * 2);
        assert_eq!(
            kinds(&net),
            Some(before),
            "seed {seed}: a rekey keeps the CPU"
        );
        let held = net.nodes[node].endpoint.holdings();
        assert_eq!((held.established, held.children, held.spis), (1, 4, 4));
    }
}

#[test]
fn a_peer_is_told_when_it_has_as_many_for_cpus_as_it_may() {
    let mut net = Net::psk_mesh(1, 2);
    let mut config = tcp(0, 1, 1);
    config.per_cpu = Some(2);
    config.suites = vec![EspSuite::Aes256Gcm16.into(), EspSuite::Aes128Gcm16.into()];
    net.add_child(0, 1, 1, config);
    let mut raw = by_hand(&mut net, 1, 0);
    let info = |data| Payload::Notify(Notify::new(NotifyType::SaResourceInfo, data));
    let mut made = |net: &mut Net, spi, info: Option<Payload<'static>>, bits| {
        let mut said = payloads(net, spi, &tcp(1, 0, 1));
        for payload in &mut said {
            if let Payload::Sa(sa) = payload {
                sa.proposals[0].transforms[0].key_length = Some(bits);
            }
        }
        said.extend(info);
        ask(net, &mut raw, &said).notifies()
    };
    let granted = [NotifyType::UseTransportMode, NotifyType::SaResourceInfo];
    assert_eq!(made(&mut net, 5001, Some(info(&[])), 256), granted);
    assert_eq!(
        made(&mut net, 5002, Some(info(b"cpu 7")), 128),
        [NotifyType::NoProposalChosen]
    );
    assert_eq!(made(&mut net, 5003, Some(info(b"cpu 7")), 256), granted);
    assert_eq!(
        made(&mut net, 5004, None, 256),
        [NotifyType::NoAdditionalSas]
    );
    assert_eq!(made(&mut net, 5005, Some(info(&[])), 256), granted);
    assert_eq!(
        made(&mut net, 5006, Some(info(b"cpu 8")), 256),
        [NotifyType::TsMaxQueue]
    );
    let cpus: Vec<Option<u32>> = net.child_ups(0).iter().map(|up| up.1.id.cpu).collect();
    assert_eq!(cpus, [None, None, Some(0), Some(1)]);
}
