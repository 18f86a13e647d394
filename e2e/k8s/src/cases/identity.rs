//! Who gets a certificate, and how its CA is replaced.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::NAMESPACE;
use super::mesh::{self, Mode};
use crate::ground::Ground;
use crate::harness::{said, succeeded};
use crate::load::Load;

const SIGNER: &str = "espalier.dev/node";
const ACCOUNT: &str = "espalier-agent";
/// Annotation of the trust bundle: which CA signs.
const SIGNS: &str = "espalier.dev/signer";
const AFTER: Duration = Duration::from_secs(5);

/// With the token of node 1's agent, the identity of node 2 is asked for; and with a token that no pod is bound to.
pub(super) fn wrong_request_refused(ground: &mut Ground<'_>) -> Result<String> {
    let nodes = ground.harness.nodes();
    let (thief, victim) = (&nodes[0], &nodes[1]);
    let stolen = token_of(ground, thief)?;
    let first = refused(ground, &stolen, victim, "stolen").context("a stolen token")?;
    let unbound = token(ground, NAMESPACE, ACCOUNT)?;
    let second = refused(ground, &unbound, thief, "unbound").context("a token of no pod")?;
    told(ground, thief, "CertificateIssued")?;
    told(ground, thief, "CertificateRefused").context("where the stolen token is from")?;
    Ok(format!("stolen token: {first}; token of no pod: {second}"))
}

/// Waits for an event of the controller about a node.
fn told(ground: &Ground<'_>, node: &str, reason: &str) -> Result<()> {
    let fields = format!("involvedObject.kind=Node,involvedObject.name={node},reason={reason}");
    ground.until(&format!("the event {reason} about {node}"), || {
        let events = ground.list(&["events", "-n", "default", "--field-selector", &fields])?;
        Ok((!events.is_empty())
            .then_some(())
            .ok_or_else(|| "there is none".to_owned()))
    })
}

/// The CA is replaced under load.
pub(super) fn rotation(ground: &mut Ground<'_>) -> Result<String> {
    let old = signer(ground)?;
    let pods = ground.pods("app=peer")?;
    let load = Load::start(ground, &pods)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let annotation = format!("espalier.dev/rotate={now}");
    ground.kubectl(&[
        "annotate",
        "secret",
        "espalier-ca",
        "-n",
        NAMESPACE,
        &annotation,
    ])?;
    let new = ground.until("all certificates of a new CA, the old one gone", || {
        let (new, bundle) = (signer(ground)?, trust(ground)?);
        let mesh = ground.list(&["meshnodes"])?;
        let renewed = mesh
            .iter()
            .filter(|node| node["status"]["certificate"]["issuer"] == new)
            .count();
        let anchors = bundle["data"]["ca.crt"]
            .as_str()
            .unwrap_or_default()
            .matches("BEGIN CERT")
            .count();
        let done = new != old && renewed == mesh.len() && anchors == 1;
        let said = || {
            format!(
                "{anchors} CAs in the bundle, {renewed} of {} nodes renewed",
                mesh.len()
            )
        };
        Ok(if done { Ok(new) } else { Err(said()) })
    })?;
    mesh::settled(ground, Mode::Required)?;
    load.run(AFTER);
    load.ends_whole(ground)?;
    Ok(format!("signer {}… → {}…", short(&old), short(&new)))
}

/// What is no policy is refused, and changes nothing.
pub(super) fn invalid_policy_refused(ground: &mut Ground<'_>) -> Result<String> {
    let patch = |patch: &'static str| {
        [
            "patch",
            "encryptionpolicy",
            "default",
            "--type=merge",
            "-p",
            patch,
        ]
    };
    ground.refused(
        &patch(r#"{"spec":{"mode":"Sometimes"}}"#),
        &["mode", "Sometimes"],
    )?;
    ground.refused(
        &patch(r#"{"spec":{"clusterCIDRs":"everything"}}"#),
        &["clusterCIDRs"],
    )?;
    ground.refused(
        &patch(r#"{"spec":{"protocol":"Rot13"}}"#),
        &["protocol", "Rot13"],
    )?;
    mesh::settled(ground, Mode::Required)?;
    mesh::no_problems(ground)?;
    Ok("mode, clusterCIDRs, protocol".to_owned())
}

/// Asks for the certificate of `node` and waits until it is refused; the message.
fn refused(ground: &Ground<'_>, token: &str, node: &str, name: &str) -> Result<String> {
    let object = ground.get(&["node", node])?;
    let uid = object["metadata"]["uid"]
        .as_str()
        .context("a Node without UID")?;
    let (_, request) = espalier_pki::csr::make(node, uid)?;
    let spki = espalier_pki::csr::read(request.as_bytes())?;
    let object = spki.object_name(node);
    let csr = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": object, "labels": {"espalier.dev/node": node}},
        "spec": {
            "signerName": SIGNER,
            "usages": ["digital signature", "ipsec end system"],
            "request": base64(request.as_bytes()),
        },
    });
    let file = ground.file(&format!("{name}.json"), &csr.to_string())?;
    let config = with_token(ground, token, name)?;
    let mut command = ground.harness.kubectl();
    // The flag comes before the environment's file of an admin.
    command.args(["--kubeconfig", &config, "create", "-f", &file]);
    let output = ground.harness.client(&mut command)?;
    succeeded(&output, "creating the request")?;
    let refusal = ground.until("the request to be refused", || {
        let csr = ground.get(&["csr", &object])?;
        let issued = !csr["status"]["certificate"].is_null();
        let conditions = csr["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let refusal = conditions
            .iter()
            .find(|c| c["type"] == "Denied" || c["type"] == "Failed");
        match (issued, refusal) {
            (true, _) => Ok(Ok(String::new())),
            (false, Some(refusal)) => Ok(Ok(refusal["message"].as_str().unwrap_or("?").to_owned())),
            (false, None) => Ok(Err("nobody has decided".to_owned())),
        }
    })?;
    ensure!(!refusal.is_empty(), "a certificate of {node} was issued");
    ground.kubectl(&["delete", "csr", &object])?;
    Ok(refusal)
}

/// What a thief finds on a node: the token of its agent.
pub(super) fn token_of(ground: &Ground<'_>, node: &str) -> Result<String> {
    let agent = ground.agent_on(node)?;
    let uid = agent["metadata"]["uid"].as_str();
    let uid = uid.context("a pod without a UID")?;
    let path = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected/token/token");
    ground.on_node(node, "cat", &[&path])
}

/// A token of an account that is bound to no pod.
pub(super) fn token(ground: &Ground<'_>, namespace: &str, account: &str) -> Result<String> {
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": [], "expirationSeconds": 3600},
    });
    let file = ground.file("token.json", &request.to_string())?;
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let output = ground.try_kubectl(&["create", "--raw", &path, "-f", &file])?;
    let reply: Value = serde_json::from_str(&succeeded(&output, "asking for a token")?)?;
    let token = reply["status"]["token"].as_str();
    Ok(token.with_context(|| said(&output))?.to_owned())
}

/// A kubeconfig for the same cluster with this token only.
pub(super) fn with_token(ground: &Ground<'_>, token: &str, name: &str) -> Result<String> {
    let arguments = [
        "config",
        "view",
        "--raw",
        "--minify",
        "--flatten",
        "-o",
        "json",
    ];
    let mut config: Value = serde_json::from_str(&ground.kubectl(&arguments)?)?;
    let user = config["users"][0]["name"].clone();
    config["users"] = json!([{"name": user, "user": {"token": token.trim()}}]);
    ground.file(&format!("{name}.kubeconfig"), &config.to_string())
}

fn trust(ground: &Ground<'_>) -> Result<Value> {
    ground.get(&["configmap", "espalier-trust", "-n", NAMESPACE])
}

fn signer(ground: &Ground<'_>) -> Result<String> {
    let trust = trust(ground)?;
    let signer = trust["metadata"]["annotations"][SIGNS].as_str();
    Ok(signer
        .context("the trust bundle names no signer")?
        .to_owned())
}

fn short(text: &str) -> &str {
    text.get(..8).unwrap_or(text)
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let index = word >> (18 - 6 * at) & 63;
            let letter = LETTERS[usize::try_from(index).unwrap_or_default()];
            out.push(if at > chunk.len() {
                '='
            } else {
                char::from(letter)
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }
}
