//! Somebody who has the keys, before and after a proof of who it is: an authenticated node is still hostile.

use espalier_ike::crypto::auth::psk_auth;
use espalier_ike::crypto::schedule::{IkeSuite, Nonces, RoleKeys, SkeySeed, Spis};
use espalier_ike::crypto::{
    IntAuth, KexGroup, KeyExchange, Prf, SharedSecret, SignedOctets, SkCipher, kex,
};
use espalier_ike::wire::{
    self, Auth, AuthMethod, ExchangeType, Flags, Header, IdType, Identification, Message, Nonce,
    Payload, PayloadType, Proposal, ProtocolId, Sa, Spi, Transform, TransformType, VendorId, emit,
    emit_chain,
};
use espalier_ike::{Event, IkeStatus, PostQuantum, Role};
use espalier_secret::SecretBytes;

mod key_exchange;

pub use key_exchange::ike_endpoint_key_exchange;

use super::check_child;
use super::node::{self, Node, PSK};
use crate::mutate::Rng;

const NONCE: [u8; 32] = [0x77; 32];
const SUITE: IkeSuite = IkeSuite {
    prf: Prf::HmacSha256,
    cipher: SkCipher::Aes256Gcm16,
};
const SPI: u64 = 0x7777_7777_7777_7777;

/// The first byte says what the rest is used for, the second is the type of the first payload, the rest the chain:
///
/// | stage | the chain is |
/// |---|---|
/// | 0, 1 | the IKE_SA_INIT request, response |
/// | 2, 3 | what an IKE_AUTH request, response seals |
/// | 4, 5 | the same behind a genuine identity and its proof |
/// | 6, 7 | what an INFORMATIONAL, a CREATE_CHILD_SA request seals, after a genuine handshake |
pub fn ike_endpoint_inner(data: &[u8]) {
    let [stage, first, chain @ ..] = data else {
        return;
    };
    let chain = Chain {
        first: (*first).into(),
        bytes: chain.to_vec(),
    };
    match stage % 8 {
        0 => init_request(chain),
        1 => init_response(chain),
        2 => auth_request(chain, false),
        3 => auth_response(chain, false),
        4 => auth_request(chain, true),
        5 => auth_response(chain, true),
        6 => established(ExchangeType::Informational, &chain),
        _ => established(ExchangeType::CreateChildSa, &chain),
    }
}

/// Fragments with right keys (RFC 7383), of a request that may never be complete. The first byte says whether they are of an
/// IKE_AUTH or a later request; each fragment is the type of the first payload, number and total (2 bytes each), and its part
/// behind its length (1 byte). Where the highest bit of that length is set, the fragment is forged.
pub fn ike_endpoint_fragments(data: &[u8]) {
    let Some((stage, mut data)) = data.split_first() else {
        return;
    };
    let mut raw = Raw::initiator();
    let (exchange, id) = if stage % 2 == 0 {
        (ExchangeType::IkeAuth, 1)
    } else {
        let child = raw.prove(Chain::of(&child()));
        raw.send(ExchangeType::IkeAuth, 1, &child);
        (ExchangeType::Informational, 2)
    };
    let before = raw.node.sent.len();
    let mut fragments = 0;
    while let Some(([first, n0, n1, t0, t1, length], rest)) = data.split_first_chunk() {
        let take = usize::from(length & 0x7f).min(rest.len());
        let (part, rest) = rest.split_at(take);
        let numbers = (
            u16::from_be_bytes([*n0, *n1]),
            u16::from_be_bytes([*t0, *t1]),
        );
        raw.send_fragment(
            (exchange, id),
            (*first).into(),
            numbers,
            part,
            length & 0x80 != 0,
        );
        data = rest;
        fragments += 1;
        if fragments == 200 {
            break;
        }
    }
    let answers = raw.node.sent.len() - before;
    assert!(
        answers <= fragments,
        "{answers} answers to {fragments} fragments"
    );
    if stage % 2 == 1 {
        // Whatever that was, the IKE SA lives on or was ended by it.
        let closed = |event: &Event| matches!(event, Event::IkeDown { .. });
        let next = id + u32::from(answers > 0);
        let before = raw.node.sent.len();
        raw.send(exchange, next, &Chain::of(&[]));
        let closed = raw.node.events.iter().any(closed);
        assert!(closed || raw.node.sent.len() > before, "the SA lives on");
    }
    raw.check(stage % 2 == 1);
}

/// Payloads as bytes.
struct Chain {
    first: PayloadType,
    bytes: Vec<u8>,
}

impl Chain {
    fn of(payloads: &[Payload<'_>]) -> Self {
        let (first, bytes) = emit_chain(payloads);
        Self { first, bytes }
    }

    fn payloads(&self) -> Vec<Payload<'_>> {
        wire::parse_chain(self.first, &self.bytes).expect("an endpoint's payloads parse")
    }

    /// This chain behind payloads that are well-formed.
    fn behind(self, payloads: &[Payload<'_>]) -> Self {
        let mut front = Self::of(payloads);
        let ahead = payloads
            .split_last()
            .map_or(0, |(_, ahead)| Self::of(ahead).bytes.len());
        front.bytes[ahead] = self.first.into();
        front.bytes.extend(self.bytes);
        front
    }
}

fn init_request(chain: Chain) {
    let mut node = Node::new(Role::Responder);
    let header = header(Role::Initiator, [SPI, 0], ExchangeType::IkeSaInit, 0);
    node.receive(&plain(header, chain));
    assert_eq!(node.status(), IkeStatus::None);
    assert_unproven(&node);
    node.pass_time();
}

fn init_response(chain: Chain) {
    let mut node = Node::new(Role::Initiator);
    let spi_i = Message::parse(&node.sent[0].payload)
        .expect("own request parses")
        .header
        .spi_i;
    let header = header(Role::Responder, [spi_i, SPI], ExchangeType::IkeSaInit, 0);
    node.receive(&plain(header, chain));
    assert_ne!(node.status(), IkeStatus::Established);
    assert_unproven(&node);
    node.pass_time();
}

fn auth_request(chain: Chain, proven: bool) {
    let mut raw = Raw::initiator();
    let chain = if proven { raw.prove(chain) } else { chain };
    raw.send(ExchangeType::IkeAuth, 1, &chain);
    raw.check(proven);
}

fn auth_response(chain: Chain, proven: bool) {
    let mut raw = Raw::responder();
    let chain = if proven { raw.prove(chain) } else { chain };
    raw.send(ExchangeType::IkeAuth, 1, &chain);
    raw.check(proven);
}

fn established(exchange: ExchangeType, chain: &Chain) {
    let mut raw = Raw::initiator();
    let child = raw.prove(Chain::of(&child()));
    raw.send(ExchangeType::IkeAuth, 1, &child);
    assert_eq!(
        raw.node.status(),
        IkeStatus::Established,
        "{:?}",
        raw.node.events
    );
    raw.send(exchange, 2, chain);
    let again = raw.node.sent.len();
    raw.send(exchange, 3, &Chain::of(&[]));
    let closed = raw
        .node
        .events
        .iter()
        .any(|event| matches!(event, Event::IkeDown { .. }));
    assert!(
        closed || raw.node.sent.len() > again,
        "the SA lives on or says that it does not"
    );
    raw.check(true);
}

/// Nothing that only a peer can bring about.
fn assert_unproven(node: &Node) {
    assert_eq!(
        node.events.iter().find(|event| node::authenticated(event)),
        None,
        "S6"
    );
}

/// The other end of a node's IKE SA.
struct Raw {
    node: Node,
    role: Role,
    spis: Spis,
    keys: RoleKeys,
    sent: Vec<u8>,
    nonce: Vec<u8>,
    intermediate: Option<IntAuth>,
}

impl Raw {
    /// After IKE_SA_INIT with a node that waited.
    fn initiator() -> Self {
        Self::initiator_with(PostQuantum::Off)
    }

    fn initiator_with(post_quantum: PostQuantum) -> Self {
        let mut node = Node::with(Role::Responder, post_quantum);
        let kex = KeyExchange::generate(KexGroup::X25519, &mut Rng::new("raw", 0)).expect("a key");
        let header = header(Role::Initiator, [SPI, 0], ExchangeType::IkeSaInit, 0);
        let sent = emit(&header, &init_payloads(kex.public(), post_quantum));
        node.receive(&sent);
        let (spi_r, public, nonce) = read_init(&node.sent[0].payload);
        let spis = Spis {
            initiator: SPI,
            responder: spi_r,
        };
        let shared = kex.agree(&public).expect("an endpoint's public value");
        let keys = keys(&NONCE, &nonce, spis, &shared, Role::Initiator);
        Self {
            node,
            role: Role::Initiator,
            spis,
            keys,
            sent,
            nonce,
            intermediate: None,
        }
    }

    /// After IKE_SA_INIT with a node that began.
    fn responder() -> Self {
        Self::responder_with(PostQuantum::Off)
    }

    fn responder_with(post_quantum: PostQuantum) -> Self {
        let mut node = Node::with(Role::Initiator, post_quantum);
        let request = &node.sent[0].payload;
        let spi_i = Message::parse(request)
            .expect("own request parses")
            .header
            .spi_i;
        let (_, public, nonce) = read_init(request);
        let own = kex::respond(KexGroup::X25519, &public, &mut Rng::new("raw", 0));
        let (own, shared) = own.expect("an endpoint's public value");
        let spis = Spis {
            initiator: spi_i,
            responder: SPI,
        };
        let header = header(Role::Responder, [spi_i, SPI], ExchangeType::IkeSaInit, 0);
        let sent = emit(&header, &init_payloads(&own, post_quantum));
        let keys = keys(&nonce, &NONCE, spis, &shared, Role::Responder);
        node.receive(&sent);
        Self {
            node,
            role: Role::Responder,
            spis,
            keys,
            sent,
            nonce,
            intermediate: None,
        }
    }

    /// `chain` behind this end's identity and its proof by PSK.
    fn prove(&self, chain: Chain) -> Chain {
        let name = node::id(self.role).0;
        let id = Identification::new(IdType::Fqdn, name.as_bytes());
        let octets = SignedOctets::new(&self.sent, &self.nonce, &self.keys.sk_p_local, &id.body());
        let octets = match &self.intermediate {
            Some(chains) => octets.with_intermediate(chains, 2),
            None => octets,
        };
        let mac = psk_auth(&SecretBytes::copy_from(&PSK), &octets).expect("a PSK of 32 bytes");
        let auth = Payload::Auth(Auth {
            method: AuthMethod::SharedKey,
            data: mac.expose(),
        });
        let id = match self.role {
            Role::Initiator => Payload::IdI(id),
            Role::Responder => Payload::IdR(id),
        };
        chain.behind(&[id, auth])
    }

    fn send(&mut self, exchange: ExchangeType, message_id: u32, chain: &Chain) {
        let spis = [self.spis.initiator, self.spis.responder];
        let header = header(self.role, spis, exchange, message_id);
        let sealed = self
            .keys
            .sealer
            .seal_message(&header, chain.first, &chain.bytes);
        if let Ok(datagram) = sealed {
            self.node.receive(&datagram);
        }
    }

    fn send_fragment(
        &mut self,
        (exchange, message_id): (ExchangeType, u32),
        first: PayloadType,
        numbers: (u16, u16),
        part: &[u8],
        forged: bool,
    ) {
        let spis = [self.spis.initiator, self.spis.responder];
        let header = header(self.role, spis, exchange, message_id);
        let sealer = &mut self.keys.sealer;
        if let Ok(mut datagram) = sealer.seal_fragment(&header, first, numbers, part) {
            if let Some(last) = datagram.last_mut().filter(|_| forged) {
                *last ^= 1;
            }
            self.node.receive(&datagram);
        }
    }

    fn check(mut self, proven: bool) {
        self.node
            .events
            .iter()
            .for_each(|event| check_child(event, self.role));
        if !proven {
            assert_unproven(&self.node);
        }
        self.node.pass_time();
    }
}

fn header(role: Role, [spi_i, spi_r]: [u64; 2], exchange: ExchangeType, message_id: u32) -> Header {
    let initiator = role == Role::Initiator;
    let flags = Flags {
        initiator,
        response: !initiator,
        version: false,
    };
    Header {
        spi_i,
        spi_r,
        next_payload: PayloadType::None,
        exchange,
        flags,
        message_id,
    }
}

/// A message of any bytes behind a right header.
fn plain(header: Header, chain: Chain) -> Vec<u8> {
    let mut datagram = emit(&header, &[]);
    datagram[16] = chain.first.into();
    datagram.extend(chain.bytes);
    let length = u32::try_from(datagram.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    datagram[24..28].copy_from_slice(&length);
    datagram
}

fn init_payloads(public: &[u8], post_quantum: PostQuantum) -> Vec<Payload<'_>> {
    let mut transforms = vec![
        Transform::with_key_length(TransformType::Encr, wire::encr::AES_GCM_16, 256),
        Transform::new(TransformType::Prf, wire::prf::HMAC_SHA2_256),
        Transform::new(TransformType::Ke, wire::kex::CURVE25519),
    ];
    let mut supported = vec![wire::NotifyType::FragmentationSupported];
    if post_quantum != PostQuantum::Off {
        let kem = Transform::new(TransformType::AddKe1, wire::kex::ML_KEM_768);
        transforms.push(kem);
        supported.push(wire::NotifyType::IntermediateExchangeSupported);
    }
    let proposal = Proposal {
        number: 1,
        protocol: ProtocolId::Ike,
        spi: Spi::None,
        transforms,
    };
    let supported = supported.into_iter();
    let supported = supported.map(|kind| Payload::Notify(wire::Notify::new(kind, &[])));
    let payloads = [
        Payload::Sa(Sa {
            proposals: vec![proposal],
        }),
        Payload::Ke(wire::KeyExchange {
            group: wire::kex::CURVE25519,
            data: public,
        }),
        Payload::Nonce(Nonce(&NONCE)),
        Payload::VendorId(VendorId(b"Espalier-1")),
    ];
    payloads.into_iter().chain(supported).collect()
}

/// The CHILD_SA that the node wants.
fn child() -> [Payload<'static>; 5] {
    let transforms = vec![
        Transform::with_key_length(TransformType::Encr, wire::encr::AES_GCM_16, 256),
        Transform::new(TransformType::Esn, wire::esn::YES),
    ];
    let spi = Spi::Child(0xc0ff_ee01);
    let proposal = Proposal {
        number: 1,
        protocol: ProtocolId::Esp,
        spi,
        transforms,
    };
    let ts = |role| wire::TrafficSelectors(vec![node::selector(role)]);
    [
        Payload::Notify(wire::Notify::new(wire::NotifyType::MobikeSupported, &[])),
        Payload::Notify(wire::Notify::new(wire::NotifyType::UseTransportMode, &[])),
        Payload::Sa(Sa {
            proposals: vec![proposal],
        }),
        Payload::TsI(ts(Role::Initiator)),
        Payload::TsR(ts(Role::Responder)),
    ]
}

/// The responder's SPI, public value and nonce of an IKE_SA_INIT.
fn read_init(datagram: &[u8]) -> (u64, Vec<u8>, Vec<u8>) {
    let message = Message::parse(datagram).expect("an endpoint's message parses");
    let (mut public, mut nonce) = (Vec::new(), Vec::new());
    for payload in &message.payloads {
        match payload {
            Payload::Ke(ke) => public = ke.data.to_vec(),
            Payload::Nonce(own) => nonce = own.0.to_vec(),
            _ => (),
        }
    }
    (message.header.spi_r, public, nonce)
}

fn keys(ni: &[u8], nr: &[u8], spis: Spis, shared: &SharedSecret, role: Role) -> RoleKeys {
    let nonces = Nonces {
        initiator: ni,
        responder: nr,
    };
    let keys = SkeySeed::new(SUITE, nonces, shared).into_keys(nonces, spis);
    keys.and_then(|keys| keys.for_role(role))
        .expect("keys of fixed lengths")
}

/// A chain that makes a CHILD_SA in stages 4 and 5, for the corpus.
#[must_use]
pub fn child_chain() -> (u8, Vec<u8>) {
    let chain = Chain::of(&child());
    (chain.first.into(), chain.bytes)
}
