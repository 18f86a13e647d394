//! What does not fit is refused with the field's name before anything changes.

use std::net::IpAddr;

use espalier_dataplane_core::check::{self, require};
use espalier_dataplane_core::{
    Direction, Encapsulation, Error, Overlay, Peer, PeerId, Sa, SaMode, Suite,
};
use espalier_esp::{KeyError, MAX_WINDOW};
use ipnet::IpNet;

use crate::rx::is_special;

/// What this data plane seals with, in order of preference.
pub(super) const SUITES: [Suite; 3] = [
    Suite::Aes256Gcm16,
    Suite::Aes128Gcm16,
    Suite::ChaCha20Poly1305,
];

/// Checks a peer by itself and against the others.
pub(super) fn peer<'p>(peer: &Peer, known: impl Iterator<Item = &'p Peer>) -> Result<(), Error> {
    check::peer(peer)?;
    own_cidrs(peer)?;
    known
        .filter(|other| other.id != peer.id)
        .try_for_each(|other| against(peer, other))
}

fn own_cidrs(peer: &Peer) -> Result<(), Error> {
    for (at, cidr) in peer.pod_cidrs.iter().enumerate() {
        let special =
            is_special(cidr.network()) || is_special(cidr.broadcast()) || cidr.prefix_len() == 0;
        require(!special, "pod_cidrs", || {
            format!(
                "{cidr} holds addresses that pods cannot have (loopback, link-local, multicast, or everything)"
            )
        })?;
        for other in &peer.pod_cidrs[..at] {
            require(!overlap(cidr, other), "pod_cidrs", || {
                format!("{cidr} and {other} overlap")
            })?;
        }
        for own in &peer.own_cidrs {
            require(!overlap(cidr, own), "pod_cidrs", || {
                format!("{cidr} of {} overlaps this node's own {own}", peer.id)
            })?;
        }
        hosts(peer).try_for_each(|host| host_outside(cidr, host, &peer.id))?;
    }
    Ok(())
}

fn against(peer: &Peer, other: &Peer) -> Result<(), Error> {
    for cidr in &peer.pod_cidrs {
        for theirs in &other.pod_cidrs {
            require(!overlap(cidr, theirs), "pod_cidrs", || {
                format!(
                    "{cidr} overlaps {theirs} of peer {}; remove that peer first or correct the Nodes",
                    other.id
                )
            })?;
        }
        hosts(other).try_for_each(|host| host_outside(cidr, host, &other.id))?;
    }
    hosts(peer).try_for_each(|host| {
        other
            .pod_cidrs
            .iter()
            .try_for_each(|cidr| host_outside(cidr, host, &peer.id))
    })
}

fn hosts(peer: &Peer) -> impl Iterator<Item = IpAddr> {
    [peer.local, peer.remote].into_iter()
}

fn host_outside(cidr: &IpNet, host: IpAddr, of: &PeerId) -> Result<(), Error> {
    require(!cidr.contains(&host), "pod_cidrs", || {
        format!("{cidr} holds the underlay address {host} of the pair with {of}")
    })
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// What there is to carry ESP.
#[derive(Clone, Debug)]
pub(crate) struct Ways {
    /// The UDP port of ESP and IKE.
    pub(crate) port: u16,
    /// Why there is no raw socket of IPv4 and none of IPv6, where that is so.
    pub(crate) no_raw: [Option<String>; 2],
}

impl Ways {
    /// The port, and raw ESP in both families.
    pub(crate) fn all(port: u16) -> Self {
        let no_raw = [None, None];
        Self { port, no_raw }
    }

    fn raw(&self, towards: IpAddr) -> Result<(), Error> {
        let [v4, v6] = &self.no_raw;
        let missing = if towards.is_ipv4() { v4 } else { v6 };
        let Some(why) = missing else { return Ok(()) };
        Err(Error::Invalid {
            field: "encapsulation",
            why: format!(
                "raw ESP (protocol 50) towards {towards} needs a raw socket, and the userspace data plane has none: {why}; or set \
                 udpEncapsulation: Auto"
            ),
        })
    }
}

/// Checks an SA with the peer; the peer's UDP port, `None` for raw ESP.
pub(super) fn sa(sa: &Sa, peer: &Peer, ways: &Ways) -> Result<Option<u16>, Error> {
    check::sa(sa)?;
    can(sa)?;
    mode(sa, peer)?;
    if sa.direction == Direction::In {
        let window = sa.replay_window;
        require((1..=MAX_WINDOW).contains(&window), "replay_window", || {
            format!("expected 1 to {MAX_WINDOW} packets, got {window}")
        })?;
    }
    let Encapsulation::Udp {
        local_port,
        remote_port,
    } = sa.encapsulation
    else {
        return ways.raw(peer.remote).map(|()| None);
    };
    let port = ways.port;
    require(local_port == port, "encapsulation.local_port", || {
        format!("expected {port}, which this data plane holds, got {local_port}")
    })?;
    require(remote_port != 0, "encapsulation.remote_port", || {
        "expected a UDP port, got 0".into()
    })?;
    Ok(Some(remote_port))
}

/// What only the kernel does.
fn can(sa: &Sa) -> Result<(), Error> {
    require(SUITES.contains(&sa.suite), "suite", || {
        format!(
            "expected one of {SUITES:?}, got {:?}; configure one of these or use the kernel data plane",
            sa.suite
        )
    })?;
    require(sa.cpu.is_none(), "cpu", || {
        "SAs of single CPUs are the kernel data plane's".into()
    })
}

/// Tunnel mode is what native routing has, and nothing else: what is around pod packets otherwise is between hosts.
fn mode(sa: &Sa, peer: &Peer) -> Result<(), Error> {
    let expected = match peer.overlay {
        Overlay::Native => SaMode::Tunnel,
        Overlay::Vxlan { .. } | Overlay::Ipip => SaMode::Transport,
    };
    require(sa.mode == expected, "mode", || {
        let (overlay, got) = (&peer.overlay, sa.mode);
        format!("expected {expected:?} mode with the peer's overlay {overlay:?}, got {got:?} mode")
    })
}

pub(super) fn key(error: KeyError) -> Error {
    Error::Invalid {
        field: "key",
        why: error.to_string(),
    }
}
