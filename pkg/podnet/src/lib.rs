//! A pod's interface: made, removed, compared and listed.
//!
//! ```text
//!  host namespace                                   │ pod namespace
//!  route 10.244.1.5/32 dev esp… proto 229           │ address 10.244.1.5/32
//!  neighbour 10.244.1.5 → pod's MAC                 │ neighbour 10.244.1.1 → host veth's MAC
//!  esp0123456789a ──────────────────────────────────┼──────── eth0
//!  (10.244.1.1 is local to the host; fe80::1 is on  │ route 10.244.1.1 dev eth0 scope link
//!   the veth when the pod has IPv6)                 │ route default via 10.244.1.1
//! ```
//!
//! The host's name and both MACs are derived from container and interface, so whoever knows these finds everything
//! again. Both ends carry an alias that says whose they are.

mod check;
mod detach;
mod error;
mod fault;
mod identity;
mod list;
mod netns;
mod setup;
mod spec;
mod teardown;

pub use check::{Allowance, check, check_with};
pub use detach::{Work, detach, detach_all};
pub use error::Error;
pub use identity::{Identity, host_name};
pub use list::{HostVeth, exists, list};
pub use setup::{Begun, Pending, PodInterface, begin, setup};
pub use spec::{PodAddress, PodSpec};
pub use teardown::{remove_listed, teardown, teardown_all};

/// `rtm_protocol` of Espalier's routes.
pub const ROUTE_PROTOCOL: u8 = 229;
