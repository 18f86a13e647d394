//! The overlay's device, the TUN, and the settings that go with them.

use std::{
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
};

use espalier_netlink::{
    IpTunnel, Link, Route, Socket, Vxlan,
    packet_route::link::{InfoIpTunnel, InfoVxlan},
    sysctl,
};
use tracing::info;

use crate::{
    Desired, Engine, Error, Framing, IPIP_DEVICE, NATIVE_DEVICE, VXLAN_DEVICE, guard, mtu, plan,
};

/// The smallest MTU that every IPv4 host must take (RFC 791) and IPv6 link must have (RFC 8200 §5).
const LEAST_POD_MTU: (u32, u32) = (576, 1280);

/// MTU for pods over this underlay interface.
pub(crate) fn pod_mtu(desired: &Desired, underlay: &Link) -> Result<u32, Error> {
    if let Some(mtu) = desired.vtep.mtu {
        return Ok(mtu);
    }
    let least_pod = if plan::has_ipv6(desired) {
        LEAST_POD_MTU.1
    } else {
        LEAST_POD_MTU.0
    };
    let least = mtu::least_underlay(desired.framing, desired.local, least_pod);
    match mtu::pod_mtu(desired.framing, desired.local, underlay.mtu) {
        Some(mtu) if mtu >= least_pod => Ok(mtu),
        _ => Err(Error::SmallUnderlay {
            device: underlay.name.clone(),
            mtu: underlay.mtu,
            least,
            overhead: least - least_pod,
        }),
    }
}

/// The framing's own device. Gives its index.
pub(crate) fn overlay(
    route: &mut Socket<Route>,
    settings: &mut Settings,
    desired: &Desired,
    mtu: u32,
) -> Result<u32, Error> {
    let link = match desired.framing {
        Framing::Vxlan => vxlan(route, desired, mtu),
        Framing::Ipip => ipip(route, desired, mtu),
        Framing::Native => holder(route),
    }?;
    settle(route, settings, &link, mtu)?;
    Ok(link.index)
}

/// Removes the devices of other framings, which nothing is routed to any more.
pub(crate) fn drop_others(route: &mut Socket<Route>, framing: Framing) -> Result<(), Error> {
    for (of, name, kinds) in OURS {
        if of == framing {
            continue;
        }
        if let Some(link) = route.link(name)?.filter(|link| is_kind(link, kinds)) {
            route.del_link(link.index)?;
        }
    }
    Ok(())
}

/// Our devices, and what kinds of them we make.
pub(crate) const OURS: [(Framing, &str, &[&str]); 3] = [
    (Framing::Vxlan, VXLAN_DEVICE, &["vxlan"]),
    (Framing::Ipip, IPIP_DEVICE, &["ipip", "ip6tnl"]),
    (Framing::Native, NATIVE_DEVICE, &["dummy", "bridge"]),
];

pub(crate) fn is_kind(link: &Link, kinds: &[&str]) -> bool {
    link.kind
        .as_deref()
        .is_some_and(|kind| kinds.contains(&kind))
}

/// The device of this name if it is as it should be; another one is removed.
fn kept(
    route: &mut Socket<Route>,
    name: &str,
    is: impl Fn(&Link) -> bool,
) -> Result<Option<Link>, Error> {
    let mut found = route.link(name)?;
    if let Some(link) = found.take_if(|link| !is(link)) {
        info!(device = name, "attributes differ; making the device anew");
        route.del_link(link.index)?;
    }
    Ok(found)
}

/// What was just made.
fn made(route: &mut Socket<Route>, name: &str) -> Result<Link, Error> {
    let missing = || espalier_netlink::Error::Missing(format!("interface {name}"));
    Ok(route.link(name)?.ok_or_else(missing)?)
}

fn ipip(route: &mut Socket<Route>, desired: &Desired, mtu: u32) -> Result<Link, Error> {
    let wanted = IpTunnel {
        name: IPIP_DEVICE,
        local: desired.local,
        mtu,
    };
    if let Some(link) = kept(route, IPIP_DEVICE, |link| is_tunnel(link, &wanted))? {
        return Ok(link);
    }
    let kind = match desired.local {
        IpAddr::V4(_) => "ipip",
        IpAddr::V6(_) => "ip6_tunnel",
    };
    route
        .add_ip_tunnel(&wanted)
        .map_err(|source| Error::Device {
            name: IPIP_DEVICE,
            kind,
            source,
        })?;
    made(route, IPIP_DEVICE)
}

fn is_tunnel(link: &Link, wanted: &IpTunnel<'_>) -> bool {
    let has = |a: &InfoIpTunnel| {
        let data = link.ip_tunnel.as_ref();
        data.is_some_and(|data| data.contains(a))
    };
    let remote = |a: &InfoIpTunnel| matches!(a, InfoIpTunnel::Remote(ip) if !ip.is_unspecified());
    let fixed = link.ip_tunnel.iter().flatten().any(remote);
    match wanted.local {
        IpAddr::V4(_) => {
            is_kind(link, &["ipip"])
                && has(&InfoIpTunnel::Local(wanted.local))
                && !has(&InfoIpTunnel::CollectMetadata)
                && !fixed
        }
        IpAddr::V6(_) => is_kind(link, &["ip6tnl"]) && has(&InfoIpTunnel::CollectMetadata),
    }
}

/// A dummy, or a bridge without ports where the kernel has none.
fn holder(route: &mut Socket<Route>) -> Result<Link, Error> {
    let holds = |link: &Link| is_kind(link, OURS[2].2) && link.master.is_none();
    if let Some(link) = kept(route, NATIVE_DEVICE, holds)? {
        return Ok(link);
    }
    route
        .add_dummy(NATIVE_DEVICE)
        .or_else(|_| route.add_bridge(NATIVE_DEVICE))
        .map_err(|source| Error::Device {
            name: NATIVE_DEVICE,
            kind: "dummy",
            source,
        })?;
    made(route, NATIVE_DEVICE)
}

/// The VXLAN device, made anew when any attribute is wrong.
fn vxlan(route: &mut Socket<Route>, desired: &Desired, mtu: u32) -> Result<Link, Error> {
    let wanted = Vxlan {
        name: VXLAN_DEVICE,
        vni: desired.vtep.vni,
        port: desired.vtep.port,
        local: desired.local,
        mac: desired.vtep.mac,
        mtu,
    };
    if let Some(link) = kept(route, VXLAN_DEVICE, |link| is(link, &wanted))? {
        return Ok(link);
    }
    let failed = |source| Error::Vxlan {
        name: VXLAN_DEVICE,
        vni: wanted.vni,
        port: wanted.port,
        source,
    };
    route.add_vxlan(&wanted).map_err(failed)?;
    made(route, VXLAN_DEVICE)
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

    /// Clear packets of a peer come in by the underlay while this node's route to it leads to the TUN already, or still: a strict
    /// filter would drop them.
    fn loose(&mut self, underlay: &str) -> Result<(), Error> {
        let of = |device: &str| format!("net/ipv4/conf/{device}/rp_filter");
        let (all, own) = (self.read(&of("all"))?, self.read(&of(underlay))?);
        // The greater of the two holds.
        match all.max(own).as_deref() {
            Some("1") => self.ensure(&of(underlay), "2"),
            _ => Ok(()),
        }
    }

    /// The node routes for its pods. IPv6 forwarding makes the kernel ignore router advertisements, by which the underlay may
    /// have its default route: where they are listened to now, they stay so (`accept_ra` 2).
    pub(crate) fn forwarding(&mut self, desired: &Desired, underlay: &Link) -> Result<(), Error> {
        self.ensure("net/ipv4/ip_forward", "1")?;
        if guard::only_way_in(desired).is_some() {
            self.loose(&underlay.name)?;
        }
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
