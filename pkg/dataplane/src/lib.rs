//! The one seam between the agent and what encrypts: the kernel (XFRM) or the userspace data plane.
//!
//! Everything here is idempotent: putting a peer or an SA that is already there the same way changes nothing, removing one
//! that is gone succeeds. A data plane outlives the agent; [`Dataplane::dump`] tells a restarted agent what to adopt.

pub mod check;
mod frozen;
mod recent;
mod types;

pub use frozen::{Frozen, FrozenCounters, FrozenPeer, FrozenSa, FrozenTun, FrozenUsed, Progress};
pub use recent::Recent;
pub use types::{
    Capabilities, Direction, Dump, Encapsulation, Error, Event, Hello, KERNEL, Overlay, PROBE_PORT,
    Peer, PeerId, PeerStats, Reqid, Sa, SaInfo, SaMode, Spi, Suite, USERSPACE,
};

use std::future::Future;

/// What encrypts. One implementation per way to do it; the agent is generic over it.
pub trait Dataplane: Send + Sync + 'static {
    /// Who answers: instance, version and what it can do. A changed [`Hello::instance`] means that all state is gone.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when the process does not answer.
    fn hello(&self) -> impl Future<Output = Result<Hello, Error>> + Send;

    /// Complete state without keys.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when the process does not answer.
    fn dump(&self) -> impl Future<Output = Result<Dump, Error>> + Send;

    /// Adds a peer or brings its addresses and pod CIDRs up to date; its SAs stay. Gives the tag of its kernel states, which
    /// stays the same as long as they do.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the field; [`Error::Unreachable`].
    fn put_peer(&self, peer: Peer) -> impl Future<Output = Result<Reqid, Error>> + Send;

    /// Removes a peer with all its SAs.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    fn remove_peer(&self, peer: PeerId) -> impl Future<Output = Result<(), Error>> + Send;

    /// Installs one SA. An inbound SA accepts packets when this returns; an outbound SA carries none before
    /// [`Dataplane::switch_outbound`]. An outbound SA with an SPI seen before in this process' life is refused: its counter
    /// would start again and repeat nonces (S4).
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NoSuchPeer`], [`Error::SpiReused`], [`Error::Unreachable`].
    fn install_sa(&self, sa: Sa) -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes `spi` the SA that seals what is sent to `peer`, from the next packet on. `None` drops what is sent to it.
    ///
    /// # Errors
    /// [`Error::NoSuchPeer`], [`Error::NoSuchSa`], [`Error::Unreachable`].
    fn switch_outbound(
        &self,
        peer: PeerId,
        spi: Option<Spi>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes one SA.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    fn remove_sa(
        &self,
        direction: Direction,
        spi: Spi,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}
