//! Gateways outside of the mesh: site to site with strongSwan.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use espalier_e2e::{
    MARKER, Mode, Node, POD_PORT, Plane, Pod, encrypted, on_path, policies, send_numbered, until,
};
use espalier_rpc::agent::PeerStatus;

use crate::ground::{Ground, Populated};
use crate::load::{Load, nothing_clear};
use crate::report::Measured;
use crate::site::{Auth, GATEWAY, NAME, NETWORK, Site};
use crate::tap::{Tally, Tap};

/// What the agent allows at least.
const REKEY_SECONDS: u32 = 10;
const REKEYS: usize = 3;
/// A rekey, with jitter and a margin, and what it replaced drained.
const REKEYED: Duration = Duration::from_secs(45);
const LOAD: Duration = Duration::from_secs(2);
/// Packets of flows with 100 a second each way, on a slow machine.
const RESTART_COSTS: u64 = 50;
/// Of a ping: IPv4 and ICMP headers.
const HEADERS: u32 = 28;

struct Joined {
    on: Populated,
    site: Site,
}

impl Joined {
    /// A mesh and a site whose gateway does not run yet.
    fn prepare(ground: &Ground<'_>, mode: Mode, auth: Auth, spec: &[&str]) -> Result<Self> {
        let mut mesh = ground.prepare(2, mode, spec)?;
        for node in &mut mesh.nodes {
            node.rekey_seconds = Some(REKEY_SECONDS);
        }
        let site = Site::new(ground, &mut mesh, auth)?;
        let on = ground.populate(mesh)?;
        Ok(Self { on, site })
    }

    /// The same with tunnels from both nodes.
    fn up(ground: &Ground<'_>, auth: Auth, spec: &[&str]) -> Result<Self> {
        let mut joined = Self::prepare(ground, Mode::Required, auth, spec)?;
        joined.site.start()?;
        joined.tunnels()?;
        joined.on.all_encrypt()?;
        Ok(joined)
    }

    fn tunnels(&mut self) -> Result<Vec<PeerStatus>> {
        let nodes = self.on.mesh.nodes.iter_mut();
        nodes.map(|node| tunnel(node, encrypted)).collect()
    }

    /// Every pod reaches the host and the host every pod, with packets of the pods' full size, too.
    fn pings(&self, mtu: u32) -> Result<()> {
        let size = (mtu - HEADERS).to_string();
        let host = self.site.host.address.into();
        for at in 0..self.on.pods.len() {
            self.on.ping(at, host, &[])?;
            self.on.ping(at, host, &["-M", "do", "-s", &size])?;
            let pod = self.on.pods[at].address.into();
            Populated::ping_from(&self.site.host, pod, &[])?;
        }
        Ok(())
    }

    /// Flows each way between all pods and the host.
    fn load(&self) -> Result<Load> {
        let host = &self.site.host;
        let pairs = self
            .on
            .pods
            .iter()
            .flat_map(|pod| [(pod, host), (host, pod)]);
        Load::between(&self.on.mesh, pairs.collect())
    }

    fn spis(&mut self) -> Result<Vec<u32>> {
        let nodes = self.on.mesh.nodes.iter_mut();
        nodes.map(|node| Ok(node.peer(NAME)?.spi_out)).collect()
    }

    /// Waits until all nodes seal with other SAs than these.
    fn replaced(&mut self, old: &[u32]) -> Result<Vec<u32>> {
        espalier_e2e::until_within(REKEYED, "other SAs with the gateway", || {
            let new = self.spis()?;
            let other = new
                .iter()
                .zip(old)
                .all(|(new, old)| *new != 0 && new != old);
            Ok(other
                .then_some(new.clone())
                .ok_or_else(|| format!("{new:x?}")))
        })
    }
}

/// Waits until a node says of the gateway what `missing` wants.
fn tunnel(
    node: &mut Node,
    missing: impl Fn(&PeerStatus) -> Result<(), String>,
) -> Result<PeerStatus> {
    until(&format!("{}: the gateway", node.name), || {
        let status = node.status()?;
        Ok(status.and_then(|status| {
            let mut peers = status.peers.into_iter();
            let found = peers.find(|peer| peer.name == NAME && peer.kind == "external");
            let peer = found.ok_or("no such peer")?;
            missing(&peer).map(|()| peer)
        }))
    })
}

pub(crate) fn gateway(ground: &mut Ground<'_>) -> Result<String> {
    let mut joined = Joined::up(ground, Auth::Psk, &[])?;
    let tap = Tap::start(&joined.on.mesh.bridge)?;
    let mtu = joined
        .on
        .mesh
        .node(1)?
        .status()?
        .map_err(anyhow::Error::msg)?
        .mtu;
    joined.pings(mtu)?;
    let load = joined.load()?;
    let mut spis = joined.spis()?;
    for _ in 0..REKEYS {
        spis = joined.replaced(&spis).context("rekeys of the nodes")?;
    }
    joined.site.rekey()?;
    spis = joined.replaced(&spis).context("a rekey of the gateway")?;
    load.run(LOAD);
    load.ends_without_loss(&joined.on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    let lost = restarted(&mut joined, &spis)?;
    tap.tally().only_raw_esp()?;
    joined.pings(mtu)?;
    removed(&mut joined)?;
    Ok(format!(
        "{REKEYS} rekeys by the nodes and one by the gateway; restarted agents, {lost} lost; removed without a trace"
    ))
}

/// An agent that restarts goes on with the SAs until it has made others. The gateway seals with these before its answer has arrived:
/// that much may be lost.
fn restarted(joined: &mut Joined, spis: &[u32]) -> Result<u64> {
    let load = joined.load()?;
    let mut measured = Measured::default();
    for index in [1, 2] {
        joined.on.mesh.node(index)?.kill_agent()?;
    }
    load.run(LOAD);
    load.arrives()?;
    for index in [1, 2] {
        joined.on.mesh.node(index)?.start_agent()?;
    }
    joined.tunnels()?;
    joined.replaced(spis).context("restarted agents")?;
    load.arrives()?;
    load.run(LOAD);
    let said = load.end(&joined.on.mesh, &mut measured)?;
    nothing_clear(&measured)?;
    let lost = measured.lost.unwrap_or_default();
    ensure!(lost <= RESTART_COSTS, "restarted agents: {said}");
    Ok(lost)
}

/// Without the ExternalPeer nothing of it is left in the kernels.
fn removed(joined: &mut Joined) -> Result<()> {
    for node in &joined.on.mesh.nodes {
        node.remove_manifest("berlin.yaml")?;
    }
    for index in [1, 2] {
        until("nothing to be left of the gateway", || {
            let node = joined.on.mesh.node_ref(index)?;
            let states = joined.on.states(index)?;
            let of_it = |state: &&espalier_e2e::State| state.src == GATEWAY || state.dst == GATEWAY;
            let states = states.iter().filter(of_it).count();
            let all = policies(&node.netns)?;
            let network = NETWORK.trim_end_matches("0/24");
            let policies = all.iter().filter(|p| p.selector.contains(network)).count();
            let nothing = states == 0 && policies == 0;
            Ok(nothing
                .then_some(())
                .ok_or_else(|| format!("{states} states, {policies} policies")))
        })?;
    }
    joined.on.works()
}

pub(crate) fn certificate(ground: &mut Ground<'_>) -> Result<String> {
    let joined = Joined::up(ground, Auth::Certificate, &[])?;
    let tally = loaded(ground, &joined)?;
    tally.only_raw_esp()?;
    Ok(format!("{tally:?}"))
}

/// Beside tunnels between the nodes themselves.
pub(crate) fn native(ground: &mut Ground<'_>) -> Result<String> {
    let mut joined = Joined::up(ground, Auth::Psk, &["overlay: None"])?;
    let tally = loaded(ground, &joined)?;
    tally.only_raw_esp()?;
    joined.on.works()?;
    Ok(format!("{tally:?}"))
}

/// S8: nodes whose data plane has no tunnels refuse the gateway, say so, and close its networks; the mesh works.
pub(crate) fn s8(ground: &mut Ground<'_>) -> Result<String> {
    let mut mesh = ground.prepare(2, Mode::Required, &[])?;
    for node in &mut mesh.nodes {
        node.plane = Some(Plane::Userspace);
    }
    let mut site = Site::new(ground, &mut mesh, Auth::Psk)?;
    site.start()?;
    let mut on = ground.populate(mesh)?;
    for index in [1, 2] {
        let words = ["ExternalPeer berlin", "userspace", "--dataplane kernel"];
        on.mesh.await_problem(index, &words)?;
        tunnel(on.mesh.node(index)?, |peer| on_path(peer, "Blocked"))?;
    }
    on.works()?;
    let joined = Joined { on, site };
    let tap = Tap::start(&joined.on.mesh.bridge)?;
    let injected = closed(&joined, &tap)?;
    ground.measured.clear_packets = Some(0);
    Ok(format!(
        "{injected} clear packets of the gateway, none arrived"
    ))
}

pub(crate) fn udp(ground: &mut Ground<'_>) -> Result<String> {
    let joined = Joined::up(ground, Auth::Psk, &["udpEncapsulation: Always"])?;
    let tally = loaded(ground, &joined)?;
    tally.only_udp_esp()?;
    Ok(format!("{tally:?}"))
}

fn loaded(ground: &mut Ground<'_>, joined: &Joined) -> Result<Tally> {
    let tap = Tap::start(&joined.on.mesh.bridge)?;
    let load = joined.load()?;
    load.run(LOAD);
    load.ends_without_loss(&joined.on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    Ok(tap.tally())
}

/// S1: an ExternalPeer is a demand for encryption in every mode. Before there is a tunnel, when the gateway's SAs are gone, and when
/// everything of ours is dead and flushed: no pod's packet leaves in clear, and none of the gateway's clear ones comes in.
pub(crate) fn s1(ground: &mut Ground<'_>) -> Result<String> {
    let mut joined = Joined::prepare(ground, Mode::Disabled, Auth::Psk, &[])?;
    for node in &mut joined.on.mesh.nodes {
        tunnel(node, |peer| on_path(peer, "Blocked"))?;
    }
    let tap = Tap::start(&joined.on.mesh.bridge)?;
    let mut injected = closed(&joined, &tap).context("without a gateway")?;
    joined.site.start()?;
    joined.tunnels()?;
    joined.pings(576)?;

    joined.site.kill()?;
    injected += closed(&joined, &tap).context("the gateway's SAs are gone")?;
    for index in [1, 2] {
        let node = joined.on.mesh.node(index)?;
        node.kill_agent()?;
        node.kill_dataplane()?;
    }
    injected += closed(&joined, &tap).context("with everything of ours dead")?;
    for index in [1, 2] {
        crate::ground::ip(joined.on.mesh.node_ref(index)?, "xfrm state flush")?;
    }
    injected += closed(&joined, &tap).context("with all states flushed")?;

    joined.site.start()?;
    for index in [1, 2] {
        joined.on.mesh.node(index)?.start()?;
    }
    joined.tunnels()?;
    joined.pings(576)?;
    let load = joined.load()?;
    load.run(LOAD);
    ground.measured.clear_packets = Some(0);
    Ok(format!(
        "{injected} clear packets of the gateway, none arrived"
    ))
}

/// Pods send to the host and the host, in clear, to pods: the former is not seen on the wire, the latter does not arrive.
fn closed(joined: &Joined, tap: &Tap) -> Result<usize> {
    let host = &joined.site.host;
    let sockets = joined.on.pods.iter().map(|pod| pod.socket(POD_PORT));
    let sockets = sockets.collect::<Result<Vec<_>>>()?;
    tap.clear();
    for _ in 0..20 {
        for pod in &joined.on.pods {
            send_numbered(pod, host.address, 5)?;
            send_numbered(host, pod.address, 5)?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let marked: Vec<_> = tap.frames().into_iter().filter(|f| f.is_marked()).collect();
    let from = |pod: &Pod| marked.iter().filter(|f| f.is_from(pod.address)).count();
    let left: usize = joined.on.pods.iter().map(from).sum();
    ensure!(left == 0, "{left} packets of pods on the wire in clear");
    let injected = from(host);
    ensure!(
        injected > 0,
        "no clear packet of the gateway was on the wire: no proof"
    );
    for socket in sockets {
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut buffer = [0; 256];
        let arrived = socket.recv(&mut buffer);
        let ours = arrived.is_ok_and(|length| buffer[..length].starts_with(MARKER));
        ensure!(!ours, "a clear packet of the gateway arrived in a pod");
    }
    Ok(injected)
}
