//! Further CHILD_SAs under an IKE SA (RFC 7296 §1.3.1) and CHILD_SAs per CPU (RFC 9611): which are wanted, who begins, what a
//! peer is granted (docs/ike-children.md).

use std::time::Instant;

use super::Endpoint;
use super::peer::{Peer, check_child};
use super::receive::Received;
use super::rekey::missing;
use super::rekeyed::Refusal;
use crate::child::{self, Agreed, Heard};
use crate::config::{ChildConfig, ChildId, Identity};
use crate::crypto::Kem;
use crate::error::{ConfigError, Failure};
use crate::event::{CloseReason, Role};
use crate::limits;
use crate::sa::{ChildRef, Goodbye, What};
use crate::suite::ChildSuite;
use crate::timers::{Timer, jittered, up_to};
use crate::wire::{NotifyType, Payload};

impl Peer {
    /// The configuration of the CHILD_SAs of this number.
    pub(super) fn child(&self, number: u32) -> Option<&ChildConfig> {
        match number {
            0 => Some(&self.config.child),
            number => self.more.get(&number),
        }
    }

    fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        [0].into_iter().chain(self.more.keys().copied())
    }

    /// How many CHILD_SAs there are to be.
    pub(super) fn kinds(&self) -> usize {
        let configs = self.numbers().filter_map(|number| self.child(number));
        let cpus = configs.map(|config| config.per_cpu.unwrap_or(0) as usize);
        self.more.len() + 1 + cpus.sum::<usize>()
    }

    /// All suites that may have been offered to it.
    pub(super) fn suites(&self) -> impl Iterator<Item = ChildSuite> + '_ {
        let configs = self.numbers().filter_map(|number| self.child(number));
        configs.flat_map(|config| config.suites.iter().copied())
    }
}

impl Endpoint {
    /// Wants a further CHILD_SA with a peer, beside [`crate::PeerConfig::child`], and grants it: made as soon as there is an
    /// IKE SA, and again whenever it ends. `number` is from 1 on and names it in [`ChildId`]; another configuration for a
    /// number that is there takes its place.
    ///
    /// # Errors
    /// What cannot work about it; then nothing changes.
    pub fn add_child(
        &mut self,
        id: &Identity,
        number: u32,
        config: ChildConfig,
        now: Instant,
    ) -> Result<(), ConfigError> {
        self.now = Some(now);
        check_child(id, &config)?;
        let peer = self.peers.get(id);
        let peer = peer.ok_or_else(|| ConfigError::NoPeer(id.clone()))?;
        let known = peer.more.get(&number);
        if number == 0 || (known.is_none() && peer.more.len() >= limits::CHILDREN_MAX) {
            let peer = id.clone();
            return Err(ConfigError::ChildNumber { peer, number });
        }
        if known == Some(&config) {
            return Ok(());
        }
        self.remove_child(id, number, now);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.more.insert(number, config);
        }
        self.newest_sa(id)
            .into_iter()
            .for_each(|spi| self.schedule_children(spi, now));
        Ok(())
    }

    /// Ends the CHILD_SAs of this number: DELETE is sent, `ChildDown` says [`CloseReason::Local`], others stay. Nothing happens
    /// where there are none; number 0 goes with the peer ([`Endpoint::disconnect`]).
    pub fn remove_child(&mut self, id: &Identity, number: u32, now: Instant) {
        self.now = Some(now);
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        if peer.more.remove(&number).is_none() {
            return;
        }
        let orphans = peer
            .orphans
            .extract_if(.., |(_, child)| child.id.number == number);
        let orphans: Vec<ChildRef> = orphans.map(|(_, child)| child).collect();
        let sas = peer.sas.clone();
        for child in orphans {
            self.child_down(id, child, CloseReason::Local);
        }
        for spi in sas {
            let gone = self.children(spi).iter().copied();
            let gone: Vec<ChildRef> = gone.filter(|child| child.id.number == number).collect();
            for child in gone {
                self.delete_child(spi, child, CloseReason::Local, now);
            }
            if self.children(spi).is_empty() {
                self.retire(spi, CloseReason::Local, Some(Goodbye::Plain));
                self.after_loss(id, CloseReason::Local, now);
            }
        }
    }

    /// The configuration for a CHILD_SA. One for a CPU is like its fallback in all (RFC 9611 §3).
    pub(super) fn child_config(&self, spi: u64, id: ChildId) -> Option<ChildConfig> {
        let config = self.configured(spi, id.number)?;
        if id.cpu.is_none() {
            return Some(config);
        }
        let fallback = self.newest_child(spi, ChildId::fallback(id.number))?;
        Some(ChildConfig {
            suites: vec![fallback.suite],
            esn: fallback.esn,
            ..config
        })
    }

    /// The configuration of this number as it is under this IKE SA.
    fn configured(&self, spi: u64, number: u32) -> Option<ChildConfig> {
        let sa = self.sas.get(&spi)?;
        let established = sa.established()?;
        let config = self.peers.get(&established.peer)?.child(number)?;
        Some(config.within(established.mesh, sa.nat.any()))
    }

    /// What was agreed for a CPU is what was agreed for the fallback.
    pub(super) fn check_alike(
        &self,
        spi: u64,
        id: ChildId,
        agreed: &Agreed,
    ) -> Result<(), Failure> {
        let fallback = self.newest_child(spi, ChildId::fallback(id.number));
        let (suite, esn) = (agreed.chosen.suite, agreed.chosen.esn);
        match fallback {
            Some(fallback)
                if id.cpu.is_some() && (suite, esn) != (fallback.suite, fallback.esn) =>
            {
                Err(missing(
                    "suite of the CHILD_SA that it is to be alike (RFC 9611)",
                ))
            }
            None if id.cpu.is_some() => Err(missing("CHILD_SA that it is to be alike (RFC 9611)")),
            _ => Ok(()),
        }
    }

    fn newest_child(&self, spi: u64, id: ChildId) -> Option<&ChildRef> {
        let mut children = self.children(spi).iter().rev();
        children.find(|child| child.id == id)
    }

    pub(super) fn has_child(&self, spi: u64, id: ChildId) -> bool {
        self.newest_child(spi, id).is_some()
    }

    /// So many of one kind that no more are made: replaced ones must go first.
    pub(super) fn has_many(&self, spi: u64, id: ChildId) -> bool {
        let same = self.children(spi).iter().filter(|child| child.id == id);
        same.count() >= limits::CHILDREN_PER_SA
    }

    /// What is configured and neither there nor being made, fallbacks first. Those for CPUs come when their fallback is there
    /// and the peer has said that it can.
    fn missing_children(&self, spi: u64) -> Vec<ChildId> {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        let peer = established.and_then(|sa| Some((sa, self.peers.get(&sa.peer)?)));
        let Some((established, peer)) = peer else {
            return Vec::new();
        };
        let per_cpu = |number| {
            let fallback = self.newest_child(spi, ChildId::fallback(number));
            let cpus = fallback.filter(|child| child.per_cpu);
            let cpus = cpus.and_then(|_| peer.child(number)?.per_cpu).unwrap_or(0);
            (0..cpus).map(move |cpu| ChildId {
                number,
                cpu: Some(cpu),
            })
        };
        let under_way = |id: &ChildId| {
            let rekey = established.rekey.as_ref();
            rekey.is_some_and(|rekey| rekey.what.child() == Some(*id))
        };
        let fallbacks = peer.numbers().map(ChildId::fallback);
        let wanted = fallbacks.chain(peer.numbers().flat_map(per_cpu));
        wanted
            .filter(|id| !self.has_child(spi, *id) && !under_way(id))
            .collect()
    }

    /// Some further CHILD_SA that is in use under an IKE SA before `order`, or without one, and that is still wanted, is not
    /// there under this one, or has not been for long enough: the older one still carries traffic.
    pub(super) fn lacks_children(&self, spi: u64, id: &Identity, order: u64, now: Instant) -> bool {
        let Some(peer) = self.peers.get(id) else {
            return false;
        };
        let established = |spi: &u64| self.sas.get(spi).and_then(|sa| sa.established());
        let is_older = |spi: &&u64| established(spi).is_some_and(|sa| sa.order < order);
        let used = peer.sas.iter().filter(is_older);
        let used = used.flat_map(|spi| self.children(*spi));
        let orphans = peer.orphans.iter().filter(|(age, _)| *age < order);
        let drained = |child: &ChildRef| child.ready.is_some_and(|at| at + limits::DRAIN <= now);
        let is_there = |id: ChildId| {
            let mut children = self.children(spi).iter();
            children.any(|child| child.id == id && drained(child))
        };
        // The first one is what the IKE SA itself is confirmed by.
        let counts = |id: ChildId| id != ChildId::FIRST && peer.child(id.number).is_some();
        let mut used = used
            .chain(orphans.map(|(_, child)| child))
            .map(|child| child.id);
        used.any(|id| counts(id) && !is_there(id))
    }

    /// Sets the time at which each missing CHILD_SA is asked for, if the peer is wanted and `spi` is the IKE SA in use: in a
    /// mesh the lower identity begins, else the initiator of the IKE SA; the other end later, if nothing came.
    pub(super) fn schedule_children(&mut self, spi: u64, now: Instant) {
        let Some(sa) = self.sas.get(&spi) else {
            return;
        };
        let (role, mesh) = (sa.role, sa.established().is_some_and(|sa| sa.mesh));
        let Some(id) = self
            .peer_of(spi)
            .filter(|id| self.newest_sa(id) == Some(spi))
        else {
            return;
        };
        let wanted = self
            .peers
            .get(&id)
            .is_some_and(|peer| peer.wanted.is_some());
        let begins = if mesh {
            self.config.identity < id
        } else {
            role == Role::Initiator
        };
        for child in self.missing_children(spi) {
            let timer = Timer::MakeChild(spi, child);
            if wanted && !self.timers.is_set(&timer) {
                let wait = match begins {
                    true => up_to(limits::START_JITTER, &mut *self.rng),
                    false => jittered(limits::PASSIVE_WAIT, &mut *self.rng),
                };
                self.timers.set(timer, now + wait);
            }
        }
    }

    /// Asks for a further CHILD_SA, if it is still missing.
    pub(super) fn make_child_due(&mut self, spi: u64, id: ChildId, now: Instant) {
        let peer = self
            .peer_of(spi)
            .filter(|id| self.newest_sa(id) == Some(spi));
        let peer = peer.and_then(|id| self.peers.get(&id));
        let wanted = peer.is_some_and(|peer| peer.wanted.is_some());
        if !wanted || !self.missing_children(spi).contains(&id) {
            return;
        }
        if !self.may_rekey(spi) {
            return self.put_off(Timer::MakeChild(spi, id), limits::REKEY_RETRY, now);
        }
        let spi_in = self.fresh_esp_spi();
        let group = self.first_group(spi);
        self.begin_rekey(spi, What::New { id, spi_in }, group, 0, now);
    }

    /// One is made: the next one for a CPU need not wait.
    pub(super) fn make_next_child(&mut self, spi: u64, now: Instant) {
        self.schedule_children(spi, now);
        let soon = |timer: &Timer| {
            let due = self.timers.due(timer);
            due.is_some_and(|at| at <= now + limits::REKEY_RETRY * 2)
        };
        let next = self
            .missing_children(spi)
            .into_iter()
            .find(|id| soon(&Timer::MakeChild(spi, *id)));
        if let Some(id) = next.filter(|_| self.may_rekey(spi)) {
            self.timers.cancel(&Timer::MakeChild(spi, id));
            self.make_child_due(spi, id, now);
        }
    }

    /// The peer refused a further CHILD_SA, for longer than a moment.
    pub(super) fn child_refused(
        &mut self,
        spi: u64,
        id: ChildId,
        notify: NotifyType,
        now: Instant,
    ) {
        let full = notify == NotifyType::TsMaxQueue && id.cpu.is_some();
        let wait = if full {
            limits::MAX_QUEUE_RETRY
        } else {
            limits::CHILD_REFUSED_RETRY
        };
        self.put_off(Timer::MakeChild(spi, id), wait, now);
        // Nor will it take another one of these.
        let alike = |other: &ChildId| other.number == id.number && other.cpu.is_some();
        let missing = self.missing_children(spi).into_iter();
        for other in missing.filter(|other| full && alike(other)) {
            self.put_off(Timer::MakeChild(spi, other), wait, now);
        }
        let path = self.sas.get(&spi).map(|sa| sa.path);
        if let (Some(peer), Some(path), false) = (self.peer_of(spi), path, full) {
            let failure = Failure::ChildRefused {
                peer: peer.clone(),
                number: id.number,
                notify,
            };
            self.handshake_failed(Some(peer), path, failure);
        }
    }

    /// A peer asks for a CHILD_SA that replaces none: the first configured one that fits and is not there.
    pub(super) fn grant_new(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        payloads: &[Payload<'_>],
        kem: Option<Kem>,
    ) -> Result<(), Refusal> {
        let later = || Refusal::new(NotifyType::TemporaryFailure);
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        let established = established.filter(|established| !established.rekeys_ike());
        let established = established.ok_or_else(later)?;
        let heard = Heard::read(payloads)?;
        let (id, agreed) = self.choose_child(spi, &heard)?;
        // Both ends ask at once: the lower identity's request goes on, as with handshakes (docs/ike-initiator.md).
        let first = self.config.identity < established.peer;
        let crosses = established
            .rekey
            .as_ref()
            .is_some_and(|own| match own.what {
                What::New { id: own, .. } => own.number == id.number && first,
                What::Child { id: own, .. } => own == id,
                What::Ike { .. } => true,
            });
        if crosses {
            return Err(later());
        }
        let (peer, first) = (established.peer.clone(), self.awaits_request(spi));
        if first {
            self.check_crossing(&peer, received.now)?;
        }
        self.make_child(spi, received, payloads, (id, None), agreed, kem)?;
        if first {
            self.abandon_crossed(&peer);
            self.schedule_children(spi, received.now);
        }
        Ok(())
    }

    fn choose_child(&self, spi: u64, heard: &Heard<'_>) -> Result<(ChildId, Agreed), Refusal> {
        let peer = self.peer_of(spi).and_then(|id| self.peers.get(&id));
        let peer = peer.ok_or_else(|| missing("peer"))?;
        let who = &peer.config.identity;
        let mut refused = None;
        let mut fits = Vec::new();
        for number in peer.numbers() {
            let Some(config) = self.configured(spi, number) else {
                continue;
            };
            match child::accept(who, &config, heard) {
                Ok(agreed) => fits.push((number, agreed)),
                Err(failure @ Failure::Selectors { .. }) => refused = refused.or(Some(failure)),
                Err(failure) => refused = Some(failure),
            }
        }
        let missing =
            |(number, _): &&(u32, Agreed)| !self.has_child(spi, ChildId::fallback(*number));
        if let Some((number, agreed)) = fits.iter().find(missing) {
            return Ok((ChildId::fallback(*number), agreed.clone()));
        }
        if fits.is_empty() {
            let none = || Refusal::new(NotifyType::NoProposalChosen);
            return Err(refused.map_or_else(none, Refusal::from));
        }
        let mut cpus = fits.into_iter().filter(|(_, agreed)| agreed.per_cpu);
        let free = cpus.find_map(|(number, agreed)| Some((self.free_cpu(spi, number)?, agreed)));
        let full = match heard.resource {
            true => NotifyType::TsMaxQueue,
            false => NotifyType::NoAdditionalSas,
        };
        let (id, agreed) = free.ok_or_else(|| Refusal::new(full))?;
        match self.check_alike(spi, id, &agreed) {
            Ok(()) => Ok((id, agreed)),
            Err(_) => Err(Refusal::new(NotifyType::NoProposalChosen)),
        }
    }

    /// The first CPU without CHILD_SA of this number, where both ends have agreed on several.
    fn free_cpu(&self, spi: u64, number: u32) -> Option<ChildId> {
        let fallback = self.newest_child(spi, ChildId::fallback(number))?;
        let most = self.child_config(spi, fallback.id)?.per_cpu?;
        let mut cpus = (0..most).map(|cpu| ChildId {
            number,
            cpu: Some(cpu),
        });
        cpus.find(|id| fallback.per_cpu && !self.has_child(spi, *id))
    }
}
