//! What must hold on any cluster; in this order, on one cluster.

mod cluster;

use std::fmt::Write as _;

use anyhow::Result;

use crate::ground::Ground;

/// Namespace of the release.
pub(crate) const NAMESPACE: &str = "espalier-system";

/// What must be there before a case runs; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Needs {
    /// The cluster.
    Cluster,
    /// Espalier in it.
    Installed,
}

/// A case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// What it shows, in a line.
    pub(crate) shows: &'static str,
    pub(crate) needs: Needs,
    /// What is there after it: it also runs when a chosen case needs that.
    pub(crate) prepares: Option<Needs>,
    /// Returns a detail for the report.
    pub(crate) run: fn(&mut Ground<'_>) -> Result<String>,
}

/// All, in order.
pub(crate) const ALL: &[Case] = &[Case {
    name: "cluster",
    shows: "nodes register, pods of the host network run, the APIs that Espalier needs answer",
    needs: Needs::Cluster,
    prepares: Some(Needs::Cluster),
    run: cluster::works,
}];

/// One line per case.
pub(crate) fn list() -> String {
    let mut out = String::new();
    for case in ALL {
        let _ok = writeln!(out, "{:<24} {}", case.name, case.shows);
    }
    out
}
