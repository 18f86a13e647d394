//! The overlay of a node in the kernel, reconciled: what should be, minus what is, in an order that fails closed.
//!
//! ```text
//!  pod ── 10.244.2.0/24 ──┬─ Clear:     via <peer's gateway> dev espalier.vx onlink ── neighbour, FDB ── UDP 4789
//!                         ├─ Encrypted: dev <TUN> ── userspace ESP ── UDP 4500
//!                         ├─ Blocked:   no route
//!                         └─ under all: unreachable <cluster CIDR>, metric 4278198272
//!
//!  [`Engine::Kernel`]: Encrypted has the route and device of Clear, and a policy with a template for UDP 4789 to the host.
//!
//!  SPD, first match:  block  cluster CIDR → cluster CIDR  leaving by the underlay interface   out, fwd
//!  (* only while    * allow  cluster CIDR → cluster CIDR  UDP 4789 of the pods themselves     out
//!   deny_clear)       seal   host → host                  UDP 4788, states under trial        out, demanded in
//!                     seal   host → host                  UDP 4789, Engine::Kernel, Encrypted out, demanded in (*)
//!                   * allow  host ↔ host                  UDP 4789, pairs that accept clear   in, out
//!                   * block  any ↔ any                    UDP 4789, IPv4 and IPv6             in, out
//!                     seal   own pods ↔ external networks by the gateway's tunnel             out, demanded in, fwd
//!                     block  own pods ↔ external networks                                     out, in, fwd
//! ```
//!
//! [`Framing::Ipip`] has `espalier.ip` for `espalier.vx` and IP protocol 4 or 41 for UDP 4789; [`Framing::Native`] has no overlay
//! device, routes by the underlay interface and tunnel mode between pod CIDRs, and where a TUN encrypts a table of nf_tables,
//! `espalier-guard`, instead of policies for what comes in: docs/overlay.md.
//!
//! What pods send to other addresses gets the node's (nf_tables, table `espalier`), so that answers find the way back.
//!
//! [`Overlay::apply_changes`] writes what differs from what was applied last, without reading. Every [`Overlay::apply`] reads the actual state, so whatever somebody else deleted or changed is put right, and nothing is
//! written when nothing differs. A pair's path is switched by one `RTM_NEWROUTE` with `NLM_F_REPLACE`: no moment without a
//! route. What is ours is known by the device's name, by `rtm_protocol` 229 together with the device or the metric, and by the
//! range of the policies' priorities; everything else stays untouched.

mod change;
mod devices;
mod error;
mod guard;
mod masquerade;
mod mtu;
mod nftables;
mod observe;
mod plan;
mod policies;
mod reconcile;
mod remove;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
};

use ipnet::IpNet;

pub use error::Error;
pub use espalier_dataplane_core::PROBE_PORT;
pub use guard::NO_TABLES;
pub use reconcile::Overlay;

/// Name of the VXLAN device.
pub const VXLAN_DEVICE: &str = "espalier.vx";
/// Name of the IP in IP device.
pub const IPIP_DEVICE: &str = "espalier.ip";
/// Name of the device that holds this node's own address among its pods when routing is native; nothing leaves by it.
pub const NATIVE_DEVICE: &str = "espalier.gw";
/// Metric of native routes, which have no device of ours to be known by.
pub const NATIVE_METRIC: u32 = 17_747;
/// `rtm_protocol` of our routes. Pods' routes carry it too; they lead to veth devices and are not this crate's.
pub const PROTOCOL: u8 = 229;
/// Metric of the unreachable routes: any other route to the same destination wins.
pub const UNREACHABLE_METRIC: u32 = 4_278_198_272;
/// Priorities of our policies; the smaller decides.
pub const PRIORITIES: RangeInclusive<u32> = 0x4553_5000..=0x4553_5fff;

/// What the kernel should hold for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// This node's underlay address. The underlay interface is the one that has it.
    pub local: IpAddr,
    /// The VXLAN device; its MTU holds for every framing.
    pub vtep: Vtep,
    /// What is around pod packets, in all modes the same.
    pub framing: Framing,
    /// This node's own address in each of its pod CIDRs: on the overlay's device, source of the host's packets to pods.
    pub gateways: Vec<IpAddr>,
    /// This node's own pods' addresses.
    pub pod_cidrs: Vec<IpNet>,
    /// What pod addresses are. Unreachable but for routes of peers and pods.
    pub cluster_cidrs: Vec<IpNet>,
    /// What encrypts.
    pub engine: Engine,
    /// Whether clear overlay packets are refused, but for the pairs that accept them.
    pub deny_clear: bool,
    /// The peers, by node name.
    pub peers: BTreeMap<String, PeerRoute>,
    /// Gateways outside of the mesh, by name.
    pub externals: BTreeMap<String, ExternalRoute>,
    /// Whether what this node's pods send to anything but pods and the networks of `externals` gets the node's address.
    pub masquerade: bool,
}

impl Desired {
    /// The same while nothing can encrypt.
    fn without_engine(&self) -> Self {
        Self {
            engine: Engine::None,
            ..self.clone()
        }
    }
}

/// How networks behind a gateway outside of the mesh are reached: by its tunnel, or not at all. Whatever the mode is, nothing
/// passes between them and this node's pods in clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExternalRoute {
    /// The networks.
    pub remote_cidrs: Vec<IpNet>,
    /// [`Engine::Kernel`] only: what seals and opens; `None`: nothing passes.
    pub tunnel: Option<Tunnel>,
}

/// Tunnel mode states with a gateway, as policies name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// This node's address towards it.
    pub local: IpAddr,
    /// Its address.
    pub gateway: IpAddr,
    /// The states. The outbound one must be there before.
    pub protect: Protect,
    /// Pairs of networks of this node's pods and behind the gateway that it carries, as agreed with it.
    pub selectors: Vec<(IpNet, IpNet)>,
}

/// Attributes of the VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// Link layer address.
    pub mac: [u8; 6],
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Pod MTU in bytes; none: the underlay interface's MTU less the overhead of ESP in UDP, in all modes the same.
    pub mtu: Option<u32>,
}

/// What encrypts packets for encrypted peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Nothing now: encrypted peers have no route.
    #[default]
    None,
    /// The userspace data plane behind this TUN. While there is no such TUN, encrypted peers have no route.
    Tun(String),
    /// The kernel: encrypted peers have the same device and route as clear ones, and a policy with a template
    /// ([`PeerRoute::protect`]); without one they have no route.
    Kernel,
}

/// What is around pod packets between two hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// VXLAN in UDP (RFC 7348).
    #[default]
    Vxlan,
    /// IP in IP (RFC 2003, RFC 2473).
    Ipip,
    /// Nothing: native routing; encrypted by tunnel mode SAs over pod CIDRs.
    Native,
}

/// The kernel states that protect what goes to a peer, as a policy's template names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protect {
    /// Tag of the peer's states.
    pub reqid: u32,
    /// The outbound state that seals; `None`: any with this tag, the kernel chooses (per-CPU SAs) or asks for one (ACQUIRE).
    pub spi: Option<u32>,
    /// AH instead of ESP.
    pub ah: bool,
}

/// How one peer is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRoute {
    /// Underlay address.
    pub remote: IpAddr,
    /// Link layer address of its VXLAN device.
    pub mac: [u8; 6],
    /// Its pods' addresses.
    pub pod_cidrs: Vec<IpNet>,
    /// Where packets to its pods go.
    pub path: RoutePath,
    /// Whether its clear overlay packets are accepted; matters only while [`Desired::deny_clear`].
    pub accept_clear: bool,
    /// [`Engine::Kernel`] only: the states that seal for it while it is [`RoutePath::Encrypted`]. The outbound state must be there
    /// before: a policy that names a missing one makes the kernel take its SPI. May be known sooner; then it says which states
    /// open what comes in.
    pub protect: Option<Protect>,
    /// [`Engine::Kernel`] only: states under trial, which carry UDP to [`PROBE_PORT`] and nothing else.
    pub trial: Option<Protect>,
}

/// Where packets to a peer's pods go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoutePath {
    /// Through the overlay's device, not encrypted.
    Clear,
    /// Through the data plane's TUN, or with [`Engine::Kernel`] as clear ones, where a policy has them sealed.
    Encrypted,
    /// Nowhere: there is no route, and the unreachable route answers.
    Blocked,
}

/// What [`Overlay::apply`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Netlink messages and settings written; 0 when everything was as it should be.
    pub writes: usize,
    /// MTU for pods, in bytes.
    pub pod_mtu: u32,
    /// What could not be had, without harm to what is closed or sealed.
    pub note: Option<String>,
}

/// What a restarted agent finds and adopts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The path that each pod CIDR has now; without a route there is no entry.
    pub paths: BTreeMap<IpNet, RoutePath>,
    /// Underlay addresses of the hosts whose clear packets pass the base block.
    pub accepting: BTreeSet<IpAddr>,
    /// The same by their pods' addresses, neighbours joined: native routing with the userspace data plane.
    pub accepting_pods: Vec<IpNet>,
    /// What the kernel's policies seal with, by the hosts' underlay addresses.
    pub protects: BTreeMap<IpAddr, Protect>,
    /// The tunnels with gateways outside of the mesh, by their addresses.
    pub tunnels: BTreeMap<IpAddr, Tunnel>,
    /// Whether the base block stands in full: in all directions and families that one of the framings has.
    pub base_block: bool,
}
