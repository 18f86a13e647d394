//! Bad manifests and busy ports.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Result, ensure};
use espalier_e2e::{
    Cluster, Flow, Mode, exchange, name, node_manifest, pod_cidr, policy_manifest, policy_with,
    test, uid, underlay,
};

#[test]
fn bad_manifests_are_named_and_change_nothing() {
    test(
        "faults::bad_manifests_are_named_and_change_nothing",
        |bench| {
            let mut mesh = Cluster::start(bench, 3, Mode::Required)?;
            let pods = mesh.pods(&[1, 2, 3])?;
            mesh.works(&[1, 2, 3], &pods)?;
            let flow = Flow::start(&pods[2], &pods[0], 7001)?;
            flow.await_since(flow.mark())?;
            let (mark, spis) = (flow.mark(), spis(&mut mesh)?);

            let node = mesh.node_ref(3)?;
            node.write_manifest("node-1.yaml", "apiVersion: v1\nkind: [Node\n")?;
            mesh.await_problem(3, &["node-1.yaml", "YAML", "last good version"])?;

            let node = mesh.node_ref(3)?;
            node.write_manifest("policy.yaml", &policy_with("mode: Requird"))?;
            mesh.await_problem(3, &["policy.yaml", "spec.mode", "Requird", "Required"])?;
            let node = mesh.node_ref(3)?;
            node.write_manifest("policy.yaml", &policy_with("mod: Disabled"))?;
            mesh.await_problem(3, &["policy.yaml", "mod", "unknown field", "mode"])?;

            let clash = node_manifest("node-9", &uid(9, 1), underlay(9), pod_cidr(2));
            mesh.node_ref(3)?.write_manifest("node-9.yaml", &clash)?;
            mesh.await_problem(3, &["node-9.yaml", "podCIDRs", "10.244.2.0/24", "node-2"])?;

            ensure!(self::spis(&mut mesh)? == spis, "SAs were replaced");
            flow.none_lost_since(mark)?;
            mesh.works(&[1, 2, 3], &pods)?;

            let node = mesh.node_ref(3)?;
            node.remove_manifest("node-9.yaml")?;
            node.write_manifest("policy.yaml", &policy_manifest(Mode::Required))?;
            mesh.announce_node(1, &uid(1, 1))?;
            await_no_problem(&mut mesh, 3)?;
            flow.none_lost_since(mark)
        },
    );
}

#[test]
fn a_busy_port_500_is_named_and_the_mesh_works_without_it() {
    test(
        "faults::a_busy_port_500_is_named_and_the_mesh_works_without_it",
        |bench| {
            let mut mesh = Cluster::prepare(bench, 3, Mode::Required)?;
            let other_daemon = take_port(&mesh, 3, 500)?;
            mesh.start_all()?;
            mesh.await_problem(
                3,
                &["UDP port 500", "taken", "charon", "ss -ulpn", "stop it"],
            )?;
            let pods = mesh.pods(&[1, 2, 3])?;
            mesh.works(&[1, 2, 3], &pods)?;
            drop(other_daemon);
            await_no_problem(&mut mesh, 3)
        },
    );
}

#[test]
fn a_busy_port_4500_ends_the_data_plane_with_cause_and_remedy() {
    test(
        "faults::a_busy_port_4500_ends_the_data_plane_with_cause_and_remedy",
        |bench| {
            let mut mesh = Cluster::prepare(bench, 3, Mode::Required)?;
            let other_daemon = take_port(&mesh, 3, 4500)?;
            mesh.start_all()?;
            let ended = mesh.node(3)?.dataplane_ends()?;
            ensure!(!ended.success(), "exit status {ended}");
            let said = mesh.node_ref(3)?.log("dataplane")?;
            for word in ["UDP port 4500", "taken", "charon", "ss -ulpn", "stop it"] {
                ensure!(said.contains(word), "{word:?} is not in {said:?}");
            }
            mesh.await_problem(3, &["data plane", "dataplane.sock", "espalier-dataplane"])?;
            let pods = mesh.pods(&[1, 2])?;
            mesh.works(&[1, 2], &pods)?;

            drop(other_daemon);
            mesh.node(3)?.start_dataplane()?;
            let late = mesh.pods(&[3])?;
            mesh.works(&[1, 2, 3], &pods)?;
            exchange(&pods[0], &late[0], 20)
        },
    );
}

/// As another IKE daemon on the node would.
fn take_port(mesh: &Cluster, index: u8, port: u16) -> Result<UdpSocket> {
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
    Ok(mesh.node_ref(index)?.netns.run(bind)??)
}

fn await_no_problem(mesh: &mut Cluster, index: u8) -> Result<()> {
    let found = mesh.await_status(index, "no problem", |status| {
        let none = status.problems.is_empty();
        none.then_some(()).ok_or_else(|| status.problems.join("; "))
    });
    found.map(drop)
}

/// SPIs of node 3's pairs.
fn spis(mesh: &mut Cluster) -> Result<Vec<(u32, u32)>> {
    let node = mesh.node(3)?;
    let pair = |index| {
        node.peer(&name(index))
            .map(|peer| (peer.spi_in, peer.spi_out))
    };
    [1, 2].into_iter().map(pair).collect()
}
