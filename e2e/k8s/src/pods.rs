//! The network namespaces of a cluster's pods, as the machine that runs the cluster sees them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use espalier_e2e::Pod;
use espalier_testnet::Netns;
use serde_json::Value;

/// A pod of the API server as one that flows can be between.
pub(crate) fn pod(object: &Value) -> Result<Pod> {
    let text = |at: &str| {
        object
            .pointer(at)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let name = text("/metadata/name").context("a pod without a name")?;
    let uid = text("/metadata/uid").context("a pod without a UID")?;
    let address = text("/status/podIP").with_context(|| format!("{name} has no address"))?;
    let address: Ipv4Addr = address.parse().context("the pod's address")?;
    let path = network_of(&uid).with_context(|| format!("{name} has no process here"))?;
    Ok(Pod {
        netns: Netns::held_elsewhere(&name, &path)?,
        address,
        addresses: vec![IpAddr::V4(address)],
        name,
    })
}

/// A pod's processes are in a control group that is named after its UID.
fn network_of(uid: &str) -> Option<PathBuf> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let of_pod = entries.filter_map(|entry| {
        let groups = fs::read_to_string(entry.path().join("cgroup")).ok()?;
        names(&groups, uid).then(|| entry.path().join("ns/net"))
    });
    // A process that has just ended has no namespace.
    of_pod.into_iter().find(|path| fs::metadata(path).is_ok())
}

/// The driver "systemd" writes the UID with underscores.
fn names(groups: &str, uid: &str) -> bool {
    groups.contains(&format!("pod{uid}"))
        || groups.contains(&format!("pod{}", uid.replace('-', "_")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_pod_in_the_path_of_either_driver() {
        let uid = "1b2c-33";
        assert!(names(
            "4:memory:/n/kubepods/besteffort/pod1b2c-33/abc\n",
            uid
        ));
        assert!(names("0::/kubepods-besteffort-pod1b2c_33.slice/x\n", uid));
        assert!(!names("0::/kubepods/pod9999-33/x\n", uid));
    }
}
