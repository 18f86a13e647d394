//! What is: complete lists of the objects that could be ours.

use std::net::IpAddr;

use espalier_netlink::{InstalledPolicy, Link, RouteEntry, RouteFilter};

use crate::{Error, Overlay, PRIORITIES, PROTOCOL, VXLAN_DEVICE, target};

/// Main routing table.
const MAIN: u32 = 254;

impl Overlay {
    /// The underlay's interface.
    pub(crate) fn underlay(&mut self, local: IpAddr) -> Result<Link, Error> {
        self.route
            .link_by_address(local)?
            .ok_or(Error::NoUnderlay(local))
    }

    /// Our routes: unreachable ones, and those that lead to our devices.
    pub(crate) fn own_routes(&mut self, devices: &[u32]) -> Result<Vec<RouteEntry>, Error> {
        let filter = RouteFilter {
            protocol: Some(PROTOCOL),
            ..RouteFilter::default()
        };
        let mut routes = self.route.routes(filter)?;
        routes.retain(|route| route.table == MAIN && target::is_ours(route, devices));
        Ok(routes)
    }

    /// Our policies.
    pub(crate) fn own_policies(&mut self) -> Result<Vec<InstalledPolicy>, Error> {
        let mut policies = self.xfrm.policies().map_err(Error::Policy)?;
        policies.retain(|installed| PRIORITIES.contains(&installed.policy.priority));
        Ok(policies)
    }

    /// Our VXLAN device.
    pub(crate) fn vxlan(&mut self) -> Result<Option<Link>, Error> {
        Ok(self.route.link(VXLAN_DEVICE)?)
    }
}
