//! Handshakes and rekeys with real strongSwan, captured by `make interop` with the secrets that charon logged: parsed, keyed
//! from the recorded Diffie-Hellman values, opened and checked. The fixtures' keys and certificates ended with their run;
//! docs/interop.md says how new ones are made.

use serde_json::Value;

use crate::crypto::auth::verify_psk_auth;
use crate::crypto::test_vectors::{bytes, load, rows, text};
use crate::crypto::{
    IkeKeys, IkeSuite, Nonces, Opener, Prf, PublicKey, Secrets, SharedSecret, SignedOctets,
    SkCipher, SkD, SkeySeed, Spis, child_keymat,
};
use crate::suite::EspSuite;
use crate::wire::{
    AuthMethod, Delete, ExchangeType, Header, Message, NotifyType, Payload, PayloadType,
    ProtocolId, Spi, parse_chain,
};
use espalier_secret::SecretBytes;

const SUITE: IkeSuite = IkeSuite {
    prf: Prf::HmacSha256,
    cipher: SkCipher::Aes256Gcm16,
};

/// One IKE SA of a capture.
struct Sa {
    spis: Spis,
    sk_d: SkD,
    keys: IkeKeys,
    /// What the initiator and what the responder sealed.
    openers: [Opener; 2],
}

/// A message after its protection: of several fragments one.
struct Opened {
    header: Header,
    first: PayloadType,
    inner: Vec<u8>,
}

impl Opened {
    fn payloads(&self) -> Vec<Payload<'_>> {
        parse_chain(self.first, &self.inner).unwrap()
    }
}

struct Capture {
    fixture: Value,
    messages: Vec<Vec<u8>>,
}

impl Capture {
    fn new(json: &str) -> Self {
        let fixture = load(json);
        let messages = rows(&fixture, "messages");
        let messages = messages.iter().map(|row| bytes(row, "message")).collect();
        Self { fixture, messages }
    }

    /// Nonces and SPIs of IKE_SA_INIT, and the first IKE SA keyed from the recorded secret.
    fn first(&self) -> (Vec<u8>, Vec<u8>, Sa) {
        let [request, response] = [&self.messages[0], &self.messages[1]];
        let (asked, answered) = (
            Message::parse(request).unwrap(),
            Message::parse(response).unwrap(),
        );
        assert_eq!(asked.header.exchange, ExchangeType::IkeSaInit);
        assert!(answered.header.flags.response);
        let (ni, nr) = (nonce(&asked.payloads), nonce(&answered.payloads));
        let spis = Spis {
            initiator: answered.header.spi_i,
            responder: answered.header.spi_r,
        };
        let keyed = |secret: &SharedSecret| {
            let nonces = Nonces {
                initiator: &ni,
                responder: &nr,
            };
            SkeySeed::new(SUITE, nonces, secret)
                .into_keys(nonces, spis)
                .unwrap()
        };
        let sa = Sa::new(spis, &self.fixture["ike"][0], keyed);
        (ni, nr, sa)
    }

    /// All messages after IKE_SA_INIT, opened, whole.
    fn opened(&self, sas: &[Sa]) -> Vec<Opened> {
        let mut opened: Vec<Opened> = Vec::new();
        for datagram in &self.messages[2..] {
            let message = Message::parse(datagram).unwrap();
            let header = message.header;
            let of =
                |sa: &&Sa| (sa.spis.initiator, sa.spis.responder) == (header.spi_i, header.spi_r);
            let Some(sa) = sas.iter().find(of) else {
                continue;
            };
            let opener = &sa.openers[usize::from(!header.flags.initiator)];
            match message.payloads.last().unwrap() {
                Payload::Encrypted(sk) => opened.push(Opened {
                    header,
                    first: sk.inner_first,
                    inner: opener.open(datagram, sk.aad_len).unwrap().to_vec(),
                }),
                Payload::Fragment(skf) => {
                    let part = opener.open(datagram, skf.aad_len).unwrap();
                    if skf.number == 1 {
                        let (first, inner) = (skf.inner_first, Vec::new());
                        opened.push(Opened {
                            header,
                            first,
                            inner,
                        });
                    }
                    // They were recorded in order.
                    opened.last_mut().unwrap().inner.extend_from_slice(&part);
                }
                other => panic!("{other:?}"),
            }
        }
        opened
    }

    /// Both proofs of identity, and the first CHILD_SA's keys.
    fn check_auth(&self, ni: &[u8], nr: &[u8], sa: &Sa, opened: &[Opened]) {
        for (side, message) in opened[..2].iter().enumerate() {
            assert_eq!(message.header.exchange, ExchangeType::IkeAuth);
            let payloads = message.payloads();
            let (sk_p, nonce) = [(&sa.keys.sk_pi, nr), (&sa.keys.sk_pr, ni)][side];
            let id = payloads.iter().find_map(|payload| match (payload, side) {
                (Payload::IdI(id), 0) | (Payload::IdR(id), 1) => Some(id.body()),
                _ => None,
            });
            let octets = SignedOctets::new(&self.messages[side], nonce, sk_p, &id.unwrap());
            let auth = payloads.iter().find_map(|payload| match payload {
                Payload::Auth(auth) => Some(auth),
                _ => None,
            });
            let auth = auth.unwrap();
            let certificate = payloads.iter().find_map(|payload| match payload {
                Payload::Cert(certificate) => Some(certificate.data),
                _ => None,
            });
            match certificate {
                Some(der) => {
                    assert_eq!(auth.method, AuthMethod::DigitalSignature);
                    spki(der).verify_auth(&octets, auth.data).unwrap();
                }
                None => {
                    let psk = SecretBytes::new(bytes(&self.fixture, "psk"));
                    verify_psk_auth(&psk, &octets, auth.data).unwrap();
                }
            }
        }
        self.check_child(0, &sa.sk_d, ni, nr);
    }

    /// KEYMAT of CHILD_SA `number` is what charon derived.
    fn check_child(&self, number: usize, sk_d: &SkD, ni: &[u8], nr: &[u8]) {
        let row = &self.fixture["children"][number];
        let nonces = Nonces {
            initiator: ni,
            responder: nr,
        };
        let secret = row["shared"].as_str();
        let secret = secret.map(|hex| SharedSecret::copy_from(&hex::decode(hex).unwrap()));
        let secrets = Secrets {
            shared: secret.as_ref(),
            additional: None,
        };
        let keys = child_keymat(sk_d, nonces, secrets, EspSuite::Aes256Gcm16).unwrap();
        assert_eq!(
            keys.initiator_to_responder.expose(),
            bytes(row, "initiator")
        );
        assert_eq!(
            keys.responder_to_initiator.expose(),
            bytes(row, "responder")
        );
    }
}

impl Sa {
    /// Keyed twice: for reading and for looking.
    fn new(spis: Spis, row: &Value, keyed: impl Fn(&SharedSecret) -> IkeKeys) -> Self {
        let secret = SharedSecret::copy_from(&bytes(row, "shared"));
        let (keys, other) = (keyed(&secret), keyed(&secret));
        let opener = |key: crate::crypto::SkE| key.into_opener().unwrap();
        Self {
            spis,
            sk_d: keys.sk_d.clone(),
            keys,
            openers: [opener(other.sk_ei), opener(other.sk_er)],
        }
    }
}

fn nonce(payloads: &[Payload<'_>]) -> Vec<u8> {
    let nonce = payloads.iter().find_map(|payload| match payload {
        Payload::Nonce(nonce) => Some(nonce.0.to_vec()),
        _ => None,
    });
    nonce.expect("a nonce")
}

fn spki(der: &[u8]) -> PublicKey {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    PublicKey::from_spki(certificate.tbs_certificate.subject_pki.raw).unwrap()
}

fn proposal_spi(payloads: &[Payload<'_>]) -> (ProtocolId, Spi) {
    let proposal = payloads.iter().find_map(|payload| match payload {
        Payload::Sa(sa) => sa.proposals.first(),
        _ => None,
    });
    let proposal = proposal.expect("an SA payload");
    (proposal.protocol, proposal.spi.clone())
}

/// Pairs of CREATE_CHILD_SA in the order of their answers.
fn created(opened: &[Opened]) -> Vec<(&Opened, &Opened)> {
    let of_kind = |message: &&Opened| message.header.exchange == ExchangeType::CreateChildSa;
    let messages: Vec<&Opened> = opened.iter().filter(of_kind).collect();
    messages.chunks(2).map(|pair| (pair[0], pair[1])).collect()
}

fn has(payloads: &[Payload<'_>], kind: NotifyType) -> bool {
    let is =
        |payload: &Payload<'_>| matches!(payload, Payload::Notify(notify) if notify.kind == kind);
    payloads.iter().any(is)
}

#[test]
fn a_psk_handshake_and_two_rekeys_of_its_child_sa_have_charons_keys() {
    let capture = Capture::new(include_str!(
        "../tests/captures/strongswan-child-rekey-psk.json"
    ));
    let (ni, nr, sa) = capture.first();
    let opened = capture.opened(std::slice::from_ref(&sa));
    capture.check_auth(&ni, &nr, &sa, &opened);
    let created = created(&opened);
    assert_eq!(created.len(), 2);
    for (number, (asked, answered)) in created.into_iter().enumerate() {
        let (asked, answered) = (asked.payloads(), answered.payloads());
        assert!(has(&asked, NotifyType::RekeySa));
        assert_eq!(proposal_spi(&answered).0, ProtocolId::Esp);
        capture.check_child(number + 1, &sa.sk_d, &nonce(&asked), &nonce(&answered));
    }
    // Each rekey ends with a DELETE of the old one, answered with the other half.
    let deletes = opened.iter().filter(|message| {
        let payloads = message.payloads();
        matches!(payloads[..], [Payload::Delete(Delete::Child { .. })])
    });
    assert_eq!(deletes.count(), 4);
}

#[test]
fn rekeys_of_an_ike_sa_by_either_side_have_charons_keys() {
    let capture = Capture::new(include_str!(
        "../tests/captures/strongswan-ike-rekey-psk.json"
    ));
    let (ni, nr, first) = capture.first();
    let mut sas = vec![first];
    let opened = capture.opened(&sas);
    capture.check_auth(&ni, &nr, &sas[0], &opened);
    let made = rows(&capture.fixture, "ike").len();
    assert_eq!(made, 3);
    while sas.len() < made {
        let opened = capture.opened(&sas[sas.len() - 1..]);
        let (asked, answered) = created(&opened).into_iter().next().expect("a rekey");
        let (asked, answered) = (asked.payloads(), answered.payloads());
        let (ni, nr) = (nonce(&asked), nonce(&answered));
        let (Spi::Ike(initiator), Spi::Ike(responder)) =
            (proposal_spi(&asked).1, proposal_spi(&answered).1)
        else {
            panic!("no SPIs of IKE SAs");
        };
        let spis = Spis {
            initiator,
            responder,
        };
        let old = sas[sas.len() - 1].sk_d.clone();
        let keyed = |secret: &SharedSecret| {
            let nonces = Nonces {
                initiator: &ni,
                responder: &nr,
            };
            SkeySeed::rekey(&old, SUITE, nonces, Secrets::one(secret))
                .into_keys(nonces, spis)
                .unwrap()
        };
        let row = &capture.fixture["ike"][sas.len()];
        sas.push(Sa::new(spis, row, keyed));
    }
    // The last one keys the CHILD_SA's own rekey.
    let opened = capture.opened(&sas[2..]);
    let (asked, answered) = created(&opened)[0];
    let (ni, nr) = (nonce(&asked.payloads()), nonce(&answered.payloads()));
    capture.check_child(1, &sas[2].sk_d, &ni, &nr);
}

#[test]
fn an_ecdsa_handshake_in_fragments_opens_and_both_signatures_verify() {
    let capture = Capture::new(include_str!(
        "../tests/captures/strongswan-fragments-ecdsa.json"
    ));
    let (ni, nr, sa) = capture.first();
    assert!(capture.messages.len() > 8, "both sides sent fragments");
    let opened = capture.opened(std::slice::from_ref(&sa));
    capture.check_auth(&ni, &nr, &sa, &opened);
    let request = opened[0].payloads();
    let is_certreq = |payload: &Payload<'_>| matches!(payload, Payload::CertReq(_));
    assert!(request.iter().any(is_certreq));
    assert_eq!(text(&capture.fixture, "peer"), "strongSwan 6.1.0");
}
