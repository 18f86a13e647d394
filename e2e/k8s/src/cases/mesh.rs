//! What the nodes of the mesh say of themselves.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::ground::Ground;

/// `spec.mode` of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Disabled,
    Permissive,
    Required,
}

/// Patches the policy and waits until every node is there.
pub(super) fn switch(ground: &Ground<'_>, mode: Mode) -> Result<()> {
    set(ground, "mode", &format!("{mode:?}"))?;
    settled(ground, mode)
}

/// Patches a field of the policy's spec.
pub(super) fn set(ground: &Ground<'_>, field: &str, value: &str) -> Result<()> {
    let patch = json!({"spec": {field: value}}).to_string();
    let name = ["patch", "encryptionpolicy", "default"];
    ground.kubectl(&[&name[..], &["--type=merge", "-p", &patch]].concat())?;
    Ok(())
}

/// Waits until every node has the policy as it is now, is ready, and does what `mode` wants.
pub(super) fn settled(ground: &Ground<'_>, mode: Mode) -> Result<()> {
    let nodes = ground.harness.nodes().len();
    ground.until(&format!("{nodes} nodes of the mesh, {mode:?}"), || {
        let policy = ground.get(&["encryptionpolicy", "default"])?;
        let generation = &policy["metadata"]["generation"];
        let mesh = ground.list(&["meshnodes"])?;
        let missing: Vec<String> = mesh
            .iter()
            .filter_map(|node| missing(node, generation, nodes, mode))
            .collect();
        let all = mesh.len() == nodes && missing.is_empty();
        let said = || {
            format!(
                "{} of {nodes} are there; {}",
                mesh.len(),
                missing.join("; ")
            )
        };
        Ok(all.then_some(()).ok_or_else(said))
    })
}

/// What a node lacks.
fn missing(node: &Value, generation: &Value, nodes: usize, mode: Mode) -> Option<String> {
    let status = &node["status"];
    let mut wanted = vec![
        ("mode", status["mode"] == format!("{mode:?}")),
        (
            "the policy's generation",
            status["observedPolicyGeneration"] == *generation,
        ),
        (
            "all pairs",
            status["pairs"]["total"].as_u64() == u64::try_from(nodes - 1).ok(),
        ),
        ("Ready", condition(node, "Ready") == "True"),
        ("not Progressing", condition(node, "Progressing") != "True"),
    ];
    let encrypted = condition(node, "Encrypted") == "True";
    match mode {
        Mode::Disabled => wanted.push(("not Encrypted", !encrypted)),
        Mode::Permissive => wanted.push(("Encrypted", encrypted)),
        Mode::Required => wanted.extend([
            ("Encrypted", encrypted),
            ("Enforced", condition(node, "Enforced") == "True"),
        ]),
    }
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(_, there)| !there)
        .map(|(what, _)| *what)
        .collect();
    let name = node["metadata"]["name"].as_str().unwrap_or("?");
    (!missing.is_empty())
        .then(|| format!("{name} lacks: {} ({})", missing.join(", "), said(status)))
}

/// What the node says of its pairs and problems, in short.
fn said(status: &Value) -> String {
    format!(
        "pairs {}, problems {}, certificate until {}",
        status["pairs"], status["problems"], status["certificate"]["notAfter"]
    )
}

/// `True`, `False`, `Unknown`, or nothing.
pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let found = conditions.find(|condition| condition["type"] == kind);
    found
        .and_then(|condition| condition["status"].as_str())
        .unwrap_or("")
}

/// Waits until the Node objects of all nodes are Ready and take pods.
pub(super) fn nodes_ready(ground: &Ground<'_>) -> Result<()> {
    let count = ground.harness.nodes().len();
    ground.until("all Nodes to be Ready", || {
        let nodes = ground.list(&["nodes"])?;
        let ready = |node: &&Value| {
            let taints = node["spec"]["taints"].to_string();
            let waits = taints.contains("not-ready") || taints.contains("network-unavailable");
            condition(node, "Ready") == "True"
                && condition(node, "NetworkUnavailable") != "True"
                && !waits
        };
        let ready = nodes.iter().filter(ready).count();
        Ok((ready == count)
            .then_some(())
            .ok_or_else(|| format!("{ready} of {count} are")))
    })
}

/// Fails when the mesh has a problem to report.
pub(super) fn no_problems(ground: &Ground<'_>) -> Result<()> {
    for node in ground.list(&["meshnodes"])? {
        let problems = node["status"]["problems"].as_array().map_or(0, Vec::len);
        ensure!(
            problems == 0,
            "{}: {}",
            node["metadata"]["name"],
            node["status"]["problems"]
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_settled_when_it_has_the_policy_and_all_pairs() {
        let node = |mode: &str, encrypted: &str| {
            json!({
                "metadata": {"name": "node-1"},
                "status": {
                    "mode": mode, "observedPolicyGeneration": 4, "pairs": {"total": 2},
                    "conditions": [
                        {"type": "Ready", "status": "True"},
                        {"type": "Encrypted", "status": encrypted},
                        {"type": "Enforced", "status": encrypted},
                    ],
                },
            })
        };
        let generation = json!(4);
        let lacks = |node, mode| missing(&node, &generation, 3, mode).is_some();
        assert!(!lacks(node("Required", "True"), Mode::Required));
        assert!(lacks(node("Required", "False"), Mode::Required));
        assert!(lacks(node("Permissive", "True"), Mode::Required));
        assert!(!lacks(node("Disabled", "False"), Mode::Disabled));
        assert!(lacks(node("Disabled", "True"), Mode::Disabled));
        assert!(missing(&node("Required", "True"), &json!(5), 3, Mode::Required).is_some());
        assert!(missing(&node("Required", "True"), &generation, 4, Mode::Required).is_some());
    }
}
