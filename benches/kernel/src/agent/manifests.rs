//! Nodes and policy as an admin writes them.

use std::net::{IpAddr, Ipv4Addr};

use espalier_bench_ike::plan;

/// Room for 16,383 nodes with a /24 each.
const CLUSTER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);

/// `spec.mode`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Policy {
    Disabled,
    Required,
}

/// The policy.
pub(crate) fn policy(mode: Policy) -> String {
    format!(
        "apiVersion: espalier.dev/v1alpha1\n\
         kind: EncryptionPolicy\n\
         metadata:\n  name: default\n\
         spec:\n  clusterCIDRs: [{CLUSTER}/10]\n  mode: {mode:?}\n  transitionDeadlineSeconds: 3600\n  udpEncapsulation: Always\n"
    )
}

/// The node that is measured.
pub(crate) fn hub() -> String {
    node(plan::HUB_NAME, plan::HUB.into(), 0)
}

/// All others, as documents of files with as many as the agent takes in one.
pub(crate) fn nodes(count: usize) -> Vec<String> {
    const PER_FILE: usize = 1000;
    let one = |n| node(&plan::spoke_name(n), plan::spoke(n).ip(), n + 1);
    let all: Vec<String> = (0..count).map(one).collect();
    let files = all.chunks(PER_FILE);
    files.map(|documents| documents.join("---\n")).collect()
}

fn node(name: &str, address: IpAddr, number: usize) -> String {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    let pods = Ipv4Addr::from(u32::from(CLUSTER) + number * 256);
    format!(
        "apiVersion: v1\n\
         kind: Node\n\
         metadata:\n  name: {name}\n\
         spec:\n  podCIDRs: [{pods}/24]\n\
         status:\n  addresses:\n  - type: InternalIP\n    address: {address}\n"
    )
}
