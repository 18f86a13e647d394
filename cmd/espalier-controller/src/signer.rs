//! The signer `espalier.dev/node`: judges requests, approves or denies them, and writes the certificates.

mod judge;

use std::time::Duration;

use espalier_pki::{Authority, PkiError, Validity};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, Preconditions};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::api::{is_stale, merge};
pub(crate) use judge::SIGNER;
use judge::{Approved, Denial, Requester, judge};

/// Requests that are through are kept for so long, for people to look at.
const KEPT: Duration = Duration::from_secs(15 * 60);
const REASON: &str = "EspalierSigner";

/// Signs nodes' certificates.
pub(crate) struct Signer {
    client: Client,
    csrs: Api<CertificateSigningRequest>,
    namespace: String,
    /// Validity of certificates.
    days: u32,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It has its certificate.
    Issued {
        /// Of this node.
        node: String,
    },
    /// It gets none.
    Refused(Refusal),
    /// Somebody else changed or deleted it meanwhile.
    Overtaken,
}

/// Why a request gets no certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Where the pod runs that asks, as the API server knows it.
    pub(crate) node: Option<String>,
    /// One word.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// Why a request is neither issued nor refused yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    /// The API server did not do its part.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The CA cannot sign.
    #[error("signing: {0}")]
    Ca(#[from] PkiError),
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nobody has decided.
    Pending,
    /// Approved by this signer or by a person, without certificate.
    Approved,
    /// Denied, failed, or with certificate.
    Through,
}

/// How far `csr` is.
pub(crate) fn state(csr: &CertificateSigningRequest) -> State {
    let Some(status) = &csr.status else {
        return State::Pending;
    };
    let has = |kind| {
        let mut conditions = status.conditions.iter().flatten();
        conditions.any(|condition| condition.type_ == kind)
    };
    let issued = status.certificate.as_ref().is_some_and(|c| !c.0.is_empty());
    match () {
        () if issued || has("Denied") || has("Failed") => State::Through,
        () if has("Approved") => State::Approved,
        () => State::Pending,
    }
}

impl Signer {
    pub(crate) fn new(client: Client, namespace: &str, days: u32) -> Self {
        Self {
            csrs: Api::all(client.clone()),
            client,
            namespace: namespace.to_owned(),
            days,
        }
    }

    /// Brings one request to its end. An approval by somebody else does not replace the checks.
    pub(crate) async fn handle(
        &self,
        csr: &CertificateSigningRequest,
        ca: &Authority,
        now: Duration,
    ) -> Result<Outcome, SignError> {
        let (on, judged) = self.judge(csr).await?;
        let done = match judged {
            Ok(approved) => self.issue(csr, &approved, ca, now).await,
            Err(denial) => self.refuse(csr, &denial, on).await.map_err(SignError::Api),
        };
        match done {
            Err(SignError::Api(error)) if is_stale(&error) => Ok(Outcome::Overtaken),
            done => done,
        }
    }

    /// With the name of the node that the asking pod runs on. Pod and Node are asked for now, not taken from a cache.
    async fn judge(
        &self,
        csr: &CertificateSigningRequest,
    ) -> kube::Result<(Option<String>, Result<Approved, Denial>)> {
        let requester = match Requester::of(&csr.spec, &self.namespace) {
            Ok(requester) => requester,
            Err(denial) => return Ok((None, Err(denial))),
        };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = pods.get_opt(&requester.pod).await?;
        let on = pod
            .as_ref()
            .and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
        let node = match on {
            Some(name) => Api::<Node>::all(self.client.clone()).get_opt(name).await?,
            None => None,
        };
        let judged = judge(csr, &self.namespace, pod.as_ref(), node.as_ref());
        // A pod of the same name that is not the one that asks tells nothing of it.
        let asks = pod
            .as_ref()
            .filter(|pod| pod.metadata.uid.as_ref() == Some(&requester.uid));
        let on = asks.and(on).map(str::to_owned);
        Ok((on, judged))
    }

    async fn issue(
        &self,
        csr: &CertificateSigningRequest,
        approved: &Approved,
        ca: &Authority,
        now: Duration,
    ) -> Result<Outcome, SignError> {
        let Approved { node, uid, spki } = approved;
        let validity = Validity::starting(now, self.days);
        // Before anything is written: a CA that cannot sign must not leave an approval without certificate.
        let certificate = ca.issue(spki, node, Some(uid), &validity, now)?;
        let name = name(csr);
        let approved = match state(csr) {
            State::Pending => {
                let message = format!("requested by espalier-agent on node {node} (UID {uid})");
                let patch = with_condition(csr, "Approved", REASON, &message);
                Some(self.patch("approval", name, &patch).await?)
            }
            _ => None,
        };
        let csr = approved.as_ref().unwrap_or(csr);
        let patch = json!({
            "metadata": {"resourceVersion": csr.metadata.resource_version},
            "status": {"certificate": ByteString(certificate.into_bytes())},
        });
        self.patch("status", name, &patch).await?;
        info!(csr = name, node, uid, "certificate issued");
        Ok(Outcome::Issued { node: node.clone() })
    }

    async fn refuse(
        &self,
        csr: &CertificateSigningRequest,
        denial: &Denial,
        on: Option<String>,
    ) -> kube::Result<Outcome> {
        // Approved and Denied exclude each other: what somebody approved wrongly fails.
        let (subresource, kind) = match state(csr) {
            State::Approved => ("status", "Failed"),
            _ => ("approval", "Denied"),
        };
        let patch = with_condition(csr, kind, denial.reason, &denial.message);
        self.patch(subresource, name(csr), &patch).await?;
        let user = csr.spec.username.as_deref().unwrap_or_default();
        warn!(csr = name(csr), user, reason = denial.reason, %denial, "request refused");
        Ok(Outcome::Refused(Refusal {
            node: on,
            reason: denial.reason,
            message: denial.message.clone(),
        }))
    }

    async fn patch(
        &self,
        subresource: &str,
        name: &str,
        patch: &Value,
    ) -> kube::Result<CertificateSigningRequest> {
        let (params, patch) = merge(patch);
        self.csrs
            .patch_subresource(subresource, name, &params, &patch)
            .await
    }

    /// Deletes a request that is through and old.
    pub(crate) async fn tidy(
        &self,
        csr: &CertificateSigningRequest,
        now: Duration,
    ) -> kube::Result<()> {
        if state(csr) != State::Through || age(csr, now).is_none_or(|age| age < KEPT) {
            return Ok(());
        }
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: csr.metadata.uid.clone(),
            resource_version: None,
        });
        match self.csrs.delete(name(csr), &params).await {
            Err(error) if !is_stale(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

fn name(csr: &CertificateSigningRequest) -> &str {
    csr.metadata.name.as_deref().unwrap_or_default()
}

fn age(csr: &CertificateSigningRequest, now: Duration) -> Option<Duration> {
    let made = csr.metadata.creation_timestamp.as_ref()?.0.as_second();
    Some(now.saturating_sub(Duration::from_secs(u64::try_from(made).ok()?)))
}

/// A patch that adds a condition; it fails when the request was changed since it was read.
fn with_condition(
    csr: &CertificateSigningRequest,
    kind: &str,
    reason: &str,
    message: &str,
) -> Value {
    let mut conditions: Vec<Value> = csr
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .map(|condition| json!(condition))
        .collect();
    conditions.push(json!({
        "type": kind, "status": "True", "reason": reason, "message": message,
    }));
    json!({
        "metadata": {"resourceVersion": csr.metadata.resource_version},
        "status": {"conditions": conditions},
    })
}

#[cfg(test)]
mod tests;
