//! One pair: the handshake itself, and every way to lose a message of it.

use std::time::Duration;

use espalier_ike::wire::{Message, Payload};
use espalier_ike::{Connect, Event, IkeStatus, PeerAuth, Role};

use crate::sim::pki::Ca;
use crate::sim::{AUTH, INFORMATIONAL, INIT, Net, Weather, id, psk};

const LONG: Duration = Duration::from_secs(300);

fn pair(seed: u64, ca: Option<&Ca>) -> Net {
    let mut net = Net::new(seed, 2, ca);
    let auth = ca.map_or_else(|| psk(7), |_| PeerAuth::Certificate);
    net.introduce_all(&auth);
    net
}

fn assert_same_keys(net: &Net) {
    let (initiator, responder) = (&net.child_ups(0), &net.child_ups(1));
    let ([(Role::Initiator, a, heard_a)], [(Role::Responder, b, heard_b)]) =
        (&initiator[..], &responder[..])
    else {
        panic!("{initiator:?} {responder:?}");
    };
    assert_eq!((a.spi_in, a.spi_out), (b.spi_out, b.spi_in));
    assert_eq!((&a.keys_in, &a.keys_out), (&b.keys_out, &b.keys_in));
    assert_ne!(a.keys_in, a.keys_out);
    assert_eq!(a.keys_in.key.len(), 36);
    assert_eq!((a.suite, a.esn, a.transport), (b.suite, b.esn, b.transport));
    assert!(a.esn && a.transport);
    assert_eq!((&a.local_ts, &a.remote_ts), (&b.remote_ts, &b.local_ts));
    assert_eq!(heard_a.as_deref(), Some(&b"hello from 1"[..]));
    assert_eq!(heard_b.as_deref(), Some(&b"hello from 0"[..]));
}

#[test]
fn certificates_give_both_ends_the_same_keys() {
    let ca = Ca::new("CA");
    let mut net = pair(1, Some(&ca));
    net.connect(0, 1, Connect::Policy);
    assert!(
        net.run_until(LONG, Net::all_settled),
        "{:?} {:?}",
        net.failures(0),
        net.failures(1)
    );
    assert_same_keys(&net);
    assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::Established);
}

#[test]
fn a_psk_gives_both_ends_the_same_keys() {
    let mut net = pair(1, None);
    net.connect(0, 1, Connect::Policy);
    assert!(
        net.run_until(LONG, Net::all_settled),
        "{:?} {:?}",
        net.failures(0),
        net.failures(1)
    );
    assert_same_keys(&net);
}

#[test]
fn a_handshake_is_four_messages_and_one_announcement() {
    let mut net = pair(1, None);
    net.connect(0, 1, Connect::Policy);
    net.run(Duration::from_secs(10));
    let kinds: Vec<_> = net.sent.iter().map(crate::sim::Packet::kind).collect();
    let expected = [
        (INIT, false, 0),
        (INIT, true, 0),
        (AUTH, false, 1),
        (AUTH, true, 1),
        (INFORMATIONAL, false, 2),
        (INFORMATIONAL, true, 2),
    ];
    assert_eq!(kinds, expected);
    let took = |event: &Event| matches!(event, Event::IkeUp { took, .. } if *took > Duration::ZERO);
    assert_eq!((net.count(0, took), net.count(1, took)), (1, 1));
    let acked = |event: &Event| matches!(event, Event::AnnouncementAcked { .. });
    assert_eq!((net.count(0, acked), net.count(1, acked)), (1, 1));
}

#[test]
fn no_response_leaves_before_the_sa_that_it_promises_is_installed() {
    let mut net = pair(1, None);
    net.connect(0, 1, Connect::Policy);
    assert!(net.run_until(LONG, |net| net.sent.len() == 3));
    let request = net.sent[2].clone();
    let path = espalier_ike::Path {
        local: request.path.remote,
        remote: request.path.local,
    };
    let (now, unix) = (net.now, net.unix());
    let responder = &mut net.nodes[1].endpoint;
    responder.handle_datagram(now, unix, path, &request.payload);
    assert_eq!(
        responder.poll_transmit(),
        None,
        "the response overtook ChildUp"
    );
    let events: Vec<Event> = std::iter::from_fn(|| responder.poll_event()).collect();
    assert!(
        matches!(events[..], [Event::IkeUp { .. }, Event::ChildUp { .. }]),
        "{events:?}"
    );
    assert!(responder.poll_transmit().is_some());
}

#[test]
fn the_loss_of_any_single_message_is_survived() {
    for lost in 0..6 {
        for ca in [None, Some(Ca::new("CA"))] {
            let mut net = pair(lost, ca.as_ref());
            let mut seen = 0;
            net.filter = Some(Box::new(move |_| {
                seen += 1;
                seen != lost + 1
            }));
            net.connect(0, 1, Connect::Policy);
            assert!(net.run_until(LONG, Net::all_settled), "message {lost}");
            net.run(Duration::from_secs(60));
            assert_same_keys(&net);
            assert_eq!((net.ike_sas(0), net.ike_sas(1)), (1, 1), "message {lost}");
            assert_eq!(net.failures(0), [""; 0], "message {lost}");
        }
    }
}

#[test]
fn retransmitted_requests_get_the_same_response_and_no_second_sa() {
    let mut net = pair(1, None);
    net.weather.duplication = 100;
    net.connect(0, 1, Connect::Policy);
    net.run(Duration::from_secs(60));
    assert_same_keys(&net);
    assert!(net.all_settled());
    for kind in [(INIT, true, 0), (AUTH, true, 1), (INFORMATIONAL, true, 2)] {
        let mut answers = net
            .sent
            .iter()
            .filter(|packet| packet.kind() == kind)
            .map(|packet| &packet.payload);
        let first = answers.next().unwrap();
        assert!(
            answers.clone().count() >= 1 && answers.all(|other| other == first),
            "{kind:?}"
        );
    }
}

/// Loss, reordering and duplication of all kinds, on many seeds.
#[test]
fn bad_weather_is_survived() {
    for seed in 0..500 {
        let mut net = pair(seed, None);
        net.weather = Weather::BAD;
        net.connect(0, 1, Connect::Policy);
        net.connect(1, 0, Connect::Policy);
        assert!(
            net.run_until(LONG, Net::all_settled),
            "seed {seed}: {:?} {:?}",
            net.failures(0),
            net.failures(1)
        );
        net.weather = Weather::FINE;
        net.run(Duration::from_secs(120));
        assert!(net.all_settled(), "seed {seed}");
        assert_eq!((net.ike_sas(0), net.ike_sas(1)), (1, 1), "seed {seed}");
    }
}

#[test]
fn another_group_is_agreed_on_when_the_responder_asks_for_it() {
    // The answer that a responder without X25519 would give: INVALID_KE_PAYLOAD asking for P-256.
    let mut net = pair(1, None);
    net.filter = Some(Box::new(|_| false));
    net.connect(0, 1, Connect::Restart);
    net.filter = None;
    let first = net.sent[0].clone();
    let mut answer = first.payload[..28].to_vec();
    answer[16] = 41;
    answer[19] = 0x20;
    answer[24..].copy_from_slice(&38u32.to_be_bytes());
    answer.extend([0, 0, 0, 10, 0, 0, 0, 17, 0, 19]);
    let path = espalier_ike::Path {
        local: first.path.remote,
        remote: first.path.local,
    };
    net.deliver(&crate::sim::Packet {
        path,
        payload: answer,
    });
    assert_eq!(net.sent.len(), 2, "no second IKE_SA_INIT");
    assert!(
        net.run_until(LONG, Net::all_settled),
        "{:?}",
        net.failures(0)
    );
    let groups = net.sent[..2].iter().flat_map(|packet| {
        let payloads = Message::parse(&packet.payload).unwrap().payloads;
        payloads.into_iter().filter_map(|payload| match payload {
            Payload::Ke(ke) => Some(ke.group),
            _ => None,
        })
    });
    assert_eq!(groups.collect::<Vec<_>>(), [31, 19]);
}
