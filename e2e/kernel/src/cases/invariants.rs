//! The invariants of the design that need a kernel: S1, S2, S7, S8. (S3 and S4: keys.rs.)

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use espalier_e2e::{
    Attacker, Family, INJECTED_PORT, MARKER, Mode, Node, Plane, Pod, Setup, Shape, exchange_on,
    on_path, policies, send_numbered_to, until,
};
use espalier_testnet::Netns;

use crate::ground::{Ground, Populated, ip};
use crate::load::{first_family, nothing_clear};

const WAIT: Duration = Duration::from_secs(10);

pub(crate) fn s1_flushed(ground: &mut Ground<'_>) -> Result<String> {
    flushed(ground, Setup::default())
}

pub(crate) fn s1_flushed_ipip(ground: &mut Ground<'_>) -> Result<String> {
    flushed(ground, with_overlay("IPIP"))
}

pub(crate) fn s1_flushed_native(ground: &mut Ground<'_>) -> Result<String> {
    flushed(ground, with_overlay("None"))
}

fn with_overlay(overlay: &str) -> Setup {
    Setup {
        spec: vec![format!("overlay: {overlay}")],
        ..Setup::default()
    }
}

pub(crate) fn s1_flushed_ipv6(ground: &mut Ground<'_>) -> Result<String> {
    let shape = Shape {
        underlay: Family::V6,
        pods: &[Family::V6],
    };
    let setup = Setup {
        shape,
        ..Setup::default()
    };
    flushed(ground, setup)
}

/// S1: agent and data plane dead, then all states gone: pods send on, nothing is in clear; then it comes back.
fn flushed(ground: &mut Ground<'_>, setup: Setup) -> Result<String> {
    let mesh = ground.prepare_with(3, Mode::Required, setup)?;
    let mut on = ground.populate(mesh)?;
    on.works()?;
    let before = on.mesh.watch.now()?;
    let node = on.mesh.node(3)?;
    node.kill_agent()?;
    node.kill_dataplane()?;
    send_everywhere(&on)?;
    ip(on.mesh.node_ref(3)?, "xfrm state flush")?;
    send_everywhere(&on)?;
    on.mesh.works(&[1, 2], &on.pods[..2])?;
    ground.measured.clear_packets = Some(on.mesh.watch.now()?.since(&before).clear);
    nothing_clear(ground.measured)?;
    on.mesh.node(3)?.start()?;
    heals(&on)?;
    on.works()?;
    let seen = on.mesh.watch.now()?.since(&before);
    ground.measured.clear_packets = Some(seen.clear);
    nothing_clear(ground.measured)?;
    Ok(format!(
        "{} ESP packets, {} IKE messages",
        seen.esp, seen.ike
    ))
}

/// An agent that is back before its data plane reports what the policies say, whether or not their states are there: what counts
/// is that packets arrive.
fn heals(on: &Populated) -> Result<()> {
    let family = first_family(on);
    for other in &on.pods[..2] {
        until("packets after the restart", || {
            let passed = exchange_on(family, &on.pods[2], other, 5);
            Ok(passed.map_err(|error| format!("{error:#}")))
        })?;
    }
    Ok(())
}

/// From node 3's pod to all others, to it, and to nodes that nobody ever saw, for as long as the others may take to react.
fn send_everywhere(on: &Populated) -> Result<()> {
    let family = first_family(on);
    let never_seen: IpAddr = match family {
        Family::V4 => espalier_e2e::NEVER_SEEN.into(),
        Family::V6 => espalier_e2e::NEVER_SEEN_V6.into(),
    };
    let of = |pod: &Pod| pod.address_on(family);
    for _ in 0..20 {
        for to in [of(&on.pods[0])?, of(&on.pods[1])?, never_seen] {
            send_numbered_to(&on.pods[2], to, 5)?;
        }
        for to in [of(&on.pods[2])?, never_seen] {
            send_numbered_to(&on.pods[0], to, 5)?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// S2: clear VXLAN packets with forged and with unknown sources reach a pod in `Disabled` and none does in `Required`.
pub(crate) fn s2(ground: &mut Ground<'_>) -> Result<String> {
    let mesh = ground.prepare(2, Mode::Disabled, &[])?;
    let mut on = ground.populate(mesh)?;
    on.all(|peer| on_path(peer, "Clear"))?;
    let victim = on.pods[0].socket(INJECTED_PORT)?;
    victim.set_read_timeout(Some(Duration::from_millis(50)))?;
    let attacker = Attacker::on(&on.mesh.bridge)?;
    until("the injected packet in Disabled", || {
        attacker.inject(&on.pods)?;
        let arrived = victim.recv(&mut [0; 256]).is_ok();
        Ok(arrived
            .then_some(())
            .ok_or_else(|| "nothing arrives".to_owned()))
    })?;
    on.mesh.set_mode(Mode::Required)?;
    on.works()?;
    while victim.recv(&mut [0; 256]).is_ok() {}
    for _ in 0..50 {
        attacker.inject(&on.pods)?;
    }
    // What was let in would be before these in the node's queues.
    on.works()?;
    ensure!(
        victim.recv(&mut [0; 256]).is_err(),
        "an injected packet arrived"
    );
    Ok("100 injected packets, none arrived".into())
}

/// S7: API server, kubelet, IKE: with everything of ours dead and no state left, hosts reach each other in clear.
pub(crate) fn s7(ground: &mut Ground<'_>) -> Result<String> {
    let mut on = ground.required(2, &[])?;
    for index in [1, 2] {
        reachable(&on)?;
        let node = on.mesh.node(index)?;
        node.kill_agent()?;
        node.kill_dataplane()?;
        ip(node, "xfrm state flush")?;
    }
    reachable(&on)?;
    let mut count = 0;
    for node in &on.mesh.nodes {
        for policy in policies(&node.netns)? {
            // 4788: what is sent inside an SA to see whether it passes.
            let narrow = [
                "dport 4788",
                "dport 4789",
                "sport 4789",
                "proto ipencap",
                "proto 4",
                "10.244.",
            ];
            ensure!(
                narrow.iter().any(|word| policy.selector.contains(word)),
                "{}: a policy takes in more than the overlay: {policy:?}",
                node.name
            );
            count += 1;
        }
    }
    Ok(format!(
        "TCP 6443 and 10250, UDP 500 and 53, both ways; {count} policies looked at"
    ))
}

fn reachable(on: &Populated) -> Result<()> {
    let [a, b] = &on.mesh.nodes[..] else {
        bail!("two nodes are needed");
    };
    for (client, server) in [(a, b), (b, a)] {
        let at = on.mesh.setup.shape.underlay(server.index);
        for port in [6443, 10_250] {
            over_tcp(&client.netns, &server.netns, SocketAddr::new(at, port))?;
        }
        // Port 500 is the agent's while it lives.
        for port in [53, 6443] {
            over_udp(&client.netns, &server.netns, SocketAddr::new(at, port))?;
        }
        let ping = ["-n", "-c", "1", "-W", "5", &at.to_string()].map(str::to_owned);
        client.netns.output(Command::new("ping").args(ping))?;
    }
    Ok(())
}

fn over_tcp(client: &Netns, server: &Netns, at: SocketAddr) -> Result<()> {
    let listener = server.run(|| TcpListener::bind(at))??;
    let connect = || TcpStream::connect_timeout(&at, WAIT);
    let mut stream = client
        .run(connect)?
        .with_context(|| format!("TCP to {at}"))?;
    stream.write_all(b"request")?;
    let (mut accepted, _) = listener.accept()?;
    accepted.set_read_timeout(Some(WAIT))?;
    accepted
        .read_exact(&mut [0; 7])
        .with_context(|| format!("TCP to {at}"))?;
    Ok(())
}

fn over_udp(client: &Netns, server: &Netns, at: SocketAddr) -> Result<()> {
    let listener = server.run(|| UdpSocket::bind(at))??;
    listener.set_read_timeout(Some(WAIT))?;
    let unspecified = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = client.run(|| UdpSocket::bind(unspecified))??;
    socket.send_to(MARKER, at)?;
    listener
        .recv(&mut [0; 64])
        .with_context(|| format!("UDP to {at}"))?;
    Ok(())
}

/// S8: a kernel without ESP. Told to use it, the node takes no pods and says why; left alone, it says that it has fallen
/// back. Other cases must not run beside this one.
pub(crate) fn s8(ground: &mut Ground<'_>) -> Result<String> {
    let without = NoEsp::now()?;
    let setup = Setup {
        plane: Some(Plane::Kernel),
        ..Setup::default()
    };
    let mut mesh = ground.prepare_with(1, Mode::Required, setup)?;
    mesh.start_all()?;
    let said = until("node 1 to be not ready for want of ESP", || {
        let node = mesh.node(1)?;
        let Ok(status) = node.status() else {
            // A data plane that cannot work may well end.
            node.kill_dataplane()?;
            return Ok(Err("the data plane has ended".into()));
        };
        let log = node.log("dataplane")?;
        Ok(status.and_then(|status| {
            let said = status.problems.join("; ");
            let named = said.contains("ESP") || log.contains("ESP");
            let right = !status.ready && named;
            right
                .then_some(said.clone())
                .ok_or_else(|| format!("ready {}: {said}", status.ready))
        }))
    })?;
    Pod::refused(mesh.node(1)?)?;
    falls_back(mesh.node(1)?)?;
    drop(without);
    Ok(said)
}

fn falls_back(node: &mut Node) -> Result<()> {
    node.kill_agent()?;
    node.kill_dataplane()?;
    node.plane = Some(Plane::Auto);
    node.start()?;
    until("the userspace data plane", || {
        Ok(node.status()?.and_then(|status| {
            let right = status.ready && status.dataplane == "userspace";
            let found = || format!("{} ready {}", status.dataplane, status.ready);
            right.then_some(()).ok_or_else(found)
        }))
    })
}

/// The kernel has no ESP until this is dropped.
struct NoEsp {
    loader: String,
}

const LOADER: &str = "/proc/sys/kernel/modprobe";
/// Those that need others first.
const MODULES: [&str; 4] = ["esp4_offload", "esp6_offload", "esp4", "esp6"];

impl NoEsp {
    fn now() -> Result<Self> {
        let none = Self {
            loader: fs::read_to_string(LOADER)?,
        };
        // It would be loaded again on demand.
        fs::write(LOADER, "/bin/false")?;
        until("the ESP modules to be unloaded", || {
            let loaded = fs::read_to_string("/proc/modules")?;
            let is = |name: &str| {
                loaded
                    .lines()
                    .any(|line| line.split(' ').next() == Some(name))
            };
            let left: Vec<&str> = MODULES.into_iter().filter(|name| is(name)).collect();
            if left.is_empty() {
                return Ok(Ok(()));
            }
            // Dead namespaces let go of them in their time.
            let output = Command::new("rmmod").args(&left).output()?;
            Ok(Err(String::from_utf8_lossy(&output.stderr).into_owned()))
        })?;
        Ok(none)
    }
}

impl Drop for NoEsp {
    fn drop(&mut self) {
        let _ = fs::write(LOADER, self.loader.trim());
        for module in MODULES {
            let _ = Command::new("modprobe").arg(module).status();
        }
    }
}
