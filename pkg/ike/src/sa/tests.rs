#![allow(clippy::disallowed_methods)] // a base to count from; nothing waits

use std::net::SocketAddr;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;
use crate::crypto::{IkeSuite, KexGroup, Nonces, Prf, SkCipher, SkeySeed, kex};

fn path() -> Path {
    let at = |host| SocketAddr::from(([10, 0, 0, host], 4500));
    Path {
        local: at(1),
        remote: at(2),
    }
}

fn negotiated() -> Negotiated {
    let mut rng = StdRng::seed_from_u64(1);
    let own = KeyExchange::generate(KexGroup::X25519, &mut rng).unwrap();
    let (_, shared) = kex::respond(KexGroup::X25519, own.public(), &mut rng).unwrap();
    let nonces = Nonces {
        initiator: &[1; 32],
        responder: &[2; 32],
    };
    let spis = Spis {
        initiator: 1,
        responder: 2,
    };
    let suite = IkeSuite {
        prf: Prf::HmacSha256,
        cipher: SkCipher::Aes256Gcm16,
    };
    let keys = SkeySeed::new(suite, nonces, &shared).into_keys(nonces, spis);
    Negotiated {
        keys: keys.unwrap().for_role(Role::Responder).unwrap(),
        sent: Vec::new(),
        received: Vec::new(),
        nonce_i: Vec::new(),
        nonce_r: Vec::new(),
        mesh: true,
        hashes: Vec::new(),
        chosen: init::Chosen {
            number: 1,
            suite,
            group: KexGroup::X25519,
            kem: None,
        },
        intermediate: None,
        childless: true,
        ppk: PpkUse::No,
    }
}

fn states() -> Vec<(&'static str, State, &'static [u8])> {
    let peer = || Identity("node-b".into());
    let kex = KeyExchange::generate(KexGroup::X25519, &mut StdRng::seed_from_u64(1)).unwrap();
    let init_sent = InitSent {
        peer: peer(),
        kex,
        nonce: Vec::new(),
        cookie: Vec::new(),
        request: Vec::new(),
        restarts: 0,
        told: None,
    };
    let auth_sent = AuthSent {
        peer: peer(),
        negotiated: negotiated(),
        spi_in: 300,
        childless: false,
        doomed: false,
    };
    let intermediate_sent = IntermediateSent {
        peer: peer(),
        negotiated: negotiated(),
        kem: KemKey::generate(Kem::MlKem768).unwrap(),
    };
    let half_open = |awaits| {
        State::HalfOpen(Box::new(HalfOpen {
            negotiated: negotiated(),
            from: path().remote,
            awaits,
            before: None,
        }))
    };
    let keys = negotiated().keys;
    let established = Established {
        peer: peer(),
        sealer: keys.sealer,
        opener: keys.opener,
        sk_d: keys.sk_d,
        mesh: true,
        children: Vec::new(),
        order: 1,
        proven: true,
        confirmed: true,
        carried: None,
        silent: false,
        rekey: None,
        pending: None,
        kem: false,
        deletes: Vec::new(),
        reauth: Reauth::default(),
        heir: false,
        candidate_of: None,
    };
    let keys = negotiated().keys;
    let closing = Closing {
        sealer: keys.sealer,
        opener: keys.opener,
        delete: None,
        successor: None,
        rekey: None,
    };
    vec![
        ("InitSent", State::InitSent(Box::new(init_sent)), &[]),
        ("AuthSent", State::AuthSent(Box::new(auth_sent)), &[]),
        (
            "IntermediateSent",
            State::IntermediateSent(Box::new(intermediate_sent)),
            &[],
        ),
        ("HalfOpen", half_open(None), &[35]),
        ("HalfOpen, ML-KEM", half_open(Some(Kem::MlKem768)), &[43]),
        (
            "Established",
            State::Established(Box::new(established)),
            &[36, 37, 44],
        ),
        ("Closing", State::Closing(Box::new(closing)), &[36, 37, 44]),
        ("Closed", State::Closed, &[]),
    ]
}

/// With its peer in `tests/endpoint/whitelist.rs`, which has the keys.
#[test]
fn every_state_admits_the_requests_of_its_exchanges_and_no_others() {
    for (name, state, admitted) in states() {
        let sa = IkeSa::new(1, 2, Role::Responder, path(), Instant::now(), state);
        for exchange in 0..=255 {
            assert_eq!(
                sa.admits_request(exchange.into()),
                admitted.contains(&exchange),
                "{name}: exchange type {exchange}"
            );
        }
    }
}
