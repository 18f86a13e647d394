//! Installation, upgrade and removal by Helm.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::mesh::{self, Mode};
use super::{NAMESPACE, peers, traces};
use crate::ground::{Ground, TEST_NAMESPACE};
use crate::images;
use crate::load::Load;

const RELEASE: &str = "espalier";

/// `helm install` to all nodes ready and encrypted; then the pods of the suite.
pub(super) fn install(ground: &mut Ground<'_>) -> Result<String> {
    let image = ground.options.image.clone().context("no image")?;
    ground.harness.import(&image)?;
    traces::remember(ground)?;
    let begun = Instant::now();
    let chart = ground.options.chart.display().to_string();
    let mut arguments = vec![
        "install",
        RELEASE,
        &chart,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
    ];
    let values = values(ground);
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    ground.helm(&arguments)?;
    let installed = begun.elapsed();
    mesh::settled(ground, Mode::Required)?;
    let encrypted = begun.elapsed();
    mesh::nodes_ready(ground)?;
    let ready = begun.elapsed();
    ground.apply(&peers::manifest())?;
    ground.await_daemon_set(TEST_NAMESPACE, "peer")?;
    mesh::no_problems(ground)?;
    let [installed, encrypted, ready] = [installed, encrypted, ready].map(|t| t.as_secs_f64());
    Ok(format!(
        "from `helm install`: it returned after {installed:.1} s, all pairs were encrypted and enforced after {encrypted:.1} s, \
         all Nodes Ready and without taint after {ready:.1} s"
    ))
}

/// `helm upgrade` with other values, under load.
pub(super) fn upgrade(ground: &mut Ground<'_>) -> Result<String> {
    let pods = ground.pods("app=peer")?;
    let load = Load::start(ground, &pods)?;
    let chart = ground.options.chart.display().to_string();
    let arguments = [
        "upgrade",
        RELEASE,
        &chart,
        "--namespace",
        NAMESPACE,
        "--reuse-values",
    ];
    ground.helm(
        &[
            &arguments[..],
            &[
                "--set",
                "logLevel=debug",
                "--set",
                "agent.rekeySeconds=1800",
            ],
        ]
        .concat(),
    )?;
    ground.await_daemon_set(NAMESPACE, "espalier-agent")?;
    let set = ground.get(&["daemonset", "espalier-agent", "-n", NAMESPACE])?;
    ensure!(
        set.to_string().contains("--rekey-seconds=1800"),
        "the agents have the old value"
    );
    mesh::settled(ground, Mode::Required)?;
    load.run(Duration::from_secs(5));
    load.ends_whole(ground)?;
    Ok("logLevel and agent.rekeySeconds".to_owned())
}

/// `helm uninstall` leaves nothing.
pub(super) fn uninstall(ground: &mut Ground<'_>) -> Result<String> {
    ground.kubectl(&[
        "delete",
        "namespace",
        TEST_NAMESPACE,
        "--wait",
        "--timeout=120s",
    ])?;
    ground.helm(&[
        "uninstall",
        RELEASE,
        "--namespace",
        NAMESPACE,
        "--wait",
        "--timeout",
        "6m",
    ])?;
    ground.until("the pods of the release to end", || {
        let left = ground.list(&["pods", "-n", NAMESPACE])?.len();
        Ok((left == 0)
            .then_some(())
            .ok_or_else(|| format!("{left} are left")))
    })?;
    traces::none_left(ground)?;
    nothing_in_the_api(ground)?;
    Ok("no device, address, route, rule, state, policy, file, object of the release, label, taint or condition".to_owned())
}

fn nothing_in_the_api(ground: &Ground<'_>) -> Result<()> {
    // What makes them new is the cluster's.
    let kinds = "daemonsets,deployments,services,secrets,configmaps,serviceaccounts,roles,rolebindings,leases";
    for object in ground.list(&[kinds, "-n", NAMESPACE])? {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        ensure!(
            !name.contains("espalier"),
            "{} {name} is left",
            object["kind"]
        );
    }
    for object in ground.list(&["clusterroles,clusterrolebindings,csr"])? {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        ensure!(
            !name.starts_with("espalier"),
            "{} {name} is left",
            object["kind"]
        );
    }
    for node in ground.list(&["nodes"])? {
        let (text, name) = (
            node["spec"]["taints"].to_string(),
            &node["metadata"]["name"],
        );
        ensure!(!text.contains("espalier"), "{name} still has the taint");
        ensure!(
            !node["status"]["conditions"]
                .to_string()
                .contains("Espalier"),
            "{name} still has the condition"
        );
    }
    // Helm leaves CRDs, as it always does; nothing may hold them back.
    let crds = ground.kubectl(&["get", "crd", "-o", "name"])?;
    let ours: Vec<&str> = crds
        .lines()
        .filter(|name| name.ends_with(".espalier.dev"))
        .collect();
    if !ours.is_empty() {
        ground.kubectl(&[&["delete", "--timeout=60s"], &ours[..]].concat())?;
    }
    Ok(())
}

fn values(ground: &Ground<'_>) -> Vec<String> {
    let (repository, tag) = images::ESPALIER.split_once(':').unwrap_or_default();
    let own = [
        format!("policy.clusterCIDRs={{{}}}", espalier_e2e::cluster_cidr()),
        format!("image.repository={repository}"),
        format!("image.tag={tag}"),
        "image.pullPolicy=Never".to_owned(),
    ];
    own.into_iter().chain(ground.options.set.clone()).collect()
}
