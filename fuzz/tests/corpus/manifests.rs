//! Manifests as an admin writes them, and as a tired one does.

use crate::{Seed, seeds as of};

const NODE: &str = "\
apiVersion: v1
kind: Node
metadata:
  name: node-a
  uid: 11111111-2222-3333-4444-555555555555
spec:
  podCIDRs: [10.244.1.0/24, fd00:10:0:1::/64]
status:
  addresses:
    - {type: InternalIP, address: 192.0.2.1}
    - {type: Hostname, address: node-a}
";

const POLICY: &str = "\
apiVersion: espalier.dev/v1alpha1
kind: EncryptionPolicy
metadata: {name: default}
spec:
  mode: Required
  clusterCIDRs: [10.244.0.0/16]
";

const EXTERNAL: &str = "\
apiVersion: espalier.dev/v1alpha1
kind: ExternalPeer
metadata: {name: berlin}
spec:
  gateway: 203.0.113.7
  identity: gw.berlin.example
  auth: PSK
  remoteCIDRs: [192.168.0.0/16, fd01::/48]
  nodes: [node-a]
";

pub(crate) fn seeds() -> Vec<Seed> {
    let swapped = |from, to| NODE.replace(from, to).into_bytes();
    let policy = |from, to| POLICY.replace(from, to).into_bytes();
    of(
        "manifest_text",
        [
            ("node", NODE.into()),
            ("policy", POLICY.into()),
            ("both", format!("---\n{NODE}---\n{POLICY}").into_bytes()),
            (
                "external",
                format!("---\n{NODE}---\n{POLICY}---\n{EXTERNAL}").into_bytes(),
            ),
            (
                "external-overlap",
                EXTERNAL.replace("192.168", "203.0").into_bytes(),
            ),
            ("twice", format!("{NODE}---\n{NODE}").into_bytes()),
            (
                "foreign-kind",
                b"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n".to_vec(),
            ),
            ("comment-only", b"# nothing\n".to_vec()),
            (
                "json",
                br#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"}}"#.to_vec(),
            ),
            ("bad-address", swapped("192.0.2.1", "192.0.2.256")),
            ("bad-cidr", swapped("10.244.1.0/24", "10.244.1.7/24")),
            ("bad-name", swapped("name: node-a", "name: Node_A")),
            ("no-address", swapped("InternalIP", "ExternalIP")),
            ("bad-mode", policy("Required", "Maybe")),
            ("other-name", policy("default", "other")),
            (
                "deadline",
                policy("mode:", "transitionDeadlineSeconds: 0\n  mode:"),
            ),
            (
                "anchors",
                b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n".to_vec(),
            ),
            ("tag", b"!!binary aGVsbG8=\n".to_vec()),
            ("nested", b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[".to_vec()),
            ("unclosed", b"kind: \"Node\nmetadata: {".to_vec()),
            ("not-utf8", vec![0xff, 0xfe, b'a']),
            ("empty", vec![]),
        ],
    )
}
