//! Devices, addresses and routes of a test's namespaces.

use std::net::IpAddr;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use espalier_netlink::{LinkChange, Route, RouteEntry, Socket, Veth, VethPeer, sysctl as kernel};
use ipnet::IpNet;

use crate::netns::Netns;

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// The namespace it is put in.
    pub netns: &'a Netns,
    /// The device's name there.
    pub name: &'a str,
}

/// Makes a veth pair with both ends up.
///
/// # Errors
/// A name is taken, or the kernel refuses.
pub fn veth(a: VethEnd<'_>, b: VethEnd<'_>, mtu: u32) -> Result<()> {
    let pair = Veth {
        name: a.name,
        mtu: Some(mtu),
        mac: None,
        peer: VethPeer {
            name: b.name,
            mac: None,
            netns: Some(b.netns.file().as_fd()),
        },
        // The kernel cannot set an end up whose other end is still being made.
        up: false,
        queues: None,
    };
    a.netns.run(|| {
        open()?.add_veth(&pair)?;
        set_up(a.name)
    })??;
    b.netns.run(|| set_up(b.name))?
}

/// A bridge in a namespace of its own: the wire between the nodes of a test.
#[derive(Debug)]
pub struct Bridge {
    netns: Netns,
    mtu: u32,
}

impl Bridge {
    /// The bridge's name in its namespace.
    pub const DEVICE: &'static str = "br0";

    /// Makes the namespace `name` with the bridge `br0`.
    ///
    /// # Errors
    /// The name exists, or the kernel refuses.
    pub fn new(name: &str, mtu: u32) -> Result<Self> {
        let netns = Netns::new(name)?;
        netns.run(|| add_bridge(mtu))??;
        Ok(Self { netns, mtu })
    }

    /// Where the bridge and its ports are.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Connects a namespace: the device `device` there, the port `port` here.
    ///
    /// # Errors
    /// A name is taken, or the kernel refuses.
    pub fn connect(&self, netns: &Netns, device: &str, port: &str) -> Result<()> {
        let inner = VethEnd {
            netns,
            name: device,
        };
        let outer = VethEnd {
            netns: &self.netns,
            name: port,
        };
        veth(outer, inner, self.mtu)?;
        self.netns.run(|| add_port(port))?
    }

    /// Removes a port and with it the device at its other end.
    ///
    /// # Errors
    /// There is no such port.
    pub fn disconnect(&self, port: &str) -> Result<()> {
        self.netns.run(|| {
            let mut socket = open()?;
            let index = socket.index_of(port)?;
            Ok(socket.del_link(index)?)
        })?
    }
}

fn add_bridge(mtu: u32) -> Result<()> {
    let mut socket = open()?;
    socket.add_bridge(Bridge::DEVICE)?;
    let index = socket.index_of(Bridge::DEVICE)?;
    let change = LinkChange {
        mtu: Some(mtu),
        ..LinkChange::default()
    };
    Ok(socket.set_link(index, &change)?)
}

fn add_port(port: &str) -> Result<()> {
    let mut socket = open()?;
    let bridge = socket.index_of(Bridge::DEVICE)?;
    let index = socket.index_of(port)?;
    let change = LinkChange {
        master: Some(bridge),
        ..LinkChange::default()
    };
    Ok(socket.set_link(index, &change)?)
}

/// Sets a device of the calling thread's namespace up.
///
/// # Errors
/// There is no such device, or the kernel refuses.
pub fn set_up(device: &str) -> Result<()> {
    let mut socket = open()?;
    let index = socket.index_of(device)?;
    Ok(socket.set_up(index)?)
}

/// Adds an address to a device of the calling thread's namespace.
///
/// # Errors
/// There is no such device, or the address is there already.
pub fn address(device: &str, address: IpAddr, prefix: u8) -> Result<()> {
    let mut socket = open()?;
    let index = socket.index_of(device)?;
    Ok(socket.add_address(index, IpNet::new(address, prefix)?)?)
}

/// Adds a route through a gateway that is on `device`'s link, in the calling thread's namespace.
///
/// # Errors
/// The gateway is not reachable, or the route is there already.
pub fn route(destination: IpAddr, prefix: u8, gateway: IpAddr, device: &str) -> Result<()> {
    let mut socket = open()?;
    let index = socket.index_of(device)?;
    let to = IpNet::new(destination, prefix)?;
    Ok(socket.add_route(&RouteEntry::unicast(to, Some(gateway), index))?)
}

/// Sets a value under `/proc/sys/net` for the calling thread's namespace; `key` like `ipv4/ip_forward`.
///
/// # Errors
/// There is no such key, or the kernel refuses the value.
pub fn sysctl(key: &str, value: &str) -> Result<()> {
    Ok(kernel::write(None, &format!("net/{key}"), value)?)
}

fn open() -> Result<Socket<Route>> {
    Socket::open().context("opening a netlink socket")
}
