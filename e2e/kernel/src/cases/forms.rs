//! How a packet looks on the wire: protocols, suites, overlays, encapsulations.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use espalier_e2e::{Cluster, Mode, Node, Plane, State, exchange, until_within};
use espalier_rpc::agent::PeerStatus;

use crate::ground::{Ground, Populated};
use crate::load::{Load, NO_UDP, nothing_clear};
use crate::tap::{Tally, Tap};

const LOAD: Duration = Duration::from_secs(2);
/// A path that no longer lets protocol 50 pass is noticed within this.
const NOTICED: Duration = Duration::from_secs(90);
/// One that does so again: raw ESP is tried every five minutes.
const RETRIED: Duration = Duration::from_secs(360);

/// A loaded mesh of two nodes; returns its states on node 1 and what was on the wire.
fn loaded(ground: &mut Ground<'_>, mut on: Populated) -> Result<(Vec<State>, Tally)> {
    on.works()?;
    let tap = Tap::start(&on.mesh.bridge)?;
    let load = Load::start(&on)?;
    for (from, to) in [(0, 1), (1, 0)] {
        on.ping(from, on.pods[to].address.into(), &[])?;
    }
    load.run(LOAD);
    load.ends_without_loss(&on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    Ok((on.states(1)?, tap.tally()))
}

fn required(ground: &mut Ground<'_>, spec: &[&str]) -> Result<(Vec<State>, Tally)> {
    let mesh = ground.prepare(2, Mode::Required, spec)?;
    let on = ground.populate(mesh)?;
    loaded(ground, on)
}

/// Every state has this algorithm with so many octets of key and salt.
fn all_have(states: &[State], algorithm: &str, octets: usize) -> Result<()> {
    let has = |state: &State| {
        let mut keys = state.keys.iter();
        keys.any(|(name, key)| name == algorithm && key.len() == octets * 2)
    };
    let all = !states.is_empty() && states.iter().all(has);
    ensure!(
        all,
        "expected {algorithm} with {octets} octets, found {states:?}"
    );
    Ok(())
}

pub(crate) fn udp(ground: &mut Ground<'_>) -> Result<String> {
    in_udp(ground, &["udpEncapsulation: Always"])
}

pub(crate) fn ipip_udp(ground: &mut Ground<'_>) -> Result<String> {
    in_udp(ground, &["overlay: IPIP", "udpEncapsulation: Always"])
}

fn in_udp(ground: &mut Ground<'_>, spec: &[&str]) -> Result<String> {
    let (states, tally) = required(ground, spec)?;
    tally.only_udp_esp()?;
    let encapsulated = states.iter().all(|state| state.encap.is_some());
    ensure!(!states.is_empty() && encapsulated, "found {states:?}");
    Ok(format!("{tally:?}"))
}

/// Something between the nodes drops protocol 50: from the start, later, and no longer.
pub(crate) fn esp_dropped(ground: &mut Ground<'_>) -> Result<String> {
    let mesh = ground.prepare(2, Mode::Required, &[])?;
    mesh.nodes.iter().try_for_each(drop_esp)?;
    let mut on = ground.populate(mesh)?;
    on.works()?;
    let (tap, before) = (Tap::start(&on.mesh.bridge)?, on.mesh.watch.now()?);
    uses(&mut on, &tap, (NOTICED, "UDP"), |tally| {
        tally.udp_esp > 0 && tally.raw_esp == 0
    })?;
    let peer = on.mesh.node(1)?.peer("node-2")?;
    says_udp(&peer)?;

    on.mesh.nodes.iter().try_for_each(pass_esp)?;
    uses(&mut on, &tap, (RETRIED, "raw ESP"), |tally| {
        tally.raw_esp > 0 && tally.udp_esp == 0
    })?;
    on.mesh.nodes.iter().try_for_each(drop_esp)?;
    uses(&mut on, &tap, (NOTICED, "UDP again"), |tally| {
        tally.udp_esp > 0 && tally.raw_esp == 0
    })?;
    on.works()?;
    ground.measured.clear_packets = Some(on.mesh.watch.now()?.since(&before).clear);
    nothing_clear(ground.measured)?;
    Ok("UDP while it is dropped, raw when it is not".into())
}

fn drop_esp(node: &Node) -> Result<()> {
    for words in [
        "qdisc add dev eth0 ingress",
        "filter add dev eth0 ingress protocol ip u32 match ip protocol 50 0xff action drop",
    ] {
        node.netns
            .output(Command::new("tc").args(words.split(' ')))?;
    }
    Ok(())
}

fn pass_esp(node: &Node) -> Result<()> {
    let words = "qdisc del dev eth0 ingress".split(' ');
    node.netns.output(Command::new("tc").args(words)).map(drop)
}

/// Waits until packets pass in this form alone.
fn uses(
    on: &mut Populated,
    tap: &Tap,
    (limit, what): (Duration, &str),
    is: impl Fn(Tally) -> bool,
) -> Result<()> {
    until_within(limit, &format!("packets that pass by {what}"), || {
        tap.clear();
        let passed = exchange(&on.pods[0], &on.pods[1], 5).map_err(|error| format!("{error:#}"));
        let tally = tap.tally();
        Ok(passed.and_then(|()| is(tally).then_some(()).ok_or_else(|| format!("{tally:?}"))))
    })
}

/// A fallback is visible (S8).
fn says_udp(peer: &PeerStatus) -> Result<()> {
    let said = format!("{peer:?}").to_lowercase();
    ensure!(
        said.contains("udp"),
        "the status does not say that the pair is on UDP: {said}"
    );
    Ok(())
}

/// A kernel's and a userspace node are a pair; the first of the two has the lower identity and begins handshakes.
pub(crate) fn mixed(ground: &mut Ground<'_>, overlay: &str, planes: [Plane; 2]) -> Result<String> {
    pair_of(ground, &[overlay], planes, Tally::only_udp_esp)
}

/// The userspace node has raw sockets, on a machine whose kernel knows ESP, too.
pub(crate) fn mixed_raw(
    ground: &mut Ground<'_>,
    overlay: &str,
    planes: [Plane; 2],
) -> Result<String> {
    pair_of(ground, &[overlay, NO_UDP], planes, Tally::only_raw_esp)
}

/// The nodes of the mesh, which do not run yet, have these.
pub(super) fn have(mesh: &mut Cluster, planes: [Plane; 2]) {
    for (node, plane) in mesh.nodes.iter_mut().zip(planes) {
        node.plane = Some(plane);
    }
}

fn pair_of(
    ground: &mut Ground<'_>,
    spec: &[&str],
    planes: [Plane; 2],
    form: fn(Tally) -> Result<()>,
) -> Result<String> {
    let mut mesh = ground.prepare(2, Mode::Required, spec)?;
    have(&mut mesh, planes);
    let on = ground.populate(mesh)?;
    let (_, tally) = loaded(ground, on)?;
    form(tally)?;
    Ok(format!("{tally:?}"))
}

/// Integrity alone: packets can be read, but each is in an SA.
fn authenticated(ground: &mut Ground<'_>, spec: &str) -> Result<(Vec<State>, Tally)> {
    let mesh = ground.prepare(2, Mode::Required, &[spec])?;
    let mut on = ground.populate(mesh)?;
    on.all(protected)?;
    exchange(&on.pods[0], &on.pods[1], 20)?;
    let tap = Tap::start(&on.mesh.bridge)?;
    let load = Load::start(&on)?;
    for (from, to) in [(0, 1), (1, 0)] {
        on.ping(from, on.pods[to].address.into(), &[])?;
    }
    load.run(LOAD);
    load.ends_without_loss(&on.mesh, ground.measured)?;
    let tally = tap.tally();
    ground.measured.clear_packets = Some(tally.unprotected);
    nothing_clear(ground.measured)?;
    ensure!(tally.readable > 0, "the case sees no packet: {tally:?}");
    Ok((on.states(1)?, tally))
}

/// Whatever the path is called: it is enforced.
fn protected(peer: &PeerStatus) -> Result<(), String> {
    let path = ["Encrypted", "Authenticated"].contains(&peer.path.as_str());
    let enforced = path && peer.enforced && !peer.accepts_clear;
    enforced
        .then_some(())
        .ok_or_else(|| format!("is {}: {:?}", peer.path, peer.problem))
}

pub(crate) fn ah(ground: &mut Ground<'_>) -> Result<String> {
    let (states, tally) = authenticated(ground, "protocol: AH")?;
    ensure!(
        tally.ah > 0 && tally.raw_esp + tally.udp_esp == 0,
        "{tally:?}"
    );
    ensure!(states.iter().all(|state| state.proto == "ah"), "{states:?}");
    all_have(&states, "hmac(sha256)", 32)?;
    Ok(format!("{tally:?}"))
}

pub(crate) fn gmac(ground: &mut Ground<'_>) -> Result<String> {
    let (states, tally) = authenticated(ground, "suites: [AES-256-GMAC]")?;
    ensure!(
        tally.raw_esp > 0 && tally.ah + tally.udp_esp == 0,
        "{tally:?}"
    );
    all_have(&states, "rfc4543(gcm(aes))", 36)?;
    Ok(format!("{tally:?}"))
}

pub(crate) fn chacha(ground: &mut Ground<'_>) -> Result<String> {
    let (states, tally) = required(ground, &["suites: [ChaCha20-Poly1305]"])?;
    all_have(&states, "rfc7539esp(chacha20,poly1305)", 36)?;
    Ok(format!("{tally:?}"))
}

pub(crate) fn aes128(ground: &mut Ground<'_>) -> Result<String> {
    let (states, tally) = required(ground, &["suites: [AES-128-GCM]"])?;
    all_have(&states, "rfc4106(gcm(aes))", 20)?;
    Ok(format!("{tally:?}"))
}

pub(crate) fn ipip(ground: &mut Ground<'_>) -> Result<String> {
    let (states, tally) = required(ground, &["overlay: IPIP"])?;
    tally.only_raw_esp()?;
    all_are(&states, "transport")?;
    Ok(format!("{tally:?}"))
}

/// No overlay: tunnel mode.
pub(crate) fn native(ground: &mut Ground<'_>) -> Result<String> {
    let (states, tally) = required(ground, &["overlay: None"])?;
    tally.only_raw_esp()?;
    all_are(&states, "tunnel")?;
    Ok(format!("{tally:?}"))
}

fn all_are(states: &[State], mode: &str) -> Result<()> {
    let all = !states.is_empty() && states.iter().all(|state| state.mode == mode);
    ensure!(all, "expected states of mode {mode}, found {states:?}");
    Ok(())
}
