use std::time::Instant;

use espalier_dataplane_core::{
    Capabilities, Dataplane, Direction, Dump, Error, Hello, Peer, PeerId, Reqid, Sa, Spi, USERSPACE,
};
use espalier_esp::MAX_WINDOW;

use super::check::SUITES;
use crate::engine::Engine;

/// Nothing here waits: the futures are ready when first polled.
impl Dataplane for Engine {
    async fn hello(&self) -> Result<Hello, Error> {
        let notes = match self.shared.raw.missing() {
            [Some(why), Some(_)] => vec![format!("no raw ESP (protocol 50): {why}")],
            _ => Vec::new(),
        };
        Ok(Hello {
            instance: self.identity.instance,
            version: self.identity.version.clone(),
            digest: String::new(),
            kind: USERSPACE.into(),
            device: Some(self.identity.device.clone()),
            pid: std::process::id(),
            can: Capabilities {
                suites: SUITES.to_vec(),
                // Agents of before would try it, which cannot be done here.
                raw_untried: notes.is_empty(),
                udp: true,
                tunnel: true,
                esn: true,
                max_replay_window: MAX_WINDOW,
                notes,
                ..Capabilities::default()
            },
        })
    }

    async fn dump(&self) -> Result<Dump, Error> {
        let control = self.control.lock();
        let peers = control
            .peers()
            .map(|entry| (entry.peer.clone(), entry.state.stats()))
            .collect();
        Ok(Dump {
            peers,
            sas: control.sas(Instant::now()),
            drops: self.shared.drops.dump(),
        })
    }

    async fn put_peer(&self, peer: Peer) -> Result<Reqid, Error> {
        self.change(|control, _| control.put_peer(peer))?;
        Ok(Reqid::default())
    }

    async fn remove_peer(&self, peer: PeerId) -> Result<(), Error> {
        self.change(|control, _| control.remove_peer(&peer));
        Ok(())
    }

    async fn install_sa(&self, sa: Sa) -> Result<(), Error> {
        self.change(|control, now| control.install_sa(sa, now))
    }

    async fn switch_outbound(&self, peer: PeerId, spi: Option<Spi>) -> Result<(), Error> {
        self.control.lock().switch_outbound(&peer, spi)
    }

    async fn remove_sa(&self, direction: Direction, spi: Spi) -> Result<(), Error> {
        self.change(|control, _| control.remove_sa(direction, spi));
        Ok(())
    }
}
