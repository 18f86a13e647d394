//! Pure IKEv2 (RFC 7296): no sockets, no clock, no global randomness.
//!
//! [`Endpoint`] is one node's IKE engine. Its driver feeds it datagrams and the time and drains, **in this order**,
//! [`Endpoint::poll_event`] (acting on each event before the next step) and then [`Endpoint::poll_transmit`]: a response
//! that promises an SA must not leave before that SA is installed.

#[cfg(test)]
mod captures;
mod child;
mod config;
mod endpoint;
mod error;
mod event;
mod exchange;
pub mod limits;
mod sa;
mod suite;
mod timers;

pub mod crypto;
pub mod identity;
pub mod wire;

pub use config::{
    ChildConfig, ChildId, Config, Encapsulations, Identity, IkePolicy, PeerAuth, PeerConfig,
    PostQuantum, Ppk, Rekeying, TrafficSelector, Volume,
};
pub use endpoint::{Connect, Endpoint, Holdings};
pub use error::ConfigError;
pub use event::{
    ChildKeys, ChildSa, CloseReason, Encapsulation, Event, HandshakeError, IkeStatus, Path, Role,
    Transmit,
};
pub use suite::{ChildSuite, EspSuite, Integrity};
