//! A command in a pod's container.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::agents::CONTAINER;
use super::{AgentPod, Cluster, explain};

/// A mesh of 5,000 nodes has a status of 5 MB; more than this nobody prints.
const OUTPUT_MAX: u64 = 64 << 20;
/// On the way from the connection to the reader.
const BUFFER: usize = 64 << 10;

/// How a command ended.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// `Err`: it was not started, or ended by a signal; why.
    pub(crate) code: std::result::Result<i32, String>,
}

impl Output {
    /// What it printed, when its exit status is 0.
    ///
    /// # Errors
    /// What it said on standard error.
    pub(crate) fn succeeded(self) -> Result<Vec<u8>> {
        match self.code {
            Ok(0) => Ok(self.stdout),
            _ => Err(self.failure()),
        }
    }

    /// Why it failed.
    pub(crate) fn failure(&self) -> anyhow::Error {
        let said = String::from_utf8_lossy(&self.stderr);
        let said = said.trim();
        match &self.code {
            Ok(code) => anyhow!("exit status {code}: {said}"),
            Err(why) => anyhow!("{why} {said}"),
        }
    }
}

impl Cluster {
    /// Runs `command` in the agent's container to its end.
    ///
    /// # Errors
    /// The API server or the kubelet refuses it, or the time is over.
    pub(super) async fn run(
        &self,
        agent: &AgentPod,
        command: &[String],
        patience: Duration,
    ) -> Result<Output> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        match tokio::time::timeout(patience, run(&pods, &agent.pod, command)).await {
            Ok(output) => output,
            Err(_) => bail!(
                "no answer within {} s (--timeout); is its kubelet reachable from the API server?",
                patience.as_secs()
            ),
        }
    }
}

async fn run(pods: &Api<Pod>, pod: &str, command: &[String]) -> Result<Output> {
    let params = AttachParams::default()
        .container(CONTAINER)
        .stdin(false)
        .max_stdout_buf_size(BUFFER);
    let attached = pods.exec(pod, command, &params).await;
    let mut attached = attached.map_err(|error| explain(&format!("exec in pod {pod}"), error))?;
    let (out, err, status) = (attached.stdout(), attached.stderr(), attached.take_status());
    let (stdout, stderr) = tokio::join!(read(out), read(err));
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    Ok(Output {
        stdout: stdout?,
        stderr: stderr?,
        code: code(status.as_ref()),
    })
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let mut stream = stream.take(OUTPUT_MAX);
        stream
            .read_to_end(&mut bytes)
            .await
            .context("reading what it prints")?;
    }
    Ok(bytes)
}

/// The exit status, as the kubelet says it (remotecommand protocol v4).
fn code(status: Option<&Status>) -> std::result::Result<i32, String> {
    let Some(status) = status else {
        return Err("the connection ended before the command;".to_owned());
    };
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status
        .details
        .iter()
        .flat_map(|d| d.causes.iter().flatten());
    let mut causes = causes.filter(|cause| cause.reason.as_deref() == Some("ExitCode"));
    let code = causes.find_map(|cause| cause.message.as_ref()?.parse().ok());
    code.ok_or_else(|| {
        status
            .message
            .clone()
            .unwrap_or_else(|| "it failed".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_exit_status_is_read_from_what_the_kubelet_says() {
        let read = |value| code(Some(&serde_json::from_value::<Status>(value).unwrap()));
        assert_eq!(read(json!({"status": "Success"})), Ok(0));
        let failed = json!({
            "status": "Failure", "reason": "NonZeroExitCode", "message": "command terminated",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
        });
        assert_eq!(read(failed), Ok(3));
        let missing = json!({"status": "Failure", "message": "no such file", "code": 500});
        assert_eq!(read(missing), Err("no such file".to_owned()));
        assert!(code(None).is_err());
    }

    #[test]
    fn a_failure_says_what_the_command_said() {
        let output = Output {
            stderr: b"Error: the agent did not answer\n".to_vec(),
            stdout: Vec::new(),
            code: Ok(1),
        };
        let said = output.succeeded().unwrap_err().to_string();
        assert_eq!(said, "exit status 1: Error: the agent did not answer");
    }
}
