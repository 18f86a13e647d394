//! This process seals and opens.

use std::sync::Arc;

use anyhow::Result;
use espalier_dataplane_core::Frozen;
use espalier_esp_tun::io::{Tun, Udp};
use espalier_esp_tun::{Config, Engine, Report};
use espalier_handover::Role;
use espalier_ike_io::relay::DataplaneEnd;
use tracing::error;

use crate::Parts;
use crate::kept::Kept;
use crate::resume::Inherited;

/// Takes every resource, then starts the engine; what is missing or taken is named before anything runs.
pub(crate) fn start(parts: &Parts<'_>, kept: &mut Kept) -> Result<Engine> {
    let args = parts.args;
    let relay = DataplaneEnd::bind(parts.run_dir.path())?;
    let udp = Udp::bind(args.listen_port)?;
    let tun = Tun::open(&args.tun, args.mtu)?;
    run(parts, kept, (relay, udp, tun), None)
}

/// Goes on with the state and the descriptors of the program before.
pub(crate) fn resume(
    parts: &Parts<'_>,
    kept: &mut Kept,
    inherited: &mut Inherited,
    frozen: Frozen,
) -> Result<Engine> {
    let relay = inherited.one(Role::IkeRelay)?;
    let relay = DataplaneEnd::resume(parts.run_dir.path(), relay)?;
    let udp = Udp::resume(inherited.one(Role::Udp)?)?;
    let tun = Tun::resume(inherited.one(Role::Tun)?, frozen.tun);
    run(parts, kept, (relay, udp, tun), Some(frozen))
}

fn run(
    parts: &Parts<'_>,
    kept: &mut Kept,
    (relay, udp, tun): (DataplaneEnd, Udp, Tun),
    frozen: Option<Frozen>,
) -> Result<Engine> {
    kept.keep(Role::IkeRelay, &relay)?;
    kept.keep(Role::Udp, &udp)?;
    kept.keep(Role::Tun, &tun)?;
    let (events, failed) = (parts.events.clone(), parts.failed.clone());
    let report = move |report| match report {
        // Nobody listens while the agent is away: it dumps when it is back.
        Report::Event(event) => drop(events.send(event)),
        Report::Failed(failure) => {
            error!(%failure, "a thread has ended");
            drop(failed.try_send(failure.into()));
        }
    };
    let config = Config {
        instance: rand::random(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device: parts.args.tun.clone(),
        tun: Arc::new(tun),
        udp,
        relay: Some(relay),
        report: Box::new(report),
    };
    let engine = match frozen {
        Some(frozen) => Engine::resume(config, frozen),
        None => Engine::start(config),
    };
    Ok(engine?)
}
