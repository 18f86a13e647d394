//! Kernels and cases.

use std::fmt::Write as _;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::cases::{self, Run};
use crate::programs::Tests;

/// The group of the tests of `e2e/`, which take long.
const MESH: &str = "mesh";

/// A guest kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Kernel {
    UmlBookworm,
    UmlTrixie,
    UmlSid,
    /// Two processors, emulated.
    QemuSid,
}

impl Kernel {
    /// Arguments of scripts/kernel/fetch.sh.
    pub(crate) fn fetched_by(self) -> [&'static str; 2] {
        match self {
            Self::UmlBookworm => ["uml", "bookworm"],
            Self::UmlTrixie => ["uml", "trixie"],
            Self::UmlSid => ["uml", "sid"],
            Self::QemuSid => ["qemu", "sid"],
        }
    }

    pub(crate) fn name(self) -> String {
        self.fetched_by().join("-")
    }

    /// Whether the case is meant for it.
    pub(crate) fn has(self, case: &Case) -> bool {
        match case.set {
            Set::PerCpu => self == Self::QemuSid,
            Set::Core | Set::Once => self != Self::QemuSid,
            Set::Named => false,
        }
    }

    /// Whether the tests of that program are: a guest that does not see this machine's files has no test programs.
    pub(crate) fn has_tests(self, tests: &Tests) -> bool {
        match self {
            Self::UmlBookworm => true,
            Self::UmlTrixie | Self::UmlSid => tests.group != MESH,
            Self::QemuSid => false,
        }
    }
}

/// Which data plane the nodes are to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Expected {
    /// What they choose by themselves, and that must be the kernel's.
    #[default]
    Kernel,
    /// They are told.
    Userspace,
    /// What they choose by themselves, whatever that is: to try the harness.
    Any,
}

/// Where a case is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// On every kernel of user-mode Linux.
    Core,
    /// On the oldest only, since it takes long or depends little on the kernel's version.
    Once,
    /// On the guest with several processors.
    PerCpu,
    /// Where it is named: it needs what the others do not.
    Named,
}

/// A case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) set: Set,
    pub(crate) run: Run,
    /// It changes the kernel: others run before it.
    pub(crate) alone: bool,
}

impl Case {
    /// It has ended by then, with everything that it waits for.
    pub(crate) fn limit(&self) -> Duration {
        match self.name {
            "rekeys" | "esp_dropped_falls_back_to_udp" | "per_cpu_states" => {
                Duration::from_secs(600)
            }
            "kubernetes_toggles" | "kubernetes_api_server_away" => Duration::from_secs(900),
            _ => Duration::from_secs(300),
        }
    }
}

pub(crate) fn find(name: &str) -> Option<&'static Case> {
    cases::ALL.iter().find(|case| case.name == name)
}

pub(crate) fn list() -> String {
    let mut out = String::new();
    for case in cases::ALL {
        let _ok = writeln!(out, "{:<40} {:?}", case.name, case.set);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit_for_folders() {
        let mut names: Vec<_> = cases::ALL.iter().map(|case| case.name).collect();
        let fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(names.iter().all(|name| name.chars().all(fit)));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), cases::ALL.len());
    }
}
