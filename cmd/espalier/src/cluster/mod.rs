//! The agents of a cluster, asked through its API server: a command runs in each agent's container, as `kubectl exec` does it. No port
//! of a node is opened or reached for that.

mod agents;
mod answers;
mod connect;
mod exec;

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::Client;

pub(crate) use agents::AgentPod;
#[cfg(test)]
pub(crate) use answers::tests as answers_for_tests;
pub(crate) use answers::{Answer, Row, verdict};
pub(crate) use connect::explain;

/// Where Espalier is when nobody says otherwise.
const NAMESPACE: &str = "espalier-system";
/// For a node's answer, where no option says otherwise.
const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster, reached with the rights of a kubeconfig.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// Of the kubeconfig.
    pub(crate) context: String,
    /// URL of the API server.
    pub(crate) server: String,
    /// Only these, if any.
    nodes: Vec<String>,
    pub(crate) patience: Duration,
}

impl Cluster {
    /// Of all nodes, or of those that options choose, what the agent's container prints for `command`, at once and with a timeout
    /// for each; read by `read`. Sorted by node. One that is missing or fails is an answer, too.
    ///
    /// # Errors
    /// The agents' pods cannot be listed, or there are none.
    pub(crate) async fn ask<T>(
        &self,
        command: impl Fn(&AgentPod) -> Vec<String>,
        patience: Duration,
        read: impl Fn(exec::Output) -> Result<T>,
    ) -> Result<Vec<Answer<T>>> {
        let agents = self.agents().await?;
        let heard = self.each(&agents, |agent| {
            let command = command(&agent);
            let read = &read;
            async move { read(self.run(&agent, &command, patience).await?) }
        });
        let mut answers = heard.await;
        answers.extend(self.missing(&agents));
        answers.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(answers)
    }

    /// Every agent's status.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) async fn statuses(&self) -> Result<Vec<Answer<crate::model::Node>>> {
        let command = |agent: &AgentPod| agent.command(&["status", "-o", "json"]);
        self.ask(command, self.patience, |output| {
            let text = output.succeeded()?;
            serde_json::from_slice(&text)
                .context("its status cannot be read; is it of another version?")
        })
        .await
    }

    #[cfg(test)]
    pub(crate) fn for_tests(client: Client, namespace: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            context: "test".to_owned(),
            server: "https://192.0.2.1".to_owned(),
            nodes: Vec::new(),
            patience: PATIENCE,
        }
    }

    /// No node is left out on purpose.
    pub(crate) fn asks_all(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What is asked, for people.
    pub(crate) fn describe(&self) -> String {
        format!(
            "cluster: context {} ({}), namespace {}",
            self.context, self.server, self.namespace
        )
    }
}

/// Runs `work` on a runtime of its own.
///
/// # Errors
/// Those of `work`, and that there can be no runtime.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(work)
}
