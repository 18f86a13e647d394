//! The IKE engine against foreign implementations: `make interop`, docs/interop.md.
//!
//! [`probe::run`] is our side: one endpoint on UDP 500 and 4500 that installs its SAs in the kernel. [`host::run`] starts one
//! guest kernel per foreign implementation; in each [`guest::run`] works through the cases.

mod capture;
mod cases;
mod command;
pub mod fixture;
mod foreign;
pub mod guest;
pub mod host;
mod kdf;
mod lab;
mod matrix;
mod ours;
mod pki;
pub mod probe;
mod report;
