use std::fmt;

use espalier_netlink::{Link, Neighbour, Route, RouteEntry, RouteFilter, Socket};
use ipnet::IpNet;

use crate::error::At;
use crate::netns::PodNetns;
use crate::setup::{host_route, pod_routes};
use crate::{Error, PodSpec};

/// Compares a pod's interface with what [`crate::setup`] makes. The result names every difference; none: all is well.
///
/// # Errors
/// The namespace cannot be entered, or the kernel does not answer.
pub fn check(spec: &PodSpec) -> Result<Vec<String>, Error> {
    check_with(spec, &Allowance::default())
}

/// What a later plugin of the chain may have changed since [`crate::setup`]. Default: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Both ends may have any MTU.
    pub any_mtu: bool,
    /// The pod's end has this MAC now.
    pub pod_mac: Option<[u8; 6]>,
    /// Of the pod's routes only those to these destinations are still to be there.
    pub pod_routes: Option<Vec<IpNet>>,
}

/// [`check`], but for what a later plugin may have changed.
///
/// # Errors
/// As [`check`].
pub fn check_with(spec: &PodSpec, allowed: &Allowance) -> Result<Vec<String>, Error> {
    spec.validate()?;
    let netns = PodNetns::open(&spec.netns)?;
    let (host_mac, own_mac) = spec.macs();
    let pod_mac = allowed.pod_mac.unwrap_or(own_mac);
    let host = Side {
        place: Place::Host,
        name: spec.host_name(),
        mac: host_mac,
        other: pod_mac,
        allowed,
    };
    let pod = Side {
        place: Place::Pod,
        name: spec.ifname.clone(),
        mac: pod_mac,
        other: host_mac,
        allowed,
    };
    let mut differences = host.compare(spec)?;
    differences.extend(netns.run(|| pod.compare(spec))?);
    Ok(differences)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Host,
    Pod,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Pod => "pod",
        })
    }
}

/// One end, seen from its own namespace.
struct Side<'a> {
    place: Place,
    name: String,
    mac: [u8; 6],
    other: [u8; 6],
    allowed: &'a Allowance,
}

impl Side<'_> {
    fn compare(&self, spec: &PodSpec) -> Result<Vec<String>, Error> {
        let mut socket = Socket::<Route>::open().at_step("open netlink")?;
        let Some(link) = socket.link(&self.name).at_step("look for the interface")? else {
            return Ok(vec![format!(
                "{}: interface {} is missing",
                self.place, self.name
            )]);
        };
        let mut found = self.compare_link(spec, &link);
        found.extend(self.compare_neighbours(spec, &mut socket, link.index)?);
        found.extend(self.compare_routes(spec, &mut socket, link.index)?);
        if self.place == Place::Pod {
            found.extend(self.compare_addresses(spec, &mut socket, link.index)?);
        }
        Ok(found)
    }

    fn compare_link(&self, spec: &PodSpec, link: &Link) -> Vec<String> {
        let (place, name) = (self.place, &self.name);
        let mut found = Vec::new();
        if !link.up {
            found.push(format!("{place}: interface {name} is down"));
        }
        if link.mtu != spec.mtu && !self.allowed.any_mtu {
            found.push(format!(
                "{place}: interface {name} has MTU {}: expected {}",
                link.mtu, spec.mtu
            ));
        }
        if link.mac != Some(self.mac) {
            found.push(format!(
                "{place}: interface {name} has another MAC than ADD gave it"
            ));
        }
        found
    }

    fn compare_addresses(
        &self,
        spec: &PodSpec,
        socket: &mut Socket<Route>,
        index: u32,
    ) -> Result<Vec<String>, Error> {
        let there = socket.addresses(Some(index)).at_step("list addresses")?;
        let expected = spec.addresses.iter().map(|a| a.host_net());
        let missing = expected.filter(|net| !there.iter().any(|a| a.address == *net));
        Ok(missing
            .map(|net| format!("{}: address {net} is missing on {}", self.place, self.name))
            .collect())
    }

    fn compare_neighbours(
        &self,
        spec: &PodSpec,
        socket: &mut Socket<Route>,
        index: u32,
    ) -> Result<Vec<String>, Error> {
        let there = socket.neighbours(index).at_step("list neighbours")?;
        let ip = |a: &crate::PodAddress| {
            if self.place == Place::Pod {
                a.gateway
            } else {
                a.address
            }
        };
        let expected = spec
            .addresses
            .iter()
            .map(|a| Neighbour::permanent(index, ip(a), self.other));
        let missing = expected.filter(|n| !there.contains(n));
        Ok(missing
            .map(|n| {
                format!(
                    "{}: neighbour {} is missing on {}",
                    self.place, n.ip, self.name
                )
            })
            .collect())
    }

    fn compare_routes(
        &self,
        spec: &PodSpec,
        socket: &mut Socket<Route>,
        index: u32,
    ) -> Result<Vec<String>, Error> {
        let there = socket
            .routes(RouteFilter {
                oif: Some(index),
                protocol: None,
            })
            .at_step("list routes")?;
        let expected = spec.addresses.iter().flat_map(|a| match self.place {
            Place::Pod => self.still_expected(pod_routes(a, index)),
            Place::Host => vec![host_route(a, index)],
        });
        let missing = expected.filter(|route| !there.iter().any(|r| leads_the_same_way(r, route)));
        Ok(missing
            .map(|r| format!("{}: route {} is missing on {}", self.place, r.to, self.name))
            .collect())
    }
}

impl Side<'_> {
    fn still_expected(&self, mut routes: Vec<RouteEntry>) -> Vec<RouteEntry> {
        if let Some(left) = &self.allowed.pod_routes {
            routes.retain(|route| left.contains(&route.to));
        }
        routes
    }
}

fn leads_the_same_way(a: &RouteEntry, b: &RouteEntry) -> bool {
    let way = |r: &RouteEntry| (r.to, r.via, r.oif, r.kind);
    way(a) == way(b)
}
