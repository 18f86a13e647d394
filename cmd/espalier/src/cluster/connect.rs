//! From a kubeconfig to a client.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};

use super::{Cluster, NAMESPACE, PATIENCE};
use crate::place::ClusterArgs;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Cluster {
    /// Reads the kubeconfig; nothing is asked of the server yet. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kubeconfig cannot be used.
    pub(crate) async fn connect(args: &ClusterArgs) -> Result<Self> {
        let (mut config, context) = config(args).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let server = config.cluster_url.to_string();
        let client =
            Client::try_from(config).context("the kubeconfig's credentials cannot be used")?;
        Ok(Self {
            client,
            namespace: args
                .namespace
                .clone()
                .unwrap_or_else(|| NAMESPACE.to_owned()),
            context,
            server: server.trim_end_matches('/').to_owned(),
            nodes: args.nodes.clone(),
            patience: args.timeout.map_or(PATIENCE, Duration::from_secs),
        })
    }
}

/// With the name of the context.
async fn config(args: &ClusterArgs) -> Result<(Config, String)> {
    let kubeconfig = match &args.kubeconfig {
        Some(file) => read(file)?,
        None => Kubeconfig::read()
            .context("no kubeconfig can be read; name one with --kubeconfig or KUBECONFIG")?,
    };
    let current = kubeconfig.current_context.clone();
    let name = args.context.clone().or(current);
    let name = name
        .ok_or_else(|| anyhow!("the kubeconfig has no current context; name one with --context"))?;
    let options = KubeConfigOptions {
        context: Some(name.clone()),
        ..KubeConfigOptions::default()
    };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let config = config.with_context(|| format!("context {name:?} of the kubeconfig"))?;
    Ok((config, name))
}

fn read(file: &PathBuf) -> Result<Kubeconfig> {
    Kubeconfig::read_from(file).with_context(|| format!("--kubeconfig {}", file.display()))
}

/// What an error of the API server means, with a remedy where there is one; `what` was asked for.
pub(crate) fn explain(what: &str, error: Error) -> anyhow::Error {
    let Error::Api(status) = &error else {
        return anyhow::Error::new(error)
            .context(format!("{what}: the API server cannot be asked"));
    };
    let remedy = match status.code {
        401 => "; the kubeconfig's credentials are not taken, or have ended",
        403 => "; docs/cli.md has the rights that are needed (deploy/cli-rbac.yaml)",
        404 => "; is Espalier installed there?",
        _ => "",
    };
    anyhow!("{what}: {} ({}){remedy}", status.message, status.code)
}
