//! Peers of other implementations: no vendor ID, no announcements. What they say was seen in `make interop`.

use espalier_ike::wire::{ExchangeType, Message, NotifyType, Payload};
use espalier_secret::SecretBytes;

use crate::sim::pki::Ca;
use crate::sim::raw::{self, Raw};
use crate::sim::{Net, address};

fn init_answer(net: &mut Net, vendor: bool) -> Vec<u8> {
    let (_, _, datagram) = raw::init_request(net, &[], 7 + u64::from(vendor), vendor);
    let path = espalier_ike::Path {
        local: address(1),
        remote: address(0),
    };
    raw::ask(net, path, datagram).expect("IKE_SA_INIT answered")
}

/// strongSwan sends its certificate only when it is asked for one.
#[test]
fn a_foreign_initiator_is_asked_for_its_certificate() {
    let ca = Ca::new("ca");
    let mut net = Net::new(1, 2, Some(&ca));
    let asked = |answer: &[u8]| {
        let message = Message::parse(answer).unwrap();
        message.payloads.iter().find_map(|payload| match payload {
            Payload::CertReq(certreq) => Some(certreq.authorities.to_vec()),
            _ => None,
        })
    };
    let answer = init_answer(&mut net, false);
    assert_eq!(asked(&answer), Some(ca.trust().certreq()));
    let answer = init_answer(&mut net, true);
    assert_eq!(asked(&answer), None);
}

#[test]
fn without_certification_authorities_no_certificate_is_asked_for() {
    let mut net = Net::psk_mesh(1, 2);
    let answer = init_answer(&mut net, false);
    let message = Message::parse(&answer).unwrap();
    let is_certreq = |payload: &Payload<'_>| matches!(payload, Payload::CertReq(_));
    assert!(!message.payloads.iter().any(is_certreq));
}

fn connected(net: &mut Net) -> Raw {
    net.strict = false;
    let mut raw = Raw::init(net, address(1), 0, false);
    let child = raw::child(4711, address(1), address(0));
    let psk = SecretBytes::copy_from(&[7; 32]);
    raw.auth_psk(net, "node-01", &psk, &child).unwrap();
    raw
}

/// A foreign initiator has nothing to say after IKE_AUTH: waiting for a word of it would be for ever.
#[test]
fn a_foreign_initiators_sas_are_rekeyed_though_it_is_silent() {
    let mut net = Net::psk_mesh(1, 2);
    let raw = connected(&mut net);
    net.rekey_child(0, 1);
    let (header, asked) = raw.asked(&net);
    assert_eq!(header.exchange, ExchangeType::CreateChildSa);
    assert!(asked.notifies().contains(&NotifyType::RekeySa));

    let mut net = Net::psk_mesh(1, 2);
    let raw = connected(&mut net);
    net.rekey_ike(0, 1);
    let (header, asked) = raw.asked(&net);
    assert_eq!(header.exchange, ExchangeType::CreateChildSa);
    assert_eq!(asked.notifies(), []);
}
