use std::time::{Duration, Instant};

use espalier_netlink::{
    Link, LinkChange, Neighbour, Route, RouteEntry, Socket, Veth, VethPeer, sysctl,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::At;
use crate::netns::PodNetns;
use crate::{Error, PodAddress, PodSpec, ROUTE_PROTOCOL};

/// How long both ends of a new veth may take to work.
const CARRIER_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const CARRIER_POLL: Duration = Duration::from_millis(2);

/// What [`setup`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// Name of the host's end.
    pub host_name: String,
    /// MAC of the host's end.
    pub host_mac: [u8; 6],
    /// MAC of the pod's end.
    pub pod_mac: [u8; 6],
}

/// An interface that goes again when this is dropped, unless [`Pending::commit`] keeps it.
#[must_use = "dropping this removes the interface again"]
#[derive(Debug)]
pub struct Pending {
    interface: PodInterface,
    undo: Vec<Undo>,
}

/// What takes a step back. The veth takes with it what hangs on it: addresses, routes, neighbours, settings.
#[derive(Debug)]
enum Undo {
    Loopback(PodNetns),
    Veth(u32),
}

/// Makes a pod's interface. Every step that was done is taken back when a later one fails.
///
/// # Errors
/// [`Error`] names the step, what the kernel said and what to do.
pub fn setup(spec: &PodSpec) -> Result<Pending, Error> {
    spec.validate()?;
    let netns = PodNetns::open(&spec.netns)?;
    let mut host = Socket::<Route>::open().at("open-netlink")?;
    let (host_mac, pod_mac) = spec.macs();
    let interface = PodInterface {
        host_name: spec.host_name(),
        host_mac,
        pod_mac,
    };
    let mut pending = Pending {
        interface,
        undo: Vec::new(),
    };
    pending.loopback(&spec.netns)?;
    let index = pending.veth(spec, &netns, &mut host)?;
    host_settings(&spec.host_name())?;
    netns.run(|| pod_end(spec, host_mac))?;
    host_end(spec, &mut host, index, pod_mac)?;
    await_running(spec, &netns, &mut host, index)?;
    Ok(pending)
}

impl Pending {
    /// Keeps the interface.
    pub fn commit(mut self) -> PodInterface {
        self.undo.clear();
        self.interface.clone()
    }

    /// What was made so far.
    #[must_use]
    pub fn interface(&self) -> &PodInterface {
        &self.interface
    }

    fn loopback(&mut self, path: &std::path::Path) -> Result<(), Error> {
        let netns = PodNetns::open(path)?;
        if netns.run(|| set_loopback(true))? {
            self.undo.push(Undo::Loopback(netns));
        }
        crate::fault::at("loopback")
    }

    fn veth(
        &mut self,
        spec: &PodSpec,
        netns: &PodNetns,
        host: &mut Socket<Route>,
    ) -> Result<u32, Error> {
        let name = spec.host_name();
        let PodInterface {
            host_mac, pod_mac, ..
        } = self.interface;
        let peer = VethPeer {
            name: &spec.ifname,
            mac: Some(pod_mac),
            netns: Some(netns.as_fd()),
        };
        let veth = Veth {
            name: &name,
            mtu: Some(spec.mtu),
            mac: Some(host_mac),
            peer,
            up: false,
        };
        match host.add_veth(&veth) {
            Err(error) if error.is_exists() => return Err(taken(host, name, &spec.ifname)),
            other => other.at_step("veth")?,
        }
        let index = host.index_of(&name).at_step("veth")?;
        self.undo.push(Undo::Veth(index));
        crate::fault::at("veth").map(|()| index)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        while let Some(step) = self.undo.pop() {
            let done = match &step {
                Undo::Veth(index) => remove(*index),
                Undo::Loopback(netns) => netns.run(|| set_loopback(false)).map(drop),
            };
            if let Err(error) = done {
                tracing::error!(%error, interface = self.interface.host_name, "rollback failed");
            }
        }
    }
}

fn remove(index: u32) -> Result<(), Error> {
    let mut host = Socket::<Route>::open().at_step("rollback")?;
    match host.del_link(index) {
        Err(error) if error.is_missing() => Ok(()),
        other => other.at_step("rollback"),
    }
}

/// Which of the two names was it?
fn taken(host: &mut Socket<Route>, name: String, ifname: &str) -> Error {
    match host.link(&name) {
        Ok(Some(_)) => Error::HostNameTaken { name },
        _ => Error::PodNameTaken {
            name: ifname.to_owned(),
        },
    }
}

/// Sets `lo` of the calling thread's namespace up or down; says whether that changed anything.
fn set_loopback(up: bool) -> Result<bool, Error> {
    let mut socket = Socket::<Route>::open().at_step("loopback")?;
    let Some(lo) = socket.link("lo").at_step("loopback")? else {
        return Ok(false);
    };
    if lo.up == up {
        return Ok(false);
    }
    let change = LinkChange {
        up: Some(up),
        ..LinkChange::default()
    };
    socket.set_link(lo.index, &change).at_step("loopback")?;
    Ok(true)
}

/// Before the host's end is up. Strict reverse-path filtering: a pod may send from its own address only, which is what
/// the host route says. Nothing on this link is to be configured by itself.
fn host_settings(name: &str) -> Result<(), Error> {
    let settings = [
        (format!("net/ipv4/conf/{name}/rp_filter"), "1"),
        (format!("net/ipv4/conf/{name}/forwarding"), "1"),
        (format!("net/ipv6/conf/{name}/accept_ra"), "0"),
        (format!("net/ipv6/conf/{name}/accept_dad"), "0"),
        (format!("net/ipv6/conf/{name}/addr_gen_mode"), "1"),
    ];
    ensure(&settings).at("host-settings")
}

/// Runs in the pod's namespace.
fn pod_end(spec: &PodSpec, host_mac: [u8; 6]) -> Result<(), Error> {
    pod_settings(spec)?;
    let mut pod = Socket::<Route>::open().at("open-pod-netlink")?;
    let index = pod.index_of(&spec.ifname).at("find-pod-end")?;
    let alias = spec.alias();
    let change = LinkChange {
        up: Some(true),
        alias: Some(&alias),
        ..LinkChange::default()
    };
    pod.set_link(index, &change).at("pod-up")?;
    for address in &spec.addresses {
        pod.add_address(index, address.host_net())
            .at("pod-address")?;
        pod.replace_neighbour(&Neighbour::permanent(index, address.gateway, host_mac))
            .at("pod-neighbour")?;
        for route in pod_routes(address, index) {
            pod.add_route(&route).at("pod-route")?;
        }
    }
    Ok(())
}

/// Runtimes may have switched IPv6 off in the namespace. Addresses are unique by construction: no need to ask around.
fn pod_settings(spec: &PodSpec) -> Result<(), Error> {
    let mut settings = vec![
        (format!("net/ipv6/conf/{}/accept_ra", spec.ifname), "0"),
        (format!("net/ipv6/conf/{}/accept_dad", spec.ifname), "0"),
    ];
    if spec.addresses.iter().any(|a| a.address.is_ipv6()) {
        settings.push((format!("net/ipv6/conf/{}/disable_ipv6", spec.ifname), "0"));
    }
    ensure(&settings).at("pod-settings")
}

/// To the gateway, which no prefix of the pod's contains, and through it to everywhere.
pub(crate) fn pod_routes(address: &PodAddress, index: u32) -> Vec<RouteEntry> {
    let everywhere = match address.gateway.is_ipv4() {
        true => IpNet::from(Ipv4Net::default()),
        false => IpNet::from(Ipv6Net::default()),
    };
    let gateway = RouteEntry::unicast(IpNet::from(address.gateway), None, index);
    let default = RouteEntry::unicast(everywhere, Some(address.gateway), index);
    if address.link_local_gateway().is_some() {
        vec![default]
    } else {
        vec![gateway, default]
    }
}

/// Last: only now can packets reach the pod.
fn host_end(
    spec: &PodSpec,
    host: &mut Socket<Route>,
    index: u32,
    pod_mac: [u8; 6],
) -> Result<(), Error> {
    let alias = spec.alias();
    let change = LinkChange {
        up: Some(true),
        alias: Some(&alias),
        ..LinkChange::default()
    };
    host.set_link(index, &change).at("host-up")?;
    for address in &spec.addresses {
        if let Some(gateway) = address.link_local_gateway() {
            host.add_address(index, gateway).at("host-gateway")?;
        }
        host.replace_neighbour(&Neighbour::permanent(index, address.address, pod_mac))
            .at("host-neighbour")?;
        host.add_route(&host_route(address, index))
            .at("host-route")?;
    }
    Ok(())
}

/// The kernel makes a veth end work some time after both are up, on a queue of its own; until then it drops what is sent, and
/// under load that was seen to take seconds. An ADD that succeeded means a pod that can send.
fn await_running(
    spec: &PodSpec,
    netns: &PodNetns,
    host: &mut Socket<Route>,
    index: u32,
) -> Result<(), Error> {
    let deadline = Instant::now() + CARRIER_PATIENCE;
    loop {
        let ours = host.link_by_index(index).at_step("carrier")?;
        let theirs = netns.run(|| pod_link(spec))?;
        let running = |link: &Option<Link>| link.as_ref().is_some_and(|link| link.running);
        if running(&ours) && running(&theirs) {
            return crate::fault::at("carrier");
        }
        if Instant::now() > deadline {
            return Err(Error::NoCarrier {
                name: spec.host_name(),
                seconds: CARRIER_PATIENCE.as_secs(),
            });
        }
        std::thread::sleep(CARRIER_POLL);
    }
}

/// Runs in the pod's namespace.
fn pod_link(spec: &PodSpec) -> Result<Option<Link>, Error> {
    let mut pod = Socket::<Route>::open().at_step("carrier")?;
    pod.link(&spec.ifname).at_step("carrier")
}

pub(crate) fn host_route(address: &PodAddress, index: u32) -> RouteEntry {
    RouteEntry {
        protocol: ROUTE_PROTOCOL,
        ..RouteEntry::unicast(address.host_net(), None, index)
    }
}

/// Settings of the calling thread's namespace; those that the kernel does not have (no IPv6) are left alone.
fn ensure(settings: &[(String, &str)]) -> Result<(), espalier_netlink::Error> {
    settings
        .iter()
        .try_for_each(|(key, value)| sysctl::ensure(None, key, value).map(drop))
}
