//! Pods of Espalier, the API server and nodes go and come under load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::NAMESPACE;
use super::mesh::{self, Mode};
use crate::ground::Ground;
use crate::harness::succeeded;
use crate::load::Load;

/// Load goes on for this long after everything is as before.
const AFTER: Duration = Duration::from_secs(5);
/// How long the API server is away: longer than a lease of a leader, a watch's patience or a retry.
const AWAY: Duration = Duration::from_secs(40);

/// All agents at once.
pub(super) fn agents_deleted(ground: &mut Ground<'_>) -> Result<String> {
    under_load(ground, |ground| {
        delete_pods(ground, "agent", None)?;
        ground.await_daemon_set(NAMESPACE, "espalier-agent")
    })
}

/// All controllers at once.
pub(super) fn controllers_deleted(ground: &mut Ground<'_>) -> Result<String> {
    let before = holder(ground)?;
    under_load(ground, |ground| {
        delete_pods(ground, "controller", None)?;
        let deployment = "deployment/espalier-controller";
        ground.kubectl(&[
            "rollout",
            "status",
            deployment,
            "-n",
            NAMESPACE,
            "--timeout=120s",
        ])?;
        ground.until("another leader", || {
            let now = holder(ground)?;
            Ok((now != before && !now.is_empty())
                .then_some(())
                .ok_or_else(|| format!("it is {now:?}")))
        })
    })
}

/// Agents one after the other, as an upgrade does it.
pub(super) fn agent_rollout(ground: &mut Ground<'_>) -> Result<String> {
    under_load(ground, |ground| {
        ground.kubectl(&[
            "rollout",
            "restart",
            "daemonset/espalier-agent",
            "-n",
            NAMESPACE,
        ])?;
        ground.await_daemon_set(NAMESPACE, "espalier-agent")
    })
}

/// The data plane of one node: nothing in clear, and what is lost is measured.
pub(super) fn dataplane_deleted(ground: &mut Ground<'_>) -> Result<String> {
    let node = first_node(ground)?;
    let lost = losing_load(ground, |ground| replace_dataplane(ground, &node))?;
    Ok(format!(
        "one of {} data planes; {lost}",
        ground.harness.nodes().len()
    ))
}

/// Every data plane, one after the other, replaced in place by another program and by the release's own again.
pub(super) fn dataplane_upgrade(ground: &mut Ground<'_>) -> Result<String> {
    let nodes = ground.harness.nodes();
    let before = dataplane_containers(ground)?;
    under_load(ground, |ground| {
        nodes
            .iter()
            .try_for_each(|node| upgrade_in_place(ground, node))
    })?;
    ground.until("agents to see the release's program", || {
        Ok(mesh::no_problems(ground).map_err(|error| format!("{error:#}")))
    })?;
    let after = dataplane_containers(ground)?;
    ensure!(before == after, "other containers: {before:?}, {after:?}");
    Ok(format!(
        "{} times in place, in containers that went on",
        2 * nodes.len()
    ))
}

/// The API server is away for a while.
pub(super) fn api_server(ground: &mut Ground<'_>) -> Result<String> {
    let pods = ground.pods("app=peer")?;
    let load = Load::start(ground, &pods)?;
    ground.harness.stop_api()?;
    load.run(AWAY);
    let back = ground.harness.start_api();
    load.run(AFTER);
    back?;
    mesh::settled(ground, Mode::Required)?;
    load.ends_whole(ground)?;
    Ok(format!("away for {} s", AWAY.as_secs()))
}

/// A node is drained, deleted, and comes back with the same name as another.
pub(super) fn rejoined(ground: &mut Ground<'_>) -> Result<String> {
    let nodes = ground.harness.nodes();
    let node = nodes.last().context("no node")?.clone();
    let old = uid(ground, &node)?;
    let mut pods = ground.pods("app=peer")?;
    pods.truncate(nodes.len() - 1);
    let load = Load::start(ground, &pods)?;
    ground.kubectl(&[
        "drain",
        &node,
        "--ignore-daemonsets",
        "--force",
        "--timeout=120s",
    ])?;
    ground.harness.stop_kubelet(&node)?;
    ground.kubectl(&["delete", "node", &node])?;
    ground.until("the node to leave the mesh", || {
        let mesh = ground.list(&["meshnodes"])?;
        let others = u64::try_from(nodes.len() - 2).ok();
        let forgotten = mesh
            .iter()
            .all(|other| other["status"]["pairs"]["total"].as_u64() == others);
        let gone = mesh.len() == nodes.len() - 1 && forgotten;
        Ok(gone
            .then_some(())
            .ok_or_else(|| format!("{} MeshNodes", mesh.len())))
    })?;
    let begun = Instant::now();
    ground.harness.start_kubelet(&node)?;
    ground.until("the node to register", || {
        let new = uid(ground, &node)?;
        Ok((new != old)
            .then_some(())
            .ok_or_else(|| "the UID is the old one".to_owned()))
    })?;
    mesh::settled(ground, Mode::Required)?;
    mesh::nodes_ready(ground)?;
    let seconds = begun.elapsed().as_secs_f64();
    load.ends_whole(ground)?;
    let strays = strays_are_named(ground, &node)?;
    // The Node has other pod CIDRs now: a pod that outlived its Node has an address that is nobody's, and is made anew.
    let there = format!("spec.nodeName={node}");
    let peer = [
        "-n",
        crate::ground::TEST_NAMESPACE,
        "delete",
        "pod",
        "-l",
        "app=peer",
    ];
    ground.kubectl(&[&peer[..], &["--field-selector", &there]].concat())?;
    ground.await_daemon_set(crate::ground::TEST_NAMESPACE, "peer")?;
    super::traffic::all_exchange(&ground.pods("app=peer")?)?;
    Ok(format!(
        "encrypted again {seconds:.1} s after its kubelet started; {strays} pods kept their old addresses, and were named"
    ))
}

/// Pods that kept an address that is not the node's any more are a problem with a remedy; how many there are.
fn strays_are_named(ground: &Ground<'_>, node: &str) -> Result<usize> {
    let object = ground.get(&["node", node])?;
    let cidr = object["spec"]["podCIDR"].as_str().unwrap_or_default();
    let own = cidr.trim_end_matches("0/24");
    let pods = ground.staying("app=peer")?;
    let strays = pods.iter().filter(|pod| {
        let address = pod["status"]["podIP"].as_str().unwrap_or(own);
        pod["spec"]["nodeName"] == node && !address.starts_with(own)
    });
    let strays = strays.count();
    if strays > 0 {
        ground.until("the pods that outlived their Node to be named", || {
            let problems = ground.get(&["meshnode", node])?["status"]["problems"].to_string();
            let named = problems.contains("kubectl delete pod");
            Ok(named.then_some(()).ok_or(problems))
        })?;
    }
    Ok(strays)
}

fn under_load(
    ground: &mut Ground<'_>,
    work: impl FnOnce(&Ground<'_>) -> Result<()>,
) -> Result<String> {
    loaded(ground, work)?.ends_whole(ground)?;
    Ok(String::new())
}

fn losing_load(
    ground: &mut Ground<'_>,
    work: impl FnOnce(&Ground<'_>) -> Result<()>,
) -> Result<String> {
    let load = loaded(ground, work)?;
    load.arrives()?;
    load.ends_hidden(ground)
}

/// The load, which still runs, some time after the work was done and the mesh had settled.
fn loaded(ground: &Ground<'_>, work: impl FnOnce(&Ground<'_>) -> Result<()>) -> Result<Load> {
    let load = Load::start(ground, &ground.pods("app=peer")?)?;
    work(ground)?;
    mesh::settled(ground, Mode::Required)?;
    load.run(AFTER);
    Ok(load)
}

/// Another program: that of the release with something behind it that nobody reads.
fn upgrade_in_place(ground: &Ground<'_>, node: &str) -> Result<()> {
    let make = "cd /var/lib/espalier && set -- bin/espalier-dataplane-* && cp \"$1\" next && echo other >> next";
    let made = ground.harness.on_node(node, "sh", &["-c", make])?;
    succeeded(&made, "making another data plane program")?;
    let both = [&["--binary", "/var/lib/espalier/next"][..], &[]];
    let upgraded = both.iter().try_for_each(|from| {
        let said = upgrade_dataplane(ground, node, from)?;
        ensure!(said.contains("was upgraded in place"), "{node}: {said}");
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    });
    let removed = ground
        .harness
        .on_node(node, "rm", &["/var/lib/espalier/next"])?;
    succeeded(&removed, "removing the other program")?;
    upgraded
}

fn upgrade_dataplane(ground: &Ground<'_>, node: &str, arguments: &[&str]) -> Result<String> {
    let agent = ground.agent_on(node)?;
    let agent = agent["metadata"]["name"].as_str();
    let agent = agent.context("a pod without a name")?;
    let program = "/usr/local/bin/espalier";
    let begin = [
        "exec",
        "-n",
        NAMESPACE,
        agent,
        "-c",
        "agent",
        "--",
        program,
        "upgrade-dataplane",
    ];
    ground.kubectl(&[&begin[..], arguments].concat())
}

/// IDs of the data planes' containers.
fn dataplane_containers(ground: &Ground<'_>) -> Result<Vec<String>> {
    let label = "app.kubernetes.io/component=dataplane";
    let pods = ground.list(&["pods", "-n", NAMESPACE, "-l", label])?;
    let id = |pod: &serde_json::Value| {
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str();
        id.map(str::to_owned).context("a container without ID")
    };
    let mut ids = pods.iter().map(id).collect::<Result<Vec<_>>>()?;
    ids.sort();
    ensure!(
        ids.len() == ground.harness.nodes().len(),
        "{} data planes",
        ids.len()
    );
    Ok(ids)
}

fn replace_dataplane(ground: &Ground<'_>, node: &str) -> Result<()> {
    delete_pods(ground, "dataplane", Some(node))?;
    ground.await_daemon_set(NAMESPACE, "espalier-dataplane")?;
    mesh::settled(ground, Mode::Required)
}

fn delete_pods(ground: &Ground<'_>, component: &str, node: Option<&str>) -> Result<()> {
    let label = format!("app.kubernetes.io/component={component}");
    let field = node.map_or(String::new(), |node| format!("spec.nodeName={node}"));
    let selected = [
        "pod",
        "-n",
        NAMESPACE,
        "-l",
        &label,
        "--field-selector",
        &field,
    ];
    let there = ground.list(&selected)?.len();
    ensure!(
        there > 0,
        "no pod of the {component} is there to be deleted"
    );
    ground
        .kubectl(&[&["delete", "--wait"], &selected[..]].concat())
        .map(drop)
}

fn holder(ground: &Ground<'_>) -> Result<String> {
    let lease = ground.get(&["lease", "espalier-controller", "-n", NAMESPACE])?;
    Ok(lease["spec"]["holderIdentity"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

fn uid(ground: &Ground<'_>, node: &str) -> Result<String> {
    let node = ground.get(&["node", node])?;
    let uid = node["metadata"]["uid"].as_str();
    Ok(uid.context("a Node without UID")?.to_owned())
}

fn first_node(ground: &Ground<'_>) -> Result<String> {
    ground.harness.nodes().first().cloned().context("no node")
}
