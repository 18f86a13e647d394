//! IKE_SA_INIT (RFC 7296 §1.2, §2.6, §2.7, §2.23): what is said and how it is read. Nothing of it is authenticated yet.

use super::nat::{Detection, Nat};
use super::{error_notify, notify};
use crate::crypto::{KexGroup, SignatureScheme, Spis};
use crate::error::Failure;
use crate::event::Path;
use crate::limits;
use crate::wire::{
    CertEncoding, CertificateRequest, KeyExchange, Nonce, Notify, NotifyType, Payload, Sa, VendorId,
};

pub(crate) use super::proposals::{
    Chosen, additional, check_answer, choose, describe, offer, take_spi, with_spi,
};

/// Sent by both sides of this implementation.
pub(crate) const VENDOR: &[u8] = b"Espalier-1";

/// The payloads of a request, or of a response that agrees. `sa` is the offer or the answer.
pub(crate) struct Say<'a> {
    pub(crate) spis: Spis,
    pub(crate) path: Path,
    pub(crate) cookie: &'a [u8],
    pub(crate) sa: Sa,
    pub(crate) group: KexGroup,
    pub(crate) public: &'a [u8],
    pub(crate) nonce: &'a [u8],
    /// IKEV2_FRAGMENTATION_SUPPORTED; an answer has it only where the request had it (RFC 7383 §2.3).
    pub(crate) fragmentation: bool,
    /// A responder's certification authorities (RFC 7296 §1.2): many peers send a certificate only when they are asked.
    pub(crate) certreq: &'a [u8],
    /// [`crate::PeerConfig::force_udp_encapsulation`].
    pub(crate) pretend_nat: bool,
    /// USE_PPK (RFC 8784 §3).
    pub(crate) ppk: bool,
    /// INTERMEDIATE_EXCHANGE_SUPPORTED (RFC 9242 §3.1): where ML-KEM is offered or taken.
    pub(crate) intermediate: bool,
    /// CHILDLESS_IKEV2_SUPPORTED: a responder says so (RFC 6023 §3).
    pub(crate) childless: bool,
}

impl Say<'_> {
    /// Writes them with `emit` (which adds the header).
    pub(crate) fn emit(&self, emit: impl FnOnce(&[Payload<'_>]) -> Vec<u8>) -> Vec<u8> {
        let detection = Detection::new(self.spis, self.path, self.pretend_nat);
        let [source, destination] = detection.payloads();
        let hashes: Vec<u8> = SignatureScheme::ALL
            .iter()
            .flat_map(|s| s.hash_id().to_be_bytes())
            .collect();
        let said = |kind, data| Payload::Notify(Notify::new(kind, data));
        let mut payloads = Vec::new();
        if !self.cookie.is_empty() {
            payloads.push(said(NotifyType::Cookie, self.cookie));
        }
        payloads.extend([
            Payload::Sa(self.sa.clone()),
            Payload::Ke(KeyExchange {
                group: self.group.transform_id(),
                data: self.public,
            }),
            Payload::Nonce(Nonce(self.nonce)),
            source,
            destination,
            said(NotifyType::SignatureHashAlgorithms, &hashes),
            Payload::VendorId(VendorId(VENDOR)),
        ]);
        if self.fragmentation {
            payloads.push(said(NotifyType::FragmentationSupported, &[]));
        }
        payloads.extend((!self.certreq.is_empty()).then_some(Payload::CertReq(
            CertificateRequest {
                encoding: CertEncoding::X509Signature,
                authorities: self.certreq,
            },
        )));
        if self.ppk {
            payloads.push(said(NotifyType::UsePpk, &[]));
        }
        if self.intermediate {
            payloads.push(said(NotifyType::IntermediateExchangeSupported, &[]));
        }
        if self.childless {
            payloads.push(said(NotifyType::ChildlessIkev2Supported, &[]));
        }
        emit(&payloads)
    }
}

/// What an IKE_SA_INIT says that goes on with the handshake.
#[derive(Debug)]
pub(crate) struct Heard<'a> {
    pub(crate) sa: &'a Sa,
    pub(crate) group: u16,
    pub(crate) public: &'a [u8],
    pub(crate) nonce: &'a [u8],
    pub(crate) mesh: bool,
    pub(crate) hashes: Vec<u16>,
    /// It joins fragments (RFC 7383).
    pub(crate) fragmentation: bool,
    /// It has post-quantum preshared keys (RFC 8784).
    pub(crate) ppk: bool,
    /// It knows IKE_INTERMEDIATE (RFC 9242).
    pub(crate) intermediate: bool,
    /// It takes an IKE_AUTH without CHILD_SA (RFC 6023).
    pub(crate) childless: bool,
    /// Whose address was translated on the way; `None`: it does not say what it sees.
    pub(crate) nat: Option<Nat>,
}

impl<'a> Heard<'a> {
    /// Reads the payloads of a message that came on `path`, with the SPIs of its header.
    pub(crate) fn read(
        payloads: &'a [Payload<'a>],
        spis: Spis,
        path: Path,
    ) -> Result<Self, Failure> {
        let missing = |what| Failure::Missing {
            what,
            message: "IKE_SA_INIT",
        };
        let sa = payloads.iter().find_map(|payload| match payload {
            Payload::Sa(sa) => Some(sa),
            _ => None,
        });
        let ke = payloads.iter().find_map(|payload| match payload {
            Payload::Ke(ke) => Some(ke),
            _ => None,
        });
        let ke = ke.ok_or_else(|| missing("KE payload"))?;
        Ok(Self {
            sa: sa.ok_or_else(|| missing("SA payload"))?,
            group: ke.group,
            public: ke.data,
            nonce: nonce(payloads).ok_or_else(|| missing("nonce"))?,
            mesh: payloads.contains(&Payload::VendorId(VendorId(VENDOR))),
            hashes: hashes(payloads),
            fragmentation: notify(payloads, NotifyType::FragmentationSupported).is_some(),
            nat: Nat::detect(payloads, spis, path),
            ppk: notify(payloads, NotifyType::UsePpk).is_some(),
            intermediate: notify(payloads, NotifyType::IntermediateExchangeSupported).is_some(),
            childless: notify(payloads, NotifyType::ChildlessIkev2Supported).is_some(),
        })
    }
}

/// The nonce.
pub(crate) fn nonce<'a>(payloads: &[Payload<'a>]) -> Option<&'a [u8]> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Nonce(nonce) => Some(nonce.0),
        _ => None,
    })
}

fn hashes(payloads: &[Payload<'_>]) -> Vec<u16> {
    let data = notify(payloads, NotifyType::SignatureHashAlgorithms).unwrap_or_default();
    data.as_chunks()
        .0
        .iter()
        .take(16)
        .map(|id| u16::from_be_bytes(*id))
        .collect()
}

/// What an initiator does with an answer that is not the agreement. None of it ends anything: it is not authenticated.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Retry<'a> {
    /// Send the request again with this cookie in front.
    Cookie(&'a [u8]),
    /// Send it again with a KE payload of this group.
    Group(u16),
    /// Disbelieve it.
    Ignore(NotifyType),
}

/// Finds such an answer.
pub(crate) fn retry<'a>(payloads: &[Payload<'a>]) -> Option<Retry<'a>> {
    let cookie = notify(payloads, NotifyType::Cookie);
    if let Some(cookie) = cookie.filter(|cookie| (1..=limits::COOKIE_MAX).contains(&cookie.len())) {
        return Some(Retry::Cookie(cookie));
    }
    let (kind, data) = error_notify(payloads)?;
    match (kind, data.try_into().map(u16::from_be_bytes)) {
        (NotifyType::InvalidKePayload, Ok(group)) => Some(Retry::Group(group)),
        _ => Some(Retry::Ignore(kind)),
    }
}
