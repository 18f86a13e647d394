//! What an agent knows of its node, and how it is told in a MeshNode.

use espalier_api::conditions::{
    Condition, DEGRADED, ENCRYPTED, ENFORCED, PROGRESSING, READY, keep_times,
};
use espalier_api::{CertificateStatus, MeshNodeStatus, PairCounts};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Longest text of a condition; the API server takes more, people do not.
const MESSAGE_MAX: usize = 1024;
/// Problems in a status; a mesh may have one for each of thousands of nodes.
const PROBLEMS_MAX: usize = 20;

/// What an agent knows of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// metadata.uid of the Node; `None`: not known yet, and nothing is written before it is.
    pub node_uid: Option<String>,
    /// Of the agent.
    pub version: String,
    /// userspace, kernel or unreachable.
    pub dataplane: String,
    /// Disabled, Permissive or Required.
    pub mode: String,
    /// Of the policy in force.
    pub generation: i64,
    /// Of pods.
    pub mtu: u32,
    /// By what is sent.
    pub pairs: PairCounts,
    /// Pairs that refuse clear packets in both directions.
    pub enforced: i32,
    /// In force.
    pub certificate: Option<CertificateStatus>,
    /// Why the policy cannot be enforced; empty: ready.
    pub not_ready: Vec<String>,
    /// What has to be mended, the above too.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether the node can enforce its policy.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.not_ready.is_empty()
    }

    /// As a status; conditions that are as in `old` keep their times.
    #[must_use]
    pub fn status(&self, old: &[Condition], now: &Time) -> MeshNodeStatus {
        let mut conditions = self.conditions(now);
        keep_times(&mut conditions, old);
        let mut problems: Vec<String> = self.problems.iter().take(PROBLEMS_MAX).cloned().collect();
        if let Some(more) = self
            .problems
            .len()
            .checked_sub(PROBLEMS_MAX)
            .filter(|n| *n > 0)
        {
            problems.push(format!(
                "and {more} more; see `espalier status` on the node"
            ));
        }
        MeshNodeStatus {
            node_uid: self.node_uid.clone().unwrap_or_default(),
            version: self.version.clone(),
            dataplane: self.dataplane.clone(),
            mode: self.mode.clone(),
            observed_policy_generation: self.generation,
            mtu: i32::try_from(self.mtu).unwrap_or(i32::MAX),
            pairs: self.pairs,
            certificate: self.certificate.clone(),
            problems,
            conditions,
        }
    }

    fn conditions(&self, now: &Time) -> Vec<Condition> {
        let told = [
            (READY, self.ready_condition()),
            (ENCRYPTED, self.encrypted()),
            (ENFORCED, self.enforced()),
            (PROGRESSING, self.progressing()),
            (DEGRADED, self.degraded()),
        ];
        let condition = |(type_, (holds, reason, message)): (&str, Told)| {
            Condition::new(type_, holds, reason, now.clone())
                .saying(message)
                .about(self.generation)
        };
        told.into_iter().map(condition).collect()
    }

    fn ready_condition(&self) -> Told {
        if self.ready() {
            return (
                true,
                "EspalierIsUp",
                "the node can enforce the policy".to_owned(),
            );
        }
        (false, "EspalierNotReady", joined(&self.not_ready))
    }

    fn encrypted(&self) -> Told {
        let PairCounts {
            total,
            encrypted,
            authenticated,
            ..
        } = self.pairs;
        let count = format!("{encrypted} of {total} pairs are encrypted");
        if self.mode == "Disabled" && (total == 0 || encrypted < total) {
            (
                false,
                "Disabled",
                format!("the policy's mode is Disabled; {count}"),
            )
        } else if total == 0 {
            (true, "NoPeers", "there is no other node".to_owned())
        } else if encrypted == total {
            (true, "AllPairsEncrypted", count)
        } else if encrypted + authenticated == total {
            let message =
                format!("{count}, {authenticated} are authenticated only, as the policy says");
            (false, "AuthenticatedOnly", message)
        } else {
            (false, "PairsNotEncrypted", count)
        }
    }

    fn enforced(&self) -> Told {
        let total = self.pairs.total;
        let count = format!("{} of {total} pairs refuse clear packets", self.enforced);
        if self.mode != "Required" {
            (
                false,
                "NotRequired",
                format!("the policy's mode is {}; {count}", self.mode),
            )
        } else if self.enforced == total && self.ready() {
            (true, "ClearRefused", count)
        } else {
            (false, "ClearPossible", count)
        }
    }

    fn progressing(&self) -> Told {
        let PairCounts {
            total,
            encrypted,
            authenticated,
            ..
        } = self.pairs;
        let protected = encrypted + authenticated;
        let wanted = if self.mode == "Disabled" { 0 } else { total };
        let enforced = self.mode != "Required" || self.enforced == total;
        if protected == wanted && enforced {
            return (
                false,
                "Done",
                format!("all {total} pairs are as the policy says"),
            );
        }
        let message = format!(
            "{protected} of {total} pairs are protected, {} refuse clear packets; the mode is {}",
            self.enforced, self.mode
        );
        (true, "PairsChanging", message)
    }

    fn degraded(&self) -> Told {
        let blocked = self.pairs.blocked;
        if blocked > 0 {
            let message =
                format!("{blocked} pairs are blocked: they may not send clear and have no SAs");
            let all = [vec![message], self.problems.clone()].concat();
            return (true, "PairsBlocked", joined(&all));
        }
        if self.problems.is_empty() {
            return (false, "NoProblems", String::new());
        }
        (true, "Problems", joined(&self.problems))
    }
}

/// Whether it holds, why in a word, and for people.
type Told = (bool, &'static str, String);

fn joined(texts: &[String]) -> String {
    let mut all = texts.join("; ");
    if all.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX).rev().find(|at| all.is_char_boundary(*at));
        all.truncate(end.unwrap_or(0));
        all.push('…');
    }
    all
}

#[cfg(test)]
mod tests {
    use espalier_api::conditions::{find, now};

    use super::*;

    fn report(mode: &str, encrypted: i32, enforced: i32) -> Report {
        Report {
            mode: mode.to_owned(),
            pairs: PairCounts {
                total: 3,
                encrypted,
                clear: 3 - encrypted,
                ..PairCounts::default()
            },
            enforced,
            ..Report::default()
        }
    }

    /// Ready, Encrypted, Enforced, Progressing, Degraded.
    fn conditions(report: &Report) -> [bool; 5] {
        let status = report.status(&[], &now());
        [READY, ENCRYPTED, ENFORCED, PROGRESSING, DEGRADED]
            .map(|type_| find(&status.conditions, type_).unwrap().holds())
    }

    #[test]
    fn a_toggle_is_seen_in_the_conditions() {
        for (report, expected) in [
            (report("Disabled", 0, 0), [true, false, false, false, false]),
            (
                report("Permissive", 1, 0),
                [true, false, false, true, false],
            ),
            (
                report("Permissive", 3, 0),
                [true, true, false, false, false],
            ),
            (report("Required", 3, 1), [true, true, false, true, false]),
            (report("Required", 3, 3), [true, true, true, false, false]),
            (report("Disabled", 2, 0), [true, false, false, true, false]),
        ] {
            assert_eq!(conditions(&report), expected, "{report:?}");
        }
    }

    #[test]
    fn problems_and_unreadiness_are_told() {
        let mut bad = report("Required", 3, 3);
        bad.not_ready = vec!["no data plane; start it".to_owned()];
        bad.problems = (0..30)
            .map(|n| format!("problem {n}: {}", "é".repeat(100)))
            .collect();
        assert_eq!(conditions(&bad), [false, true, false, false, true]);
        let status = bad.status(&[], &now());
        assert_eq!(
            find(&status.conditions, READY).unwrap().message,
            "no data plane; start it"
        );
        assert_eq!(status.problems.len(), PROBLEMS_MAX + 1);
        assert!(find(&status.conditions, DEGRADED).unwrap().message.len() <= MESSAGE_MAX + 3);
    }
}
