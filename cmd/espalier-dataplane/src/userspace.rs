//! This process seals and opens.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use espalier_dataplane_core::Frozen;
use espalier_esp_tun::io::{PacketIo, RawSockets, Tun, Udp};
use espalier_esp_tun::{Config, Engine, Report, Several};
use espalier_handover::Role;
use espalier_ike_io::relay::DataplaneEnd;
use tracing::{error, info};

use crate::Parts;
use crate::kept::Kept;
use crate::resume::Inherited;

/// Takes every resource, then starts the engine; what is missing or taken is named before anything runs.
pub(crate) fn start(parts: &Parts<'_>, kept: &mut Kept) -> Result<Engine> {
    let args = parts.args;
    let relay = DataplaneEnd::bind(parts.run_dir.path())?;
    let queues = args.queues.count();
    let udp = Udp::bind_several(args.listen_port, queues)?;
    let tun = Tun::open_queues(&args.tun, args.mtu, queues)?;
    let raw = RawSockets::open();
    run(parts, kept, (relay, udp, raw, tun), None)
}

/// Goes on with the state and the descriptors of the program before, as many as there are, whatever `--queues` says: another number would
/// bring flows to other queues and peers to other sockets, in the middle of what waits there.
pub(crate) fn resume(
    parts: &Parts<'_>,
    kept: &mut Kept,
    inherited: &mut Inherited,
    frozen: Frozen,
) -> Result<Engine> {
    let relay = inherited.one(Role::IkeRelay)?;
    let relay = DataplaneEnd::resume(parts.run_dir.path(), relay)?;
    let udp: Result<Vec<_>, _> = inherited
        .several(Role::Udp)?
        .into_iter()
        .map(Udp::resume)
        .collect();
    let udp = Several::of(udp?).context("a UDP socket")?;
    let raw = RawSockets::resume(inherited.all(Role::Raw));
    let tun = inherited.several(Role::Tun)?.into_iter();
    let tun = tun.map(|queue| Tun::resume(queue, frozen.tun));
    let tun = Several::of(tun).context("a queue of the TUN device")?;
    let (wanted, queues) = (parts.args.queues.count(), tun.count());
    if wanted != queues {
        info!(
            queues,
            wanted, "as many queues as the program before, until the process starts again"
        );
    }
    run(parts, kept, (relay, udp, raw, tun), Some(frozen))
}

fn run(
    parts: &Parts<'_>,
    kept: &mut Kept,
    (relay, udp, raw, tun): (DataplaneEnd, Several<Udp>, RawSockets, Several<Tun>),
    frozen: Option<Frozen>,
) -> Result<Engine> {
    kept.keep(Role::IkeRelay, &relay)?;
    udp.iter()
        .try_for_each(|socket| kept.keep(Role::Udp, socket))?;
    raw.iter()
        .try_for_each(|socket| kept.keep(Role::Raw, socket))?;
    tun.iter()
        .try_for_each(|queue| kept.keep(Role::Tun, queue))?;
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
        tun: tun.map(|queue| -> Arc<dyn PacketIo> { Arc::new(queue) }),
        udp,
        raw,
        relay: Some(relay),
        report: Box::new(report),
    };
    let engine = match frozen {
        Some(frozen) => Engine::resume(config, frozen),
        None => Engine::start(config),
    };
    Ok(engine?)
}
