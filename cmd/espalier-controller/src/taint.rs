//! The taint that keeps pods from a node that cannot enforce the policy.

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::Api;
use serde_json::json;
use tracing::info;

use crate::api::{is_stale, merge};

const EFFECT: &str = "NoSchedule";

/// The node's taints as they should be; `None`: they are. `ready` is what the node says of itself.
pub(crate) fn wanted(node: &Node, key: &str, ready: bool) -> Option<Vec<Taint>> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let mut taints = taints.cloned().unwrap_or_default();
    let ours = |taint: &Taint| taint.key == key;
    match (ready, taints.iter().any(ours)) {
        (true, true) => taints.retain(|taint| !ours(taint)),
        (false, false) => taints.push(Taint {
            key: key.to_owned(),
            effect: EFFECT.into(),
            ..Taint::default()
        }),
        _ => return None,
    }
    Some(taints)
}

/// Writes the node's taints. When the node was changed since it was read, nothing happens (false): the change brings it here again.
pub(crate) async fn write(api: &Api<Node>, node: &Node, taints: &[Taint]) -> kube::Result<bool> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let patch = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"taints": taints},
    });
    let (params, patch) = merge(&patch);
    match api.patch(name, &params, &patch).await {
        Ok(_) => {
            let keys: Vec<&str> = taints.iter().map(|taint| taint.key.as_str()).collect();
            info!(node = name, taints = ?keys, "taints changed");
            Ok(true)
        }
        Err(error) if is_stale(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    const KEY: &str = "node.espalier.dev/not-ready";
    const PATH: &str = "/api/v1/nodes/a";

    fn node(taints: &[(&str, &str)]) -> Node {
        let taints: Vec<_> = taints
            .iter()
            .map(|(key, effect)| json!({"key": key, "effect": effect}))
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"taints": taints}}))
            .unwrap()
    }

    fn keys(taints: Option<Vec<Taint>>) -> Option<Vec<String>> {
        taints.map(|all| all.into_iter().map(|taint| taint.key).collect())
    }

    #[test]
    fn only_the_own_taint_is_put_on_and_taken_off() {
        let other = ("node.kubernetes.io/unschedulable", "NoSchedule");
        let both = node(&[other, (KEY, "NoSchedule")]);
        let one = node(&[other]);
        assert_eq!(keys(wanted(&both, KEY, true)), Some(vec![other.0.into()]));
        assert_eq!(wanted(&both, KEY, false), None);
        assert_eq!(wanted(&one, KEY, true), None);
        assert_eq!(
            keys(wanted(&one, KEY, false)),
            Some(vec![other.0.into(), KEY.into()])
        );
        assert_eq!(
            keys(wanted(&Node::default(), KEY, false)),
            Some(vec![KEY.into()])
        );
        // Registered by the kubelet with another effect: it goes, too.
        let strict = node(&[(KEY, "NoExecute")]);
        assert_eq!(keys(wanted(&strict, KEY, true)), Some(vec![]));
    }

    #[tokio::test]
    async fn a_node_that_was_changed_meanwhile_is_not_overwritten() {
        let fake = Fake::default();
        fake.put(PATH, node(&[(KEY, "NoSchedule")]));
        let seen: Node = serde_json::from_value(fake.get(PATH).unwrap()).unwrap();
        let another = node(&[(KEY, "NoSchedule"), ("other", "NoExecute")]);
        fake.put(PATH, another);
        let api = Api::all(fake.client());
        assert!(!write(&api, &seen, &[]).await.unwrap());
        let taints = |fake: &Fake| fake.get(PATH).unwrap()["spec"]["taints"].clone();
        assert_eq!(taints(&fake).as_array().unwrap().len(), 2);
        let now: Node = serde_json::from_value(fake.get(PATH).unwrap()).unwrap();
        let wanted = wanted(&now, KEY, true).unwrap();
        assert!(write(&api, &now, &wanted).await.unwrap());
        assert_eq!(taints(&fake)[0]["key"], "other");
    }
}
