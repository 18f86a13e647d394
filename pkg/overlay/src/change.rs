//! What differs from what was applied last, without reading the kernel's state.

use std::collections::{BTreeMap, HashMap};

use espalier_netlink::{Action, Guard, Policy, RouteEntry};
use ipnet::IpNet;
use tracing::debug;

use crate::{
    Applied, Desired, Error, Overlay, PeerRoute, guard,
    observe::{Own, Table, Through},
    plan::{self, Devices},
    policies::{Put, in_order, of_peer},
};

/// What the last apply brought about.
#[derive(Debug)]
pub(crate) struct Remembered {
    desired: Desired,
    devices: Devices,
    guard: Option<Guard>,
    pod_mtu: u32,
    note: Option<String>,
    /// Each peer's objects depend on it alone.
    distinct: bool,
}

impl Remembered {
    pub(crate) fn new(
        desired: &Desired,
        devices: Devices,
        guard: Option<Guard>,
        done: &Applied,
    ) -> Self {
        Self {
            desired: desired.clone(),
            devices,
            guard,
            pod_mtu: done.pod_mtu,
            note: done.note.clone(),
            distinct: plan::owners(desired).distinct,
        }
    }

    /// The peers whose states or paths differ; `None` when anything else does.
    fn changes<'a>(&self, desired: &'a Desired) -> Option<Vec<(&'a String, &'a PeerRoute)>> {
        let old = &self.desired;
        let same = self.distinct
            && old.local == desired.local
            && old.vtep == desired.vtep
            && old.framing == desired.framing
            && old.gateways == desired.gateways
            && old.pod_cidrs == desired.pod_cidrs
            && old.cluster_cidrs == desired.cluster_cidrs
            && old.engine == desired.engine
            && old.deny_clear == desired.deny_clear
            && old.externals == desired.externals
            && old.masquerade == desired.masquerade
            && old.peers.len() == desired.peers.len();
        if !same {
            return None;
        }
        let mut changed = Vec::new();
        for ((old_name, old), (name, new)) in old.peers.iter().zip(&desired.peers) {
            let same = old_name == name
                && old.remote == new.remote
                && old.mac == new.mac
                && old.pod_cidrs == new.pod_cidrs;
            if !same {
                return None;
            }
            if old != new {
                changed.push((name, new));
            }
        }
        Some(changed)
    }
}

/// The objects of the peers that changed, and what is to be done about them.
#[derive(Debug, Default)]
struct Difference {
    put: Vec<(Policy, Put)>,
    stale: Vec<Policy>,
    there: Vec<Own>,
    close: Vec<RouteEntry>,
    open: Vec<RouteEntry>,
}

impl Difference {
    fn of(remembered: &Remembered, changed: &[(&String, &PeerRoute)]) -> Self {
        let mut all = Self::default();
        for (name, new) in changed {
            if let Some(old) = remembered.desired.peers.get(*name) {
                all.policies(remembered, old, new);
                all.routes(remembered, old, new);
            }
        }
        // As in a full apply: what allows before what blocks.
        let mut order: Vec<_> = all.put.iter().map(|(policy, _)| *policy).collect();
        in_order(&mut order);
        let put: HashMap<_, _> = all.put.into_iter().collect();
        all.put = order.into_iter().map(|p| (p, put[&p])).collect();
        all
    }

    fn policies(&mut self, remembered: &Remembered, old: &PeerRoute, new: &PeerRoute) {
        let pods: Vec<IpNet> = new.pod_cidrs.iter().map(IpNet::trunc).collect();
        let underlay = Some(remembered.devices.underlay);
        let of = |peer| of_peer(&remembered.desired, peer, &pods, underlay);
        let mut before: BTreeMap<_, _> = of(old).into_iter().map(|p| (p.place(), p)).collect();
        for policy in of(new) {
            match before.remove(&policy.place()) {
                Some(old) if old == policy => {}
                Some(_) => self.put.push((policy, Put::Over)),
                None => self.put.push((policy, Put::New)),
            }
        }
        self.stale.extend(before.into_values());
    }

    fn routes(&mut self, remembered: &Remembered, old: &PeerRoute, new: &PeerRoute) {
        let route = |peer, to| plan::route(&remembered.desired, peer, to, remembered.devices);
        for to in new.pod_cidrs.iter().map(IpNet::trunc) {
            let (before, after) = (route(old, to), route(new, to));
            if before == after {
                continue;
            }
            if after.is_none() {
                self.close.extend(before.clone());
            }
            let double = before.clone().zip(after.as_ref());
            let moved = double.filter(|(before, after)| before.metric != after.metric);
            self.close.extend(moved.map(|(before, _)| before));
            self.there.extend(before.map(|route| Own {
                route,
                through: Through::Overlay,
            }));
            self.open.extend(after);
        }
    }
}

impl Overlay {
    /// Brings the kernel in line as [`Overlay::apply`] does, but where only paths and states of peers differ from what was
    /// applied last, it writes just that and reads nothing: a new outbound state is one message, however many peers there are.
    /// (With native routing by a TUN, other peers whose clear packets are accepted are a table of nf_tables, written anew.)
    /// What others have changed meanwhile stays as it is until the next [`Overlay::apply`], which must follow at start, from
    /// time to time, and after events were lost. Anything else that differs, and any failure, makes this an apply.
    ///
    /// # Errors
    /// As [`Overlay::apply`].
    pub fn apply_changes(&mut self, desired: &Desired) -> Result<Applied, Error> {
        let before = self.writes();
        let Some(mut remembered) = self.applied.take() else {
            return self.apply(desired);
        };
        let Some(changed) = remembered.changes(desired) else {
            return self.apply(desired);
        };
        let difference = Difference::of(&remembered, &changed);
        if !self.put_guard(&mut remembered.guard, desired) {
            return self.apply(desired);
        }
        if let Err(e) = self.carry_out(difference, desired.deny_clear) {
            debug!(error = %e, "writing the differences failed; reading all");
            let done = self.apply(desired)?;
            return Ok(Applied {
                writes: self.writes() - before,
                ..done
            });
        }
        for (name, peer) in changed {
            remembered.desired.peers.insert(name.clone(), peer.clone());
        }
        let (pod_mtu, note) = (remembered.pod_mtu, remembered.note.clone());
        self.applied = Some(remembered);
        Ok(Applied {
            writes: self.writes() - before,
            pod_mtu,
            note,
        })
    }

    /// False: routing rules have to change with it, or it was refused.
    fn put_guard(&mut self, there: &mut Option<Guard>, desired: &Desired) -> bool {
        let Some(old) = there else { return true };
        let Some(new) = guard::wanted(desired, old.underlay.as_deref()) else {
            return false;
        };
        if *old == new {
            return true;
        }
        let same_rules = old.accepted.is_empty() == new.accepted.is_empty();
        let put = same_rules && self.guard.put(&new).unwrap_or(false);
        *old = new;
        put
    }

    /// In the order of a full apply.
    fn carry_out(&mut self, difference: Difference, deny_clear: bool) -> Result<(), Error> {
        let Difference {
            put,
            stale,
            there,
            close,
            open,
        } = difference;
        self.spd
            .put(put.iter().map(|(policy, put)| (policy, *put)))?;
        let (blocks, others): (Vec<_>, Vec<_>) = stale
            .into_iter()
            .partition(|p| !deny_clear && p.action == Action::Block);
        self.del_routes(close)?;
        self.spd.remove_exactly(&blocks, false)?;
        self.put_routes(&Table::of(there), open)?;
        self.spd.remove_exactly(&others, deny_clear)
    }
}
