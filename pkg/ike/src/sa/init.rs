//! IKE_SA_INIT (RFC 7296 §1.2, §2.6, §2.7, §2.23): what is said and how it is read. Nothing of it is authenticated yet.

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::digest;

use super::{error_notify, notify};
use crate::crypto::{IkeSuite, KexGroup, Prf, SignatureScheme, SkCipher, Spis};
use crate::error::Failure;
use crate::event::Path;
use crate::limits;
use crate::wire::{
    KeyExchange, Nonce, Notify, NotifyType, Payload, Proposal, ProtocolId, Sa, Spi, Transform,
    TransformType, VendorId,
};

/// Sent by both sides of this implementation.
pub(crate) const VENDOR: &[u8] = b"Espalier-1";

const CIPHERS: [SkCipher; 2] = [SkCipher::Aes256Gcm16, SkCipher::Aes128Gcm16];
const PRFS: [Prf; 3] = [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512];
/// In order of preference; the first one is tried first.
pub(crate) const GROUPS: [KexGroup; 2] = [KexGroup::X25519, KexGroup::P256];

fn cipher_transform(cipher: SkCipher) -> Transform {
    let (id, key_length) = cipher.transform();
    Transform {
        key_length,
        ..Transform::new(TransformType::Encr, id)
    }
}

fn prf_transform(prf: Prf) -> Transform {
    Transform::new(TransformType::Prf, prf.transform_id())
}

fn group_transform(group: KexGroup) -> Transform {
    Transform::new(TransformType::Ke, group.transform_id())
}

/// What an initiator offers: one proposal with everything, in order of preference.
pub(crate) fn offer() -> Sa {
    let ciphers = CIPHERS.map(cipher_transform);
    let transforms = [
        &ciphers[..],
        &PRFS.map(prf_transform),
        &GROUPS.map(group_transform),
    ]
    .concat();
    Sa {
        proposals: vec![Proposal {
            number: 1,
            protocol: ProtocolId::Ike,
            spi: Spi::None,
            transforms,
        }],
    }
}

/// The same SA payload with the sender's SPI for the new IKE SA, as in a rekey (RFC 7296 §3.3.1).
pub(crate) fn with_spi(mut sa: Sa, spi: u64) -> Sa {
    for proposal in &mut sa.proposals {
        proposal.spi = Spi::Ike(spi);
    }
    sa
}

/// Takes the SPI of a rekey's SA payload out of it. `None` where there is none or several.
pub(crate) fn take_spi(mut sa: Sa) -> Option<(u64, Sa)> {
    let first = sa.proposals.first()?.spi.clone();
    let Spi::Ike(spi) = first else {
        return None;
    };
    for proposal in &mut sa.proposals {
        let same = std::mem::replace(&mut proposal.spi, Spi::None) == first;
        if !same {
            return None;
        }
    }
    (spi != 0).then_some((spi, sa))
}

/// What was agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) number: u8,
    pub(crate) suite: IkeSuite,
    pub(crate) group: KexGroup,
}

impl Chosen {
    /// The responder's answer.
    pub(crate) fn answer(&self) -> Sa {
        let transforms = vec![
            cipher_transform(self.suite.cipher),
            prf_transform(self.suite.prf),
            group_transform(self.group),
        ];
        let proposal = Proposal {
            number: self.number,
            protocol: ProtocolId::Ike,
            spi: Spi::None,
            transforms,
        };
        Sa {
            proposals: vec![proposal],
        }
    }
}

/// The first proposal that can be taken whole, with our preference inside it; of its groups the one of the KE payload, if
/// that is one of ours, since that saves a round trip.
pub(crate) fn choose(offer: &Sa, ke_group: u16) -> Option<Chosen> {
    offer
        .proposals
        .iter()
        .find_map(|proposal| choose_in(proposal, ke_group))
}

/// What a responder answered, if it is one proposal with one choice each out of our offer.
pub(crate) fn check_answer(answer: &Sa, group: KexGroup) -> Option<Chosen> {
    match answer.proposals.as_slice() {
        [proposal] if proposal.number == 1 && proposal.transforms.len() == 3 => {
            choose_in(proposal, group.transform_id()).filter(|chosen| chosen.group == group)
        }
        _ => None,
    }
}

fn choose_in(proposal: &Proposal, ke_group: u16) -> Option<Chosen> {
    let optional = |kind: TransformType| {
        !matches!(
            kind,
            TransformType::Encr | TransformType::Prf | TransformType::Ke
        )
    };
    let others = proposal
        .transforms
        .iter()
        .map(|transform| transform.kind)
        .filter(|kind| optional(*kind));
    // INTEG comes as NONE with AEADs, ADDKE may be NONE (RFC 9370); nothing else may be needed.
    let none = |kind| proposal.transforms.contains(&Transform::new(kind, 0));
    if proposal.protocol != ProtocolId::Ike
        || proposal.spi != Spi::None
        || !others.into_iter().all(none)
    {
        return None;
    }
    let has = |wanted: Transform| proposal.transforms.contains(&wanted);
    let cipher = CIPHERS
        .into_iter()
        .find(|cipher| has(cipher_transform(*cipher)))?;
    let prf = PRFS.into_iter().find(|prf| has(prf_transform(*prf)))?;
    let mut groups = GROUPS
        .into_iter()
        .filter(|group| has(group_transform(*group)));
    let first = groups.clone().next()?;
    let group = groups
        .find(|group| group.transform_id() == ke_group)
        .unwrap_or(first);
    Some(Chosen {
        number: proposal.number,
        suite: IkeSuite { prf, cipher },
        group,
    })
}

/// An SA payload for messages: `1: ENCR 20/256, PRF 5, KE 31`.
pub(crate) fn describe(sa: &Sa) -> String {
    let one = |transform: &Transform| {
        let kind = format!("{:?}", transform.kind).to_uppercase();
        let bits = transform
            .key_length
            .map(|bits| format!("/{bits}"))
            .unwrap_or_default();
        format!("{kind} {}{bits}", transform.id)
    };
    let proposal = |proposal: &Proposal| {
        let transforms: Vec<String> = proposal.transforms.iter().take(16).map(one).collect();
        format!("{:?} {}", proposal.protocol, transforms.join(", "))
    };
    let proposals: Vec<String> = sa.proposals.iter().take(4).map(proposal).collect();
    proposals.join("; ")
}

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
}

impl Say<'_> {
    /// Writes them with `emit` (which adds the header).
    pub(crate) fn emit(&self, emit: impl FnOnce(&[Payload<'_>]) -> Vec<u8>) -> Vec<u8> {
        let source = nat_hash(self.spis, self.path.local);
        let destination = nat_hash(self.spis, self.path.remote);
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
            said(NotifyType::NatDetectionSourceIp, &source),
            said(NotifyType::NatDetectionDestinationIp, &destination),
            said(NotifyType::SignatureHashAlgorithms, &hashes),
            Payload::VendorId(VendorId(VENDOR)),
        ]);
        if self.fragmentation {
            payloads.push(said(NotifyType::FragmentationSupported, &[]));
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
    /// An address was translated on the way.
    pub(crate) nat: bool,
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
            nat: nat_between(payloads, spis, path),
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

/// NAT_DETECTION data (RFC 7296 §2.23): SHA-1, as the RFC fixes it; nothing is secured by it.
fn nat_hash(spis: Spis, address: SocketAddr) -> Vec<u8> {
    let (spi_i, spi_r) = (spis.initiator.to_be_bytes(), spis.responder.to_be_bytes());
    let octets = match address.ip() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let input = [&spi_i[..], &spi_r, &octets, &address.port().to_be_bytes()].concat();
    digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &input)
        .as_ref()
        .to_vec()
}

/// True when the peer sent NAT_DETECTION notifies and none of a kind fits the datagram's addresses.
fn nat_between(payloads: &[Payload<'_>], spis: Spis, path: Path) -> bool {
    let differs = |kind, address| {
        let mut said = payloads.iter().filter_map(|payload| match payload {
            Payload::Notify(notify) if notify.kind == kind => Some(notify.data),
            _ => None,
        });
        let seen = nat_hash(spis, address);
        said.clone().next().is_some() && said.all(|data| data != seen)
    };
    differs(NotifyType::NatDetectionSourceIp, path.remote)
        || differs(NotifyType::NatDetectionDestinationIp, path.local)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(transforms: Vec<Transform>) -> Sa {
        Sa {
            proposals: vec![Proposal {
                number: 1,
                protocol: ProtocolId::Ike,
                spi: Spi::None,
                transforms,
            }],
        }
    }

    #[test]
    fn both_ends_of_this_implementation_agree_on_the_first_of_each() {
        let chosen = choose(&offer(), 31).unwrap();
        assert_eq!(
            chosen.suite,
            IkeSuite {
                prf: Prf::HmacSha256,
                cipher: SkCipher::Aes256Gcm16
            }
        );
        assert_eq!(chosen.group, KexGroup::X25519);
        assert_eq!(
            check_answer(&chosen.answer(), KexGroup::X25519),
            Some(chosen)
        );
    }

    #[test]
    fn the_group_of_the_ke_payload_is_taken_where_it_can_be() {
        assert_eq!(choose(&offer(), 19).unwrap().group, KexGroup::P256);
        assert_eq!(choose(&offer(), 14).unwrap().group, KexGroup::X25519);
    }

    #[test]
    fn a_proposal_that_needs_more_than_we_have_is_passed_over() {
        let mut needs_addke = offer();
        needs_addke.proposals[0]
            .transforms
            .push(Transform::new(TransformType::AddKe1, 36));
        assert_eq!(choose(&needs_addke, 31), None);
        needs_addke.proposals[0]
            .transforms
            .push(Transform::new(TransformType::AddKe1, 0));
        assert!(choose(&needs_addke, 31).is_some());
        let unknown = Transform {
            unknown_attribute: Some(15),
            ..Transform::new(TransformType::Prf, 5)
        };
        let cipher = cipher_transform(SkCipher::Aes256Gcm16);
        assert_eq!(
            choose(
                &with(vec![cipher, unknown, group_transform(KexGroup::X25519)]),
                31
            ),
            None
        );
    }

    #[test]
    fn an_answer_with_choices_left_or_outside_the_offer_is_refused() {
        assert_eq!(check_answer(&offer(), KexGroup::X25519), None);
        let chosen = choose(&offer(), 31).unwrap();
        assert_eq!(check_answer(&chosen.answer(), KexGroup::P256), None);
        let mut renumbered = chosen.answer();
        renumbered.proposals[0].number = 2;
        assert_eq!(check_answer(&renumbered, KexGroup::X25519), None);
    }

    #[test]
    fn a_translated_address_is_noticed_from_either_end() {
        let at = |host, port| SocketAddr::from(([10, 0, 0, host], port));
        let spis = Spis {
            initiator: 1,
            responder: 0,
        };
        let path = Path {
            local: at(1, 4500),
            remote: at(2, 4500),
        };
        let say = Say {
            spis,
            path,
            cookie: &[],
            sa: offer(),
            group: KexGroup::X25519,
            public: &[1; 32],
            nonce: &[2; 32],
            fragmentation: true,
        };
        say.emit(|payloads| {
            let seen = |local, remote| {
                Heard::read(payloads, spis, Path { local, remote })
                    .unwrap()
                    .nat
            };
            assert!(!seen(at(2, 4500), at(1, 4500)));
            assert!(seen(at(2, 4500), at(9, 4500)));
            assert!(seen(at(2, 4500), at(1, 1024)));
            assert!(seen(at(9, 4500), at(1, 4500)));
            Vec::new()
        });
    }
}
