//! Devices, addresses and routes of a test's namespaces.

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, bail};

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
    let mtu = mtu.to_string();
    let peer = b.netns.path().to_string_lossy().into_owned();
    a.netns.run(|| {
        ip(&[
            "link", "add", "name", a.name, "mtu", &mtu, "type", "veth", "peer", "name", b.name,
            "mtu", &mtu, "netns", &peer,
        ])?;
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
        netns.run(|| {
            ip(&[
                "link",
                "add",
                Self::DEVICE,
                "mtu",
                &mtu.to_string(),
                "type",
                "bridge",
            ])?;
            set_up(Self::DEVICE)
        })??;
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
        self.netns
            .run(|| ip(&["link", "set", "dev", port, "master", Self::DEVICE]))?
    }

    /// Removes a port and with it the device at its other end.
    ///
    /// # Errors
    /// There is no such port.
    pub fn disconnect(&self, port: &str) -> Result<()> {
        self.netns.run(|| ip(&["link", "del", "dev", port]))?
    }
}

/// Sets a device of the calling thread's namespace up.
///
/// # Errors
/// There is no such device, or the kernel refuses.
pub fn set_up(device: &str) -> Result<()> {
    ip(&["link", "set", "dev", device, "up"])
}

/// Adds an address to a device of the calling thread's namespace.
///
/// # Errors
/// There is no such device, or the address is there already.
pub fn address(device: &str, address: IpAddr, prefix: u8) -> Result<()> {
    ip(&["addr", "add", &format!("{address}/{prefix}"), "dev", device])
}

/// Adds a route in the calling thread's namespace.
///
/// # Errors
/// The gateway is not reachable, or the route is there already.
pub fn route(destination: IpAddr, prefix: u8, gateway: IpAddr) -> Result<()> {
    let destination = format!("{destination}/{prefix}");
    ip(&["route", "add", &destination, "via", &gateway.to_string()])
}

/// Sets a value under `/proc/sys/net` for the calling thread's namespace; `key` like `ipv4/ip_forward`.
///
/// # Errors
/// There is no such key, or the kernel refuses the value.
pub fn sysctl(key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{key}");
    std::fs::write(&path, value).with_context(|| format!("writing {value} to {path}"))
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(args)
        .output()
        .context("starting `ip`")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", args.join(" "), said.trim());
    }
    Ok(())
}
