//! The two network namespaces and the wire between them.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use anyhow::Result;
use espalier_testnet::{Netns, VethEnd, address, route, veth};

use crate::plan;

const MTU: u32 = 1500;
const PREFIX: u8 = 30;
/// The way from the hub to the spokes.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// Where the processes run.
#[derive(Debug)]
pub struct Wire {
    /// One address.
    pub hub: Netns,
    /// One address per spoke.
    pub spokes: Netns,
}

impl Wire {
    /// Makes both. They go with this value, and with the sandbox.
    ///
    /// # Errors
    /// The kernel refuses, or this is no sandbox.
    pub fn new() -> Result<Self> {
        let (hub, spokes) = (Netns::new("hub")?, Netns::new("spokes")?);
        let end = |netns, name| VethEnd { netns, name };
        veth(end(&hub, "eth0"), end(&spokes, "eth0"), MTU)?;
        hub.run(|| address("eth0", plan::HUB.into(), PREFIX))??;
        spokes.run(|| address("eth0", GATEWAY.into(), PREFIX))??;
        // By a gateway: a neighbour entry for each spoke would overflow the kernel's table.
        let spokes_net = (IpAddr::from(plan::spokes()), plan::SPOKES_PREFIX);
        hub.run(|| route(spokes_net.0, spokes_net.1, GATEWAY.into(), "eth0"))??;
        // The whole network is this host's own, without thousands of addresses.
        let net = format!("{}/{}", spokes_net.0, spokes_net.1);
        spokes.output(Command::new("ip").args(["route", "add", "local", &net, "dev", "lo"]))?;
        Ok(Self { hub, spokes })
    }
}
