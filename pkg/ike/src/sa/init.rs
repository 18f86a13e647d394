//! IKE_SA_INIT (RFC 7296 §1.2, §2.6, §2.7, §2.23): what is said and how it is read. Nothing of it is authenticated yet.

use super::nat::{Detection, Nat};
use super::{error_notify, notify};
use crate::config::IkePolicy;
use crate::crypto::{IkeSuite, KexGroup, Prf, SignatureScheme, SkCipher, SkIntegrity, Spis};
use crate::error::Failure;
use crate::event::Path;
use crate::limits;
use crate::wire::{
    CertEncoding, CertificateRequest, KeyExchange, Nonce, Notify, NotifyType, Payload, Proposal,
    ProtocolId, Sa, Spi, Transform, TransformType, VendorId,
};

/// Sent by both sides of this implementation.
pub(crate) const VENDOR: &[u8] = b"Espalier-1";

fn prf_transform(prf: Prf) -> Transform {
    Transform::new(TransformType::Prf, prf.transform_id())
}

fn group_transform(group: KexGroup) -> Transform {
    Transform::new(TransformType::Ke, group.transform_id())
}

/// What an initiator offers: one proposal with all AEADs, and one for each integrity function of others, since a proposal
/// offers every combination of what it lists, and AEADs take no INTEG (RFC 5282 §8). All in order of preference.
pub(crate) fn offer(policy: &IkePolicy) -> Sa {
    let mut kinds: Vec<Option<SkIntegrity>> = Vec::new();
    for kind in policy.ciphers.iter().map(|cipher| cipher.integrity()) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let proposals = (1..).zip(kinds).map(|(number, kind)| Proposal {
        number,
        protocol: ProtocolId::Ike,
        spi: Spi::None,
        transforms: transforms(policy, kind),
    });
    Sa {
        proposals: proposals.collect(),
    }
}

fn transforms(policy: &IkePolicy, kind: Option<SkIntegrity>) -> Vec<Transform> {
    let ciphers = policy.ciphers.iter().copied();
    let ciphers = ciphers.filter(|cipher| cipher.integrity() == kind);
    let mut transforms: Vec<Transform> = Vec::new();
    for transform in ciphers.flat_map(SkCipher::transforms) {
        if !transforms.contains(&transform) {
            transforms.push(transform);
        }
    }
    transforms.extend(policy.prfs.iter().copied().map(prf_transform));
    transforms.extend(policy.groups.iter().copied().map(group_transform));
    transforms
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
        let mut transforms: Vec<Transform> = self.suite.cipher.transforms().collect();
        transforms.extend([prf_transform(self.suite.prf), group_transform(self.group)]);
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

    /// Whether a policy would have let this be chosen.
    pub(crate) fn is_allowed(&self, policy: &IkePolicy) -> bool {
        policy.ciphers.contains(&self.suite.cipher)
            && policy.prfs.contains(&self.suite.prf)
            && policy.groups.contains(&self.group)
    }
}

/// The first proposal that can be taken whole, with our preference inside it; of its groups the one of the KE payload, if
/// that is one of ours, since that saves a round trip.
pub(crate) fn choose(offer: &Sa, policy: &IkePolicy, ke_group: u16) -> Option<Chosen> {
    offer
        .proposals
        .iter()
        .find_map(|proposal| choose_in(proposal, policy, ke_group))
}

/// What a responder answered, if it is one proposal with one choice each out of our offer.
pub(crate) fn check_answer(answer: &Sa, policy: &IkePolicy, group: KexGroup) -> Option<Chosen> {
    let [proposal] = answer.proposals.as_slice() else {
        return None;
    };
    let offered = offer(policy).proposals;
    let offered = offered
        .iter()
        .find(|offered| offered.number == proposal.number)?;
    let chosen = choose_in(proposal, policy, group.transform_id())?;
    let one_each = chosen.answer().proposals.first()?.transforms.len() == proposal.transforms.len();
    let is_offered = |transform| offered.transforms.contains(transform);
    (chosen.group == group && one_each && proposal.transforms.iter().all(is_offered))
        .then_some(chosen)
}

fn choose_in(proposal: &Proposal, policy: &IkePolicy, ke_group: u16) -> Option<Chosen> {
    let has = |wanted: Transform| proposal.transforms.contains(&wanted);
    if proposal.protocol != ProtocolId::Ike || proposal.spi != Spi::None {
        return None;
    }
    let suits = |cipher: &SkCipher| {
        cipher.transforms().all(has) && needs_no_more(proposal, cipher.integrity().is_some())
    };
    let cipher = policy.ciphers.iter().copied().find(suits)?;
    let mut prfs = policy.prfs.iter().copied();
    let prf = prfs.find(|prf| has(prf_transform(*prf)))?;
    let mut groups = policy
        .groups
        .iter()
        .copied()
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

/// INTEG comes as NONE with AEADs, ADDKE may be NONE (RFC 9370); nothing else may be needed.
fn needs_no_more(proposal: &Proposal, with_integ: bool) -> bool {
    let known = |kind| match kind {
        TransformType::Encr | TransformType::Prf | TransformType::Ke => true,
        TransformType::Integ => with_integ,
        _ => false,
    };
    let none = |kind| proposal.transforms.contains(&Transform::new(kind, 0));
    let mut kinds = proposal.transforms.iter().map(|transform| transform.kind);
    kinds.all(|kind| known(kind) || none(kind))
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
    /// A responder's certification authorities (RFC 7296 §1.2): many peers send a certificate only when they are asked.
    pub(crate) certreq: &'a [u8],
    /// [`crate::PeerConfig::force_udp_encapsulation`].
    pub(crate) pretend_nat: bool,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::CbcKey;

    fn policy() -> IkePolicy {
        IkePolicy::default()
    }

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
        let chosen = choose(&offer(&policy()), &policy(), 31).unwrap();
        assert_eq!(
            chosen.suite,
            IkeSuite {
                prf: Prf::HmacSha256,
                cipher: SkCipher::Aes256Gcm16
            }
        );
        assert_eq!(chosen.group, KexGroup::X25519);
        assert_eq!(
            check_answer(&chosen.answer(), &policy(), KexGroup::X25519),
            Some(chosen)
        );
    }

    #[test]
    fn the_group_of_the_ke_payload_is_taken_where_it_can_be() {
        assert_eq!(
            choose(&offer(&policy()), &policy(), 19).unwrap().group,
            KexGroup::P256
        );
        assert_eq!(
            choose(&offer(&policy()), &policy(), 14).unwrap().group,
            KexGroup::X25519
        );
    }

    #[test]
    fn a_proposal_that_needs_more_than_we_have_is_passed_over() {
        let mut needs_addke = offer(&policy());
        needs_addke.proposals[0]
            .transforms
            .push(Transform::new(TransformType::AddKe1, 36));
        assert_eq!(choose(&needs_addke, &policy(), 31), None);
        needs_addke.proposals[0]
            .transforms
            .push(Transform::new(TransformType::AddKe1, 0));
        assert!(choose(&needs_addke, &policy(), 31).is_some());
        let unknown = Transform {
            unknown_attribute: Some(15),
            ..Transform::new(TransformType::Prf, 5)
        };
        let mut transforms: Vec<Transform> = SkCipher::Aes256Gcm16.transforms().collect();
        transforms.extend([unknown, group_transform(KexGroup::X25519)]);
        assert_eq!(choose(&with(transforms), &policy(), 31), None);
    }

    fn with_cbc() -> IkePolicy {
        let cbc = SkCipher::AesCbc;
        IkePolicy {
            ciphers: vec![
                SkCipher::Aes256Gcm16,
                cbc(CbcKey::Aes256, SkIntegrity::HmacSha384),
                SkCipher::ChaCha20Poly1305,
                cbc(CbcKey::Aes128, SkIntegrity::HmacSha256),
                cbc(CbcKey::Aes256, SkIntegrity::HmacSha256),
            ],
            ..policy()
        }
    }

    #[test]
    fn aeads_and_ciphers_with_integ_stand_in_proposals_of_their_own() {
        let offered = offer(&with_cbc());
        let kinds = |at: usize, kind| {
            let transforms = offered.proposals[at].transforms.iter();
            transforms
                .filter(|transform| transform.kind == kind)
                .map(|transform| (transform.id, transform.key_length))
                .collect::<Vec<_>>()
        };
        let numbers: Vec<u8> = offered.proposals.iter().map(|p| p.number).collect();
        assert_eq!(numbers, [1, 2, 3]);
        assert_eq!(kinds(0, TransformType::Encr), [(20, Some(256)), (28, None)]);
        assert_eq!(kinds(0, TransformType::Integ), []);
        assert_eq!(kinds(1, TransformType::Encr), [(12, Some(256))]);
        assert_eq!(kinds(1, TransformType::Integ), [(13, None)]);
        assert_eq!(
            kinds(2, TransformType::Encr),
            [(12, Some(128)), (12, Some(256))]
        );
        assert_eq!(kinds(2, TransformType::Integ), [(12, None)]);
    }

    #[test]
    fn cbc_is_chosen_only_by_a_policy_that_lists_it_and_with_its_integ() {
        let only_cbc = Sa {
            proposals: offer(&with_cbc()).proposals.split_off(1),
        };
        assert_eq!(choose(&only_cbc, &policy(), 31), None);
        let chosen = choose(&only_cbc, &with_cbc(), 31).unwrap();
        let cipher = SkCipher::AesCbc(CbcKey::Aes256, SkIntegrity::HmacSha384);
        assert_eq!((chosen.number, chosen.suite.cipher), (2, cipher));
        assert!(!chosen.is_allowed(&policy()) && chosen.is_allowed(&with_cbc()));
        let answer = chosen.answer();
        let check = |answer: &Sa| check_answer(answer, &with_cbc(), KexGroup::X25519);
        assert_eq!(check(&answer), Some(chosen));
        let mut without = answer.clone();
        without.proposals[0]
            .transforms
            .retain(|transform| transform.kind != TransformType::Integ);
        assert_eq!(check(&without), None);
        let mut mixed = answer;
        mixed.proposals[0].number = 3;
        assert_eq!(
            check(&mixed),
            None,
            "not a choice out of the third proposal"
        );
    }

    #[test]
    fn an_aead_with_integ_is_not_chosen() {
        let mut offered = offer(&policy());
        let integ = Transform::new(TransformType::Integ, 12);
        offered.proposals[0].transforms.push(integ);
        assert_eq!(choose(&offered, &policy(), 31), None);
        let none = Transform::new(TransformType::Integ, 0);
        offered.proposals[0].transforms.push(none);
        assert!(choose(&offered, &policy(), 31).is_some());
    }

    #[test]
    fn an_answer_with_choices_left_or_outside_the_offer_is_refused() {
        assert_eq!(
            check_answer(&offer(&policy()), &policy(), KexGroup::X25519),
            None
        );
        let chosen = choose(&offer(&policy()), &policy(), 31).unwrap();
        assert_eq!(
            check_answer(&chosen.answer(), &policy(), KexGroup::P256),
            None
        );
        let mut renumbered = chosen.answer();
        renumbered.proposals[0].number = 2;
        assert_eq!(check_answer(&renumbered, &policy(), KexGroup::X25519), None);
    }
}
