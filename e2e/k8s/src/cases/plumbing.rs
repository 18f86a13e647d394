//! The means of the suite, on a network that is not Espalier's: what they say of a clear one is true.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{peers, traffic};
use crate::ground::{Ground, TEST_NAMESPACE};
use crate::load::Load;

const CONFIG: &str = "/etc/cni/net.d/99-e2e.conflist";
const RUN: Duration = Duration::from_secs(5);

/// Flows, Services and captures with the reference plugins: all arrives, all is seen in clear.
pub(super) fn works(ground: &mut Ground<'_>) -> Result<String> {
    let nodes = configure(ground)?;
    ground.apply(&peers::manifest())?;
    ground.await_daemon_set(TEST_NAMESPACE, "peer")?;
    traffic::services(ground)?;
    traffic::host_to_pod(ground)?;
    traffic::pod_to_host(ground)?;
    traffic::pod_to_outside(ground)?;
    let pods = ground.pods("app=peer")?;
    let load = Load::start(ground, &pods)?;
    load.run(RUN);
    load.arrives()?;
    let ended = load.end(ground)?;
    ground.kubectl(&[
        "delete",
        "daemonset,service",
        "peer",
        "-n",
        TEST_NAMESPACE,
        "--wait",
    ])?;
    remove(ground, &nodes)?;
    let counted = ground.measured.clone();
    ensure!(
        counted.lost == Some(0),
        "expected nothing lost, found: {}",
        ended.said
    );
    ensure!(
        counted.clear_packets >= counted.sent && counted.esp_packets == Some(0),
        "the capture saw {:?} of {:?} packets",
        counted.clear_packets,
        counted.sent
    );
    Ok("the flows' packets are all seen in clear, for nothing encrypts here".to_owned())
}

/// Name, address and pod addresses of a node.
type Way = (String, String, String);

fn configure(ground: &Ground<'_>) -> Result<Vec<Way>> {
    let nodes = ground.until("pod addresses for every node", || {
        let nodes = ground.list(&["nodes"])?;
        let ways: Option<Vec<Way>> = nodes.iter().map(way).collect();
        Ok(ways.ok_or_else(|| "a node has none".to_owned()))
    })?;
    for (node, _, pods) in &nodes {
        let config = json!({
            "cniVersion": "0.4.0",
            "name": "e2e",
            "plugins": [{
                "type": "ptp",
                "ipMasq": false,
                "ipam": {"type": "host-local", "subnet": pods, "routes": [{"dst": "0.0.0.0/0"}]},
            }],
        });
        let cluster = espalier_e2e::cluster_cidr();
        let rule = format!("-s {pods} ! -d {cluster} -j MASQUERADE");
        let mut script =
            format!("mkdir -p /etc/cni/net.d; iptables -t nat -A POSTROUTING {rule}; ");
        for (other, address, theirs) in &nodes {
            if other != node {
                script += &format!("ip route add {theirs} via {address}; ");
            }
        }
        script += &format!("echo '{config}' > {CONFIG}");
        ground.on_node(node, "sh", &["-ec", &script])?;
    }
    Ok(nodes)
}

fn remove(ground: &Ground<'_>, nodes: &[Way]) -> Result<()> {
    let cluster = espalier_e2e::cluster_cidr();
    for (node, _, pods) in nodes {
        let rule = format!("-s {pods} ! -d {cluster} -j MASQUERADE");
        let mut script = format!("iptables -t nat -D POSTROUTING {rule}; rm {CONFIG}; ");
        for (_, _, theirs) in nodes.iter().filter(|(other, ..)| other != node) {
            script += &format!("ip route del {theirs}; ");
        }
        ground.on_node(node, "sh", &["-ec", &script])?;
    }
    Ok(())
}

fn way(node: &serde_json::Value) -> Option<Way> {
    let text = |at: &str| node.pointer(at)?.as_str().map(str::to_owned);
    let addresses = node.pointer("/status/addresses")?.as_array()?;
    let internal = addresses
        .iter()
        .find(|address| address["type"] == "InternalIP")?;
    let address = internal["address"].as_str()?.to_owned();
    Some((text("/metadata/name")?, address, text("/spec/podCIDR")?))
}
