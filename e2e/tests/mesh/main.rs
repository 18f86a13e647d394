//! The real binaries in namespaces, with everything that goes wrong on real hosts.

mod faults;
mod identity;
mod invariants;
mod life;
mod native;
mod raw;
mod upgrade;
