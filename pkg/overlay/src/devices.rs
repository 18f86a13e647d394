//! The VXLAN device, the TUN, and the settings that go with them.

use std::{
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
};

use espalier_netlink::{Link, Route, Socket, Vxlan, packet_route::link::InfoVxlan, sysctl};
use tracing::info;

use crate::{Desired, Engine, Error, VXLAN_DEVICE, plan};

/// The smallest MTU that every IPv4 host must take (RFC 791) and IPv6 link must have (RFC 8200 §5).
const LEAST_POD_MTU: (u32, u32) = (576, 1280);

/// MTU for pods over this underlay interface.
pub(crate) fn pod_mtu(desired: &Desired, underlay: &Link) -> Result<u32, Error> {
    if let Some(mtu) = desired.vtep.mtu {
        return Ok(mtu);
    }
    let overhead = plan::overhead(desired.local);
    let least = overhead
        + if plan::has_ipv6(desired) {
            LEAST_POD_MTU.1
        } else {
            LEAST_POD_MTU.0
        };
    match underlay.mtu.checked_sub(overhead) {
        Some(mtu) if underlay.mtu >= least => Ok(mtu),
        _ => Err(Error::SmallUnderlay {
            device: underlay.name.clone(),
            mtu: underlay.mtu,
            least,
            overhead,
        }),
    }
}

/// The VXLAN device, made anew when any attribute is wrong; MTU and state are corrected in place. Gives its index.
pub(crate) fn vxlan(
    route: &mut Socket<Route>,
    settings: &mut Settings,
    desired: &Desired,
    mtu: u32,
) -> Result<u32, Error> {
    let wanted = Vxlan {
        name: VXLAN_DEVICE,
        vni: desired.vtep.vni,
        port: desired.vtep.port,
        local: desired.local,
        mac: desired.vtep.mac,
        mtu,
    };
    let mut found = route.link(VXLAN_DEVICE)?;
    if let Some(link) = found.take_if(|link| !is(link, &wanted)) {
        info!(
            device = VXLAN_DEVICE,
            "attributes differ; making the device anew"
        );
        route.del_link(link.index)?;
    }
    let link = match found {
        Some(link) => link,
        None => make(route, &wanted)?,
    };
    settle(route, settings, &link, mtu)?;
    Ok(link.index)
}

/// The TUN, if the data plane has made it; corrected in place. Gives its index.
pub(crate) fn tun(
    route: &mut Socket<Route>,
    settings: &mut Settings,
    desired: &Desired,
    mtu: u32,
) -> Result<Option<u32>, Error> {
    let Some(link) = find_tun(route, desired)? else {
        return Ok(None);
    };
    settle(route, settings, &link, mtu)?;
    Ok(Some(link.index))
}

/// A device of the TUN's name that is no TUN does not count: nothing would encrypt what is routed to it.
pub(crate) fn find_tun(
    route: &mut Socket<Route>,
    desired: &Desired,
) -> Result<Option<Link>, Error> {
    let Engine::Tun(name) = &desired.engine else {
        return Ok(None);
    };
    Ok(route.link(name)?.filter(is_tun))
}

pub(crate) fn is_tun(link: &Link) -> bool {
    link.kind.as_deref() == Some("tun")
}

fn make(route: &mut Socket<Route>, wanted: &Vxlan<'_>) -> Result<Link, Error> {
    let failed = |source| Error::Vxlan {
        name: VXLAN_DEVICE,
        vni: wanted.vni,
        port: wanted.port,
        source,
    };
    route.add_vxlan(wanted).map_err(failed)?;
    let made = route.link(VXLAN_DEVICE)?;
    Ok(made.ok_or_else(|| espalier_netlink::Error::Missing(format!("interface {VXLAN_DEVICE}")))?)
}

/// The MTU first: below 1280 the kernel forgets the interface's IPv6 settings. Up last: the settings must stand by then.
fn settle(
    route: &mut Socket<Route>,
    settings: &mut Settings,
    link: &Link,
    mtu: u32,
) -> Result<(), Error> {
    if link.mtu != mtu {
        route.set_mtu(link.index, mtu)?;
    }
    settings.quiet(&link.name)?;
    if !link.up {
        route.set_up(link.index)?;
    }
    Ok(())
}

fn is(link: &Link, wanted: &Vxlan<'_>) -> bool {
    let Some(data) = &link.vxlan else {
        return false;
    };
    let local = match wanted.local {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    };
    let has = [
        InfoVxlan::Id(wanted.vni),
        InfoVxlan::Port(wanted.port),
        InfoVxlan::Learning(false),
        local,
    ];
    let lacks = |a: &InfoVxlan| match a {
        InfoVxlan::Group(ip) => ip.is_unspecified(),
        InfoVxlan::Group6(ip) => ip.is_unspecified(),
        InfoVxlan::Link(index) => *index == 0,
        InfoVxlan::CollectMetadata(on)
        | InfoVxlan::Proxy(on)
        | InfoVxlan::Rsc(on)
        | InfoVxlan::Vnifilter(on) => !on,
        InfoVxlan::Gbp | InfoVxlan::Gpe => false,
        _ => true,
    };
    link.kind.as_deref() == Some("vxlan")
        && link.mac == Some(wanted.mac)
        && link.master.is_none()
        && has.iter().all(|a| data.contains(a))
        && data.iter().all(lacks)
}

/// Settings under `/proc/sys`, written only where they differ.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) netns: Option<OwnedFd>,
    pub(crate) writes: usize,
}

impl Settings {
    fn ensure(&mut self, key: &str, value: &str) -> Result<(), Error> {
        let netns = self.netns.as_ref().map(AsFd::as_fd);
        self.writes += usize::from(sysctl::ensure(netns, key, value)?);
        Ok(())
    }

    fn read(&self, key: &str) -> Result<Option<String>, Error> {
        Ok(sysctl::read(self.netns.as_ref().map(AsFd::as_fd), key)?)
    }

    /// Our devices speak no IPv6 of their own accord, and take packets whose way back is another of our devices: for a moment
    /// of every toggle one direction is encrypted and the other clear.
    fn quiet(&mut self, device: &str) -> Result<(), Error> {
        self.ensure(&format!("net/ipv4/conf/{device}/rp_filter"), "2")?;
        self.ensure(&format!("net/ipv6/conf/{device}/accept_ra"), "0")?;
        self.ensure(&format!("net/ipv6/conf/{device}/autoconf"), "0")?;
        self.ensure(&format!("net/ipv6/conf/{device}/addr_gen_mode"), "1")
    }

    /// The node routes for its pods. IPv6 forwarding makes the kernel ignore router advertisements, by which the underlay may
    /// have its default route: where they are listened to now, they stay so (`accept_ra` 2).
    pub(crate) fn forwarding(&mut self, desired: &Desired, underlay: &Link) -> Result<(), Error> {
        self.ensure("net/ipv4/ip_forward", "1")?;
        if !plan::has_ipv6(desired) {
            return Ok(());
        }
        let accept_ra = format!("net/ipv6/conf/{}/accept_ra", underlay.name);
        if self.read(&accept_ra)?.as_deref() == Some("1") {
            self.ensure(&accept_ra, "2")?;
        }
        self.ensure("net/ipv6/conf/all/forwarding", "1")
    }
}
