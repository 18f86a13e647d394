//! An initiator made by hand from wire and crypto: says what an endpoint would never say.

use std::net::SocketAddr;

use espalier_ike::crypto::{
    IkeSuite, IntAuth, Kem, KemKey, KexGroup, KeyExchange, Nonces, Prf, RoleKeys, Secrets,
    SignedOctets, SkCipher, SkeySeed, Spis, auth,
};
use espalier_ike::identity::Credentials;
use espalier_ike::wire::{
    self, AuthMethod, CertEncoding, Certificate, ExchangeType, Flags, Header, IdType,
    Identification, Message, Nonce, Notify, NotifyType, Payload, PayloadType, Proposal, ProtocolId,
    Sa, Spi, TrafficSelectors, Transform, TransformType, VendorId,
};
use espalier_ike::{Path, Role, TrafficSelector};
use espalier_secret::SecretBytes;
use rand::{Rng, RngExt};

use super::{Net, Packet};

/// An answer's inner payloads.
pub struct Answer {
    first: PayloadType,
    bytes: Vec<u8>,
}

impl Answer {
    pub fn payloads(&self) -> Vec<Payload<'_>> {
        wire::parse_chain(self.first, &self.bytes).unwrap()
    }

    pub fn notifies(&self) -> Vec<NotifyType> {
        let kind = |payload: &Payload<'_>| match payload {
            Payload::Notify(notify) => Some(notify.kind),
            _ => None,
        };
        self.payloads().iter().filter_map(kind).collect()
    }
}

/// An IKE SA up to IKE_SA_INIT and beyond, as initiator.
pub struct Raw {
    path: Path,
    spis: Spis,
    keys: RoleKeys,
    sent: Vec<u8>,
    nonce_i: Vec<u8>,
    nonce_r: Vec<u8>,
    chains: Option<IntAuth>,
    next_id: u32,
}

/// IKE_SA_INIT: the key, the nonce and the datagram.
pub fn init_request(
    net: &mut Net,
    cookie: &[u8],
    spi: u64,
    vendor: bool,
) -> (KeyExchange, Vec<u8>, Vec<u8>) {
    let kex = KeyExchange::generate(KexGroup::X25519, &mut net.rng).unwrap();
    let mut nonce = vec![0; 32];
    net.rng.fill_bytes(&mut nonce);
    let datagram = init_datagram(&kex, &nonce, cookie, spi, vendor);
    (kex, nonce, datagram)
}

/// The same with given key and nonce.
pub fn init_datagram(
    kex: &KeyExchange,
    nonce: &[u8],
    cookie: &[u8],
    spi: u64,
    vendor: bool,
) -> Vec<u8> {
    init_datagram_with(kex, nonce, cookie, spi, vendor, &[])
}

/// The same that says it can do more.
fn init_datagram_with(
    kex: &KeyExchange,
    nonce: &[u8],
    cookie: &[u8],
    spi: u64,
    vendor: bool,
    supported: &[NotifyType],
) -> Vec<u8> {
    let mut transforms = vec![
        Transform::with_key_length(TransformType::Encr, wire::encr::AES_GCM_16, 256),
        Transform::new(TransformType::Prf, wire::prf::HMAC_SHA2_256),
        Transform::new(TransformType::Ke, wire::kex::CURVE25519),
    ];
    if supported.contains(&NotifyType::IntermediateExchangeSupported) {
        let kem = Transform::new(TransformType::AddKe1, wire::kex::ML_KEM_768);
        transforms.push(kem);
    }
    let proposal = Proposal {
        number: 1,
        protocol: ProtocolId::Ike,
        spi: Spi::None,
        transforms,
    };
    let mut payloads = Vec::new();
    if !cookie.is_empty() {
        payloads.push(Payload::Notify(Notify::new(NotifyType::Cookie, cookie)));
    }
    payloads.extend([
        Payload::Sa(Sa {
            proposals: vec![proposal],
        }),
        Payload::Ke(wire::KeyExchange {
            group: 31,
            data: kex.public(),
        }),
        Payload::Nonce(Nonce(nonce)),
        Payload::Notify(Notify::new(
            NotifyType::SignatureHashAlgorithms,
            &[0, 2, 0, 3, 0, 5],
        )),
    ]);
    if vendor {
        payloads.push(Payload::VendorId(VendorId(b"Espalier-1")));
    }
    payloads.extend(
        supported
            .iter()
            .map(|kind| Payload::Notify(Notify::new(*kind, &[]))),
    );
    wire::emit(
        &header(
            Spis {
                initiator: spi,
                responder: 0,
            },
            ExchangeType::IkeSaInit,
            0,
        ),
        &payloads,
    )
}

fn header(spis: Spis, exchange: ExchangeType, message_id: u32) -> Header {
    Header {
        spi_i: spis.initiator,
        spi_r: spis.responder,
        next_payload: PayloadType::None,
        exchange,
        flags: Flags {
            initiator: true,
            response: false,
            version: false,
        },
        message_id,
    }
}

const SUITE: IkeSuite = IkeSuite {
    prf: Prf::HmacSha256,
    cipher: SkCipher::Aes256Gcm16,
};

/// RFC 9242 §3.3.2, by the bytes of a message that is not in fragments.
fn covered(datagram: &[u8], inner: &[u8]) -> Vec<u8> {
    let mut covered = datagram[..32].to_vec();
    covered[24..28].copy_from_slice(&(32 + inner.len() as u32).to_be_bytes());
    covered[30..].copy_from_slice(&(4 + inner.len() as u16).to_be_bytes());
    [&covered, inner].concat()
}

impl Raw {
    /// Does IKE_SA_INIT with a node from an address.
    pub fn init(net: &mut Net, from: SocketAddr, to: usize, vendor: bool) -> Self {
        Self::init_with(net, from, to, vendor, &[])
    }

    /// The same, saying what it can do besides.
    pub fn init_with(
        net: &mut Net,
        from: SocketAddr,
        to: usize,
        vendor: bool,
        supported: &[NotifyType],
    ) -> Self {
        // Such a peer has no data plane whose SPIs could be compared.
        net.strict = false;
        let path = Path {
            local: from,
            remote: net.nodes[to].address,
        };
        let spi = net.rng.random();
        let (kex, nonce_i, _) = init_request(net, &[], spi, vendor);
        let sent = init_datagram_with(&kex, &nonce_i, &[], spi, vendor, supported);
        let received = ask(net, path, sent.clone()).expect("IKE_SA_INIT answered");
        let message = Message::parse(&received).unwrap();
        let (mut public, mut nonce_r) = (Vec::new(), Vec::new());
        for payload in &message.payloads {
            match payload {
                Payload::Ke(ke) => public = ke.data.to_vec(),
                Payload::Nonce(nonce) => nonce_r = nonce.0.to_vec(),
                _ => {}
            }
        }
        let spis = Spis {
            initiator: spi,
            responder: message.header.spi_r,
        };
        let nonces = Nonces {
            initiator: &nonce_i,
            responder: &nonce_r,
        };
        let keys = SkeySeed::new(SUITE, nonces, &kex.agree(&public).unwrap())
            .into_keys(nonces, spis)
            .unwrap();
        let keys = keys.for_role(Role::Initiator).unwrap();
        Self {
            path,
            spis,
            keys,
            sent,
            nonce_i,
            nonce_r,
            chains: None,
            next_id: 1,
        }
    }

    /// Does IKE_INTERMEDIATE with ML-KEM-768, which IKE_SA_INIT agreed on. Its datagrams are returned.
    pub fn add_kem(&mut self, net: &mut Net) -> [Vec<u8>; 2] {
        let key = KemKey::generate(Kem::MlKem768).unwrap();
        let ke = kem_payload(key.public());
        let (_, inner) = wire::emit_chain(&ke);
        let asked = self
            .seal(ExchangeType::IkeIntermediate, &ke, None)
            .remove(0);
        let answered = ask(net, self.path, asked.clone()).expect("IKE_INTERMEDIATE answered");
        let message = Message::parse(&answered).unwrap();
        let Some(Payload::Encrypted(sk)) = message.payloads.last() else {
            panic!("unprotected answer");
        };
        let opened = self.keys.opener.open(&answered, sk.aad_len).unwrap();
        let payloads = wire::parse_chain(sk.inner_first, &opened).unwrap();
        let [Payload::Ke(ke)] = payloads.as_slice() else {
            panic!("{payloads:?}");
        };
        let chains = self.chains.get_or_insert_default();
        let (own, theirs) = (&self.keys.sk_p_local, &self.keys.sk_p_remote);
        chains.add(Role::Initiator, own, &covered(&asked, &inner));
        chains.add(Role::Responder, theirs, &covered(&answered, &opened));
        let nonces = Nonces {
            initiator: &self.nonce_i,
            responder: &self.nonce_r,
        };
        let shared = key.open(ke.data).unwrap();
        let seed = SkeySeed::rekey(&self.keys.sk_d, SUITE, nonces, Secrets::one(&shared));
        let keys = seed.into_keys(nonces, self.spis).unwrap();
        self.keys = keys.for_role(Role::Initiator).unwrap();
        self.next_id += 1;
        [asked, answered]
    }

    /// Sends a sealed request; the answer, if one came.
    pub fn ask(
        &mut self,
        net: &mut Net,
        exchange: ExchangeType,
        payloads: &[Payload<'_>],
    ) -> Option<Answer> {
        let (first, inner) = wire::emit_chain(payloads);
        self.ask_bytes(net, exchange, first, &inner)
    }

    /// The same with inner payloads as bytes.
    pub fn ask_bytes(
        &mut self,
        net: &mut Net,
        exchange: ExchangeType,
        first: PayloadType,
        inner: &[u8],
    ) -> Option<Answer> {
        let header = header(self.spis, exchange, self.next_id);
        let datagram = self
            .keys
            .sealer
            .seal_message(&header, first, inner)
            .unwrap();
        let received = ask(net, self.path, datagram)?;
        self.next_id += 1;
        let message = Message::parse(&received).unwrap();
        let Some(Payload::Encrypted(sk)) = message.payloads.last() else {
            panic!("unprotected answer");
        };
        let bytes = self
            .keys
            .opener
            .open(&received, sk.aad_len)
            .unwrap()
            .to_vec();
        Some(Answer {
            first: sk.inner_first,
            bytes,
        })
    }

    /// Seals the next request in fragments of `size` payload bytes, or whole.
    pub fn seal(
        &mut self,
        exchange: ExchangeType,
        payloads: &[Payload<'_>],
        size: Option<usize>,
    ) -> Vec<Vec<u8>> {
        let (first, inner) = wire::emit_chain(payloads);
        let header = header(self.spis, exchange, self.next_id);
        let sealer = &mut self.keys.sealer;
        let Some(size) = size else {
            return vec![sealer.seal_message(&header, first, &inner).unwrap()];
        };
        let parts: Vec<&[u8]> = inner.chunks(size).collect();
        let total = parts.len() as u16;
        let fragment = |(number, part): (u16, &&[u8])| {
            let first = if number == 1 {
                first
            } else {
                PayloadType::None
            };
            let fragment = sealer.seal_fragment(&header, first, (number, total), part);
            fragment.unwrap()
        };
        (1..).zip(&parts).map(fragment).collect()
    }

    /// Seals the next request, its inner payloads as bytes.
    pub fn seal_bytes(
        &mut self,
        exchange: ExchangeType,
        first: PayloadType,
        inner: &[u8],
    ) -> Vec<u8> {
        let header = header(self.spis, exchange, self.next_id);
        let sealer = &mut self.keys.sealer;
        sealer.seal_message(&header, first, inner).unwrap()
    }

    /// An empty INFORMATIONAL request that is `ahead` of the window.
    pub fn skip(&mut self, ahead: u32) -> Vec<u8> {
        let header = header(self.spis, ExchangeType::Informational, self.next_id + ahead);
        let sealer = &mut self.keys.sealer;
        sealer
            .seal_message(&header, PayloadType::None, &[])
            .unwrap()
    }

    /// Seals a response that nobody has asked for.
    pub fn seal_response(
        &mut self,
        exchange: ExchangeType,
        message_id: u32,
        payloads: &[Payload<'_>],
    ) -> Vec<u8> {
        let mut header = header(self.spis, exchange, message_id);
        header.flags.response = true;
        let (first, inner) = wire::emit_chain(payloads);
        let sealer = &mut self.keys.sealer;
        sealer.seal_message(&header, first, &inner).unwrap()
    }

    /// One fragment of the next request, of any kind.
    pub fn fragment(
        &mut self,
        exchange: ExchangeType,
        first: PayloadType,
        numbers: (u16, u16),
        part: &[u8],
    ) -> Vec<u8> {
        let header = header(self.spis, exchange, self.next_id);
        let sealer = &mut self.keys.sealer;
        sealer.seal_fragment(&header, first, numbers, part).unwrap()
    }

    /// Hands a datagram to the node; the inner payloads of what it answers, in fragments or whole.
    pub fn deliver(&self, net: &mut Net, datagram: Vec<u8>) -> Option<Answer> {
        let before = net.sent.len();
        ask(net, self.path, datagram)?;
        let back = |packet: &&Packet| packet.path.remote == self.path.local;
        let mut answer: Option<Answer> = None;
        for packet in net.sent[before..].iter().filter(back) {
            let message = Message::parse(&packet.payload).unwrap();
            let (first, aad_len) = match message.payloads.last() {
                Some(Payload::Encrypted(sk)) => (sk.inner_first, sk.aad_len),
                Some(Payload::Fragment(skf)) => (skf.inner_first, skf.aad_len),
                _ => panic!("unprotected answer"),
            };
            let part = self.keys.opener.open(&packet.payload, aad_len).unwrap();
            let bytes = Vec::new();
            let answer = answer.get_or_insert(Answer { first, bytes });
            answer.bytes.extend_from_slice(&part);
        }
        answer
    }

    /// From now on at another address.
    pub fn at(&mut self, address: SocketAddr) -> &mut Self {
        self.path.local = address;
        self
    }

    /// The request that was sealed last is answered.
    pub fn next(&mut self) {
        self.next_id += 1;
    }

    /// IKE_AUTH as `name` by PSK, sealed in fragments of `size` payload bytes, or whole.
    pub fn seal_auth(
        &mut self,
        name: &str,
        psk: &SecretBytes,
        child: &[Payload<'_>],
        size: Option<usize>,
    ) -> Vec<Vec<u8>> {
        let id = Identification::new(IdType::Fqdn, name.as_bytes());
        let data = auth::psk_auth(psk, &self.octets(&id)).unwrap();
        let proof = wire::Auth {
            method: AuthMethod::SharedKey,
            data: data.expose(),
        };
        let payloads = [&[Payload::IdI(id), Payload::Auth(proof)], child].concat();
        self.seal(ExchangeType::IkeAuth, &payloads, size)
    }

    /// The last request that the node has sent on this IKE SA.
    pub fn asked(&self, net: &Net) -> (Header, Answer) {
        let to_us = |packet: &&Packet| {
            let header = Header::peek(&packet.payload).unwrap();
            packet.path.remote == self.path.local
                && header.spi_i == self.spis.initiator
                && !header.flags.response
        };
        let datagram = &net
            .sent
            .iter()
            .rev()
            .find(to_us)
            .expect("a request")
            .payload;
        let message = Message::parse(datagram).unwrap();
        let Some(Payload::Encrypted(sk)) = message.payloads.last() else {
            panic!("unprotected request");
        };
        let opened = self.keys.opener.open(datagram, sk.aad_len).unwrap();
        let (first, bytes) = (sk.inner_first, opened.to_vec());
        (message.header, Answer { first, bytes })
    }

    /// Answers that request.
    pub fn answer(&mut self, net: &mut Net, payloads: &[Payload<'_>]) {
        let (asked, _) = self.asked(net);
        let mut header = header(self.spis, asked.exchange, asked.message_id);
        header.flags.response = true;
        let (first, inner) = wire::emit_chain(payloads);
        let sealer = &mut self.keys.sealer;
        let datagram = sealer.seal_message(&header, first, &inner).unwrap();
        ask(net, self.path, datagram);
    }

    /// Its SPIi.
    pub fn spi(&self) -> u64 {
        self.spis.initiator
    }

    fn octets(&self, id: &Identification<'_>) -> SignedOctets {
        let octets =
            SignedOctets::new(&self.sent, &self.nonce_r, &self.keys.sk_p_local, &id.body());
        match &self.chains {
            Some(chains) => octets.with_intermediate(chains, self.next_id),
            None => octets,
        }
    }

    /// IKE_AUTH as `name` by PSK.
    pub fn auth_psk(
        &mut self,
        net: &mut Net,
        name: &str,
        psk: &SecretBytes,
        child: &[Payload<'_>],
    ) -> Option<Answer> {
        let id = Identification::new(IdType::Fqdn, name.as_bytes());
        let data = auth::psk_auth(psk, &self.octets(&id)).unwrap();
        let proof = wire::Auth {
            method: AuthMethod::SharedKey,
            data: data.expose(),
        };
        let payloads = [&[Payload::IdI(id), Payload::Auth(proof)], child].concat();
        self.ask(net, ExchangeType::IkeAuth, &payloads)
    }

    /// IKE_AUTH as `name` with a certificate that may be somebody else's.
    pub fn auth_cert(
        &mut self,
        net: &mut Net,
        name: &str,
        credentials: &Credentials,
        child: &[Payload<'_>],
    ) -> Option<Answer> {
        let id = Identification::new(IdType::Fqdn, name.as_bytes());
        let data = credentials.sign(&self.octets(&id)).unwrap();
        let proof = wire::Auth {
            method: AuthMethod::DigitalSignature,
            data: &data,
        };
        let encoding = CertEncoding::X509Signature;
        let chain = credentials
            .chain()
            .map(|data| Payload::Cert(Certificate { encoding, data }));
        let mut payloads = vec![Payload::IdI(id)];
        payloads.extend(chain);
        payloads.push(Payload::Auth(proof));
        payloads.extend(child.iter().cloned());
        self.ask(net, ExchangeType::IkeAuth, &payloads)
    }
}

/// A KE payload of ML-KEM-768.
pub fn kem_payload(data: &[u8]) -> [Payload<'_>; 1] {
    let group = wire::kex::ML_KEM_768;
    [Payload::Ke(wire::KeyExchange { group, data })]
}

/// The first CHILD_SA as the nodes of the simulation want it.
pub fn child(spi: u32, from: SocketAddr, to: SocketAddr) -> Vec<Payload<'static>> {
    let transforms = vec![
        Transform::with_key_length(TransformType::Encr, wire::encr::AES_GCM_16, 256),
        Transform::new(TransformType::Esn, wire::esn::YES),
    ];
    let proposal = Proposal {
        number: 1,
        protocol: ProtocolId::Esp,
        spi: Spi::Child(spi),
        transforms,
    };
    let selector = |at: SocketAddr| TrafficSelector {
        protocol: 0,
        start_port: 0,
        end_port: u16::MAX,
        start: at.ip(),
        end: at.ip(),
    };
    vec![
        Payload::Notify(Notify::new(NotifyType::UseTransportMode, &[])),
        Payload::Sa(Sa {
            proposals: vec![proposal],
        }),
        Payload::TsI(TrafficSelectors(vec![selector(from)])),
        Payload::TsR(TrafficSelectors(vec![selector(to)])),
    ]
}

/// The answer that grants a request for a CHILD_SA. The node gets its own public value back, which is as good as any.
pub fn granted(
    asked: &Answer,
    spi: u32,
    node: SocketAddr,
    own: SocketAddr,
) -> Vec<Payload<'static>> {
    let mut payloads = child(spi, node, own);
    for payload in &mut payloads {
        if let Payload::Sa(sa) = payload {
            let ke = Transform::new(TransformType::Ke, wire::kex::CURVE25519);
            sa.proposals[0].transforms.push(ke);
        }
    }
    let public = asked
        .payloads()
        .into_iter()
        .find_map(|payload| match payload {
            Payload::Ke(ke) => Some(ke.data.to_vec()),
            _ => None,
        });
    let data = public.expect("a KE payload").leak();
    payloads.push(Payload::Nonce(Nonce(&[5; 32])));
    payloads.push(Payload::Ke(wire::KeyExchange { group: 31, data }));
    payloads
}

/// Delivers a datagram; what the node sends back to its source at once.
pub fn ask(net: &mut Net, path: Path, datagram: Vec<u8>) -> Option<Vec<u8>> {
    let before = net.sent.len();
    net.deliver(&Packet {
        path,
        payload: datagram,
    });
    let back = |packet: &&Packet| packet.path.remote == path.local;
    net.sent[before..]
        .iter()
        .find(back)
        .map(|packet| packet.payload.clone())
}
