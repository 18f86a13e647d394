use std::net::IpAddr;

use ipnet::IpNet;

/// Why the overlay is not as it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The node's underlay address is on no interface.
    #[error(
        "no interface of this node has the underlay address {address}: give it to an interface, or correct the InternalIP \
         address in the Node's status"
    )]
    NoUnderlay {
        /// The address.
        address: IpAddr,
    },
    /// The underlay interface has no room for pods.
    #[error(
        "the MTU of the underlay interface {device} is {mtu}, expected at least {least} (a pod packet and {overhead} bytes of \
         encapsulation): raise it"
    )]
    SmallUnderlay {
        /// Interface.
        device: String,
        /// Its MTU in bytes.
        mtu: u32,
        /// Smallest that works.
        least: u32,
        /// Bytes that encryption adds.
        overhead: u32,
    },
    /// The kernel does not take the policies that keep clear packets out. The node must not be ready.
    #[error(
        "this node cannot keep clear pod packets from the wire, because the kernel refused an XFRM policy: {source}. It needs \
         CONFIG_XFRM_USER (modprobe xfrm_user) and CAP_NET_ADMIN; until then the node is not ready"
    )]
    CannotBlock {
        /// The refusal.
        source: espalier_netlink::Error,
    },
    /// The kernel does not take the rules that keep bare pod packets out. The node must not be ready.
    #[error(
        "this node cannot refuse bare pod packets that come in from the underlay, because the kernel refused a routing rule: \
         {source}. It needs CONFIG_IP_MULTIPLE_TABLES and CAP_NET_ADMIN; until then the node is not ready"
    )]
    CannotRefuse {
        /// The refusal.
        source: espalier_netlink::Error,
    },
    /// The kernel does not take the guard of native routing with the userspace data plane. The node must not be ready.
    #[error(
        "this node cannot tell pods' clear packets from opened ones, because the kernel refused nf_tables rules: {source}. Native \
         routing (overlay: None) with the userspace data plane needs CAP_NET_ADMIN for them; or use overlay \
         VXLAN or IPIP. Until then pairs that are encrypted are blocked, and the node is not ready"
    )]
    CannotGuard {
        /// The refusal.
        source: espalier_netlink::Error,
    },
    /// Somebody else's policy has the selector of one of ours.
    #[error(
        "an XFRM policy that is not ours stands in the place of: {policy}. Remove it (ip xfrm policy), or what makes it; until \
         then the node is not ready"
    )]
    ForeignPolicy {
        /// Ours.
        policy: String,
    },
    /// Somebody else's route has destination and metric of one of ours.
    #[error(
        "a route to {to} with metric {metric} that is not ours stands in the place of ours: remove it, or what makes it \
         (another network plugin?)"
    )]
    ForeignRoute {
        /// Destination.
        to: IpNet,
        /// Metric.
        metric: u32,
    },
    /// The VXLAN device cannot be made.
    #[error(
        "the VXLAN device {name} (VNI {vni}, UDP port {port}) cannot be made: {source}. Another VXLAN device with this VNI and \
         port is the usual cause (ip -d link show type vxlan)"
    )]
    Vxlan {
        /// Its name.
        name: &'static str,
        /// VXLAN network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
        /// The refusal.
        source: espalier_netlink::Error,
    },
    /// A device of ours cannot be made.
    #[error(
        "the device {name} of kind {kind} cannot be made: {source}. The kernel may lack its module (modprobe {kind}), or another \
         such device stands in its place (ip -d link show type {kind})"
    )]
    Device {
        /// Its name.
        name: &'static str,
        /// Its kind.
        kind: &'static str,
        /// The refusal.
        source: espalier_netlink::Error,
    },
    /// A combination of settings that Linux, or this version, cannot keep the promises of.
    #[error("{what}: {remedy}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Anything else between us and the kernel.
    #[error(transparent)]
    Netlink(#[from] espalier_netlink::Error),
    /// Removal went on in spite of these.
    #[error("not everything could be removed: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Remove(Vec<Error>),
}
