//! SK payloads under known keys, and certificates.

use std::sync::LazyLock;
use std::time::Duration;

use espalier_ike::crypto::schedule::{IkeSuite, Nonces, RoleKeys, SkeySeed, Spis};
use espalier_ike::crypto::{KexGroup, KeyExchange, Prf, SharedSecret, SkCipher, kex};
use espalier_ike::identity::{MAX_CHAIN_LEN, TrustAnchors, verify_peer};
use espalier_ike::wire::{ExchangeType, Flags, Header, Message, Payload, PayloadType, parse_chain};
use espalier_ike::{Identity, Role};

use crate::mutate::Rng;

/// Bytes to open as they are, and the same bytes as what is inside: sealed, opened, parsed.
pub fn ike_sk_open(data: &[u8]) {
    let [mut initiator, responder] = keys();
    if let Ok(message) = Message::parse(data)
        && let Some(Payload::Encrypted(sk)) = message.payloads.last()
        && let Ok(inner) = responder.opener.open(data, sk.aad_len)
    {
        let _ = parse_chain(sk.inner_first, &inner);
    }
    let Some((first, inner)) = data.split_first() else {
        return;
    };
    let first = PayloadType::from(*first);
    let Ok(datagram) = initiator.sealer.seal_message(&HEADER, first, inner) else {
        return;
    };
    let message = Message::parse(&datagram).expect("a sealed message parses");
    let Some(Payload::Encrypted(sk)) = message.payloads.last() else {
        panic!("a sealed message has an SK payload: {message:?}")
    };
    let opened = responder
        .opener
        .open(&datagram, sk.aad_len)
        .expect("a sealed message opens");
    assert_eq!(*opened, inner);
    let _ = parse_chain(sk.inner_first, &opened);
    assert!(
        initiator.opener.open(&datagram, sk.aad_len).is_err(),
        "directions have own keys"
    );
}

/// A certificate chain: each certificate behind its length (2 bytes, big-endian). The anchor is `fuzz/keys/ca.crt`, whose
/// private key was never kept: nothing but the chains in the corpus may pass.
pub fn ike_verify_peer(data: &[u8]) {
    static ANCHORS: LazyLock<TrustAnchors> = LazyLock::new(|| {
        let pem = include_bytes!("../keys/ca.crt");
        TrustAnchors::from_pem(pem).expect("the committed CA certificate is one")
    });
    let chain = split_chain(data);
    let expected = Identity("node-a".into());
    let uid = Some("11111111-2222-3333-4444-555555555555");
    for unix in [VALID_AT, Duration::ZERO, Duration::MAX] {
        let verified = verify_peer(&ANCHORS, &chain, &expected, uid, unix);
        if let Ok(peer) = verified {
            assert!(chain.len() <= MAX_CHAIN_LEN);
            assert_eq!(peer.identity(), &expected);
            assert!(peer.uid().is_none_or(|in_cert| Some(in_cert) == uid));
            assert!(unix <= peer.not_after());
        }
    }
    let _ = TrustAnchors::default().add_der(data);
}

/// 2030-01-01: inside the validity of the certificates in the corpus.
const VALID_AT: Duration = Duration::from_secs(1_893_456_000);

const HEADER: Header = Header {
    spi_i: 1,
    spi_r: 2,
    next_payload: PayloadType::None,
    exchange: ExchangeType::IkeAuth,
    flags: Flags {
        initiator: true,
        response: false,
        version: false,
    },
    message_id: 1,
};

/// The certificates of an input of [`ike_verify_peer`].
#[must_use]
pub fn split_chain(mut data: &[u8]) -> Vec<&[u8]> {
    let mut chain = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (certificate, rest) = rest.split_at(length);
        chain.push(certificate);
        data = rest;
    }
    chain
}

/// Both ends of an IKE SA, the same in every run.
fn keys() -> [RoleKeys; 2] {
    let nonces = Nonces {
        initiator: &[0x11; 32],
        responder: &[0x22; 32],
    };
    [Role::Initiator, Role::Responder].map(|role| {
        let suite = IkeSuite {
            prf: Prf::HmacSha256,
            cipher: SkCipher::Aes256Gcm16,
        };
        let spis = Spis {
            initiator: HEADER.spi_i,
            responder: HEADER.spi_r,
        };
        let keys = SkeySeed::new(suite, nonces, &shared()).into_keys(nonces, spis);
        keys.and_then(|keys| keys.for_role(role))
            .expect("keys of fixed lengths")
    })
}

fn shared() -> SharedSecret {
    let mut rng = Rng::new("key exchange", 0);
    let own = KeyExchange::generate(KexGroup::X25519, &mut rng).expect("any scalar does");
    let public = own.public().to_vec();
    kex::respond(KexGroup::X25519, &public, &mut rng)
        .expect("a public value of its own")
        .1
}
