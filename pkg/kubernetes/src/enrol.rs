//! A node's certificate: the key is made here and never leaves; the controller signs a request for it, and again at half of the
//! certificate's life or when another CA signs.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use espalier_api::MeshSnapshot;
use espalier_pki::{Leaf, NodeKey, csr};
use espalier_secret::SecretBytes;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use k8s_openapi::api::core::v1::Node;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Error};
use rand::RngExt as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::client::explain;
use crate::files::Files;
use crate::trust::{Trust, follow};

const SIGNER: &str = "espalier.dev/node";
const USAGES: [&str; 2] = ["digital signature", "ipsec end system"];
const NODE_LABEL: &str = "espalier.dev/node";
/// Between two looks at a request that is not answered yet.
const POLL: Duration = Duration::from_secs(2);
/// A request that waits for longer is worth a word.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks when nothing is to be done.
const REST: Duration = Duration::from_secs(600);

/// What is needed to enrol a node.
#[derive(Clone)]
pub struct Enrolment {
    /// To the API server.
    pub client: Client,
    /// metadata.name of the Node.
    pub node: String,
    /// Where `espalier-trust` is.
    pub namespace: String,
    /// `<state-dir>/pki`: node.crt, node.key and ca.crt are put there.
    pub folder: PathBuf,
    /// Renewals wait for a random part of this: nodes of a whole cluster do not renew at the same moment when another CA signs.
    pub spread: Duration,
    /// What the agent knows of the cluster: a Node that was deleted and made again has another UID, of which its certificate must be.
    pub snapshots: watch::Receiver<MeshSnapshot>,
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolment")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Enrolment {
    /// Keeps this node's certificate good until nobody listens. What is told is what stands in the way.
    #[must_use]
    pub fn start(self) -> watch::Receiver<Vec<String>> {
        let (sender, problems) = watch::channel(Vec::new());
        let task = Task {
            trust: follow(self.client.clone(), &self.namespace),
            csrs: Api::all(self.client.clone()),
            nodes: Api::all(self.client),
            files: Files::new(self.folder),
            node: self.node,
            spread: self.spread,
            snapshots: self.snapshots,
            asked: None,
            refused: Backoff::new(Duration::from_secs(20), Duration::from_secs(600)),
        };
        tokio::spawn(task.run(sender));
        problems
    }
}

struct Task {
    trust: watch::Receiver<Result<Trust, String>>,
    csrs: Api<CertificateSigningRequest>,
    nodes: Api<Node>,
    files: Files,
    node: String,
    spread: Duration,
    snapshots: watch::Receiver<MeshSnapshot>,
    /// When the request that is under way was first seen.
    asked: Option<Instant>,
    refused: Backoff,
}

/// Why a step did not end with a good certificate.
#[derive(Debug)]
enum Obstacle {
    /// Try again soon.
    Later(String),
    /// Somebody said no.
    Refused(String),
}

impl Task {
    async fn run(mut self, problems: watch::Sender<Vec<String>>) {
        let mut backoff = Backoff::api();
        let mut known = None;
        loop {
            let (told, wait) = match self.step().await {
                Ok(wait) => {
                    backoff.worked();
                    let slow = self.asked.is_some_and(|since| since.elapsed() >= PATIENCE);
                    (slow.then(|| self.waiting()), wait)
                }
                Err(Obstacle::Later(why)) => (Some(why), backoff.failed()),
                Err(Obstacle::Refused(why)) => (Some(why), self.refused.failed()),
            };
            let told: Vec<String> = told.into_iter().collect();
            problems.send_if_modified(|old| {
                let changed = *old != told;
                if changed && let Some(problem) = told.first() {
                    warn!(%problem, "enrolment");
                }
                *old = told;
                changed
            });
            tokio::select! {
                () = problems.closed() => return,
                () = tokio::time::sleep(wait) => {}
                Ok(()) = self.trust.changed() => {}
                () = another_node(&mut self.snapshots, &self.node, &mut known) => {}
            }
        }
    }

    fn waiting(&self) -> String {
        format!(
            "the request for a certificate of {} waits for its signer; is espalier-controller running? kubectl get csr -l {NODE_LABEL}={} shows it",
            self.node, self.node
        )
    }

    /// One step towards a good certificate; how long to rest after it.
    async fn step(&mut self) -> Result<Duration, Obstacle> {
        let trust = self
            .trust
            .borrow_and_update()
            .clone()
            .map_err(Obstacle::Later)?;
        let leaf = self.files.leaf();
        if leaf.is_some() && self.files.bundle().as_ref() != Some(&trust.bundle) {
            self.files.put_bundle(&trust.pem).map_err(|e| disk(&e))?;
            info!(cas = trust.bundle.anchors().len(), "trust bundle replaced");
        }
        let uid = self.uid().await?;
        let Some(why) = self.wanting(leaf.as_ref(), &uid, &trust) else {
            self.asked = None;
            return Ok(rest(leaf.as_ref()));
        };
        if leaf.is_some() && self.asked.is_none() {
            tokio::time::sleep(part(self.spread)).await;
        }
        let key = self.key()?;
        let name = csr::object_name(&self.node, &key.spki());
        let asked = self.csrs.get_opt(&name).await;
        let asked =
            asked.map_err(|e| Obstacle::Later(explain("get certificatesigningrequests", &e)))?;
        let Some(request) = asked else {
            self.ask(&name, &key, &uid, why).await?;
            return Ok(POLL);
        };
        self.asked.get_or_insert_with(Instant::now);
        self.take_answer(&request, &key, &uid, &trust)
    }

    async fn uid(&self) -> Result<String, Obstacle> {
        let node = self.nodes.get(&self.node).await;
        let node =
            node.map_err(|e| Obstacle::Later(explain(&format!("get node {}", self.node), &e)))?;
        let missing = || Obstacle::Later(format!("Node {} has no UID", self.node));
        node.metadata.uid.ok_or_else(missing)
    }

    /// Why another certificate is wanted.
    fn wanting(&self, leaf: Option<&Leaf>, uid: &str, trust: &Trust) -> Option<&'static str> {
        let Some(leaf) = leaf else {
            return Some("there is none");
        };
        let issuer = leaf.issued_by(&trust.bundle);
        let names = (leaf.node.as_deref(), leaf.uid.as_deref());
        if names != (Some(&self.node), Some(uid)) {
            Some("it is another Node's, or of an earlier Node of this name")
        } else if unix_now() >= leaf.renew_at() {
            Some("half of its life is over")
        } else if issuer.is_none() {
            Some("no CA of the trust bundle signed it")
        } else if trust.signer.is_some() && trust.signer != issuer {
            Some("another CA signs now")
        } else {
            None
        }
    }

    fn key(&self) -> Result<NodeKey, Obstacle> {
        let pending = self.files.pending();
        let read = pending.and_then(|pem| NodeKey::from_pem("the pending key", pem.expose()).ok());
        if let Some(key) = read {
            return Ok(key);
        }
        let key = NodeKey::generate().map_err(|e| Obstacle::Later(e.to_string()))?;
        self.files.put_pending(&key.pem()).map_err(|e| disk(&e))?;
        Ok(key)
    }

    async fn ask(
        &mut self,
        name: &str,
        key: &NodeKey,
        uid: &str,
        why: &str,
    ) -> Result<(), Obstacle> {
        let pem = csr::request(key, &self.node, uid).map_err(|e| Obstacle::Later(e.to_string()))?;
        let labels = [(NODE_LABEL.to_owned(), self.node.clone())];
        let request = CertificateSigningRequest {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                // A label's value is shorter than a name may be.
                labels: (self.node.len() <= 63).then(|| labels.into()),
                ..ObjectMeta::default()
            },
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem.into_bytes()),
                signer_name: SIGNER.to_owned(),
                usages: Some(USAGES.map(str::to_owned).to_vec()),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        match self.csrs.create(&PostParams::default(), &request).await {
            Ok(_) => info!(name, why, "asked for a certificate"),
            // An answer that was lost: it is looked at next.
            Err(Error::Api(status)) if status.code == 409 => {}
            Err(e) => {
                return Err(Obstacle::Later(explain(
                    "create certificatesigningrequests",
                    &e,
                )));
            }
        }
        self.asked = Some(Instant::now());
        Ok(())
    }

    fn take_answer(
        &mut self,
        request: &CertificateSigningRequest,
        key: &NodeKey,
        uid: &str,
        trust: &Trust,
    ) -> Result<Duration, Obstacle> {
        let status = request.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let bad = conditions
            .iter()
            .find(|c| c.type_ == "Denied" || c.type_ == "Failed");
        if let Some(bad) = bad {
            // The next request is another one, of another key.
            self.files.remove_pending();
            self.asked = None;
            let message = bad.message.clone().unwrap_or_default();
            return Err(Obstacle::Refused(format!(
                "the request for a certificate of {} was refused ({}): {message}; another is made later",
                self.node, bad.type_
            )));
        }
        let Some(certificate) = status.certificate.filter(|c| !c.0.is_empty()) else {
            return Ok(POLL);
        };
        self.install(&certificate.0, key, uid, trust)
    }

    fn install(
        &mut self,
        pem: &[u8],
        key: &NodeKey,
        uid: &str,
        trust: &Trust,
    ) -> Result<Duration, Obstacle> {
        let leaf = Leaf::read(pem).map_err(|e| Obstacle::Later(e.to_string()))?;
        let named = leaf.node.as_deref() == Some(&self.node) && leaf.uid.as_deref() == Some(uid);
        if leaf.spki != key.spki() || !named {
            self.files.remove_pending();
            self.asked = None;
            let what =
                "the signed certificate is not of this node's key and names; another is asked for";
            return Err(Obstacle::Refused(what.to_owned()));
        }
        if leaf.issued_by(&trust.bundle).is_none() {
            return Err(Obstacle::Later(
                "the signed certificate is of a CA that is not in ConfigMap espalier-trust yet; it is not used before".to_owned(),
            ));
        }
        let secret: SecretBytes = key.pem();
        self.files
            .install(pem, &secret, &trust.pem)
            .map_err(|e| disk(&e))?;
        self.files.remove_pending();
        self.asked = None;
        self.refused.worked();
        info!(issuer = leaf.issuer, "certificate installed");
        Ok(rest(Some(&leaf)))
    }
}

/// Returns when the Node has another UID than `known`, which is that one then.
async fn another_node(
    snapshots: &mut watch::Receiver<MeshSnapshot>,
    node: &str,
    known: &mut Option<String>,
) {
    let uid = |snapshot: &MeshSnapshot| {
        let own = snapshot.nodes.iter().find(|own| own.name == node)?;
        own.uid.clone()
    };
    let is_new =
        |snapshot: &MeshSnapshot| uid(snapshot).is_some_and(|uid| known.as_ref() != Some(&uid));
    let Ok(snapshot) = snapshots.wait_for(is_new).await else {
        return std::future::pending().await; // the agent stops
    };
    let new = uid(&snapshot);
    drop(snapshot);
    *known = new;
}

fn disk(error: &std::io::Error) -> Obstacle {
    Obstacle::Later(format!(
        "the certificate cannot be stored: {error}; is --state-dir writable?"
    ))
}

/// Until the certificate is to be renewed, and not too long: a clock may be set.
fn rest(leaf: Option<&Leaf>) -> Duration {
    let left = leaf.map_or(REST, |leaf| leaf.renew_at().saturating_sub(unix_now()));
    left.clamp(POLL, REST)
}

fn part(spread: Duration) -> Duration {
    spread.mul_f64(rand::rng().random_range(0.0..=1.0))
}

fn unix_now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
