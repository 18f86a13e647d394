//! Pod addresses: which are free, who has which, and a file that remembers it across restarts.
//!
//! [`Allocator`] decides and is pure: time comes in. [`Store`] is an allocator whose every change is on disk before it
//! counts: a file of leases and a journal of what changed since. [`pending`] is how the CNI plugin hands in releases while the agent is away.

mod allocator;
mod envelope;
mod journal;
mod lease;
pub mod pending;
mod pool;
mod store;

pub use allocator::{Allocator, Error};
pub use lease::{Key, Lease, LeasedAddress, Owner};
pub use pool::{Family, V6_GATEWAY, node_gateway};
pub use store::{Consumed, Store, StoreError};
