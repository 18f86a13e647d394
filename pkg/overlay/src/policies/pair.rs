//! One peer's policies.
//!
//! | path, engine | out | in |
//! |---|---|---|
//! | Encrypted, kernel, `protect` known | template: reqid, SPI | below |
//! | Encrypted or Blocked, kernel | block | below |
//! | Clear | allow, if clear is refused else | below |
//! | Encrypted, TUN, clear accepted | allow, if clear is refused else: a packet between its old route and its policy is not lost | below |
//!
//! Native routing by a TUN has nothing for what comes in: the guard is there (see `guard.rs`).
//!
//! In: allow for a peer that accepts clear, else the template with its reqid, as soon as that is known: then only its own states
//! open what comes from its address (S5 as far as the outer header goes). Transport mode packets pass an allow without template.

use espalier_netlink::{Direction, Mode, Policy, Protocol, Template};
use ipnet::IpNet;

use super::{
    IPV4, IPV6, NATIVE, PAIR, PROBE, Traffic, UDP, What,
    base::{pairs_of, protocols},
};
use crate::{Desired, Engine, Framing, PROBE_PORT, PeerRoute, Protect, RoutePath, guard};

/// The policies of one peer, which has these pod CIDRs to itself; `underlay` is the interface that has the node's address.
pub(crate) fn of_peer(
    desired: &Desired,
    peer: &PeerRoute,
    pods: &[IpNet],
    underlay: Option<u32>,
) -> Vec<Policy> {
    if peer.remote.is_ipv4() != desired.local.is_ipv4() {
        return Vec::new();
    }
    let mut all = Vec::new();
    // Of pods' packets that are routed to a TUN nothing is to be said, not even while such a policy goes.
    let tun = guard::only_way_in(desired).is_some();
    let interface = underlay.filter(|_| tun).unwrap_or(0);
    for traffic in traffic(desired, peer, pods) {
        all.extend(out(desired, peer).map(|what| Policy {
            interface,
            ..traffic.policy(Direction::Out, what, slot(desired))
        }));
        if let Some(what) = into(desired, peer) {
            let back = traffic.reversed();
            let directions = incoming(desired.framing).iter();
            all.extend(directions.map(|d| back.policy(*d, what, slot(desired))));
        }
    }
    all.extend(probe(desired, peer));
    all
}

/// What carries the pod packets that go to the peer.
fn traffic(desired: &Desired, peer: &PeerRoute, pods: &[IpNet]) -> Vec<Traffic> {
    let hosts = |protocol, port| Traffic {
        source: desired.local.into(),
        destination: peer.remote.into(),
        protocol,
        port,
    };
    match desired.framing {
        Framing::Vxlan => vec![hosts(UDP, desired.vtep.port)],
        Framing::Ipip => {
            let inside = |protocol: u8| {
                let v4 = |pods: &IpNet| pods.addr().is_ipv4();
                match protocol {
                    IPV4 => peer.pod_cidrs.iter().any(v4),
                    IPV6 => !peer.pod_cidrs.iter().all(v4),
                    _ => false,
                }
            };
            let protocols = protocols(desired.local).iter();
            protocols
                .filter(|protocol| inside(**protocol))
                .map(|protocol| hosts(*protocol, 0))
                .collect()
        }
        Framing::Native => pairs_of(&desired.pod_cidrs, pods)
            .map(|(source, destination)| Traffic {
                source,
                destination,
                protocol: 0,
                port: 0,
            })
            .collect(),
    }
}

fn slot(desired: &Desired) -> u32 {
    match desired.framing {
        Framing::Vxlan | Framing::Ipip => PAIR,
        Framing::Native => NATIVE,
    }
}

/// Overlay packets are for this host; native ones for its pods and for its own address among them.
fn incoming(framing: Framing) -> &'static [Direction] {
    match framing {
        Framing::Vxlan | Framing::Ipip => &[Direction::In],
        Framing::Native => &[Direction::In, Direction::Forward],
    }
}

fn out(desired: &Desired, peer: &PeerRoute) -> Option<What> {
    let kernel = desired.engine == Engine::Kernel;
    match (peer.path, peer.protect) {
        (RoutePath::Encrypted, Some(protect)) if kernel => {
            Some(What::Protect(template(desired, peer, protect)))
        }
        (RoutePath::Clear, _) => desired.deny_clear.then_some(What::Allow),
        _ if kernel => Some(What::Block),
        _ => (desired.deny_clear && peer.accept_clear).then_some(What::Allow),
    }
}

fn into(desired: &Desired, peer: &PeerRoute) -> Option<What> {
    let clear = !desired.deny_clear || peer.accept_clear;
    let known = peer
        .protect
        .or(peer.trial)
        .filter(|_| desired.engine == Engine::Kernel);
    match (desired.framing, known) {
        // What came through a tunnel needs a policy that names it, even where clear passes.
        (Framing::Native, Some(known)) => Some(What::Protect(Template {
            optional: clear,
            ..opened(template(desired, peer, known))
        })),
        (_, Some(known)) if !clear => Some(What::Protect(opened(template(desired, peer, known)))),
        // What nothing blocks needs no leave.
        _ if guard::only_way_in(desired).is_some() => None,
        _ => (desired.deny_clear && clear).then_some(What::Allow),
    }
}

/// States under trial carry probes and nothing else; a probe that came without the peer's states is none.
fn probe(desired: &Desired, peer: &PeerRoute) -> Vec<Policy> {
    let Some(trial) = peer.trial.filter(|_| desired.engine == Engine::Kernel) else {
        return Vec::new();
    };
    let out = Traffic {
        source: desired.local.into(),
        destination: peer.remote.into(),
        protocol: UDP,
        port: PROBE_PORT,
    };
    let template = template(desired, peer, trial);
    vec![
        out.policy(Direction::Out, What::Protect(template), PROBE),
        out.reversed()
            .policy(Direction::In, What::Protect(opened(template)), PROBE),
    ]
}

/// Of what leaves.
fn template(desired: &Desired, peer: &PeerRoute, protect: Protect) -> Template {
    Template {
        protocol: if protect.ah {
            Protocol::Ah
        } else {
            Protocol::Esp
        },
        mode: match desired.framing {
            Framing::Vxlan | Framing::Ipip => Mode::Transport,
            Framing::Native => Mode::Tunnel,
        },
        source: desired.local,
        destination: peer.remote,
        reqid: protect.reqid,
        spi: protect.spi,
        optional: false,
    }
}

/// Of what comes in: by any of the peer's states, older ones included.
fn opened(out: Template) -> Template {
    Template {
        source: out.destination,
        destination: out.source,
        spi: None,
        ..out
    }
}
