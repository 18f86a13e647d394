//! A real runtime: podman, which Debian 12 has with libcni in it.

use std::fs;
use std::path::Path;
use std::process::Command;

use espalier_testnet::isolated;
use serde_json::{Value, json};

use crate::CIDR;
use crate::support::{FakeAgent, TestNode};

const FOLDER: &str = "/run/test/podman";
const NAME: &str = "espalier";

/// Everything of podman's is below [`FOLDER`], also its locks.
const CONTAINERS_CONF: &str = r#"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/run/test/podman/bin"]
network_config_dir = "/run/test/podman/net.d"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "/run/test/podman/tmp"
[containers]
cgroups = "disabled"
log_driver = "none"
"#;

#[test]
fn podman_starts_and_ends_containers_through_its_libcni() {
    isolated(
        "podman::podman_starts_and_ends_containers_through_its_libcni",
        || {
            if !has("podman") || !has("crun") || !has("busybox") {
                return;
            }
            let node = TestNode::new();
            let agent = FakeAgent::start(&node, CIDR);
            prepare(&node);
            // crun wants one kind of control groups; these containers get none.
            let mount = ["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"];
            assert!(
                Command::new("mount")
                    .args(mount)
                    .status()
                    .unwrap()
                    .success()
            );
            let before = node.traces().host;
            for _ in 0..2 {
                podman(&[
                    "run",
                    "--detach",
                    "--name",
                    "web",
                    "--network",
                    NAME,
                    "--pid",
                    "private",
                    "--rootfs",
                    "/run/test/podman/rootfs",
                    "/bin/busybox",
                    "sleep",
                    "600",
                ]);
                assert_eq!(agent.leases(), 1);
                let told = podman(&["inspect", "web"]);
                let told: Value = serde_json::from_str(&told).unwrap();
                let network = &told[0]["NetworkSettings"]["Networks"][NAME];
                let address = network["IPAddress"].as_str().unwrap_or_default();
                assert!(address.starts_with("10.244.1."), "{network}");
                let shown = podman(&["exec", "web", "/bin/busybox", "ip", "addr", "show", "eth0"]);
                assert!(shown.contains(&format!("{address}/32")), "{shown}");
                podman(&[
                    "exec",
                    "web",
                    "/bin/busybox",
                    "ping",
                    "-c",
                    "1",
                    "-W",
                    "5",
                    "10.244.1.1",
                ]);
                podman(&["rm", "--force", "--time", "0", "web"]);
                assert_eq!((node.traces().host == before, agent.leases()), (true, 0));
            }
        },
    );
}

fn has(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output();
    let there = found.is_ok_and(|output| output.status.success());
    if !there {
        crate::skipped(&format!("no {program}"));
    }
    there
}

/// The root file system of a container with nothing but busybox, the plugin, and podman's configuration.
fn prepare(node: &TestNode) {
    let folder = Path::new(FOLDER);
    for name in [
        "rootfs/bin",
        "rootfs/proc",
        "rootfs/sys",
        "rootfs/dev",
        "rootfs/etc",
        "bin",
        "net.d",
        "tmp",
    ] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    let busybox = Command::new("sh")
        .args(["-c", "command -v busybox"])
        .output();
    let busybox = String::from_utf8(busybox.unwrap().stdout).unwrap();
    fs::copy(busybox.trim(), folder.join("rootfs/bin/busybox")).unwrap();
    let plugin = env!("CARGO_BIN_EXE_espalier-cni");
    std::os::unix::fs::symlink(plugin, folder.join("bin/espalier-cni")).unwrap();
    let list = json!({"cniVersion": "0.4.0", "name": NAME, "plugins": [
        {"type": "espalier-cni", "socket": node.socket, "stateDir": node.state},
    ]});
    fs::write(folder.join("net.d/05-espalier.conflist"), list.to_string()).unwrap();
    fs::write(folder.join("containers.conf"), CONTAINERS_CONF).unwrap();
}

fn podman(words: &[&str]) -> String {
    let output = Command::new("podman")
        .args([
            "--root",
            "/run/test/podman/root",
            "--runroot",
            "/run/test/podman/runroot",
        ])
        .args(["--storage-driver", "vfs", "--runtime", "crun"])
        .args(words)
        .env("CONTAINERS_CONF", format!("{FOLDER}/containers.conf"))
        .env("HOME", FOLDER)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "podman {words:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}
