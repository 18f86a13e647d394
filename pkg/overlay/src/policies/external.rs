//! Gateways outside of the mesh: what this node's pods and the networks behind them exchange goes by the gateway's tunnel or not at
//! all, in every mode and whatever engine there is.
//!
//! | | out | in, fwd |
//! |---|---|---|
//! | selectors of a tunnel, [`Engine::Kernel`] | template: reqid, SPI | template with its reqid |
//! | own pods ↔ external networks | block | block |
//!
//! Where the gateway took all that it was offered the first row stands in the place of the second, and a tunnel that goes is one
//! message for each policy: the block comes in its place. What comes out of another tunnel is refused: the reqid is not the
//! template's, or there is no policy for it at all.

use espalier_netlink::{Direction, Mode, Policy, Protocol, Template};
use ipnet::IpNet;

use super::{EXTERNAL, EXTERNAL_BASE, Traffic, What, base::pairs_of, found::Found};
use crate::{Desired, Engine, Protect, Tunnel};

/// For the host's own address among its pods, and for pods.
const INCOMING: [Direction; 2] = [Direction::In, Direction::Forward];

/// All of them; the blocks last, since of two in one place the first holds.
pub(super) fn of(desired: &Desired) -> Vec<Policy> {
    let externals = || desired.externals.values();
    let kernel = desired.engine == Engine::Kernel;
    let tunnels = externals().filter_map(|external| external.tunnel.as_ref());
    let usable = tunnels.filter(|t| kernel && t.local.is_ipv4() == t.gateway.is_ipv4());
    let sealed = usable.flat_map(sealed);
    let blocked = externals().flat_map(|external| {
        pairs_of(&desired.pod_cidrs, &external.remote_cidrs).flat_map(blocked)
    });
    sealed.chain(blocked).collect()
}

/// Whether it is one of [`of`].
pub(crate) fn is_external(policy: &Policy) -> bool {
    matches!(policy.priority, EXTERNAL | EXTERNAL_BASE)
}

fn sealed(tunnel: &Tunnel) -> Vec<Policy> {
    let out = template(tunnel);
    let into = Template {
        source: out.destination,
        destination: out.source,
        spi: None,
        ..out
    };
    let of = |(own, remote): &(IpNet, IpNet)| {
        let there = whole(*own, *remote);
        let [local, forwarded] =
            INCOMING.map(|d| there.reversed().policy(d, What::Protect(into), EXTERNAL));
        [
            there.policy(Direction::Out, What::Protect(out), EXTERNAL),
            local,
            forwarded,
        ]
    };
    tunnel.selectors.iter().flat_map(of).collect()
}

fn blocked((own, remote): (IpNet, IpNet)) -> [Policy; 3] {
    let there = whole(own, remote);
    let [local, forwarded] =
        INCOMING.map(|d| there.reversed().policy(d, What::Block, EXTERNAL_BASE));
    [
        there.policy(Direction::Out, What::Block, EXTERNAL_BASE),
        local,
        forwarded,
    ]
}

fn whole(source: IpNet, destination: IpNet) -> Traffic {
    Traffic {
        source,
        destination,
        protocol: 0,
        port: 0,
    }
}

/// Of what leaves.
fn template(tunnel: &Tunnel) -> Template {
    Template {
        protocol: match tunnel.protect.ah {
            true => Protocol::Ah,
            false => Protocol::Esp,
        },
        mode: Mode::Tunnel,
        source: tunnel.local,
        destination: tunnel.gateway,
        reqid: tunnel.protect.reqid,
        spi: tunnel.protect.spi,
        optional: false,
    }
}

impl Found {
    /// Notes a policy that leads into a gateway's tunnel.
    pub(super) fn note_tunnel(&mut self, policy: &Policy) {
        let ours = policy.priority == EXTERNAL && policy.direction == Direction::Out;
        let Some(template) = policy.template.filter(|_| ours) else {
            return;
        };
        let tunnel = self
            .tunnels
            .entry(template.destination)
            .or_insert_with(|| Tunnel {
                local: template.source,
                gateway: template.destination,
                protect: Protect {
                    reqid: template.reqid,
                    spi: template.spi,
                    ah: template.protocol == Protocol::Ah,
                },
                selectors: Vec::new(),
            });
        tunnel.selectors.push((policy.source, policy.destination));
        tunnel.selectors.sort_unstable();
    }
}
