//! What a restarted agent finds.

use std::collections::{BTreeMap, BTreeSet};

use espalier_netlink::{Action, Direction, InstalledPolicy, RouteFilter};
use ipnet::IpNet;

use crate::{Error, Observed, Overlay, PROTOCOL, RoutePath, target};

/// Main routing table.
const MAIN: u32 = 254;

impl Overlay {
    /// What there is of ours: paths of pod CIDRs in `cluster_cidrs` (of all, if that is empty), and who may send in clear.
    ///
    /// # Errors
    /// [`Error::Netlink`], [`Error::Policy`]: the state cannot be read in full.
    pub fn observe(&mut self, cluster_cidrs: &[IpNet]) -> Result<Observed, Error> {
        let mut paths = self.observed_paths()?;
        paths.retain(|to, _| {
            cluster_cidrs.is_empty() || cluster_cidrs.iter().any(|cidr| cidr.contains(to))
        });
        let policies = self.own_policies()?;
        Ok(Observed {
            paths,
            accepting: accepting(&policies),
            base_block: base_block(&policies),
        })
    }

    fn observed_paths(&mut self) -> Result<BTreeMap<IpNet, RoutePath>, Error> {
        let vxlan = self.vxlan()?.map(|link| link.index);
        let filter = RouteFilter {
            protocol: Some(PROTOCOL),
            ..RouteFilter::default()
        };
        let mut paths = BTreeMap::new();
        for route in self.route.routes(filter)? {
            let Some(oif) = route.oif.filter(|_| route.table == MAIN) else {
                continue;
            };
            if Some(oif) == vxlan {
                paths.insert(route.to, RoutePath::Clear);
            // Routes of single hosts are those of this node's pods: there may be many.
            } else if route.to.prefix_len() < route.to.max_prefix_len() && self.is_tun(oif)? {
                paths.insert(route.to, RoutePath::Encrypted);
            }
        }
        Ok(paths)
    }

    fn is_tun(&mut self, index: u32) -> Result<bool, Error> {
        let link = self.route.link_by_index(index)?;
        Ok(link.is_some_and(|link| link.kind.as_deref() == Some("tun")))
    }
}

/// In full: both families, in and out.
fn base_block(policies: &[InstalledPolicy]) -> bool {
    target::everything().into_iter().all(|any| {
        [Direction::In, Direction::Out].into_iter().all(|direction| {
            policies.iter().map(|installed| installed.policy).any(|policy| {
                policy.action == Action::Block
                    && policy.direction == direction
                    && (policy.source, policy.destination) == (any, any)
            })
        })
    })
}

fn accepting(policies: &[InstalledPolicy]) -> BTreeSet<std::net::IpAddr> {
    let policies = policies.iter().map(|installed| installed.policy);
    policies
        .filter(|policy| policy.action == Action::Allow && policy.direction == Direction::In)
        .map(|policy| policy.source.addr())
        .collect()
}
