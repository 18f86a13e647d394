//! From IKE's events to SAs in the data plane.

use std::time::{Duration, Instant};

use espalier_dataplane_core::{
    Dataplane, Direction, Encapsulation, Error, PeerId, Sa, SaMode, Spi, Suite,
};
use espalier_ike::{ChildSa, CloseReason, Event, Identity, Role};
use espalier_peers::Announcement;
use tracing::{debug, info, warn};

use super::peer::{Adopted, FALLBACK, PeerState, SaPair};
use super::terms::plane_suite;
use super::{Kernel, Mesh};

/// Packets, where the data plane can. More than a burst reorders over several cores and links.
const REPLAY_WINDOW: u32 = 8192;
/// How long packets sealed with adopted SAs may still be under way once the peer seals with newer ones.
pub(super) const ADOPTED_DRAIN: Duration = Duration::from_secs(2);
/// And how long the peer has to make SAs for the CPUs that adopted ones are for: as long as IKE waits for it.
const ADOPTED_PATIENCE: Duration = Duration::from_secs(60);

/// What a negotiated SA pair is in the data plane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) suite: Suite,
    pub(super) mode: SaMode,
    pub(super) encapsulation: Encapsulation,
}

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    /// Acts on every event IKE has. Must be done before its datagrams are sent: a response promises an installed SA.
    /// Whether there were any.
    pub(super) async fn take_ike_events(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.parts.endpoint.poll_event() {
            any = true;
            let Some(event) = self.take_gateway_event(event).await else {
                continue;
            };
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
        any
    }

    fn ike_up(&mut self, name: &str, took: Duration, role: Role) {
        info!(peer = name, ?took, ?role, "IKE SA established");
        self.parts.counters.handshake(took);
        if let Some(peer) = self.peers.get_mut(name) {
            (peer.handshake, peer.problem) = (Some(took), None);
        }
    }

    async fn child_up(&mut self, name: &str, child: &ChildSa, announcement: Option<Vec<u8>>) {
        let suite = match self.install(name, child).await {
            Ok(suite) => suite,
            Err(e) => return self.not_installed(name, child, announcement, &e),
        };
        let (spi_in, spi_out) = (Spi(child.spi_in), Spi(child.spi_out));
        info!(peer = name, %spi_in, %spi_out, suite = ?child.suite, role = ?child.role, "SAs installed");
        let raw = self.terms.encapsulation(child) == Encapsulation::Raw;
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let replaces = |sa: &SaPair| sa.cpu == child.id.cpu && sa.raw == raw;
        if peer.sas.iter().any(replaces) {
            self.parts.counters.rekey();
        }
        peer.sas.push(SaPair {
            spi_in,
            spi_out,
            suite,
            raw,
            // An initiator's is confirmed by the response itself: the responder installed first.
            confirmed: child.role == Role::Initiator,
            granted: child.role == Role::Responder,
            cpu: child.id.cpu,
            installed: Instant::now(),
        });
        peer.said = None; // this node's inbound SPI is news
        if child.id.number != FALLBACK && child.id.cpu.is_none() {
            peer.note_first_child(raw, Instant::now());
        }
        if let Some(data) = announcement {
            self.heard(name, &data).await;
        }
        self.switch_to_best(name).await;
    }

    /// While the kernel's process is away the pair's other SAs carry on: nothing is ended, and nothing is answered before this one
    /// is installed. Whatever else a data plane refuses ends the IKE SA.
    fn not_installed(
        &mut self,
        name: &str,
        child: &ChildSa,
        announcement: Option<Vec<u8>>,
        error: &Error,
    ) {
        if self.uplink.is_kernel() && matches!(error, Error::Unreachable(_)) {
            warn!(peer = name, %error, "SAs wait for the data plane");
            self.uplink.lost();
            if let Some(peer) = self.peers.get_mut(name) {
                peer.waiting.push((child.clone(), announcement));
            }
            return;
        }
        warn!(peer = name, %error, "SAs cannot be installed; the handshake is given up and tried again");
        let now = Instant::now();
        self.parts.endpoint.disconnect(&Identity(name.into()), now);
        self.note_problem(name, error.to_string());
    }

    /// The data plane is back.
    pub(super) async fn install_waiting(&mut self) {
        let waiting: Vec<_> = self
            .peers
            .all_mut()
            .flat_map(|(name, peer)| {
                let name = name.clone();
                peer.waiting.drain(..).map(move |sa| (name.clone(), sa))
            })
            .collect();
        for (name, (child, announcement)) in waiting {
            self.child_up(&name, &child, announcement).await;
        }
    }

    async fn install(&mut self, name: &str, child: &ChildSa) -> Result<Suite, Error> {
        let suite = self.suite_of(child)?;
        self.put_in_plane(name).await?;
        self.pin(name);
        let form = Form {
            suite,
            mode: self.terms.mode(),
            encapsulation: self.terms.encapsulation(child),
        };
        self.install_pair(name, child, form).await?;
        Ok(suite)
    }

    /// Both directions, the inbound one first; the data plane knows the peer.
    pub(super) async fn install_pair(
        &mut self,
        name: &str,
        child: &ChildSa,
        form: Form,
    ) -> Result<(), Error> {
        let lifetime = self.rekeying().child_hard.as_secs();
        for (direction, spi, keys) in [
            (Direction::In, child.spi_in, &child.keys_in),
            (Direction::Out, child.spi_out, &child.keys_out),
        ] {
            let key = if form.suite.is_ah() {
                &keys.integrity
            } else {
                &keys.key
            };
            let sa = Sa {
                peer: PeerId(name.to_owned()),
                direction,
                spi: Spi(spi),
                suite: form.suite,
                mode: form.mode,
                key: key.clone(),
                esn: child.esn,
                replay_window: REPLAY_WINDOW.min(self.terms.can.max_replay_window),
                encapsulation: form.encapsulation,
                // SAs outlive this process.
                hard_seconds: u32::try_from(lifetime).unwrap_or(u32::MAX),
                // What comes in is opened by any CPU.
                cpu: child.id.cpu.filter(|_| direction == Direction::Out),
            };
            self.parts.plane.install_sa(sa).await?;
        }
        Ok(())
    }

    /// What was offered is what the data plane has, so that a peer cannot get anything else.
    fn suite_of(&self, child: &ChildSa) -> Result<Suite, Error> {
        let suite = plane_suite(child.suite);
        let mode = |transport: bool| if transport { "transport" } else { "tunnel" };
        let transport = self.terms.mode() == SaMode::Transport;
        suite
            .filter(|suite| child.transport == transport && self.terms.can.suites.contains(suite))
            .ok_or_else(|| Error::Invalid {
                field: "suite",
                why: format!(
                    "expected one of {:?} in {} mode, but {:?} in {} mode was negotiated; the data plane has no other, configure one of these",
                    self.terms.can.suites,
                    mode(transport),
                    child.suite,
                    mode(child.transport),
                ),
            })
    }

    /// The data plane must know a peer, as it is now, before its SAs.
    pub(super) async fn put_in_plane(&mut self, name: &str) -> Result<(), Error> {
        let found = self.peers.get(name).filter(|peer| !peer.in_plane);
        let (Some(peer), Some(own)) = (found, &self.set.own) else {
            return Ok(());
        };
        let wanted = peer.for_plane(own, self.terms.plane_overlay());
        self.remove_before_return(&wanted.id).await?;
        let reqid = self.parts.plane.put_peer(wanted).await?;
        if let Some(peer) = self.peers.get_mut(name) {
            (peer.reqid, peer.in_plane) = (reqid, true);
        }
        Ok(())
    }

    /// Seals with the newest SA that the peer is known to open, and tells the pair whether there is one.
    pub(super) async fn switch_to_best(&mut self, name: &str) {
        let tries = self.terms.tries();
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let best = peer.best(tries);
        if best != peer.active || !peer.switched {
            if let Err(e) = self.parts.plane.switch_outbound(peer.id(), best).await {
                warn!(peer = name, error = %e, "the outbound SA cannot be switched");
                peer.problem = Some(e.to_string());
                return;
            }
            debug!(peer = name, ?best, "outbound SA switched");
            (peer.active, peer.switched) = (best, true);
        }
        peer.pair.set_esp(best.is_some(), Instant::now());
    }

    async fn child_down(&mut self, name: &str, spi_in: Spi, spi_out: Spi) {
        info!(peer = name, %spi_in, %spi_out, "SAs end");
        if let Some(peer) = self.peers.get_mut(name) {
            peer.sas.retain(|sa| sa.spi_in != spi_in);
            peer.waiting.retain(|(child, _)| child.spi_in != spi_in.0);
            if peer.sas.is_empty() {
                peer.way.lost(Instant::now());
            }
            self.switch_to_best(name).await;
        }
        self.remove_later(name, [(Direction::In, spi_in), (Direction::Out, spi_out)]);
    }

    fn ike_down(&mut self, name: &str, reason: CloseReason) {
        info!(peer = name, ?reason, "IKE SA ended");
        if let Some(peer) = self.peers.get_mut(name) {
            peer.pair.ike_down(Instant::now());
            peer.said = None;
            if reason == CloseReason::Peer {
                peer.demanded = None; // it gave up what is idle; a packet asks again
            }
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
        self.told_way(name, said.way);
        // What this node initiated the peer opens before it answers, and may still seal with an older one: that shows by its
        // acknowledgement or by ESP only.
        self.confirm(name, |peer| peer.confirm_announced(Spi(said.opens)))
            .await;
    }

    pub(super) async fn first_packet(&mut self, name: &str, spi: Spi) {
        debug!(peer = name, %spi, "first packet on an inbound SA");
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let now = Instant::now();
        peer.way.heard(spi.0, now);
        // On a raw SA it may be a probe, which is no sign that the peer seals its pods' packets.
        if !peer.sas.iter().any(|sa| sa.spi_in == spi && sa.raw) {
            peer.pair.heard_esp(now);
        }
        self.confirm(name, |peer| peer.confirm_used(spi)).await;
    }

    /// The peer has both SAs of a pair: from now on this node seals with it, and older ones may go.
    async fn confirm(&mut self, name: &str, which: impl Fn(&mut PeerState) -> Vec<u32>) {
        let confirmed = self.peers.get_mut(name).map(which).unwrap_or_default();
        if confirmed.is_empty() {
            return;
        }
        if let Some(peer) = self.peers.get_mut(name) {
            peer.note_opened(&confirmed);
        }
        self.switch_to_best(name).await;
        let (id, now) = (Identity(name.into()), Instant::now());
        for spi_in in confirmed {
            self.parts.endpoint.confirm_child(&id, spi_in, now);
        }
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
            // The peer seals with adopted SAs of single CPUs until it has newer ones of these CPUs.
            let replaced = peer.replaces_adopted();
            let wait = if replaced {
                ADOPTED_DRAIN
            } else {
                ADOPTED_PATIENCE
            };
            let at = Instant::now() + wait;
            let at = peer.drop_adopted_at.map_or(at, |due| due.min(at));
            peer.drop_adopted_at = Some(at);
        }
    }

    /// Gives up adopted SAs that have drained.
    pub(super) async fn drop_adopted(&mut self, turn: &[String], now: Instant) {
        let tries = self.terms.tries();
        let mut drained = Vec::new();
        self.peers.for_turn(turn, |_, peer| {
            if peer.drop_adopted_at.is_some_and(|at| at <= now) && !peer.needs_adopted(tries) {
                drained.push(take_adopted(peer));
            }
        });
        for (name, sas) in drained {
            self.remove_later(&name, sas.iter().map(|sa| (sa.direction, sa.spi)));
            self.switch_to_best(&name).await;
        }
    }

    fn failed(&mut self, peer: Option<Identity>, remote: std::net::SocketAddr, error: &str) {
        warn!(peer = peer.as_ref().map_or("unknown", |peer| &peer.0), %remote, error, "IKE handshake failed");
        self.parts.counters.handshake_failed();
        // Whoever claims a peer's name from elsewhere is not that peer: its status is not for strangers to write.
        let is_peer = |name: &Identity| {
            self.peers
                .get(&name.0)
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

fn take_adopted(peer: &mut PeerState) -> (String, Vec<Adopted>) {
    peer.drop_adopted_at = None;
    (peer.spec.name.clone(), std::mem::take(&mut peer.adopted))
}
