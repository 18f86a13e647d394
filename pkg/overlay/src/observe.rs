//! Which of the kernel's routes are ours, and what a restarted agent finds.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use espalier_netlink::{RouteEntry, RouteFilter, Then, packet_route::route::RouteType};
use ipnet::IpNet;

use crate::{
    Error, IPIP_DEVICE, NATIVE_METRIC, Observed, Overlay, PROTOCOL, RoutePath, UNREACHABLE_METRIC,
    VXLAN_DEVICE, devices, policies::Found,
};

/// Table `main`.
const MAIN: u32 = 254;

/// A route of the overlay. Pods' own routes have our `rtm_protocol` too, but lead to other devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) route: RouteEntry,
    pub(crate) through: Through,
}

/// Where an overlay route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Through {
    /// The VXLAN or IP in IP device, or the underlay interface where routing is native.
    Overlay,
    Tun,
    /// It is one of the unreachable routes.
    Nothing,
}

/// The overlay's routes by destination and metric: the kernel keeps one of each.
#[derive(Debug)]
pub(crate) struct Table(HashMap<(IpNet, u32), Own>);

impl Table {
    pub(crate) fn of(own: Vec<Own>) -> Self {
        let key = |o: Own| ((o.route.to, o.route.metric), o);
        Self(own.into_iter().map(key).collect())
    }

    /// What stands in the place of this route.
    pub(crate) fn place(&self, route: &RouteEntry) -> Option<&Own> {
        self.0.get(&(route.to, route.metric))
    }

    /// Exactly this route is there.
    pub(crate) fn has(&self, route: &RouteEntry) -> bool {
        self.place(route).is_some_and(|o| o.route == *route)
    }

    pub(crate) fn all(self) -> impl Iterator<Item = Own> {
        self.0.into_values()
    }
}

impl Overlay {
    /// Reads what there is. A pod CIDR outside of `cluster_cidrs` is left out; with no cluster CIDRs none is.
    ///
    /// # Errors
    /// When the kernel's state cannot be read in full.
    pub fn observe(&mut self, cluster_cidrs: &[IpNet]) -> Result<Observed, Error> {
        let inside =
            |to: &IpNet| cluster_cidrs.is_empty() || cluster_cidrs.iter().any(|c| c.contains(to));
        let found = Found::of(&self.spd.list()?);
        let own = self.own_routes()?;
        let protected = self.protected(&own, &found)?;
        let path = |own: Own| match own.through {
            Through::Overlay if protected.contains(&own.route.to) => {
                Some((own.route.to, RoutePath::Encrypted))
            }
            Through::Overlay => Some((own.route.to, RoutePath::Clear)),
            Through::Tun => Some((own.route.to, RoutePath::Encrypted)),
            Through::Nothing => None,
        };
        let mut paths: BTreeMap<_, _> = own.into_iter().filter_map(path).collect();
        paths.retain(|to, _| inside(to));
        let guard = self.guard_found()?;
        Ok(Observed {
            paths,
            accepting: found.accepting,
            protects: found.protects,
            tunnels: found.tunnels,
            base_block: found.base || guard.is_some(),
            accepting_pods: guard.unwrap_or_default(),
        })
    }

    /// Whose clear packets a guard lets in: nf_tables, or the routing rules that stand in for them.
    fn guard_found(&mut self) -> Result<Option<Vec<IpNet>>, Error> {
        if let Some(accepted) = self.guard.accepts() {
            return Ok(Some(accepted));
        }
        let rules = self.own_rules()?.into_iter();
        let rules = rules.filter(|rule| rule.interface.is_some() && rule.destination.is_some());
        let (refused, accepted): (Vec<_>, Vec<_>) = rules.partition(|r| r.then == Then::Drop);
        let accepted = accepted.into_iter().map(|rule| rule.source);
        Ok((!refused.is_empty()).then(|| accepted.collect()))
    }

    /// Destinations of the routes to hosts for which a policy seals.
    fn protected(&mut self, own: &[Own], found: &Found) -> Result<HashSet<IpNet>, Error> {
        if found.protects.is_empty() {
            return Ok(HashSet::new());
        }
        let hosts = self.hosts_by_gateway()?;
        let seals = |own: &&Own| {
            let RouteEntry { to, via, encap, .. } = &own.route;
            let host = encap.map(|encap| encap.destination.into()).or(*via);
            let host = host.map(|host| *hosts.get(&host).unwrap_or(&host));
            let native = own.route.metric == NATIVE_METRIC;
            match host {
                _ if native => found.sealed.contains(to),
                host => host.is_some_and(|host| found.protects.contains_key(&host)),
            }
        };
        Ok(own.iter().filter(seals).map(|own| own.route.to).collect())
    }

    /// The underlay addresses behind gateways on the VXLAN device.
    fn hosts_by_gateway(&mut self) -> Result<HashMap<IpAddr, IpAddr>, Error> {
        let Some(vxlan) = self.route.link(VXLAN_DEVICE)? else {
            return Ok(HashMap::new());
        };
        let hosts = self.route.fdb(vxlan.index)?.into_iter();
        let hosts: HashMap<_, _> = hosts.map(|entry| (entry.mac, entry.remote)).collect();
        let neighbours = self.route.neighbours(vxlan.index)?.into_iter();
        let host = |n: espalier_netlink::Neighbour| Some((n.ip, *hosts.get(&n.mac?)?));
        Ok(neighbours.filter_map(host).collect())
    }

    /// The overlay's routes.
    pub(crate) fn own_routes(&mut self) -> Result<Vec<Own>, Error> {
        let filter = RouteFilter {
            protocol: Some(PROTOCOL),
            oif: None,
        };
        let routes = self.route.routes(filter)?;
        let mut devices = HashSet::new();
        for name in [VXLAN_DEVICE, IPIP_DEVICE] {
            devices.extend(self.route.link(name)?.map(|l| l.index));
        }
        let mut tuns = Vec::new();
        let mut own = Vec::new();
        for mut route in routes.into_iter().filter(|r| r.table == MAIN) {
            let through = match (route.kind, route.oif) {
                (RouteType::Unreachable, _) if route.metric == UNREACHABLE_METRIC => {
                    // IPv6 says that it is by way of the loopback device.
                    route.oif = None;
                    Through::Nothing
                }
                (RouteType::Unicast, Some(oif)) if devices.contains(&oif) => Through::Overlay,
                (RouteType::Unicast, Some(oif))
                    if route.to.prefix_len() < route.to.max_prefix_len()
                        || route.metric == NATIVE_METRIC =>
                {
                    match self.is_tun(oif, &mut tuns)? {
                        true => Through::Tun,
                        false if route.metric == NATIVE_METRIC => Through::Overlay,
                        false => continue,
                    }
                }
                _ => continue,
            };
            own.push(Own { route, through });
        }
        Ok(own)
    }

    /// Asks once for each interface.
    fn is_tun(&mut self, index: u32, known: &mut Vec<(u32, bool)>) -> Result<bool, Error> {
        if let Some((_, tun)) = known.iter().find(|(i, _)| *i == index) {
            return Ok(*tun);
        }
        let tun = self
            .route
            .link_by_index(index)?
            .as_ref()
            .is_some_and(devices::is_tun);
        known.push((index, tun));
        Ok(tun)
    }
}
