//! The endpoint in a simulated network. Everything random is seeded: a failure names its seed and happens again.

#![allow(unreachable_pub)] // a test binary has no outside
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod bounds;
mod child;
mod childless;
mod children;
mod collisions;
mod encapsulation;
mod followup;
mod foreign;
mod fragments;
mod fragments_hostile;
mod handshake;
mod hostile;
mod initiator;
mod insider;
mod keys;
mod lifecycle;
mod lifetimes;
mod mesh;
mod mesh_sizes;
mod mobike;
mod nat;
mod policy;
mod post_quantum;
mod ppk;
mod reauth;
mod refused;
mod rekey;
mod rekey_raw;
mod restart;
mod robust;
mod schedules;
mod sim;
mod stray;
mod whitelist;
