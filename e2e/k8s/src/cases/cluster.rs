//! The cluster itself, without Espalier.

use anyhow::{Result, ensure};

use crate::ground::{Ground, TEST_NAMESPACE};
use crate::images;

/// Nodes, pods of the host network, leases, the CSR API, exec.
pub(super) fn works(ground: &mut Ground<'_>) -> Result<String> {
    let nodes = ground.harness.nodes();
    ground.until("all nodes to register", || {
        let there = ground.list(&["nodes"])?.len();
        let all = there == nodes.len();
        Ok(all
            .then_some(())
            .ok_or_else(|| format!("{there} of {} are there", nodes.len())))
    })?;
    ground.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {TEST_NAMESPACE}}}\n---\n{}",
        host_pods()
    ))?;
    ground.await_daemon_set(TEST_NAMESPACE, "host")?;
    ground.until("a lease of every kubelet", || {
        let leases = ground.list(&["leases", "-n", "kube-node-lease"])?.len();
        let all = leases == nodes.len();
        Ok(all
            .then_some(())
            .ok_or_else(|| format!("{leases} are there")))
    })?;
    let apis = ground.kubectl(&["api-versions"])?;
    for api in ["certificates.k8s.io/v1", "coordination.k8s.io/v1"] {
        ensure!(
            apis.lines().any(|line| line == api),
            "the API server has no {api}"
        );
    }
    let pods = ground.list(&["pods", "-n", TEST_NAMESPACE, "-l", "app=host"])?;
    for pod in &pods {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let arguments = [
            "exec",
            "-n",
            TEST_NAMESPACE,
            name,
            "--",
            "busybox",
            "hostname",
        ];
        let said = ground.kubectl(&arguments)?;
        ensure!(!said.trim().is_empty(), "{name} has no name");
    }
    let version =
        ground.get(&["nodes"])?["items"][0]["status"]["nodeInfo"]["kubeletVersion"].clone();
    ground.kubectl(&["delete", "daemonset", "host", "-n", TEST_NAMESPACE])?;
    Ok(format!(
        "{} nodes, kubelet {}",
        nodes.len(),
        version.as_str().unwrap_or("?")
    ))
}

fn host_pods() -> String {
    format!(
        "apiVersion: apps/v1\n\
         kind: DaemonSet\n\
         metadata: {{name: host, namespace: {TEST_NAMESPACE}}}\n\
         spec:\n\
         \x20 selector: {{matchLabels: {{app: host}}}}\n\
         \x20 template:\n\
         \x20   metadata: {{labels: {{app: host}}}}\n\
         \x20   spec:\n\
         \x20     hostNetwork: true\n\
         \x20     terminationGracePeriodSeconds: 1\n\
         \x20     tolerations: [{{operator: Exists}}]\n\
         \x20     containers:\n\
         \x20     - name: host\n\
         \x20       image: {}\n\
         \x20       imagePullPolicy: Never\n\
         \x20       args: [sleep, \"2147483647\"]\n",
        images::POD
    )
}
