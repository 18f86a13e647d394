//! Conditions, the same words on every one of our objects.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The node can enforce the policy; of a policy: every node can.
pub const READY: &str = "Ready";
/// Every pair is encrypted.
pub const ENCRYPTED: &str = "Encrypted";
/// Every pair refuses clear packets in both directions.
pub const ENFORCED: &str = "Enforced";
/// Pairs are on their way to what the policy wants.
pub const PROGRESSING: &str = "Progressing";
/// Something has to be mended; what, is in `problems`.
pub const DEGRADED: &str = "Degraded";

/// One condition (`metav1.Condition`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = no_defaults)]
pub struct Condition {
    /// Ready, Encrypted, Enforced, Progressing or Degraded.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub type_: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One word for programs, such as `AllPairsEncrypted`.
    pub reason: String,
    /// For people: cause and remedy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// metadata.generation of the policy that it is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// When `status` last changed.
    #[schemars(schema_with = "date_time")]
    pub last_transition_time: Time,
}

/// See [`Condition::status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell.
    Unknown,
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

impl Condition {
    /// A condition that came to be as it is at `now`; [`keep_times`] puts in an older time.
    #[must_use]
    pub fn new(type_: &str, status: impl Into<ConditionStatus>, reason: &str, now: Time) -> Self {
        Self {
            type_: type_.to_owned(),
            status: status.into(),
            reason: reason.to_owned(),
            message: String::new(),
            observed_generation: 0,
            last_transition_time: now,
        }
    }

    /// With a message for people.
    #[must_use]
    pub fn saying(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// About this generation of the policy.
    #[must_use]
    pub fn about(mut self, generation: i64) -> Self {
        self.observed_generation = generation;
        self
    }

    /// Whether it holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.status == ConditionStatus::True
    }
}

/// The one of this type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Gives conditions whose status is as in `old` the time from there: when they last changed.
pub fn keep_times(new: &mut [Condition], old: &[Condition]) {
    for condition in new {
        if let Some(before) = find(old, &condition.type_).filter(|b| b.status == condition.status) {
            condition.last_transition_time = before.last_transition_time.clone();
        }
    }
}

/// The time of the wall clock, in whole seconds, as `metav1.Time` has it.
#[must_use]
pub fn now() -> Time {
    let seconds = Timestamp::now().as_second();
    Time(Timestamp::from_second(seconds).unwrap_or_default())
}

/// A time since the epoch as `metav1.Time` has it.
#[must_use]
pub fn at(since_epoch: Duration) -> Time {
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
}

/// A status has what its writer wrote: the API server need not fill in the rest. And Kubernetes 1.20 takes no empty text as default.
pub(crate) fn no_defaults(schema: &mut schemars::Schema) {
    let properties = schema.get_mut("properties").and_then(|p| p.as_object_mut());
    for property in properties.into_iter().flat_map(|p| p.values_mut()) {
        if let Some(property) = property.as_object_mut() {
            property.remove("default");
        }
    }
}

pub(crate) fn date_time(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "format": "date-time" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_time_is_that_of_the_last_change_of_status() {
        let old = [
            Condition::new(READY, true, "EspalierIsUp", at(1)),
            Condition::new(ENCRYPTED, false, "Disabled", at(1)),
        ];
        let mut new = [
            Condition::new(READY, true, "EspalierIsUp", at(2)).saying("again"),
            Condition::new(ENCRYPTED, true, "AllPairsEncrypted", at(2)),
            Condition::new(DEGRADED, false, "NoProblems", at(2)),
        ];
        keep_times(&mut new, &old);
        let times: Vec<_> = new.iter().map(|c| c.last_transition_time.clone()).collect();
        assert_eq!(times, [at(1), at(2), at(2)]);
    }
}
