use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
};

use crate::{
    Error, Route, Socket,
    link::family,
    socket::{PLAIN, REPLACE},
};

/// An IP neighbour: which link layer address an IP address has on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Interface index.
    pub index: u32,
    /// IP address.
    pub ip: IpAddr,
    /// Link layer address; none while it is being asked for.
    pub mac: Option<[u8; 6]>,
    /// NUD state; ours are permanent.
    pub state: NeighbourState,
}

/// A forwarding entry of a VXLAN device: behind which underlay address a link layer address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FdbEntry {
    /// Index of the VXLAN device.
    pub index: u32,
    /// Inner link layer address.
    pub mac: [u8; 6],
    /// Underlay address of its VTEP.
    pub remote: IpAddr,
}

impl Neighbour {
    /// A permanent entry.
    #[must_use]
    pub fn permanent(index: u32, ip: IpAddr, mac: [u8; 6]) -> Self {
        Self {
            index,
            ip,
            mac: Some(mac),
            state: NeighbourState::Permanent,
        }
    }

    /// The message that describes this entry, for [`Socket::batch`].
    #[must_use]
    pub fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(self.ip);
        message.header.ifindex = self.index;
        message.header.state = self.state;
        message
            .attributes
            .push(NeighbourAttribute::Destination(self.ip.into()));
        message.attributes.extend(
            self.mac
                .map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())),
        );
        message
    }
}

impl FdbEntry {
    /// The message that describes this entry, for [`Socket::batch`].
    #[must_use]
    pub fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.index;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(self.mac.to_vec()),
            NeighbourAttribute::Destination(self.remote.into()),
        ];
        message
    }
}

impl Socket<Route> {
    /// IP neighbours of one interface.
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn neighbours(&mut self, index: u32) -> Result<Vec<Neighbour>, Error> {
        let mut message = NeighbourMessage::default();
        message.attributes.push(NeighbourAttribute::IfIndex(index));
        let list = self.dump(RouteNetlinkMessage::GetNeighbour(message))?;
        let parsed = list.iter().filter_map(|m| match m {
            RouteNetlinkMessage::NewNeighbour(m) => parse(m),
            _ => None,
        });
        Ok(parsed.filter(|n| n.index == index).collect())
    }

    /// Adds or changes an IP neighbour.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn replace_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), Error> {
        self.request(
            RouteNetlinkMessage::NewNeighbour(neighbour.message()),
            REPLACE,
        )
        .map(drop)
    }

    /// Removes an IP neighbour.
    ///
    /// # Errors
    /// As [`Socket::request`]; ENOENT when it is not there.
    pub fn del_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), Error> {
        self.request(
            RouteNetlinkMessage::DelNeighbour(neighbour.message()),
            PLAIN,
        )
        .map(drop)
    }

    /// Adds a forwarding entry, or changes the remote address of the one with this link layer address.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn replace_fdb(&mut self, entry: &FdbEntry) -> Result<(), Error> {
        self.request(RouteNetlinkMessage::NewNeighbour(entry.message()), REPLACE)
            .map(drop)
    }

    /// Removes a forwarding entry.
    ///
    /// # Errors
    /// As [`Socket::request`]; ENOENT when it is not there.
    pub fn del_fdb(&mut self, entry: &FdbEntry) -> Result<(), Error> {
        self.request(RouteNetlinkMessage::DelNeighbour(entry.message()), PLAIN)
            .map(drop)
    }

    /// Forwarding entries of one VXLAN device; entries without a remote address are left out.
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn fdb(&mut self, index: u32) -> Result<Vec<FdbEntry>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index;
        let list = self.dump(RouteNetlinkMessage::GetNeighbour(message))?;
        let parsed = list.iter().filter_map(|m| match m {
            RouteNetlinkMessage::NewNeighbour(m) => parse_fdb(m),
            _ => None,
        });
        Ok(parsed.filter(|n| n.index == index).collect())
    }
}

pub(crate) fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        // In forwarding entries the family of the address is told by its length only.
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(|b| Ipv4Addr::from(b).into())
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(|b| Ipv6Addr::from(b).into()))
            .ok(),
        _ => None,
    }
}

fn mac(message: &NeighbourMessage) -> Option<[u8; 6]> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(to) => ip(to),
        _ => None,
    })
}

fn parse(message: &NeighbourMessage) -> Option<Neighbour> {
    let header = &message.header;
    matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6).then_some(())?;
    Some(Neighbour {
        index: header.ifindex,
        ip: destination(message)?,
        mac: mac(message),
        state: header.state,
    })
}

fn parse_fdb(message: &NeighbourMessage) -> Option<FdbEntry> {
    Some(FdbEntry {
        index: message.header.ifindex,
        mac: mac(message)?,
        remote: destination(message)?,
    })
}
