//! Handshakes that must fail, and say why: cause and remedy, in words that an admin can use.

use std::time::Duration;

use espalier_ike::wire::{ExchangeType, NotifyType};
use espalier_ike::{Config, Connect, EspSuite, Event, IkeStatus, PeerAuth, TrafficSelector};
use espalier_secret::SecretBytes;

use crate::sim::pki::Ca;
use crate::sim::raw::{self, Raw};
use crate::sim::{Net, Weather, address, id, ip, peer_config, psk};

const A_WHILE: Duration = Duration::from_secs(60);

/// Nothing came up on either end, and the failures of both contain these texts.
fn assert_refused(net: &mut Net, initiator: &str, responder: &str) {
    net.connect(0, 1, Connect::Policy);
    net.run(A_WHILE);
    for (node, text) in [(0, initiator), (1, responder)] {
        let failures = net.failures(node);
        assert!(
            failures.iter().any(|failure| failure.contains(text)),
            "node {node}: {failures:#?}"
        );
        assert!(
            failures.len() < 10,
            "node {node} tried {} times within a minute",
            failures.len()
        );
        assert_eq!(
            net.count(node, |event| matches!(event, Event::ChildUp { .. })),
            0
        );
        assert_ne!(
            net.nodes[node].endpoint.status(&id(1 - node)),
            IkeStatus::Established
        );
    }
}

fn cert_pair(own: &Ca, other: &Ca, until: i32) -> Net {
    let mut net = Net::new(1, 0, None);
    for (index, ca, until) in [(0, own, until), (1, other, 2030)] {
        let credentials = Some(ca.issue_until(&id(index).0, until));
        net.add(
            address(index),
            Config {
                credentials,
                trust: ca.trust(),
                ..Config::new(id(index))
            },
        );
    }
    net.introduce_all(&PeerAuth::Certificate);
    net
}

#[test]
fn a_wrong_psk() {
    let mut net = Net::new(1, 2, None);
    net.introduce(0, &psk(1));
    net.introduce(1, &psk(2));
    assert_refused(
        &mut net,
        "the reason is in node-01's log",
        "node-00: the peer's pre-shared key differs from ours",
    );
}

#[test]
fn an_expired_certificate() {
    let ca = Ca::new("CA");
    let mut net = cert_pair(&ca, &ca, 2026);
    assert_refused(
        &mut net,
        "the reason is in node-01's log",
        "expired: valid until Jan  1 00:00:00 2026",
    );
}

#[test]
fn an_unknown_ca() {
    let mut net = cert_pair(&Ca::new("CA of node-00"), &Ca::new("CA of node-01"), 2030);
    assert_refused(
        &mut net,
        "the reason is in node-01's log",
        "which this node does not trust",
    );
}

#[test]
fn a_responder_whose_proof_is_not_believed_loses_the_ike_sa_at_once() {
    let (one, other) = (Ca::new("CA 1"), Ca::new("CA 2"));
    let mut net = cert_pair(&one, &one, 2030);
    // The initiator trusts another CA only: the responder accepts it, but not the other way round.
    let credentials = Some(one.issue(&id(0).0));
    net.nodes[0]
        .endpoint
        .set_config(Config {
            credentials,
            trust: other.trust(),
            ..Config::new(id(0))
        })
        .unwrap();
    net.connect(0, 1, Connect::Policy);
    let told = |net: &Net| {
        net.failures(1)
            .iter()
            .any(|text| text.contains("node-00 refused this node's identity"))
    };
    assert!(net.run_until(A_WHILE, told));
    assert!(
        net.failures(0)[0].contains("does not trust"),
        "{:?}",
        net.failures(0)
    );
    assert_eq!(net.nodes[1].endpoint.status(&id(0)), IkeStatus::None);
    assert!(net.nodes[1].plane[&id(0)].inbound.is_empty());
}

#[test]
fn one_by_psk_the_other_by_certificate() {
    let ca = Ca::new("CA");
    let mut net = Net::new(1, 2, Some(&ca));
    net.introduce(0, &psk(1));
    net.introduce(1, &PeerAuth::Certificate);
    assert_refused(
        &mut net,
        "the reason is in node-01's log",
        "by SharedKey, but this node expects a certificate",
    );
}

#[test]
fn a_certificate_of_another_node() {
    let ca = Ca::new("CA");
    let mut net = Net::new(1, 3, Some(&ca));
    net.introduce_all(&PeerAuth::Certificate);
    let stolen = ca.issue(&id(2).0);
    // Node 2's certificate and key from node 1's address: as node 1, and as itself.
    let cases = [
        (
            id(1).0,
            "peer claims to be node-01, but its certificate is for node-02",
        ),
        (
            id(2).0,
            "identity node-02 came from 10.9.0.2, which is not an address of Node node-02 (it has 10.9.0.3)",
        ),
    ];
    for (claimed, text) in cases {
        let mut raw = Raw::init(&mut net, address(1), 0, true);
        let child = raw::child(4711, address(1), address(0));
        let answer = raw.auth_cert(&mut net, &claimed, &stolen, &child).unwrap();
        assert_eq!(answer.notifies(), [NotifyType::AuthenticationFailed]);
        let failures = net.failures(0);
        assert!(failures.last().unwrap().contains(text), "{failures:#?}");
    }
    assert_eq!(
        net.count(0, |event| matches!(event, Event::ChildUp { .. })),
        0
    );
}

#[test]
fn a_wrong_address() {
    let mut net = Net::new(1, 2, None);
    net.introduce(0, &psk(1));
    let mut elsewhere = peer_config(1, 0, psk(1));
    elsewhere.addresses = vec![ip(7), ip(8)];
    let now = net.now;
    net.nodes[1].endpoint.put_peer(elsewhere, now).unwrap();
    let text = "identity node-00 came from 10.9.0.1, which is not an address of Node node-00 (it has 10.9.0.8, 10.9.0.9)";
    assert_refused(&mut net, "the reason is in node-01's log", text);
}

#[test]
fn a_peer_that_nobody_knows() {
    let mut net = Net::new(1, 2, None);
    net.introduce(0, &psk(1));
    assert_refused(
        &mut net,
        "the reason is in node-01's log",
        "10.9.0.1:4500 claims to be node-00, which is no peer",
    );
}

#[test]
fn another_node_answers() {
    let mut net = Net::new(1, 2, None);
    // Node 0 believes node-05 to be at node 1's address.
    let mut wrong = peer_config(0, 5, psk(1));
    (wrong.remote, wrong.addresses) = (address(1), vec![ip(1)]);
    let now = net.now;
    net.nodes[0].endpoint.put_peer(wrong, now).unwrap();
    net.introduce(1, &psk(1));
    net.nodes[0].endpoint.connect(&id(5), Connect::Policy, now);
    net.run(Duration::from_secs(1));
    let failures = net.failures(1);
    assert!(
        failures[0].contains("node-00 wants to talk to node-05, but this is node-01"),
        "{failures:?}"
    );
    assert!(
        net.failures(0)[0].contains("node-05 refused this node's identity"),
        "{:?}",
        net.failures(0)
    );
}

#[test]
fn no_esp_suite_in_common() {
    let mut net = Net::psk_mesh(1, 2);
    let mut other = peer_config(1, 0, psk(7));
    other.child.suites = vec![EspSuite::ChaCha20Poly1305.into()];
    let now = net.now;
    net.nodes[1].endpoint.put_peer(other, now).unwrap();
    let text = "it offered Esp ENCR 20/256, ENCR 20/128, ESN 1, ESN 0; this node takes Esp ENCR 28";
    assert_refused(&mut net, "refused the CHILD_SA with NoProposalChosen", text);
    net.nodes[0].endpoint.disconnect(&id(1), net.now);
    net.run(A_WHILE);
    assert_eq!(
        (net.ike_sas(0), net.ike_sas(1)),
        (0, 0),
        "childless IKE SAs stay behind"
    );
}

#[test]
fn traffic_selectors_that_do_not_meet() {
    let mut net = Net::psk_mesh(1, 2);
    let mut other = peer_config(1, 0, psk(7));
    other.child.remote_ts = vec![TrafficSelector {
        protocol: 6,
        ..other.child.remote_ts[0].clone()
    }];
    let now = net.now;
    net.nodes[1].endpoint.put_peer(other, now).unwrap();
    let text = "traffic selectors have nothing in common with node-00";
    assert_refused(&mut net, "refused the CHILD_SA with TsUnacceptable", text);
}

#[test]
fn transport_against_tunnel_mode() {
    let mut net = Net::psk_mesh(1, 2);
    let mut other = peer_config(1, 0, psk(7));
    other.child.transport = false;
    let now = net.now;
    net.nodes[1].endpoint.put_peer(other, now).unwrap();
    assert_refused(
        &mut net,
        "NoProposalChosen",
        "node-00 wants transport mode, this node tunnel mode",
    );
}

#[test]
fn a_refused_peer_leaves_the_rest_of_the_mesh_alone() {
    let mut net = Net::psk_mesh(1, 4);
    let now = net.now;
    net.nodes[3]
        .endpoint
        .put_peer(peer_config(3, 0, psk(99)), now)
        .unwrap();
    net.connect_all(Connect::Policy);
    net.run(A_WHILE);
    let fine = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)];
    assert!(fine.into_iter().all(|(a, b)| net.settled(a, b)));
    assert!(!net.settled(0, 3));
}

#[test]
fn what_is_refused_once_may_be_right_later() {
    let mut net = Net::new(1, 2, None);
    net.introduce(0, &psk(1));
    net.introduce(1, &psk(2));
    net.connect(0, 1, Connect::Policy);
    net.run(A_WHILE);
    net.introduce(1, &psk(1));
    assert!(net.run_until(A_WHILE, Net::all_settled));
}

#[test]
fn a_half_open_ike_sa_is_gone_with_its_refusal() {
    let mut net = Net::psk_mesh(1, 2);
    net.weather = Weather::FINE;
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    let child = raw::child(4711, address(1), address(0));
    let wrong = SecretBytes::copy_from(&[9; 32]);
    let answer = raw.auth_psk(&mut net, "node-01", &wrong, &child).unwrap();
    assert_eq!(answer.notifies(), [NotifyType::AuthenticationFailed]);
    // No second guess on the same keys, and nothing else either.
    let right = SecretBytes::copy_from(&[7; 32]);
    assert!(raw.auth_psk(&mut net, "node-01", &right, &child).is_none());
    assert!(
        raw.ask(&mut net, ExchangeType::Informational, &[])
            .is_none()
    );
    assert_eq!(net.nodes[0].endpoint.half_open(), 0);
    net.run(A_WHILE);
    assert_eq!(net.ike_sas(0), 0);
}
