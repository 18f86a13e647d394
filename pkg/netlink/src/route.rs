use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteIp6Tunnel, RouteLwEnCapType,
        RouteLwTunnelEncap, RouteMessage, RouteProtocol, RouteScope, RouteType,
    },
};
use nix::errno::Errno;

use crate::{
    Error, Route, Socket,
    link::family,
    socket::{EXCLUSIVE, PLAIN, REPLACE},
};

/// The main table.
const MAIN: u32 = 254;
/// Metric that the kernel gives an IPv6 route that names none.
const IPV6_DEFAULT_METRIC: u32 = 1024;

/// A route with one next hop, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// Destination; a prefix of length 0 is the default route.
    pub to: IpNet,
    /// Next hop.
    pub via: Option<IpAddr>,
    /// Outgoing interface.
    pub oif: Option<u32>,
    /// The next hop is on the link although no address says so.
    pub onlink: bool,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Priority: the smaller wins. IPv6 has no 0: it becomes 1024.
    pub metric: u32,
    /// Unicast, unreachable, blackhole, …
    pub kind: RouteType,
    /// Universe (through a next hop), link, host.
    pub scope: RouteScope,
    /// Who made it: `rtm_protocol`.
    pub protocol: u8,
    /// Routing table.
    pub table: u32,
    /// The tunnel's outer header, for a device that takes it from the route.
    pub encap: Option<Encap>,
}

/// Outer IPv6 header of a lightweight tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encap {
    /// Source.
    pub source: Ipv6Addr,
    /// Destination.
    pub destination: Ipv6Addr,
}

/// Hop limit of outer headers.
const HOP_LIMIT: u8 = 64;

/// Which routes to list; the kernel filters.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteFilter {
    /// Only those of this `rtm_protocol`.
    pub protocol: Option<u8>,
    /// Only those of this outgoing interface.
    pub oif: Option<u32>,
}

impl RouteEntry {
    /// A unicast route of the main table: `to dev oif`, of link scope, or `to via … dev oif`.
    #[must_use]
    pub fn unicast(to: IpNet, via: Option<IpAddr>, oif: u32) -> Self {
        let scope = if via.is_some() || to.addr().is_ipv6() {
            RouteScope::Universe
        } else {
            RouteScope::Link
        };
        Self {
            via,
            oif: Some(oif),
            kind: RouteType::Unicast,
            scope,
            ..Self::base(to)
        }
    }

    /// A route of the main table that refuses packets with ICMP unreachable.
    #[must_use]
    pub fn unreachable(to: IpNet, metric: u32) -> Self {
        Self {
            metric,
            ..Self::base(to)
        }
    }

    fn base(to: IpNet) -> Self {
        Self {
            to: to.trunc(),
            via: None,
            oif: None,
            onlink: false,
            source: None,
            metric: if to.addr().is_ipv6() {
                IPV6_DEFAULT_METRIC
            } else {
                0
            },
            kind: RouteType::Unreachable,
            scope: RouteScope::Universe,
            protocol: RouteProtocol::Static.into(),
            table: MAIN,
            encap: None,
        }
    }

    /// The message that describes this route, for [`Socket::batch`].
    #[must_use]
    pub fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(self.to.addr());
        header.destination_prefix_length = self.to.prefix_len();
        header.protocol = self.protocol.into();
        header.kind = self.kind;
        header.scope = self.scope;
        header.table = u8::try_from(self.table).unwrap_or_default();
        header.flags = if self.onlink {
            RouteFlags::Onlink
        } else {
            RouteFlags::empty()
        };
        let attributes = [
            Some(RouteAttribute::Destination(self.to.network().into())),
            self.via.map(|via| RouteAttribute::Gateway(via.into())),
            self.oif.map(RouteAttribute::Oif),
            self.source
                .map(|source| RouteAttribute::PrefSource(source.into())),
            (self.metric != 0).then_some(RouteAttribute::Priority(self.metric)),
            Some(RouteAttribute::Table(self.table)),
        ];
        message.attributes = attributes.into_iter().flatten().collect();
        message
            .attributes
            .extend(self.encap.iter().flat_map(Encap::attributes));
        message
    }

    /// Reads a route message; none where it is neither IPv4 nor IPv6.
    #[must_use]
    pub fn parse(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let any = match header.address_family {
            AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let mut route = Self {
            metric: 0,
            kind: header.kind,
            scope: header.scope,
            protocol: header.protocol.into(),
            table: header.table.into(),
            onlink: header.flags.contains(RouteFlags::Onlink),
            ..Self::base(IpNet::new(any, header.destination_prefix_length).ok()?)
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => {
                    route.to = IpNet::new(ip(to)?, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(via) => route.via = ip(via),
                RouteAttribute::Oif(oif) => route.oif = Some(*oif),
                RouteAttribute::PrefSource(source) => route.source = ip(source),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Encap(list) => route.encap = Encap::parse(list),
                _ => {}
            }
        }
        let refuses = matches!(
            route.kind,
            RouteType::Unreachable | RouteType::BlackHole | RouteType::Prohibit
        );
        if refuses {
            // The kernel names the loopback device for IPv6 routes that lead nowhere.
            route.oif = None;
        }
        Some(route)
    }
}

impl Encap {
    fn attributes(&self) -> [RouteAttribute; 2] {
        let header = [
            RouteIp6Tunnel::Destination(self.destination),
            RouteIp6Tunnel::Source(self.source),
            RouteIp6Tunnel::Hoplimit(HOP_LIMIT),
        ];
        [
            RouteAttribute::EncapType(RouteLwEnCapType::Ip6),
            RouteAttribute::Encap(header.map(RouteLwTunnelEncap::Ip6).to_vec()),
        ]
    }

    fn parse(list: &[RouteLwTunnelEncap]) -> Option<Self> {
        let (mut source, mut destination) = (None, None);
        for item in list {
            match item {
                RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Source(ip)) => source = Some(*ip),
                RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Destination(ip)) => destination = Some(*ip),
                _ => {}
            }
        }
        source.zip(destination).map(|(source, destination)| Self {
            source,
            destination,
        })
    }
}

impl Socket<Route> {
    /// Lists routes of all tables, IPv4 and IPv6 (but the kernel's cached ones).
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn routes(&mut self, filter: RouteFilter) -> Result<Vec<RouteEntry>, Error> {
        let mut routes = self.routes_of(AddressFamily::Inet, filter)?;
        match self.routes_of(AddressFamily::Inet6, filter) {
            Ok(more) => routes.extend(more),
            // A kernel without IPv6.
            Err(e) if matches!(e.errno(), Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) => {}
            Err(e) => return Err(e),
        }
        Ok(routes)
    }

    fn routes_of(
        &mut self,
        family: AddressFamily,
        filter: RouteFilter,
    ) -> Result<Vec<RouteEntry>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.protocol = filter.protocol.unwrap_or_default().into();
        message
            .attributes
            .extend(filter.oif.map(RouteAttribute::Oif));
        let list = self.dump(RouteNetlinkMessage::GetRoute(message))?;
        let parsed = list.iter().filter_map(|m| match m {
            RouteNetlinkMessage::NewRoute(m) => RouteEntry::parse(m),
            _ => None,
        });
        // Kernels before 4.20 do not filter.
        let wanted = parsed.filter(|r| {
            filter.protocol.is_none_or(|p| r.protocol == p)
                && filter.oif.is_none_or(|oif| r.oif == Some(oif))
        });
        Ok(wanted.collect())
    }

    /// Adds a route.
    ///
    /// # Errors
    /// As [`Socket::request`]; EEXIST when destination and metric are taken.
    pub fn add_route(&mut self, route: &RouteEntry) -> Result<(), Error> {
        self.request(RouteNetlinkMessage::NewRoute(route.message()), EXCLUSIVE)
            .map(drop)
    }

    /// Puts a route in the place of the one with the same destination, metric and table, with no moment in between; adds it
    /// where there was none.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn replace_route(&mut self, route: &RouteEntry) -> Result<(), Error> {
        self.request(RouteNetlinkMessage::NewRoute(route.message()), REPLACE)
            .map(drop)
    }

    /// Removes a route.
    ///
    /// # Errors
    /// As [`Socket::request`]; ESRCH when it is not there.
    pub fn del_route(&mut self, route: &RouteEntry) -> Result<(), Error> {
        self.request(RouteNetlinkMessage::DelRoute(route.message()), PLAIN)
            .map(drop)
    }
}

pub(crate) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}
