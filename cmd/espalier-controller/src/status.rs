//! What the nodes say of themselves, summed up into `EncryptionPolicy.status`.

use espalier_api::conditions::{
    self, Condition, ConditionStatus, DEGRADED, ENCRYPTED, ENFORCED, PROGRESSING, READY,
};
use espalier_api::{
    EncryptionPolicy, EncryptionPolicyStatus, MeshNode, MeshNodeStatus, NodeCounts, PairCounts,
    PolicyMode, read_value,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

/// The policy that is in force.
pub(crate) const POLICY: &str = "default";
/// Names in a message; more are counted.
const NAMED: usize = 5;

/// A node of the mesh.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) status: MeshNodeStatus,
    /// Its kubelet is alive as Kubernetes sees it: else what it said last may no longer hold.
    pub(crate) alive: bool,
}

impl Member {
    pub(crate) fn new(mesh: &MeshNode, alive: bool) -> Self {
        Self {
            name: mesh.metadata.name.clone().unwrap_or_default(),
            status: mesh.status.clone().unwrap_or_default(),
            alive,
        }
    }

    fn says(&self, type_: &str) -> bool {
        conditions::find(&self.status.conditions, type_).is_some_and(Condition::holds)
    }

    fn is_ready(&self) -> bool {
        self.alive && self.says(READY)
    }

    /// Its name and, in brackets, why `type_` is as it is.
    fn with_reason(&self, type_: &str) -> String {
        let why = match conditions::find(&self.status.conditions, type_) {
            _ if !self.alive => "the Node is not ready",
            Some(condition) if condition.message.is_empty() => &condition.reason,
            Some(condition) => &condition.message,
            None => "it has not said yet",
        };
        format!("{} ({why})", self.name)
    }
}

/// Something that is wrong beside the nodes, such as the CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// One word.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// Why the policy cannot be followed: what the CRD's rules (CEL) refuse, for servers without CEL, and what they cannot say.
pub(crate) fn invalid(policy: &EncryptionPolicy) -> Option<String> {
    let value = json!({
        "apiVersion": "espalier.dev/v1alpha1",
        "kind": "EncryptionPolicy",
        "metadata": {"name": policy.metadata.name},
        "spec": policy.spec,
    });
    match read_value("the API server", value)? {
        Ok(_) => None,
        Err(problem) => Some(problem.what),
    }
}

/// The policy's status. Conditions that are as they were keep their time.
pub(crate) fn sum(
    policy: &EncryptionPolicy,
    members: &[Member],
    troubles: &[Trouble],
    now: &Time,
) -> EncryptionPolicyStatus {
    let generation = policy.metadata.generation.unwrap_or_default();
    let view = View {
        mode: policy.spec.mode,
        generation,
        members,
        troubles,
        now,
        invalid: invalid(policy),
    };
    let mut conditions = vec![
        view.ready(),
        view.encrypted(),
        view.enforced(),
        view.progressing(),
        view.degraded(),
    ];
    if let Some(old) = &policy.status {
        conditions::keep_times(&mut conditions, &old.conditions);
    }
    EncryptionPolicyStatus {
        observed_generation: generation,
        nodes: view.nodes(),
        pairs: view.pairs(),
        conditions,
    }
}

struct View<'a> {
    mode: PolicyMode,
    generation: i64,
    members: &'a [Member],
    troubles: &'a [Trouble],
    now: &'a Time,
    invalid: Option<String>,
}

impl View<'_> {
    fn count(&self, is: impl Fn(&Member) -> bool) -> i32 {
        let count = self.members.iter().filter(|member| is(member)).count();
        i32::try_from(count).unwrap_or(i32::MAX)
    }

    fn nodes(&self) -> NodeCounts {
        NodeCounts {
            total: self.count(|_| true),
            ready: self.count(Member::is_ready),
            encrypted: self.count(|member| member.says(ENCRYPTED)),
            enforced: self.count(|member| member.says(ENFORCED)),
        }
    }

    fn pairs(&self) -> PairCounts {
        let mut sum = PairCounts::default();
        for member in self.members {
            let pairs = &member.status.pairs;
            sum.total += pairs.total;
            sum.encrypted += pairs.encrypted;
            sum.authenticated += pairs.authenticated;
            sum.clear += pairs.clear;
            sum.blocked += pairs.blocked;
        }
        sum
    }

    fn condition(
        &self,
        type_: &str,
        status: impl Into<ConditionStatus>,
        reason: &str,
        message: impl Into<String>,
    ) -> Condition {
        Condition::new(type_, status, reason, self.now.clone())
            .saying(message)
            .about(self.generation)
    }

    /// `2 of 3 nodes …: a (why), b (why)`, `None` when there are none.
    fn those(&self, type_: &str, what: &str, is: impl Fn(&Member) -> bool) -> Option<String> {
        let found: Vec<&Member> = self.members.iter().filter(|member| is(member)).collect();
        if found.is_empty() {
            return None;
        }
        let named = found
            .iter()
            .take(NAMED)
            .map(|member| member.with_reason(type_));
        let named = named.collect::<Vec<_>>().join(", ");
        let more = match found.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        let (some, all) = (found.len(), self.members.len());
        Some(format!("{some} of {all} nodes {what}: {named}{more}"))
    }

    /// What stands above all nodes: nothing holds then.
    fn beforehand(&self, type_: &str) -> Option<Condition> {
        if let Some(what) = &self.invalid {
            let message = format!("{what}; nodes keep the policy that they had");
            return Some(self.condition(type_, false, "InvalidSpec", message));
        }
        let message = "no node has said anything yet: are the pods of espalier-agent running?";
        self.members
            .is_empty()
            .then(|| self.condition(type_, false, "NoNodes", message))
    }

    fn ready(&self) -> Condition {
        if let Some(condition) = self.beforehand(READY) {
            return condition;
        }
        match self.those(READY, "cannot enforce the policy", |m| !m.is_ready()) {
            Some(message) => self.condition(READY, false, "NodesNotReady", message),
            None => self.condition(READY, true, "AllNodesReady", ""),
        }
    }

    fn encrypted(&self) -> Condition {
        if let Some(condition) = self.beforehand(ENCRYPTED) {
            return condition;
        }
        if self.mode == PolicyMode::Disabled && self.pairs().encrypted == 0 {
            let message = "spec.mode is Disabled: pod packets between nodes are sent in clear";
            return self.condition(ENCRYPTED, false, "ModeDisabled", message);
        }
        match self.those(ENCRYPTED, "do not encrypt with every other", |m| {
            !m.says(ENCRYPTED)
        }) {
            Some(message) => self.condition(ENCRYPTED, false, "NodesNotEncrypted", message),
            None => self.condition(ENCRYPTED, true, "AllPairsEncrypted", ""),
        }
    }

    fn enforced(&self) -> Condition {
        if let Some(condition) = self.beforehand(ENFORCED) {
            return condition;
        }
        if self.mode != PolicyMode::Required {
            let message = format!(
                "spec.mode is {:?}: clear packets are not refused everywhere",
                self.mode
            );
            return self.condition(ENFORCED, false, "ModeNotRequired", message);
        }
        match self.those(ENFORCED, "still take clear packets of some pair", |m| {
            !m.says(ENFORCED)
        }) {
            Some(message) => self.condition(ENFORCED, false, "NodesNotEnforcing", message),
            None => self.condition(ENFORCED, true, "AllPairsEnforced", ""),
        }
    }

    fn progressing(&self) -> Condition {
        if self.invalid.is_some() {
            let message = "nothing is on its way: the spec is refused";
            return self.condition(PROGRESSING, false, "InvalidSpec", message);
        }
        let behind = |m: &Member| m.status.observed_policy_generation < self.generation;
        if let Some(message) = self.those(PROGRESSING, "have not seen this policy yet", behind) {
            return self.condition(PROGRESSING, true, "NodesBehind", message);
        }
        match self.those(PROGRESSING, "are changing over", |m| m.says(PROGRESSING)) {
            Some(message) => self.condition(PROGRESSING, true, "PairsInTransition", message),
            None => self.condition(PROGRESSING, false, "Settled", ""),
        }
    }

    fn degraded(&self) -> Condition {
        if let Some(what) = &self.invalid {
            return self.condition(DEGRADED, true, "InvalidSpec", what.as_str());
        }
        if let Some(first) = self.troubles.first() {
            let all: Vec<&str> = self.troubles.iter().map(|t| t.message.as_str()).collect();
            return self.condition(DEGRADED, true, first.reason, all.join("; "));
        }
        match self.those(DEGRADED, "have problems", |m| m.says(DEGRADED)) {
            Some(message) => self.condition(DEGRADED, true, "NodesDegraded", message),
            None => self.condition(DEGRADED, false, "NoProblems", ""),
        }
    }
}

#[cfg(test)]
mod tests;
