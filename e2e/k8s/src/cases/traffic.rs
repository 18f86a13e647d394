//! Who reaches whom, and what of it can be read on the wire.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use espalier_e2e::{LIMIT, Pod, exchange, until_within};
use espalier_testnet::Netns;

use super::mesh::{self, Mode};
use crate::ground::{Ground, TEST_NAMESPACE};
use crate::load::{Load, leaked};

const PATIENCE: Duration = Duration::from_secs(5);
/// Packets each way between two pods.
const PACKETS: u64 = 50;
const HOST_PORT: u16 = 7900;

/// Pods of all nodes reach each other, encrypted.
pub(super) fn pods(ground: &mut Ground<'_>) -> Result<String> {
    let (pods, wire, gateway) = (
        ground.pods("app=peer")?,
        ground.harness.wire()?,
        ground.harness.gateway()?,
    );
    all_exchange(&pods)?;
    let seen = ground.harness.wire()?.since(&wire);
    let astray = ground.harness.gateway()?.since(&gateway);
    ground.measured.esp_packets = Some(seen.esp);
    ground.measured.clear_packets = Some(leaked(&seen));
    ground.measured.gateway_clear_packets = Some(leaked(&astray));
    let pairs = pods.len() * (pods.len() - 1);
    let sent = u64::try_from(pairs)? * PACKETS;
    (ground.measured.sent, ground.measured.lost) = (Some(sent), Some(0));
    ensure!(
        seen.esp >= sent,
        "{sent} packets arrived, but only {} of ESP were on the wire",
        seen.esp
    );
    ensure!(
        leaked(&seen) + leaked(&astray) == 0,
        "in clear, the last: {:?}",
        seen.samples.back()
    );
    Ok(format!("{pairs} directions"))
}

/// A Service's address leads to the pods of every node, from pods and from hosts.
pub(super) fn services(ground: &mut Ground<'_>) -> Result<String> {
    let nodes: BTreeSet<String> = ground.harness.nodes().into_iter().collect();
    let service = ground.get(&["service", "peer", "-n", TEST_NAMESPACE])?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("no cluster IP")?;
    let address = SocketAddr::new(address.parse()?, 80);
    let mut from: Vec<(String, Netns)> = Vec::new();
    for pod in ground.pods("app=peer")? {
        from.push((pod.name, pod.netns));
    }
    for node in &nodes {
        from.push((node.clone(), ground.harness.network(node)?));
    }
    for (name, netns) in &from {
        let mut met = BTreeSet::new();
        // kube-proxy may not know all of them yet; one that it knows is met soon.
        until_within(
            LIMIT,
            &format!("pods of all nodes behind the Service, from {name}"),
            || {
                let said = netns.run(|| get(address))?;
                met.insert(said.with_context(|| format!("the Service from {name}"))?);
                Ok((met == nodes)
                    .then_some(())
                    .ok_or_else(|| format!("it led to {met:?}")))
            },
        )?;
    }
    Ok(format!("from {} pods and hosts", from.len()))
}

/// Hosts reach pods of their own and of other nodes.
pub(super) fn host_to_pod(ground: &mut Ground<'_>) -> Result<String> {
    let pods = ground.pods("app=peer")?;
    for node in ground.harness.nodes() {
        let netns = ground.harness.network(&node)?;
        for pod in &pods {
            let address = SocketAddr::new(pod.address.into(), 8080);
            let said = netns.run(|| get(address))?;
            said.with_context(|| format!("{} from {node}", pod.name))?;
        }
    }
    Ok(String::new())
}

/// Pods reach the hosts, their own and others.
pub(super) fn pod_to_host(ground: &mut Ground<'_>) -> Result<String> {
    let pods = ground.pods("app=peer")?;
    for node in ground.list(&["nodes"])? {
        let name = node["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let addresses = node["status"]["addresses"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let internal = addresses
            .iter()
            .find(|address| address["type"] == "InternalIP");
        let address: Ipv4Addr = internal
            .and_then(|a| a["address"].as_str())
            .context("no address")?
            .parse()?;
        let netns = ground.harness.network(&name)?;
        for pod in &pods {
            answered(pod, &netns, address.into())
                .with_context(|| format!("{name} from {}", pod.name))?;
        }
    }
    Ok(String::new())
}

/// Pods reach what is beyond the default gateway, with an address that it can answer to.
pub(super) fn pod_to_outside(ground: &mut Ground<'_>) -> Result<String> {
    let outside = ground.harness.outside().to_string();
    for pod in ground.staying("app=peer")? {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let ping = ["busybox", "ping", "-c", "3", "-W", "2", &outside];
        ground.kubectl(&[&["exec", "-n", TEST_NAMESPACE, name, "--"], &ping[..]].concat())?;
    }
    Ok(format!("{outside} answers"))
}

/// The check for leaks can fail: with the policy Disabled the same packets are seen.
pub(super) fn leak_check(ground: &mut Ground<'_>) -> Result<String> {
    mesh::switch(ground, Mode::Disabled)?;
    let pods = ground.pods("app=peer")?;
    let before = ground.harness.wire()?;
    all_exchange(&pods)?;
    let clear = ground.harness.wire()?.since(&before);
    let sent = u64::try_from(pods.len() * (pods.len() - 1))? * PACKETS;
    mesh::switch(ground, Mode::Required)?;
    ensure!(
        leaked(&clear) >= sent && clear.esp == 0,
        "Disabled: {sent} packets arrived, the check saw {} in clear and {} of ESP: it would not see a leak",
        leaked(&clear),
        clear.esp
    );
    self::pods(ground)?;
    Ok(format!(
        "Disabled: {} in clear; Required: none",
        leaked(&clear)
    ))
}

/// All modes and back under load.
pub(super) fn toggle(ground: &mut Ground<'_>) -> Result<String> {
    let pods = ground.pods("app=peer")?;
    let load = Load::start(ground, &pods)?;
    let steps = [
        Mode::Permissive,
        Mode::Disabled,
        Mode::Permissive,
        Mode::Required,
    ];
    let mut times = Vec::new();
    for mode in steps {
        let begun = std::time::Instant::now();
        mesh::switch(ground, mode)?;
        times.push(format!("{mode:?} {:.1} s", begun.elapsed().as_secs_f64()));
        load.run(Duration::from_secs(3));
        load.arrives()?;
    }
    let (wire, gateway) = (ground.harness.wire()?, ground.harness.gateway()?);
    load.run(Duration::from_secs(5));
    let ended = load.end(ground)?;
    // While Disabled they are in clear, as they should be: what counts is what came after.
    let clear = leaked(&ground.harness.wire()?.since(&wire));
    let astray = leaked(&ground.harness.gateway()?.since(&gateway));
    let during = ground
        .measured
        .clear_packets
        .replace(clear)
        .unwrap_or_default();
    ensure!(during > clear, "Disabled, but nothing was in clear");
    ensure!(
        clear + astray == 0,
        "Required again, but {clear} packets were in clear"
    );
    ensure!(
        ground.measured.lost == Some(0),
        "expected nothing lost, found: {}",
        ended.said
    );
    Ok(format!("{}; {during} in clear before", times.join(", ")))
}

/// Everything once more without an overlay.
pub(super) fn native(ground: &mut Ground<'_>) -> Result<String> {
    mesh::set(ground, "overlay", "None")?;
    mesh::settled(ground, Mode::Required)?;
    for case in [pods, services, host_to_pod, pod_to_host, pod_to_outside] {
        case(ground)?;
    }
    super::cli::verified(ground)?;
    let said = toggle(ground)?;
    mesh::set(ground, "overlay", "VXLAN")?;
    mesh::settled(ground, Mode::Required)?;
    all_exchange(&ground.pods("app=peer")?)?;
    Ok(said)
}

/// Between each two pods, both ways.
pub(super) fn all_exchange(pods: &[Pod]) -> Result<()> {
    for (i, a) in pods.iter().enumerate() {
        for b in &pods[i + 1..] {
            exchange(a, b, PACKETS)?;
        }
    }
    Ok(())
}

/// The first line of what a server of the suite's pods says.
fn get(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said).context("reading")?;
    ensure!(said.contains(" 200 "), "unexpected answer {said:?}");
    Ok(said.lines().last().unwrap_or_default().to_owned())
}

/// A datagram of the pod's is answered by the host.
fn answered(pod: &Pod, host: &Netns, address: IpAddr) -> Result<()> {
    let server = host.run(|| UdpSocket::bind((address, HOST_PORT)))??;
    let client = pod.socket(0)?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    client.send_to(b"question", (address, HOST_PORT))?;
    let mut buffer = [0; 64];
    let (_, from) = server
        .recv_from(&mut buffer)
        .context("the question did not come")?;
    server.send_to(b"answer", from)?;
    client
        .recv(&mut buffer)
        .context("the answer did not come")?;
    Ok(())
}
