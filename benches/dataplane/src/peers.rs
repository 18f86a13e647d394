//! One node that sends to several at once, each in a namespace of its own.
//!
//! ```text
//!                                       ┌── eth0 192.0.2.2 ── daemon ── device ── receiver 10.244.2.1
//!  senders ── device ── daemon ── eth0 ─┼── eth0 192.0.2.3 ── daemon ── device ── receiver 10.244.3.1
//!          10.244.1.1        192.0.2.1  └── …                bridge
//! ```

use anyhow::{Context, Result};
use espalier_dataplane_core::Overlay;
use espalier_testnet::{Bridge, Process};

use crate::espalier;
use crate::path::{self, End};
use crate::report::{Key, Samples};
use crate::{Arguments, cost, load};

const MTU: u16 = 1500;

/// Measures every number of peers: plain, then Espalier with each number of queues.
pub(crate) fn measure(arguments: &Arguments, samples: &mut Samples) -> Result<()> {
    for &peers in &arguments.peers {
        one(arguments, peers, None, samples)?;
        for &queues in &arguments.queues {
            one(arguments, peers, Some(queues), samples)?;
        }
    }
    Ok(())
}

fn one(
    arguments: &Arguments,
    peers: u8,
    queues: Option<usize>,
    samples: &mut Samples,
) -> Result<()> {
    let name = match queues {
        None => "plain-veth".to_owned(),
        Some(1) => "espalier-vxlan-udp".to_owned(),
        Some(queues) => format!("espalier-vxlan-udp-queues-{queues}"),
    };
    eprintln!("{peers} peers, {name}");
    let bridge = Bridge::new("wire", MTU.into())?;
    let ends: Result<Vec<_>> = (1..=peers + 1).map(|n| end(&bridge, n)).collect();
    let ends = ends?;
    let (hub, others) = ends.split_first().context("a sender")?;
    let mut daemons = connect(hub, others, queues)?;
    for other in others {
        load::arrive([hub, other]).with_context(|| format!("{name} with {peers} peers"))?;
    }
    let before = cpu(&daemons)?;
    let pairs: Vec<_> = others.iter().map(|other| [hub, other]).collect();
    let bytes = load::tcp(&pairs, arguments.seconds)?;
    let used = (cpu(&daemons)? - before) / (bytes.total / 1e9);
    let key = Key {
        name,
        test: "tcp-peers".to_owned(),
        mtu: MTU,
        streams: peers.into(),
    };
    let rate = bytes.per_second * 8.0 / 1e9;
    samples.add(key, "Gbit/s", rate, queues.map(|_| used));
    daemons.iter_mut().for_each(path::end);
    Ok(())
}

fn end(bridge: &Bridge, n: u8) -> Result<End> {
    let end = End::new(n)?;
    bridge.connect(&end.netns, "eth0", &format!("port{n}"))?;
    end.addresses()?;
    Ok(end)
}

/// Plain routes, or a daemon at each end; that of the one that sends with so many queues.
fn connect(hub: &End, others: &[End], queues: Option<usize>) -> Result<Vec<Process>> {
    let Some(queues) = queues else {
        for other in others {
            path::plain([hub, other], "eth0")?;
        }
        return Ok(Vec::new());
    };
    let vxlan = Overlay::Vxlan {
        vni: 4789,
        port: 4789,
    };
    let mut daemons = vec![espalier::start(hub, MTU - 92, queues)?];
    for other in others {
        daemons.push(espalier::start(other, MTU - 92, 1)?);
        espalier::pair([hub, other], (vxlan, espalier::IN_UDP))?;
    }
    Ok(daemons)
}

/// CPU time of all daemons until now, seconds.
fn cpu(daemons: &[Process]) -> Result<f64> {
    daemons.iter().map(|daemon| cost::cpu(daemon.id())).sum()
}
