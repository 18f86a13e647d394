//! What IKE and the data plane say of gateways.

use std::net::SocketAddr;
use std::time::Instant;

use espalier_dataplane_core::{Dataplane, Direction, Encapsulation, Error, Event, SaMode, Spi};
use espalier_ike::{ChildSa, Event as IkeEvent, Identity, Role};
use tracing::{debug, info, warn};

use super::{ANSWER_ARRIVES, Gateway, OLD_OPENS, TunnelSa, selectors};
use crate::mesh::child::{ADOPTED_DRAIN, Form};
use crate::mesh::terms::plane_suite;
use crate::mesh::{Kernel, Mesh};

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    /// Takes what is about a gateway, and gives back what is about somebody else.
    pub(in crate::mesh) async fn take_gateway_event(
        &mut self,
        event: IkeEvent,
    ) -> Option<IkeEvent> {
        let name = subject(&event).filter(|peer| self.gateways.contains_key(&*peer.0));
        let Some(name) = name.map(|peer| peer.0.to_string()) else {
            return Some(event);
        };
        match event {
            IkeEvent::IkeUp { took, role, .. } => {
                info!(gateway = name, ?took, ?role, "IKE SA established");
                if let Some(gateway) = self.gateways.get_mut(&name) {
                    (gateway.handshake, gateway.problem) = (Some(took), None);
                }
            }
            IkeEvent::ChildUp { child, .. } => self.tunnel_up(&name, &child).await,
            IkeEvent::ChildDown {
                spi_in, spi_out, ..
            } => self.tunnel_down(&name, Spi(spi_in), Spi(spi_out)).await,
            IkeEvent::IkeDown { reason, .. } => info!(gateway = name, ?reason, "IKE SA ended"),
            IkeEvent::HandshakeFailed { remote, error, .. } => {
                self.gateway_failed(&name, remote, error.0);
            }
            // Its address is where the manifest says, and it has nothing to announce.
            IkeEvent::AddressChanged { .. }
            | IkeEvent::Announcement { .. }
            | IkeEvent::AnnouncementAcked { .. } => {}
        }
        None
    }

    fn gateway_failed(&mut self, name: &str, remote: SocketAddr, error: String) {
        warn!(gateway = name, %remote, error, "IKE handshake failed");
        // Its status is not for strangers to write.
        let gateway = self.gateways.get_mut(name);
        if let Some(gateway) = gateway.filter(|gateway| gateway.spec.gateway == remote.ip()) {
            gateway.problem = Some(error);
        }
    }

    async fn tunnel_up(&mut self, name: &str, child: &ChildSa) {
        if let Err(error) = self.install_tunnel(name, child).await {
            return self.tunnel_not_installed(name, child, &error);
        }
        let Some(gateway) = self.gateways.get_mut(name) else {
            return;
        };
        let now = Instant::now();
        let (selectors, odd) = selectors::agreed(child);
        let (spi_in, spi_out) = (Spi(child.spi_in), Spi(child.spi_out));
        info!(gateway = name, %spi_in, %spi_out, suite = ?child.suite, role = ?child.role, ?selectors, "tunnel installed");
        gateway.problem = odd.then(|| narrowed(gateway));
        gateway.sas.push(TunnelSa {
            spi_in,
            spi_out,
            selectors,
            // Whoever answers installs first.
            confirmed_at: match child.role {
                Role::Initiator => now,
                Role::Responder => now + ANSWER_ARRIVES,
            },
        });
        self.switch_gateway(name).await;
    }

    async fn install_tunnel(&mut self, name: &str, child: &ChildSa) -> Result<(), Error> {
        let suite = plane_suite(child.suite);
        let suite = suite.filter(|suite| self.terms.tunnel_suites().contains(suite));
        let Some(suite) = suite.filter(|_| !child.transport) else {
            return Err(Error::Invalid {
                field: "suite",
                why: format!(
                    "expected one of {:?} in tunnel mode, {:?} was negotiated; configure one of these at the gateway",
                    self.terms.tunnel_suites(),
                    child.suite
                ),
            });
        };
        self.put_gateway_in_plane(name).await?;
        let encapsulation = match child.udp_encapsulation {
            None => Encapsulation::Raw,
            Some(path) => Encapsulation::Udp {
                local_port: path.local.port(),
                remote_port: path.remote.port(),
            },
        };
        let form = Form {
            suite,
            mode: SaMode::Tunnel,
            encapsulation,
        };
        self.install_pair(name, child, form).await
    }

    /// As [`Mesh::not_installed`] for peers: while the kernel's process is away what there is carries on.
    fn tunnel_not_installed(&mut self, name: &str, child: &ChildSa, error: &Error) {
        let Some(gateway) = self.gateways.get_mut(name) else {
            return;
        };
        if self.uplink.is_kernel() && matches!(error, Error::Unreachable(_)) {
            warn!(gateway = name, %error, "SAs wait for the data plane");
            self.uplink.lost();
            return gateway.waiting.push(child.clone());
        }
        warn!(gateway = name, %error, "SAs cannot be installed; the handshake is given up and tried again");
        gateway.problem = Some(error.to_string());
        let id = Identity(name.into());
        self.parts.endpoint.disconnect(&id, Instant::now());
    }

    /// The data plane is back.
    pub(in crate::mesh) async fn install_waiting_tunnels(&mut self) {
        let waiting = self.gateways.iter_mut().flat_map(|(name, gateway)| {
            let all = gateway.waiting.drain(..);
            all.map(|child| (name.clone(), child)).collect::<Vec<_>>()
        });
        for (name, child) in waiting.collect::<Vec<_>>() {
            self.tunnel_up(&name, &child).await;
        }
    }

    async fn tunnel_down(&mut self, name: &str, spi_in: Spi, spi_out: Spi) {
        info!(gateway = name, %spi_in, %spi_out, "tunnel ends");
        let now = Instant::now();
        if let Some(gateway) = self.gateways.get_mut(name) {
            gateway.sas.retain(|sa| sa.spi_in != spi_in);
            gateway.waiting.retain(|child| child.spi_in != spi_in.0);
            // An end deletes an old one when it has a new one.
            gateway.confirm(now);
            self.switch_gateway(name).await;
        }
        self.remove_later(name, [(Direction::Out, spi_out)]);
        match self.gateways.get_mut(name) {
            Some(gateway) if gateway.has_sas() => {
                gateway.draining.push((spi_in, now + OLD_OPENS));
                self.parts.endpoint.reserve_spi(spi_in.0);
            }
            _ => self.remove_later(name, [(Direction::In, spi_in)]),
        }
    }

    /// Takes what is about a gateway, and gives back what is about somebody else.
    pub(in crate::mesh) async fn take_gateway_report(&mut self, event: Event) -> Option<Event> {
        let (Event::FirstPacket { peer, .. }
        | Event::Acquire { peer }
        | Event::Expired { peer, .. }) = &event;
        if !self.gateways.contains_key(&peer.0) {
            return Some(event);
        }
        match event {
            Event::FirstPacket { peer, spi } => self.tunnel_used(&peer.0, spi).await,
            Event::Expired {
                peer,
                direction,
                spi,
            } => self.tunnel_expired(&peer.0, direction, spi).await,
            // Its tunnel is always made at once.
            Event::Acquire { .. } => {}
        }
        None
    }

    /// The gateway seals with it, so it has both directions; what was found at start may go.
    async fn tunnel_used(&mut self, name: &str, spi: Spi) {
        debug!(gateway = name, %spi, "first packet on an inbound SA");
        let now = Instant::now();
        let Some(gateway) = self.gateways.get_mut(name) else {
            return;
        };
        let Some(sa) = gateway.sas.iter_mut().find(|sa| sa.spi_in == spi) else {
            return;
        };
        sa.confirmed_at = sa.confirmed_at.min(now);
        if !gateway.adopted.is_empty() {
            gateway.drop_adopted_at.get_or_insert(now + ADOPTED_DRAIN);
        }
        self.switch_gateway(name).await;
        let id = Identity(name.into());
        self.parts.endpoint.confirm_child(&id, spi.0, now);
    }

    /// Somebody removed it, or it came to its limit: another is made.
    async fn tunnel_expired(&mut self, name: &str, direction: Direction, spi: Spi) {
        info!(gateway = name, ?direction, %spi, "an SA is gone from the kernel");
        let Some(gateway) = self.gateways.get_mut(name) else {
            return;
        };
        gateway
            .adopted
            .retain(|sa| (sa.direction, sa.spi) != (direction, spi));
        if direction == Direction::In {
            gateway.draining.retain(|(old, _)| *old != spi);
        }
        if gateway.pair_of(direction, spi).is_some() {
            let id = Identity(name.into());
            self.parts.endpoint.disconnect(&id, Instant::now());
        }
        self.switch_gateway(name).await;
    }
}

/// Whom an event is about.
fn subject(event: &IkeEvent) -> Option<&Identity> {
    match event {
        IkeEvent::IkeUp { peer, .. }
        | IkeEvent::ChildUp { peer, .. }
        | IkeEvent::ChildDown { peer, .. }
        | IkeEvent::IkeDown { peer, .. }
        | IkeEvent::AddressChanged { peer, .. }
        | IkeEvent::Announcement { peer, .. }
        | IkeEvent::AnnouncementAcked { peer, .. } => Some(peer),
        IkeEvent::HandshakeFailed { peer, .. } => peer.as_ref(),
    }
}

fn narrowed(gateway: &Gateway) -> String {
    let text = |(own, remote): &(_, _)| format!("{own} <-> {remote}");
    let offered: Vec<String> = gateway.offered().iter().map(text).collect();
    format!(
        "the gateway narrowed the tunnel to protocols, ports or ranges that policies of this node cannot tell, which stay closed; have it accept {}",
        offered.join(", ")
    )
}
