//! Rekeys with ML-KEM: IKE_FOLLOWUP_KE (RFC 9370 §2.2.4), in both roles, crossing, lost, and by peers that do it wrong.
//! `schedules.rs` runs them at random.

use std::time::Duration;

use espalier_ike::crypto::{KexGroup, KeyExchange};
use espalier_ike::wire::{
    self, ExchangeType, Nonce, Notify, NotifyType, Payload, Transform, TransformType,
};
use espalier_ike::{CloseReason, Connect, Event, PostQuantum, Role, limits};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Answer, Raw};
use crate::sim::{ANSWER, ASK, CREATE_CHILD, FOLLOWUP, Net, Weather, address, id};

use PostQuantum::{Off, Preferred, Required};

const LONG: Duration = Duration::from_secs(300);

fn connected(seed: u64, ours: PostQuantum, theirs: PostQuantum) -> Net {
    let mut net = Net::psk_mesh(seed, 2);
    net.set_post_quantum(0, ours);
    net.set_post_quantum(1, theirs);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled), "seed {seed}");
    net.run(Duration::from_secs(1));
    net
}

fn sent(net: &Net, exchange: u8) -> usize {
    let of_kind = |packet: &&crate::sim::Packet| packet.kind().0 == exchange;
    net.sent.iter().filter(of_kind).count()
}

/// One IKE SA and one CHILD_SA pair on both ends, with the same keys.
fn assert_one(net: &mut Net, context: &str) {
    net.weather = Weather::FINE;
    net.filter = None;
    net.run(limits::FOLLOWUP_LINGER + Duration::from_secs(60));
    assert!(net.all_settled(), "{context}: not settled");
    for node in 0..2 {
        assert_eq!(net.ike_sas(node), 1, "{context}: IKE SAs of node {node}");
        let down = |event: &Event| matches!(event, Event::IkeDown { .. });
        assert_eq!(net.count(node, down), 0, "{context}: IkeDown on {node}");
        assert_eq!(net.nodes[node].endpoint.audit(), Ok(()), "{context}");
    }
}

#[test]
fn either_end_rekeys_a_child_sa_with_ml_kem() {
    for initiator in [0, 1] {
        let mut net = connected(1, Preferred, Required);
        net.rekey_child(initiator, 1 - initiator);
        net.run(Duration::from_secs(1));
        assert_eq!(sent(&net, CREATE_CHILD), 2);
        // A key of 1184 bytes does not fit into one datagram of the least MTU, a ciphertext does.
        assert_eq!(sent(&net, FOLLOWUP), 3);
        let ups: Vec<_> = (0..2).map(|node| net.child_ups(node)[1].clone()).collect();
        assert_eq!(ups[initiator].0, Role::Initiator);
        assert_eq!(ups[0].1.keys_in, ups[1].1.keys_out);
        assert_eq!(ups[0].1.keys_out, ups[1].1.keys_in);
        assert_one(&mut net, "child");
    }
}

#[test]
fn either_end_rekeys_the_ike_sa_with_ml_kem_and_goes_on() {
    for initiator in [0, 1] {
        let mut net = connected(1, Preferred, Preferred);
        net.rekey_ike(initiator, 1 - initiator);
        net.run(Duration::from_secs(1));
        assert_eq!((sent(&net, CREATE_CHILD), sent(&net, FOLLOWUP)), (2, 3));
        net.announce(1 - initiator, initiator, b"under the new one");
        net.run(Duration::from_secs(1));
        let acked = |event: &Event| matches!(event, Event::AnnouncementAcked { data, .. } if data == b"under the new one");
        assert_eq!(net.count(1 - initiator, acked), 1);
        // It is remembered that ML-KEM is in the keys.
        net.rekey_child(1 - initiator, initiator);
        net.run(Duration::from_secs(1));
        assert_eq!((sent(&net, CREATE_CHILD), sent(&net, FOLLOWUP)), (4, 6));
        assert_one(&mut net, "ike");
    }
}

#[test]
fn an_ike_sa_without_ml_kem_is_rekeyed_without() {
    for (ours, theirs) in [(Preferred, Off), (Off, Preferred)] {
        let mut net = connected(1, ours, theirs);
        net.rekey_child(0, 1);
        net.run(Duration::from_secs(1));
        net.rekey_ike(1, 0);
        net.run(Duration::from_secs(1));
        assert_eq!((sent(&net, CREATE_CHILD), sent(&net, FOLLOWUP)), (4, 0));
        assert_one(&mut net, "without");
    }
}

/// Messages of a rekey that vanish, each of them, for a while or for good.
#[test]
fn any_lost_message_is_made_up_for() {
    for ike in [false, true] {
        for lost in 0..5 {
            let mut net = connected(1, Required, Required);
            let mut count = 0;
            net.filter = Some(Box::new(move |packet| {
                let of_rekey = [CREATE_CHILD, FOLLOWUP].contains(&packet.kind().0);
                count += usize::from(of_rekey);
                !of_rekey || count != lost + 1
            }));
            match ike {
                true => net.rekey_ike(0, 1),
                false => net.rekey_child(0, 1),
            }
            net.run(Duration::from_secs(10));
            assert_eq!(net.child_ups(1).len(), if ike { 1 } else { 2 });
            assert_one(&mut net, &format!("IKE {ike}, lost {lost}"));
        }
    }
}

#[test]
fn of_two_rekeys_of_a_child_sa_that_cross_one_stops_before_anything_is_made() {
    for seed in 0..10 {
        let mut net = connected(seed, Preferred, Preferred);
        net.rekey_child(0, 1);
        net.rekey_child(1, 0);
        net.run(Duration::from_secs(3));
        assert_eq!(sent(&net, CREATE_CHILD), 4, "both are answered");
        assert_eq!(sent(&net, FOLLOWUP), 3, "one goes on");
        for node in 0..2 {
            assert_eq!(net.child_ups(node).len(), 2, "no third CHILD_SA ever was");
        }
        assert_one(&mut net, "crossing");
    }
}

#[test]
fn of_two_rekeys_of_the_ike_sa_that_cross_one_stops_before_anything_is_made() {
    for seed in 0..10 {
        let mut net = connected(seed, Preferred, Preferred);
        net.rekey_ike(0, 1);
        net.rekey_ike(1, 0);
        net.run(Duration::from_secs(3));
        assert_eq!((sent(&net, CREATE_CHILD), sent(&net, FOLLOWUP)), (4, 3));
        assert_one(&mut net, "crossing");
    }
}

#[test]
fn a_request_that_comes_when_half_is_done_is_put_off() {
    for ike in [false, true] {
        let mut net = connected(1, Preferred, Preferred);
        net.by_hand();
        let rekey = |net: &mut Net, own: usize| match ike {
            true => net.rekey_ike(own, 1 - own),
            false => net.rekey_child(own, 1 - own),
        };
        rekey(&mut net, 0);
        rekey(&mut net, 1);
        let late = net.take(1, CREATE_CHILD, ASK);
        net.exchange(0, CREATE_CHILD);
        // Node 0 has its answer and goes on; only now comes node 1's request.
        net.deliver(&late);
        net.hand(0, CREATE_CHILD, ANSWER);
        while !net.held().is_empty() {
            let packet = net.take_at(0);
            net.deliver(&packet);
        }
        let made = |node: usize| net.child_ups(node).len();
        assert_eq!((made(0), made(1)), if ike { (1, 1) } else { (2, 2) });
        assert_eq!(sent(&net, CREATE_CHILD), 4);
        assert_eq!(sent(&net, FOLLOWUP), 3, "of node 0's alone");
    }
}

#[test]
fn a_rekey_that_is_not_gone_on_with_is_forgotten_and_harms_nothing() {
    for ike in [false, true] {
        let mut net = connected(1, Preferred, Preferred);
        net.filter = Some(Box::new(|packet| packet.kind().0 != FOLLOWUP));
        match ike {
            true => net.rekey_ike(0, 1),
            false => net.rekey_child(0, 1),
        }
        net.run(Duration::from_secs(2));
        let spis = net.nodes[1].endpoint.holdings().spis;
        assert_eq!(spis, if ike { 1 } else { 2 }, "one is held for it");
        // The asking end has vanished: nothing of it may keep the other from its own ways.
        net.nodes[0].up = false;
        net.strict = false;
        net.announce(1, 0, b"waits");
        net.run(limits::FOLLOWUP_LINGER + Duration::from_secs(60));
        assert_eq!(net.nodes[1].endpoint.audit(), Ok(()));
        let down = |event: &Event| {
            matches!(
                event,
                Event::IkeDown {
                    reason: CloseReason::Timeout,
                    ..
                }
            )
        };
        assert_eq!(net.count(1, down), 1, "its silence is noticed");
    }
}

#[test]
fn an_ike_sa_that_is_given_up_within_a_rekey_leaves_nothing() {
    for after in [1, 2, 3, 4] {
        for ike in [false, true] {
            let mut net = connected(1, Preferred, Preferred);
            net.strict = false;
            match ike {
                true => net.rekey_ike(0, 1),
                false => net.rekey_child(0, 1),
            }
            net.run(Duration::from_millis(after));
            net.disconnect(0, 1);
            net.run(Duration::from_millis(500));
            net.disconnect(1, 0);
            net.run(limits::REKEYED_LINGER + Duration::from_secs(60));
            for node in 0..2 {
                assert_eq!(
                    net.ike_sas(node),
                    0,
                    "after {after} ms, IKE {ike}, node {node}"
                );
                assert_eq!(net.nodes[node].endpoint.holdings().spis, 0);
                assert_eq!(net.nodes[node].endpoint.audit(), Ok(()));
            }
        }
    }
}

// --- A peer made by hand. ---

const OLD: u32 = 4711;
const NEW: u32 = 4712;

fn authenticated(post_quantum: PostQuantum) -> (Net, Raw) {
    let mut net = Net::psk_mesh(1, 2);
    net.post_quantum(post_quantum);
    let supported = [NotifyType::IntermediateExchangeSupported];
    let mut raw = match post_quantum {
        Off => Raw::init(&mut net, address(1), 0, false),
        _ => Raw::init_with(&mut net, address(1), 0, false, &supported),
    };
    if post_quantum != Off {
        raw.add_kem(&mut net);
    }
    let child = raw::child(OLD, address(1), address(0));
    let secret = SecretBytes::copy_from(&[7; 32]);
    raw.auth_psk(&mut net, "node-01", &secret, &child).unwrap();
    (net, raw)
}

/// A rekey of the CHILD_SA that offers these additional key exchanges.
fn ask(net: &mut Net, raw: &mut Raw, spi: u32, kems: &[u16]) -> Answer {
    let kex = KeyExchange::generate(KexGroup::X25519, &mut net.rng).unwrap();
    let mut payloads = raw::child(spi, address(1), address(0));
    for payload in &mut payloads {
        if let Payload::Sa(sa) = payload {
            let transforms = &mut sa.proposals[0].transforms;
            transforms.push(Transform::new(TransformType::Ke, 31));
            transforms.extend(
                kems.iter()
                    .map(|id| Transform::new(TransformType::AddKe1, *id)),
            );
        }
    }
    let ke = wire::KeyExchange {
        group: 31,
        data: kex.public(),
    };
    let nonce = [5; 32];
    payloads.extend([
        Payload::Notify(Notify::about_esp(NotifyType::RekeySa, OLD)),
        Payload::Nonce(Nonce(&nonce)),
        Payload::Ke(ke),
    ]);
    raw.ask(net, ExchangeType::CreateChildSa, &payloads)
        .unwrap()
}

fn link(answer: &Answer) -> Option<Vec<u8>> {
    answer.payloads().iter().find_map(|payload| match payload {
        Payload::Notify(n) if n.kind == NotifyType::AdditionalKeyExchange => Some(n.data.to_vec()),
        _ => None,
    })
}

fn follow(net: &mut Net, raw: &mut Raw, link: &[u8], key: &[u8]) -> Vec<NotifyType> {
    let link = Notify::new(NotifyType::AdditionalKeyExchange, link);
    let said = [&raw::kem_payload(key)[..], &[Payload::Notify(link)]].concat();
    let answer = raw.ask(net, ExchangeType::IkeFollowupKe, &said);
    answer.unwrap().notifies()
}

#[test]
fn nothing_is_made_before_the_last_key_exchange_and_each_serves_once() {
    let (mut net, mut raw) = authenticated(Required);
    let answer = ask(&mut net, &mut raw, NEW, &[36]);
    let link = link(&answer).unwrap();
    assert_eq!(net.child_ups(0).len(), 1);
    let key = vec![0; 1184];
    assert_eq!(follow(&mut net, &mut raw, &link, &key), []);
    assert_eq!(net.child_ups(0).len(), 2);
    assert_eq!(
        follow(&mut net, &mut raw, &link, &key),
        [NotifyType::StateNotFound]
    );
    assert_eq!(net.child_ups(0).len(), 2);
}

#[test]
fn ike_followup_ke_without_its_request_is_told_state_not_found() {
    let (mut net, mut raw) = authenticated(Required);
    let key = vec![0; 1184];
    assert_eq!(
        follow(&mut net, &mut raw, b"whatever", &key),
        [NotifyType::StateNotFound]
    );
    let answer = ask(&mut net, &mut raw, NEW, &[36]);
    let mut other = link(&answer).unwrap();
    other[0] ^= 1;
    assert_eq!(
        follow(&mut net, &mut raw, &other, &key),
        [NotifyType::StateNotFound]
    );
    let empty = raw.ask(&mut net, ExchangeType::IkeFollowupKe, &[]);
    assert_eq!(empty.unwrap().notifies(), [NotifyType::StateNotFound]);
    // The genuine one is still good, and no more after its time.
    let genuine = link(&answer).unwrap();
    for _ in 0..limits::FOLLOWUP_LINGER.as_secs() / 10 + 1 {
        net.run(Duration::from_secs(10));
        raw.ask(&mut net, ExchangeType::Informational, &[]).unwrap();
    }
    assert_eq!(
        follow(&mut net, &mut raw, &genuine, &key),
        [NotifyType::StateNotFound]
    );
    assert_eq!(net.child_ups(0).len(), 1);
    assert_eq!(net.nodes[0].endpoint.audit(), Ok(()));
}

#[test]
fn keys_of_the_wrong_length_are_refused_and_free_what_was_held() {
    for key in [
        vec![0; 1183],
        vec![0; 1185],
        vec![0xff; 1184],
        vec![0; 1568],
    ] {
        let (mut net, mut raw) = authenticated(Required);
        let before = net.nodes[0].endpoint.holdings().spis;
        let answer = ask(&mut net, &mut raw, NEW, &[36]);
        assert_eq!(net.nodes[0].endpoint.holdings().spis, before + 1);
        let told = follow(&mut net, &mut raw, &link(&answer).unwrap(), &key);
        assert_eq!(told, [NotifyType::InvalidSyntax]);
        assert_eq!(net.nodes[0].endpoint.holdings().spis, before);
        assert_eq!(net.child_ups(0).len(), 1);
    }
}

#[test]
fn a_peer_that_asks_again_and_again_holds_one_thing_at_a_time() {
    let (mut net, mut raw) = authenticated(Preferred);
    let before = net.nodes[0].endpoint.holdings().spis;
    let mut links = Vec::new();
    for spi in NEW..NEW + 20 {
        links.extend(link(&ask(&mut net, &mut raw, spi, &[36])));
        assert_eq!(net.nodes[0].endpoint.holdings().spis, before + 1);
    }
    let key = vec![0; 1184];
    let old = follow(&mut net, &mut raw, &links[0], &key);
    assert_eq!(old, [NotifyType::StateNotFound]);
    assert_eq!(follow(&mut net, &mut raw, &links[19], &key), []);
}

#[test]
fn where_ml_kem_is_required_a_rekey_without_it_is_refused() {
    let (mut net, mut raw) = authenticated(Required);
    let told = ask(&mut net, &mut raw, NEW, &[]).notifies();
    assert_eq!(told, [NotifyType::NoProposalChosen]);
    let told = ask(&mut net, &mut raw, NEW, &[35]).notifies();
    assert_eq!(told, [NotifyType::NoProposalChosen], "ML-KEM-512");
    let (mut net, mut raw) = authenticated(Preferred);
    assert_eq!(link(&ask(&mut net, &mut raw, NEW, &[0])), None, "NONE");
    assert_eq!(net.child_ups(0).len(), 2);
    let (mut net, mut raw) = authenticated(Off);
    assert_eq!(
        link(&ask(&mut net, &mut raw, NEW, &[36, 0])),
        None,
        "not with this one"
    );
    assert_eq!(net.child_ups(0).len(), 2);
    assert_eq!(
        net.nodes[0].endpoint.status(&id(1)),
        espalier_ike::IkeStatus::Established
    );
}
