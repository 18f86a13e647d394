use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_core::NlasIterator;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoData, InfoIpTunnel,
        InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
        LinkMessage,
    },
};
use nix::errno::Errno;

use crate::{
    Error, Route, Socket,
    socket::{EXCLUSIVE, PLAIN},
};

/// Where the attributes of a link begin: behind `nlmsghdr` and `ifinfomsg`, in bytes.
const ATTRIBUTES: usize = 32;
/// linux/if_link.h.
const IFLA_GROUP: u16 = 27;

/// An interface, as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Operationally up (IFF_RUNNING): what is sent now is really sent.
    pub running: bool,
    /// Link layer address, where it is an Ethernet one.
    pub mac: Option<[u8; 6]>,
    /// Bridge (or other controller) that it is a port of.
    pub master: Option<u32>,
    /// Group of interfaces that it is in; 0 is the kernel's default.
    pub group: u32,
    /// Alias, set by whoever made it.
    pub alias: Option<String>,
    /// `veth`, `vxlan`, `bridge`, …; none for hardware and loopback.
    pub kind: Option<String>,
    /// Attributes of a VXLAN device.
    pub vxlan: Option<Vec<InfoVxlan>>,
    /// Attributes of an IP in IP device.
    pub ip_tunnel: Option<Vec<InfoIpTunnel>>,
}

/// A veth pair to make. The kernel cannot set the other end up while the pair is being made: do that with [`Socket::set_up`]
/// in its namespace.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// Name of the end in the socket's namespace.
    pub name: &'a str,
    /// MTU of both ends, in bytes; none: the kernel's default.
    pub mtu: Option<u32>,
    /// Link layer address of this end.
    pub mac: Option<[u8; 6]>,
    /// The other end.
    pub peer: VethPeer<'a>,
    /// Whether this end is set up.
    pub up: bool,
    /// Queues of each end in each direction; none: the kernel's default, as many as the machine may have processors. Each costs
    /// the kernel an entry in sysfs when it is made and when it goes, and memory; without a queueing discipline of its own a veth
    /// hands packets on without using them.
    pub queues: Option<u32>,
}

/// The other end of a [`Veth`].
#[derive(Clone, Copy, Debug)]
pub struct VethPeer<'a> {
    /// Its name in its namespace.
    pub name: &'a str,
    /// Its link layer address.
    pub mac: Option<[u8; 6]>,
    /// Its network namespace; none: the socket's.
    pub netns: Option<BorrowedFd<'a>>,
}

/// A VXLAN device to make: no learning, no group, no underlay interface; the FDB says where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan<'a> {
    /// Name.
    pub name: &'a str,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Source address of the outer packets.
    pub local: IpAddr,
    /// Link layer address.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
}

/// An IP in IP device to many hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpTunnel<'a> {
    /// Name.
    pub name: &'a str,
    /// IPv4: `ipip`, IPv4 in IPv4, from this address to the next hop of the route. IPv6: `ip6tnl`, IPv4 and IPv6 in IPv6, from
    /// and to what the route says ([`crate::RouteEntry::encap`]).
    pub local: IpAddr,
    /// MTU in bytes.
    pub mtu: u32,
}

/// Changes of an interface that are made with one message; `None` leaves things as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkChange<'a> {
    /// Set up or down.
    pub up: Option<bool>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Link layer address.
    pub mac: Option<[u8; 6]>,
    /// Index of the bridge to become a port of; 0 leaves the one it is in.
    pub master: Option<u32>,
    /// Group of interfaces to put it into ([`Socket::del_group`]).
    pub group: Option<u32>,
    /// Move it to this network namespace.
    pub netns: Option<BorrowedFd<'a>>,
    /// New name.
    pub name: Option<&'a str>,
    /// New alias.
    pub alias: Option<&'a str>,
    /// IPv4: what comes in here is forwarded, when the way back to its source is this interface (strict reverse-path filtering,
    /// RFC 3704 §2.2).
    pub forward_strictly: bool,
    /// IPv6: the kernel gives this interface no link-local address. Refused by a kernel without IPv6.
    pub no_link_local: bool,
}

/// Which interface a [`LinkChange`] is for.
#[derive(Clone, Copy, Debug)]
pub enum LinkRef<'a> {
    /// The one of this index.
    Index(u32),
    /// The one of this name; cannot be renamed by the same message.
    Name(&'a str),
}

impl Veth<'_> {
    /// The message that makes this pair, for [`Socket::batch`] with [`EXCLUSIVE`].
    #[must_use]
    pub fn message(&self) -> LinkMessage {
        let mut peer = end(self.peer.name, self.mtu, self.peer.mac, false);
        peer.attributes.extend(queues(self.queues));
        if let Some(netns) = self.peer.netns {
            peer.attributes
                .push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        }
        let mut link = end(self.name, self.mtu, self.mac, self.up);
        link.attributes.extend(queues(self.queues));
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        link
    }
}

impl LinkChange<'_> {
    /// The message that makes this change, for [`Socket::batch`] with [`PLAIN`].
    #[must_use]
    pub fn message(&self, of: LinkRef<'_>) -> LinkMessage {
        let (index, known_as) = match of {
            LinkRef::Index(index) => (index, None),
            LinkRef::Name(name) => (0, Some(name)),
        };
        let mut link = message(index);
        if let Some(up) = self.up {
            set_up(&mut link, up);
        }
        let attributes = [
            self.mtu.map(LinkAttribute::Mtu),
            self.mac.map(|mac| LinkAttribute::Address(mac.to_vec())),
            self.master.map(LinkAttribute::Controller),
            self.group.map(LinkAttribute::Group),
            self.netns.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())),
            known_as
                .or(self.name)
                .map(|name| LinkAttribute::IfName(name.to_owned())),
            self.alias
                .map(|alias| LinkAttribute::IfAlias(alias.to_owned())),
            self.families(),
        ];
        link.attributes = attributes.into_iter().flatten().collect();
        link
    }

    fn families(&self) -> Option<LinkAttribute> {
        let mut families = Vec::new();
        if self.forward_strictly {
            let mut settings = InetDevConf::default();
            (settings.forwarding, settings.rp_filter) = (1, 1);
            let settings = AfSpecInet::DevConfRequest(settings);
            families.push(AfSpecUnspec::Inet(vec![settings]));
        }
        if self.no_link_local {
            let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
            families.push(AfSpecUnspec::Inet6(vec![mode]));
        }
        (!families.is_empty()).then_some(LinkAttribute::AfSpecUnspec(families))
    }
}

impl Socket<Route> {
    /// All interfaces of the namespace.
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let all = without_statistics(LinkMessage::default());
        Ok(links(self.dump(RouteNetlinkMessage::GetLink(all))?))
    }

    /// The interfaces of the namespace that are in this group.
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn links_in_group(&mut self, group: u32) -> Result<Vec<Link>, Error> {
        let all = RouteNetlinkMessage::GetLink(without_statistics(LinkMessage::default()));
        let inside = self.dump_where(all, |message| {
            group_of(message).is_none_or(|of| of == group)
        })?;
        let mut inside = links(inside);
        inside.retain(|link| link.group == group);
        Ok(inside)
    }

    /// The interface of this name, if there is one.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(message)
    }

    /// The interface of this index, if there is one.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, Error> {
        self.get_link(message(index))
    }

    /// The interface that has this address, if there is one.
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn link_by_address(&mut self, address: IpAddr) -> Result<Option<Link>, Error> {
        let found = self
            .addresses(None)?
            .into_iter()
            .find(|a| a.address.addr() == address);
        found.map_or(Ok(None), |found| self.link_by_index(found.index))
    }

    /// Index of the interface of this name.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is none.
    pub fn index_of(&mut self, name: &str) -> Result<u32, Error> {
        self.link(name)?
            .map(|l| l.index)
            .ok_or_else(|| Error::Missing(format!("interface {name}")))
    }

    fn get_link(&mut self, message: LinkMessage) -> Result<Option<Link>, Error> {
        let message = without_statistics(message);
        match self.request(RouteNetlinkMessage::GetLink(message), PLAIN) {
            Ok(replies) => Ok(links(replies).into_iter().next()),
            Err(e) if e.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes a veth pair.
    ///
    /// # Errors
    /// As [`Socket::request`]; EEXIST when either name is taken.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> Result<(), Error> {
        self.request(RouteNetlinkMessage::NewLink(veth.message()), EXCLUSIVE)
            .map(drop)
    }

    /// Makes a VXLAN device and leaves it down.
    ///
    /// # Errors
    /// As [`Socket::request`]; EEXIST when the name, or VNI and port, are taken.
    pub fn add_vxlan(&mut self, vxlan: &Vxlan<'_>) -> Result<(), Error> {
        let mut data = vec![
            InfoVxlan::Id(vxlan.vni),
            InfoVxlan::Port(vxlan.port),
            InfoVxlan::Learning(false),
        ];
        data.push(match vxlan.local {
            IpAddr::V4(ip) => InfoVxlan::Local(ip),
            IpAddr::V6(ip) => InfoVxlan::Local6(ip),
        });
        let mut link = end(vxlan.name, Some(vxlan.mtu), Some(vxlan.mac), false);
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(data)),
        ]));
        self.request(RouteNetlinkMessage::NewLink(link), EXCLUSIVE)
            .map(drop)
    }

    /// Makes an IP in IP device and leaves it down.
    ///
    /// # Errors
    /// As [`Socket::request`]; EEXIST when the name, or the local address, is taken.
    pub fn add_ip_tunnel(&mut self, tunnel: &IpTunnel<'_>) -> Result<(), Error> {
        let (kind, data) = match tunnel.local {
            IpAddr::V4(_) => (
                InfoKind::IpIp,
                vec![InfoIpTunnel::Local(tunnel.local), InfoIpTunnel::Ttl(64)],
            ),
            IpAddr::V6(_) => (InfoKind::Ip6Tnl, vec![InfoIpTunnel::CollectMetadata]),
        };
        let mut link = end(tunnel.name, Some(tunnel.mtu), None, false);
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(kind),
            LinkInfo::Data(InfoData::IpTunnel(data)),
        ]));
        self.request(RouteNetlinkMessage::NewLink(link), EXCLUSIVE)
            .map(drop)
    }

    /// Makes a bridge and sets it up.
    ///
    /// # Errors
    /// As [`Socket::request`]; EEXIST when the name is taken.
    pub fn add_bridge(&mut self, name: &str) -> Result<(), Error> {
        self.add_simple(name, InfoKind::Bridge)
    }

    /// Makes a dummy device and sets it up.
    ///
    /// # Errors
    /// As [`Socket::request`]; EEXIST when the name is taken, EOPNOTSUPP when the kernel has none.
    pub fn add_dummy(&mut self, name: &str) -> Result<(), Error> {
        self.add_simple(name, InfoKind::Dummy)
    }

    fn add_simple(&mut self, name: &str, kind: InfoKind) -> Result<(), Error> {
        let mut link = end(name, None, None, true);
        link.attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        self.request(RouteNetlinkMessage::NewLink(link), EXCLUSIVE)
            .map(drop)
    }

    /// Changes an interface.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn set_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<(), Error> {
        let link = change.message(LinkRef::Index(index));
        self.request(RouteNetlinkMessage::SetLink(link), PLAIN)
            .map(drop)
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn set_up(&mut self, index: u32) -> Result<(), Error> {
        self.set_link(
            index,
            &LinkChange {
                up: Some(true),
                ..LinkChange::default()
            },
        )
    }

    /// Sets an interface's MTU, in bytes.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), Error> {
        self.set_link(
            index,
            &LinkChange {
                mtu: Some(mtu),
                ..LinkChange::default()
            },
        )
    }

    /// Removes an interface; of a veth pair the other end goes too.
    ///
    /// # Errors
    /// As [`Socket::request`]; ENODEV when it is not there.
    pub fn del_link(&mut self, index: u32) -> Result<(), Error> {
        self.request(RouteNetlinkMessage::DelLink(message(index)), PLAIN)
            .map(drop)
    }

    /// Removes all interfaces of a group with one message: the kernel waits once for what it has to wait for, not once for each
    /// (`rtnl_group_dellink`).
    ///
    /// # Errors
    /// As [`Socket::request`]; ENODEV when nothing is in the group, EOPNOTSUPP when something in it cannot be removed, EPERM for the
    /// default group 0: nothing is removed then.
    pub fn del_group(&mut self, group: u32) -> Result<(), Error> {
        let mut all = message(0);
        all.attributes.push(LinkAttribute::Group(group));
        self.request(RouteNetlinkMessage::DelLink(all), PLAIN)
            .map(drop)
    }
}

/// Address family of an address.
pub(crate) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// `None`: it cannot be told, or not so cheaply.
fn group_of(message: &[u8]) -> Option<u32> {
    let attributes = message.get(ATTRIBUTES..)?;
    let nla = NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|nla| nla.kind() == IFLA_GROUP)?;
    Some(u32::from_ne_bytes(nla.value().try_into().ok()?))
}

/// The question, without what makes two thirds of the answer.
fn without_statistics(mut question: LinkMessage) -> LinkMessage {
    let less = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    question.attributes.push(less);
    question
}

/// A new interface.
fn end(name: &str, mtu: Option<u32>, mac: Option<[u8; 6]>, up: bool) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link.attributes.extend(mtu.map(LinkAttribute::Mtu));
    link.attributes
        .extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    if up {
        set_up(&mut link, true);
    }
    link
}

fn queues(count: Option<u32>) -> impl Iterator<Item = LinkAttribute> {
    let both = |n| [LinkAttribute::NumTxQueues(n), LinkAttribute::NumRxQueues(n)];
    count.map(both).into_iter().flatten()
}

fn set_up(link: &mut LinkMessage, up: bool) {
    link.header.change_mask = LinkFlags::Up;
    link.header.flags = if up {
        LinkFlags::Up
    } else {
        LinkFlags::empty()
    };
}

fn links(messages: Vec<RouteNetlinkMessage>) -> Vec<Link> {
    let parsed = messages.into_iter().filter_map(|m| match m {
        RouteNetlinkMessage::NewLink(m) => Some(parse(m)),
        _ => None,
    });
    parsed.collect()
}

fn parse(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::Running),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::LinkInfo(infos) => parse_info(&mut link, infos),
            _ => {}
        }
    }
    link
}

fn parse_info(link: &mut Link, infos: Vec<LinkInfo>) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(data),
            LinkInfo::Data(InfoData::IpTunnel(data)) => link.ip_tunnel = Some(data),
            _ => {}
        }
    }
}
