//! What an agent writes of its node: its MeshNode, the condition NetworkUnavailable of the Node, and events.

use std::time::Duration;

use espalier_api::conditions::{Condition, now};
use espalier_api::{MeshNode, MeshNodeStatus};
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Error, Resource as _};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::events;
use crate::keep::{Target, keep};
use crate::report::Report;

/// Of server-side apply.
const MANAGER: &str = "espalier-agent";
/// Between two writes of which the second has more than other counts.
const PACE: Duration = Duration::from_secs(1);
/// Between two writes of which the second has other counts only.
const PACE_OF_COUNTS: Duration = Duration::from_secs(10);
/// What did not change is written again after this time: somebody may have deleted it.
const REFRESH: Duration = Duration::from_secs(600);
/// For an answer.
const UID_PATIENCE: Duration = Duration::from_secs(5);
const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// Tells the API server about this node until nobody reports any more. Needs a tokio runtime.
pub fn tell(client: &Client, node: &str, reports: &watch::Receiver<Report>) {
    let mesh_node = MeshNodeTarget {
        api: Api::all(client.clone()),
        node: node.to_owned(),
        made_for: None,
        conditions: None,
    };
    tokio::spawn(keep(mesh_node, reports.clone()));
    let condition = ConditionTarget {
        api: Api::all(client.clone()),
        node: node.to_owned(),
    };
    tokio::spawn(keep(condition, reports.clone()));
    tokio::spawn(events::tell(
        client.clone(),
        node.to_owned(),
        reports.clone(),
    ));
}

/// UID of a Node, asked of the API server: before there is a policy no snapshot has it. `None`: there is no answer now.
pub async fn node_uid(client: &Client, node: &str) -> Option<String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let asked = tokio::time::timeout(UID_PATIENCE, nodes.get(node)).await;
    asked.ok()?.ok()?.metadata.uid
}

/// The MeshNode.
struct MeshNodeTarget {
    api: Api<MeshNode>,
    node: String,
    /// UID of the Node that owns it, once it is there.
    made_for: Option<String>,
    /// As written last; `None`: not read yet.
    conditions: Option<Vec<Condition>>,
}

impl Target for MeshNodeTarget {
    type Wanted = Report;

    fn what(&self) -> &'static str {
        "apply meshnodes.espalier.dev"
    }

    fn pace(&self, written: &Report, wanted: &Report) -> Duration {
        let counts_of = |report: &Report| Report {
            pairs: wanted.pairs,
            enforced: wanted.enforced,
            ..report.clone()
        };
        let conditions = |report: &Report| {
            let status = report.status(&[], &now());
            let told = status.conditions.into_iter();
            told.map(|c| (c.status, c.reason)).collect::<Vec<_>>()
        };
        if written == wanted {
            REFRESH
        } else if counts_of(written) == *wanted && conditions(written) == conditions(wanted) {
            PACE_OF_COUNTS
        } else {
            PACE
        }
    }

    async fn write(&mut self, report: &Report) -> kube::Result<()> {
        let Some(uid) = &report.node_uid else {
            return Ok(()); // written when it is known
        };
        if self.made_for.as_ref() != Some(uid) {
            self.make(uid).await?;
        }
        let old = self.conditions.clone().unwrap_or_default();
        let status = report.status(&old, &now());
        match self.apply_status(&status).await {
            // Somebody deleted it.
            Err(Error::Api(gone)) if gone.code == 404 => {
                self.make(uid).await?;
                self.apply_status(&status).await?;
            }
            other => other?,
        }
        self.conditions = Some(status.conditions);
        Ok(())
    }
}

impl MeshNodeTarget {
    async fn make(&mut self, uid: &str) -> kube::Result<()> {
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": uid});
        let object = self.object(json!({
            "metadata": {"name": self.node, "ownerReferences": [owner]}, "spec": {},
        }));
        let there = self
            .api
            .patch(&self.node, &apply(), &Patch::Apply(object))
            .await?;
        // An agent that starts again did not change its conditions by that.
        if self.conditions.is_none() {
            self.conditions = there.status.map(|status| status.conditions);
        }
        self.made_for = Some(uid.to_owned());
        Ok(())
    }

    async fn apply_status(&self, status: &MeshNodeStatus) -> kube::Result<()> {
        let object = self.object(json!({"metadata": {"name": self.node}, "status": status}));
        let patch = Patch::Apply(object);
        self.api
            .patch_status(&self.node, &apply(), &patch)
            .await
            .map(drop)
    }

    fn object(&self, mut object: Value) -> Value {
        object["apiVersion"] = MeshNode::api_version(&()).into();
        object["kind"] = MeshNode::kind(&()).into();
        object
    }
}

fn apply() -> PatchParams {
    PatchParams::apply(MANAGER).force()
}

/// The Node's condition NetworkUnavailable: the scheduler keeps pods away while it is True.
struct ConditionTarget {
    api: Api<Node>,
    node: String,
}

impl Target for ConditionTarget {
    type Wanted = Report;

    fn what(&self) -> &'static str {
        "patch nodes/status"
    }

    fn pace(&self, written: &Report, wanted: &Report) -> Duration {
        let (uid, wanted_uid) = (&written.node_uid, &wanted.node_uid);
        if written.ready() == wanted.ready() && uid == wanted_uid {
            REFRESH
        } else {
            PACE
        }
    }

    async fn write(&mut self, report: &Report) -> kube::Result<()> {
        if report.node_uid.is_none() {
            return Ok(());
        }
        let there = self.api.get(&self.node).await?;
        let conditions = there
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        let old = conditions
            .into_iter()
            .find(|c| c.type_ == NETWORK_UNAVAILABLE);
        let new = condition(report, old.as_ref());
        if old.is_some_and(|old| same(&old, &new)) {
            return Ok(());
        }
        let patch = Patch::Strategic(json!({"status": {"conditions": [new]}}));
        let params = PatchParams::default();
        self.api
            .patch_status(&self.node, &params, &patch)
            .await
            .map(drop)
    }
}

fn condition(report: &Report, old: Option<&NodeCondition>) -> NodeCondition {
    let (status, reason, message) = match report.ready() {
        true => (
            "False",
            "EspalierIsUp",
            "espalier-agent can enforce the policy".to_owned(),
        ),
        false => ("True", "EspalierNotReady", report.not_ready.join("; ")),
    };
    let unchanged = old.filter(|old| old.status == status);
    let since = unchanged.and_then(|old| old.last_transition_time.clone());
    NodeCondition {
        type_: NETWORK_UNAVAILABLE.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(now()),
        last_transition_time: Some(since.unwrap_or_else(now)),
    }
}

fn same(a: &NodeCondition, b: &NodeCondition) -> bool {
    (&a.status, &a.reason, &a.message) == (&b.status, &b.reason, &b.message)
}
