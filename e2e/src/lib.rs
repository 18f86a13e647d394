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

mod bench;
mod binaries;
mod cluster;
mod flow;
mod node;
mod pki;
mod plan;
mod pod;
mod secrets;
mod watch;

pub use bench::{Bench, LIMIT, test, until};
pub use cluster::{Cluster, blocked, encrypted, expect_words, on_path};
pub use flow::{Flow, Mark, exchange, send_numbered};
pub use node::{Auth, Node};
pub use pki::Pki;
pub use plan::{
    GATEWAY, MARKER, Mode, NEVER_SEEN, POD_PORT, cluster_cidr, name, node_manifest, pod_cidr,
    policy_manifest, policy_with, uid, underlay,
};
pub use pod::Pod;
pub use watch::Watch;
