use std::fmt::Debug;

use netlink_packet_core::{NetlinkDeserializable, NetlinkSerializable};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage},
    route::{RouteAttribute, RouteMessage},
};
use netlink_packet_xfrm::{Selector, XfrmMessage, constants as xfrm};
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_XFRM};

/// A netlink family: its protocol number and its messages.
pub trait Family {
    /// Protocol number of the socket.
    const PROTOCOL: isize;
    /// `NETLINK_GET_STRICT_CHK`: the kernel applies the filters in dump requests. Only rtnetlink has it.
    const STRICT: bool;
    /// Whether messages carry keys: every buffer that held one is wiped.
    const SECRET: bool;
    /// The family's messages.
    type Message: NetlinkSerializable + NetlinkDeserializable + Debug;
    /// Whether a message of this type can change the kernel's state.
    fn is_write(message_type: u16) -> bool;
    /// Short name of a message and its object, for errors.
    fn describe(message: &Self::Message) -> String;
}

/// rtnetlink: links, addresses, routes, neighbours.
#[derive(Clone, Copy, Debug)]
pub enum Route {}

/// XFRM: security associations and policies.
#[derive(Clone, Copy, Debug)]
pub enum Xfrm {}

impl Family for Route {
    const PROTOCOL: isize = NETLINK_ROUTE;
    const STRICT: bool = true;
    const SECRET: bool = false;
    type Message = RouteNetlinkMessage;

    fn is_write(message_type: u16) -> bool {
        // Types come in fours from 16 on: NEW, DEL, GET, SET (linux/rtnetlink.h).
        message_type % 4 != 2
    }

    fn describe(message: &Self::Message) -> String {
        use RouteNetlinkMessage as M;
        match message {
            M::NewLink(m) => format!("RTM_NEWLINK {}", link(m)),
            M::SetLink(m) => format!("RTM_SETLINK {}", link(m)),
            M::DelLink(m) => format!("RTM_DELLINK {}", link(m)),
            M::GetLink(m) => format!("RTM_GETLINK {}", link(m)),
            M::NewAddress(m) => format!("RTM_NEWADDR on interface {}", m.header.index),
            M::DelAddress(m) => format!("RTM_DELADDR on interface {}", m.header.index),
            M::NewRoute(m) => format!("RTM_NEWROUTE {}", route(m)),
            M::DelRoute(m) => format!("RTM_DELROUTE {}", route(m)),
            M::NewNeighbour(m) => format!("RTM_NEWNEIGH {}", neighbour(m)),
            M::DelNeighbour(m) => format!("RTM_DELNEIGH {}", neighbour(m)),
            other => format!(
                "rtnetlink message type {}",
                NetlinkSerializable::message_type(other)
            ),
        }
    }
}

impl Family for Xfrm {
    const PROTOCOL: isize = NETLINK_XFRM;
    const STRICT: bool = false;
    const SECRET: bool = true;
    type Message = XfrmMessage;

    fn is_write(message_type: u16) -> bool {
        !matches!(
            message_type,
            xfrm::XFRM_MSG_GETSA
                | xfrm::XFRM_MSG_GETPOLICY
                | xfrm::XFRM_MSG_GETSADINFO
                | xfrm::XFRM_MSG_GETSPDINFO
                | xfrm::XFRM_MSG_GETAE
                | xfrm::XFRM_MSG_GETDEFAULT
        )
    }

    fn describe(message: &Self::Message) -> String {
        use XfrmMessage as M;
        match message {
            M::AddPolicy(m) => format!(
                "XFRM_MSG_NEWPOLICY {}",
                selector(&m.user_policy_info.selector)
            ),
            M::UpdatePolicy(m) => format!(
                "XFRM_MSG_UPDPOLICY {}",
                selector(&m.user_policy_info.selector)
            ),
            M::DeletePolicy(m) => format!(
                "XFRM_MSG_DELPOLICY {}",
                selector(&m.user_policy_id.selector)
            ),
            // SA messages carry keys: only ever the type.
            other => format!("XFRM message type {:#x}", other.message_type()),
        }
    }
}

fn link(message: &LinkMessage) -> String {
    let name = message.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_else(|| format!("interface {}", message.header.index))
}

fn route(message: &RouteMessage) -> String {
    let to = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(to) => crate::route::ip(to),
        _ => None,
    });
    match to {
        Some(to) => format!("{to}/{}", message.header.destination_prefix_length),
        None => "default".to_owned(),
    }
}

fn neighbour(message: &NeighbourMessage) -> String {
    let to = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(to) => crate::neighbour::ip(to),
        _ => None,
    });
    let to = to.map_or_else(|| "entry".to_owned(), |to| to.to_string());
    format!("{to} on interface {}", message.header.ifindex)
}

fn selector(s: &Selector) -> String {
    let ip = |a: &netlink_packet_xfrm::Address, bits: u8| match s.family {
        xfrm::AF_INET6 => format!("{}/{bits}", a.to_ipv6()),
        _ => format!("{}/{bits}", a.to_ipv4()),
    };
    let (from, to) = (ip(&s.saddr, s.prefixlen_s), ip(&s.daddr, s.prefixlen_d));
    format!(
        "{from} to {to} proto {} dport {} interface {}",
        s.proto, s.dport, s.ifindex
    )
}
