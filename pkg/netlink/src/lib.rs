//! A small synchronous netlink socket, generic over the family, and the few operations on links, addresses, routes, neighbours
//! and nf_tables that Espalier's crates share.
//!
//! [`Socket::request`] and [`Socket::batch`] wait for the kernel's acknowledgement of every message; [`Socket::dump`] gives a
//! complete list or an error, never a part of one. Errors carry the errno and the kernel's own words (extended
//! acknowledgements). Every message that can change the kernel's state is counted ([`Socket::writes`]).

mod address;
mod bytes;
mod error;
mod family;
mod link;
mod neighbour;
mod netns;
mod nftables;
mod policy;
mod reply;
mod route;
mod rule;
mod socket;
pub mod sysctl;

pub use address::Address;
pub use error::Error;
pub use family::{Family, Route, Xfrm};
pub use link::{IpTunnel, Link, LinkChange, LinkRef, Veth, VethPeer, Vxlan};
pub use neighbour::{FdbEntry, Neighbour};
pub use netns::{in_netns, visit_netns};
pub use nftables::{GUARD_TABLE, Guard, MASQUERADE_TABLE, Masquerade, Netfilter, NetfilterMessage};
pub use policy::{Action, Direction, InstalledPolicy, Mode, Policy, Protocol, Template};
pub use route::{Encap, RouteEntry, RouteFilter};
pub use rule::{Rule, Then};
pub use socket::{CREATE, EXCLUSIVE, PLAIN, REPLACE, Socket};

pub use netlink_packet_route as packet_route;
pub use netlink_packet_xfrm as packet_xfrm;
pub use nix::errno::Errno;
