use std::time::Instant;

use espalier_dataplane_core::{
    Dataplane, Direction, Dump, Error, Hello, KERNEL, Peer, PeerId, Reqid, Sa, Spi,
};

use super::KernelPlane;

/// Nothing here waits but for the kernel, which answers while it is asked: the futures are ready when first polled.
impl Dataplane for KernelPlane {
    async fn hello(&self) -> Result<Hello, Error> {
        Ok(Hello {
            instance: self.instance,
            version: self.version.clone(),
            digest: String::new(),
            kind: KERNEL.into(),
            device: None,
            pid: std::process::id(),
            can: self.shared.inner.lock().findings().can.clone(),
        })
    }

    async fn dump(&self) -> Result<Dump, Error> {
        let drops = self.counters.read();
        let (dump, events) = self.shared.inner.lock().dump(drops)?;
        self.shared.report(events);
        Ok(dump)
    }

    async fn put_peer(&self, peer: Peer) -> Result<Reqid, Error> {
        self.shared.inner.lock().put_peer(peer).map(Reqid)
    }

    async fn remove_peer(&self, peer: PeerId) -> Result<(), Error> {
        self.shared.inner.lock().remove_peer(&peer)
    }

    async fn install_sa(&self, sa: Sa) -> Result<(), Error> {
        self.shared.inner.lock().install_sa(&sa, Instant::now())?;
        if sa.direction == Direction::In {
            self.shared.nudge();
        }
        Ok(())
    }

    async fn switch_outbound(&self, peer: PeerId, spi: Option<Spi>) -> Result<(), Error> {
        self.shared.inner.lock().switch_outbound(&peer, spi)
    }

    async fn remove_sa(&self, direction: Direction, spi: Spi) -> Result<(), Error> {
        self.shared.inner.lock().remove_sa(direction, spi)
    }
}
