//! Development only: tests with the real binaries, each in a sandbox of its own.
//!
//! ```text
//!   namespace node-1                       namespace node-2               gateway
//!   ┌─ pod ─┐                              ┌─ pod ─┐                   10.99.0.1
//!   │ eth0  │ 10.244.1.2                   │ eth0  │ 10.244.2.2            │ default route of every node
//!   └──┬────┘                              └──┬────┘                       │
//!      │ wired by espalier-cni                │                            │
//!   espalier-agent, espalier-dataplane     the same                        │
//!   eth0 10.99.0.11                        eth0 10.99.0.12                 │
//!      └───────────── br0 in namespace "wire": Watch captures here ────────┘
//! ```
//!
//! A test is `espalier_e2e::test("its_name", |bench| ...)`. It fails with the error's text, every node's status and the
//! last lines of every log; the logs are kept in `target/e2e/its_name`.

mod attacker;
mod bench;
mod binaries;
mod cluster;
mod flow;
mod flows;
mod monitor;
mod node;
mod pki;
mod plan;
mod pod;
mod secrets;
mod watch;
mod xfrm;

pub use attacker::{Attacker, INJECTED_PORT};
pub use bench::{Bench, Failure, LIMIT, run, test, until, until_within};
pub use binaries::FOLDER as BINARIES;
pub use cluster::{Cluster, Setup, blocked, encrypted, expect_words, on_path};
pub use flow::{
    Count, Flow, INTERVAL, Mark, exchange, exchange_on, send_numbered, send_numbered_to,
};
pub use flows::Flows;
pub use monitor::Monitor;
pub use node::{Auth, Node, Plane, one_datagram_a_frame};
pub use pki::Pki;
pub use plan::{
    Family, GATEWAY, GATEWAY_V6, MARKER, Mode, NEVER_SEEN, NEVER_SEEN_V6, POD_PORT, Shape,
    cluster_cidr, cluster_cidr_v6, name, node_manifest, pod_cidr, pod_cidr_v6, policy_manifest,
    policy_with, uid, underlay, underlay_v6,
};
pub use pod::Pod;
pub use watch::{Watch, complete};
pub use xfrm::{Policy, State, errors_between, policies, stat, states};
