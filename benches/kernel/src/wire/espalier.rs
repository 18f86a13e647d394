//! The real agents, data planes and CNI plugin.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use espalier_e2e::{Cluster, POD_PORT, Setup};
use espalier_testnet::{Bridge, Netns};

use super::UNDERLAY_MTU;
use super::count::{Place, Sizes};
use super::shape::Settings;

/// A mesh of two nodes with a pod each.
pub(crate) fn measure(name: &str, settings: &Settings) -> Result<Sizes> {
    let mut sizes = None;
    let keep = std::env::temp_dir()
        .join("espalier-bench-kernel")
        .join(name);
    let ran = espalier_e2e::run(&keep, |bench| {
        let setup = Setup {
            spec: settings.spec.iter().copied().map(str::to_owned).collect(),
            plane: Some(settings.plane),
            ..Setup::default()
        };
        let mut mesh = Cluster::prepare_with(bench, 2, settings.mode, setup)?;
        widen_all(&mesh)?;
        mesh.start_all()?;
        let pods = mesh.pods(&[1, 2])?;
        let [from, to] = &pods[..] else {
            anyhow::bail!("expected two pods");
        };
        let listener = to.socket(POD_PORT)?;
        let place = Place {
            sender: from.socket(0)?,
            to: (to.address, POD_PORT).into(),
            netns: mesh.bridge.netns(),
            device: "node-1",
            leaving: false,
        };
        sizes = Some(place.measure(settings.outer)?);
        drop(listener);
        Ok(())
    });
    ran.map_err(|failure| anyhow::anyhow!("{}\n{}", failure.error, failure.logs))?;
    sizes.context("nothing was measured")
}

/// Every link of the wire.
fn widen_all(mesh: &Cluster) -> Result<()> {
    let wire = mesh.bridge.netns();
    for node in &mesh.nodes {
        widen(&node.netns, "eth0")?;
        widen(wire, &node.name)?;
    }
    widen(&mesh.gateway, "eth0")?;
    widen(wire, "gateway")?;
    widen(wire, Bridge::DEVICE)
}

pub(crate) fn widen(netns: &Netns, device: &str) -> Result<()> {
    let mtu = UNDERLAY_MTU.to_string();
    let words = ["link", "set", "dev", device, "mtu", &mtu];
    netns.output(Command::new("ip").args(words)).map(drop)
}

/// For the counterparts: two hosts on one link, `left` with `10.99.0.11` and `right` with `10.99.0.12`.
pub(crate) fn two_hosts() -> Result<[Netns; 2]> {
    use espalier_testnet::{VethEnd, address, veth};
    let (left, right) = (Netns::new("left")?, Netns::new("right")?);
    let end = |netns, name| VethEnd { netns, name };
    veth(end(&left, "eth0"), end(&right, "eth0"), UNDERLAY_MTU)?;
    for (netns, own) in [(&left, "10.99.0.11"), (&right, "10.99.0.12")] {
        let own = own.parse()?;
        netns.run(|| address("eth0", own, 24))??;
    }
    Ok([left, right])
}

/// Runs `program` in a namespace with these words.
pub(crate) fn say(netns: &Netns, program: &Path, words: &str) -> Result<()> {
    let mut command = Command::new(program);
    netns.output(command.args(words.split(' '))).map(drop)
}
