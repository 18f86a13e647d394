//! The kernel data plane: XFRM states over netlink.
//!
//! ```text
//!  agent ── trait Dataplane ──▶ plane ──▶ sad ──▶ wire ──▶ NETLINK_XFRM: NEWSA, DELSA, GETSA
//!                                 │                             │
//!                                 ├─ book: peer ↔ reqid, on disk │
//!                                 ├─ used: S3, S4                ▼
//!                                 └─ watch ◀── listener ◀── notice: EXPIRE, ACQUIRE
//! ```
//!
//! Division of labour: states are this crate's, policies are `espalier-overlay`'s, the agent's. So
//! [`espalier_dataplane_core::Dataplane::switch_outbound`] only notes which SA is active; the policy that the agent writes pins
//! its SPI. What is ours is known by its reqid ([`REQIDS`]); every other state stays as it is. States outlive the process; the
//! next one adopts them.

mod algorithm;
mod book;
mod encap;
mod error;
mod instance;
mod listener;
mod notice;
mod plane;
mod probe;
mod remove;
mod reqid;
mod sad;
mod stat;
mod used;
mod wire;

pub use book::{Contents, parse_peers_file};
pub use encap::take_esp_in_udp;
pub use error::Error;
pub use plane::{Config, KernelPlane};
pub use probe::{Findings, probe};
pub use remove::remove_states;
pub use reqid::REQIDS;
pub use stat::parse as parse_counters;
pub use wire::ParseError;

/// Reads bytes as every kind of message that the kernel sends, as the data plane would. For fuzzing: it must not panic, and
/// what it gives must not show a key.
#[doc(hidden)]
#[must_use]
pub fn read_kernel_message(bytes: &[u8]) -> String {
    let state = wire::state::State::parse(bytes);
    let expire = wire::expire::Expire::parse(bytes);
    let pinned = wire::policy::pinned(bytes);
    let acquire = wire::acquire::reqids(bytes);
    let notices = notice::parse(bytes);
    format!("{state:?} {expire:?} {pinned:?} {acquire:?} {notices:?}")
}
