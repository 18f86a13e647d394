//! From IKE's events to SAs in the data plane.

use std::time::{Duration, Instant};

use espalier_dataplane_core::{
    Dataplane, Direction, Encapsulation, Error, PeerId, Sa, SaMode, Spi, Suite,
};
use espalier_ike::{ChildSa, ChildSuite, EspSuite, Event, Identity, Role};
use espalier_peers::Announcement;
use tracing::{debug, info, warn};

use super::Mesh;
use super::peer::{NAT_T_PORT, PeerState};

/// Packets. More than a burst reorders over several cores and links.
const REPLAY_WINDOW: u32 = 8192;
/// How long packets sealed with adopted SAs may still be under way once the peer seals with newer ones.
const ADOPTED_DRAIN: Duration = Duration::from_secs(2);

impl<D: Dataplane> Mesh<D> {
    /// Acts on every event IKE has. Must be done before its datagrams are sent: a response promises an installed SA.
    pub(super) async fn take_ike_events(&mut self) {
        while let Some(event) = self.parts.endpoint.poll_event() {
            match event {
                Event::IkeUp { peer, took, role } => self.ike_up(&peer.0, took, role),
                Event::ChildUp {
                    peer,
                    child,
                    announcement,
                } => self.child_up(&peer.0, &child, announcement).await,
                Event::ChildDown {
                    peer,
                    spi_in,
                    spi_out,
                    ..
                } => self.child_down(&peer.0, Spi(spi_in), Spi(spi_out)).await,
                Event::IkeDown { peer, reason } => self.ike_down(&peer.0, reason),
                // Peers in the data plane are where their Nodes say, and only there may IKE move them.
                Event::AddressChanged { peer, path, .. } => {
                    info!(peer = %peer, remote = %path.remote, "IKE follows the peer to another address");
                }
                Event::Announcement { peer, data } => self.heard(&peer.0, &data).await,
                Event::AnnouncementAcked { peer, data } => self.acked(&peer.0, &data),
                Event::HandshakeFailed {
                    peer,
                    remote,
                    error,
                } => self.failed(peer, remote, &error.0),
            }
        }
    }

    fn ike_up(&mut self, name: &str, took: Duration, role: Role) {
        info!(peer = name, ?took, ?role, "IKE SA established");
        if let Some(peer) = self.peers.get_mut(name) {
            (peer.handshake, peer.problem) = (Some(took), None);
        }
    }

    async fn child_up(&mut self, name: &str, child: &ChildSa, announcement: Option<Vec<u8>>) {
        let (spi_in, spi_out) = (Spi(child.spi_in), Spi(child.spi_out));
        if let Err(e) = self.install(name, child).await {
            warn!(peer = name, error = %e, "SAs cannot be installed; the handshake is given up and tried again");
            let now = Instant::now();
            self.parts.endpoint.disconnect(&Identity(name.into()), now);
            self.note_problem(name, e.to_string());
            return;
        }
        info!(peer = name, %spi_in, %spi_out, suite = ?child.suite, role = ?child.role, "SAs installed");
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.add_sa(child.spi_in, child.spi_out, child.role);
        peer.said = None; // this node's inbound SPI is news
        if let Some(data) = announcement {
            self.heard(name, &data).await;
        }
        self.switch_to_best(name).await;
    }

    async fn install(&mut self, name: &str, child: &ChildSa) -> Result<(), Error> {
        let suite = suite_of(child)?;
        self.put_in_plane(name).await?;
        for (direction, spi, keys) in [
            (Direction::In, child.spi_in, &child.keys_in),
            (Direction::Out, child.spi_out, &child.keys_out),
        ] {
            let sa = Sa {
                peer: PeerId(name.to_owned()),
                direction,
                spi: Spi(spi),
                suite,
                mode: SaMode::Transport,
                key: keys.key.clone(),
                esn: child.esn,
                replay_window: REPLAY_WINDOW,
                encapsulation: Encapsulation::Udp {
                    local_port: NAT_T_PORT,
                    remote_port: NAT_T_PORT,
                },
                hard_seconds: 0,
                cpu: None,
            };
            self.parts.plane.install_sa(sa).await?;
        }
        Ok(())
    }

    /// The data plane must know a peer, as it is now, before its SAs.
    pub(super) async fn put_in_plane(&mut self, name: &str) -> Result<(), Error> {
        let found = self.peers.get_mut(name).filter(|peer| !peer.in_plane);
        let (Some(peer), Some(own)) = (found, &self.set.own) else {
            return Ok(());
        };
        peer.reqid = self.parts.plane.put_peer(peer.for_plane(own)).await?;
        peer.in_plane = true;
        Ok(())
    }

    /// Seals with the newest SA that the peer is known to open, and tells the pair whether there is one.
    async fn switch_to_best(&mut self, name: &str) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let best = peer.best();
        if best != peer.active {
            if let Err(e) = self.parts.plane.switch_outbound(peer.id(), best).await {
                warn!(peer = name, error = %e, "the outbound SA cannot be switched");
                peer.problem = Some(e.to_string());
                return;
            }
            debug!(peer = name, ?best, "outbound SA switched");
            peer.active = best;
        }
        peer.pair.set_esp(best.is_some(), Instant::now());
    }

    async fn child_down(&mut self, name: &str, spi_in: Spi, spi_out: Spi) {
        info!(peer = name, %spi_in, %spi_out, "SAs end");
        if let Some(peer) = self.peers.get_mut(name) {
            peer.sas.retain(|sa| sa.spi_in != spi_in);
            self.switch_to_best(name).await;
        }
        for (direction, spi) in [(Direction::In, spi_in), (Direction::Out, spi_out)] {
            self.remove_sa(name, direction, spi).await;
        }
    }

    async fn remove_sa(&mut self, name: &str, direction: Direction, spi: Spi) {
        if let Err(e) = self.parts.plane.remove_sa(direction, spi).await {
            warn!(peer = name, %spi, error = %e, "an SA cannot be removed");
        }
    }

    fn ike_down(&mut self, name: &str, reason: espalier_ike::CloseReason) {
        info!(peer = name, ?reason, "IKE SA ended");
        if let Some(peer) = self.peers.get_mut(name) {
            peer.pair.ike_down(Instant::now());
            peer.said = None;
        }
    }

    async fn heard(&mut self, name: &str, data: &[u8]) {
        let said = match Announcement::parse(data) {
            Ok(said) => said,
            Err(e) => return warn!(peer = name, error = %e, "peer announced something unreadable"),
        };
        debug!(peer = name, ?said, "peer announced");
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.pair.heard(said, Instant::now());
        // What this node initiated the peer opens before it answers, and may still seal with an older one: that shows by its
        // acknowledgement or by ESP only.
        self.confirm(name, |sa| !sa.confirmed && sa.spi_out == Spi(said.opens))
            .await;
    }

    pub(super) async fn first_packet(&mut self, name: &str, spi: Spi) {
        debug!(peer = name, %spi, "first packet on an inbound SA");
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.pair.heard_esp(Instant::now());
        self.confirm(name, |sa| sa.spi_in == spi).await;
    }

    /// The peer has both SAs of a pair: from now on this node seals with it, and older ones may go.
    async fn confirm(&mut self, name: &str, which: impl Fn(&super::peer::SaPair) -> bool) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let Some(sa) = peer.sas.iter_mut().find(|sa| which(sa)) else {
            return;
        };
        sa.confirmed = true;
        let spi_in = sa.spi_in.0;
        self.switch_to_best(name).await;
        self.parts
            .endpoint
            .confirm_child(&Identity(name.into()), spi_in, Instant::now());
        self.expire_adopted(name);
    }

    /// The peer knows this node's newest inbound SA and seals with it.
    fn acked(&mut self, name: &str, data: &[u8]) {
        let newest = self.peers.get(name).map(PeerState::opens);
        let opens = Announcement::parse(data).ok().map(|said| said.opens);
        if newest.is_some_and(|spi| spi != 0) && newest == opens {
            self.expire_adopted(name);
        }
    }

    fn expire_adopted(&mut self, name: &str) {
        if let Some(peer) = self
            .peers
            .get_mut(name)
            .filter(|peer| !peer.adopted.is_empty())
        {
            peer.drop_adopted_at
                .get_or_insert(Instant::now() + ADOPTED_DRAIN);
        }
    }

    /// Removes adopted SAs that have drained.
    pub(super) async fn drop_adopted(&mut self, now: Instant) {
        let due = |peer: &&mut PeerState| peer.drop_adopted_at.is_some_and(|at| at <= now);
        let drained: Vec<_> = self
            .peers
            .values_mut()
            .filter(due)
            .map(take_adopted)
            .collect();
        for (name, sas) in drained {
            for (direction, spi) in sas {
                self.remove_sa(&name, direction, spi).await;
                if direction == Direction::In {
                    self.parts.endpoint.release_spi(spi.0);
                }
            }
        }
    }

    fn failed(&mut self, peer: Option<Identity>, remote: std::net::SocketAddr, error: &str) {
        warn!(peer = peer.as_ref().map_or("unknown", |peer| &peer.0), %remote, error, "IKE handshake failed");
        // Whoever claims a peer's name from elsewhere is not that peer: its status is not for strangers to write.
        let is_peer = |name: &Identity| {
            self.peers
                .get(&*name.0)
                .is_some_and(|peer| peer.addresses.1 == remote.ip())
        };
        if let Some(peer) = peer.filter(is_peer) {
            self.note_problem(&peer.0, error.to_owned());
        }
    }

    fn note_problem(&mut self, name: &str, problem: String) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.problem = Some(problem);
        }
    }
}

fn take_adopted(peer: &mut PeerState) -> (String, Vec<(Direction, Spi)>) {
    peer.drop_adopted_at = None;
    (peer.spec.name.clone(), std::mem::take(&mut peer.adopted))
}

/// The userspace data plane seals ESP by AEAD in transport mode. Nothing else is configured, so that a peer cannot get it.
fn suite_of(child: &ChildSa) -> Result<Suite, Error> {
    let suite = match child.suite {
        ChildSuite::Esp(EspSuite::Aes256Gcm16) => Some(Suite::Aes256Gcm16),
        ChildSuite::Esp(EspSuite::Aes128Gcm16) => Some(Suite::Aes128Gcm16),
        ChildSuite::Esp(EspSuite::ChaCha20Poly1305) => Some(Suite::ChaCha20Poly1305),
        ChildSuite::Esp(_) | ChildSuite::Ah(_) => None,
    };
    suite.filter(|_| child.transport).ok_or_else(|| {
        let mode = if child.transport { "transport" } else { "tunnel" };
        Error::Invalid {
            field: "suite",
            why: format!(
                "expected ESP with AES-GCM-16 or ChaCha20-Poly1305 in transport mode, but {:?} in {mode} mode was negotiated; the userspace data plane has no other, configure one of these",
                child.suite
            ),
        }
    })
}

#[cfg(test)]
mod tests {
    use espalier_ike::{ChildId, ChildKeys, Integrity, Volume};
    use espalier_secret::SecretBytes;

    use super::*;

    fn child(suite: ChildSuite, transport: bool) -> ChildSa {
        let keys = ChildKeys {
            key: SecretBytes::default(),
            integrity: SecretBytes::default(),
        };
        ChildSa {
            id: ChildId::FIRST,
            per_cpu: false,
            spi_in: 300,
            spi_out: 400,
            suite,
            esn: true,
            volume: Volume::UNLIMITED,
            transport,
            keys_in: keys.clone(),
            keys_out: keys,
            local_ts: Vec::new(),
            remote_ts: Vec::new(),
            role: Role::Initiator,
            udp_encapsulation: None,
        }
    }

    #[test]
    fn what_the_userspace_data_plane_cannot_do_is_refused_with_a_remedy() {
        let good = child(EspSuite::Aes256Gcm16.into(), true);
        assert_eq!(suite_of(&good).unwrap(), Suite::Aes256Gcm16);
        for (suite, transport) in [
            (EspSuite::Aes256Gcm16.into(), false),
            (EspSuite::Aes256Gmac.into(), true),
            (EspSuite::Aes128Cbc(Integrity::HmacSha256).into(), true),
            (ChildSuite::Ah(Integrity::HmacSha512), true),
        ] {
            let error = suite_of(&child(suite, transport)).unwrap_err().to_string();
            assert!(error.contains("expected ESP with AES-GCM-16"), "{error}");
            assert!(error.contains(&format!("{suite:?}")), "{error}");
        }
    }
}
