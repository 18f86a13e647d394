use serde_json::{Value, json};

use super::*;
use crate::fake::Fake;

const NS: &str = "/namespaces/ns";
const KEY: &str = "node.espalier.dev/not-ready";

fn args(timeout: u64) -> UninstallArgs {
    UninstallArgs {
        namespace: "ns".into(),
        taint: KEY.into(),
        ca: CaMode::Generate,
        delete_crds: false,
        timeout,
    }
}

async fn uninstall(fake: &Fake, args: &UninstallArgs) -> Result<()> {
    let run = Uninstall {
        client: fake.client(),
        args,
        deadline: Instant::now() + Duration::from_secs(args.timeout),
        poll: Duration::from_secs(2),
    };
    run.run().await
}

fn cleanup(ready: i32, all: i32) -> Value {
    json!({
        "metadata": {"name": CLEANUP, "generation": 1},
        "spec": {"selector": {}, "template": {}},
        "status": {
            "observedGeneration": 1, "numberReady": ready, "desiredNumberScheduled": all,
            "currentNumberScheduled": all, "numberMisscheduled": 0,
        },
    })
}

fn path(api: &str, plural: &str, name: &str) -> String {
    format!("{api}{NS}/{plural}/{name}")
}

fn cluster() -> Fake {
    let fake = Fake::default();
    let apps = "/apis/apps/v1";
    let workload =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"selector": {}, "template": {}}});
    for (plural, name) in [
        ("deployments", "espalier-controller"),
        ("daemonsets", "espalier-agent"),
        ("daemonsets", "espalier-dataplane"),
    ] {
        fake.put(&path(apps, plural, name), workload(name));
    }
    fake.put(&path(apps, "daemonsets", CLEANUP), cleanup(2, 2));
    for (api, plural, name) in [
        (
            "/apis/coordination.k8s.io/v1",
            "leases",
            "espalier-controller",
        ),
        ("/api/v1", "configmaps", "espalier-trust"),
        ("/api/v1", "secrets", "espalier-ca"),
    ] {
        let object = json!({"metadata": {"name": name}});
        fake.put(&path(api, plural, name), object);
    }
    fake.put(
        "/apis/espalier.dev/v1alpha1/meshnodes/a",
        json!({"metadata": {"name": "a"}, "spec": {}}),
    );
    for (name, signer) in [("ours", "espalier.dev/node"), ("other", "example.com/x")] {
        fake.put(
            &format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{name}"),
            json!({"metadata": {"name": name}, "spec": {"signerName": signer, "request": ""}}),
        );
    }
    let condition =
        json!({"type": "NetworkUnavailable", "status": "False", "reason": "EspalierIsUp"});
    fake.put(
        "/api/v1/nodes/a",
        json!({
            "metadata": {"name": "a"},
            "spec": {"taints": [{"key": KEY, "effect": "NoSchedule"}, {"key": "x", "effect": "NoSchedule"}]},
            "status": {"conditions": [condition]},
        }),
    );
    fake
}

#[tokio::test(start_paused = true)]
async fn all_that_was_made_is_removed_and_nothing_else() {
    let fake = cluster();
    uninstall(&fake, &args(60)).await.unwrap();
    assert_eq!(
        fake.writes(),
        [
            "DELETE /apis/apps/v1/namespaces/ns/deployments/espalier-controller",
            "DELETE /apis/apps/v1/namespaces/ns/daemonsets/espalier-agent",
            "DELETE /apis/apps/v1/namespaces/ns/daemonsets/espalier-dataplane",
            "PATCH /api/v1/nodes/a",
            "PATCH /api/v1/nodes/a/status",
            "DELETE /apis/espalier.dev/v1alpha1/meshnodes/a",
            "DELETE /apis/certificates.k8s.io/v1/certificatesigningrequests/ours",
            "DELETE /apis/coordination.k8s.io/v1/namespaces/ns/leases/espalier-controller",
            "DELETE /api/v1/namespaces/ns/configmaps/espalier-trust",
            "DELETE /api/v1/namespaces/ns/secrets/espalier-ca",
        ]
    );
    let taints = fake.get("/api/v1/nodes/a").unwrap()["spec"]["taints"].clone();
    assert_eq!(taints, json!([{"key": "x", "effect": "NoSchedule"}]));
    // Once more: nothing is there, and nothing is missed.
    uninstall(&fake, &args(60)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn hosts_that_are_not_clean_are_waited_for_and_told_at_the_deadline() {
    let fake = cluster();
    let cleaner = path("/apis/apps/v1", "daemonsets", CLEANUP);
    fake.put(&cleaner, cleanup(1, 2));
    let error = uninstall(&fake, &args(20)).await.unwrap_err().to_string();
    assert!(
        error.contains("1 of 2 hosts are clean") && error.contains("run it again"),
        "{error}"
    );
    assert!(
        fake.get(&path("/api/v1", "secrets", "espalier-ca"))
            .is_some()
    );
    let slow = args(60);
    let (done, ()) = tokio::join!(uninstall(&fake, &slow), async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        fake.put(&cleaner, cleanup(2, 2));
    });
    done.unwrap();
    assert!(
        fake.get(&path("/api/v1", "secrets", "espalier-ca"))
            .is_none()
    );
}

#[tokio::test(start_paused = true)]
async fn a_given_ca_is_kept_and_crds_go_only_when_asked_for() {
    let fake = cluster();
    let crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/meshnodes.espalier.dev";
    fake.put(
        crd,
        json!({"metadata": {"name": "meshnodes.espalier.dev"}, "spec": {
            "group": "espalier.dev", "scope": "Cluster", "versions": [],
            "names": {"kind": "MeshNode", "plural": "meshnodes"},
        }}),
    );
    let keep = UninstallArgs {
        ca: CaMode::Secret,
        ..args(60)
    };
    uninstall(&fake, &keep).await.unwrap();
    assert!(
        fake.get(&path("/api/v1", "secrets", "espalier-ca"))
            .is_some()
    );
    assert!(fake.get(crd).is_some());
    let all = UninstallArgs {
        delete_crds: true,
        ..args(60)
    };
    uninstall(&fake, &all).await.unwrap();
    assert!(fake.get(crd).is_none());
}

#[test]
fn a_daemon_set_that_nobody_has_looked_at_is_not_done() {
    let read = |value: Value| progress(&serde_json::from_value(value).unwrap());
    assert_eq!(read(cleanup(2, 3)), Some((2, 3)));
    let mut fresh = cleanup(0, 0);
    fresh["status"]["observedGeneration"] = json!(0);
    assert_eq!(read(fresh), None);
}
