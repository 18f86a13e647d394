//! Desired minus actual, in an order that fails closed.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use espalier_netlink::{
    Action, EXCLUSIVE, Errno, Guard, Link, PLAIN, REPLACE, Route, RouteEntry, Rule, Socket,
    packet_route::{RouteNetlinkMessage as Message, neighbour::NeighbourState},
};
use ipnet::IpNet;

use crate::{
    Applied, Desired, Engine, Error, Framing, PROTOCOL, RoutePath,
    change::Remembered,
    devices::{self, Settings},
    guard::{self, Guarding},
    masquerade::Nat,
    observe::{Own, Table, Through},
    plan::{self, Devices},
    policies::{self, Spd},
};

/// The overlay of the node whose network namespace it was opened in. Every [`Overlay::apply`] reads the kernel's state.
#[derive(Debug)]
pub struct Overlay {
    pub(crate) route: Socket<Route>,
    pub(crate) spd: Spd,
    pub(crate) guard: Guarding,
    pub(crate) nat: Nat,
    settings: Settings,
    /// What the last apply brought about; none after a failure.
    pub(crate) applied: Option<Remembered>,
}

impl Overlay {
    /// Works in the calling thread's network namespace, whichever thread calls later.
    ///
    /// # Errors
    /// When the namespace or a netlink socket cannot be opened.
    pub fn open() -> Result<Self, Error> {
        let path = "/proc/thread-self/ns/net";
        let failed = |source| espalier_netlink::Error::Io {
            what: format!("open {path}"),
            source,
        };
        Self::open_in(File::open(path).map_err(failed)?.into())
    }

    /// Works in the network namespace that `netns` refers to.
    ///
    /// # Errors
    /// When the namespace cannot be entered or a netlink socket cannot be opened.
    pub fn open_in(netns: OwnedFd) -> Result<Self, Error> {
        let failed = |source| espalier_netlink::Error::Io {
            what: "duplicate a descriptor".to_owned(),
            source,
        };
        let route = Socket::open_in(netns.as_fd())?;
        let spd = Spd::new(Some(netns.try_clone().map_err(failed)?));
        let guard = Guarding::new(Some(netns.try_clone().map_err(failed)?));
        let nat = Nat::new(Some(netns.try_clone().map_err(failed)?));
        Ok(Self {
            route,
            spd,
            guard,
            nat,
            settings: Settings {
                netns: Some(netns),
                writes: 0,
            },
            applied: None,
        })
    }

    /// Brings the kernel in line. What closes comes first, what opens after it, removals last; where something cannot be done,
    /// everything that closes is done all the same.
    ///
    /// # Errors
    /// The first failure; the state is then safe, and the next call goes on from it.
    pub fn apply(&mut self, desired: &Desired) -> Result<Applied, Error> {
        self.applied = None;
        let before = self.writes();
        let underlay = self.route.link_by_address(desired.local)?;
        let guard = guard::wanted(desired, underlay.as_ref().map(|link| link.name.as_str()));
        let (rules, guard_note) = match self.guard_by(guard.as_ref(), underlay.as_ref()) {
            Ok(guarded) => guarded,
            Err(e) => {
                // Policies close what it would have told apart.
                self.bring(&desired.without_engine(), underlay.as_ref(), &[])?;
                return Err(e);
            }
        };
        let (devices, pod_mtu, note) = self.bring(desired, underlay.as_ref(), &rules)?;
        let left = guard.is_none().then(|| self.guard.leave()).flatten();
        let notes: Vec<String> = guard_note.into_iter().chain(left).chain(note).collect();
        let done = Applied {
            writes: self.writes() - before,
            pod_mtu,
            note: (!notes.is_empty()).then(|| notes.join("; ")),
        };
        self.applied = Some(Remembered::new(desired, devices, guard, &done));
        Ok(done)
    }

    /// All but the guard, beside which these routing rules stand. Gives the pod MTU, and a note.
    fn bring(
        &mut self,
        desired: &Desired,
        underlay: Option<&Link>,
        beside: &[Rule],
    ) -> Result<(Devices, u32, Option<String>), Error> {
        let refused = self.refuse(desired);
        // Before the routes: of a connection the first packet decides.
        let note = self.nat.settle(desired);
        let has_policies = self.spd.exists().unwrap_or(true);
        let mut wanted = policies::wanted(desired, underlay.map(|link| link.index));
        // Without policies routing rules close the way to external networks.
        wanted.retain(|policy| has_policies || !policies::is_external(policy));
        let mut stale = match self.spd.install(&wanted) {
            Ok(stale) => stale,
            Err(e) => {
                self.close_routes(desired)?;
                self.withdraw(desired, false)?;
                return Err(e);
            }
        };
        if !desired.deny_clear {
            // What no route may wait for; policies that protect stay until nothing is sent by them.
            let (blocks, others) = stale
                .into_iter()
                .partition(|p| p.policy.action == Action::Block);
            self.spd.remove(blocks, false)?;
            stale = others;
        }
        let mut rules = plan::bare_rules(desired, underlay);
        rules.extend_from_slice(beside);
        if !has_policies {
            rules.extend(plan::external_rules(desired));
        }
        let bare = self.rules(&rules);
        let opened = self.paths(desired, underlay);
        if opened.is_err() {
            self.withdraw(desired, true)?;
        }
        let closed = self.spd.remove(stale, desired.deny_clear);
        refused?;
        bare?;
        let (devices, pod_mtu) = opened?;
        closed?;
        self.drop_refusals(desired)?;
        devices::drop_others(&mut self.route, desired.framing)?;
        Ok((devices, pod_mtu, note))
    }

    pub(crate) fn writes(&self) -> usize {
        let tables = self.guard.writes() + self.nat.writes();
        self.route.writes() + self.spd.writes() + tables + self.settings.writes
    }

    /// The unreachable routes under everything.
    fn refuse(&mut self, desired: &Desired) -> Result<(), Error> {
        let own = Table::of(self.own_routes()?);
        let missing = plan::refusals(desired).into_iter();
        let missing = missing.filter(|r| !own.has(r)).collect();
        self.put_routes(&own, missing)
    }

    fn drop_refusals(&mut self, desired: &Desired) -> Result<(), Error> {
        let wanted = plan::refusals(desired);
        let own = self.own_routes()?;
        let stale = own
            .into_iter()
            .filter(|o| o.through == Through::Nothing && !wanted.contains(&o.route));
        self.del_routes(stale.map(|o| o.route).collect())
    }

    /// Puts the guard there before anything is opened. Gives the routing rules that stand beside it, and a note where they stand alone.
    fn guard_by(
        &mut self,
        guard: Option<&Guard>,
        underlay: Option<&Link>,
    ) -> Result<(Vec<Rule>, Option<String>), Error> {
        let Some(guard) = guard else {
            return Ok((Vec::new(), None));
        };
        let tables = self.guard.put(guard)?;
        let rules = guard::rules(guard, underlay, tables);
        let there = self.own_rules()?;
        self.add_rules(&rules, &there)?;
        Ok((rules, (!tables).then(guard::note)))
    }

    fn add_rules(&mut self, wanted: &[Rule], there: &[Rule]) -> Result<(), Error> {
        for rule in wanted.iter().filter(|rule| !there.contains(rule)) {
            self.route
                .add_rule(rule)
                .map_err(|source| Error::CannotRefuse { source })?;
        }
        Ok(())
    }

    /// These are there, and no others of ours: policies cannot tell where a forwarded packet came in, rules can.
    fn rules(&mut self, wanted: &[Rule]) -> Result<(), Error> {
        let there = self.own_rules()?;
        self.add_rules(wanted, &there)?;
        let stale = there.into_iter().filter(|rule| !wanted.contains(rule));
        self.del_rules(stale.collect())
    }

    pub(crate) fn own_rules(&mut self) -> Result<Vec<Rule>, Error> {
        let mut rules = self.route.rules()?;
        rules.retain(|rule| rule.protocol == PROTOCOL);
        Ok(rules)
    }

    pub(crate) fn del_rules(&mut self, rules: Vec<Rule>) -> Result<(), Error> {
        for rule in rules {
            match self.route.del_rule(&rule) {
                Err(e) if e.errno() == Some(Errno::ENOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Devices, then what hangs on them, then the routes. Gives the pod MTU.
    fn paths(
        &mut self,
        desired: &Desired,
        underlay: Option<&Link>,
    ) -> Result<(Devices, u32), Error> {
        self.close_routes(desired)?;
        if let Some(unsupported) = plan::unsupported(desired) {
            return Err(unsupported);
        }
        let underlay = underlay.ok_or(Error::NoUnderlay {
            address: desired.local,
        })?;
        let mtu = devices::pod_mtu(desired, underlay)?;
        self.settings.forwarding(desired, underlay)?;
        let tun = devices::tun(&mut self.route, &mut self.settings, desired, mtu)?;
        let overlay = devices::overlay(&mut self.route, &mut self.settings, desired, mtu)?;
        let devices = Devices {
            overlay,
            underlay: underlay.index,
            tun,
        };
        self.add_addresses(desired, devices)?;
        let mut stale = Vec::new();
        if desired.framing == Framing::Vxlan {
            self.forwarding_entries(desired, overlay)?;
            stale = self.add_neighbours(desired, overlay)?;
        }
        self.open_routes(desired, devices)?;
        self.delete(stale)?;
        self.drop_addresses(desired, devices)?;
        Ok((devices, mtu))
    }

    /// Removes the routes of pod CIDRs that are to have none: of peers that are blocked, gone, or cannot be encrypted.
    fn close_routes(&mut self, desired: &Desired) -> Result<(), Error> {
        let tun = devices::find_tun(&mut self.route, desired)?.is_some();
        let mut wanted = plan::paths(desired);
        wanted.retain(|to, peer| plan::path(desired, peer, to, tun) != RoutePath::Blocked);
        let own = self.own_routes()?;
        let closed = own
            .into_iter()
            .filter(|o| o.through != Through::Nothing && !wanted.contains_key(&o.route.to));
        self.del_routes(closed.map(|o| o.route).collect())
    }

    /// One message for each path that changes: a new route, or one put in the place of the old one.
    fn open_routes(&mut self, desired: &Desired, devices: Devices) -> Result<(), Error> {
        let own = Table::of(self.own_routes()?);
        let wanted = plan::routes(desired, devices);
        let metrics: HashMap<IpNet, u32> = wanted.iter().map(|w| (w.to, w.metric)).collect();
        let changed = wanted.into_iter().filter(|r| !own.has(r)).collect();
        self.put_routes(&own, changed)?;
        let double = |o: &Own| {
            let metric = metrics.get(&o.route.to);
            o.through != Through::Nothing && metric.is_some_and(|m| *m != o.route.metric)
        };
        self.del_routes(own.all().filter(double).map(|o| o.route).collect())
    }

    /// After a failure: no route stays by which packets leave in clear that should not: all but those of clear peers, and of
    /// those that policies seal for (`sealed`: the policies are in force).
    fn withdraw(&mut self, desired: &Desired, sealed: bool) -> Result<(), Error> {
        let mut kept = plan::paths(desired);
        let sealed = sealed && desired.engine == Engine::Kernel;
        kept.retain(|to, peer| match plan::path(desired, peer, to, false) {
            RoutePath::Clear => true,
            RoutePath::Encrypted => sealed,
            RoutePath::Blocked => false,
        });
        let own = self.own_routes()?;
        let wrong = own
            .into_iter()
            .filter(|o| o.through == Through::Overlay && !kept.contains_key(&o.route.to));
        self.del_routes(wrong.map(|o| o.route).collect())
    }

    /// Replaces only what is ours: where we have no route in a place, somebody else's there is an error.
    pub(crate) fn put_routes(&mut self, own: &Table, routes: Vec<RouteEntry>) -> Result<(), Error> {
        if routes.is_empty() {
            return Ok(());
        }
        let flags = |r: &RouteEntry| match own.place(r) {
            Some(_) => REPLACE,
            None => EXCLUSIVE,
        };
        let requests = routes
            .iter()
            .map(|r| (Message::NewRoute(r.message()), flags(r)));
        let results = self.route.batch(requests)?;
        for (route, result) in routes.iter().zip(results) {
            result.map_err(|e| match e.is_exists() {
                true => Error::ForeignRoute {
                    to: route.to,
                    metric: route.metric,
                },
                false => e.into(),
            })?;
        }
        Ok(())
    }

    pub(crate) fn del_routes(&mut self, routes: Vec<RouteEntry>) -> Result<(), Error> {
        self.delete(
            routes
                .iter()
                .map(|r| Message::DelRoute(r.message()))
                .collect(),
        )
    }

    /// Removes; what is gone already is fine.
    fn delete(&mut self, messages: Vec<Message>) -> Result<(), Error> {
        if messages.is_empty() {
            return Ok(());
        }
        for result in self.route.batch(messages.into_iter().map(|m| (m, PLAIN)))? {
            result.or_else(|e| if e.is_missing() { Ok(()) } else { Err(e) })?;
        }
        Ok(())
    }

    fn replace(&mut self, messages: Vec<Message>) -> Result<(), Error> {
        if messages.is_empty() {
            return Ok(());
        }
        self.route
            .batch(messages.into_iter().map(|m| (m, REPLACE)))?
            .into_iter()
            .collect::<Result<(), _>>()?;
        Ok(())
    }

    fn add_addresses(&mut self, desired: &Desired, devices: Devices) -> Result<(), Error> {
        for (device, wanted) in plan::addresses(desired, devices) {
            let there = self.route.addresses(Some(device))?;
            for address in wanted {
                if !there.iter().any(|a| a.address == address) {
                    self.route.add_address(device, address)?;
                }
            }
        }
        Ok(())
    }

    /// After the routes: a route goes with the address that is its source.
    fn drop_addresses(&mut self, desired: &Desired, devices: Devices) -> Result<(), Error> {
        for (device, wanted) in plan::addresses(desired, devices) {
            for found in self.route.addresses(Some(device))? {
                if !wanted.contains(&found.address) {
                    match self.route.del_address(device, found.address) {
                        Err(e) if e.errno() == Some(Errno::EADDRNOTAVAIL) => {}
                        other => other?,
                    }
                }
            }
        }
        Ok(())
    }

    fn forwarding_entries(&mut self, desired: &Desired, vxlan: u32) -> Result<(), Error> {
        let (wanted, there) = (plan::fdb(desired, vxlan), self.route.fdb(vxlan)?);
        let (wanted, there): (HashSet<_>, HashSet<_>) =
            (wanted.into_iter().collect(), there.into_iter().collect());
        let add = wanted
            .difference(&there)
            .map(|w| Message::NewNeighbour(w.message()));
        self.replace(add.collect())?;
        // Replacing a remote address has removed the old one.
        let mut entries = HashMap::<_, usize>::new();
        there
            .iter()
            .for_each(|t| *entries.entry(t.mac).or_default() += 1);
        let macs: HashSet<_> = wanted.iter().map(|w| w.mac).collect();
        let kept = |mac: [u8; 6]| macs.contains(&mac) && entries.get(&mac) == Some(&1);
        let stale = there.difference(&wanted).filter(|t| !kept(t.mac));
        self.delete(stale.map(|t| Message::DelNeighbour(t.message())).collect())
    }

    /// Gives what removes those that should not be there, once no route leads to them any more.
    fn add_neighbours(&mut self, desired: &Desired, vxlan: u32) -> Result<Vec<Message>, Error> {
        let (wanted, there) = (
            plan::neighbours(desired, vxlan),
            self.route.neighbours(vxlan)?,
        );
        let by_ip: HashMap<_, _> = there.iter().map(|t| (t.ip, t)).collect();
        let add = wanted
            .iter()
            .filter(|w| by_ip.get(&w.ip).is_none_or(|t| t != w))
            .map(|w| Message::NewNeighbour(w.message()));
        self.replace(add.collect())?;
        let ips: HashSet<_> = wanted.iter().map(|w| w.ip).collect();
        let stale = there
            .iter()
            .filter(|t| t.state == NeighbourState::Permanent && !ips.contains(&t.ip));
        Ok(stale.map(|t| Message::DelNeighbour(t.message())).collect())
    }
}
