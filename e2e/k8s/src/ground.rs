//! What a case stands on: the cluster, its API, the pods of the suite, the counts.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use espalier_e2e::{Pod, until_within};
use serde_json::Value;

use crate::harness::{Harness, said, succeeded};
use crate::pods;
use crate::report::Measured;
use crate::suite::Options;

/// Anything that should happen in the cluster at all has happened by then.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);
/// Namespace of the suite's own pods.
pub(crate) const TEST_NAMESPACE: &str = "e2e";

/// Given to every case.
pub(crate) struct Ground<'a> {
    pub(crate) harness: &'a mut dyn Harness,
    pub(crate) options: &'a Options,
    /// Files of the suite.
    pub(crate) folder: PathBuf,
    /// For the case's row.
    pub(crate) measured: Measured,
}

impl Ground<'_> {
    /// Standard output of kubectl.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.try_kubectl(arguments)?;
        succeeded(&output, &format!("kubectl {}", arguments.join(" ")))
    }

    /// kubectl, whatever it says.
    pub(crate) fn try_kubectl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.harness.kubectl();
        self.harness.client(command.args(arguments))
    }

    /// What must be refused: its message, which holds all of `words`.
    pub(crate) fn refused(&self, arguments: &[&str], words: &[&str]) -> Result<String> {
        let output = self.try_kubectl(arguments)?;
        let said = said(&output);
        ensure!(
            !output.status.success(),
            "expected a refusal, was accepted: {said}"
        );
        espalier_e2e::expect_words(&said, words).map_err(anyhow::Error::msg)?;
        Ok(said)
    }

    /// An object or a list of them.
    pub(crate) fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl wrote no JSON")
    }

    /// The objects of a list.
    pub(crate) fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let list = self.get(arguments)?;
        let items = list["items"].as_array();
        Ok(items.context("expected a list")?.clone())
    }

    /// The pod of the agent on a node.
    pub(crate) fn agent_on(&self, node: &str) -> Result<Value> {
        let there = format!("spec.nodeName={node}");
        let label = "app.kubernetes.io/component=agent";
        let agents = self.list(&[
            "pods",
            "-n",
            crate::cases::NAMESPACE,
            "-l",
            label,
            "--field-selector",
            &there,
        ])?;
        let first = agents.into_iter().next();
        first.with_context(|| format!("no agent on {node}"))
    }

    /// Applies a manifest.
    pub(crate) fn apply(&self, manifest: &str) -> Result<()> {
        let file = self.file("manifest.yaml", manifest)?;
        self.kubectl(&["apply", "-f", &file]).map(drop)
    }

    /// A file that kubectl can read; its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder.join(name);
        let mut file = std::fs::File::create(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(path.display().to_string())
    }

    /// Helm with the cluster's kubeconfig.
    pub(crate) fn helm(&self, arguments: &[&str]) -> Result<String> {
        let helm = self.options.helm.as_deref().unwrap_or(Path::new("helm"));
        let mut command = Command::new(helm);
        // Nothing of the user's own.
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(name, self.folder.join("helm"));
        }
        let output = self.harness.client(command.args(arguments))?;
        succeeded(&output, &format!("helm {}", arguments.join(" ")))
    }

    /// A program on a node: its standard output.
    pub(crate) fn on_node(&self, node: &str, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.harness.on_node(node, program, arguments)?;
        succeeded(&output, &format!("{program} on {node}"))
    }

    /// Looks again and again; a look that fails is like one that finds nothing, for the API server may be away.
    pub(crate) fn until<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Result<Result<T, String>>,
    ) -> Result<T> {
        let mut last = None;
        until_within(LIMIT, what, || {
            // kubectl costs a fifth of a second of CPU.
            if last.is_some() {
                std::thread::sleep(Duration::from_millis(400));
            }
            last = Some(());
            Ok(look().unwrap_or_else(|error| Err(format!("{error:#}"))))
        })
    }

    /// The pods of the suite with this label, by node.
    pub(crate) fn pods(&self, label: &str) -> Result<Vec<Pod>> {
        let mut objects = self.staying(label)?;
        objects.sort_by_key(|object| object["spec"]["nodeName"].to_string());
        objects.iter().map(pods::pod).collect()
    }

    /// Pods that nobody deletes, as objects.
    pub(crate) fn staying(&self, label: &str) -> Result<Vec<Value>> {
        let mut objects = self.list(&["pods", "-n", TEST_NAMESPACE, "-l", label])?;
        objects.retain(|object| object["metadata"]["deletionTimestamp"].is_null());
        Ok(objects)
    }

    /// Waits until every pod of a DaemonSet is ready, and of its newest version.
    pub(crate) fn await_daemon_set(&self, namespace: &str, name: &str) -> Result<()> {
        let nodes = u64::try_from(self.harness.nodes().len())?;
        self.until(&format!("DaemonSet {name} on all nodes"), || {
            let set = self.get(&["daemonset", name, "-n", namespace])?;
            let count = |field: &str| set["status"][field].as_u64().unwrap_or_default();
            let current = set["status"]["observedGeneration"] == set["metadata"]["generation"];
            let counts = ["updatedNumberScheduled", "numberReady"].map(count);
            let done = current && counts == [nodes, nodes];
            Ok(done.then_some(()).ok_or_else(|| {
                format!(
                    "updated, ready of {nodes}: {counts:?}\n{}",
                    self.events(namespace)
                )
            }))
        })
    }

    fn events(&self, namespace: &str) -> String {
        let asked = self.kubectl(&["get", "pods,events", "-n", namespace, "-o", "wide"]);
        let text = asked.unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(25)..);
        last.unwrap_or_default().join("\n")
    }
}
