use std::path::Path;
use std::time::{Duration, Instant};

use espalier_netlink::packet_route::RouteNetlinkMessage;
use espalier_netlink::{
    Address, EXCLUSIVE, Errno, LinkChange, LinkRef, Neighbour, PLAIN, REPLACE, Route, RouteEntry,
    Socket, Veth, VethPeer, sysctl,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::At;
use crate::identity::{Identity, macs};
use crate::list::exists;
use crate::netns::PodNetns;
use crate::spec::validate_addressing;
use crate::{Error, PodAddress, PodSpec, ROUTE_PROTOCOL};

/// How long both ends of a new veth may take to work.
const CARRIER_PATIENCE: Duration = Duration::from_secs(5);
/// Between the first two looks; doubled with each look, up to the longest. Newer kernels (6.8) answer only when it works.
const CARRIER_FIRST_POLL: Duration = Duration::from_micros(100);
const CARRIER_LONGEST_POLL: Duration = Duration::from_millis(2);

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

/// A pod's interface that has no addresses and is down: what can be done before they are known. Goes again when dropped.
#[must_use = "dropping this removes the interface again"]
#[derive(Debug)]
pub struct Begun {
    pending: Pending,
    identity: Identity,
    netns: PodNetns,
    host: End,
    pod: End,
}

/// A veth's end, and a socket in its namespace.
#[derive(Debug)]
struct End {
    socket: Socket<Route>,
    index: u32,
}

/// What takes a step back. The veth takes with it what hangs on it: addresses, routes, neighbours, settings.
#[derive(Debug)]
enum Undo {
    /// With a socket in the pod's namespace.
    Loopback(Socket<Route>),
    Veth(u32),
}

/// What a step asks of the kernel; steps of one list go with one system call.
type Steps = Vec<(&'static str, RouteNetlinkMessage, u16)>;

/// Makes a pod's interface. Every step that was done is taken back when a later one fails. Whoever is killed in the middle leaves
/// either nothing or an interface that says whose it is ([`crate::list`]).
///
/// # Errors
/// [`Error`] names the step, what the kernel said and what to do.
pub fn setup(spec: &PodSpec) -> Result<Pending, Error> {
    spec.validate()?;
    begin(spec.identity(), &spec.netns)?.finish(&spec.addresses, spec.mtu)
}

/// The first half of [`setup`], which needs no addresses: whoever waits for them can do it meanwhile.
///
/// # Errors
/// As [`setup`].
pub fn begin(identity: Identity, netns: &Path) -> Result<Begun, Error> {
    identity.validate()?;
    let netns = PodNetns::open(netns)?;
    let mut socket = Socket::<Route>::open().at("open-netlink")?;
    let (host_mac, pod_mac) = macs(&identity.container_id, &identity.ifname);
    let interface = PodInterface {
        host_name: identity.host_name(),
        host_mac,
        pod_mac,
    };
    let mut pending = Pending {
        interface,
        undo: Vec::new(),
    };
    let index = pending.veth(&identity, &netns, &mut socket)?;
    let host = End { socket, index };
    host_settings(&pending.interface.host_name)?;
    // One visit: changes of namespace cost.
    let pod = netns.run(|| pending.pod_end(&identity.ifname))?;
    Ok(Begun {
        pending,
        identity,
        netns,
        host,
        pod,
    })
}

impl Begun {
    /// The second half of [`setup`]: addresses, at most one per family, and the MTU of both ends in bytes.
    ///
    /// # Errors
    /// As [`setup`].
    pub fn finish(mut self, addresses: &[PodAddress], mtu: u32) -> Result<Pending, Error> {
        validate_addressing(addresses, mtu)?;
        if addresses.iter().any(|a| a.address.is_ipv6()) {
            self.allow_ipv6()?;
        }
        let steps = self.pod_steps(addresses, mtu);
        carry_out(&mut self.pod.socket, steps)?;
        let steps = self.host_steps(addresses, mtu);
        carry_out(&mut self.host.socket, steps)?;
        self.await_running()?;
        Ok(self.pending)
    }

    /// Runtimes may have switched it off in the namespace.
    fn allow_ipv6(&self) -> Result<(), Error> {
        let key = format!("net/ipv6/conf/{}/disable_ipv6", self.identity.ifname);
        // Costs the kernel something, and mostly is so already.
        let allow = || sysctl::ensure(None, &key, "0").at_step("pod-settings");
        self.netns.run(allow).map(drop)
    }

    fn pod_steps(&self, addresses: &[PodAddress], mtu: u32) -> Steps {
        let (index, alias) = (self.pod.index, self.identity.alias());
        let up = LinkChange {
            up: Some(true),
            mtu: Some(mtu),
            alias: Some(&alias),
            ..LinkChange::default()
        };
        let up = up.message(LinkRef::Index(index));
        let mut steps = vec![("pod-up", RouteNetlinkMessage::SetLink(up), PLAIN)];
        for address in addresses {
            let own = Address::message(index, address.host_net());
            let host_mac = self.pending.interface.host_mac;
            steps.push(("pod-address", RouteNetlinkMessage::NewAddress(own), REPLACE));
            steps.push(neighbour("pod-neighbour", index, address.gateway, host_mac));
            let routes = pod_routes(address, index).into_iter();
            steps.extend(routes.map(|route| add_route("pod-route", &route)));
        }
        steps
    }

    /// Last: only now can packets reach the pod.
    fn host_steps(&self, addresses: &[PodAddress], mtu: u32) -> Steps {
        let index = self.host.index;
        let up = LinkChange {
            up: Some(true),
            mtu: Some(mtu),
            ..LinkChange::default()
        };
        let up = up.message(LinkRef::Index(index));
        let mut steps = vec![("host-up", RouteNetlinkMessage::SetLink(up), PLAIN)];
        for address in addresses {
            if let Some(gateway) = address.link_local_gateway() {
                let own = RouteNetlinkMessage::NewAddress(Address::message(index, gateway));
                steps.push(("host-gateway", own, REPLACE));
            }
            let pod_mac = self.pending.interface.pod_mac;
            steps.push(neighbour("host-neighbour", index, address.address, pod_mac));
            steps.push(add_route("host-route", &host_route(address, index)));
        }
        steps
    }

    /// The kernel makes a veth end work some time after both are up, on a queue of its own; until then it drops what is sent, and
    /// under load that was seen to take seconds. An ADD that succeeded means a pod that can send.
    fn await_running(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + CARRIER_PATIENCE;
        let mut pause = CARRIER_FIRST_POLL;
        loop {
            if self.host.is_running()? && self.pod.is_running()? {
                return crate::fault::at("carrier");
            }
            if Instant::now() > deadline {
                return Err(Error::NoCarrier {
                    name: self.identity.host_name(),
                    seconds: CARRIER_PATIENCE.as_secs(),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(CARRIER_LONGEST_POLL);
        }
    }
}

impl End {
    fn is_running(&mut self) -> Result<bool, Error> {
        let link = self.socket.link_by_index(self.index).at_step("carrier")?;
        Ok(link.is_some_and(|link| link.running))
    }
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

    /// Made and marked as its pod's by one system call: nobody can be killed between the two.
    fn veth(
        &mut self,
        identity: &Identity,
        netns: &PodNetns,
        host: &mut Socket<Route>,
    ) -> Result<u32, Error> {
        let name = identity.host_name();
        // What has the name now must not be marked.
        if exists(&identity.container_id, &identity.ifname)? {
            return Err(Error::HostNameTaken { name });
        }
        let [made, marked] = self.make_and_mark(identity, netns, host)?;
        match made {
            Err(error) if error.is_exists() => return Err(taken(host, name, &identity.ifname)),
            // Is it for the namespace, which may be none?
            Err(error) => return netns.run(|| Err(error).at_step("veth")),
            Ok(()) => {}
        }
        let index = index_of(host, &name).at_step("veth")?;
        self.undo.push(Undo::Veth(index));
        marked.at("veth").map(|()| index)
    }

    fn make_and_mark(
        &self,
        identity: &Identity,
        netns: &PodNetns,
        host: &mut Socket<Route>,
    ) -> Result<[Result<(), espalier_netlink::Error>; 2], Error> {
        let veth = Veth {
            name: &self.interface.host_name,
            mtu: None,
            mac: Some(self.interface.host_mac),
            peer: VethPeer {
                name: &identity.ifname,
                mac: Some(self.interface.pod_mac),
                netns: Some(netns.as_fd()),
            },
            up: false,
            queues: Some(1),
        };
        let alias = identity.alias();
        let mark = LinkChange {
            alias: Some(&alias),
            // A pod may send from its own address only, which is what the host route says.
            forward_strictly: true,
            no_link_local: has_ipv6(),
            ..LinkChange::default()
        };
        let mark = mark.message(LinkRef::Name(&self.interface.host_name));
        let both = [
            (RouteNetlinkMessage::NewLink(veth.message()), EXCLUSIVE),
            (RouteNetlinkMessage::SetLink(mark), PLAIN),
        ];
        let mut results = host.batch(both).at_step("veth")?.into_iter();
        Ok([(); 2].map(|()| results.next().unwrap_or(Ok(()))))
    }

    /// Runs in the pod's namespace.
    fn pod_end(&mut self, ifname: &str) -> Result<End, Error> {
        let mut socket = Socket::<Route>::open().at("open-pod-netlink")?;
        if set_loopback(&mut socket, true)? {
            let undo = Socket::<Route>::open().at_step("loopback")?;
            self.undo.insert(0, Undo::Loopback(undo));
        }
        crate::fault::at("loopback")?;
        // Addresses are unique by construction: no need to ask around.
        let settings = [("accept_ra", "0"), ("accept_dad", "0")];
        sysctl::put_all_if_there(&format!("net/ipv6/conf/{ifname}"), &settings)
            .at("pod-settings")?;
        let index = index_of(&mut socket, ifname).at("find-pod-end")?;
        Ok(End { socket, index })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        while let Some(step) = self.undo.pop() {
            let done = match step {
                Undo::Veth(index) => remove(index),
                Undo::Loopback(mut pod) => set_loopback(&mut pod, false).map(drop),
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

/// Asks in the cheapest way there is (SIOCGIFINDEX), in the thread's namespace, which is to be the socket's.
fn index_of(socket: &mut Socket<Route>, name: &str) -> Result<u32, espalier_netlink::Error> {
    if_nametoindex(name).or_else(|_| socket.index_of(name))
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

/// Sets `lo` of the socket's namespace up or down; says whether that changed anything.
fn set_loopback(socket: &mut Socket<Route>, up: bool) -> Result<bool, Error> {
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

/// Before the host's end is up: a pod's router advertisements are not for the host.
fn host_settings(name: &str) -> Result<(), Error> {
    sysctl::put_if_there(&format!("net/ipv6/conf/{name}/accept_ra"), "0").at("host-settings")
}

/// By a socket: whoever looks below `/proc/sys/net` has the kernel go through what it remembers of all namespaces there.
fn has_ipv6() -> bool {
    let opened = socket(
        AddressFamily::Inet6,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    !matches!(opened, Err(Errno::EAFNOSUPPORT))
}

/// Sends all, and gives the first refusal: the kernel goes on after one, and what it did is taken back with the rest.
fn carry_out(socket: &mut Socket<Route>, steps: Steps) -> Result<(), Error> {
    let names: Vec<_> = steps.iter().map(|(name, ..)| *name).collect();
    let requests = steps
        .into_iter()
        .map(|(_, message, flags)| (message, flags));
    let first = names.first().copied().unwrap_or_default();
    let results = socket.batch(requests).at_step(first)?;
    let mut named = results.into_iter().zip(names);
    named.try_for_each(|(result, name)| result.at(name))
}

fn neighbour(
    step: &'static str,
    index: u32,
    ip: std::net::IpAddr,
    mac: [u8; 6],
) -> (&'static str, RouteNetlinkMessage, u16) {
    let message = Neighbour::permanent(index, ip, mac).message();
    (step, RouteNetlinkMessage::NewNeighbour(message), REPLACE)
}

fn add_route(step: &'static str, route: &RouteEntry) -> (&'static str, RouteNetlinkMessage, u16) {
    (
        step,
        RouteNetlinkMessage::NewRoute(route.message()),
        EXCLUSIVE,
    )
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

pub(crate) fn host_route(address: &PodAddress, index: u32) -> RouteEntry {
    RouteEntry {
        protocol: ROUTE_PROTOCOL,
        ..RouteEntry::unicast(address.host_net(), None, index)
    }
}
