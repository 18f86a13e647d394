//! What must hold on any cluster; in this order, on one cluster.

mod cli;
mod cluster;
mod identity;
mod install;
mod mesh;
mod own_node;
mod peers;
mod plumbing;
mod restarts;
mod traces;
mod traffic;

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

/// Does it; returns a detail for the report.
type Run = fn(&mut Ground<'_>) -> Result<String>;

/// A case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// What it shows, in a line.
    pub(crate) shows: &'static str,
    pub(crate) needs: Needs,
    /// What is there after it: it also runs when a chosen case needs that.
    pub(crate) prepares: Option<Needs>,
    pub(crate) run: Run,
}

/// All, in order.
pub(crate) const ALL: &[Case] = &[
    Case {
        name: "cluster",
        shows: "nodes register, pods of the host network run, the APIs that Espalier needs answer",
        needs: Needs::Cluster,
        prepares: Some(Needs::Cluster),
        run: cluster::works,
    },
    Case {
        name: "plumbing",
        shows: "flows, Services and captures without Espalier: all arrives, all is seen in clear",
        needs: Needs::Cluster,
        prepares: None,
        run: plumbing::works,
    },
    Case {
        name: "install",
        shows: "`helm install`: all nodes ready and encrypted",
        needs: Needs::Installed,
        prepares: Some(Needs::Installed),
        run: install::install,
    },
    installed(
        "pods",
        "pods of all nodes reach each other, encrypted",
        traffic::pods,
    ),
    installed(
        "services",
        "a Service of kube-proxy leads to pods of all nodes, from pods and hosts",
        traffic::services,
    ),
    installed(
        "host_to_pod",
        "hosts reach pods of every node",
        traffic::host_to_pod,
    ),
    installed(
        "pod_to_host",
        "pods reach the hosts of every node",
        traffic::pod_to_host,
    ),
    installed(
        "pod_to_outside",
        "pods reach what is beyond the default gateway",
        traffic::pod_to_outside,
    ),
    installed(
        "leak_check",
        "Disabled shows the packets that Required hides: the check can fail",
        traffic::leak_check,
    ),
    installed(
        "cli",
        "the command line from an admin's machine: status, peers, verify, support-bundle",
        cli::works,
    ),
    installed(
        "toggle",
        "Required, Permissive, Disabled and back under load: nothing lost",
        traffic::toggle,
    ),
    installed(
        "native_routing",
        "`overlay: None`: pods, Services and hosts as before, and all modes under load: nothing lost",
        traffic::native,
    ),
    installed(
        "agents_deleted",
        "all agent pods deleted under load: nothing lost",
        restarts::agents_deleted,
    ),
    installed(
        "controllers_deleted",
        "all controller pods deleted under load: nothing lost, another leads",
        restarts::controllers_deleted,
    ),
    installed(
        "dataplane_deleted",
        "the data plane pod of a node deleted under load: nothing in clear, loss measured",
        restarts::dataplane_deleted,
    ),
    installed(
        "agent_rollout",
        "rolling upgrade of the agents under load: nothing lost",
        restarts::agent_rollout,
    ),
    installed(
        "dataplane_upgrade",
        "every data plane replaced in place under load: nothing lost",
        restarts::dataplane_upgrade,
    ),
    installed(
        "api_server",
        "the API server away for a while under load: nothing lost",
        restarts::api_server,
    ),
    installed(
        "ca_rotation",
        "the CA replaced under load: nothing lost",
        identity::rotation,
    ),
    installed(
        "wrong_request_refused",
        "another node's identity asked with a stolen token, or with one of no pod: refused",
        identity::wrong_request_refused,
    ),
    installed(
        "own_node_only",
        "another node's objects written with a stolen token: refused by the API server, where it can (1.32)",
        own_node::own_node_only,
    ),
    installed(
        "invalid_policy_refused",
        "what is no policy is refused and changes nothing",
        identity::invalid_policy_refused,
    ),
    installed(
        "helm_upgrade",
        "`helm upgrade` with other values under load: nothing lost",
        install::upgrade,
    ),
    installed(
        "node_rejoined",
        "a node drained, deleted, joined again with the same name: nothing lost between the others",
        restarts::rejoined,
    ),
    installed(
        "helm_uninstall",
        "`helm uninstall` leaves nothing on the nodes and in the API",
        install::uninstall,
    ),
];

const fn installed(name: &'static str, shows: &'static str, run: Run) -> Case {
    Case {
        name,
        shows,
        needs: Needs::Installed,
        prepares: None,
        run,
    }
}

/// One line per case.
pub(crate) fn list() -> String {
    let mut out = String::new();
    for case in ALL {
        let _ok = writeln!(out, "{:<24} {}", case.name, case.shows);
    }
    out
}
