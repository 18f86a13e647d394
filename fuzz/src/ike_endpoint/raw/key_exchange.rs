//! Additional key exchanges: in the handshake and in rekeys.

use espalier_ike::crypto::{Kem, KemKey, Secrets};

use super::*;

/// The first byte says what the rest is used for, the second is the type of the first payload, the rest the chain:
///
/// | stage | the chain is |
/// |---|---|
/// | 0, 1 | what an IKE_INTERMEDIATE request, response seals, after an IKE_SA_INIT that agreed on ML-KEM-768 (RFC 9242) |
/// | 2 | what an IKE_FOLLOWUP_KE request seals, without a rekey that it belongs to (RFC 9370) |
/// | 3 | the same behind the token of one |
pub fn ike_endpoint_key_exchange(data: &[u8]) {
    let [stage, first, chain @ ..] = data else {
        return;
    };
    let chain = Chain {
        first: (*first).into(),
        bytes: chain.to_vec(),
    };
    let mut raw = match stage % 4 {
        0 => Raw::initiator_with(PostQuantum::Required),
        1 => Raw::responder_with(PostQuantum::Required),
        stage => return follow_up(chain, stage == 3),
    };
    raw.send(ExchangeType::IkeIntermediate, 1, &chain);
    // Under the keys that there were: whatever came, it is not read any more.
    raw.send(ExchangeType::IkeAuth, 2, &chain);
    raw.check(false);
}

fn follow_up(chain: Chain, with_token: bool) {
    let mut raw = Raw::initiator_with(PostQuantum::Required);
    raw.add_kem();
    let proven = raw.prove(Chain::of(&child()));
    raw.send(ExchangeType::IkeAuth, 2, &proven);
    assert_eq!(raw.node.status(), IkeStatus::Established);
    let kex = KeyExchange::generate(KexGroup::X25519, &mut Rng::new("rekey", 0)).expect("a key");
    raw.send(
        ExchangeType::CreateChildSa,
        3,
        &Chain::of(&rekey(kex.public())),
    );
    let token = raw.token();
    let token = wire::Notify::new(wire::NotifyType::AdditionalKeyExchange, &token);
    let chain = match with_token {
        true => chain.behind(&[Payload::Notify(token)]),
        false => chain,
    };
    let ups = |raw: &Raw| {
        let up = |event: &&Event| matches!(event, Event::ChildUp { .. });
        raw.node.events.iter().filter(up).count()
    };
    let before = raw.node.sent.len();
    raw.send(ExchangeType::IkeFollowupKe, 4, &chain);
    assert!(raw.node.sent.len() > before, "it is answered");
    assert!(ups(&raw) == 1 || with_token, "a CHILD_SA without the token");
    raw.send(ExchangeType::IkeFollowupKe, 5, &chain);
    assert!(ups(&raw) <= 2, "a token serves once");
    assert_eq!(raw.node.endpoint.audit(), Ok(()));
    raw.check(true);
}

/// A rekey of the CHILD_SA of [`child`].
fn rekey(public: &[u8]) -> Vec<Payload<'_>> {
    let mut payloads = child().to_vec();
    for payload in &mut payloads {
        if let Payload::Sa(sa) = payload {
            let proposal = &mut sa.proposals[0];
            proposal.spi = Spi::Child(0xc0ff_ee02);
            let kem = Transform::new(TransformType::AddKe1, wire::kex::ML_KEM_768);
            let ke = Transform::new(TransformType::Ke, wire::kex::CURVE25519);
            proposal.transforms.extend([ke, kem]);
        }
    }
    let old = wire::Notify::about_child(wire::NotifyType::RekeySa, ProtocolId::Esp, 0xc0ff_ee01);
    let ke = wire::KeyExchange {
        group: wire::kex::CURVE25519,
        data: public,
    };
    payloads.extend([
        Payload::Notify(old),
        Payload::Nonce(Nonce(&NONCE)),
        Payload::Ke(ke),
    ]);
    payloads
}

impl Raw {
    /// IKE_INTERMEDIATE with ML-KEM-768, as initiator.
    fn add_kem(&mut self) {
        let key = KemKey::generate(Kem::MlKem768).expect("randomness");
        let ke = |data| {
            Payload::Ke(wire::KeyExchange {
                group: wire::kex::ML_KEM_768,
                data,
            })
        };
        let asked = [ke(key.public())];
        self.send(ExchangeType::IkeIntermediate, 1, &Chain::of(&asked));
        let opened = self.opened();
        let payloads = opened.payloads();
        let [Payload::Ke(answer)] = payloads.as_slice() else {
            panic!("{payloads:?}");
        };
        let spis = [self.spis.initiator, self.spis.responder];
        let exchange = ExchangeType::IkeIntermediate;
        let covered = |role, payloads: &[Payload<'_>]| {
            let chain = Chain::of(payloads);
            let header = header(role, spis, exchange, 1);
            let prefix = wire::emit_encrypted_prefix(&header, chain.first, chain.bytes.len());
            [prefix, chain.bytes].concat()
        };
        let mut chains = IntAuth::default();
        let (own, theirs) = (&self.keys.sk_p_local, &self.keys.sk_p_remote);
        chains.add(Role::Initiator, own, &covered(Role::Initiator, &asked));
        chains.add(
            Role::Responder,
            theirs,
            &covered(Role::Responder, &[ke(answer.data)]),
        );
        let shared = key
            .open(answer.data)
            .expect("a ciphertext of the right length");
        let nonces = Nonces {
            initiator: &NONCE,
            responder: &self.nonce,
        };
        let seed = SkeySeed::rekey(&self.keys.sk_d, SUITE, nonces, Secrets::one(&shared));
        let keys = seed.into_keys(nonces, self.spis);
        let keys = keys.and_then(|keys| keys.for_role(Role::Initiator));
        self.keys = keys.expect("good keys");
        self.intermediate = Some(chains);
    }

    /// The inner payloads of what the node sent last, which is no fragment or all of them.
    fn opened(&self) -> Chain {
        let last = &self.node.sent.last().expect("an answer").payload;
        let id = Message::parse(last).expect("parses").header.message_id;
        let mut chain: Option<Chain> = None;
        for datagram in &self.node.sent {
            let message = Message::parse(&datagram.payload).expect("parses");
            let (first, aad_len) = match message.payloads.last() {
                Some(Payload::Encrypted(sk)) => (sk.inner_first, sk.aad_len),
                Some(Payload::Fragment(skf)) => (skf.inner_first, skf.aad_len),
                _ => continue,
            };
            if message.header.message_id == id
                && message.header.flags.response
                && let Ok(part) = self.keys.opener.open(&datagram.payload, aad_len)
            {
                let bytes = Vec::new();
                let chain = chain.get_or_insert(Chain { first, bytes });
                chain.bytes.extend_from_slice(&part);
            }
        }
        chain.expect("an answer that opens")
    }

    /// ADDITIONAL_KEY_EXCHANGE in the node's last answer.
    fn token(&self) -> Vec<u8> {
        let opened = self.opened();
        let token = opened
            .payloads()
            .into_iter()
            .find_map(|payload| match payload {
                Payload::Notify(n) if n.kind == wire::NotifyType::AdditionalKeyExchange => {
                    Some(n.data.to_vec())
                }
                _ => None,
            });
        token.expect("the rekey is granted")
    }
}
