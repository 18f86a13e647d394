//! IKE messages and payloads: what parses and is written again parses to the same.

use espalier_ike::wire::{
    DigitalSignature, Encrypted, ExchangeType, Flags, Fragment, HEADER_LEN, Header,
    MAX_DELETE_SPIS, MAX_PAYLOADS, MAX_PROPOSALS, MAX_SELECTORS, MAX_TRANSFORMS, Message,
    NONCE_LEN, Payload, PayloadType, emit, emit_chain, emit_encrypted_prefix, parse_chain,
};

/// A datagram: as it is, and with the header's length made right, so that mutants get past it.
pub fn ike_message(data: &[u8]) {
    message(data);
    let mut datagram = data.to_vec();
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes();
    if let Some(field) = datagram.get_mut(HEADER_LEN - 4..HEADER_LEN) {
        field.copy_from_slice(&length);
        message(&datagram);
    }
}

/// The first byte is the type of the first payload, the rest is the chain.
pub fn ike_payload_chain(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else {
        return;
    };
    let Ok(payloads) = parse_chain((*first).into(), bytes) else {
        return;
    };
    assert!(payloads.len() <= MAX_PAYLOADS);
    payloads.iter().for_each(within_bounds);
    let (first, written) = emit_chain(&payloads);
    assert_eq!(parse_chain(first, &written), Ok(payloads));
}

/// Body of SA.
pub fn ike_sa(data: &[u8]) {
    body(PayloadType::Sa, data);
}

/// Body of KE.
pub fn ike_ke(data: &[u8]) {
    body(PayloadType::Ke, data);
}

/// Body of IDi and IDr.
pub fn ike_id(data: &[u8]) {
    body(PayloadType::IdI, data);
    body(PayloadType::IdR, data);
}

/// Body of CERT.
pub fn ike_cert(data: &[u8]) {
    body(PayloadType::Cert, data);
}

/// Body of CERTREQ.
pub fn ike_certreq(data: &[u8]) {
    body(PayloadType::CertReq, data);
}

/// Body of AUTH; its data as a digital signature, too.
pub fn ike_auth(data: &[u8]) {
    body(PayloadType::Auth, data);
    if let Ok(Some(Payload::Auth(auth))) = Payload::parse(PayloadType::Auth, data)
        && let Ok(signature) = DigitalSignature::parse(auth.data)
    {
        assert_eq!(signature.emit(), auth.data);
    }
}

/// Body of Nonce.
pub fn ike_nonce(data: &[u8]) {
    body(PayloadType::Nonce, data);
}

/// Body of Notify.
pub fn ike_notify(data: &[u8]) {
    body(PayloadType::Notify, data);
}

/// Body of Delete.
pub fn ike_delete(data: &[u8]) {
    body(PayloadType::Delete, data);
}

/// Body of Vendor ID.
pub fn ike_vendor_id(data: &[u8]) {
    body(PayloadType::VendorId, data);
}

/// Body of TSi and TSr.
pub fn ike_ts(data: &[u8]) {
    body(PayloadType::TsI, data);
    body(PayloadType::TsR, data);
}

/// Body of CP and EAP.
pub fn ike_opaque(data: &[u8]) {
    body(PayloadType::Configuration, data);
    body(PayloadType::Eap, data);
}

/// The first byte is the inner type, the rest the body of an SK payload that is alone in its message.
pub fn ike_sk(data: &[u8]) {
    let Some((inner, body)) = data.split_first() else {
        return;
    };
    let inner_first = (*inner).into();
    let mut datagram = emit_encrypted_prefix(&HEADER, inner_first, body.len());
    let aad_len = datagram.len();
    datagram.extend(body);
    if let Some(payload) = alone(&datagram) {
        assert_eq!(
            payload,
            Payload::Encrypted(Encrypted {
                inner_first,
                body,
                aad_len
            })
        );
    }
}

/// The first byte is the inner type, the rest the body of an SKF payload that is alone in its message.
pub fn ike_skf(data: &[u8]) {
    let Some((inner, body)) = data.split_first() else {
        return;
    };
    let mut datagram = emit_encrypted_prefix(&HEADER, (*inner).into(), body.len());
    datagram[16] = PayloadType::Fragment.into();
    datagram.extend(body);
    if let Some(Payload::Fragment(Fragment {
        number,
        total,
        aad_len,
        body,
        ..
    })) = alone(&datagram)
    {
        assert!((1..=total).contains(&number));
        assert_eq!(&datagram[aad_len..], body);
    }
}

const HEADER: Header = Header {
    spi_i: 0x0102_0304_0506_0708,
    spi_r: 0x1112_1314_1516_1718,
    next_payload: PayloadType::None,
    exchange: ExchangeType::Informational,
    flags: Flags {
        initiator: true,
        response: false,
        version: false,
    },
    message_id: 2,
};

/// The payload of a message that has one, if it parses.
fn alone(datagram: &[u8]) -> Option<Payload<'_>> {
    let mut message = Message::parse(datagram).ok()?;
    assert_eq!(message.payloads.len(), 1);
    assert_eq!(emit(&message.header, &message.payloads), datagram);
    message.payloads.pop()
}

fn message(datagram: &[u8]) {
    let Ok(first) = Message::parse(datagram) else {
        return;
    };
    assert_eq!(Header::peek(datagram), Ok(first.header));
    assert!(first.payloads.len() <= MAX_PAYLOADS);
    first.payloads.iter().for_each(within_bounds);
    let written = emit(&first.header, &first.payloads);
    assert!(written.len() <= datagram.len());
    let again = Message::parse(&written).expect("what was written parses");
    // Skipped payloads are gone: the first type and the place of an SK payload may be others.
    assert_eq!(
        Header {
            next_payload: first.header.next_payload,
            ..again.header
        },
        first.header
    );
    assert!(
        again
            .payloads
            .iter()
            .map(place_free)
            .eq(first.payloads.iter().map(place_free))
    );
    assert_eq!(emit(&again.header, &again.payloads), written);
}

/// A payload without its place in the datagram, after checking that the place is right.
fn place_free<'a>(payload: &Payload<'a>) -> Payload<'a> {
    match payload {
        Payload::Encrypted(sk) => Payload::Encrypted(Encrypted { aad_len: 0, ..*sk }),
        Payload::Fragment(skf) => Payload::Fragment(Fragment { aad_len: 0, ..*skf }),
        other => other.clone(),
    }
}

fn body(kind: PayloadType, data: &[u8]) {
    let Ok(Some(payload)) = Payload::parse(kind, data) else {
        return;
    };
    assert_eq!(payload.kind(), kind);
    within_bounds(&payload);
    let written = payload.body();
    assert!(written.len() <= data.len());
    assert_eq!(Payload::parse(kind, &written), Ok(Some(payload)));
}

/// What the constants of `espalier_ike::wire` promise.
fn within_bounds(payload: &Payload<'_>) {
    match payload {
        Payload::Sa(sa) => {
            assert!((1..=MAX_PROPOSALS).contains(&sa.proposals.len()));
            assert!(
                sa.proposals
                    .iter()
                    .all(|p| p.transforms.len() <= MAX_TRANSFORMS)
            );
        }
        Payload::Nonce(nonce) => assert!(NONCE_LEN.contains(&nonce.0.len())),
        Payload::Delete(espalier_ike::wire::Delete::Child { spis, .. }) => {
            assert!(spis.len() <= MAX_DELETE_SPIS);
        }
        Payload::TsI(ts) | Payload::TsR(ts) => {
            assert!(ts.0.len() <= MAX_SELECTORS);
            assert!(
                ts.0.iter()
                    .all(|s| s.start <= s.end && s.start.is_ipv4() == s.end.is_ipv4())
            );
        }
        _ => (),
    }
}
