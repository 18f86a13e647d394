//! ML-KEM in the handshake: IKE_INTERMEDIATE (RFC 9242) with an additional key exchange (RFC 9370), who uses it with whom,
//! and attempts to talk two ends out of it.

use std::time::Duration;

use espalier_ike::crypto::Kem;
use espalier_ike::wire::{self, ExchangeType, Message, NotifyType, Payload, TransformType};
use espalier_ike::{Connect, Event, IkePolicy, PeerAuth, PostQuantum, Role, limits};
use espalier_secret::SecretBytes;

use crate::sim::pki::Ca;
use crate::sim::raw::{self, Raw, kem_payload};
use crate::sim::{
    ANSWER, ASK, AUTH, INFORMATIONAL, INIT, INTERMEDIATE, Net, Packet, Weather, address, id, psk,
};

use PostQuantum::{Off, Preferred, Required};

const LONG: Duration = Duration::from_secs(300);
const A_WHILE: Duration = Duration::from_secs(20);

fn pair(seed: u64, ours: PostQuantum, theirs: PostQuantum) -> Net {
    let mut net = Net::psk_mesh(seed, 2);
    net.set_post_quantum(0, ours);
    net.set_post_quantum(1, theirs);
    net
}

fn assert_same_keys(net: &Net) {
    let (a, b) = (net.child_ups(0), net.child_ups(1));
    let ([(Role::Initiator, a, _)], [(Role::Responder, b, _)]) = (&a[..], &b[..]) else {
        panic!("{a:?} {b:?}");
    };
    assert_eq!((&a.keys_in, &a.keys_out), (&b.keys_out, &b.keys_in));
}

fn intermediates(net: &Net) -> usize {
    let sent = net.sent.iter();
    sent.filter(|packet| packet.kind().0 == INTERMEDIATE)
        .count()
}

fn ups(net: &Net) -> usize {
    let up = |event: &Event| matches!(event, Event::IkeUp { .. });
    net.count(0, up) + net.count(1, up)
}

#[test]
fn ml_kem_comes_in_one_exchange_before_ike_auth() {
    let mut net = pair(1, Preferred, Preferred);
    net.connect(0, 1, Connect::Policy);
    net.run(Duration::from_secs(10));
    assert_same_keys(&net);
    let mut kinds: Vec<_> = net.sent.iter().map(Packet::kind).collect();
    kinds.dedup();
    let expected = [
        (INIT, false, 0),
        (INIT, true, 0),
        (INTERMEDIATE, false, 1),
        (INTERMEDIATE, true, 1),
        (AUTH, false, 2),
        (AUTH, true, 2),
        (INFORMATIONAL, false, 3),
        (INFORMATIONAL, true, 3),
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn certificates_sign_what_ike_intermediate_said() {
    let ca = Ca::new("CA");
    let mut net = Net::new(1, 2, Some(&ca));
    net.post_quantum(Required);
    net.introduce_all(&PeerAuth::Certificate);
    net.connect(0, 1, Connect::Policy);
    assert!(
        net.run_until(LONG, Net::all_settled),
        "{:?}",
        net.failures(0)
    );
    assert_same_keys(&net);
}

#[test]
fn ml_kem_1024_alone_can_be_asked_for() {
    let mut net = Net::psk_mesh(1, 2);
    for node in 0..2 {
        let mut config = net.nodes[node].config.clone();
        config.ike = IkePolicy {
            kems: vec![Kem::MlKem1024],
            ..IkePolicy::default()
        };
        net.set_config(node, config);
    }
    net.connect(0, 1, Connect::Policy);
    assert!(
        net.run_until(LONG, Net::all_settled),
        "{:?}",
        net.failures(0)
    );
    assert_same_keys(&net);
    let mut bytes = [0, 0];
    for packet in net
        .sent
        .iter()
        .filter(|packet| packet.kind().0 == INTERMEDIATE)
    {
        bytes[usize::from(packet.kind().1)] += packet.payload.len();
    }
    assert!(bytes.into_iter().all(|bytes| bytes > 1568), "{bytes:?}");
}

#[test]
fn both_ends_policies_decide_whether_there_is_ml_kem() {
    for ours in [Off, Preferred, Required] {
        for theirs in [Off, Preferred, Required] {
            let mut net = pair(1, ours, theirs);
            net.connect(0, 1, Connect::Policy);
            net.run(A_WHILE);
            let refused = matches!((ours, theirs), (Off, Required) | (Required, Off));
            let used = ours != Off && theirs != Off;
            assert_eq!(net.all_settled(), !refused, "{ours:?} {theirs:?}");
            assert_eq!(intermediates(&net) > 0, used, "{ours:?} {theirs:?}");
            if refused {
                let text = &net.failures(1)[0];
                let cause = "no IKE proposal in common: the peer offered Ike ENCR 20/256";
                assert!(
                    text.starts_with(cause) && text.contains("ADDKE1 36"),
                    "{text}"
                );
            }
        }
    }
}

#[test]
fn any_lost_message_is_made_up_for() {
    for lost in 0..10 {
        let mut net = pair(lost, Preferred, Preferred);
        let mut count = 0;
        net.filter = Some(Box::new(move |_| {
            count += 1;
            count != lost + 1
        }));
        net.connect(0, 1, Connect::Policy);
        assert!(
            net.run_until(LONG, Net::all_settled),
            "{lost}: {:?}",
            net.failures(0)
        );
        assert_same_keys(&net);
    }
}

#[test]
fn bad_weather_is_weathered() {
    for seed in 0..40 {
        let mut net = pair(seed, Preferred, Preferred);
        net.weather = Weather::BAD;
        net.connect(0, 1, Connect::Policy);
        net.connect(1, 0, Connect::Policy);
        assert!(
            net.run_until(LONG, Net::all_settled),
            "{seed}: {:?}",
            net.failures(0)
        );
    }
}

/// Request and response are too large for the path; the response only after the keys have changed.
#[test]
fn a_path_for_576_bytes_takes_ml_kem_in_small_fragments() {
    for narrow in [0, 1] {
        let mut net = pair(1, Required, Required);
        let most = limits::MESSAGE_SMALL;
        let from = address(narrow);
        net.filter = Some(Box::new(move |packet| {
            packet.payload.len() <= most || packet.path.local != from
        }));
        net.connect(0, 1, Connect::Policy);
        assert!(
            net.run_until(LONG, Net::all_settled),
            "{narrow}: {:?}",
            net.failures(0)
        );
        assert_same_keys(&net);
        assert_eq!(net.failures(0), Vec::<String>::new());
    }
}

#[test]
fn a_responder_that_goes_silent_is_named() {
    let mut net = pair(1, Preferred, Preferred);
    net.filter = Some(Box::new(|packet| packet.kind() != (INTERMEDIATE, true, 1)));
    net.connect(0, 1, Connect::Policy);
    net.run(Duration::from_secs(40));
    let text = &net.failures(0)[0];
    assert!(
        text.contains("answered IKE_SA_INIT but not IKE_INTERMEDIATE"),
        "{text}"
    );
}

// --- Downgrades: whoever sits between the ends changes IKE_SA_INIT, which nothing protects but the proof in IKE_AUTH. ---

fn without(packet: &Packet, kind: NotifyType) -> Packet {
    change(packet, |payloads| {
        payloads
            .retain(|payload| !matches!(payload, Payload::Notify(notify) if notify.kind == kind));
    })
}

fn without_kem(packet: &Packet) -> Packet {
    change(packet, |payloads| {
        for payload in payloads {
            if let Payload::Sa(sa) = payload {
                let is_kem = |kind| kind == TransformType::AddKe1;
                let with_kem = |p: &wire::Proposal| p.transforms.iter().any(|t| is_kem(t.kind));
                sa.proposals.retain(|proposal| !with_kem(proposal));
            }
        }
    })
}

fn change(packet: &Packet, change: impl Fn(&mut Vec<Payload<'_>>)) -> Packet {
    let mut message = Message::parse(&packet.payload).unwrap();
    change(&mut message.payloads);
    Packet {
        path: packet.path,
        payload: wire::emit(&message.header, &message.payloads),
    }
}

#[test]
fn taking_ml_kem_out_of_the_request_breaks_the_proof() {
    let no_support = |packet: &Packet| without(packet, NotifyType::IntermediateExchangeSupported);
    let neither = |packet: &Packet| without_kem(&no_support(packet));
    for (way, changed) in [
        ("support", &no_support as &dyn Fn(&Packet) -> Packet),
        ("proposals", &without_kem),
        ("both", &neither),
    ] {
        let mut net = pair(1, Preferred, Preferred);
        net.by_hand();
        net.connect(0, 1, Connect::Restart);
        let request = net.take(0, INIT, ASK);
        net.deliver(&changed(&request));
        net.hand(1, INIT, ANSWER);
        net.hand(0, AUTH, ASK);
        net.hand(1, AUTH, ANSWER);
        assert_eq!(ups(&net), 0, "{way}");
        let text = net.failures(1).concat();
        assert!(text.contains("pre-shared key differs"), "{way}: {text}");
    }
}

#[test]
fn taking_ml_kem_out_of_the_response_ends_nowhere() {
    // The responder waits for ML-KEM: IKE_AUTH is not even read.
    let mut net = pair(1, Preferred, Preferred);
    net.by_hand();
    net.connect(0, 1, Connect::Restart);
    net.hand(0, INIT, ASK);
    let answer = net.take(1, INIT, ANSWER);
    let changed = change(&answer, |payloads| {
        for payload in payloads {
            if let Payload::Sa(sa) = payload {
                sa.proposals[0].number = 2;
                sa.proposals[0]
                    .transforms
                    .retain(|transform| transform.kind != TransformType::AddKe1);
            }
        }
    });
    net.deliver(&changed);
    net.hand(0, AUTH, ASK);
    assert_eq!((ups(&net), net.held().len()), (0, 0));
    // Without the notify alone the answer is not believed, and the genuine one is, later.
    let mut net = pair(1, Preferred, Preferred);
    net.by_hand();
    net.connect(0, 1, Connect::Restart);
    net.hand(0, INIT, ASK);
    let answer = net.take(1, INIT, ANSWER);
    net.deliver(&without(&answer, NotifyType::IntermediateExchangeSupported));
    assert!(net.held().is_empty());
    net.deliver(&answer);
    net.hand(0, INTERMEDIATE, ASK);
}

#[test]
fn where_ml_kem_is_required_a_downgraded_request_or_response_is_not_taken() {
    let mut net = pair(1, Required, Required);
    net.by_hand();
    net.connect(0, 1, Connect::Restart);
    let request = net.take(0, INIT, ASK);
    net.deliver(&without(
        &request,
        NotifyType::IntermediateExchangeSupported,
    ));
    let answer = net.take(1, INIT, ANSWER);
    let message = Message::parse(&answer.payload).unwrap();
    let refused = |payload: &Payload<'_>| matches!(payload, Payload::Notify(n) if n.kind == NotifyType::NoProposalChosen);
    assert!(message.payloads.iter().any(refused));
    assert_eq!(ups(&net), 0);
}

// --- Hostile initiators. ---

const SUPPORTED: [NotifyType; 1] = [NotifyType::IntermediateExchangeSupported];

fn hostile(net: &mut Net) -> Raw {
    Raw::init_with(net, address(1), 0, true, &SUPPORTED)
}

fn responder() -> Net {
    let mut net = Net::psk_mesh(1, 2);
    net.post_quantum(Preferred);
    net
}

/// An implementation of the bytes of RFC 9242 §3.3.2 beside the endpoint's.
#[test]
fn an_initiator_made_by_hand_is_believed() {
    let mut net = responder();
    let mut raw = hostile(&mut net);
    raw.add_kem(&mut net);
    let child = raw::child(4711, address(1), address(0));
    let secret = SecretBytes::copy_from(&[7; 32]);
    let answer = raw.auth_psk(&mut net, "node-01", &secret, &child);
    assert!(
        answer
            .unwrap()
            .payloads()
            .iter()
            .any(|p| matches!(p, Payload::Auth(_)))
    );
    assert_eq!(net.child_ups(0).len(), 1);
}

#[test]
fn keys_of_the_wrong_length_or_method_are_refused_and_end_the_attempt() {
    let key = vec![0; 1184];
    let over = vec![0xff; 1184];
    let twice = [kem_payload(&key), kem_payload(&key)].concat();
    let other = [Payload::Ke(wire::KeyExchange {
        group: 37,
        data: &key,
    })];
    for (what, payloads) in [
        ("short", &kem_payload(&key[1..])[..]),
        ("empty message", &[]),
        ("coefficients beyond the modulus", &kem_payload(&over)),
        ("two", &twice),
        ("another method", &other),
    ] {
        let mut net = responder();
        let mut raw = hostile(&mut net);
        let answer = raw.ask(&mut net, ExchangeType::IkeIntermediate, payloads);
        let notifies = answer.unwrap().notifies();
        assert_eq!(notifies, [NotifyType::InvalidSyntax], "{what}");
        assert_eq!(net.nodes[0].endpoint.half_open(), 0, "{what}");
        let again = raw.ask(&mut net, ExchangeType::IkeIntermediate, &kem_payload(&key));
        assert!(again.is_none(), "{what}");
        net.run(Duration::from_secs(60));
        assert_eq!(net.ike_sas(0), 0, "{what}");
    }
}

#[test]
fn ike_auth_before_and_a_second_ike_intermediate_are_dropped() {
    let secret = SecretBytes::copy_from(&[7; 32]);
    let child = raw::child(4711, address(1), address(0));
    let mut net = responder();
    let mut raw = hostile(&mut net);
    assert!(raw.auth_psk(&mut net, "node-01", &secret, &child).is_none());
    raw.add_kem(&mut net);
    let key = vec![0; 1184];
    let second = raw.ask(&mut net, ExchangeType::IkeIntermediate, &kem_payload(&key));
    assert!(second.is_none());
    // Neither has harmed the handshake.
    assert!(raw.auth_psk(&mut net, "node-01", &secret, &child).is_some());
    let third = raw.ask(&mut net, ExchangeType::IkeIntermediate, &kem_payload(&key));
    assert!(third.is_none(), "nor is there one on an established IKE SA");
}

#[test]
fn ike_intermediate_that_was_not_agreed_on_or_has_no_ike_sa_is_dropped() {
    let mut net = responder();
    let key = vec![0; 1184];
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    let asked = raw.ask(&mut net, ExchangeType::IkeIntermediate, &kem_payload(&key));
    assert!(asked.is_none());
    let stray = raw.seal(ExchangeType::IkeIntermediate, &kem_payload(&key), None);
    let mut other = responder();
    let path = espalier_ike::Path {
        local: address(1),
        remote: address(0),
    };
    raw::ask(&mut other, path, stray[0].clone());
    assert_eq!(other.ike_sas(0), 0);
}

#[test]
fn a_repeated_ike_intermediate_gets_the_same_answer_and_changes_nothing() {
    let mut net = responder();
    let mut raw = hostile(&mut net);
    let [asked, answered] = raw.add_kem(&mut net);
    let path = espalier_ike::Path {
        local: address(1),
        remote: address(0),
    };
    for _ in 0..3 {
        let again = raw::ask(&mut net, path, asked.clone());
        assert_eq!(again.as_ref(), Some(&answered));
    }
    let mut forged = asked;
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(raw::ask(&mut net, path, forged), None);
    let child = raw::child(4711, address(1), address(0));
    let secret = SecretBytes::copy_from(&[7; 32]);
    assert!(raw.auth_psk(&mut net, "node-01", &secret, &child).is_some());
}

#[test]
fn half_open_ike_sas_with_ml_kem_are_bounded_and_go() {
    let mut net = responder();
    for _ in 0..20 {
        let made = net.nodes[0].endpoint.half_open();
        if made < limits::HALF_OPEN_FREE_PER_ADDRESS {
            hostile(&mut net).add_kem(&mut net);
        }
    }
    let most = limits::HALF_OPEN_FREE_PER_ADDRESS;
    assert_eq!(net.nodes[0].endpoint.half_open(), most);
    net.run(limits::HALF_OPEN_LIFETIME + Duration::from_secs(1));
    assert_eq!((net.nodes[0].endpoint.half_open(), net.ike_sas(0)), (0, 0));
}

#[test]
fn a_damaged_ike_intermediate_is_not_believed() {
    let mut net = pair(1, Preferred, Preferred);
    net.by_hand();
    net.connect(0, 1, Connect::Restart);
    net.exchange(0, INIT);
    while net
        .held()
        .iter()
        .any(|packet| packet.kind().0 == INTERMEDIATE)
    {
        let mut packet = net.take_at(0);
        // Damaged on the way: not authentic, and not believed.
        *packet.payload.last_mut().unwrap() ^= 1;
        net.deliver(&packet);
    }
    assert_eq!(ups(&net), 0);
    assert!(net.failures(0).is_empty());
}

#[test]
fn a_peers_own_policy_overrides_the_nodes() {
    let mut net = pair(1, Preferred, Preferred);
    let mut peer = crate::sim::peer_config(0, 1, psk(7));
    peer.ike = Some(crate::sim::classic());
    let now = net.now;
    net.nodes[0].endpoint.put_peer(peer, now).unwrap();
    net.connect(0, 1, Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    assert_eq!(intermediates(&net), 0);
    assert_eq!(
        net.nodes[0].endpoint.status(&id(1)),
        espalier_ike::IkeStatus::Established
    );
}

/// Make before break: by a handshake beside the IKE SA that there is, which has no ML-KEM in its keys.
#[test]
fn where_ml_kem_comes_to_be_required_an_ike_sa_without_it_is_replaced() {
    for own_policy in [false, true] {
        let mut net = pair(1, Off, Preferred);
        net.connect(0, 1, Connect::Policy);
        assert!(net.run_until(LONG, Net::all_settled));
        net.run(A_WHILE);
        assert_eq!(intermediates(&net), 0);
        if own_policy {
            let mut peer = crate::sim::peer_config(0, 1, psk(7));
            let post_quantum = Required;
            peer.ike = Some(IkePolicy {
                post_quantum,
                ..IkePolicy::default()
            });
            let now = net.now;
            net.nodes[0].endpoint.put_peer(peer, now).unwrap();
            net.pump(0);
        } else {
            net.set_post_quantum(0, Required);
            net.pump(0);
        }
        net.run(Duration::from_secs(120));
        assert!(net.all_settled() && intermediates(&net) > 0);
        let down = |event: &Event| matches!(event, Event::IkeDown { .. });
        assert_eq!((net.count(0, down), net.count(1, down)), (0, 0));
        assert_eq!((net.ike_sas(0), net.ike_sas(1)), (1, 1));
    }
}
