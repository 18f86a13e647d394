//! One peer as the agent holds it, and how it looks to IKE, the data plane and the kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use espalier_dataplane_core::{Direction, Overlay, Peer, PeerId, Reqid, Spi, Suite};
use espalier_ike::{ChildConfig, ChildSa, Connect, Identity, PeerAuth, PeerConfig};
use espalier_overlay::{PeerRoute, Protect, RoutePath};
use espalier_peers::{Announcement, NodeSpec, Pair, Sends, View, Way, vtep_mac};
use espalier_secret::SecretBytes;

/// VXLAN Network Identifier and UDP port of the overlay.
pub(crate) const VNI: u32 = 4789;
pub(crate) const VXLAN_PORT: u16 = 4789;
/// IKE and ESP share this port (RFC 3948).
pub(crate) const NAT_T_PORT: u16 = 4500;
/// Number of the CHILD_SA in UDP beside a raw one that does not arrive.
pub(crate) const FALLBACK: u32 = 1;

/// An ESP SA pair in the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SaPair {
    pub(crate) spi_in: Spi,
    pub(crate) spi_out: Spi,
    pub(crate) suite: Suite,
    /// Directly in IP.
    pub(crate) raw: bool,
    /// The peer is known to open `spi_out`: this node may seal with it.
    pub(crate) confirmed: bool,
    /// The peer asked for it.
    pub(crate) granted: bool,
    /// For packets sent from this CPU (RFC 9611); `None`: from any.
    pub(crate) cpu: Option<u32>,
    pub(crate) installed: Instant,
}

/// An SA that was found at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Adopted {
    pub(crate) direction: Direction,
    pub(crate) spi: Spi,
    /// AH instead of ESP.
    pub(crate) ah: bool,
    /// Directly in IP.
    pub(crate) raw: bool,
    /// As [`SaPair::cpu`].
    pub(crate) cpu: Option<u32>,
}

/// The data plane's counters at the last look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Packets of all SAs, and when there was the last one.
    pub(crate) all: u64,
    pub(crate) traffic_at: Instant,
    pub(crate) raw_out: u64,
    pub(crate) raw_in: u64,
    pub(crate) raw_in_at: Instant,
}

/// A peer.
#[derive(Debug)]
pub(crate) struct PeerState {
    pub(crate) spec: NodeSpec,
    /// Both ends' underlay addresses: this node's and the peer's.
    pub(crate) addresses: (IpAddr, IpAddr),
    pub(crate) pair: Pair,
    /// Whether raw ESP passes.
    pub(crate) way: Way,
    /// IKE was told to have a CHILD_SA in UDP beside the raw one.
    pub(crate) has_fallback: bool,
    pub(crate) seen: Seen,
    /// A packet wanted an SA (`establish: OnDemand`), at that time.
    pub(crate) demanded: Option<Instant>,
    /// Oldest first.
    pub(crate) sas: Vec<SaPair>,
    /// SAs found at start, whose IKE SA is gone: a handshake that this node begins replaces them.
    pub(crate) adopted: Vec<Adopted>,
    /// When they have drained: the peer seals with a newer one.
    pub(crate) drop_adopted_at: Option<Instant>,
    /// This node lost its SAs (it started, or its data plane did): the peer may still use the old ones, so it begins at once.
    pub(crate) lost_sas: bool,
    /// The outbound SA that seals now; never one of a single CPU.
    pub(crate) active: Option<Spi>,
    /// What the kernel chooses from by CPU, as it was told; `None`: the policy pins the active SA ([`super::cpus`]).
    pub(crate) chooses: Option<BTreeSet<Spi>>,
    /// The data plane knows this peer as it is.
    pub(crate) in_plane: bool,
    /// The data plane was told which SA seals.
    pub(crate) switched: bool,
    /// Negotiated while the data plane was away; installed when it is back.
    pub(crate) waiting: Vec<(ChildSa, Option<Vec<u8>>)>,
    /// Tag of its kernel states.
    pub(crate) reqid: Reqid,
    /// Last thing told to the peer, or that it will be told with the next handshake.
    pub(crate) said: Option<Announcement>,
    pub(crate) handshake: Option<Duration>,
    /// Cause and remedy; from IKE or from the data plane.
    pub(crate) problem: Option<String>,
    pub(crate) config_problem: Option<String>,
}

impl PeerState {
    pub(crate) fn new(spec: NodeSpec, addresses: (IpAddr, IpAddr), pair: Pair, way: Way) -> Self {
        let now = Instant::now();
        Self {
            spec,
            addresses,
            pair,
            way,
            has_fallback: false,
            seen: Seen {
                all: 0,
                traffic_at: now,
                raw_out: 0,
                raw_in: 0,
                raw_in_at: now,
            },
            demanded: None,
            sas: Vec::new(),
            adopted: Vec::new(),
            drop_adopted_at: None,
            lost_sas: false,
            active: None,
            chooses: None,
            in_plane: false,
            switched: false,
            waiting: Vec::new(),
            reqid: Reqid::default(),
            said: None,
            handshake: None,
            problem: None,
            config_problem: None,
        }
    }

    pub(crate) fn id(&self) -> PeerId {
        PeerId(self.spec.name.clone())
    }

    /// SPI of the newest inbound SA, 0 for none.
    pub(crate) fn opens(&self) -> u32 {
        self.sas.last().map_or(0, |sa| sa.spi_in.0)
    }

    /// The data plane's state is gone.
    pub(crate) fn forget_sas(&mut self, now: Instant) {
        self.sas.clear();
        self.adopted.clear();
        self.waiting.clear();
        self.lost_sas = true;
        (self.in_plane, self.switched) = (false, false);
        (self.active, self.said, self.drop_adopted_at) = (None, None, None);
        self.chooses = None;
        self.pair.ike_down(now);
        self.pair.set_esp(false, now);
        self.way.lost(now);
    }

    /// When something is due for it, if nothing happens before.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let times = [self.pair.next_timeout(), self.way.next_timeout()];
        times.into_iter().flatten().min()
    }

    /// What the peer is told.
    pub(crate) fn announcement(&self) -> Announcement {
        self.pair.announcement(self.opens(), self.way.say())
    }

    pub(crate) fn for_plane(&self, own: &NodeSpec, overlay: Overlay) -> Peer {
        Peer {
            id: self.id(),
            local: self.addresses.0,
            remote: self.addresses.1,
            pod_cidrs: self.spec.pod_cidrs.clone(),
            own_cidrs: own.pod_cidrs.clone(),
            overlay,
            local_mac: vtep_mac(&own.name),
            remote_mac: vtep_mac(&self.spec.name),
        }
    }

    /// `idle`: SAs are made when there is a packet, and there is none yet: the kernel asks for them and drops it.
    pub(crate) fn for_kernel(&self, view: &View, ah: bool, idle: bool) -> PeerRoute {
        let known = Protect {
            reqid: self.reqid.0,
            spi: None,
            ah,
        };
        // Without an SA that seals it still says whose states may open.
        let known = (self.reqid.0 != 0).then_some(known);
        let usable = |spi: &u32| self.has_outbound(*spi) || self.has_adopted(Spi(*spi));
        let tried = self.way.tried().find(usable);
        PeerRoute {
            remote: self.addresses.1,
            mac: vtep_mac(&self.spec.name),
            pod_cidrs: self.spec.pod_cidrs.clone(),
            path: match view.sends {
                Sends::Nothing if idle && known.is_some() => RoutePath::Encrypted,
                Sends::Nothing => RoutePath::Blocked,
                Sends::Clear => RoutePath::Clear,
                Sends::Esp => RoutePath::Encrypted,
            },
            accept_clear: view.accepts_clear,
            protect: self.active.map(|spi| self.sealing(spi)).or(known),
            trial: tried.map(|spi| self.protect(Spi(spi))),
        }
    }

    /// What seals now was adopted, and there is nothing in its place yet: a trial goes on.
    pub(crate) fn needs_adopted(&self, tries: bool) -> bool {
        let best = self.best(tries);
        best.is_some_and(|spi| !self.has_outbound(spi.0))
    }

    fn has_outbound(&self, spi: u32) -> bool {
        self.sas.iter().any(|sa| sa.spi_out.0 == spi)
    }

    fn has_adopted(&self, spi: Spi) -> bool {
        let is_it = |sa: &Adopted| (sa.direction, sa.spi) == (Direction::Out, spi);
        self.adopted.iter().any(is_it)
    }

    /// How a policy's template names the states of this outbound SA.
    pub(super) fn protect(&self, spi: Spi) -> Protect {
        let negotiated = self.sas.iter().find(|sa| sa.spi_out == spi);
        let adopted = |sa: &&Adopted| (sa.direction, sa.spi) == (Direction::Out, spi);
        let ah = match negotiated {
            Some(sa) => sa.suite.is_ah(),
            None => self.adopted.iter().find(adopted).is_some_and(|sa| sa.ah),
        };
        Protect {
            reqid: self.reqid.0,
            spi: Some(spi.0),
            ah,
        }
    }

    pub(crate) fn for_ike(&self, child: ChildConfig, psk: Option<&SecretBytes>) -> PeerConfig {
        let (local, remote) = self.addresses;
        let at = |address| SocketAddr::new(address, NAT_T_PORT);
        let auth = psk.map_or(PeerAuth::Certificate, |psk| PeerAuth::Psk(psk.clone()));
        let identity = Identity(self.spec.name.as_str().into());
        PeerConfig {
            uid: self.spec.uid.clone(),
            addresses: self.spec.addresses.clone(),
            announcement: self.announcement().to_bytes(),
            ..PeerConfig::new(identity, at(local), at(remote), auth, child)
        }
    }

    /// Who begins: see docs/ike-initiator.md.
    pub(crate) fn why_connect(&self) -> Connect {
        match (self.adopted.is_empty(), self.lost_sas) {
            (false, _) => Connect::Restart,
            (true, true) => Connect::Fresh,
            (true, false) => Connect::Policy,
        }
    }

    /// The newest outbound SA this node may seal with; an adopted one that seals now is as good until there is a newer one.
    /// `tries`: raw ones only where raw is known to pass.
    pub(crate) fn best(&self, tries: bool) -> Option<Spi> {
        let usable = |sa: &&SaPair| sa.confirmed && sa.cpu.is_none();
        let mut confirmed = self.sas.iter().rev().filter(usable);
        let newest = match (tries, self.way.uses_raw()) {
            (false, _) => confirmed.next(),
            (true, true) => confirmed.clone().find(|sa| sa.raw).or(confirmed.next()),
            (true, false) => confirmed.find(|sa| !sa.raw),
        };
        // Until there is something in the place of what broke, it stays: a pair under Permissive does not go clear for that.
        let kept = self.active.filter(|spi| self.has_outbound(spi.0));
        let adopted = self.active.filter(|spi| self.has_adopted(*spi));
        newest.map(|sa| sa.spi_out).or(kept).or(adopted)
    }
}
