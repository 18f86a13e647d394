//! Data planes that have something more to say, or nothing.

use espalier_dataplane_core::{
    Dataplane, Direction, Dump, Error, Hello, Peer, PeerId, Reqid, Sa, Spi,
};

use crate::own::Own;

/// A data plane, which program it is, and what more there is to say about what it can do.
pub(crate) struct Told<D> {
    pub(crate) plane: D,
    pub(crate) notes: Vec<String>,
    pub(crate) own: Own,
}

impl<D: Dataplane> Dataplane for Told<D> {
    async fn hello(&self) -> Result<Hello, Error> {
        let mut hello = self.plane.hello().await?;
        let digest = self.own.get().await;
        hello.digest = digest.map_or_else(String::new, |digest| digest.to_string());
        hello.can.notes.extend(self.notes.iter().cloned());
        Ok(hello)
    }

    async fn dump(&self) -> Result<Dump, Error> {
        self.plane.dump().await
    }

    async fn put_peer(&self, peer: Peer) -> Result<Reqid, Error> {
        self.plane.put_peer(peer).await
    }

    async fn remove_peer(&self, peer: PeerId) -> Result<(), Error> {
        self.plane.remove_peer(peer).await
    }

    async fn install_sa(&self, sa: Sa) -> Result<(), Error> {
        self.plane.install_sa(sa).await
    }

    async fn switch_outbound(&self, peer: PeerId, spi: Option<Spi>) -> Result<(), Error> {
        self.plane.switch_outbound(peer, spi).await
    }

    async fn remove_sa(&self, direction: Direction, spi: Spi) -> Result<(), Error> {
        self.plane.remove_sa(direction, spi).await
    }
}

/// Answers every call with the reason why there is no data plane: the agent shows it, and the node is not ready (S8).
pub(crate) struct Refusing {
    pub(crate) reason: String,
}

impl Refusing {
    fn refuse<T>(&self) -> Result<T, Error> {
        Err(Error::Unreachable(self.reason.clone()))
    }
}

impl Dataplane for Refusing {
    async fn hello(&self) -> Result<Hello, Error> {
        self.refuse()
    }

    async fn dump(&self) -> Result<Dump, Error> {
        self.refuse()
    }

    async fn put_peer(&self, _: Peer) -> Result<Reqid, Error> {
        self.refuse()
    }

    async fn remove_peer(&self, _: PeerId) -> Result<(), Error> {
        self.refuse()
    }

    async fn install_sa(&self, _: Sa) -> Result<(), Error> {
        self.refuse()
    }

    async fn switch_outbound(&self, _: PeerId, _: Option<Spi>) -> Result<(), Error> {
        self.refuse()
    }

    async fn remove_sa(&self, _: Direction, _: Spi) -> Result<(), Error> {
        self.refuse()
    }
}
