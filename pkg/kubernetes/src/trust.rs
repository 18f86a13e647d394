//! The ConfigMap that says whom nodes trust, and which CA signs now.

use std::pin::pin;

use espalier_pki::Bundle;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tracing::debug;

use crate::backoff::Backoff;

const NAME: &str = "espalier-trust";
const KEY: &str = "ca.crt";
const SIGNER: &str = "espalier.dev/signer";

/// Whom nodes trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trust {
    /// As in the ConfigMap.
    pub(crate) pem: String,
    pub(crate) bundle: Bundle,
    /// Fingerprint of the CA that signs now, when it is said.
    pub(crate) signer: Option<String>,
}

/// Follows it until nobody listens. `Err`: it is not there or no good; what was good before stays in force.
pub(crate) fn follow(client: Client, namespace: &str) -> watch::Receiver<Result<Trust, String>> {
    let waiting = format!(
        "no ConfigMap {NAME} in namespace {namespace} yet: espalier-controller makes it; is it running?"
    );
    let (sender, receiver) = watch::channel(Err(waiting));
    tokio::spawn(run(Api::namespaced(client, namespace), sender));
    receiver
}

async fn run(api: Api<ConfigMap>, sender: watch::Sender<Result<Trust, String>>) {
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut backoff = Backoff::api();
    loop {
        let mut events = pin!(watcher(api.clone(), only.clone()));
        loop {
            let event = tokio::select! {
                () = sender.closed() => return,
                event = events.next() => event,
            };
            match event {
                None => break,
                Some(Ok(Event::Apply(map) | Event::InitApply(map))) => {
                    backoff.worked();
                    take(&sender, read(&map));
                }
                // Trust is not lost with the object.
                Some(Ok(_)) => backoff.worked(),
                Some(Err(error)) => {
                    debug!(%error, "watching ConfigMap {NAME}");
                    tokio::time::sleep(backoff.failed()).await;
                    if matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(_))) {
                        break;
                    }
                }
            }
        }
    }
}

fn take(sender: &watch::Sender<Result<Trust, String>>, read: Result<Trust, String>) {
    sender.send_if_modified(|old| {
        let changed = (read.is_ok() || old.is_err()) && *old != read;
        if changed {
            *old = read;
        }
        changed
    });
}

fn read(map: &ConfigMap) -> Result<Trust, String> {
    let wrong =
        |why: String| format!("ConfigMap {NAME}, key {KEY}: {why}; espalier-controller writes it");
    let pem = map.data.as_ref().and_then(|data| data.get(KEY));
    let pem = pem.ok_or_else(|| wrong("it is not there".to_owned()))?;
    let bundle = Bundle::read(pem.as_bytes()).map_err(|error| wrong(error.to_string()))?;
    let annotations = map.metadata.annotations.as_ref();
    let signer = annotations.and_then(|all| all.get(SIGNER)).cloned();
    Ok(Trust {
        pem: pem.clone(),
        bundle,
        signer: signer.filter(|signer| !signer.is_empty()),
    })
}
