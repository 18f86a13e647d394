//! CHILD_SAs: what is offered, chosen and agreed (RFC 7296 §1.3.1, §2.9, §2.17, §3.3), and its keys.

pub(crate) mod select;

use crate::config::{ChildConfig, EspSuite, Identity, TrafficSelector};
use crate::crypto::{CryptoError, KexGroup, Nonces, SharedSecret, SkD, child_keymat};
use crate::error::Failure;
use crate::event::{ChildKeys, ChildSa, Role};
use crate::sa::init::describe;
use crate::sa::notify;
use crate::wire::{
    NotifyType, Payload, Proposal, ProtocolId, Sa, Spi, TrafficSelectors, Transform, TransformType,
    encr, esn,
};

fn cipher_transform(suite: EspSuite) -> Transform {
    let gcm = |bits| Transform::with_key_length(TransformType::Encr, encr::AES_GCM_16, bits);
    match suite {
        EspSuite::Aes256Gcm16 => gcm(256),
        EspSuite::Aes128Gcm16 => gcm(128),
        EspSuite::ChaCha20Poly1305 => Transform::new(TransformType::Encr, encr::CHACHA20_POLY1305),
    }
}

fn esn_transform(esn: bool) -> Transform {
    Transform::new(TransformType::Esn, if esn { esn::YES } else { esn::NO })
}

fn proposal(number: u8, spi: u32, transforms: Vec<Transform>) -> Sa {
    let spi = Spi::Child(spi);
    Sa {
        proposals: vec![Proposal {
            number,
            protocol: ProtocolId::Esp,
            spi,
            transforms,
        }],
    }
}

/// The SA payload of an offer: all suites and, where wanted, ESN before none, in one proposal.
pub(crate) fn offer(config: &ChildConfig, spi_in: u32) -> Sa {
    let numbers: &[bool] = if config.esn { &[true, false] } else { &[false] };
    let suites = config.suites.iter().copied().map(cipher_transform);
    proposal(
        1,
        spi_in,
        suites
            .chain(numbers.iter().copied().map(esn_transform))
            .collect(),
    )
}

/// What was chosen out of an offer, with the SPI of the side that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) number: u8,
    pub(crate) spi: u32,
    pub(crate) suite: EspSuite,
    pub(crate) esn: bool,
}

impl Chosen {
    /// The responder's answer with its own SPI.
    pub(crate) fn answer(&self, spi_in: u32) -> Sa {
        proposal(
            self.number,
            spi_in,
            vec![cipher_transform(self.suite), esn_transform(self.esn)],
        )
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
    match answer.proposals.as_slice() {
        [proposal] if proposal.number == 1 && proposal.transforms.len() == 2 => {
            choose_in(proposal, config)
        }
        _ => None,
    }
}

fn choose_in(proposal: &Proposal, config: &ChildConfig) -> Option<Chosen> {
    // INTEG comes as NONE with AEADs; a KE method in IKE_AUTH means nothing (RFC 7296 §1.2), nor may be needed.
    let none = |kind| proposal.transforms.contains(&Transform::new(kind, 0));
    let known = |kind| {
        matches!(
            kind,
            TransformType::Encr | TransformType::Esn | TransformType::Ke
        )
    };
    let mut kinds = proposal.transforms.iter().map(|transform| transform.kind);
    let Spi::Child(spi) = proposal.spi else {
        return None;
    };
    // RFC 4303 §2.1: 0 to 255 are reserved.
    if proposal.protocol != ProtocolId::Esp
        || spi < 256
        || !kinds.all(|kind| known(kind) || none(kind))
    {
        return None;
    }
    let has = |wanted: Transform| proposal.transforms.contains(&wanted);
    let suite = config
        .suites
        .iter()
        .copied()
        .find(|suite| has(cipher_transform(*suite)))?;
    let numbers: &[bool] = if config.esn { &[true, false] } else { &[false] };
    let esn = numbers
        .iter()
        .copied()
        .find(|esn| has(esn_transform(*esn)))?;
    Some(Chosen {
        number: proposal.number,
        spi,
        suite,
        esn,
    })
}

/// Offers a key exchange with a rekey (RFC 7296 §1.3.1), and to do without where that is allowed.
pub(crate) fn offer_groups(payloads: &mut [Payload<'_>], groups: &[KexGroup], required: bool) {
    let groups = groups.iter().map(|group| group.transform_id());
    add_ke(payloads, groups.chain((!required).then_some(0)));
}

/// Names the key exchange that was chosen.
pub(crate) fn answer_group(payloads: &mut [Payload<'_>], group: Option<KexGroup>) {
    add_ke(payloads, group.map(KexGroup::transform_id).into_iter());
}

fn add_ke(payloads: &mut [Payload<'_>], groups: impl Iterator<Item = u16>) {
    let sa = payloads.iter_mut().find_map(|payload| match payload {
        Payload::Sa(sa) => sa.proposals.first_mut(),
        _ => None,
    });
    if let Some(proposal) = sa {
        let transforms = groups.map(|id| Transform::new(TransformType::Ke, id));
        proposal.transforms.extend(transforms);
    }
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
    let offered = groups(sa.proposals.iter().find(|other| other.number == number)?);
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

fn groups(proposal: &Proposal) -> Vec<u16> {
    let of_kind = |transform: &&Transform| transform.kind == TransformType::Ke;
    let transforms = proposal.transforms.iter().filter(of_kind);
    transforms.map(|transform| transform.id).collect()
}

/// What the payloads of one side of IKE_AUTH say about the first CHILD_SA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard<'a> {
    sa: &'a Sa,
    ts_i: &'a [TrafficSelector],
    ts_r: &'a [TrafficSelector],
    transport: bool,
}

impl<'a> Heard<'a> {
    pub(crate) fn read(payloads: &'a [Payload<'a>]) -> Result<Self, Failure> {
        let missing = |what| Failure::Missing {
            what,
            message: "IKE_AUTH",
        };
        let find = |pick: fn(&'a Payload<'a>) -> Option<&'a [TrafficSelector]>, what| {
            payloads.iter().find_map(pick).ok_or_else(|| missing(what))
        };
        let sa = payloads.iter().find_map(|payload| match payload {
            Payload::Sa(sa) => Some(sa),
            _ => None,
        });
        Ok(Self {
            sa: sa.ok_or_else(|| missing("SA payload"))?,
            ts_i: find(
                |payload| match payload {
                    Payload::TsI(ts) => Some(&ts.0),
                    _ => None,
                },
                "TSi payload",
            )?,
            ts_r: find(
                |payload| match payload {
                    Payload::TsR(ts) => Some(&ts.0),
                    _ => None,
                },
                "TSr payload",
            )?,
            transport: notify(payloads, NotifyType::UseTransportMode).is_some(),
        })
    }
}

/// An agreement without keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) chosen: Chosen,
    pub(crate) transport: bool,
    pub(crate) local_ts: Vec<TrafficSelector>,
    pub(crate) remote_ts: Vec<TrafficSelector>,
}

/// As responder: what can be agreed to.
pub(crate) fn accept(
    peer: &Identity,
    config: &ChildConfig,
    heard: &Heard<'_>,
) -> Result<Agreed, Failure> {
    let chosen = choose(heard.sa, config).ok_or_else(|| no_proposal(peer, heard.sa, config))?;
    check_mode(peer, config, heard.transport)?;
    let local_ts = select::narrow(&config.local_ts, heard.ts_r);
    let remote_ts = select::narrow(&config.remote_ts, heard.ts_i);
    if local_ts.is_empty() || remote_ts.is_empty() {
        return Err(selectors(peer, config, (heard.ts_r, heard.ts_i)));
    }
    Ok(Agreed {
        chosen,
        transport: config.transport,
        local_ts,
        remote_ts,
    })
}

/// As initiator: whether the answer is one to our offer.
pub(crate) fn check(
    peer: &Identity,
    config: &ChildConfig,
    heard: &Heard<'_>,
) -> Result<Agreed, Failure> {
    let chosen =
        check_answer(heard.sa, config).ok_or_else(|| no_proposal(peer, heard.sa, config))?;
    check_mode(peer, config, heard.transport)?;
    let narrowed = select::is_subset(heard.ts_i, &config.local_ts)
        && select::is_subset(heard.ts_r, &config.remote_ts);
    if !narrowed {
        return Err(selectors(peer, config, (heard.ts_i, heard.ts_r)));
    }
    let (local_ts, remote_ts) = (heard.ts_i.to_vec(), heard.ts_r.to_vec());
    Ok(Agreed {
        chosen,
        transport: config.transport,
        local_ts,
        remote_ts,
    })
}

/// As initiator of a rekey with a key exchange by `group`: whether the answer is one to our offer, and whether it has a key
/// exchange.
pub(crate) fn check_rekey(
    peer: &Identity,
    config: &ChildConfig,
    heard: &Heard<'_>,
    group: KexGroup,
    required: bool,
) -> Result<(Agreed, bool), Failure> {
    let refused = || no_proposal(peer, heard.sa, config);
    let mut sa = heard.sa.clone();
    let proposal = sa.proposals.first_mut().ok_or_else(refused)?;
    let with_ke = match groups(proposal).as_slice() {
        [] | [0] if !required => false,
        [id] if *id == group.transform_id() => true,
        _ => return Err(refused()),
    };
    proposal
        .transforms
        .retain(|transform| transform.kind != TransformType::Ke);
    let agreed = check(peer, config, &Heard { sa: &sa, ..*heard })?;
    Ok((agreed, with_ke))
}

/// Transport mode is asked for and granted, or not spoken of (RFC 7296 §1.3.1): a silent change of mode is refused.
fn check_mode(peer: &Identity, config: &ChildConfig, transport: bool) -> Result<(), Failure> {
    let name = |transport| if transport { "transport" } else { "tunnel" };
    if config.transport == transport {
        return Ok(());
    }
    Err(Failure::Mode {
        peer: peer.clone(),
        ours: name(config.transport),
        theirs: name(transport),
    })
}

impl Agreed {
    /// Keys it. `role` is this side's in the exchange, `spi_in` this side's SPI.
    pub(crate) fn key(
        self,
        spi_in: u32,
        role: Role,
        sk_d: &SkD,
        nonces: Nonces<'_>,
        shared: Option<&SharedSecret>,
    ) -> Result<ChildSa, CryptoError> {
        let keymat = child_keymat(sk_d, nonces, shared, self.chosen.suite)?;
        let (keys_in, keys_out) = keymat.for_role(role);
        Ok(ChildSa {
            spi_in,
            spi_out: self.chosen.spi,
            suite: self.chosen.suite,
            esn: self.chosen.esn,
            transport: self.transport,
            keys_in: ChildKeys { key: keys_in },
            keys_out: ChildKeys { key: keys_out },
            local_ts: self.local_ts,
            remote_ts: self.remote_ts,
            role,
        })
    }

    /// The responder's payloads for it.
    pub(crate) fn payloads(&self, spi_in: u32) -> Vec<Payload<'static>> {
        let sa = self.chosen.answer(spi_in);
        payloads(
            sa,
            self.remote_ts.clone(),
            self.local_ts.clone(),
            self.transport,
        )
    }
}

/// The initiator's payloads.
pub(crate) fn offer_payloads(config: &ChildConfig, spi_in: u32) -> Vec<Payload<'static>> {
    let sa = offer(config, spi_in);
    payloads(
        sa,
        config.local_ts.clone(),
        config.remote_ts.clone(),
        config.transport,
    )
}

fn payloads(
    sa: Sa,
    ts_i: Vec<TrafficSelector>,
    ts_r: Vec<TrafficSelector>,
    transport: bool,
) -> Vec<Payload<'static>> {
    let mode = crate::wire::Notify::new(NotifyType::UseTransportMode, &[]);
    let mode = transport.then_some(Payload::Notify(mode));
    let rest = [
        Payload::Sa(sa),
        Payload::TsI(TrafficSelectors(ts_i)),
        Payload::TsR(TrafficSelectors(ts_r)),
    ];
    mode.into_iter().chain(rest).collect()
}

fn no_proposal(peer: &Identity, theirs: &Sa, config: &ChildConfig) -> Failure {
    let own = describe(&offer(config, 0));
    Failure::NoChildProposal {
        peer: peer.clone(),
        offered: describe(theirs),
        own,
    }
}

/// `theirs`: what the peer says of this side, and of itself.
fn selectors(
    peer: &Identity,
    config: &ChildConfig,
    theirs: (&[TrafficSelector], &[TrafficSelector]),
) -> Failure {
    let both = |here: &[TrafficSelector], there: &[TrafficSelector]| {
        format!("{} <-> {}", text(here), text(there))
    };
    let (offered, own) = (
        both(theirs.0, theirs.1),
        both(&config.local_ts, &config.remote_ts),
    );
    Failure::Selectors {
        peer: peer.clone(),
        offered,
        own,
    }
}

fn text(selectors: &[TrafficSelector]) -> String {
    let one = |ts: &TrafficSelector| {
        let TrafficSelector {
            protocol,
            start_port,
            end_port,
            start,
            end,
        } = ts;
        format!("{start}-{end} protocol {protocol} ports {start_port}-{end_port}")
    };
    let list: Vec<String> = selectors.iter().take(4).map(one).collect();
    if list.is_empty() {
        "nothing".into()
    } else {
        list.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(suites: &[EspSuite], esn: bool) -> ChildConfig {
        let any = TrafficSelector {
            protocol: 17,
            start_port: 0,
            end_port: u16::MAX,
            start: "10.0.0.1".parse().unwrap(),
            end: "10.0.0.1".parse().unwrap(),
        };
        let (local_ts, remote_ts) = (vec![any.clone()], vec![any]);
        ChildConfig {
            suites: suites.to_vec(),
            esn,
            ..ChildConfig::new(local_ts, remote_ts)
        }
    }

    const ALL: [EspSuite; 3] = [
        EspSuite::Aes256Gcm16,
        EspSuite::Aes128Gcm16,
        EspSuite::ChaCha20Poly1305,
    ];

    #[test]
    fn the_responders_preference_decides_within_a_proposal() {
        let own = config(&[EspSuite::ChaCha20Poly1305, EspSuite::Aes256Gcm16], true);
        let chosen = choose(&offer(&config(&ALL, true), 300), &own).unwrap();
        assert_eq!(
            chosen,
            Chosen {
                number: 1,
                spi: 300,
                suite: EspSuite::ChaCha20Poly1305,
                esn: true
            }
        );
        let answer = chosen.answer(400);
        let checked = check_answer(&answer, &config(&ALL, true)).unwrap();
        assert_eq!(
            (checked.spi, checked.suite, checked.esn),
            (400, EspSuite::ChaCha20Poly1305, true)
        );
    }

    #[test]
    fn esn_is_refused_where_it_is_not_wanted() {
        let (with, without) = (config(&ALL, true), config(&ALL, false));
        assert!(!choose(&offer(&with, 300), &without).unwrap().esn);
        assert!(!choose(&offer(&without, 300), &with).unwrap().esn);
        let only_esn = Chosen {
            number: 1,
            spi: 300,
            suite: ALL[0],
            esn: true,
        }
        .answer(300);
        assert_eq!(check_answer(&only_esn, &without), None);
    }

    #[test]
    fn reserved_spis_and_foreign_suites_are_refused() {
        let own = config(&ALL, true);
        assert_eq!(choose(&offer(&own, 255), &own), None);
        assert_eq!(
            choose(
                &offer(&config(&ALL[1..2], true), 300),
                &config(&ALL[..1], true)
            ),
            None
        );
        assert_eq!(check_answer(&offer(&own, 300), &own), None);
    }

    #[test]
    fn a_failure_names_what_was_offered_and_what_is_taken() {
        let (peer, own) = (Identity("node-b".into()), config(&ALL[..1], true));
        let theirs = offer_payloads(&config(&ALL[2..], false), 300);
        let error = accept(&peer, &own, &Heard::read(&theirs).unwrap())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("node-b") && error.contains("ENCR 28") && error.contains("ENCR 20/256"),
            "{error}"
        );
    }

    #[test]
    fn a_silent_change_of_mode_is_refused() {
        let (peer, own) = (Identity("node-b".into()), config(&ALL, true));
        let tunnel = offer_payloads(
            &ChildConfig {
                transport: false,
                ..own.clone()
            },
            300,
        );
        let error = accept(&peer, &own, &Heard::read(&tunnel).unwrap()).unwrap_err();
        assert_eq!(error.notify(), NotifyType::NoProposalChosen);
    }
}
