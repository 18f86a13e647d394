//! What is in force after good and bad manifests.

use std::collections::BTreeMap;

use espalier_api::{
    DataplaneKind, Establish, Masquerade, MeshSnapshot, OverlayKind, PerCpu, Protection, Protocol,
    RekeySpec, Store, SuiteName, UdpEncapsulation,
};
use espalier_peers::Mode;

fn node(name: &str, address: &str, cidr: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, uid: u-{name}}}\nspec: {{podCIDRs: [{cidr}], taints: []}}\n\
         status: {{addresses: [{{type: Hostname, address: {name}}}, {{type: InternalIP, address: {address}}}]}}\n---\n"
    )
}

fn policy(mode: &str) -> String {
    format!(
        "apiVersion: espalier.dev/v1alpha1\nkind: EncryptionPolicy\nmetadata: {{name: default}}\n\
         spec: {{mode: {mode}, clusterCIDRs: [10.244.0.0/16]}}\n---\n"
    )
}

/// A store and the files it was last given.
#[derive(Default)]
struct Folder {
    store: Store,
    files: BTreeMap<String, Result<String, String>>,
}

impl Folder {
    fn good() -> Self {
        let mut folder = Self::default();
        folder.put("policy.yaml", &policy("Required"));
        folder.put("a.yaml", &node("a", "10.0.0.1", "10.244.1.0/24"));
        folder.put("b.yaml", &node("b", "10.0.0.2", "10.244.2.0/24"));
        folder
    }

    fn put(&mut self, file: &str, text: &str) -> MeshSnapshot {
        self.files.insert(file.into(), Ok(text.into()));
        self.store.update(&self.files)
    }

    fn remove(&mut self, file: &str) -> MeshSnapshot {
        self.files.remove(file);
        self.store.update(&self.files)
    }

    fn now(&mut self) -> MeshSnapshot {
        self.store.update(&self.files)
    }
}

fn names(snapshot: &MeshSnapshot) -> Vec<&str> {
    snapshot
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .collect()
}

/// The one problem, which must contain every word.
fn assert_problem(snapshot: &MeshSnapshot, words: &[&str]) {
    let texts = snapshot.problem_texts();
    assert_eq!(texts.len(), 1, "{texts:?}");
    for word in words {
        assert!(texts[0].contains(word), "{word:?} in {}", texts[0]);
    }
}

#[test]
fn good_manifests_are_in_force() {
    let snapshot = Folder::good().now();
    assert_eq!(snapshot.problems, []);
    assert_eq!(names(&snapshot), ["a", "b"]);
    assert_eq!(snapshot.policy.mode, Mode::Required);
    assert_eq!(snapshot.policy.transition_deadline.as_secs(), 60);
    let a = &snapshot.nodes[0];
    assert_eq!(a.uid.as_deref(), Some("u-a"));
    assert_eq!(
        a.addresses,
        ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
}

#[test]
fn nothing_is_decided_without_a_policy() {
    let mut folder = Folder::default();
    let snapshot = folder.put("a.yaml", &node("a", "10.0.0.1", "10.244.1.0/24"));
    assert_eq!(names(&snapshot), [""; 0]);
    assert_problem(
        &snapshot,
        &["no EncryptionPolicy named default", "spec.clusterCIDRs"],
    );
}

#[test]
fn s1_a_deleted_policy_stays_in_force() {
    let snapshot = Folder::good().remove("policy.yaml");
    assert_eq!(snapshot.policy.mode, Mode::Required);
    assert_eq!(names(&snapshot), ["a", "b"]);
    assert_problem(
        &snapshot,
        &[
            "no EncryptionPolicy named default",
            "the last one stays in force",
        ],
    );
}

#[test]
fn s1_a_broken_policy_stays_as_it_was() {
    for (bad, words) in [
        (
            policy("Requird"),
            &[
                "policy.yaml, document 1, EncryptionPolicy default",
                "spec.mode",
                "Requird",
                "stays in force",
            ][..],
        ),
        (
            policy("Disabled").replace("10.244.0.0/16", "10.244.0.0/99"),
            &["spec.clusterCIDRs[0]", "10.244.0.0/99"],
        ),
        (
            policy("Disabled").replace("[10.244.0.0/16]", "[]"),
            &["spec.clusterCIDRs", "found none"],
        ),
        (
            policy("Disabled").replace("mode:", "mod:"),
            &["spec", "unknown field `mod`"],
        ),
        (
            policy("Disabled").replace("v1alpha1", "v9"),
            &["espalier.dev/v1alpha1", "espalier.dev/v9"],
        ),
        (
            policy("Disabled").replace("spec:", "specs: {}\nspec:"),
            &["specs: unknown field", "metadata, spec"],
        ),
        (
            String::new(),
            &["policy.yaml", "is empty", "delete the file"],
        ),
        (
            "kind: [".to_owned(),
            &["policy.yaml", "not valid YAML", "last good version"],
        ),
    ] {
        let snapshot = Folder::good().put("policy.yaml", &bad);
        assert_eq!(snapshot.policy.mode, Mode::Required, "{bad}");
        assert_problem(&snapshot, words);
    }
}

#[test]
fn a_broken_node_stays_as_it_was_and_hides_no_other() {
    for (bad, words) in [
        (
            node("b", "10.0.0.300", "10.244.2.0/24"),
            &[
                "b.yaml, document 1, Node b",
                "status.addresses[1].address",
                "10.0.0.300",
            ][..],
        ),
        (
            node("b", "10.0.0.2", "10.244.2.5/24"),
            &["spec.podCIDRs[0]", "host bits", "10.244.2.0/24"],
        ),
        (
            node("b", "0.0.0.0", "10.244.2.0/24"),
            &["status.addresses[1].address", "0.0.0.0"],
        ),
        (
            node("b", "10.0.0.2", "10.244.2.0/31"),
            &["spec.podCIDRs", "10.244.2.0/31", "/30 or larger"],
        ),
        (
            node("b", "10.0.0.2", "10.244.2.0/24").replace("name: b,", "name: 7,"),
            &["metadata.name", "7"],
        ),
        (
            node("b", "10.0.0.2", "10.244.2.0/24").replace("kind: Node", "kind: \"\""),
            &["apiVersion and kind are needed"],
        ),
        (
            node("b", "10.0.0.2", "10.244.2.0/24").replace("InternalIP", "ExternalIP"),
            &["InternalIP", "found none"],
        ),
        (
            node("b", "10.0.0.2", "10.244.2.0/24").replace("podCIDRs: [", "podCIDRs: [["),
            &["not valid YAML"],
        ),
    ] {
        let snapshot = Folder::good().put("b.yaml", &bad);
        assert_eq!(names(&snapshot), ["a", "b"], "{bad}");
        assert_eq!(
            snapshot.nodes[1].pod_cidrs,
            ["10.244.2.0/24".parse().unwrap()]
        );
        assert_problem(&snapshot, words);
    }
}

#[test]
fn an_object_taken_out_of_its_file_is_removed() {
    let both = node("b", "10.0.0.2", "10.244.2.0/24") + &node("c", "10.0.0.3", "10.244.3.0/24");
    let mut folder = Folder::good();
    assert_eq!(names(&folder.put("b.yaml", &both)), ["a", "b", "c"]);
    let snapshot = folder.put("b.yaml", &node("c", "10.0.0.3", "10.244.3.0/24"));
    assert_eq!(names(&snapshot), ["a", "c"]);
    assert_eq!(snapshot.problems, []);
}

#[test]
fn of_two_equal_names_in_one_file_the_first_is_in_force() {
    let both = node("b", "10.0.0.2", "10.244.2.0/24") + &node("b", "10.0.0.3", "10.244.3.0/24");
    let snapshot = Folder::good().put("b.yaml", &both);
    assert_eq!(
        snapshot.nodes[1].pod_cidrs,
        ["10.244.2.0/24".parse().unwrap()]
    );
    assert_problem(&snapshot, &["b.yaml, Node b", "two objects"]);
}

#[test]
fn a_removed_file_removes_its_nodes() {
    let snapshot = Folder::good().remove("b.yaml");
    assert_eq!(names(&snapshot), ["a"]);
    assert_eq!(snapshot.problems, []);
}

#[test]
fn a_newcomer_does_not_push_out_a_node_in_force() {
    let mut folder = Folder::good();
    folder.now();
    let snapshot = folder.put("0.yaml", &node("0a", "10.0.0.9", "10.244.2.128/25"));
    assert_eq!(names(&snapshot), ["a", "b"]);
    assert_problem(
        &snapshot,
        &[
            "Node 0a",
            "10.244.2.128/25 overlaps 10.244.2.0/24",
            "Node b in b.yaml",
        ],
    );

    let snapshot = folder.put("0.yaml", &node("0a", "10.0.0.2", "10.244.9.0/24"));
    assert_problem(&snapshot, &["Node 0a", "10.0.0.2 is another node's"]);

    let snapshot = folder.put("0.yaml", &node("a", "10.0.0.9", "10.244.9.0/24"));
    assert_problem(&snapshot, &["Node a", "another node of the same name"]);
}

#[test]
fn s1_pods_outside_cluster_cidrs_are_refused() {
    let snapshot = Folder::good().put("c.yaml", &node("c", "10.0.0.3", "10.99.0.0/24"));
    assert_eq!(names(&snapshot), ["a", "b"]);
    assert_problem(
        &snapshot,
        &[
            "Node c",
            "10.99.0.0/24 is not inside clusterCIDRs (10.244.0.0/16)",
        ],
    );
}

#[test]
fn other_kinds_and_empty_documents_are_passed_over() {
    let mut folder = Folder::good();
    let text = "---\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\n";
    assert_eq!(folder.put("other.yaml", text).problems, []);
    assert_problem(
        &folder.put("other.yaml", "name: x\n"),
        &["apiVersion and kind are needed"],
    );
}

#[test]
fn a_bad_document_beside_a_good_one_of_the_same_object_holds_nothing_back() {
    let mut folder = Folder::good();
    folder.now();
    let bad = node("b", "10.0.0.300", "10.244.2.0/24");
    let good = node("b", "10.0.0.22", "10.244.2.0/24");
    let snapshot = folder.put("b.yaml", &format!("{bad}{good}"));
    assert_eq!(
        snapshot.nodes[1].addresses,
        ["10.0.0.22".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_problem(&snapshot, &["Node b", "10.0.0.300"]);
}

/// The policy with these further fields of its spec.
fn protected(fields: &str) -> String {
    policy("Required").replace("mode: Required", &format!("mode: Required, {fields}"))
}

#[test]
fn protection_has_defaults_and_every_field_is_read() {
    assert_eq!(
        Folder::good().now().policy.protection,
        Protection::default()
    );
    let text = "protocol: AH, overlay: None, suites: [AES-256-GMAC, ChaCha20-Poly1305], udpEncapsulation: Never, \
                establish: OnDemand, dataplane: Kernel, perCPU: Never, masquerade: Never, \
                rekey: {interval: 10, bytes: 1000000, packets: 1000}";
    let snapshot = Folder::good().put("policy.yaml", &protected(text));
    assert_eq!(snapshot.problems, []);
    let expected = Protection {
        protocol: Protocol::Ah,
        overlay: OverlayKind::None,
        suites: vec![SuiteName::Aes256Gmac, SuiteName::ChaCha20Poly1305],
        udp_encapsulation: UdpEncapsulation::Never,
        establish: Establish::OnDemand,
        dataplane: DataplaneKind::Kernel,
        per_cpu: PerCpu::Never,
        rekey: RekeySpec {
            interval: Some(10),
            bytes: Some(1_000_000),
            packets: Some(1_000),
        },
    };
    assert_eq!(snapshot.policy.protection, expected);
    assert_eq!(snapshot.policy.masquerade, Masquerade::Never);
}

#[test]
fn protection_that_cannot_work_is_refused_with_field_and_remedy() {
    for (fields, words) in [
        (
            "protocol: AH, udpEncapsulation: Always",
            &[
                "spec.udpEncapsulation",
                "AH cannot be put into UDP",
                "Auto or Never",
            ][..],
        ),
        (
            "protocol: AH, dataplane: Userspace",
            &["spec.protocol: AH", "dataplane Kernel or Auto"],
        ),
        (
            "suites: [AES-128-GMAC], dataplane: Userspace",
            &["spec.suites: AES-GMAC alone", "dataplane Kernel or Auto"],
        ),
        ("suites: []", &["spec.suites", "at least one"]),
        (
            "suites: [AES-128-GCM, AES-128-GCM]",
            &["spec.suites[1]", "AES-128-GCM is there twice"],
        ),
        ("suites: [DES]", &["spec.suites[0]", "AES-256-GCM"]),
        ("protocol: esp", &["spec.protocol", "ESP"]),
        ("overlay: GRE", &["spec.overlay", "VXLAN"]),
        (
            "rekey: {interval: 9}",
            &["spec.rekey.interval", "10 to 43200"],
        ),
        ("rekey: {bytes: 5}", &["spec.rekey.bytes", "1000000"]),
        ("rekey: {packets: 5}", &["spec.rekey.packets", "1000"]),
        ("rekey: {jitter: 5}", &["spec.rekey", "jitter"]),
    ] {
        let snapshot = Folder::good().put("policy.yaml", &protected(fields));
        assert_eq!(snapshot.policy.mode, Mode::Required, "{fields}");
        assert_problem(&snapshot, words);
    }
}

#[test]
fn a_file_with_too_many_documents_is_named_with_the_remedy() {
    let mut folder = Folder::good();
    let many: String = (0..2000)
        .map(|n| node(&format!("n{n}"), "10.0.1.1", "10.245.0.0/24"))
        .collect();
    let snapshot = folder.put("many.yaml", &many);
    let said = snapshot.problem_texts().join("; ");
    assert!(
        said.contains("many.yaml") && said.contains("split it"),
        "{said}"
    );
    assert_eq!(names(&snapshot), ["a", "b"]);
}
