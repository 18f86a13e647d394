//! What is removed from the data plane last: after the kernel's policies no longer name it.

use std::collections::VecDeque;

use espalier_dataplane_core::{Dataplane, Direction, Error, PeerId, Spi};
use tracing::warn;

use super::{Kernel, Mesh};

/// One thing that nobody uses any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// An SA of a peer.
    Sa {
        peer: String,
        direction: Direction,
        spi: Spi,
    },
    /// A peer with all its SAs.
    Peer(PeerId),
}

/// In the order in which they fell out of use.
pub(super) type Removals = VecDeque<Removal>;

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    pub(super) fn remove_later(
        &mut self,
        peer: &str,
        sas: impl IntoIterator<Item = (Direction, Spi)>,
    ) {
        let removal = |(direction, spi)| Removal::Sa {
            peer: peer.to_owned(),
            direction,
            spi,
        };
        self.removals.extend(sas.into_iter().map(removal));
    }

    /// Called when the kernel is as it should be. What the data plane does not answer to stays for the next time.
    pub(super) async fn remove_unused(&mut self) {
        while let Some(next) = self.removals.pop_front() {
            if let Err(Error::Unreachable(_)) = self.remove(&next).await {
                return self.removals.push_front(next);
            }
            if let Removal::Sa { peer, .. } = &next {
                self.peers.touch(peer); // may have waited for it
            }
        }
    }

    /// A peer that comes back under its name must not lose its new SAs to the removal of the old ones.
    pub(super) async fn remove_before_return(&mut self, id: &PeerId) -> Result<(), Error> {
        let waits = Removal::Peer(id.clone());
        let Some(at) = self.removals.iter().position(|removal| *removal == waits) else {
            return Ok(());
        };
        self.remove(&waits).await?;
        self.removals.remove(at);
        Ok(())
    }

    async fn remove(&mut self, removal: &Removal) -> Result<(), Error> {
        let plane = &self.parts.plane;
        let (peer, done) = match removal {
            Removal::Sa {
                peer,
                direction,
                spi,
            } => (peer, plane.remove_sa(*direction, *spi).await),
            Removal::Peer(id) => (&id.0, plane.remove_peer(id.clone()).await),
        };
        match (&done, removal) {
            (Err(e), _) => warn!(%peer, ?removal, error = %e, "removing what is out of use"),
            // One that was adopted is free again; those of IKE are its own matter.
            (
                Ok(()),
                Removal::Sa {
                    direction: Direction::In,
                    spi,
                    ..
                },
            ) => {
                self.parts.endpoint.release_spi(spi.0);
            }
            _ => {}
        }
        done
    }
}
