//! The connection to the API server.

use std::time::Duration;

use kube::{Client, Config, Error};

/// A server that does not answer a connection for so long is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the server keeps a watch without any word: it sends a bookmark every minute.
const READ_TIMEOUT: Duration = Duration::from_secs(295);
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a service account nor a kubeconfig.
    #[error(
        "no way to the API server: {0}; in a pod KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT and the token at /var/run/secrets/kubernetes.io/serviceaccount are needed, elsewhere KUBECONFIG"
    )]
    NoConfig(#[from] kube::config::InferConfigError),
    /// What was found does not do.
    #[error("the API server's CA or the credentials for it cannot be used: {0}")]
    Unusable(#[from] Error),
}

/// A client by the pod's service account or `KUBECONFIG`. Nothing is asked of the server yet.
///
/// # Errors
/// [`ClientError`].
pub async fn connect() -> Result<Client, ClientError> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(WRITE_TIMEOUT);
    Ok(Client::try_from(config)?)
}

/// What an error means to a person, with the remedy where there is one; `what` was asked for, such as `list nodes`.
#[must_use]
pub fn explain(what: &str, error: &Error) -> String {
    let Error::Api(status) = error else {
        return format!("{what}: the API server cannot be reached: {}", chain(error));
    };
    let remedy = match status.code {
        401 => {
            "; its token is not taken: is the service account there, and is this node's clock right?"
        }
        403 => "; give the service account this right (docs/kubernetes-agent.md has all of them)",
        404 => "; is it installed?",
        _ => "",
    };
    format!(
        "{what}: the API server says {} ({}){remedy}",
        status.message, status.code
    )
}

/// An error with its causes: hyper's own texts do not say them.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}
