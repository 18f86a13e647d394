//! CREATE_CHILD_SA from and to a peer that is made by hand: what is granted, what is refused and how.

use std::time::Duration;

use espalier_ike::crypto::{KexGroup, KeyExchange};
use espalier_ike::wire::{
    self, Delete, ExchangeType, Nonce, Notify, NotifyType, Payload, ProtocolId, Spi, Transform,
    TransformType,
};
use espalier_ike::{CloseReason, Connect, Event, Rekeying, Role, limits};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Answer, Raw};
use crate::sim::{CREATE_CHILD, INFORMATIONAL, Net, Packet, address};

const OLD: u32 = 4711;
const NEW: u32 = 4712;

fn connected(net: &mut Net) -> Raw {
    net.strict = false;
    let mut raw = Raw::init(net, address(1), 0, true);
    let child = raw::child(OLD, address(1), address(0));
    let psk = SecretBytes::copy_from(&[7; 32]);
    raw.auth_psk(net, "node-01", &psk, &child).unwrap();
    raw
}

/// A rekey of `old` that offers `groups`, with a KE payload of `group`.
fn ask(net: &mut Net, raw: &mut Raw, old: u32, groups: &[u16], group: Option<KexGroup>) -> Answer {
    let kex = group.map(|group| KeyExchange::generate(group, &mut net.rng).unwrap());
    let rekeyed = Notify::about_esp(NotifyType::RekeySa, old);
    let mut payloads = vec![Payload::Notify(rekeyed), Payload::Nonce(Nonce(&[5; 32]))];
    payloads.extend(raw::child(NEW, address(1), address(0)));
    for payload in &mut payloads {
        if let Payload::Sa(sa) = payload {
            let methods = groups
                .iter()
                .map(|id| Transform::new(TransformType::Ke, *id));
            sa.proposals[0].transforms.extend(methods);
        }
    }
    payloads.extend(kex.as_ref().map(|kex| {
        Payload::Ke(wire::KeyExchange {
            group: kex.group().transform_id(),
            data: kex.public(),
        })
    }));
    raw.ask(net, ExchangeType::CreateChildSa, &payloads)
        .unwrap()
}

#[test]
fn a_rekey_with_a_key_exchange_is_granted_and_the_old_one_goes_with_its_delete() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = connected(&mut net);
    let answer = ask(&mut net, &mut raw, OLD, &[31], Some(KexGroup::X25519));
    let has = |found: fn(&Payload<'_>) -> bool| answer.payloads().iter().any(found);
    assert!(has(|payload| matches!(payload, Payload::Ke(_))));
    assert!(has(|payload| matches!(payload, Payload::Nonce(_))));
    let ups = net.child_ups(0);
    assert_eq!((ups[1].0, ups[1].1.spi_out), (Role::Responder, NEW));
    let delete = Payload::Delete(Delete::Child {
        protocol: ProtocolId::Esp,
        spis: vec![OLD],
    });
    let answer = raw
        .ask(&mut net, ExchangeType::Informational, &[delete])
        .unwrap();
    let other_half = Payload::Delete(Delete::Child {
        protocol: ProtocolId::Esp,
        spis: vec![ups[0].1.spi_in],
    });
    assert_eq!(answer.payloads(), [other_half]);
    let answer = ask(&mut net, &mut raw, OLD, &[31], Some(KexGroup::X25519));
    assert_eq!(answer.notifies(), [NotifyType::ChildSaNotFound]);
}

#[test]
fn another_method_is_asked_for_by_invalid_ke_payload() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = connected(&mut net);
    let answer = ask(&mut net, &mut raw, OLD, &[31], Some(KexGroup::P256));
    let refusal = Payload::Notify(Notify::new(NotifyType::InvalidKePayload, &[0, 31]));
    assert_eq!(answer.payloads(), [refusal]);
    let answer = ask(&mut net, &mut raw, OLD, &[19, 31], Some(KexGroup::P256));
    assert_eq!(answer.notifies(), [NotifyType::UseTransportMode]);
}

#[test]
fn a_rekey_without_a_key_exchange_is_granted_only_where_that_is_configured() {
    for required in [true, false] {
        let mut net = Net::psk_mesh(1, 2);
        let rekeying = Rekeying {
            require_pfs: required,
            ..Rekeying::default()
        };
        net.set_rekeying(0, rekeying);
        let mut raw = connected(&mut net);
        let answer = ask(&mut net, &mut raw, OLD, &[], None);
        let expected = if required {
            NotifyType::NoProposalChosen
        } else {
            NotifyType::UseTransportMode
        };
        assert_eq!(answer.notifies(), [expected]);
        assert_eq!(net.child_ups(0).len(), 2 - usize::from(required));
    }
}

#[test]
fn what_is_not_there_or_replaced_already_is_not_rekeyed() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = connected(&mut net);
    let answer = ask(&mut net, &mut raw, 9999, &[31], Some(KexGroup::X25519));
    assert_eq!(answer.notifies(), [NotifyType::ChildSaNotFound]);
    let named =
        |payload: &Payload<'_>| matches!(payload, Payload::Notify(n) if n.spi == Spi::Child(9999));
    assert!(answer.payloads().iter().any(named));
    ask(&mut net, &mut raw, OLD, &[31], Some(KexGroup::X25519));
    let answer = ask(&mut net, &mut raw, OLD, &[31], Some(KexGroup::X25519));
    assert_eq!(answer.notifies(), [NotifyType::TemporaryFailure]);
    assert_eq!(net.child_ups(0).len(), 2);
}

#[test]
fn an_outbound_spi_is_never_taken_twice() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = connected(&mut net);
    ask(&mut net, &mut raw, OLD, &[31], Some(KexGroup::X25519));
    let answer = ask(&mut net, &mut raw, NEW, &[31], Some(KexGroup::X25519));
    assert_eq!(answer.notifies(), [NotifyType::InvalidSyntax]);
    assert_eq!(net.child_ups(0).len(), 2);
}

/// Node 0 asks to rekey and is told `kind`.
fn refuse(net: &mut Net, kind: NotifyType, data: &[u8]) -> Raw {
    let mut raw = connected(net);
    // Proves to the node that the peer has the IKE SA.
    raw.ask(net, ExchangeType::Informational, &[]).unwrap();
    net.connect(0, 1, Connect::Policy);
    net.rekey_child(0, 1);
    let (header, _) = raw.asked(net);
    assert_eq!(header.exchange, ExchangeType::CreateChildSa);
    raw.answer(net, &[Payload::Notify(Notify::new(kind, data))]);
    raw
}

/// Without repetitions.
fn rekeys_asked(net: &Net) -> usize {
    let rekey = |packet: &&Packet| packet.kind().0 == CREATE_CHILD && !packet.kind().1;
    let ids = net.sent.iter().filter(rekey).map(|packet| packet.kind().2);
    ids.collect::<std::collections::BTreeSet<_>>().len()
}

fn downs(net: &Net) -> usize {
    net.count(0, |event| matches!(event, Event::ChildDown { .. }))
}

#[test]
fn a_rekey_that_is_put_off_is_asked_for_again_soon() {
    let mut net = Net::psk_mesh(1, 2);
    refuse(&mut net, NotifyType::TemporaryFailure, &[]);
    net.run(limits::REKEY_RETRY * 2);
    assert_eq!((rekeys_asked(&net), downs(&net)), (2, 0));
}

#[test]
fn a_rekey_that_is_refused_is_asked_for_again_much_later() {
    let mut net = Net::psk_mesh(1, 2);
    let raw = refuse(&mut net, NotifyType::NoProposalChosen, &[]);
    net.run(limits::DPD_IDLE - Duration::from_secs(1));
    assert_eq!((rekeys_asked(&net), downs(&net)), (1, 0));
    drop(raw);
}

#[test]
fn another_method_that_the_peer_wants_is_used() {
    let mut net = Net::psk_mesh(1, 2);
    let raw = refuse(&mut net, NotifyType::InvalidKePayload, &[0, 19]);
    let (_, asked) = raw.asked(&net);
    let by_p256 = |payload: &Payload<'_>| matches!(payload, Payload::Ke(ke) if ke.group == 19);
    assert!(asked.payloads().iter().any(by_p256));
    assert_eq!(rekeys_asked(&net), 2);
}

#[test]
fn a_method_that_was_not_offered_is_not_used() {
    let mut net = Net::psk_mesh(1, 2);
    refuse(&mut net, NotifyType::InvalidKePayload, &[0, 2]);
    net.run(limits::REKEY_RETRY * 2);
    assert_eq!((rekeys_asked(&net), downs(&net)), (1, 0));
}

#[test]
fn a_child_sa_that_the_peer_has_lost_is_made_anew() {
    let mut net = Net::psk_mesh(1, 2);
    refuse(&mut net, NotifyType::ChildSaNotFound, &[]);
    let lost = |event: &Event| {
        matches!(
            event,
            Event::ChildDown {
                reason: CloseReason::Peer,
                ..
            }
        )
    };
    assert_eq!(net.count(0, lost), 1);
    net.run(Duration::from_secs(5));
    assert_eq!(net.child_ups(0).len(), 2);
}

#[test]
fn a_peer_that_does_not_rekey_gets_a_new_ike_sa_before_the_old_one_goes() {
    let mut net = Net::psk_mesh(1, 2);
    refuse(&mut net, NotifyType::NoAdditionalSas, &[]);
    net.run(Duration::from_secs(2));
    assert_eq!((net.child_ups(0).len(), downs(&net)), (2, 0));
    net.run(limits::DRAIN);
    assert_eq!(downs(&net), 1);
    assert!(net.settled(0, 1));
}

#[test]
fn an_answer_that_cannot_be_used_is_deleted_again() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = connected(&mut net);
    raw.ask(&mut net, ExchangeType::Informational, &[]).unwrap();
    net.rekey_child(0, 1);
    let (_, asked) = raw.asked(&net);
    let offered = asked.payloads().iter().find_map(|payload| match payload {
        Payload::Sa(sa) => Some(sa.proposals[0].spi.clone()),
        _ => None,
    });
    // Neither nonce nor key exchange.
    raw.answer(&mut net, &raw::child(NEW, address(0), address(1)));
    let (header, deleted) = raw.asked(&net);
    assert_eq!(u8::from(header.exchange), INFORMATIONAL);
    let Some(Spi::Child(offered)) = offered else {
        panic!("{offered:?}");
    };
    let delete = Payload::Delete(Delete::Child {
        protocol: ProtocolId::Esp,
        spis: vec![offered],
    });
    assert_eq!(deleted.payloads(), [delete]);
    assert_eq!((net.child_ups(0).len(), downs(&net)), (1, 0));
}

#[test]
fn an_ike_sa_is_not_rekeyed_without_spi_or_key_exchange() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = connected(&mut net);
    for spi in [Spi::None, Spi::Ike(0), Spi::Ike(77)] {
        let transforms = vec![
            Transform::with_key_length(TransformType::Encr, wire::encr::AES_GCM_16, 256),
            Transform::new(TransformType::Prf, wire::prf::HMAC_SHA2_256),
            Transform::new(TransformType::Ke, wire::kex::CURVE25519),
        ];
        let proposals = vec![wire::Proposal {
            number: 1,
            protocol: ProtocolId::Ike,
            spi,
            transforms,
        }];
        let payloads = [
            Payload::Sa(wire::Sa { proposals }),
            Payload::Nonce(Nonce(&[5; 32])),
        ];
        let answer = raw
            .ask(&mut net, ExchangeType::CreateChildSa, &payloads)
            .unwrap();
        assert_eq!(answer.notifies(), [NotifyType::InvalidSyntax]);
    }
    assert_eq!(net.ike_sas(0), 1);
}
