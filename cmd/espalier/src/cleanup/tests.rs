//! On a real kernel, in a namespace:
//!
//! ```text
//!  "host": u0 192.0.2.1 ── u1   espalier.vx, policies, rules, routes of the overlay   esp… ── eth0 of "pod"
//!          and beside each something of the same kind that is not ours
//! ```
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;

use espalier_overlay::{Desired, Engine, Framing, PeerRoute, RoutePath, Vtep};
use espalier_podnet::{PodAddress, PodSpec, setup};
use espalier_testnet::{Netns, isolated};

use super::*;

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// All that the kernel has, as `ip` tells it.
fn kernel() -> String {
    let views = [
        "-d -o link",
        "-4 route show table all",
        "-6 route show table all",
        "-4 rule",
        "-6 rule",
        "xfrm policy",
        "xfrm state",
    ];
    let text = views.map(ip).concat() + &tables();
    // Link-local addresses count a moment after their device has come up.
    let lines = text.lines().filter(|line| !line.contains("fe80:"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Tables of nf_tables, where this machine has the program that shows them.
fn tables() -> String {
    let list = Command::new("nft").args(["list", "tables"]).output();
    list.map_or(String::new(), |list| {
        String::from_utf8(list.stdout).unwrap()
    })
}

fn desired() -> Desired {
    let peer = PeerRoute {
        remote: "192.0.2.2".parse().unwrap(),
        mac: [2, 0, 0, 0, 0, 2],
        pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
        path: RoutePath::Clear,
        accept_clear: true,
        protect: None,
        trial: None,
    };
    Desired {
        local: "192.0.2.1".parse().unwrap(),
        vtep: Vtep {
            mac: [2, 0, 0, 0, 0, 1],
            vni: 4789,
            port: 4789,
            mtu: None,
        },
        framing: Framing::Vxlan,
        gateways: vec!["10.244.1.1".parse().unwrap()],
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        engine: Engine::None,
        deny_clear: true,
        peers: BTreeMap::from([("b".to_owned(), peer)]),
        externals: BTreeMap::new(),
        masquerade: true,
    }
}

fn folders(root: &std::path::Path) -> Folders {
    let folder = |name: &str| {
        let path = root.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    Folders {
        run: folder("run"),
        state: folder("state"),
        cni_conf: folder("net.d"),
        cni_bin: folder("bin"),
    }
}

fn pod(netns: &Netns) {
    let address = PodAddress {
        address: "10.244.1.5".parse().unwrap(),
        gateway: "10.244.1.1".parse().unwrap(),
    };
    let spec = PodSpec {
        network: "mesh".into(),
        container_id: "c0ffee".into(),
        ifname: "eth0".into(),
        netns: netns.path().to_owned(),
        addresses: vec![address],
        mtu: 1408,
    };
    setup(&spec).unwrap().commit();
}

/// The same kinds of objects as ours, others' own.
fn foreign() {
    ip("link add u0 type veth peer name u1");
    ip("addr add 192.0.2.1/24 dev u0");
    ip("link set u0 up");
    ip("link set u1 up");
    // A veth with a name of ours and somebody else's alias; routes of our protocol on it.
    ip("link add esp0123456789a type veth peer name e1");
    ip("link set esp0123456789a alias theirs");
    ip("link set esp0123456789a up");
    ip("link set e1 up");
    ip("route add 10.77.0.0/16 dev esp0123456789a proto 229");
    ip("route add unreachable 10.78.0.0/16 metric 77");
    let _ = Command::new("nft").arg("add table inet theirs").status();
    ip("rule add from 10.79.0.0/16 blackhole priority 50 protocol 77");
    ip("xfrm policy add src 10.80.0.0/16 dst 10.81.0.0/16 dir out action block priority 5");
    // Without a key: this kernel may have no ESP.
    ip(
        "xfrm state allocspi src 192.0.2.1 dst 192.0.2.9 proto esp reqid 7 mode transport min 4096 max 4096",
    );
}

/// The larval state of ours that a kernel without ESP can have, too.
fn own_state() {
    ip(
        "xfrm state allocspi src 192.0.2.1 dst 192.0.2.2 proto esp reqid 1163067399 mode transport min 4097 max 4097",
    );
}

#[test]
fn the_kernel_is_as_before_and_what_is_foreign_stays() {
    isolated(
        "cleanup::tests::the_kernel_is_as_before_and_what_is_foreign_stays",
        || {
            let root = tempfile::tempdir().unwrap();
            let folders = folders(root.path());
            let (host, inside) = (Netns::new("host").unwrap(), Netns::new("pod").unwrap());
            host.run(|| {
                ip("link set lo up");
                foreign();
                let before = kernel();
                Overlay::open().unwrap().apply(&desired()).unwrap();
                pod(&inside);
                own_state();
                let between = kernel();
                let ours = [
                    "espalier.vx",
                    "reqid 1163067399",
                    "10.244.2.0/24",
                    "blackhole proto 229",
                    "esp6ad2516ced2",
                ];
                assert_eq!(
                    tables().contains("inet espalier"),
                    tables().contains("inet theirs")
                );
                for ours in ours {
                    assert!(between.contains(ours), "{ours} in {between}");
                }
                assert_ne!(before, between);
                clean(&folders).unwrap();
                assert_eq!(settled(&before), before);
                clean(&folders).unwrap();
                assert_eq!(kernel(), before);
            })
            .unwrap();
        },
    );
}

/// The kernel's own routes go with their device, a moment after it.
fn settled(wanted: &str) -> String {
    for _ in 0..50 {
        if kernel() == wanted {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    kernel()
}

#[test]
fn our_files_go_and_others_stay() {
    let root = tempfile::tempdir().unwrap();
    let folders = folders(root.path());
    for name in [
        "run/agent.sock",
        "run/kernel-peers.json.new",
        "run/dataplane.lock",
        "state/leases",
        "state/leases.journal",
        "state/.leases.17.tmp",
        "bin/espalier-cni",
        "bin/.espalier-cni.17",
        "net.d/.05-espalier.conflist.new",
        // Others' own.
        "state/notes.txt",
        "bin/espalier-cni-of-mine",
        "bin/portmap",
        "net.d/10-other.conflist",
    ] {
        fs::write(root.path().join(name), "x").unwrap();
    }
    fs::write(root.path().join("net.d/.05-espalier.conflist.new"), "").unwrap();
    for folder in ["state/pki", "state/pending-release"] {
        fs::create_dir(root.path().join(folder)).unwrap();
        fs::write(root.path().join(folder).join("x"), "x").unwrap();
    }
    let conflist = root.path().join("net.d/05-espalier.conflist");
    fs::write(&conflist, r#"{"plugins":[{"type":"espalier-cni"}]}"#).unwrap();
    folders.remove_cni().unwrap();
    let removed = folders.remove_own().unwrap();
    assert_eq!(removed.left.len(), 1, "{removed:?}");
    assert!(removed.left[0].contains("notes.txt"), "{removed:?}");
    assert_eq!(
        all_in(root.path()),
        [
            "bin/espalier-cni-of-mine",
            "bin/portmap",
            "net.d/10-other.conflist",
            "state/notes.txt"
        ]
    );
    assert!(!folders.run.exists(), "it was empty");
    assert!(folders.remove_own().unwrap().gone.is_empty());
}

#[test]
fn a_configuration_of_our_name_with_another_plugin_stays() {
    let root = tempfile::tempdir().unwrap();
    let folders = folders(root.path());
    let conflist = root.path().join("net.d/05-espalier.conflist");
    fs::write(&conflist, r#"{"plugins":[{"type":"ptp"}]}"#).unwrap();
    let removed = folders.remove_cni().unwrap();
    assert!(conflist.exists() && removed.gone.is_empty(), "{removed:?}");
}

#[test]
fn nothing_is_removed_while_a_process_of_ours_runs() {
    let root = tempfile::tempdir().unwrap();
    let folders = folders(root.path());
    assert_eq!(folders.who_runs(), None);
    let listening = UnixListener::bind(folders.run.join("agent.sock")).unwrap();
    assert!(folders.who_runs().unwrap().contains("espalier-agent"));
    drop(listening); // killed: the socket's file stays
    assert_eq!(folders.who_runs(), None);
    let lock = fs::File::create(folders.run.join("dataplane.lock")).unwrap();
    lock.lock().unwrap();
    assert!(folders.who_runs().unwrap().contains("espalier-dataplane"));
    drop(lock);
    let lock = fs::File::create(folders.state.join("leases.lock")).unwrap();
    lock.lock().unwrap();
    assert!(folders.who_runs().unwrap().contains("espalier-agent"));
}

fn all_in(root: &std::path::Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => all.push(path.strip_prefix(root).unwrap().display().to_string()),
            }
        }
    }
    all.sort();
    all
}
