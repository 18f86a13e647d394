//! Whether a request for a node's certificate is signed: by what the API server knows of who asks, not by what the request says.

use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec as Spec,
};
use k8s_openapi::api::core::v1::{Node, Pod};

/// Of CertificateSigningRequest: `spec.signerName`.
pub(crate) const SIGNER: &str = "espalier.dev/node";
/// The agents' ServiceAccount.
pub(crate) const AGENT: &str = "espalier-agent";
const USAGES: [&str; 2] = ["digital signature", "ipsec end system"];
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Said by servers since Kubernetes 1.30.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// What is signed, and under which names: those of the Node object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Approved {
    /// metadata.name of the Node.
    pub(crate) node: String,
    /// Its metadata.uid.
    pub(crate) uid: String,
    /// DER of the SubjectPublicKeyInfo.
    pub(crate) spki: Vec<u8>,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Denial {
    /// One word, the condition's reason.
    pub(crate) reason: &'static str,
    /// For people: what was expected, what came, what to do.
    pub(crate) message: String,
}

fn denial(reason: &'static str, message: String) -> Denial {
    Denial { reason, message }
}

/// The pod that a request comes from, as the API server authenticated it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Requester {
    pub(crate) pod: String,
    pub(crate) uid: String,
    node: Option<String>,
}

impl Requester {
    /// Reads `spec.username` and `spec.extra`, which the API server fills in.
    pub(crate) fn of(spec: &Spec, namespace: &str) -> Result<Self, Denial> {
        let expected = format!("system:serviceaccount:{namespace}:{AGENT}");
        let user = spec.username.as_deref().unwrap_or_default();
        if user != expected {
            let message =
                format!("asked for by {user:?}; only {expected:?} gets certificates of {SIGNER}");
            return Err(denial("NotTheAgent", message));
        }
        let (Some(pod), Some(uid)) = (extra(spec, POD_NAME), extra(spec, POD_UID)) else {
            let message = format!(
                "the requester's token is not bound to one pod (spec.extra lacks {POD_NAME} or {POD_UID}): the agent needs a projected serviceAccountToken volume, a token of a Secret does not do"
            );
            return Err(denial("TokenNotBound", message));
        };
        Ok(Self {
            pod,
            uid,
            node: extra(spec, NODE_NAME),
        })
    }
}

/// The one value; several would be ambiguous.
fn extra(spec: &Spec, key: &str) -> Option<String> {
    match spec.extra.as_ref()?.get(key)?.as_slice() {
        [one] if !one.is_empty() => Some(one.clone()),
        _ => None,
    }
}

/// Judges a request by the pod that it comes from and that pod's Node, as they are in the API server; `None`: there is none.
pub(crate) fn judge(
    csr: &CertificateSigningRequest,
    namespace: &str,
    pod: Option<&Pod>,
    node: Option<&Node>,
) -> Result<Approved, Denial> {
    let requester = Requester::of(&csr.spec, namespace)?;
    check_usages(&csr.spec)?;
    let on = check_pod(pod, &requester, namespace)?;
    let (node, uid) = check_node(node, on)?;
    let request = espalier_pki::csr::read(&csr.spec.request.0)
        .map_err(|error| denial("BadRequest", error.to_string()))?;
    request
        .check_names(&node, &uid)
        .map_err(|error| denial("WrongNames", format!("the pod runs on {node}: {error}")))?;
    Ok(Approved {
        node,
        uid,
        spki: request.spki,
    })
}

fn check_usages(spec: &Spec) -> Result<(), Denial> {
    let mut usages: Vec<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    usages.sort_unstable();
    if usages == USAGES {
        return Ok(());
    }
    let message = format!("spec.usages: expected {USAGES:?} and no other, found {usages:?}");
    Err(denial("WrongUsages", message))
}

/// The name of the node that it runs on.
fn check_pod<'a>(
    pod: Option<&'a Pod>,
    requester: &Requester,
    namespace: &str,
) -> Result<&'a str, Denial> {
    let name = format!("{namespace}/{}", requester.pod);
    let missing = || {
        denial(
            "PodGone",
            format!("the requesting pod {name} (UID {}) is gone", requester.uid),
        )
    };
    let pod = pod.ok_or_else(missing)?;
    if pod.metadata.name.as_deref() != Some(&requester.pod)
        || pod.metadata.namespace.as_deref() != Some(namespace)
        || pod.metadata.uid.as_deref() != Some(&requester.uid)
    {
        return Err(missing());
    }
    let spec = pod.spec.as_ref().ok_or_else(missing)?;
    let account = spec.service_account_name.as_deref().unwrap_or_default();
    if account != AGENT {
        let message = format!("pod {name} runs as ServiceAccount {account:?}, not {AGENT:?}");
        return Err(denial("NotTheAgent", message));
    }
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if let Some(phase @ ("Succeeded" | "Failed")) = phase {
        let message = format!("pod {name} is finished ({phase}): its token was kept and used");
        return Err(denial("PodFinished", message));
    }
    let Some(on) = spec.node_name.as_deref().filter(|node| !node.is_empty()) else {
        let message = format!("pod {name} runs on no node yet");
        return Err(denial("PodNotScheduled", message));
    };
    match &requester.node {
        Some(node) if node != on => {
            let message = format!("pod {name} runs on {on}, but its token was made for {node}");
            Err(denial("OtherNode", message))
        }
        _ => Ok(on),
    }
}

fn check_node(node: Option<&Node>, on: &str) -> Result<(String, String), Denial> {
    let meta = node
        .map(|node| &node.metadata)
        .filter(|meta| meta.name.as_deref() == Some(on));
    let gone = || {
        denial(
            "NodeGone",
            format!("there is no Node {on}: a node that was removed gets no certificate"),
        )
    };
    let meta = meta.ok_or_else(gone)?;
    if meta.deletion_timestamp.is_some() {
        return Err(gone());
    }
    let uid = meta.uid.clone().ok_or_else(gone)?;
    Ok((on.to_owned(), uid))
}

#[cfg(test)]
mod tests;
