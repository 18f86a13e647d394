//! What protects IKE SAs: offered, chosen and checked by policy (RFC 7296 §2.7, RFC 5282 §8).

use std::time::Duration;

use espalier_ike::crypto::{CbcKey, KexGroup, Prf, SkCipher, SkIntegrity};
use espalier_ike::{Config, ConfigError, Connect, Endpoint, IkePolicy, PeerConfig};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::sim::{CREATE_CHILD, INIT, Net, classic, id, ip, peer_config, psk};

const LONG: Duration = Duration::from_secs(300);
const CBC: SkCipher = SkCipher::AesCbc(CbcKey::Aes256, SkIntegrity::HmacSha256);

fn only(cipher: SkCipher, prf: Prf, group: KexGroup) -> IkePolicy {
    IkePolicy {
        ciphers: vec![cipher],
        prfs: vec![prf],
        groups: vec![group],
        ..classic()
    }
}

fn set(net: &mut Net, own: usize, peer: usize, ike: Option<IkePolicy>) {
    let config = PeerConfig {
        ike,
        ..peer_config(own, peer, psk(7))
    };
    let now = net.now;
    net.nodes[own].endpoint.put_peer(config, now).unwrap();
}

/// Two nodes with a policy for each other.
fn pair(ours: IkePolicy, theirs: IkePolicy) -> Net {
    let mut net = Net::psk_mesh(1, 2);
    set(&mut net, 0, 1, Some(ours));
    set(&mut net, 1, 0, Some(theirs));
    net.connect(0, 1, Connect::Policy);
    net
}

#[test]
fn every_algorithm_makes_and_rekeys_sas() {
    use SkIntegrity::{HmacSha256, HmacSha384, HmacSha512};
    let suites = [
        (SkCipher::Aes256Gcm16, Prf::HmacSha512, KexGroup::P384),
        (SkCipher::Aes128Gcm16, Prf::HmacSha256, KexGroup::P256),
        (
            SkCipher::ChaCha20Poly1305,
            Prf::HmacSha384,
            KexGroup::X25519,
        ),
        (
            SkCipher::AesCbc(CbcKey::Aes128, HmacSha256),
            Prf::HmacSha256,
            KexGroup::P384,
        ),
        (
            SkCipher::AesCbc(CbcKey::Aes256, HmacSha384),
            Prf::HmacSha384,
            KexGroup::P256,
        ),
        (
            SkCipher::AesCbc(CbcKey::Aes256, HmacSha512),
            Prf::HmacSha512,
            KexGroup::X25519,
        ),
    ];
    for (cipher, prf, group) in suites {
        let policy = only(cipher, prf, group);
        let mut net = pair(policy.clone(), policy);
        assert!(
            net.run_until(LONG, Net::all_settled),
            "{:?}",
            net.failures(0)
        );
        net.rekey_ike(0, 1);
        net.run(Duration::from_secs(10));
        net.rekey_child(1, 0);
        net.run(Duration::from_secs(60));
        assert!(net.all_settled());
        let rekeys = net
            .sent
            .iter()
            .filter(|packet| packet.kind().0 == CREATE_CHILD);
        assert_eq!(rekeys.count(), 4, "two requests and two responses");
        assert_eq!(net.child_ups(0).len(), 2);
    }
}

#[test]
fn the_first_of_the_initiators_that_the_responder_allows_is_taken() {
    let ours = IkePolicy {
        ciphers: vec![CBC, SkCipher::ChaCha20Poly1305, SkCipher::Aes128Gcm16],
        groups: vec![KexGroup::P384, KexGroup::X25519],
        ..classic()
    };
    let theirs = only(SkCipher::Aes128Gcm16, Prf::HmacSha384, KexGroup::X25519);
    let mut net = pair(ours, theirs);
    assert!(
        net.run_until(LONG, Net::all_settled),
        "{:?}",
        net.failures(0)
    );
    let inits = net.sent.iter().filter(|packet| packet.kind().0 == INIT);
    assert_eq!(inits.count(), 4, "INVALID_KE_PAYLOAD asks for X25519");
}

#[test]
fn cbc_is_neither_offered_nor_taken_unless_the_peers_policy_lists_it() {
    let cbc = only(CBC, Prf::HmacSha256, KexGroup::X25519);
    let mut net = pair(cbc.clone(), classic());
    net.run(Duration::from_secs(20));
    assert!(!net.all_settled());
    let refused = "no IKE proposal in common: the peer offered Ike ENCR 12/256";
    assert!(
        net.failures(1)[0].starts_with(refused),
        "{:?}",
        net.failures(1)
    );
    let mut net = pair(classic(), cbc);
    net.run(Duration::from_secs(20));
    assert!(!net.all_settled());
    assert!(net.failures(1)[0].contains("this node takes Ike ENCR 12/256"));
}

#[test]
fn a_choice_by_address_that_the_authenticated_peer_may_not_have_is_refused() {
    let mut net = Net::psk_mesh(1, 3);
    let (gcm, chacha) = (SkCipher::Aes256Gcm16, SkCipher::ChaCha20Poly1305);
    let with = |cipher| only(cipher, Prf::HmacSha256, KexGroup::X25519);
    set(&mut net, 0, 1, Some(with(gcm)));
    set(&mut net, 1, 0, Some(with(chacha)));
    // Node 2 may come from node 0's address, too, and may have what node 0 offers.
    let mut shared = peer_config(1, 2, psk(7));
    (shared.addresses, shared.ike) = (vec![ip(2), ip(0)], Some(with(gcm)));
    let now = net.now;
    net.nodes[1].endpoint.put_peer(shared, now).unwrap();
    net.connect(0, 1, Connect::Policy);
    net.run(Duration::from_secs(5));
    assert!(!net.settled(0, 1));
    let refused = "node-00 and this node agreed on Ike ENCR 20/256, PRF 5, KE 31";
    assert!(
        net.failures(1)[0].starts_with(refused),
        "{:?}",
        net.failures(1)
    );
    assert!(
        net.failures(0)[0].contains("NoProposalChosen"),
        "{:?}",
        net.failures(0)
    );
}

#[test]
fn policies_that_cannot_work_are_refused() {
    let with = |ike: IkePolicy| Config {
        ike,
        ..Config::new(id(0))
    };
    let rng = || Box::new(StdRng::seed_from_u64(1));
    let cbc = with(only(CBC, Prf::HmacSha256, KexGroup::X25519));
    let refused = Endpoint::new(cbc.clone(), rng()).unwrap_err();
    assert_eq!(refused, ConfigError::CbcForAll);
    let empty = with(IkePolicy {
        groups: Vec::new(),
        ..IkePolicy::default()
    });
    let what = "key exchange method";
    let refused = Endpoint::new(empty.clone(), rng()).unwrap_err();
    assert!(matches!(refused, ConfigError::NoIkeAlgorithm { what: w, .. } if w == what));
    let mut net = Net::psk_mesh(1, 2);
    let now = net.now;
    let endpoint = &mut net.nodes[0].endpoint;
    assert!(endpoint.set_config(cbc).is_err() && endpoint.set_config(empty.clone()).is_err());
    let peer = PeerConfig {
        ike: Some(empty.ike),
        ..peer_config(0, 1, psk(7))
    };
    let refused = endpoint.put_peer(peer, now).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("for peer node-01 lists no key exchange method")
    );
}
