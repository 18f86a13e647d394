//! What the leader does: round after round it looks at all that is there and does what is missing. It remembers nothing that is
//! not in the API server, so another replica goes on where it stopped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use espalier_api::conditions::{self, ConditionStatus, READY};
use espalier_api::{EncryptionPolicy, MeshNode};
use espalier_kubernetes::{Event, Recorder, explain};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::api::{FIELD_MANAGER, is_code, is_stale, merge};
use crate::args::{CaMode, Settings};
use crate::ca::{self, Ca, CaError};
use crate::caches::Caches;
use crate::events;
use crate::metrics::{Metrics, add, now, seconds, set};
use crate::rotation::{Report, Stage, Step, Trust};
use crate::signer::{self, Outcome, Signer};
use crate::status::{self, Member, Trouble};
use crate::taint;

/// Changes come in crowds: one round for all of them.
const GATHER: Duration = Duration::from_millis(200);
/// Without any change.
const IDLE: Duration = Duration::from_secs(30);
/// After something failed.
const RETRY: Duration = Duration::from_secs(5);
/// A step of a CA rotation that takes longer is told as a problem.
const PATIENCE: Duration = Duration::from_secs(600);
/// Requests to the API server at once.
const AT_ONCE: usize = 8;

/// Reason and note of a rotation's steps.
const BEGUN: (&str, &str) = (
    "CARotationBegun",
    "the CA is being replaced: a new one was made, and nodes learn to trust it",
);
const SWITCHED: (&str, &str) = (
    "CARotationSwitched",
    "every node trusts the new CA: it signs now, and nodes get new certificates",
);
const FINISHED: (&str, &str) = (
    "CARotated",
    "the CA was replaced: every node has a certificate of the new one, and the old one is no longer trusted",
);

/// The replica that acts.
pub(crate) struct Leader {
    client: Client,
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    caches: Caches,
    signer: Signer,
    recorder: Mutex<Recorder>,
}

impl Leader {
    pub(crate) fn new(client: Client, settings: Arc<Settings>, metrics: Arc<Metrics>) -> Self {
        let signs = settings.ca != CaMode::None;
        Self {
            caches: Caches::new(&client, &settings.namespace, signs),
            signer: Signer::new(client.clone(), &settings.namespace, settings.days),
            recorder: Mutex::new(events::recorder(client.clone())),
            client,
            settings,
            metrics,
        }
    }

    /// Acts until it is dropped.
    pub(crate) async fn run(mut self) {
        set(&self.metrics.last_round, seconds(now()));
        self.metrics.leading.store(true, Ordering::Relaxed);
        let mut due = Instant::now() + IDLE;
        loop {
            tokio::select! {
                () = self.caches.changed() => due = due.min(Instant::now() + GATHER),
                () = sleep_until(due) => {
                    let well = match self.caches.are_complete() {
                        true => self.round().await,
                        false => self.wait(),
                    };
                    due = Instant::now() + if well { IDLE } else { RETRY };
                }
            }
        }
    }

    /// Before every list was complete nothing is done; what cannot be listed is said, and looked at again soon.
    fn wait(&self) -> bool {
        let why = self.caches.why_not();
        let waits = why.is_some();
        if self.metrics.waits_for(why.clone())
            && let Some(why) = why
        {
            warn!("leading, but waiting: {why}");
        }
        // A leader that waits does not hang.
        set(&self.metrics.last_round, seconds(now()));
        !waits
    }

    async fn event(&self, event: Event) {
        self.recorder.lock().await.tell(event).await;
    }

    /// One look at everything; false when something has to be tried again soon.
    async fn round(&self) -> bool {
        if self.metrics.waits_for(None) {
            info!("all that is needed is there: acting");
        }
        let mut troubles = Vec::new();
        let ca = match self.authority().await {
            Ok(ca) => ca,
            Err(trouble) => {
                warn!(reason = trouble.reason, "{}", trouble.message);
                troubles.push(trouble);
                None
            }
        };
        let mut well = troubles.is_empty();
        if let Some(ca) = &ca {
            well &= self.rotate(ca, &mut troubles).await;
            well &= self.sign(ca, &mut troubles).await;
        }
        well &= self.tidy().await;
        well &= self.taints().await;
        well &= self.tell(&troubles).await;
        if !well {
            add(&self.metrics.errors);
        }
        add(&self.metrics.rounds);
        set(&self.metrics.last_round, seconds(now()));
        well
    }

    /// Says what failed; true when nothing did. What was changed or removed meanwhile is looked at again by its event.
    fn went(&self, what: &str, done: kube::Result<()>) -> bool {
        match done {
            Err(error) if !is_stale(&error) => {
                warn!("{}", explain(what, &error));
                false
            }
            _ => true,
        }
    }

    // --- The CA ---

    /// The CA, made when it is missing and may be made here. `None`: there is none yet, or others sign.
    async fn authority(&self) -> Result<Option<Ca>, Trouble> {
        let broken = |error: CaError| Trouble {
            reason: "CAUnusable",
            message: error.to_string(),
        };
        let secret = self.secret();
        let ca = match (self.settings.ca, secret) {
            (CaMode::None, _) => return Ok(None),
            (CaMode::Generate, Some(secret)) => Ca::own(&secret, now()).map_err(broken)?,
            (CaMode::Secret, Some(secret)) => {
                Ca::given(&secret, self.told().as_ref(), now()).map_err(broken)?
            }
            (CaMode::Generate, None) => {
                self.make_ca().await?;
                return Ok(None);
            }
            (CaMode::Secret, None) => {
                set(&self.metrics.ca_not_after, 0);
                return Err(Trouble {
                    reason: "NoCA",
                    message: format!(
                        "Secret {}/{} is missing: make it (kubectl create secret tls {} --cert ca.crt --key ca.key), or have cert-manager make it, or start the controller with --ca generate",
                        self.settings.namespace,
                        ca::SECRET,
                        ca::SECRET
                    ),
                });
            }
        };
        let until = ca.authority.anchor().validity().until;
        set(&self.metrics.ca_not_after, seconds(until));
        Ok(Some(ca))
    }

    /// By `create`, which never overwrites: of two replicas that do this at once, one makes it.
    async fn make_ca(&self) -> Result<(), Trouble> {
        let failed = |message: String| Trouble {
            reason: "NoCA",
            message,
        };
        let secret =
            ca::make(now(), self.settings.labels()).map_err(|error| failed(error.to_string()))?;
        match self.secrets().create(&PostParams::default(), &secret).await {
            Ok(_) => {
                info!(secret = ca::SECRET, "CA made");
                self.tell_of_ca("CAMade", "a CA was made for the nodes' certificates")
                    .await;
            }
            Err(error) if is_code(&error, 409) => {}
            Err(error) => return Err(failed(explain("create secrets", &error))),
        }
        Ok(())
    }

    async fn tell_of_ca(&self, reason: &str, note: &str) {
        let policies = self.caches.policies.state();
        let mut named = policies
            .iter()
            .filter(|policy| policy.name_any() == status::POLICY);
        let event = events::of_ca(named.next().map(AsRef::as_ref), reason, note);
        self.event(event).await;
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    fn secret(&self) -> Option<Arc<Secret>> {
        self.caches.secret.state().into_iter().next()
    }

    fn told(&self) -> Option<Trust> {
        ca::told(self.caches.trust.state().first()?.as_ref())
    }

    /// One step of keeping agents' trust and the CA in order; its own event brings the next round.
    async fn rotate(&self, ca: &Ca, troubles: &mut Vec<Trouble>) -> bool {
        let stage = ca.authorities.stage() as i64;
        if self.metrics.rotation.swap(stage, Ordering::Relaxed) != stage {
            set(&self.metrics.rotation_since, seconds(now()));
        }
        let step = ca.authorities.step(self.told().as_ref(), &self.reports());
        match step {
            Step::Rest => true,
            Step::Tell(trust) => self.tell_agents(&trust).await,
            Step::Begin => {
                self.replace_secret(BEGUN, |secret| ca::begun(secret, now()))
                    .await
            }
            Step::Switch if self.settings.ca == CaMode::Generate => {
                self.replace_secret(SWITCHED, ca::switched).await
            }
            Step::Finish if self.settings.ca == CaMode::Generate => {
                let finished = |secret| Ok(ca::finished(secret));
                self.replace_secret(FINISHED, finished).await
            }
            // A CA that others replaced: what is there is known by the ConfigMap alone.
            Step::Switch | Step::Finish => {
                let mut after = ca.authorities.clone();
                after.replaced = None;
                if step == Step::Finish {
                    after.previous.clear();
                }
                let well = self.tell_agents(&after.trust()).await;
                if well {
                    let (reason, note) = if step == Step::Finish {
                        FINISHED
                    } else {
                        SWITCHED
                    };
                    self.tell_of_ca(reason, note).await;
                }
                well
            }
            Step::Wait(stage, nodes) => {
                let since = self.metrics.rotation_since.load(Ordering::Relaxed);
                troubles.extend(waiting(stage, &nodes, since));
                true
            }
        }
    }

    /// Of the nodes that there are; what a removed node said no longer counts.
    fn reports(&self) -> Vec<Report> {
        let members = self.members().into_iter();
        members
            .map(|(_, member)| {
                let certificate = member.status.certificate;
                Report {
                    node: member.name,
                    trust: certificate.as_ref().map(|c| c.trust.clone()),
                    issuer: certificate.map(|c| c.issuer),
                }
            })
            .collect()
    }

    async fn replace_secret(
        &self,
        (reason, note): (&str, &str),
        change: impl FnOnce(Secret) -> Result<Secret, CaError>,
    ) -> bool {
        let Some(secret) = self.secret() else {
            return true;
        };
        let changed = match change((*secret).clone()) {
            Ok(changed) => changed,
            Err(error) => {
                warn!("{error}");
                return false;
            }
        };
        let done = self
            .secrets()
            .replace(ca::SECRET, &PostParams::default(), &changed)
            .await;
        if done.is_ok() {
            info!(secret = ca::SECRET, reason, "{note}");
            self.tell_of_ca(reason, note).await;
        }
        self.went("update secrets", done.map(drop))
    }

    async fn tell_agents(&self, trust: &Trust) -> bool {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let data = [(ca::BUNDLE.to_owned(), trust.bundle.pem())];
        let annotations = [(ca::SIGNER.to_owned(), trust.signer.clone())];
        let current = self.caches.trust.state().into_iter().next();
        let done = match current {
            Some(map) => {
                let patch = json!({
                    "metadata": {
                        "resourceVersion": map.metadata.resource_version,
                        "annotations": {ca::SIGNER: trust.signer},
                    },
                    "data": {ca::BUNDLE: trust.bundle.pem()},
                });
                let (params, patch) = merge(&patch);
                api.patch(ca::TRUST, &params, &patch).await
            }
            None => {
                let map = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(ca::TRUST.into()),
                        labels: Some(self.settings.labels()),
                        annotations: Some(annotations.into()),
                        ..ObjectMeta::default()
                    },
                    data: Some(data.into()),
                    ..ConfigMap::default()
                };
                api.create(&PostParams::default(), &map).await
            }
        };
        if done.is_ok() {
            let cas = trust.bundle.anchors().len();
            // Its beginning is enough to know it by, and does not look like a key to whoever searches logs for keys.
            let signer = trust.signer.get(..16).unwrap_or(&trust.signer);
            info!(config_map = ca::TRUST, cas, signer, "trust bundle written");
        }
        self.went("write configmaps", done.map(drop))
    }

    // --- Requests ---

    async fn sign(&self, ca: &Ca, troubles: &mut Vec<Trouble>) -> bool {
        let csrs = self.caches.csrs.state();
        let open = csrs
            .iter()
            .filter(|csr| signer::state(csr) != signer::State::Through);
        let handled = futures_util::stream::iter(open)
            .map(|csr| async move { (csr, self.signer.handle(csr, &ca.authority, now()).await) })
            .buffer_unordered(AT_ONCE);
        let outcomes: Vec<_> = handled.collect().await;
        let mut well = true;
        for (csr, outcome) in outcomes {
            match outcome {
                Ok(outcome) => {
                    match outcome {
                        Outcome::Issued { .. } => add(&self.metrics.issued),
                        Outcome::Refused(_) => add(&self.metrics.refused),
                        Outcome::Overtaken => {}
                    }
                    if let Some(event) = events::of_request(csr, &outcome) {
                        self.event(event).await;
                    }
                }
                Err(error) => {
                    well = false;
                    let message = match &error {
                        signer::SignError::Api(error) => explain("sign certificates", error),
                        signer::SignError::Ca(_) => error.to_string(),
                    };
                    warn!("{message}");
                    if troubles.iter().all(|known| known.reason != "SigningFails") {
                        troubles.push(Trouble {
                            reason: "SigningFails",
                            message,
                        });
                    }
                }
            }
        }
        well
    }

    /// Removes what is no longer of use: requests that are through, and what nodes said that are gone.
    async fn tidy(&self) -> bool {
        let mut well = true;
        for csr in self.caches.csrs.state() {
            let done = self.signer.tidy(&csr, now()).await;
            well &= self.went("delete certificatesigningrequests", done);
        }
        for mesh in self.caches.mesh.state() {
            if self.node_of(&mesh).is_none() {
                let done = self.forget(&mesh).await;
                well &= self.went("delete meshnodes", done);
            }
        }
        well
    }

    /// The watch of Nodes may be behind that of MeshNodes: the API server is asked.
    async fn forget(&self, mesh: &MeshNode) -> kube::Result<()> {
        let name = mesh.name_any();
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = nodes.get_opt(&name).await?;
        if node.is_some_and(|node| is_of(mesh, &node)) {
            return Ok(());
        }
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: mesh.uid(),
            resource_version: mesh.resource_version(),
        });
        Api::<MeshNode>::all(self.client.clone())
            .delete(&name, &params)
            .await?;
        info!(node = name, "MeshNode of a node that is gone was removed");
        Ok(())
    }

    // --- Nodes ---

    /// The Node that this is about, when there is one.
    fn node_of(&self, mesh: &MeshNode) -> Option<Arc<Node>> {
        let node = self.caches.nodes.get(&ObjectRef::new(&mesh.name_any()))?;
        is_of(mesh, &node).then_some(node)
    }

    fn members(&self) -> Vec<(Arc<Node>, Member)> {
        let mesh = self.caches.mesh.state();
        mesh.iter()
            .filter_map(|mesh| {
                let node = self.node_of(mesh)?;
                let member = Member::new(mesh, is_alive(&node));
                Some((node, member))
            })
            .collect()
    }

    async fn taints(&self) -> bool {
        let Some(key) = &self.settings.taint else {
            return true;
        };
        let api: Api<Node> = Api::all(self.client.clone());
        let mut well = true;
        for (node, member) in self.members() {
            let said = conditions::find(&member.status.conditions, READY);
            // A node that says nothing, or that nobody can tell of, keeps what it has.
            let ready = match said.map(|condition| condition.status) {
                Some(ConditionStatus::True) => true,
                Some(ConditionStatus::False) => false,
                _ => continue,
            };
            let Some(taints) = taint::wanted(&node, key, ready) else {
                continue;
            };
            let done = taint::write(&api, &node, &taints).await;
            if matches!(done, Ok(true)) {
                self.event(events::of_taint(&member.name, key, said)).await;
            }
            well &= self.went("patch nodes", done.map(drop));
        }
        well
    }

    // --- Status ---

    async fn tell(&self, troubles: &[Trouble]) -> bool {
        let members: Vec<Member> = self.members().into_iter().map(|(_, m)| m).collect();
        let api: Api<EncryptionPolicy> = Api::all(self.client.clone());
        let mut well = true;
        for policy in self.caches.policies.state() {
            let status = status::sum(&policy, &members, troubles, &conditions::now());
            if policy.name_any() == status::POLICY {
                let nodes = &status.nodes;
                set(&self.metrics.nodes, nodes.total.into());
                set(&self.metrics.nodes_ready, nodes.ready.into());
                set(&self.metrics.nodes_encrypted, nodes.encrypted.into());
            }
            if policy.status.as_ref() == Some(&status) {
                continue;
            }
            let name = policy.name_any();
            let apply = json!({
                "apiVersion": "espalier.dev/v1alpha1",
                "kind": "EncryptionPolicy",
                "metadata": {"name": name},
                "status": status,
            });
            let params = PatchParams::apply(FIELD_MANAGER).force();
            let done = api
                .patch_status(&name, &params, &Patch::Apply(&apply))
                .await;
            if done.is_ok() {
                for event in events::of_policy(&policy, &status) {
                    self.event(event).await;
                }
            }
            well &= self.went("patch encryptionpolicies/status", done.map(drop));
        }
        well
    }
}

/// What a rotation waits for, when that takes long: a moment it always takes.
fn waiting(stage: Stage, nodes: &[String], since: i64) -> Option<Trouble> {
    let what = match stage {
        Stage::Distribute => "to say that they trust the new CA",
        _ => "to say that they have a certificate of the new CA",
    };
    let message = format!(
        "the CA rotation waits for {} nodes {what} (first: {}); a node that is gone for good is no longer waited for when its Node is deleted",
        nodes.len(),
        nodes.first().map_or("", String::as_str)
    );
    let long = seconds(now()) - since > seconds(PATIENCE);
    long.then(|| {
        warn!("{message}");
        Trouble {
            reason: "CARotationWaits",
            message,
        }
    })
}

/// A Node that was made anew under the same name is another.
fn is_of(mesh: &MeshNode, node: &Node) -> bool {
    let owners = mesh.metadata.owner_references.iter().flatten();
    let owner = owners
        .filter(|owner| owner.kind == "Node")
        .map(|owner| &owner.uid)
        .next();
    let said = mesh.status.as_ref().map(|status| &status.node_uid);
    let uid = said.filter(|uid| !uid.is_empty()).or(owner);
    uid.is_none_or(|uid| node.metadata.uid.as_ref() == Some(uid))
}

/// Whether its kubelet reports; a node without the condition is just being made.
fn is_alive(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    ready.all(|condition| condition.status != "Unknown")
}

#[cfg(test)]
mod tests;
