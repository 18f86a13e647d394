//! Messages outside an IKE SA, malformed ones within, and notifies that mean nothing here (RFC 7296 §1.5, §2.3, §2.5, §2.21).

use std::net::SocketAddr;
use std::time::Duration;

use espalier_ike::wire::{
    self, ExchangeType, Flags, Header, Message, Notify, NotifyType, Payload, PayloadType,
};
use espalier_ike::{CloseReason, Connect, Event, IkeStatus, Path, limits};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Raw, ask};
use crate::sim::{INFORMATIONAL, Net, Packet, address, id};

const LONG: Duration = Duration::from_secs(300);

fn secret() -> SecretBytes {
    SecretBytes::copy_from(&[7; 32])
}

fn connected() -> Net {
    let mut net = Net::psk_mesh(1, 2);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(10));
    net
}

fn path(from: SocketAddr) -> Path {
    Path {
        local: from,
        remote: address(0),
    }
}

/// A request or response under SPIs that nobody knows.
fn stray(exchange: u8, response: bool, version: u8) -> Vec<u8> {
    let flags = Flags {
        initiator: true,
        response,
        version: false,
    };
    let header = Header {
        spi_i: 0x1111,
        spi_r: 0x2222,
        next_payload: PayloadType::None,
        exchange: exchange.into(),
        flags,
        message_id: 77,
    };
    let mut datagram = wire::emit(&header, &[]);
    datagram[17] = version;
    datagram
}

/// What an unprotected answer says: its header and one notify.
fn said(answer: &[u8]) -> (Header, NotifyType) {
    let message = Message::parse(answer).unwrap();
    match message.payloads.as_slice() {
        [Payload::Notify(notify)] => (message.header, notify.kind),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_configured_peer_is_told_that_its_ike_sa_is_not_known() {
    let mut net = Net::psk_mesh(1, 2);
    for exchange in [35, 36, 37, 43, 99] {
        net.now += Duration::from_secs(1);
        let answer = ask(&mut net, path(address(1)), stray(exchange, false, 0x20)).unwrap();
        let (header, kind) = said(&answer);
        assert_eq!(kind, NotifyType::InvalidIkeSpi);
        assert_eq!((header.spi_i, header.spi_r), (0x1111, 0x2222));
        assert_eq!(
            (u8::from(header.exchange), header.message_id),
            (exchange, 77)
        );
        assert!(header.flags.response && !header.flags.initiator);
    }
}

#[test]
fn a_higher_major_version_is_answered_with_ours_and_a_lower_one_not() {
    let mut net = Net::psk_mesh(1, 2);
    let answer = ask(&mut net, path(address(1)), stray(37, false, 0x30)).unwrap();
    assert_eq!(said(&answer).1, NotifyType::InvalidMajorVersion);
    assert_eq!(answer[17], 0x20);
    let answer = ask(&mut net, path(address(1)), stray(34, false, 0xf0)).unwrap();
    assert_eq!(said(&answer).1, NotifyType::InvalidMajorVersion);
    assert!(ask(&mut net, path(address(1)), stray(37, false, 0x10)).is_none());
}

#[test]
fn strangers_and_responses_get_no_answer() {
    let mut net = Net::psk_mesh(1, 2);
    let stranger = SocketAddr::from(([172, 16, 0, 1], 4500));
    for version in [0x20, 0x30] {
        assert!(ask(&mut net, path(stranger), stray(37, false, version)).is_none());
        assert!(ask(&mut net, path(address(1)), stray(37, true, version)).is_none());
    }
}

#[test]
fn answers_outside_an_ike_sa_are_rare() {
    let mut net = Net::psk_mesh(1, 2);
    for second in 0..3 {
        let before = net.sent.len();
        for _ in 0..1000 {
            ask(&mut net, path(address(1)), stray(37, false, 0x20));
            ask(&mut net, path(address(1)), stray(37, false, 0x30));
        }
        let answers = net.sent.len() - before;
        assert_eq!(answers, limits::STRAY_ANSWERS as usize, "second {second}");
        net.now += Duration::from_secs(1);
    }
}

/// The node's own IKE SA, which the peer is said not to know.
fn invalid_spi(net: &Net, message_id: u32) -> Packet {
    let last = Header::peek(&net.sent.last().unwrap().payload).unwrap();
    let flags = Flags {
        initiator: false,
        response: true,
        version: false,
    };
    let header = Header {
        flags,
        message_id,
        exchange: ExchangeType::Informational,
        ..last
    };
    let notify = Notify::new(NotifyType::InvalidIkeSpi, &[]);
    let path = Path {
        local: address(1),
        remote: address(0),
    };
    let payload = wire::emit(&header, &[Payload::Notify(notify)]);
    Packet { path, payload }
}

#[test]
fn invalid_ike_spi_is_asked_about_once_and_believed_by_nobody() {
    let mut net = connected();
    let events = net.nodes[0].log.len();
    let before = net.sent.len();
    for round in 0..100 {
        let forged = invalid_spi(&net, round % 5);
        net.deliver(&forged);
        net.run(Duration::from_millis(10));
    }
    let asked = net.sent[before..].iter().filter(|packet| {
        packet.path.local == address(0) && packet.kind().0 == INFORMATIONAL && !packet.kind().1
    });
    assert_eq!(
        asked.count(),
        1,
        "a liveness check, and its answer is enough for a while"
    );
    assert_eq!(net.nodes[0].log.len(), events);
    net.run(Duration::from_secs(60));
    assert!(net.settled(0, 1));
    assert_eq!(net.ike_sas(0), 1);
}

/// A peer that lost its state: told so, this node finds out sooner than by silence.
#[test]
fn a_peer_that_lost_its_state_is_found_out() {
    let mut net = connected();
    net.restart(1, &crate::sim::psk(7));
    let now = net.now;
    net.nodes[0]
        .endpoint
        .announce(&id(1), b"anybody there".to_vec(), now);
    net.pump(0);
    let before = net.sent.len();
    net.run(Duration::from_secs(1));
    let told = net.sent[before..]
        .iter()
        .filter(|packet| packet.path.local == address(1));
    assert!(told.count() > 0);
    let down = |event: &Event| matches!(event, Event::IkeDown { .. });
    assert!(net.run_until(Duration::from_secs(60), |net| net.count(0, down) == 1));
    assert!(net.run_until(LONG, Net::all_settled));
}

#[test]
fn what_means_nothing_here_is_ignored_in_ike_auth_and_after() {
    let ignored = [
        NotifyType::AdditionalTsPossible,
        NotifyType::SinglePairRequired,
        NotifyType::FailedCpRequired,
        NotifyType::HttpCertLookupSupported,
        NotifyType::IpcompSupported,
        NotifyType::EspTfcPaddingNotSupported,
        NotifyType::NonFirstFragmentsAlso,
        NotifyType::InvalidMessageId,
        NotifyType::InvalidIkeSpi,
        NotifyType::AdditionalIp4Address,
        NotifyType::AdditionalIp6Address,
        NotifyType::NoAdditionalAddresses,
        NotifyType::Unknown(9_000),
        NotifyType::Unknown(20_000),
        NotifyType::Unknown(65_000),
    ];
    for kind in ignored {
        for data in [&[][..], &[0xff; 300]] {
            let mut net = Net::psk_mesh(1, 2);
            let notify = Payload::Notify(Notify::new(kind, data));
            let mut raw = Raw::init(&mut net, address(1), 0, true);
            let mut child = raw::child(4711, address(1), address(0));
            child.push(notify.clone());
            let answer = raw
                .auth_psk(&mut net, "node-01", &secret(), &child)
                .unwrap();
            assert!(
                answer
                    .payloads()
                    .iter()
                    .any(|p| matches!(p, Payload::Auth(_))),
                "{kind:?}"
            );
            assert_eq!(net.child_ups(0).len(), 1, "{kind:?}");
            let events = net.nodes[0].log.len();
            let answer = raw
                .ask(&mut net, ExchangeType::Informational, &[notify])
                .unwrap();
            assert_eq!(answer.payloads(), [], "{kind:?}");
            // That the initiator spoke proves that it has the IKE SA; nothing else follows.
            assert_eq!(net.nodes[0].log.len(), events + 1, "{kind:?}");
        }
    }
}

#[test]
fn set_window_size_changes_nothing_whatever_it_says() {
    for size in [
        &[][..],
        &[0],
        &[0; 4],
        &[0, 0, 0, 1],
        &[0, 0, 0, 64],
        &[0xff; 4],
        &[0xff; 9],
    ] {
        let mut net = Net::psk_mesh(1, 2);
        let window = Payload::Notify(Notify::new(NotifyType::SetWindowSize, size));
        let mut raw = Raw::init(&mut net, address(1), 0, true);
        let mut child = raw::child(4711, address(1), address(0));
        child.push(window.clone());
        assert!(
            raw.auth_psk(&mut net, "node-01", &secret(), &child)
                .is_some()
        );
        assert!(
            raw.ask(&mut net, ExchangeType::Informational, &[window])
                .is_some()
        );
        // Still one request at a time, both ways.
        let ahead = raw.skip(1);
        assert!(raw.deliver(&mut net, ahead).is_none());
        let before = net.sent.len();
        for said in [b"one", b"two"] {
            net.announce(0, 1, said);
        }
        let requests = net.sent[before..].iter().filter(|packet| !packet.kind().1);
        assert_eq!(requests.count(), 1);
    }
}

/// An unknown payload that is marked critical, in every exchange of an IKE SA.
#[test]
fn unknown_critical_payloads_are_refused_by_their_type_in_every_exchange() {
    let chain = |critical: u8| vec![0, critical, 0, 4];
    let unknown = PayloadType::Unknown(200);
    let is_refused = |answer: &raw::Answer| {
        answer.payloads().iter().any(|payload| match payload {
            Payload::Notify(notify) => {
                notify.kind == NotifyType::UnsupportedCriticalPayload && notify.data == [200]
            }
            _ => false,
        })
    };
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    let answer = raw.ask_bytes(&mut net, ExchangeType::IkeAuth, unknown, &chain(0x80));
    assert!(is_refused(&answer.unwrap()));
    assert!(net.child_ups(0).is_empty());
    for exchange in [ExchangeType::CreateChildSa, ExchangeType::Informational] {
        let mut net = Net::psk_mesh(1, 2);
        let mut raw = Raw::init(&mut net, address(1), 0, true);
        let child = raw::child(4711, address(1), address(0));
        assert!(
            raw.auth_psk(&mut net, "node-01", &secret(), &child)
                .is_some()
        );
        let answer = raw.ask_bytes(&mut net, exchange, unknown, &chain(0x80));
        assert!(is_refused(&answer.unwrap()), "{exchange:?}");
        // Not critical: skipped. And the IKE SA goes on.
        let answer = raw.ask_bytes(&mut net, ExchangeType::Informational, unknown, &chain(0));
        assert_eq!(answer.unwrap().payloads(), []);
        assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::Established);
    }
}

/// RFC 7296 §2.21.3: fatal on both ends, without another exchange. What carries traffic stays until it is replaced.
#[test]
fn a_malformed_request_ends_the_ike_sa_and_leaves_its_child_sas() {
    for exchange in [ExchangeType::CreateChildSa, ExchangeType::Informational] {
        let mut net = Net::psk_mesh(1, 2);
        let mut raw = Raw::init(&mut net, address(1), 0, true);
        let child = raw::child(4711, address(1), address(0));
        assert!(
            raw.auth_psk(&mut net, "node-01", &secret(), &child)
                .is_some()
        );
        let datagram = raw.seal_bytes(exchange, PayloadType::Nonce, &[0, 0, 0, 4]);
        let answer = raw.deliver(&mut net, datagram.clone()).unwrap();
        assert_eq!(answer.notifies(), [NotifyType::InvalidSyntax]);
        assert!(
            raw.deliver(&mut net, datagram).is_some(),
            "the answer is kept for a while"
        );
        raw.next();
        assert!(
            raw.ask(&mut net, ExchangeType::Informational, &[])
                .is_none()
        );
        let down = |event: &Event| {
            matches!(
                event,
                Event::IkeDown {
                    reason: CloseReason::Timeout,
                    ..
                }
            )
        };
        let child_down = |event: &Event| matches!(event, Event::ChildDown { .. });
        assert_eq!((net.count(0, down), net.count(0, child_down)), (1, 0));
        net.connect_all(Connect::Policy);
        net.strict = false;
        assert!(net.run_until(LONG, Net::all_settled));
    }
}

#[test]
fn a_peer_that_answers_invalid_syntax_has_dropped_the_ike_sa() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    let child = raw::child(4711, address(1), address(0));
    assert!(
        raw.auth_psk(&mut net, "node-01", &secret(), &child)
            .is_some()
    );
    assert!(
        raw.ask(&mut net, ExchangeType::Informational, &[])
            .is_some()
    );
    net.announce(0, 1, b"something");
    raw.answer(
        &mut net,
        &[Payload::Notify(Notify::new(NotifyType::InvalidSyntax, &[]))],
    );
    let down = |event: &Event| {
        matches!(
            event,
            Event::IkeDown {
                reason: CloseReason::Timeout,
                ..
            }
        )
    };
    assert_eq!(net.count(0, down), 1);
    assert!(
        raw.ask(&mut net, ExchangeType::Informational, &[])
            .is_none()
    );
}
