//! Peers that speak with the right keys, and at the wrong time, too much, or nonsense: authenticated is not well-meaning.

use std::time::Duration;

use espalier_ike::wire::{
    Delete, ExchangeType, Notify, NotifyType, Payload, PayloadType, ProtocolId,
};
use espalier_ike::{CloseReason, Connect, Event, IkeStatus, Role, limits};
use espalier_secret::SecretBytes;
use rand::{Rng, RngExt};

use crate::sim::raw::{self, Raw};
use crate::sim::{AUTH, INFORMATIONAL, Net, Packet, address, id, psk};

fn secret() -> SecretBytes {
    SecretBytes::copy_from(&[7; 32])
}

#[test]
fn informational_before_auth_is_dropped_and_auth_may_still_follow() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    for exchange in [
        ExchangeType::Informational,
        ExchangeType::CreateChildSa,
        ExchangeType::IkeIntermediate,
    ] {
        assert!(
            raw.ask(&mut net, exchange, &[Payload::Delete(Delete::Ike)])
                .is_none()
        );
    }
    assert_eq!(net.nodes[0].endpoint.half_open(), 1);
    let child = raw::child(4711, address(1), address(0));
    assert!(
        raw.auth_psk(&mut net, "node-01", &secret(), &child)
            .is_some()
    );
    assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::Established);
}

#[test]
fn ike_auth_comes_once() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    let child = raw::child(4711, address(1), address(0));
    assert!(
        raw.auth_psk(&mut net, "node-01", &secret(), &child)
            .is_some()
    );
    assert!(
        raw.auth_psk(&mut net, "node-01", &secret(), &child)
            .is_none()
    );
    assert_eq!(net.child_ups(0).len(), 1);
}

/// A foreign peer: no vendor ID, so nothing of ours is said to it; its CHILD_SAs count as confirmed once it speaks.
#[test]
fn a_foreign_peer_gets_a_child_sa_and_no_more() {
    let mut net = Net::psk_mesh(1, 2);
    net.strict = false;
    let mut raw = Raw::init(&mut net, address(1), 0, false);
    let child = raw::child(4711, address(1), address(0));
    let answer = raw
        .auth_psk(&mut net, "node-01", &secret(), &child)
        .unwrap();
    assert_eq!(answer.notifies(), [NotifyType::UseTransportMode]);
    let (_, up, announcement) = net.child_ups(0)[0].clone();
    assert_eq!((up.spi_out, announcement), (4711, None));

    let answer = raw
        .ask(&mut net, ExchangeType::CreateChildSa, &child)
        .unwrap();
    assert_eq!(answer.notifies(), [NotifyType::NoAdditionalSas]);
    let unknown = raw.ask_bytes(
        &mut net,
        ExchangeType::Informational,
        PayloadType::from(200),
        &[0, 0x80, 0, 4],
    );
    assert_eq!(
        unknown.unwrap().notifies(),
        [NotifyType::UnsupportedCriticalPayload]
    );
    let now = net.now;
    net.nodes[0]
        .endpoint
        .announce(&id(1), b"not for strangers".to_vec(), now);
    let sent = net.sent.len();
    net.pump(0);
    assert_eq!(net.sent.len(), sent);
    assert_eq!(
        raw.ask(&mut net, ExchangeType::Informational, &[])
            .unwrap()
            .payloads(),
        []
    );
}

#[test]
fn deleting_a_child_sa_names_its_other_half_and_closes_the_ike_sa() {
    let mut net = Net::psk_mesh(1, 2);
    net.strict = false;
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    let child = raw::child(4711, address(1), address(0));
    raw.auth_psk(&mut net, "node-01", &secret(), &child)
        .unwrap();
    let spi_in = net.child_ups(0)[0].1.spi_in;
    let delete = |spi| {
        Payload::Delete(Delete::Child {
            protocol: ProtocolId::Esp,
            spis: vec![spi],
        })
    };
    let other = raw
        .ask(&mut net, ExchangeType::Informational, &[delete(4712)])
        .unwrap();
    assert_eq!(other.payloads(), []);
    let answer = raw
        .ask(&mut net, ExchangeType::Informational, &[delete(4711)])
        .unwrap();
    assert_eq!(answer.payloads(), [delete(spi_in)]);
    let down = |event: &Event| {
        matches!(
            event,
            Event::ChildDown {
                reason: CloseReason::Peer,
                ..
            }
        )
    };
    assert_eq!(net.count(0, down), 1);
    assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::None);
}

#[test]
fn overlong_announcements_are_not_taken() {
    let mut net = Net::psk_mesh(1, 2);
    net.strict = false;
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    let long = [1; limits::ANNOUNCEMENT_MAX + 1];
    let said = |data| Payload::Notify(Notify::new(NotifyType::EspalierAnnouncement, data));
    let mut child = raw::child(4711, address(1), address(0));
    child.push(said(&long));
    raw.auth_psk(&mut net, "node-01", &secret(), &child)
        .unwrap();
    assert_eq!(net.child_ups(0)[0].2, None);
    raw.ask(&mut net, ExchangeType::Informational, &[said(&long)])
        .unwrap();
    raw.ask(
        &mut net,
        ExchangeType::Informational,
        &[said(&long[..limits::ANNOUNCEMENT_MAX])],
    )
    .unwrap();
    assert_eq!(
        net.count(0, |event| matches!(event, Event::Announcement { .. })),
        1
    );
}

/// Two IKE SAs of one peer: what comes over the older one was overtaken, once the newer one is known to both.
#[test]
fn announcements_over_an_older_ike_sa_are_not_news() {
    let mut net = Net::psk_mesh(1, 2);
    net.strict = false;
    let mut sas = [4711, 4712].map(|spi| {
        let mut raw = Raw::init(&mut net, address(1), 0, true);
        let child = raw::child(spi, address(1), address(0));
        raw.auth_psk(&mut net, "node-01", &secret(), &child)
            .unwrap();
        raw
    });
    let mut say = |net: &mut Net, sa: usize, data: &[u8]| {
        let notify = Notify::new(NotifyType::EspalierAnnouncement, data);
        let payloads = [Payload::Notify(notify)];
        sas[sa]
            .ask(net, ExchangeType::Informational, &payloads)
            .unwrap();
    };
    say(&mut net, 0, b"before");
    say(&mut net, 1, b"newest");
    say(&mut net, 0, b"overtaken");
    let heard = |event: &Event| match event {
        Event::Announcement { data, .. } => Some(data.clone()),
        _ => None,
    };
    let heard: Vec<Vec<u8>> = net.nodes[0].log.iter().filter_map(heard).collect();
    assert_eq!(heard, [b"before", b"newest"]);
}

/// The lower identity's IKE_AUTH is late; meanwhile it accepts the peer's handshake. Its own goes on, is the newer one when
/// it succeeds, and the older IKE SA is deleted at the peer, too.
#[test]
fn the_initiator_of_the_newer_ike_sa_deletes_the_older_one() {
    let mut net = Net::psk_mesh(1, 2);
    net.strict = false;
    net.filter = Some(Box::new(|packet| packet.kind().0 != AUTH));
    net.connect(0, 1, Connect::Restart);
    net.run(limits::CROSSING_PATIENCE + Duration::from_millis(100));
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    let child = raw::child(4711, address(1), address(0));
    raw.auth_psk(&mut net, "node-01", &secret(), &child)
        .unwrap();
    net.filter = None;
    net.run(Duration::from_secs(10));
    let roles: Vec<Role> = net.child_ups(0).iter().map(|(role, ..)| *role).collect();
    assert_eq!(roles, [Role::Responder, Role::Initiator]);
    assert!(net.settled(0, 1));
    let deletes = |packet: &&Packet| {
        packet.kind() == (INFORMATIONAL, false, 0) && packet.payload[..8] == raw.spi().to_be_bytes()
    };
    assert!(net.sent.iter().any(|packet| deletes(&packet)));
}

/// A peer that authenticates again and again without ever confirming anything.
#[test]
fn a_hostile_peer_holds_few_ike_sas() {
    let mut net = Net::psk_mesh(1, 2);
    net.strict = false;
    for spi in 0..50 {
        let mut raw = Raw::init(&mut net, address(1), 0, true);
        let child = raw::child(5000 + spi, address(1), address(0));
        raw.auth_psk(&mut net, "node-01", &secret(), &child)
            .unwrap();
    }
    assert_eq!(
        net.nodes[0].plane[&id(1)].inbound.len(),
        limits::IKE_SAS_PER_PEER
    );
    net.run(Duration::from_secs(90));
    assert_eq!(net.ike_sas(0), 0);
    assert!(net.nodes[0].plane[&id(1)].inbound.len() <= limits::ORPHANS_PER_PEER);
}

/// Sealed with the right keys by the right peer, and still nonsense.
#[test]
fn random_payloads_of_an_authenticated_peer_do_not_panic() {
    let mut net = Net::new(1, 2, None);
    net.introduce(0, &psk(7));
    net.strict = false;
    for round in 0..200u32 {
        let mut raw = Raw::init(&mut net, address(1), 0, round % 2 == 0);
        let child = raw::child(5000 + round, address(1), address(0));
        if round % 3 > 0 {
            raw.auth_psk(&mut net, "node-01", &secret(), &child)
                .unwrap();
        }
        for _ in 0..20 {
            let mut inner = vec![0; net.rng.random_range(0..120)];
            net.rng.fill_bytes(&mut inner);
            let first = PayloadType::from(net.rng.random_range(30..55));
            let exchange = if round % 3 == 0 {
                ExchangeType::IkeAuth
            } else {
                ExchangeType::Informational
            };
            raw.ask_bytes(&mut net, exchange, first, &inner);
        }
        net.run(Duration::from_secs(1));
    }
}
