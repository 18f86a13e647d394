//! What others can make a node hold, authenticated or not, has a limit that does not depend on how fast they are; and what they
//! may do depends on how far they have come.

use std::net::SocketAddr;
use std::time::Duration;

use espalier_ike::crypto::{KexGroup, KeyExchange};
use espalier_ike::wire::{
    self, Delete, ExchangeType, Message, Nonce, Notify, NotifyType, Payload, ProtocolId, Spi,
    Transform, TransformType,
};
use espalier_ike::{Connect, Holdings, Path, limits};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Raw, ask};
use crate::sim::{Net, address};

const OLD: u32 = 4711;

fn secret() -> SecretBytes {
    SecretBytes::copy_from(&[7; 32])
}

fn held(net: &Net) -> Holdings {
    net.nodes[0].endpoint.audit().unwrap();
    net.nodes[0].endpoint.holdings()
}

/// An established IKE SA of the peer with a CHILD_SA whose inbound SPI, the peer's, is `spi`.
fn authenticated(net: &mut Net, spi: u32) -> Raw {
    let mut raw = Raw::init(net, address(1), 0, true);
    let child = raw::child(spi, address(1), address(0));
    raw.auth_psk(net, "node-01", &secret(), &child).unwrap();
    raw
}

fn stranger(number: u32) -> SocketAddr {
    let [_, high, middle, low] = number.to_be_bytes();
    SocketAddr::from(([172, 16 + high, middle, low], 500))
}

#[test]
fn a_peer_that_makes_and_ends_ike_sas_without_end_leaves_few() {
    let mut net = Net::psk_mesh(1, 2);
    for round in 0..100 {
        let mut raw = authenticated(&mut net, 5000 + round);
        let delete = [Payload::Delete(Delete::Ike)];
        raw.ask(&mut net, ExchangeType::Informational, &delete)
            .unwrap();
        assert!(held(&net).lingering <= limits::LINGERING_PER_PEER);
    }
    let left = held(&net);
    assert_eq!((left.established, left.children, left.spis), (0, 0, 0));
    net.run(limits::CLOSED_LINGER + Duration::from_secs(1));
    assert_eq!(held(&net), Holdings::default());
}

#[test]
fn those_who_are_refused_leave_few_answers() {
    let mut net = Net::psk_mesh(1, 2);
    for number in 0..300 {
        let from = stranger(number);
        let mut raw = Raw::init(&mut net, from, 0, true);
        let child = raw::child(OLD, from, address(0));
        let answer = raw
            .auth_psk(&mut net, "node-77", &secret(), &child)
            .unwrap();
        assert_eq!(answer.notifies(), [NotifyType::AuthenticationFailed]);
        let now = held(&net);
        assert!(now.lingering <= limits::LINGERING_REFUSED && now.half_open == 0);
    }
    net.run(limits::CLOSED_LINGER + Duration::from_secs(1));
    assert_eq!(held(&net), Holdings::default());
}

#[test]
fn a_peer_that_rekeys_without_end_and_deletes_nothing_holds_few_child_sas() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = authenticated(&mut net, OLD);
    let mut refused = 0;
    for spi in OLD..OLD + 50 {
        let rekey = rekey_payloads(&mut net, spi, spi + 1);
        let answer = raw.ask(&mut net, ExchangeType::CreateChildSa, &rekey.borrow());
        let granted = answer.unwrap().notifies() == [NotifyType::UseTransportMode];
        refused += usize::from(!granted);
        assert!(held(&net).children <= limits::CHILDREN_PER_SA);
    }
    assert_eq!(refused, 50 - (limits::CHILDREN_PER_SA - 1));
}

/// A whole rekey request.
struct RekeyRequest {
    old: u32,
    new: u32,
    kex: KeyExchange,
}

fn rekey_payloads(net: &mut Net, old: u32, new: u32) -> RekeyRequest {
    let kex = KeyExchange::generate(KexGroup::X25519, &mut net.rng).unwrap();
    RekeyRequest { old, new, kex }
}

impl RekeyRequest {
    fn borrow(&self) -> Vec<Payload<'_>> {
        let rekeyed = Notify::about_esp(NotifyType::RekeySa, self.old);
        let mut payloads = vec![Payload::Notify(rekeyed), Payload::Nonce(Nonce(&[5; 32]))];
        payloads.extend(raw::child(self.new, address(1), address(0)));
        for payload in &mut payloads {
            if let Payload::Sa(sa) = payload {
                let x25519 = Transform::new(TransformType::Ke, wire::kex::CURVE25519);
                sa.proposals[0].transforms.push(x25519);
            }
        }
        payloads.push(Payload::Ke(wire::KeyExchange {
            group: wire::kex::CURVE25519,
            data: self.kex.public(),
        }));
        payloads
    }
}

/// strongSwan CVE-2014-2338: a rekey of an IKE SA that nobody has authenticated was granted.
#[test]
fn an_ike_sa_that_is_not_authenticated_is_not_rekeyed_nor_given_child_sas() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    let before = held(&net);
    let kex = KeyExchange::generate(KexGroup::X25519, &mut net.rng).unwrap();
    let transforms = vec![
        Transform::with_key_length(TransformType::Encr, wire::encr::AES_GCM_16, 256),
        Transform::new(TransformType::Prf, wire::prf::HMAC_SHA2_256),
        Transform::new(TransformType::Ke, wire::kex::CURVE25519),
    ];
    let proposals = vec![wire::Proposal {
        number: 1,
        protocol: ProtocolId::Ike,
        spi: Spi::Ike(77),
        transforms,
    }];
    let rekey_ike = vec![
        Payload::Sa(wire::Sa { proposals }),
        Payload::Nonce(Nonce(&[5; 32])),
        Payload::Ke(wire::KeyExchange {
            group: wire::kex::CURVE25519,
            data: kex.public(),
        }),
    ];
    let rekey_child = rekey_payloads(&mut net, OLD, OLD + 1);
    for payloads in [rekey_ike, rekey_child.borrow()] {
        let answer = raw.ask(&mut net, ExchangeType::CreateChildSa, &payloads);
        assert!(answer.is_none());
    }
    assert_eq!((held(&net), net.nodes[0].log.len()), (before, 0));
    // The handshake that it belongs to may still come to its end.
    let child = raw::child(OLD, address(1), address(0));
    assert!(
        raw.auth_psk(&mut net, "node-01", &secret(), &child)
            .is_some()
    );
}

/// Libreswan CVE-2023-23009 and CVE-2024-3652: an authenticated peer's request that lacks something ended the daemon.
#[test]
fn a_rekey_that_lacks_any_of_its_payloads_is_refused_and_the_ike_sa_stays() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = authenticated(&mut net, OLD);
    let whole = rekey_payloads(&mut net, OLD, OLD + 1);
    let count = whole.borrow().len();
    let lacking = |missing: u32| -> Vec<Payload<'_>> {
        let all = whole.borrow().into_iter().enumerate();
        let kept = all.filter(|(at, _)| missing & (1 << at) == 0);
        kept.map(|(_, payload)| payload).collect()
    };
    // Whatever is left out, together too. Without REKEY_SA it is about a further CHILD_SA.
    for missing in 1..1_u32 << count {
        let before = held(&net).children;
        let answer = raw.ask(&mut net, ExchangeType::CreateChildSa, &lacking(missing));
        let notifies = answer.expect("an answer").notifies();
        let refused = notifies.iter().any(|kind| kind.is_error());
        assert!(refused, "without {missing:#b}: {notifies:?}");
        assert_eq!(held(&net).children, before);
    }
    let answer = raw.ask(&mut net, ExchangeType::CreateChildSa, &whole.borrow());
    assert_eq!(answer.unwrap().notifies(), [NotifyType::UseTransportMode]);
}

/// The secret changes: what was given out long ago is worth nothing.
#[test]
fn a_cookie_of_long_ago_is_answered_with_another_one() {
    let mut net = Net::psk_mesh(1, 2);
    let node = net.nodes[0].address;
    let from = stranger(70_000);
    let path = Path {
        local: from,
        remote: node,
    };
    let fill = |net: &mut Net, base: u32| {
        for number in base..base + limits::HALF_OPEN as u32 {
            let path = Path {
                local: stranger(number),
                remote: node,
            };
            let (_, _, datagram) = raw::init_request(net, &[], u64::from(number) + 1, true);
            ask(net, path, datagram);
        }
    };
    fill(&mut net, 0);
    let (kex, nonce, datagram) = raw::init_request(&mut net, &[], 7, true);
    let first = cookie(&ask(&mut net, path, datagram).unwrap()).expect("a cookie is asked for");
    for (wait, good) in [
        (limits::COOKIE_ROTATE, true),
        (limits::COOKIE_ROTATE, false),
    ] {
        net.run(wait + Duration::from_secs(1));
        fill(&mut net, 1000);
        let spi = 7;
        let datagram = raw::init_datagram(&kex, &nonce, &first, spi, true);
        let answer = ask(&mut net, path, datagram).expect("an answer");
        let again = cookie(&answer);
        assert_eq!(again.is_none(), good, "after another {wait:?}");
        assert_ne!(again, Some(first.clone()));
    }
}

fn cookie(answer: &[u8]) -> Option<Vec<u8>> {
    let message = Message::parse(answer).unwrap();
    message.payloads.iter().find_map(|payload| match payload {
        Payload::Notify(notify) if notify.kind == NotifyType::Cookie => Some(notify.data.to_vec()),
        _ => None,
    })
}

/// A handshake that the other end lets hang at any message ends by itself, and leaves nothing.
#[test]
fn handshakes_that_hang_at_any_message_leave_nothing() {
    for messages in 0..4 {
        let mut net = Net::psk_mesh(1, 2);
        let mut seen = 0;
        net.filter = Some(Box::new(move |_| {
            seen += 1;
            seen <= messages
        }));
        net.connect(0, 1, Connect::Restart);
        net.run(Duration::from_millis(100));
        net.disconnect(0, 1);
        net.run(Duration::from_secs(180));
        for node in &net.nodes {
            node.endpoint.audit().unwrap();
            let left = node.endpoint.holdings();
            // What the responder was given keys for waits for its initiator; an IKE SA that nobody uses is found out.
            let ike = (
                left.initiating,
                left.half_open,
                left.established,
                left.lingering,
            );
            assert_eq!(ike, (0, 0, 0, 0), "after {messages} messages");
        }
    }
}
