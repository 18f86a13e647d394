//! SA payloads of CHILD_SAs: offers, choices, and the key exchange of a rekey (RFC 7296 §3.3, §1.3.1, §2.9).

use crate::config::{ChildConfig, IkePolicy};
use crate::crypto::{Kem, KexGroup};
use crate::suite::ChildSuite;
use crate::wire::{Payload, Proposal, Sa, Spi, Transform, TransformType, esn};

fn esn_transform(esn: bool) -> Transform {
    Transform::new(TransformType::Esn, if esn { esn::YES } else { esn::NO })
}

/// ESN before none, where it is wanted.
fn sequence_numbers(config: &ChildConfig) -> &'static [bool] {
    if config.esn { &[true, false] } else { &[false] }
}

/// The suites by proposal: together what can be combined freely, in the order of their first.
fn groups_of(config: &ChildConfig) -> Vec<Vec<ChildSuite>> {
    let mut groups: Vec<Vec<ChildSuite>> = Vec::new();
    for suite in &config.suites {
        let group = groups
            .iter_mut()
            .find(|group| group.first().is_some_and(|first| first.goes_with(*suite)));
        match group {
            Some(group) => group.push(*suite),
            None => groups.push(vec![*suite]),
        }
    }
    groups
}

fn offer_group(number: u8, suites: &[ChildSuite], config: &ChildConfig, spi_in: u32) -> Proposal {
    let mut transforms: Vec<Transform> = Vec::new();
    let esn = sequence_numbers(config).iter().copied().map(esn_transform);
    for transform in suites
        .iter()
        .flat_map(|suite| suite.transforms())
        .chain(esn)
    {
        if !transforms.contains(&transform) {
            transforms.push(transform);
        }
    }
    // By type: some implementations expect each type in one run.
    transforms.sort_by_key(|transform| u8::from(transform.kind));
    let protocol = suites
        .first()
        .map_or(crate::wire::ProtocolId::Esp, |suite| suite.protocol());
    Proposal {
        number,
        protocol,
        spi: Spi::Child(spi_in),
        transforms,
    }
}

/// The SA payload of an offer: a proposal for each group of suites that can be combined freely.
pub(crate) fn offer(config: &ChildConfig, spi_in: u32) -> Sa {
    let proposals = (1..)
        .zip(groups_of(config))
        .map(|(number, suites)| offer_group(number, &suites, config, spi_in));
    Sa {
        proposals: proposals.collect(),
    }
}

/// What was chosen out of an offer, with the SPI of the side that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) number: u8,
    pub(crate) spi: u32,
    pub(crate) suite: ChildSuite,
    pub(crate) esn: bool,
}

impl Chosen {
    /// The responder's answer with its own SPI.
    pub(crate) fn answer(&self, spi_in: u32) -> Sa {
        let mut transforms = self.suite.transforms();
        transforms.push(esn_transform(self.esn));
        Sa {
            proposals: vec![Proposal {
                number: self.number,
                protocol: self.suite.protocol(),
                spi: Spi::Child(spi_in),
                transforms,
            }],
        }
    }
}

/// The first proposal that can be taken, with our preference inside it.
pub(crate) fn choose(offer: &Sa, config: &ChildConfig) -> Option<Chosen> {
    offer
        .proposals
        .iter()
        .find_map(|proposal| choose_in(proposal, config))
}

/// A responder's answer, if it is one proposal with one choice each out of our offer.
pub(crate) fn check_answer(answer: &Sa, config: &ChildConfig) -> Option<Chosen> {
    let [proposal] = answer.proposals.as_slice() else {
        return None;
    };
    let groups = groups_of(config);
    let offered = groups.get(usize::from(proposal.number).checked_sub(1)?)?;
    let chosen = choose_in(proposal, config)?;
    // All that the suite needs and ESN, and nothing besides.
    let exact = proposal.transforms.len() == chosen.suite.transforms().len() + 1;
    (exact && offered.contains(&chosen.suite)).then_some(chosen)
}

fn choose_in(proposal: &Proposal, config: &ChildConfig) -> Option<Chosen> {
    let Spi::Child(spi) = proposal.spi else {
        return None;
    };
    let has = |wanted: &Transform| proposal.transforms.contains(wanted);
    let fits = |suite: &ChildSuite| {
        suite.protocol() == proposal.protocol
            && suite.transforms().iter().all(has)
            && needs_no_more(proposal, *suite)
    };
    // RFC 4303 §2.1: 0 to 255 are reserved.
    let suite = config
        .suites
        .iter()
        .copied()
        .find(fits)
        .filter(|_| spi >= 256)?;
    let mut numbers = sequence_numbers(config).iter().copied();
    let esn = numbers.find(|esn| has(&esn_transform(*esn)))?;
    Some(Chosen {
        number: proposal.number,
        spi,
        suite,
        esn,
    })
}

/// A proposal is taken whole or not at all: each type of transform in it must be one of the suite's, or one that may be
/// left out. INTEG comes as NONE with AEADs (RFC 7296 §3.3); a KE method means nothing in IKE_AUTH (§1.2) and is chosen by
/// itself elsewhere.
fn needs_no_more(proposal: &Proposal, suite: ChildSuite) -> bool {
    let own = suite.transforms();
    let known = |kind| {
        matches!(kind, TransformType::Esn | TransformType::Ke)
            || own.iter().any(|transform| transform.kind == kind)
    };
    let none = |kind| proposal.transforms.contains(&Transform::new(kind, 0));
    let mut kinds = proposal.transforms.iter().map(|transform| transform.kind);
    kinds.all(|kind| known(kind) || none(kind))
}

/// How many proposals [`offer`] makes.
pub(crate) fn count(config: &ChildConfig) -> usize {
    groups_of(config).len()
}

/// Offers key exchanges with a CHILD_SA of an exchange of its own (RFC 7296 §1.3.1), and to do without where that is allowed.
/// With ML-KEM all proposals come twice, as for an IKE SA: first with it, then (unless it is required) without.
pub(crate) fn offer_exchanges(payloads: &mut [Payload<'_>], policy: &IkePolicy, required: bool) {
    for sa in sas(payloads) {
        let plain = std::mem::take(&mut sa.proposals);
        let ways = policy.post_quantum.ways().iter();
        let all = ways.flat_map(|with_kem| plain.iter().map(move |plain| (*with_kem, plain)));
        let offered = (1..).zip(all).map(|(number, (with_kem, plain))| {
            let groups = policy.groups.iter().map(|group| group.transform_id());
            let groups = groups.chain((!required && !with_kem).then_some(0));
            let kems = policy.kems.iter().filter(|_| with_kem);
            let mut transforms = plain.transforms.clone();
            transforms.extend(groups.map(|id| Transform::new(TransformType::Ke, id)));
            transforms.extend(kems.map(|kem| kem_transform(*kem)));
            Proposal {
                number,
                transforms,
                ..plain.clone()
            }
        });
        sa.proposals = offered.collect();
    }
}

/// Names the key exchanges that were chosen.
pub(crate) fn answer_exchanges(
    payloads: &mut [Payload<'_>],
    group: Option<KexGroup>,
    kem: Option<Kem>,
) {
    let group = group.map(|group| Transform::new(TransformType::Ke, group.transform_id()));
    for proposal in sas(payloads).flat_map(|sa| &mut sa.proposals) {
        proposal.transforms.extend(group);
        proposal.transforms.extend(kem.map(kem_transform));
    }
}

fn kem_transform(kem: Kem) -> Transform {
    Transform::new(TransformType::AddKe1, kem.transform_id())
}

fn sas<'b>(payloads: &'b mut [Payload<'_>]) -> impl Iterator<Item = &'b mut Sa> {
    payloads.iter_mut().filter_map(|payload| match payload {
        Payload::Sa(sa) => Some(sa),
        _ => None,
    })
}

/// The key exchange for a rekey out of proposal `number`: the method of the KE payload where it can be. `None`: nothing in
/// common; `Some(None)`: none is needed.
pub(crate) fn choose_group(
    sa: &Sa,
    number: u8,
    allowed: &[KexGroup],
    ke: Option<u16>,
    required: bool,
) -> Option<Option<KexGroup>> {
    let offered = sa.proposals.iter().find(|other| other.number == number)?;
    let offered = ids(offered, TransformType::Ke);
    let mut ours = allowed
        .iter()
        .copied()
        .filter(|group| offered.contains(&group.transform_id()));
    let first = ours.clone().next();
    let same = ours.find(|group| ke == Some(group.transform_id()));
    let without = offered.is_empty() || offered.contains(&0);
    match (same.or(first), ke) {
        (Some(_), None) if without && !required => Some(None),
        (Some(group), _) => Some(Some(group)),
        (None, _) => (without && !required).then_some(None),
    }
}

/// Transform IDs of a type in a proposal.
pub(crate) fn ids(proposal: &Proposal, kind: TransformType) -> Vec<u16> {
    let of_kind = |transform: &&Transform| transform.kind == kind;
    let transforms = proposal.transforms.iter().filter(of_kind);
    transforms.map(|transform| transform.id).collect()
}
