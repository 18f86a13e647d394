//! The invariants of the design that need a wire: S1, S2, S7, and keys that stay out of logs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use espalier_capture::{Interfaces, Reader, Received, interface_index};
use espalier_e2e::{
    Attacker, Bench, Cluster, GATEWAY, INJECTED_PORT, Mode, NEVER_SEEN, Node, Pod, exchange,
    on_path, send_numbered, test, underlay, until,
};
use espalier_testnet::{Bridge, Netns, route};

#[test]
fn s1_a_dead_data_plane_lets_nothing_out_in_clear() {
    test(
        "invariants::s1_a_dead_data_plane_lets_nothing_out_in_clear",
        |bench| {
            fail_closed(bench, Node::kill_dataplane, |mesh, _pods| {
                mesh.node(3)?.start_dataplane()
            })
        },
    );
}

#[test]
fn s1_a_dead_agent_lets_nothing_out_in_clear_and_traffic_goes_on() {
    test(
        "invariants::s1_a_dead_agent_lets_nothing_out_in_clear_and_traffic_goes_on",
        |bench| {
            fail_closed(bench, Node::kill_agent, |mesh, pods| {
                exchange(&pods[2], &pods[0], 20)?;
                mesh.node(3)?.start_agent()
            })
        },
    );
}

#[test]
fn s1_with_both_dead_nothing_goes_out_in_clear() {
    let kill = |node: &mut Node| {
        node.kill_dataplane()?;
        node.kill_agent()
    };
    test(
        "invariants::s1_with_both_dead_nothing_goes_out_in_clear",
        |bench| fail_closed(bench, kill, |mesh, _pods| mesh.node(3)?.start()),
    );
}

#[test]
fn s8_a_node_that_cannot_enforce_takes_no_pods_and_says_why() {
    test(
        "invariants::s8_a_node_that_cannot_enforce_takes_no_pods_and_says_why",
        |bench| {
            let mut mesh = Cluster::start(bench, 2, Mode::Required)?;
            mesh.node(1)?.kill_dataplane()?;
            mesh.await_status(1, "not ready without its data plane", |status| {
                let said = status.problems.join("; ");
                match (status.ready, said.contains("espalier-dataplane")) {
                    (false, true) => Ok(()),
                    _ => Err(format!("ready {}, problems {said:?}", status.ready)),
                }
            })?;
            let [status, add] = Pod::refused(mesh.node(1)?)?;
            for (said, code) in [(status, "\"code\":50"), (add, "\"code\":11")] {
                ensure!(
                    said.contains("espalier-dataplane") && said.contains(code),
                    "{said}"
                );
            }

            mesh.node(1)?.start_dataplane()?;
            mesh.await_status(1, "ready again by itself", |status| match status.ready {
                true => Ok(()),
                false => Err(status.problems.join("; ")),
            })?;
            let pods = mesh.pods(&[1, 2])?;
            mesh.works(&[1, 2], &pods)
        },
    );
}

/// Kills something of node 3 while its pod goes on sending, also to a pod of a node that nobody ever saw; then `revive`s.
fn fail_closed(
    bench: &Bench,
    kill: impl Fn(&mut Node) -> Result<()>,
    revive: impl Fn(&mut Cluster, &[Pod]) -> Result<()>,
) -> Result<()> {
    let mut mesh = Cluster::start(bench, 3, Mode::Required)?;
    let pods = mesh.pods(&[1, 2, 3])?;
    mesh.works(&[1, 2, 3], &pods)?;
    let before = mesh.watch.now()?;
    kill(mesh.node(3)?)?;
    // The others react in their time: look at all of it.
    for _ in 0..20 {
        for to in [pods[0].address, pods[1].address, NEVER_SEEN] {
            send_numbered(&pods[2], to, 5)?;
        }
        send_numbered(&pods[0], pods[2].address, 5)?;
        send_numbered(&pods[0], NEVER_SEEN, 5)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    mesh.watch.nothing_clear_since(&before)?;
    mesh.works(&[1, 2], &pods[..2])?;
    revive(&mut mesh, &pods)?;
    mesh.works(&[1, 2, 3], &pods)?;
    mesh.watch.nothing_clear_since(&before).map(drop)
}

#[test]
fn s2_injected_clear_overlay_packets_never_reach_a_pod() {
    test(
        "invariants::s2_injected_clear_overlay_packets_never_reach_a_pod",
        |bench| {
            let mut mesh = Cluster::start(bench, 2, Mode::Disabled)?;
            let pods = mesh.pods(&[1, 2])?;
            mesh.await_pairs(&[1, 2], |peer| on_path(peer, "Clear"))?;
            let victim = pods[0].socket(INJECTED_PORT)?;
            victim.set_read_timeout(Some(Duration::from_millis(50)))?;
            let attacker = Attacker::on(&mesh.bridge)?;

            // The injection is a good one: where clear is allowed, it arrives.
            until("the injected packet in Disabled", || {
                attacker.inject(&pods)?;
                let arrived = victim.recv(&mut [0; 256]).is_ok();
                Ok(arrived
                    .then_some(())
                    .ok_or_else(|| "nothing arrives".to_owned()))
            })?;

            mesh.set_mode(Mode::Required)?;
            mesh.works(&[1, 2], &pods)?;
            while victim.recv(&mut [0; 256]).is_ok() {}
            for _ in 0..50 {
                attacker.inject(&pods)?;
            }
            // What was let in would be before these in the node's queues.
            mesh.works(&[1, 2], &pods)?;
            ensure!(
                victim.recv(&mut [0; 256]).is_err(),
                "an injected packet arrived"
            );
            Ok(())
        },
    );
}

/// A node alone: no peer answers, no name server, every pair blocked.
#[test]
fn s7_a_node_starts_and_serves_its_host_without_tunnel_and_dns() {
    test(
        "invariants::s7_a_node_starts_and_serves_its_host_without_tunnel_and_dns",
        |bench| {
            let mut mesh = Cluster::prepare(bench, 2, Mode::Required)?;
            let mut frames = mesh.bridge.netns().run(|| {
                let bridge = interface_index(Bridge::DEVICE)?;
                Reader::open(Interfaces::AllBut(vec![bridge]), false, 8 << 20)
            })??;
            mesh.node(1)?.start()?;
            mesh.await_status(1, "ready", |status| {
                status
                    .ready
                    .then_some(())
                    .ok_or_else(|| "not ready".to_owned())
            })?;
            let pods = mesh.pods(&[1])?;
            ensure!(pods.len() == 1);

            // Towards an API server beside the mesh and one on a node, with the pair to that node blocked.
            let node = mesh.node_ref(1)?;
            let other = &mesh.node_ref(2)?.netns;
            for (host, at) in [(&mesh.gateway, GATEWAY), (other, underlay(2))] {
                let own = node.netns.run(|| UdpSocket::bind((underlay(1), 0)))??;
                answers(&own, host, at)?;
            }
            mesh.await_peer(1, 2, |peer| on_path(peer, "Blocked"))?;
            ensure!(mesh.watch.now()?.ike > 0, "IKE waits for something");

            frames.set_timeout(Duration::from_millis(20))?;
            ensure!(frames.dropped() == 0, "the capture lost frames");
            ensure!(
                dns_frames(&mut frames)? == 0,
                "somebody asked a name server"
            );
            Ok(())
        },
    );
}

/// What pods send to hosts is host traffic, under Required too: nobody there has a way to pods, and a node's answer to one would
/// come by the mesh, from an address that is not of that node's pods. A kernel without nf_tables cannot do it: that is said, and
/// those who route pods' addresses back to their node are answered.
#[test]
fn pods_reach_the_outside_and_other_nodes_by_their_nodes_address() {
    test(
        "invariants::pods_reach_the_outside_and_other_nodes_by_their_nodes_address",
        |bench| {
            let mut mesh = Cluster::start(bench, 2, Mode::Required)?;
            let pods = mesh.pods(&[1, 2])?;
            mesh.works(&[1, 2], &pods)?;
            let lacking = kernel_lacks_nf_tables()?;
            mesh.await_status(1, "a note where pods keep their address", |status| {
                let said = status
                    .notes
                    .iter()
                    .any(|note| note.contains("no nf_tables"));
                let differs = || format!("said: {said}, so it is: {lacking}");
                (said == lacking).then_some(()).ok_or_else(differs)
            })?;
            if lacking {
                let seen = answered_by_a_route_back(&mesh, &pods[0])?;
                ensure!(seen == pods[0].address, "the gateway saw {seen}");
                return Ok(());
            }
            let other = &mesh.node_ref(2)?.netns;
            for (host, at) in [(&mesh.gateway, GATEWAY), (other, underlay(2))] {
                let seen = answers(&pods[0].socket(6444)?, host, at)?;
                ensure!(seen == underlay(1), "{at} saw {seen}");
            }
            Ok(())
        },
    );
}

/// Debian's user-mode Linux is built without nf_tables' IP families; every other kernel that these tests meet has them.
pub(crate) fn kernel_lacks_nf_tables() -> Result<bool> {
    Ok(std::fs::read_to_string("/proc/cpuinfo")?.contains("User Mode Linux"))
}

/// What the gateway saw of `pod` on node 1, once it knows the way to that node's pods.
fn answered_by_a_route_back(mesh: &Cluster, pod: &Pod) -> Result<IpAddr> {
    let back = || route(pod.address.into(), 32, underlay(1).into(), "eth0");
    mesh.gateway.run(back)??;
    answers(&pod.socket(6444)?, &mesh.gateway, GATEWAY)
}

/// A UDP request to a host and its answer; who the host saw.
fn answers(client: &UdpSocket, server: &Netns, at: Ipv4Addr) -> Result<IpAddr> {
    let server = server.run(|| UdpSocket::bind((at, 6443)))??;
    for socket in [&server, client] {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    let mut buffer = [0; 16];
    client.send_to(b"request", (at, 6443))?;
    let (_, back): (usize, SocketAddr) = server.recv_from(&mut buffer).context("request")?;
    server.send_to(b"answer", back)?;
    client.recv_from(&mut buffer).context("answer")?;
    Ok(back.ip())
}

/// IPv4 UDP frames to port 53, of all that were captured.
fn dns_frames(frames: &mut Reader) -> Result<usize> {
    let mut found = 0;
    loop {
        match frames.receive()? {
            Received::Frame { bytes, .. } => {
                let udp = bytes.get(12..14) == Some(&[8, 0]) && bytes.get(23) == Some(&17);
                found += usize::from(udp && bytes.get(36..38) == Some(&[0, 53]));
            }
            Received::TimedOut => return Ok(found),
            Received::Probe(_) | Received::Nothing => {}
        }
    }
}

/// Every test looks for keys in its logs at its end; this one makes sure that all kinds of keys had their chance.
#[test]
fn keys_never_reach_the_logs() {
    test("invariants::keys_never_reach_the_logs", |bench| {
        let mut mesh = Cluster::prepare(bench, 3, Mode::Required)?;
        let psk = bench.root.join("shared.psk");
        bench.pki.psk(&psk)?;
        for (index, peer) in [(1, "node-2"), (2, "node-1")] {
            let node = mesh.node(index)?;
            let folder = node.dir().join("psk");
            std::fs::create_dir(&folder)?;
            std::fs::copy(&psk, folder.join(format!("{peer}.psk")))?;
            node.auth.psk_dir = Some(folder);
        }
        mesh.start_all()?;
        let pods = mesh.pods(&[1, 2, 3])?;
        mesh.works(&[1, 2, 3], &pods)?;
        let node = mesh.node(1)?;
        node.kill_agent()?;
        node.start_agent()?;
        let node = mesh.node(3)?;
        node.kill_dataplane()?;
        node.start_dataplane()?;
        mesh.works(&[1, 2, 3], &pods)?;
        for node in &mesh.nodes {
            for log in [node.log("agent")?, node.log("dataplane")?] {
                ensure!(
                    log.contains("DEBUG"),
                    "{}: nothing at level DEBUG",
                    node.name
                );
            }
        }
        bench.no_secrets()
    });
}
