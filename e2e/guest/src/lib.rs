//! Development only: runs a program in a guest kernel and takes its results.
//!
//! ```text
//!  host: run ── plan.json ──▶ scripts/kernel/boot.sh ─▶ guest kernel ─▶ the same program, other arguments
//!         ◀────────────────── rows.jsonl, one line per result, kept even if the guest dies
//! ```
//!
//! [`boot`] starts the guest and ends it in time, [`append`] and [`read`] carry the rows, [`Daemon`] is a process group that
//! ends with its owner.

mod boot;
mod daemon;
mod rows;

pub use boot::{Guest, boot};
pub use daemon::Daemon;
pub use rows::{append, read, write_report};
