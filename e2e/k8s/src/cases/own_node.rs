//! What a stolen token of an agent may write: nothing of another node.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::identity;
use crate::ground::Ground;
use crate::harness::{said, succeeded};

/// Every token of a pod says which node the pod is on since then, and the chart has a policy that looks.
const FIRST: u32 = 32;
/// Changes nothing, and is admitted or not all the same.
const NOTHING: &str = r#"{"metadata":{"annotations":{"espalier.dev/e2e":null}}}"#;
/// What an agent may write at all.
const OBJECTS: [(&str, &str); 3] = [
    ("/apis/espalier.dev/v1alpha1/meshnodes/", ""),
    ("/apis/espalier.dev/v1alpha1/meshnodes/", "/status"),
    ("/api/v1/nodes/", "/status"),
];

/// With the token of node 1's agent, objects of node 2 are written, and of node 1.
pub(super) fn own_node_only(ground: &mut Ground<'_>) -> Result<String> {
    let minor = server_minor(ground)?;
    if minor < FIRST {
        return Ok(format!(
            "not tried: Kubernetes 1.{minor} has no rule for it"
        ));
    }
    let nodes = ground.harness.nodes();
    let (thief, victim) = (&nodes[0], &nodes[1]);
    let stolen = Stolen::new(ground, thief)?;
    for (folder, subresource) in OBJECTS {
        let own = format!("{folder}{thief}{subresource}");
        succeeded(&stolen.patch(ground, &own)?, &own)?;
        let other = format!("{folder}{victim}{subresource}");
        let answer = stolen.patch(ground, &other)?;
        ensure!(
            !answer.status.success(),
            "{other} was written: {}",
            said(&answer)
        );
        let words = ["espalier-agent", "own node only", victim.as_str()];
        espalier_e2e::expect_words(&said(&answer), &words).map_err(anyhow::Error::msg)?;
    }
    Ok(format!(
        "MeshNode, its status, a Node's status: of {thief}, not of {victim}"
    ))
}

/// 36 of 1.36.
fn server_minor(ground: &Ground<'_>) -> Result<u32> {
    let version: Value = serde_json::from_str(&ground.kubectl(&["get", "--raw", "/version"])?)?;
    let minor = version["minor"].as_str().unwrap_or_default();
    // Vendors put a sign behind it.
    let digits = minor.trim_end_matches(|sign: char| !sign.is_ascii_digit());
    digits
        .parse()
        .with_context(|| format!("the server's version: {version}"))
}

/// A token, and where it is good for something.
struct Stolen {
    server: String,
    /// Files.
    ca: String,
    header: String,
}

impl Stolen {
    fn new(ground: &Ground<'_>, node: &str) -> Result<Self> {
        let view = ["config", "view", "--raw", "--minify", "--flatten"];
        let at = |path: &str| ground.kubectl(&[&view[..], &["-o", path]].concat());
        let ca = at(
            "go-template={{index (index .clusters 0).cluster \"certificate-authority-data\" | base64decode}}",
        )?;
        let token = identity::token_of(ground, node)?;
        let header = format!("Authorization: Bearer {}", token.trim());
        Ok(Self {
            server: at("jsonpath={.clusters[0].cluster.server}")?,
            ca: ground.file("cluster-ca.crt", &ca)?,
            header: ground.file("stolen.header", &header)?,
        })
    }

    /// An agent may patch and not read, which kubectl cannot.
    fn patch(&self, ground: &Ground<'_>, path: &str) -> Result<Output> {
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--max-time",
            "30",
        ]);
        command.args([
            "--cacert",
            &self.ca,
            "--header",
            &format!("@{}", self.header),
        ]);
        command.args(["--header", "Content-Type: application/merge-patch+json"]);
        command.args(["--request", "PATCH", "--data", NOTHING]);
        command.arg(format!("{}{path}", self.server));
        ground.harness.client(&mut command)
    }
}
