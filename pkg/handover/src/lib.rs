//! What a data plane process leaves to the program that replaces it in place: its state, and its descriptors.
//!
//! ```text
//!  old program                                             new program, same process
//!   threads stop                                             threads start
//!   State ── format ──▶ bytes ── memory ──▶ memfd ═╗   ╔═▶ memfd ──▶ bytes ── format ──▶ State
//!   TUN, UDP 4500, raw ESP, relay, listener, lock ═╣exec╠═▶ the same, with what waits in them
//!                                     standard input, a socket with one message (carry)
//! ```
//!
//! [`format`] is pure and says what a state may be; [`memory`] keeps it off the disk; [`carry`] brings both across the exec;
//! [`binary`] says which file may be the new program.

pub mod binary;
pub mod carry;
pub mod format;
pub mod memory;

mod convert;
mod state;

pub use binary::Digest;
pub use format::{VERSION, VERSIONS};
pub use state::{Plane, Role, State};

/// `CLOCK_MONOTONIC` in nanoseconds, which goes on across an exec.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanoseconds) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

/// The generated messages (`proto/state.proto`).
#[allow(
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::unwrap_used,
    clippy::expect_used
)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/espalier.handover.v1.rs"));
}
