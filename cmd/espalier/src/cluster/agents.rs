//! The agents' pods.

use std::future::Future;

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::{Api, ListParams};

use super::{Answer, Cluster, explain};
use crate::mesh::RUN_DIR;

const LABELS: &str = "app.kubernetes.io/name=espalier,app.kubernetes.io/component=agent";
/// Its container that runs the agent.
pub(super) const CONTAINER: &str = "agent";
/// Where the image has this program.
const PROGRAM: &str = "/usr/local/bin/espalier";
/// Nodes that are asked at once.
const AT_ONCE: usize = 64;

/// The pod of a node's agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgentPod {
    pub(crate) node: String,
    pub(crate) pod: String,
    run_dir: String,
    /// Host and port of its pages, as its probe has them.
    pub(crate) http: Option<String>,
    /// Why it cannot be asked.
    down: Option<String>,
}

impl AgentPod {
    fn new(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        let phase = phase.unwrap_or("Unknown");
        let container = spec.containers.iter().find(|c| c.name == CONTAINER);
        let argument = |name: &str| {
            let mut words = container.iter().flat_map(|c| c.args.iter().flatten());
            words.find_map(|word| word.strip_prefix(name).map(str::to_owned))
        };
        let name = pod.metadata.name.clone()?;
        Some(Self {
            node: spec.node_name.clone()?,
            run_dir: argument("--run-dir=").unwrap_or_else(|| RUN_DIR.to_owned()),
            http: container.and_then(pages),
            down: (phase != "Running")
                .then(|| format!("its agent's pod {name} is {phase}; kubectl describe it")),
            pod: name,
        })
    }

    /// This program with `words`, in the agent's container, asking that agent.
    pub(crate) fn command(&self, words: &[&str]) -> Vec<String> {
        let mut command = vec![PROGRAM.to_owned()];
        command.extend(words.iter().map(|word| (*word).to_owned()));
        command.push(format!("--run-dir={}", self.run_dir));
        command
    }
}

/// Where the readiness probe asks.
fn pages(container: &Container) -> Option<String> {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let probe = container.readiness_probe.as_ref()?.http_get.as_ref()?;
    let IntOrString::Int(port) = probe.port else {
        return None;
    };
    let host = probe.host.as_deref().unwrap_or("127.0.0.1");
    Some(match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    })
}

impl Cluster {
    /// One for each node that has one, or of the nodes that were chosen.
    ///
    /// # Errors
    /// They cannot be listed, or there are none.
    pub(crate) async fn agents(&self) -> Result<Vec<AgentPod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let labelled = ListParams::default().labels(LABELS);
        let list = tokio::time::timeout(self.patience, pods.list(&labelled)).await;
        let Ok(list) = list else {
            bail!("list pods: the API server {} does not answer", self.server);
        };
        let list = list.map_err(|error| explain("list pods", error))?;
        let agents = one_per_node(&list.items);
        if agents.is_empty() {
            bail!(
                "namespace {} has no pods of the agent ({LABELS}); is Espalier in another one (--namespace)?",
                self.namespace
            );
        }
        let wanted = |agent: &AgentPod| self.nodes.is_empty() || self.nodes.contains(&agent.node);
        Ok(agents.into_iter().filter(wanted).collect())
    }

    /// Nodes that were chosen and have no agent.
    pub(super) fn missing<T>(&self, agents: &[AgentPod]) -> Vec<Answer<T>> {
        let has_none = |node: &&String| !agents.iter().any(|agent| agent.node == **node);
        let missing = self.nodes.iter().filter(has_none);
        missing
            .map(|node| {
                Answer::failed(node, "it has no pod of the agent; is it a node?".to_owned())
            })
            .collect()
    }

    /// Does `work` for all of them at once.
    pub(crate) async fn each<T, F>(
        &self,
        agents: &[AgentPod],
        work: impl Fn(AgentPod) -> F,
    ) -> Vec<Answer<T>>
    where
        F: Future<Output = Result<T>>,
    {
        let work = &work;
        let asked = futures_util::stream::iter(agents).map(|agent| async move {
            let heard = match &agent.down {
                Some(why) => Err(why.clone()),
                None => work(agent.clone())
                    .await
                    .map_err(|error| format!("{error:#}")),
            };
            Answer {
                node: agent.node.clone(),
                heard,
            }
        });
        asked.buffer_unordered(AT_ONCE).collect().await
    }
}

/// While one is replaced, the one that stays.
fn one_per_node(pods: &[Pod]) -> Vec<AgentPod> {
    let mut pods: Vec<&Pod> = pods.iter().collect();
    pods.sort_by_key(|pod| pod.metadata.deletion_timestamp.is_some());
    let mut agents: Vec<AgentPod> = Vec::new();
    for agent in pods.into_iter().filter_map(AgentPod::new) {
        match agents.iter_mut().find(|known| known.node == agent.node) {
            Some(known) if known.down.is_some() && agent.down.is_none() => *known = agent,
            Some(_) => {}
            None => agents.push(agent),
        }
    }
    agents
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, phase: &str, ends: bool) -> Pod {
        let ends = ends.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({
            "metadata": {"name": name, "deletionTimestamp": ends},
            "spec": {"nodeName": node, "containers": [{
                "name": "agent", "args": ["--kubernetes", "--run-dir=/run/other"],
                "readinessProbe": {"httpGet": {"host": "127.0.0.1", "port": 9808}},
            }]},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    #[test]
    fn of_two_pods_on_a_node_the_one_that_stays_is_asked() {
        let pods = [
            pod("old", "a", "Running", true),
            pod("new", "a", "Running", false),
            pod("starts", "b", "Pending", false),
        ];
        let agents = one_per_node(&pods);
        let names: Vec<_> = agents.iter().map(|agent| agent.pod.as_str()).collect();
        assert_eq!(names, ["new", "starts"]);
        assert_eq!(agents[0].down, None);
        assert!(agents[1].down.as_ref().unwrap().contains("Pending"));
        assert_eq!(
            agents[0].command(&["status", "-o", "json"])[1..],
            ["status", "-o", "json", "--run-dir=/run/other"]
        );
        assert_eq!(agents[0].http.as_deref(), Some("127.0.0.1:9808"));
    }
}
