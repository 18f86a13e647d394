//! What a node is like without Espalier, to be compared with what it is like after it.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};

use crate::ground::Ground;

/// Prints, in lines, what there is of the kinds of things that Espalier makes. kube-proxy's rules come and go, and the runtime's
/// names and its folders in /var/lib/cni are of its own choice.
const LOOK: &str = r#"
ip -o link | awk -F': ' '{sub(/@.*/, "", $2); print "device " $2}'
ip -o -4 addr | awk '{print "address " $2 " " $4}'
ip rule | sed 's/^/rule /'
ip -6 rule | sed 's/^/rule6 /'
ip route show table all | sed 's/^/route /'
ip -6 route show table all | grep -v fe80 | sed 's/^/route6 /'
ip neigh show nud permanent | sed 's/^/neighbour /'
ip xfrm state 2>/dev/null | sed 's/^/state /'
ip xfrm policy 2>/dev/null | sed 's/^/policy /'
(iptables-save; ip6tables-save) 2>/dev/null | grep -v -e KUBE -e '^#' -e '^:' -e '^\*' -e COMMIT | sed 's/^/iptables /'
nft list ruleset 2>/dev/null | grep -i espalier | sed 's/^/nft /'
for f in /etc/cni/net.d /opt/cni/bin /var/lib/espalier /run/espalier; do find $f 2>/dev/null | sed 's/^/file /'; done
find /var/lib/cni ! -type d 2>/dev/null | sed 's/^/file /'
find /etc /opt /run /tmp -name '*espalier*' 2>/dev/null | grep -v -e /run/containerd -e espalier-e2e | sed 's/^/file /'
true
"#;

/// Notes how every node is now.
pub(super) fn remember(ground: &Ground<'_>) -> Result<()> {
    for node in ground.harness.nodes() {
        ground.file(&format!("before-{node}"), &look(ground, &node)?)?;
    }
    Ok(())
}

/// Fails when a node has something that it did not have then.
pub(super) fn none_left(ground: &Ground<'_>) -> Result<()> {
    for node in ground.harness.nodes() {
        let before = fs::read_to_string(ground.folder.join(format!("before-{node}")));
        let before = before.context("how the nodes were before the installation")?;
        let now = look(ground, &node)?;
        let left = more(&before, &now);
        ensure!(left.is_empty(), "left on {node}: {}", left.join("; "));
    }
    Ok(())
}

fn look(ground: &Ground<'_>, node: &str) -> Result<String> {
    ground.on_node(node, "sh", &["-c", LOOK])
}

fn more(before: &str, now: &str) -> Vec<String> {
    let before: BTreeSet<&str> = before.lines().collect();
    let now = now.lines().filter(|line| !before.contains(line));
    now.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_left() {
        assert_eq!(
            more("device lo\nrule 0\n", "device lo\ndevice esp0\n"),
            ["device esp0"]
        );
        assert!(more("a\nb\n", "b\n").is_empty());
    }
}
