//! The plugin as a runtime calls it, in namespaces of its own.
#![allow(clippy::unwrap_used)]

mod faults;
mod kills;
mod podman;
mod runtime;
mod spec;
mod support;

use std::process::Stdio;

use espalier_cni_types::{AddResult, Version};
use espalier_netlink::{LinkChange, Route, Socket};
use espalier_podnet::host_name;
use espalier_testnet::isolated;
use serde_json::{Value, json};

use support::{CONTAINER, FakeAgent, MTU, Mood, TestNode};

const CIDR: &str = "10.244.1.0/24";

fn socket() -> Socket<Route> {
    Socket::open().unwrap()
}

fn remove(name: &str) {
    let index = socket().index_of(name).unwrap();
    socket().del_link(index).unwrap();
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

#[test]
fn a_pods_life_in_every_version() {
    isolated("a_pods_life_in_every_version", || {
        let node = TestNode::new();
        let agent = FakeAgent::start(&node, CIDR);
        let before = node.traces();
        for version in Version::ALL {
            let config = node.config(version.as_str());
            let result = node.add(version.as_str());
            assert_form(&result, version);
            node.assert_pod_reaches_gateway();
            assert_eq!(
                (agent.leases(), agent.owner().pod_name.as_str()),
                (1, "web-0")
            );

            let check = node.call("CHECK", &with(config.clone(), "prevResult", result.clone()));
            match version {
                Version::V0_3_1 => assert!(
                    check
                        .failed(1)
                        .contains("CHECK needs cniVersion 0.4.0 or later")
                ),
                _ => assert_eq!(check.succeeded(), Value::Null),
            }
            let del = node.call("DEL", &with(config.clone(), "prevResult", result));
            assert_eq!(del.succeeded(), Value::Null);
            // containerd 2.1.9 sends a second DEL with an empty CNI_NETNS; here without prevResult too.
            let again = node.call_with("DEL", &config, &[("CNI_NETNS", "")], Stdio::piped());
            assert_eq!(again.succeeded(), Value::Null);
            assert_eq!(
                (node.traces() == before, agent.leases(), node.queued()),
                (true, 0, 0)
            );
        }
    });
}

/// By the schema of each version, field by field.
fn assert_form(result: &Value, version: Version) {
    assert_eq!(result["cniVersion"], version.as_str());
    let parsed = AddResult::from_json(result).unwrap();
    assert_eq!(
        &parsed.to_json(version),
        result,
        "fields that this version does not have"
    );
    let host = host_name(CONTAINER, "eth0");
    let names: Vec<_> = parsed
        .interfaces
        .iter()
        .map(|i| (i.name.as_str(), i.sandbox.as_deref()))
        .collect();
    assert_eq!(
        names,
        [(host.as_str(), None), ("eth0", Some("/run/netns/pod"))]
    );
    assert_eq!(result["ips"][0]["interface"], 1);
    assert_eq!(result["ips"][0]["gateway"], "10.244.1.1");
    assert_eq!(
        result["ips"][0].get("version"),
        (version < Version::V1_0_0).then_some(&json!("4"))
    );
    assert_eq!(
        result["interfaces"][1].get("mtu"),
        (version >= Version::V1_1_0).then_some(&json!(MTU))
    );
    assert_eq!(
        result["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}])
    );
}

/// bridge left a veth; ptp leaked an address.
#[test]
fn del_needs_neither_namespace_nor_a_sound_prev_result() {
    isolated(
        "del_needs_neither_namespace_nor_a_sound_prev_result",
        || {
            let node = TestNode::new();
            let agent = FakeAgent::start(&node, CIDR);
            let before = node.traces();
            let broken = with(
                node.config("1.1.0"),
                "prevResult",
                json!({"ips": "nonsense"}),
            );
            for netns in ["", "/run/netns/nobody", "/run/netns/pod/below"] {
                node.add("1.1.0");
                node.call_with("DEL", &broken, &[("CNI_NETNS", netns)], Stdio::piped())
                    .succeeded();
                assert_eq!(
                    (node.traces() == before, agent.leases()),
                    (true, 0),
                    "CNI_NETNS={netns:?}"
                );
            }
        },
    );
}

#[test]
fn status_and_add_tell_why_the_node_takes_no_pods() {
    isolated("status_and_add_tell_why_the_node_takes_no_pods", || {
        let node = TestNode::new();
        let agent = FakeAgent::start(&node, "10.244.1.0/30");
        let config = node.config("1.1.0");
        assert_eq!(node.call("STATUS", &config).succeeded(), Value::Null);
        assert!(
            node.call("STATUS", &node.config("1.0.0"))
                .failed(1)
                .contains("STATUS needs cniVersion 1.1.0")
        );
        agent.mood(Mood {
            not_ready: Some("the data plane cannot enforce Required"),
            ..Mood::default()
        });
        for (verb, code) in [("STATUS", 50), ("ADD", 11)] {
            assert!(
                node.call(verb, &config)
                    .failed(code)
                    .contains("cannot enforce Required"),
                "{verb}"
            );
        }
        agent.mood(Mood::default());
        node.add("1.1.0");
        let second = node.call_with(
            "ADD",
            &config,
            &[("CNI_CONTAINERID", "second")],
            Stdio::piped(),
        );
        assert!(second.failed(11).contains("1 of 1 in use"));
        assert_eq!((agent.leases(), node.queued()), (1, 0));
    });
}

#[test]
fn check_names_what_differs() {
    isolated("check_names_what_differs", || {
        let node = TestNode::new();
        let agent = FakeAgent::start(&node, CIDR);
        let result = node.add("1.1.0");
        let config = with(node.config("1.1.0"), "prevResult", result.clone());
        let differs = |config: &Value, part: &str| {
            let text = node.call("CHECK", config).failed(101);
            assert!(text.contains(part), "{part:?} is missing in {text}");
        };
        assert!(
            node.call("CHECK", &node.config("1.1.0"))
                .failed(7)
                .contains("prevResult is missing")
        );
        let other = with(
            result.clone(),
            "ips",
            json!([{"address": "10.244.1.99/32", "interface": 1}]),
        );
        differs(
            &with(config.clone(), "prevResult", other),
            "address 10.244.1.2/32 via 10.244.1.1 is missing",
        );
        let other = with(result, "interfaces", json!([{"name": "x"}, {"name": "y"}]));
        differs(
            &with(config.clone(), "prevResult", other),
            "interface eth0 is missing",
        );

        let lower = || {
            let index = socket().index_of("eth0").unwrap();
            socket()
                .set_link(
                    index,
                    &LinkChange {
                        mtu: Some(1300),
                        ..LinkChange::default()
                    },
                )
                .unwrap();
        };
        node.pod.run(lower).unwrap();
        differs(&config, "eth0 has MTU 1300: expected 1408");
        remove(&host_name(CONTAINER, "eth0"));
        differs(&config, "host: interface esp");
        node.call("DEL", &node.config("1.1.0")).succeeded();
        differs(&config, "the agent has no lease");
        assert_eq!(agent.leases(), 0);
    });
}

#[test]
fn gc_removes_what_nobody_has_and_nothing_else() {
    isolated("gc_removes_what_nobody_has_and_nothing_else", || {
        let node = TestNode::new();
        let agent = FakeAgent::start(&node, CIDR);
        let config = node.config("1.1.0");
        let other = with(config.clone(), "name", json!("other-network"));
        node.add("1.1.0");
        for (ifname, config) in [("stale", &config), ("foreign", &other)] {
            let pod = espalier_testnet::Netns::new(ifname).unwrap();
            let netns = pod.path().to_str().unwrap().to_owned();
            let variables = [("CNI_IFNAME", ifname), ("CNI_NETNS", &netns)];
            node.call_with("ADD", config, &variables, Stdio::piped())
                .succeeded();
            // Runtimes may have lost the path: the veth lives as long as the namespace.
            std::mem::forget(pod);
        }
        assert_eq!(agent.leases(), 3);
        let keep = json!([{"containerID": CONTAINER, "ifname": "eth0"}]);
        let text = node.call("GC", &config).failed(7);
        assert!(
            text.contains("cni.dev/valid-attachments is missing"),
            "{text}"
        );
        assert_eq!(agent.leases(), 3, "no list is not an empty list");
        for _ in 0..2 {
            let called = node.call(
                "GC",
                &with(config.clone(), "cni.dev/valid-attachments", keep.clone()),
            );
            assert_eq!(called.succeeded(), Value::Null);
            let exists = |ifname| espalier_podnet::exists(CONTAINER, ifname).unwrap();
            assert_eq!(
                (exists("eth0"), exists("stale"), exists("foreign")),
                (true, false, true)
            );
            assert_eq!(agent.leases(), 2);
        }
        node.assert_pod_reaches_gateway();
    });
}

#[test]
fn in_a_chain_what_came_before_is_kept() {
    isolated("in_a_chain_what_came_before_is_kept", || {
        let node = TestNode::new();
        let _agent = FakeAgent::start(&node, CIDR);
        let previous = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "net0", "sandbox": "/run/netns/pod"}],
            "ips": [{"address": "192.0.2.5/24", "interface": 0}],
            "routes": [{"dst": "192.0.2.0/24"}],
            "dns": {"nameservers": ["192.0.2.53"]},
        });
        let config = with(node.config("1.1.0"), "prevResult", previous.clone());
        let result = node.call("ADD", &config).succeeded();
        assert_eq!(result["interfaces"][0], previous["interfaces"][0]);
        assert_eq!(result["ips"][0], previous["ips"][0]);
        assert_eq!(result["routes"][0], previous["routes"][0]);
        assert_eq!(result["dns"], previous["dns"]);
        assert_eq!(
            (
                result["interfaces"][2]["name"].clone(),
                result["ips"][1]["interface"].clone()
            ),
            (json!("eth0"), json!(2))
        );
        let check = node.call("CHECK", &with(config, "prevResult", result));
        assert_eq!(check.succeeded(), Value::Null);
    });
}

#[test]
fn version_answers_whatever_else_is_set() {
    isolated("version_answers_whatever_else_is_set", || {
        let node = TestNode::new();
        let dummy = [
            ("CNI_NETNS", "dummy"),
            ("CNI_IFNAME", "dummy"),
            ("CNI_CONTAINERID", ""),
        ];
        for (version, answered) in [("0.4.0", "0.4.0"), ("1.1.0", "1.1.0"), ("0.2.0", "0.2.0")] {
            let called = node.call_with(
                "VERSION",
                &json!({"cniVersion": version}),
                &dummy,
                Stdio::piped(),
            );
            let expected = json!({"cniVersion": answered, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
            assert_eq!(called.succeeded(), expected);
        }
    });
}

#[test]
fn wrong_input_gets_its_code_and_is_named() {
    isolated("wrong_input_gets_its_code_and_is_named", || {
        let node = TestNode::new();
        let config = node.config("1.0.0");
        let call = |config: &Value, variables: &[(&str, &str)]| {
            node.call_with("ADD", config, variables, Stdio::piped())
        };
        let text = call(&config, &[("CNI_NETNS", ""), ("CNI_IFNAME", "a/b")]).failed(4);
        assert!(
            text.contains("CNI_NETNS") && text.contains("CNI_IFNAME"),
            "{text}"
        );
        assert!(call(&json!("text"), &[]).failed(7).contains("an object"));
        assert!(
            call(&with(config.clone(), "socket", json!(7)), &[])
                .failed(7)
                .contains("socket is 7")
        );
        assert!(
            call(&with(config.clone(), "cniVersion", json!("9.0.0")), &[])
                .failed(1)
                .contains("9.0.0")
        );
        let long = format!("/{}", "x".repeat(120));
        assert!(
            call(&with(config, "socket", json!(long)), &[])
                .failed(7)
                .contains("socket path")
        );
    });
}

#[test]
fn logs_go_to_stderr_and_only_when_asked_for() {
    isolated("logs_go_to_stderr_and_only_when_asked_for", || {
        let node = TestNode::new();
        let config = node.config("1.1.0");
        let called = node.call_with(
            "STATUS",
            &config,
            &[("ESPALIER_LOG", "info")],
            Stdio::piped(),
        );
        let (out, err) = (
            String::from_utf8_lossy(&called.0.stdout),
            String::from_utf8_lossy(&called.0.stderr),
        );
        assert!(err.contains("does not answer"), "{err}");
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["code"], 50);
        let called = node.call_with(
            "VERSION",
            &config,
            &[("ESPALIER_LOG", "no,such=filter=at all")],
            Stdio::piped(),
        );
        assert!(called.0.status.success(), "a wrong filter stops nobody");
        assert!(!called.0.stderr.is_empty());
    });
}

/// What a machine lacks leaves a test out; in CI, where everything is to be there, it fails the test.
pub(crate) fn skipped(why: &str) {
    let forbidden = std::env::var_os("ESPALIER_NO_SKIP").is_some();
    assert!(!forbidden, "{why}");
    eprintln!("skipped: {why}");
}
