//! The kernel seals and opens. This process drives its states, and holds UDP 4500: the kernel takes ESP out of what comes in
//! there, IKE is relayed to the agent.
//!
//! The port needs no bypass policy of its own: Espalier's policies are about UDP to the overlay's and the probes' port and about
//! pod addresses, never about UDP 4500 or 500 between hosts.

use anyhow::{Context as _, Result};
use espalier_handover::Role;
use espalier_ike_io::relay::{DataplaneEnd, PortRelay};
use espalier_ike_io::udp::UdpIke;
use espalier_xfrm::{Config, Findings, KernelPlane, take_esp_in_udp};

use crate::Parts;
use crate::kept::Kept;
use crate::resume::Inherited;

/// Takes every resource, adopts the kernel's states, and begins to relay. The states stay when this process ends.
pub(crate) fn start(parts: &Parts<'_>, kept: &mut Kept, findings: Findings) -> Result<KernelPlane> {
    let relay = DataplaneEnd::bind(parts.run_dir.path())?;
    let udp = UdpIke::bind(parts.args.listen_port)?;
    run(parts, kept, (relay, udp), findings)
}

/// Goes on with the port and the relay of the program before.
pub(crate) fn resume(
    parts: &Parts<'_>,
    kept: &mut Kept,
    inherited: &mut Inherited,
    findings: Findings,
) -> Result<KernelPlane> {
    let relay = inherited.one(Role::IkeRelay)?;
    let relay = DataplaneEnd::resume(parts.run_dir.path(), relay)?;
    let udp = UdpIke::resume(inherited.all(Role::Udp))?;
    run(parts, kept, (relay, udp), findings)
}

fn run(
    parts: &Parts<'_>,
    kept: &mut Kept,
    (relay, udp): (DataplaneEnd, UdpIke),
    findings: Findings,
) -> Result<KernelPlane> {
    let port = parts.args.listen_port;
    kept.keep(Role::IkeRelay, &relay)?;
    for socket in udp.sockets() {
        take_esp_in_udp(socket).with_context(|| format!("UDP port {port}"))?;
        kept.keep(Role::Udp, socket)?;
    }
    let relay = PortRelay::new(udp, relay)?;
    let events = parts.events.clone();
    let plane = KernelPlane::open(Config {
        run_dir: parts.run_dir.path().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        port,
        findings,
        // Nobody listens while the agent is away: it dumps when it is back.
        report: Box::new(move |event| drop(events.send(event))),
    })?;
    tokio::spawn(relay.run());
    Ok(plane)
}
