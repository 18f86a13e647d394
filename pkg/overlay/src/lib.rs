//! A node's overlay in the kernel, reconciled: VXLAN device, gateway addresses, routes, neighbours, FDB, and the policies
//! that keep clear packets out.
//!
//! [`Overlay::apply`] writes `desired − actual` from complete lists, so that a second call writes nothing and what somebody
//! deleted comes back. Ours are: the device [`VXLAN_DEVICE`], routes of [`PROTOCOL`] that are unreachable or lead to our
//! devices, and policies with a priority in [`PRIORITIES`]. Nothing else is touched.

mod apply;
mod kernel;
mod observe;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use espalier_netlink::{Route, Socket, Xfrm};
use ipnet::IpNet;

/// Name of the VXLAN device.
pub const VXLAN_DEVICE: &str = "espalier.vx";
/// rtm_protocol of our routes. Pod routes carry it too; they lead to veth devices and are not this crate's.
pub const PROTOCOL: u8 = 229;
/// Metric of the unreachable routes: any other route for the same destination wins.
pub const UNREACHABLE_METRIC: u32 = 0xff00_0000;
/// Priorities of our policies.
pub const PRIORITIES: RangeInclusive<u32> = 0x4553_5000..=0x4553_5fff;

/// This node's VTEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// MAC address.
    pub mac: [u8; 6],
    /// VXLAN Network Identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Pod MTU in bytes; `None` derives it from the underlay's.
    pub mtu: Option<u32>,
}

/// Where packets for a peer's pods go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoutePath {
    /// Through the VXLAN device.
    Clear,
    /// Through the data plane's device.
    Encrypted,
    /// Nowhere: the unreachable route below.
    Blocked,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRoute {
    /// Its underlay address.
    pub remote: IpAddr,
    /// MAC address of its VTEP.
    pub mac: [u8; 6],
    /// Its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Where packets for them go.
    pub path: RoutePath,
    /// Its clear overlay packets are let in, and clear ones to it out.
    pub accept_clear: bool,
}

/// What should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// This node's underlay address; its interface is found by it.
    pub local: IpAddr,
    /// This node's VTEP.
    pub vtep: Vtep,
    /// This node's own addresses in its pod CIDRs: pods' gateways.
    pub gateways: Vec<IpAddr>,
    /// What pod addresses are.
    pub cluster_cidrs: Vec<IpNet>,
    /// The data plane's device; `None` while there is none.
    pub tun: Option<String>,
    /// Clear overlay packets are refused but for peers that `accept_clear`.
    pub deny_clear: bool,
    /// By name.
    pub peers: BTreeMap<String, PeerRoute>,
}

/// What [`Overlay::apply`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Changes of the kernel's state; 0 when it was as it should be.
    pub writes: usize,
    /// MTU for pod interfaces, in bytes. The same in all modes.
    pub pod_mtu: u32,
}

/// What a restarted agent finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The path of each pod CIDR that has a route.
    pub paths: BTreeMap<IpNet, RoutePath>,
    /// Underlay addresses whose clear packets are let in although the base block stands.
    pub accepting: BTreeSet<IpAddr>,
    /// Clear overlay packets are refused.
    pub base_block: bool,
}

/// Why the kernel is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The underlay address is on no interface.
    #[error(
        "the Node's InternalIP {0} is on no interface of this host; set status.addresses of its Node to the host's address"
    )]
    NoUnderlay(IpAddr),
    /// The underlay leaves no room for pods.
    #[error(
        "the underlay's MTU of {underlay} leaves {pod} bytes for pods, less than the {least} that IP needs; raise it"
    )]
    MtuTooSmall {
        /// Underlay MTU in bytes.
        underlay: u32,
        /// What would be left.
        pod: u32,
        /// Minimum.
        least: u32,
    },
    /// A policy was refused: clear packets could pass (S8).
    #[error(
        "the kernel refuses the policy that keeps clear packets out ({0}); it needs CONFIG_XFRM_USER, or run on another kernel"
    )]
    Policy(espalier_netlink::Error),
    /// Anything else.
    #[error(transparent)]
    Netlink(#[from] espalier_netlink::Error),
}

/// The overlay of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Overlay {
    route: Socket<Route>,
    xfrm: Socket<Xfrm>,
}

impl Overlay {
    /// Opens the netlink sockets.
    ///
    /// # Errors
    /// [`Error::Netlink`]; without XFRM in the kernel [`Error::Policy`].
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            route: Socket::open()?,
            xfrm: Socket::open().map_err(Error::Policy)?,
        })
    }
}
