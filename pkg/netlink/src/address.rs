use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
};

use crate::{
    Error, Route, Socket,
    link::family,
    socket::{CREATE, PLAIN},
};

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Interface index.
    pub index: u32,
    /// Address and prefix length.
    pub address: IpNet,
    /// The kernel made it by itself (`IFA_F_PERMANENT` is not set: autoconfigured, with a lifetime) or it is link-local.
    pub dynamic: bool,
}

impl Address {
    /// The message that gives an interface an address, for [`Socket::batch`] with [`crate::REPLACE`]. IPv6 addresses are usable at
    /// once, as with [`Socket::add_address`].
    #[must_use]
    pub fn message(index: u32, address: IpNet) -> AddressMessage {
        message(index, address)
    }
}

impl Socket<Route> {
    /// All addresses in the namespace, or those of one interface.
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn addresses(&mut self, index: Option<u32>) -> Result<Vec<Address>, Error> {
        let mut message = AddressMessage::default();
        message.header.index = index.unwrap_or_default();
        let list = self.dump(RouteNetlinkMessage::GetAddress(message))?;
        let parsed = list.iter().filter_map(|m| match m {
            RouteNetlinkMessage::NewAddress(m) => parse(m),
            _ => None,
        });
        Ok(parsed
            .filter(|a| index.is_none_or(|index| a.index == index))
            .collect())
    }

    /// Adds an address; one that is there stays. IPv6 addresses are usable at once (no duplicate address detection): all of
    /// ours are unique by construction.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<(), Error> {
        self.request(
            RouteNetlinkMessage::NewAddress(message(index, address)),
            CREATE | netlink_packet_core::NLM_F_REPLACE,
        )
        .map(drop)
    }

    /// Removes an address.
    ///
    /// # Errors
    /// As [`Socket::request`]; EADDRNOTAVAIL when it is not there.
    pub fn del_address(&mut self, index: u32, address: IpNet) -> Result<(), Error> {
        self.request(
            RouteNetlinkMessage::DelAddress(message(index, address)),
            PLAIN,
        )
        .map(drop)
    }
}

fn message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
    ];
    if address.addr().is_ipv6() {
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

fn parse(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let ip: IpAddr = local.or(address)?;
    if !matches!(
        message.header.family,
        AddressFamily::Inet | AddressFamily::Inet6
    ) {
        return None;
    }
    let dynamic = !message.header.flags.contains(AddressHeaderFlags::Permanent)
        || (ip.is_ipv6() && message.header.scope == AddressScope::Link);
    Some(Address {
        index: message.header.index,
        address: IpNet::new(ip, message.header.prefix_len).ok()?,
        dynamic,
    })
}
