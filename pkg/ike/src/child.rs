//! CHILD_SAs: what is offered, chosen and agreed (RFC 7296 §1.3.1, §2.9, §2.17, §3.3), and its keys.

mod proposal;
pub(crate) mod select;

pub(crate) use proposal::{answer_exchanges, choose_group, offer_exchanges};

use proposal::{Chosen, check_answer, choose, count, ids, offer};

use crate::config::{
    ChildConfig, ChildId, Encapsulations, Identity, IkePolicy, TrafficSelector, Volume,
};
use crate::crypto::{CryptoError, Kem, KexGroup, Nonces, Secrets, SkD, child_keymat};
use crate::error::Failure;
use crate::event::{ChildKeys, ChildSa, Encapsulation, Role};
use crate::sa::init::describe;
use crate::sa::notify;
use crate::wire::{
    Notify, NotifyType, Payload, Proposal, Sa, TrafficSelectors, Transform, TransformType,
};

/// What the payloads of one side of IKE_AUTH say about the first CHILD_SA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard<'a> {
    sa: &'a Sa,
    ts_i: &'a [TrafficSelector],
    ts_r: &'a [TrafficSelector],
    transport: bool,
    /// SA_RESOURCE_INFO was there: several CHILD_SAs of the kind are possible (RFC 9611).
    pub(crate) resource: bool,
    /// ESPALIER_ENCAPSULATION.
    encapsulations: Option<Encapsulations>,
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
            resource: notify(payloads, NotifyType::SaResourceInfo).is_some(),
            encapsulations: notify(payloads, NotifyType::EspalierEncapsulation)
                .map(|data| Encapsulations::from_byte(data.first().copied().unwrap_or(0))),
        })
    }
}

/// An agreement without keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) chosen: Chosen,
    pub(crate) transport: bool,
    /// Both ends said SA_RESOURCE_INFO.
    pub(crate) per_cpu: bool,
    pub(crate) encapsulation: Option<Encapsulation>,
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
        per_cpu: heard.resource && wants_per_cpu(config),
        encapsulation: choose_encapsulation(peer, config, heard)?,
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
        per_cpu: heard.resource && wants_per_cpu(config),
        encapsulation: check_encapsulation(peer, config, heard)?,
        local_ts,
        remote_ts,
    })
}

/// The key exchanges that an initiator offered in CREATE_CHILD_SA.
pub(crate) struct Exchanges<'a> {
    pub(crate) policy: &'a IkePolicy,
    /// The method of its KE payload.
    pub(crate) group: KexGroup,
    /// To do without was not offered.
    pub(crate) required: bool,
    /// The additional one that has taken place.
    pub(crate) kem: Option<Kem>,
}

/// As initiator of a rekey: whether the answer is one to our offer, and whether it has a key exchange.
pub(crate) fn check_rekey(
    peer: &Identity,
    config: &ChildConfig,
    heard: &Heard<'_>,
    exchanges: &Exchanges<'_>,
) -> Result<(Agreed, bool), Failure> {
    let refused = || no_proposal(peer, heard.sa, config);
    let mut sa = heard.sa.clone();
    let proposal = sa.proposals.first_mut().ok_or_else(refused)?;
    // Each proposal was offered once for each way (see `offer_exchanges`).
    let (at, count) = (usize::from(proposal.number).wrapping_sub(1), count(config));
    let way = at.checked_div(count);
    let way = way.and_then(|way| exchanges.policy.post_quantum.ways().get(way));
    let kems: Vec<u16> = exchanges.kem.iter().map(|kem| kem.transform_id()).collect();
    let with_kem = exchanges.kem.is_some();
    if way != Some(&with_kem) || ids(proposal, TransformType::AddKe1) != kems {
        return Err(refused());
    }
    let with_ke = match ids(proposal, TransformType::Ke).as_slice() {
        [] | [0] if !exchanges.required && !with_kem => false,
        [id] if *id == exchanges.group.transform_id() => true,
        _ => return Err(refused()),
    };
    proposal.number = u8::try_from(at % count + 1).map_err(|_| refused())?;
    proposal
        .transforms
        .retain(|transform| !matches!(transform.kind, TransformType::Ke | TransformType::AddKe1));
    let agreed = check(peer, config, &Heard { sa: &sa, ..*heard })?;
    Ok((agreed, with_ke))
}

/// What of a request can be granted with an additional key exchange: the proposals with the first of `kems` that one of
/// them has, as they would be without it.
pub(crate) fn with_kem<'a>(
    payloads: &[Payload<'a>],
    kems: &[Kem],
) -> Option<(Vec<Payload<'a>>, Kem)> {
    let mut payloads = payloads.to_vec();
    let sa = payloads.iter_mut().find_map(|payload| match payload {
        Payload::Sa(sa) => Some(sa),
        _ => None,
    })?;
    let has = |proposal: &Proposal, kem: Kem| {
        ids(proposal, TransformType::AddKe1).contains(&kem.transform_id())
    };
    let mut ours = kems.iter().copied();
    let kem = ours.find(|kem| sa.proposals.iter().any(|p| has(p, *kem)))?;
    sa.proposals.retain(|proposal| has(proposal, kem));
    for proposal in &mut sa.proposals {
        let is_kem = |transform: &Transform| transform.kind == TransformType::AddKe1;
        proposal.transforms.retain(|transform| !is_kem(transform));
    }
    Some((payloads, kem))
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

/// Raw where both may, else UDP; nothing where either end does not speak of it.
fn choose_encapsulation(
    peer: &Identity,
    config: &ChildConfig,
    heard: &Heard<'_>,
) -> Result<Option<Encapsulation>, Failure> {
    let Some((ours, theirs)) = config.encapsulations.zip(heard.encapsulations) else {
        return Ok(None);
    };
    match ours.and(theirs) {
        Encapsulations { raw: true, .. } => Ok(Some(Encapsulation::Raw)),
        Encapsulations { udp: true, .. } => Ok(Some(Encapsulation::Udp)),
        _ => Err(no_encapsulation(peer, ours, theirs)),
    }
}

/// The answer is one, and one that was offered.
fn check_encapsulation(
    peer: &Identity,
    config: &ChildConfig,
    heard: &Heard<'_>,
) -> Result<Option<Encapsulation>, Failure> {
    let Some((ours, theirs)) = config.encapsulations.zip(heard.encapsulations) else {
        return Ok(None);
    };
    match (theirs.raw, theirs.udp) {
        (true, false) if ours.raw => Ok(Some(Encapsulation::Raw)),
        (false, true) if ours.udp => Ok(Some(Encapsulation::Udp)),
        _ => Err(no_encapsulation(peer, ours, theirs)),
    }
}

fn no_encapsulation(peer: &Identity, ours: Encapsulations, theirs: Encapsulations) -> Failure {
    Failure::Encapsulation {
        peer: peer.clone(),
        ours,
        theirs,
    }
}

/// ESPALIER_ENCAPSULATION, with `data` by number: a payload borrows what it carries.
fn encapsulation(said: Encapsulations) -> Payload<'static> {
    const BYTES: [[u8; 1]; 4] = [[0], [1], [2], [3]];
    let data = BYTES
        .get(usize::from(said.to_byte()))
        .map_or(&[][..], |byte| byte);
    Payload::Notify(Notify::new(NotifyType::EspalierEncapsulation, data))
}

impl Agreed {
    /// Keys it. `role` is this side's in the exchange, `spi_in` this side's SPI.
    pub(crate) fn key(
        self,
        id: ChildId,
        spi_in: u32,
        role: Role,
        sk_d: &SkD,
        nonces: Nonces<'_>,
        secrets: Secrets<'_>,
    ) -> Result<ChildSa, CryptoError> {
        let suite = self.chosen.suite;
        let keymat = child_keymat(sk_d, nonces, secrets, suite)?;
        let (keys_in, keys_out) = keymat.for_role(role);
        Ok(ChildSa {
            id,
            per_cpu: self.per_cpu && id.cpu.is_none(),
            spi_in,
            spi_out: self.chosen.spi,
            suite,
            esn: self.chosen.esn,
            transport: self.transport,
            keys_in: ChildKeys::split(&keys_in, suite),
            keys_out: ChildKeys::split(&keys_out, suite),
            local_ts: self.local_ts,
            remote_ts: self.remote_ts,
            role,
            encapsulation: self.encapsulation,
            udp_encapsulation: None,
            volume: Volume::UNLIMITED,
        })
    }

    /// The responder's payloads for it.
    pub(crate) fn payloads(&self, spi_in: u32) -> Vec<Payload<'static>> {
        let sa = self.chosen.answer(spi_in);
        let mut payloads = payloads(
            sa,
            self.remote_ts.clone(),
            self.local_ts.clone(),
            self.transport,
        );
        payloads.extend(self.per_cpu.then_some(resource_info(&[])));
        let said = self.encapsulation.map(|chosen| Encapsulations {
            raw: chosen == Encapsulation::Raw,
            udp: chosen == Encapsulation::Udp,
        });
        payloads.extend(said.map(encapsulation));
        payloads
    }
}

/// The initiator's payloads. For the fallback the CPU is left open; [`resource_info`] of another is added by the caller.
pub(crate) fn offer_payloads(
    config: &ChildConfig,
    id: ChildId,
    spi_in: u32,
) -> Vec<Payload<'static>> {
    let sa = offer(config, spi_in);
    let mut payloads = payloads(
        sa,
        config.local_ts.clone(),
        config.remote_ts.clone(),
        config.transport,
    );
    let open = wants_per_cpu(config) && id.cpu.is_none();
    payloads.extend(open.then_some(resource_info(&[])));
    payloads.extend(config.encapsulations.map(encapsulation));
    payloads
}

/// SA_RESOURCE_INFO (RFC 9611 §5.1). Its data are the sender's own and mean nothing to the other end.
pub(crate) fn resource_info(data: &[u8]) -> Payload<'_> {
    Payload::Notify(Notify::new(NotifyType::SaResourceInfo, data))
}

fn wants_per_cpu(config: &ChildConfig) -> bool {
    config.per_cpu.is_some_and(|most| most > 0)
}

fn payloads(
    sa: Sa,
    ts_i: Vec<TrafficSelector>,
    ts_r: Vec<TrafficSelector>,
    transport: bool,
) -> Vec<Payload<'static>> {
    let mode = Notify::new(NotifyType::UseTransportMode, &[]);
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
mod tests;
