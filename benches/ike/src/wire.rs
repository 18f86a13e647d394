//! The two network namespaces and the wire between them.

use std::process::Command;

use anyhow::Result;
use espalier_testnet::{Netns, VethEnd, address, veth};

use crate::plan;

const MTU: u32 = 1500;

/// Where the processes run.
#[derive(Debug)]
pub(crate) struct Wire {
    /// One address.
    pub(crate) hub: Netns,
    /// One address per spoke.
    pub(crate) spokes: Netns,
}

impl Wire {
    /// Makes both. They go with this value, and with the sandbox.
    pub(crate) fn new() -> Result<Self> {
        let (hub, spokes) = (Netns::new("hub")?, Netns::new("spokes")?);
        let end = |netns, name| VethEnd { netns, name };
        veth(end(&hub, "eth0"), end(&spokes, "eth0"), MTU)?;
        hub.run(|| address("eth0", plan::HUB.into(), 30))??;
        ip(&hub, &["route", "add", plan::SPOKES_NET, "dev", "eth0"])?;
        // The whole network is this host's own, without thousands of addresses.
        ip(
            &spokes,
            &["route", "add", "local", plan::SPOKES_NET, "dev", "lo"],
        )?;
        let hub_net = format!("{}/30", plan::HUB);
        ip(
            &spokes,
            &[
                "route",
                "add",
                &hub_net.replace(".1/", ".0/"),
                "dev",
                "eth0",
            ],
        )?;
        Ok(Self { hub, spokes })
    }
}

fn ip(netns: &Netns, arguments: &[&str]) -> Result<()> {
    netns.output(Command::new("ip").args(arguments)).map(drop)
}
