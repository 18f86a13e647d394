//! From what is to what should be, in an order that neither opens a gap nor cuts a flow:
//! unreachable routes; allows, then blocks; the device; what leads through it; routes, each switched in one step; removals.

use espalier_netlink::packet_route::link::InfoVxlan;
use espalier_netlink::{
    Action, Errno, InstalledPolicy, Link, LinkChange, Policy, RouteEntry, Vxlan,
    packet_xfrm::XfrmMessage, sysctl,
};
use ipnet::IpNet;

use crate::target::{self, Devices};
use crate::{Applied, Desired, Error, Overlay, PROTOCOL, VXLAN_DEVICE};

impl Overlay {
    /// Brings the kernel to `desired`. On an error what was done stays; call again.
    ///
    /// # Errors
    /// [`Error`]; the address, policy or object is named.
    pub fn apply(&mut self, desired: &Desired) -> Result<Applied, Error> {
        let before = self.route.writes() + self.xfrm.writes();
        let underlay = self.underlay(desired.local)?;
        let pod_mtu = target::pod_mtu(desired, underlay.mtu)?;
        self.put_routes(&target::unreachable(desired), &[])?;
        let policies = target::policies(desired, underlay.index);
        let stale = self.put_policies(&policies)?;
        let vxlan = self.put_vxlan(desired, pod_mtu)?;
        let mut settings = self.put_sysctls(desired, VXLAN_DEVICE)?;
        self.put_addresses(desired, vxlan)?;
        let devices = Devices {
            vxlan,
            tun: self.put_tun(desired, pod_mtu, &mut settings)?,
        };
        self.put_neighbours(desired, vxlan)?;
        self.put_peer_routes(desired, devices)?;
        self.remove_policies(&stale)?;
        self.remove_neighbours(desired, vxlan)?;
        Ok(Applied {
            writes: self.route.writes() + self.xfrm.writes() - before + settings,
            pod_mtu,
        })
    }

    /// Removes everything of ours, and nothing else.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn remove_all(&mut self) -> Result<(), Error> {
        let vxlan = self.vxlan()?;
        let devices: Vec<u32> = vxlan.iter().map(|link| link.index).collect();
        let filter = espalier_netlink::RouteFilter {
            protocol: Some(PROTOCOL),
            ..Default::default()
        };
        let links = self.route.links()?;
        let to_pods = |oif: u32| {
            links
                .iter()
                .any(|link| link.index == oif && link.kind.as_deref() == Some("veth"))
        };
        for route in self.route.routes(filter)? {
            if !route.oif.is_some_and(to_pods) {
                self.remove_route(&route)?;
            }
        }
        for index in devices {
            self.route.del_link(index)?;
        }
        let policies = self.own_policies()?;
        self.remove_policies(&policies)
    }

    /// Adds or switches the routes that are not as they should be.
    fn put_routes(&mut self, wanted: &[RouteEntry], devices: &[u32]) -> Result<(), Error> {
        let actual = self.own_routes(devices)?;
        for route in wanted
            .iter()
            .filter(|route| !actual.iter().any(|old| same_route(old, route)))
        {
            self.route.replace_route(route)?;
        }
        Ok(())
    }

    fn put_peer_routes(&mut self, desired: &Desired, devices: Devices) -> Result<(), Error> {
        let ours: Vec<u32> = [Some(devices.vxlan), devices.tun]
            .into_iter()
            .flatten()
            .collect();
        let wanted = target::routes(desired, devices);
        self.put_routes(&wanted, &ours)?;
        let keep = [wanted, target::unreachable(desired)].concat();
        for route in self.own_routes(&ours)? {
            if !keep.iter().any(|kept| same_place(kept, &route)) {
                self.remove_route(&route)?;
            }
        }
        Ok(())
    }

    fn remove_route(&mut self, route: &RouteEntry) -> Result<(), Error> {
        match self.route.del_route(route) {
            Err(e) if e.errno() == Some(Errno::ESRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Writes missing policies, allows first; returns those that are to go.
    fn put_policies(&mut self, wanted: &[Policy]) -> Result<Vec<InstalledPolicy>, Error> {
        let actual = self.own_policies()?;
        for policy in wanted
            .iter()
            .filter(|policy| !actual.iter().any(|old| old.policy == **policy))
        {
            self.write_policy(policy.update())?;
        }
        let stale =
            |old: &InstalledPolicy| !wanted.iter().any(|policy| policy.same_place(&old.policy));
        Ok(actual.into_iter().filter(stale).collect())
    }

    /// Blocks go before the allows above them, so that nothing is blocked that was not before.
    fn remove_policies(&mut self, stale: &[InstalledPolicy]) -> Result<(), Error> {
        for action in [Action::Block, Action::Allow] {
            for old in stale.iter().filter(|old| old.policy.action == action) {
                self.write_policy(old.delete())?;
            }
        }
        Ok(())
    }

    fn write_policy(&mut self, message: XfrmMessage) -> Result<(), Error> {
        match self.xfrm.request(message, espalier_netlink::PLAIN) {
            Err(e) if e.errno() == Some(Errno::ENOENT) => Ok(()),
            Err(e) => Err(Error::Policy(e)),
            Ok(_) => Ok(()),
        }
    }

    /// The VXLAN device as it should be; one that is wrong in what cannot be changed is made anew.
    fn put_vxlan(&mut self, desired: &Desired, mtu: u32) -> Result<u32, Error> {
        let vtep = desired.vtep;
        let wanted = Vxlan {
            name: VXLAN_DEVICE,
            vni: vtep.vni,
            port: vtep.port,
            local: desired.local,
            mac: vtep.mac,
            mtu,
        };
        let mut found = self.vxlan()?;
        if let Some(link) = found.take_if(|link| !is_vxlan(link, &wanted)) {
            self.route.del_link(link.index)?;
        }
        let link = match found {
            Some(link) => link,
            None => {
                self.route.add_vxlan(&wanted)?;
                self.vxlan()?
                    .ok_or_else(|| espalier_netlink::Error::Missing(VXLAN_DEVICE.to_owned()))?
            }
        };
        let change = LinkChange {
            mtu: (link.mtu != mtu).then_some(mtu),
            mac: (link.mac != Some(vtep.mac)).then_some(vtep.mac),
            ..LinkChange::default()
        };
        if change.mtu.is_some() || change.mac.is_some() {
            self.route.set_link(link.index, &change)?;
        }
        if !link.up {
            // Before it is up, so that it gets no address of its own.
            self.put_sysctls(desired, VXLAN_DEVICE)?;
            self.route.set_up(link.index)?;
        }
        Ok(link.index)
    }

    fn put_addresses(&mut self, desired: &Desired, vxlan: u32) -> Result<(), Error> {
        let wanted: Vec<IpNet> = desired
            .gateways
            .iter()
            .map(|gateway| IpNet::from(*gateway))
            .collect();
        let actual = self.route.addresses(Some(vxlan))?;
        for address in wanted
            .iter()
            .filter(|address| !actual.iter().any(|old| old.address == **address))
        {
            self.route.add_address(vxlan, *address)?;
        }
        for old in actual
            .iter()
            .filter(|old| !old.dynamic && !wanted.contains(&old.address))
        {
            self.route.del_address(vxlan, old.address)?;
        }
        Ok(())
    }

    /// The data plane's device, if it is there: pods' MTU and a loose reverse path filter.
    fn put_tun(
        &mut self,
        desired: &Desired,
        mtu: u32,
        settings: &mut usize,
    ) -> Result<Option<u32>, Error> {
        let Some(name) = &desired.tun else {
            return Ok(None);
        };
        let Some(link) = self.route.link(name)? else {
            return Ok(None);
        };
        if link.mtu != mtu {
            self.route.set_mtu(link.index, mtu)?;
        }
        if !link.up {
            self.route.set_up(link.index)?;
        }
        *settings += self.put_sysctls(desired, name)?;
        Ok(Some(link.index))
    }

    fn put_sysctls(&mut self, desired: &Desired, device: &str) -> Result<usize, Error> {
        let mut changed = 0;
        for (key, value) in target::sysctls(desired, device) {
            changed += usize::from(sysctl::ensure(None, &key, value)?);
        }
        Ok(changed)
    }

    fn put_neighbours(&mut self, desired: &Desired, vxlan: u32) -> Result<(), Error> {
        let actual = self.route.fdb(vxlan)?;
        for entry in target::fdb(desired, vxlan)
            .iter()
            .filter(|entry| !actual.contains(entry))
        {
            self.route.replace_fdb(entry)?;
        }
        let actual = self.route.neighbours(vxlan)?;
        for neighbour in target::neighbours(desired, vxlan)
            .iter()
            .filter(|wanted| !actual.contains(wanted))
        {
            self.route.replace_neighbour(neighbour)?;
        }
        Ok(())
    }

    fn remove_neighbours(&mut self, desired: &Desired, vxlan: u32) -> Result<(), Error> {
        let wanted = target::neighbours(desired, vxlan);
        for old in self.route.neighbours(vxlan)? {
            if !wanted.iter().any(|kept| kept.ip == old.ip) && old.state == wanted_state() {
                self.route.del_neighbour(&old)?;
            }
        }
        let wanted = target::fdb(desired, vxlan);
        for old in self.route.fdb(vxlan)? {
            if !wanted.contains(&old) {
                self.route.del_fdb(&old)?;
            }
        }
        Ok(())
    }
}

fn wanted_state() -> espalier_netlink::packet_route::neighbour::NeighbourState {
    espalier_netlink::packet_route::neighbour::NeighbourState::Permanent
}

/// As the kernel tells routes apart.
fn same_place(a: &RouteEntry, b: &RouteEntry) -> bool {
    a.to == b.to && a.metric == b.metric
}

fn same_route(actual: &RouteEntry, wanted: &RouteEntry) -> bool {
    // The kernel's view of flags and scope of onlink routes differs between versions; these fields decide where packets go.
    let key = |route: &RouteEntry| {
        (
            route.to,
            route.via,
            route.oif,
            route.source,
            route.kind,
            route.protocol,
        )
    };
    key(actual) == key(wanted) && same_place(actual, wanted)
}

fn is_vxlan(link: &Link, wanted: &Vxlan<'_>) -> bool {
    let Some(data) = &link.vxlan else {
        return false;
    };
    let local = match wanted.local {
        std::net::IpAddr::V4(ip) => InfoVxlan::Local(ip),
        std::net::IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    };
    [
        InfoVxlan::Id(wanted.vni),
        InfoVxlan::Port(wanted.port),
        InfoVxlan::Learning(false),
        local,
    ]
    .iter()
    .all(|info| data.contains(info))
}
