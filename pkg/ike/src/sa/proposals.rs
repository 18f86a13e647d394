//! What proposals for an IKE SA say, and which one is taken (RFC 7296 §2.7, §3.3, RFC 9370 §2.2.1).

use crate::config::IkePolicy;
use crate::crypto::{IkeSuite, Kem, KexGroup, Prf, SkCipher, SkIntegrity};
use crate::wire::{Proposal, ProtocolId, Sa, Spi, Transform, TransformType};

fn prf_transform(prf: Prf) -> Transform {
    Transform::new(TransformType::Prf, prf.transform_id())
}

fn group_transform(group: KexGroup) -> Transform {
    Transform::new(TransformType::Ke, group.transform_id())
}

fn kem_transform(kem: Kem) -> Transform {
    Transform::new(TransformType::AddKe1, kem.transform_id())
}

/// What an initiator offers: one proposal with all AEADs, and one for each integrity function of others, since a proposal
/// offers every combination of what it lists, and AEADs take no INTEG (RFC 5282 §8). With ML-KEM all that twice: first with
/// an additional key exchange, then (unless it is required) without, for peers that do not know its transform type.
pub(crate) fn offer(policy: &IkePolicy) -> Sa {
    let mut kinds: Vec<Option<SkIntegrity>> = Vec::new();
    for kind in policy.ciphers.iter().map(|cipher| cipher.integrity()) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let ways = policy.post_quantum.ways().iter();
    let kinds = ways.flat_map(|with_kem| kinds.iter().map(move |kind| (*with_kem, *kind)));
    let proposals = (1..).zip(kinds).map(|(number, (with_kem, kind))| Proposal {
        number,
        protocol: ProtocolId::Ike,
        spi: Spi::None,
        transforms: transforms(policy, kind, with_kem),
    });
    Sa {
        proposals: proposals.collect(),
    }
}

fn transforms(policy: &IkePolicy, kind: Option<SkIntegrity>, with_kem: bool) -> Vec<Transform> {
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
    let kems = policy.kems.iter().copied().filter(|_| with_kem);
    transforms.extend(kems.map(kem_transform));
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
    /// The additional key exchange.
    pub(crate) kem: Option<Kem>,
}

impl Chosen {
    /// The responder's answer.
    pub(crate) fn answer(&self) -> Sa {
        let mut transforms: Vec<Transform> = self.suite.cipher.transforms().collect();
        transforms.extend([prf_transform(self.suite.prf), group_transform(self.group)]);
        transforms.extend(self.kem.map(kem_transform));
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
            && policy.post_quantum.ways().contains(&self.kem.is_some())
            && self.kem.is_none_or(|kem| policy.kems.contains(&kem))
    }
}

/// The first proposal that can be taken whole, with our preference inside it; of its groups the one of the KE payload, if
/// that is one of ours, since that saves a round trip. One with ML-KEM goes first where both ends can do with it:
/// `additional` says whether the peer knows how.
pub(crate) fn choose(
    offer: &Sa,
    policy: &IkePolicy,
    ke_group: u16,
    additional: bool,
) -> Option<Chosen> {
    let ways = policy.post_quantum.ways().iter().copied();
    let mut ways = ways.filter(|with_kem| additional || !with_kem);
    ways.find_map(|with_kem| {
        let mut proposals = offer.proposals.iter();
        proposals.find_map(|proposal| choose_in(proposal, policy, ke_group, with_kem))
    })
}

/// The method of the additional key exchange in an answer's one proposal.
pub(crate) fn additional(answer: &Sa) -> Option<u16> {
    let transforms = &answer.proposals.first()?.transforms;
    let mut transforms = transforms.iter();
    let kem = transforms.find(|t| t.kind == TransformType::AddKe1 && t.id != 0);
    kem.map(|transform| transform.id)
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
    let is_kem = |transform: &Transform| transform.kind == TransformType::AddKe1;
    let with_kem = offered.transforms.iter().any(is_kem);
    let chosen = choose_in(proposal, policy, group.transform_id(), with_kem)?;
    let one_each = chosen.answer().proposals.first()?.transforms.len() == proposal.transforms.len();
    let is_offered = |transform| offered.transforms.contains(transform);
    (chosen.group == group && one_each && proposal.transforms.iter().all(is_offered))
        .then_some(chosen)
}

fn choose_in(
    proposal: &Proposal,
    policy: &IkePolicy,
    ke_group: u16,
    with_kem: bool,
) -> Option<Chosen> {
    let has = |wanted: Transform| proposal.transforms.contains(&wanted);
    if proposal.protocol != ProtocolId::Ike || proposal.spi != Spi::None {
        return None;
    }
    let suits = |cipher: &SkCipher| {
        let with_integ = cipher.integrity().is_some();
        cipher.transforms().all(has) && needs_no_more(proposal, with_integ, with_kem)
    };
    let cipher = policy.ciphers.iter().copied().find(suits)?;
    let mut prfs = policy.prfs.iter().copied();
    let prf = prfs.find(|prf| has(prf_transform(*prf)))?;
    let mut kems = policy.kems.iter().copied();
    let kem = kems.find(|kem| with_kem && has(kem_transform(*kem)));
    if kem.is_none() && with_kem {
        return None;
    }
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
        kem,
    })
}

/// INTEG comes as NONE with AEADs, ADDKE may be NONE (RFC 9370); nothing else may be needed.
fn needs_no_more(proposal: &Proposal, with_integ: bool, with_kem: bool) -> bool {
    let known = |kind| match kind {
        TransformType::Encr | TransformType::Prf | TransformType::Ke => true,
        TransformType::Integ => with_integ,
        TransformType::AddKe1 => with_kem,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PostQuantum;
    use crate::crypto::CbcKey;

    /// Everything but ML-KEM.
    fn policy() -> IkePolicy {
        with_kem(PostQuantum::Off)
    }

    fn with_kem(post_quantum: PostQuantum) -> IkePolicy {
        IkePolicy {
            post_quantum,
            ..IkePolicy::default()
        }
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
        let chosen = choose(&offer(&policy()), &policy(), 31, true).unwrap();
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
            choose(&offer(&policy()), &policy(), 19, true)
                .unwrap()
                .group,
            KexGroup::P256
        );
        assert_eq!(
            choose(&offer(&policy()), &policy(), 14, true)
                .unwrap()
                .group,
            KexGroup::X25519
        );
    }

    #[test]
    fn a_proposal_that_needs_more_than_we_have_is_passed_over() {
        let mut needs_addke = offer(&policy());
        needs_addke.proposals[0]
            .transforms
            .push(Transform::new(TransformType::AddKe1, 36));
        assert_eq!(choose(&needs_addke, &policy(), 31, true), None);
        needs_addke.proposals[0]
            .transforms
            .push(Transform::new(TransformType::AddKe1, 0));
        assert!(choose(&needs_addke, &policy(), 31, true).is_some());
        let unknown = Transform {
            unknown_attribute: Some(15),
            ..Transform::new(TransformType::Prf, 5)
        };
        let mut transforms: Vec<Transform> = SkCipher::Aes256Gcm16.transforms().collect();
        transforms.extend([unknown, group_transform(KexGroup::X25519)]);
        assert_eq!(choose(&with(transforms), &policy(), 31, true), None);
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
        assert_eq!(choose(&only_cbc, &policy(), 31, true), None);
        let chosen = choose(&only_cbc, &with_cbc(), 31, true).unwrap();
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
        assert_eq!(choose(&offered, &policy(), 31, true), None);
        let none = Transform::new(TransformType::Integ, 0);
        offered.proposals[0].transforms.push(none);
        assert!(choose(&offered, &policy(), 31, true).is_some());
    }

    #[test]
    fn an_answer_with_choices_left_or_outside_the_offer_is_refused() {
        assert_eq!(
            check_answer(&offer(&policy()), &policy(), KexGroup::X25519),
            None
        );
        let chosen = choose(&offer(&policy()), &policy(), 31, true).unwrap();
        assert_eq!(
            check_answer(&chosen.answer(), &policy(), KexGroup::P256),
            None
        );
        let mut renumbered = chosen.answer();
        renumbered.proposals[0].number = 2;
        assert_eq!(check_answer(&renumbered, &policy(), KexGroup::X25519), None);
    }

    #[test]
    fn ml_kem_is_offered_first_alone_or_not_at_all() {
        let kems = |policy: &IkePolicy| {
            let proposals = offer(policy).proposals;
            let of = |proposal: &Proposal| {
                let transforms = proposal.transforms.iter();
                let kems = transforms.filter(|transform| transform.kind == TransformType::AddKe1);
                (proposal.number, kems.map(|kem| kem.id).collect())
            };
            proposals.iter().map(of).collect::<Vec<(u8, Vec<u16>)>>()
        };
        assert_eq!(kems(&with_kem(PostQuantum::Off)), [(1, vec![])]);
        assert_eq!(
            kems(&with_kem(PostQuantum::Preferred)),
            [(1, vec![36, 37]), (2, vec![])]
        );
        assert_eq!(kems(&with_kem(PostQuantum::Required)), [(1, vec![36, 37])]);
    }

    #[test]
    fn ml_kem_is_chosen_by_both_ends_rules() {
        use PostQuantum::{Off, Preferred, Required};
        let taken = |offered, taken, additional| {
            let chosen = choose(&offer(&with_kem(offered)), &with_kem(taken), 31, additional);
            chosen.map(|chosen| chosen.kem)
        };
        let kem = Some(Some(Kem::MlKem768));
        for both in [Preferred, Required] {
            assert_eq!(taken(both, Preferred, true), kem);
            assert_eq!(taken(both, Required, true), kem);
            assert_eq!(taken(both, Required, false), None, "it cannot be done");
        }
        assert_eq!(taken(Preferred, Preferred, false), Some(None));
        assert_eq!(taken(Preferred, Off, true), Some(None));
        assert_eq!(taken(Off, Preferred, true), Some(None));
        assert_eq!(taken(Required, Off, true), None);
        assert_eq!(taken(Off, Required, true), None);
    }

    #[test]
    fn an_answer_keeps_the_ml_kem_of_its_proposal() {
        let policy = with_kem(PostQuantum::Preferred);
        let chosen = choose(&offer(&policy), &policy, 31, true).unwrap();
        let check = |answer: &Sa| check_answer(answer, &policy, KexGroup::X25519);
        assert_eq!(check(&chosen.answer()), Some(chosen));
        let mut without = chosen.answer();
        without.proposals[0]
            .transforms
            .retain(|transform| transform.kind != TransformType::AddKe1);
        assert_eq!(check(&without), None, "it was not offered so");
        without.proposals[0].number = 2;
        assert_eq!(check(&without).map(|chosen| chosen.kem), Some(None));
        let mut other = chosen.answer();
        let last = other.proposals[0].transforms.last_mut().unwrap();
        *last = Transform::new(TransformType::AddKe1, 35);
        assert_eq!(check(&other), None, "ML-KEM-512 was not offered");
    }

    #[test]
    fn a_list_with_none_is_taken_with_ml_kem_and_without() {
        let mut optional = offer(&with_kem(PostQuantum::Required));
        let none = Transform::new(TransformType::AddKe1, 0);
        optional.proposals[0].transforms.push(none);
        let kem = |policy: IkePolicy| choose(&optional, &policy, 31, true).map(|c| c.kem);
        assert_eq!(kem(with_kem(PostQuantum::Off)), Some(None));
        assert_eq!(
            kem(with_kem(PostQuantum::Preferred)),
            Some(Some(Kem::MlKem768))
        );
    }
}
