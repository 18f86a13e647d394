//! CREATE_CHILD_SA from a peer that is made by hand: what is granted, what is refused and how.

use espalier_ike::crypto::{KexGroup, KeyExchange};
use espalier_ike::wire::{
    self, Delete, ExchangeType, Nonce, Notify, NotifyType, Payload, ProtocolId, Spi, Transform,
    TransformType,
};
use espalier_ike::{Rekeying, Role};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Answer, Raw};
use crate::sim::{Net, address};

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
