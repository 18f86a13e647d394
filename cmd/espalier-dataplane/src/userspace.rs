//! This process seals and opens.

use std::sync::Arc;

use anyhow::Result;
use espalier_esp_tun::io::{Tun, Udp};
use espalier_esp_tun::{Config, Engine, Report};
use espalier_ike_io::relay::DataplaneEnd;
use tracing::error;

use crate::Parts;

/// Takes every resource, then starts the engine; what is missing or taken is named before anything runs.
pub(crate) fn start(parts: &Parts<'_>) -> Result<Engine> {
    let args = parts.args;
    let relay = DataplaneEnd::bind(parts.run_dir.path())?;
    let udp = Udp::bind(args.listen_port)?;
    let tun = Tun::open(&args.tun, args.mtu)?;
    let (events, failed) = (parts.events.clone(), parts.failed.clone());
    let report = move |report| match report {
        // Nobody listens while the agent is away: it dumps when it is back.
        Report::Event(event) => drop(events.send(event)),
        Report::Failed(failure) => {
            error!(%failure, "a thread has ended");
            drop(failed.try_send(failure.into()));
        }
    };
    let engine = Engine::start(Config {
        instance: rand::random(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device: args.tun.clone(),
        tun: Arc::new(tun),
        udp,
        relay: Some(relay),
        report: Box::new(report),
    })?;
    Ok(engine)
}
