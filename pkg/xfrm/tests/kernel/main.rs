//! The kernel data plane against a kernel that has ESP.
//!
//! ```text
//!  netns a                              netns b
//!  KernelPlane, UDP 4500 ── veth ── KernelPlane, UDP 4500
//!  192.0.2.1, fd00:e::1                 192.0.2.2, fd00:e::2
//! ```
//!
//! The planes install states, `ip xfrm policy` writes what the agent would.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod events;
mod node;
mod ownership;
mod rate;
mod traffic;
