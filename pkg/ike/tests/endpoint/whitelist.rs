//! Which exchanges are admitted when (RFC 7296 §1, §2.21; strongSwan CVE-2014-2338, Libreswan CVE-2019-12312): every exchange
//! type, as request and as response, with the right keys, in every state of a responder.

use std::time::Duration;

use espalier_ike::wire::{Delete, ExchangeType, Payload};
use espalier_ike::{IkeStatus, limits};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Raw};
use crate::sim::{Net, address, id};

const DELETE: [Payload<'static>; 1] = [Payload::Delete(Delete::Ike)];

fn authenticate(net: &mut Net, raw: &mut Raw) {
    let child = raw::child(4711, address(1), address(0));
    let psk = SecretBytes::copy_from(&[7; 32]);
    assert!(raw.auth_psk(net, "node-01", &psk, &child).is_some());
}

/// Everything that a state does not admit leaves no trace; `admits` is not tried.
fn assert_only(net: &mut Net, raw: &mut Raw, admits: &[u8], state: &str) {
    let (events, sas) = (net.nodes[0].log.len(), net.ike_sas(0));
    for exchange in (0..=255).map(ExchangeType::from) {
        let tried = !admits.contains(&exchange.into()) && exchange != ExchangeType::IkeSaInit;
        if tried {
            let datagram = raw.seal(exchange, &DELETE, None).remove(0);
            assert!(
                raw.deliver(net, datagram).is_none(),
                "{state}: request {exchange:?}"
            );
        }
        for message_id in 0..4 {
            let datagram = raw.seal_response(exchange, message_id, &DELETE);
            assert!(
                raw.deliver(net, datagram).is_none(),
                "{state}: response {exchange:?}"
            );
        }
    }
    assert_eq!(net.nodes[0].log.len(), events, "{state}");
    assert_eq!(net.ike_sas(0), sas, "{state}");
}

#[test]
fn a_half_open_ike_sa_admits_ike_auth_only() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    assert_only(&mut net, &mut raw, &[35], "half-open");
    authenticate(&mut net, &mut raw);
    assert_eq!(net.child_ups(0).len(), 1);
}

#[test]
fn an_established_ike_sa_admits_create_child_sa_informational_and_ike_followup_ke() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    authenticate(&mut net, &mut raw);
    assert_only(&mut net, &mut raw, &[36, 37, 44], "established");
    assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::Established);
    for exchange in [
        ExchangeType::CreateChildSa,
        ExchangeType::IkeFollowupKe,
        ExchangeType::Informational,
    ] {
        assert!(raw.ask(&mut net, exchange, &[]).is_some(), "{exchange:?}");
    }
}

#[test]
fn a_closing_ike_sa_admits_what_the_peer_may_have_begun() {
    let mut net = Net::psk_mesh(1, 2);
    net.strict = false;
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    authenticate(&mut net, &mut raw);
    assert!(
        raw.ask(&mut net, ExchangeType::Informational, &[])
            .is_some()
    );
    let now = net.now;
    net.nodes[0].endpoint.disconnect(&id(1), now);
    net.pump(0);
    // The response to its DELETE is no matter of this test: message ID 0 is that of another exchange type here.
    let (events, sas) = (net.nodes[0].log.len(), net.ike_sas(0));
    for exchange in (0..=255).map(ExchangeType::from) {
        if !matches!(u8::from(exchange), 34 | 36 | 37 | 44) {
            let datagram = raw.seal(exchange, &DELETE, None).remove(0);
            assert!(
                raw.deliver(&mut net, datagram).is_none(),
                "request {exchange:?}"
            );
        }
        if exchange != ExchangeType::Informational {
            let datagram = raw.seal_response(exchange, 0, &DELETE);
            assert!(
                raw.deliver(&mut net, datagram).is_none(),
                "response {exchange:?}"
            );
        }
    }
    assert_eq!((net.nodes[0].log.len(), net.ike_sas(0)), (events, sas));
    // RFC 7296 §2.25.2.
    for exchange in [ExchangeType::CreateChildSa, ExchangeType::IkeFollowupKe] {
        assert!(raw.ask(&mut net, exchange, &[]).is_some(), "{exchange:?}");
    }
}

#[test]
fn a_closed_ike_sa_admits_nothing() {
    let mut net = Net::psk_mesh(1, 2);
    net.strict = false;
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    authenticate(&mut net, &mut raw);
    assert!(
        raw.ask(&mut net, ExchangeType::Informational, &DELETE)
            .is_some()
    );
    assert_only(&mut net, &mut raw, &[], "closed");
    net.run(limits::CLOSED_LINGER + Duration::from_secs(1));
    assert_eq!(net.ike_sas(0), 0);
}
