//! Gateways outside of the mesh (`ExternalPeer`, docs/external-peer.md): tunnel mode between this node's pods and the networks behind.
//!
//! Nothing is announced to them and they say nothing of their mode: an SA that is there is used, without one nothing passes. Their
//! name in IKE, which no Node has, is their name in the data plane.

mod events;
mod selectors;
mod settle;
mod status;
mod take;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use espalier_api::ExternalGateway;
use espalier_dataplane_core::{Direction, Overlay, Peer, PeerId, Reqid, Spi};
use espalier_ike::ChildSa;
use espalier_overlay::{ExternalRoute, Protect, Tunnel};
use espalier_peers::NodeSpec;
use ipnet::IpNet;

use super::peer::Adopted;

/// An SA that the gateway made is used for sealing after this, if nothing shows sooner that the gateway has the answer: it says
/// nothing after it.
const ANSWER_ARRIVES: Duration = Duration::from_secs(1);
/// An inbound SA that was replaced opens for this long after its DELETE was sent: a gateway that answered a rekey seals with the old
/// SA until that DELETE arrives (strongSwan).
const OLD_OPENS: Duration = Duration::from_secs(5);

/// A tunnel mode SA pair in the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TunnelSa {
    spi_in: Spi,
    spi_out: Spi,
    /// What it carries, of this node's pods and behind the gateway.
    selectors: Vec<(IpNet, IpNet)>,
    /// When the gateway is taken to open `spi_out`.
    confirmed_at: Instant,
}

/// A gateway that this node has, or should have, a tunnel with.
#[derive(Debug)]
pub(crate) struct Gateway {
    spec: ExternalGateway,
    /// This node's address towards it, if it has one of its family.
    local: Option<IpAddr>,
    /// This node's pods' addresses.
    pods: Vec<IpNet>,
    /// Oldest first.
    sas: Vec<TunnelSa>,
    /// SAs found at start, whose IKE SA is gone.
    adopted: Vec<Adopted>,
    /// What was sealed with at start, as the policies say.
    found: Option<Tunnel>,
    drop_adopted_at: Option<Instant>,
    /// Inbound SAs that were replaced, and until when they open.
    draining: Vec<(Spi, Instant)>,
    /// The outbound SA that seals now.
    active: Option<Spi>,
    /// The data plane knows the gateway as it is.
    in_plane: bool,
    /// The data plane was told which SA seals.
    switched: bool,
    /// Negotiated while the data plane was away.
    waiting: Vec<ChildSa>,
    /// Tag of its kernel states.
    reqid: Reqid,
    handshake: Option<Duration>,
    /// Cause and remedy; from IKE or from the data plane.
    problem: Option<String>,
    config_problem: Option<String>,
}

impl Gateway {
    fn new(spec: ExternalGateway, own: &NodeSpec) -> Self {
        Self {
            local: address_towards(own, spec.gateway),
            pods: own.pod_cidrs.clone(),
            spec,
            sas: Vec::new(),
            adopted: Vec::new(),
            found: None,
            drop_adopted_at: None,
            draining: Vec::new(),
            active: None,
            in_plane: false,
            switched: false,
            waiting: Vec::new(),
            reqid: Reqid::default(),
            handshake: None,
            problem: None,
            config_problem: None,
        }
    }

    fn id(&self) -> PeerId {
        PeerId(self.spec.identity.clone())
    }

    /// Everything that one tunnel may carry.
    fn offered(&self) -> Vec<(IpNet, IpNet)> {
        selectors::pairs(&self.pods, &self.spec.remote_cidrs)
    }

    fn for_plane(&self, local: IpAddr) -> Peer {
        Peer {
            id: self.id(),
            local,
            remote: self.spec.gateway,
            pod_cidrs: self.spec.remote_cidrs.clone(),
            own_cidrs: self.pods.clone(),
            overlay: Overlay::Native,
            local_mac: [0; 6],
            remote_mac: [0; 6],
        }
    }

    /// What the kernel is to do with packets to and from its networks.
    fn route(&self) -> ExternalRoute {
        let tunnel = self.active.zip(self.local).map(|(spi, local)| Tunnel {
            local,
            gateway: self.spec.gateway,
            protect: Protect {
                reqid: self.reqid.0,
                spi: Some(spi.0),
                ah: false,
            },
            selectors: self.selectors_of(spi),
        });
        ExternalRoute {
            remote_cidrs: self.spec.remote_cidrs.clone(),
            tunnel: tunnel.filter(|tunnel| tunnel.protect.reqid != 0),
        }
    }

    /// What was agreed for this outbound SA. Of an adopted one the policies tell.
    fn selectors_of(&self, spi: Spi) -> Vec<(IpNet, IpNet)> {
        let negotiated = self.sas.iter().find(|sa| sa.spi_out == spi);
        let offered = self.offered();
        match (negotiated, &self.found) {
            (Some(sa), _) => sa.selectors.clone(),
            (None, Some(found)) => selectors::within(&found.selectors, &offered),
            (None, None) => offered,
        }
    }

    /// The newest SA that the gateway opens; else what seals now, while it is there.
    fn best(&self, now: Instant) -> Option<Spi> {
        let mut newest_first = self.sas.iter().rev();
        let newest = newest_first.find(|sa| sa.confirmed_at <= now);
        let there = |spi: &Spi| {
            let is_active = |sa: &Adopted| (sa.direction, sa.spi) == (Direction::Out, *spi);
            self.adopted.iter().any(is_active) || self.sas.iter().any(|sa| sa.spi_out == *spi)
        };
        newest.map(|sa| sa.spi_out).or(self.active.filter(there))
    }

    /// The gateway has everything that was negotiated.
    fn confirm(&mut self, now: Instant) {
        let waits = self.sas.iter_mut().filter(|sa| sa.confirmed_at > now);
        waits.for_each(|sa| sa.confirmed_at = now);
    }

    /// When something is to be done for it.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let now = Instant::now();
        let newest = self.sas.last().map(|sa| sa.confirmed_at);
        let drained = self.draining.first().map(|(_, at)| *at);
        let times = [newest.filter(|at| *at > now), self.drop_adopted_at, drained];
        times.into_iter().flatten().min()
    }

    /// The inbound SPI of the pair that an SA belongs to; none for adopted ones.
    pub(super) fn pair_of(&self, direction: Direction, spi: Spi) -> Option<u32> {
        let is_it = |sa: &&TunnelSa| match direction {
            Direction::In => sa.spi_in == spi,
            Direction::Out => sa.spi_out == spi,
        };
        self.sas.iter().find(is_it).map(|sa| sa.spi_in.0)
    }

    /// The data plane answers again, or another one does.
    pub(super) fn tell_plane_again(&mut self) {
        (self.in_plane, self.switched) = (false, false);
    }

    /// The data plane's state is gone.
    pub(super) fn forget_sas(&mut self) {
        self.tell_plane_again();
        self.sas.clear();
        self.adopted.clear();
        self.draining.clear();
        self.waiting.clear();
        (self.active, self.found, self.drop_adopted_at) = (None, None, None);
    }
}

/// The node's first address of that family.
fn address_towards(own: &NodeSpec, gateway: IpAddr) -> Option<IpAddr> {
    let mut addresses = own.addresses.iter().copied();
    addresses.find(|address| address.is_ipv4() == gateway.is_ipv4())
}
