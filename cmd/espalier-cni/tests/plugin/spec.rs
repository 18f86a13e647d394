//! Clauses of the specification that the other tests do not have; docs/cni.md lists all.

use std::fs::File;
use std::io::Write as _;
use std::process::Stdio;

use espalier_cni_types::Version;
use espalier_netlink::{LinkChange, RouteEntry};
use espalier_podnet::host_name;
use espalier_testnet::{Netns, isolated};
use serde_json::{Value, json};

use crate::support::{CONTAINER, Called, FakeAgent, Mood, TestNode};
use crate::{CIDR, socket, with};

/// "Plugins must handle being executed concurrently across different containers."
#[test]
fn thirty_two_containers_at_once_get_an_address_each() {
    isolated(
        "spec::thirty_two_containers_at_once_get_an_address_each",
        || {
            const COUNT: usize = 32;
            let node = TestNode::new();
            let agent = FakeAgent::start(&node, CIDR);
            let before = node.traces().host;
            let pods: Vec<_> = (0..COUNT)
                .map(|n| Netns::new(&format!("pod-{n}")).unwrap())
                .collect();
            let all = |verb: &str| -> Vec<Value> {
                std::thread::scope(|scope| {
                    let start = |(n, pod): (usize, &Netns)| {
                        let (node, netns) = (&node, pod.path().to_str().unwrap().to_owned());
                        let verb = verb.to_owned();
                        scope.spawn(move || {
                            let id = format!("container-{n}");
                            let variables =
                                [("CNI_CONTAINERID", id.as_str()), ("CNI_NETNS", &netns)];
                            let config = node.config("1.1.0");
                            node.call_with(&verb, &config, &variables, Stdio::piped())
                                .succeeded()
                        })
                    };
                    let threads: Vec<_> = pods.iter().enumerate().map(start).collect();
                    threads.into_iter().map(|t| t.join().unwrap()).collect()
                })
            };
            let results = all("ADD");
            let address = |result: &Value| result["ips"][0]["address"].to_string();
            let addresses: std::collections::BTreeSet<_> = results.iter().map(address).collect();
            assert_eq!((addresses.len(), agent.leases()), (COUNT, COUNT));
            all("DEL");
            assert_eq!((node.traces().host == before, agent.leases()), (true, 0));
        },
    );
}

/// "If a plugin has a limited number of resources, it should return an error if those are exhausted."
#[test]
fn status_fails_when_there_is_no_address_left() {
    isolated("spec::status_fails_when_there_is_no_address_left", || {
        let node = TestNode::new();
        let _agent = FakeAgent::start(&node, "10.244.1.0/30");
        let config = node.config("1.1.0");
        node.call("STATUS", &config).succeeded();
        node.add("1.1.0");
        let text = node.call("STATUS", &config).failed(50);
        assert!(text.contains("1 of 1 in use"), "{text}");
        node.call("DEL", &config).succeeded();
        node.call("STATUS", &config).succeeded();
    });
}

/// "A plugin should remove any IPAM reservations associated with attachments not in the provided list."
#[test]
fn gc_frees_addresses_that_have_no_interface() {
    isolated("spec::gc_frees_addresses_that_have_no_interface", || {
        let node = TestNode::new();
        let agent = FakeAgent::start(&node, CIDR);
        let gc = |mood: Mood, keep: Value| {
            agent.mood(mood);
            let config = with(node.config("1.1.0"), "cni.dev/valid-attachments", keep);
            node.call("GC", &config)
        };
        node.add("1.1.0");
        crate::remove(&host_name(CONTAINER, "eth0"));
        let ours = json!([{"containerID": CONTAINER, "ifname": "eth0"}]);
        gc(Mood::default(), ours).succeeded();
        assert_eq!(agent.leases(), 1, "a valid attachment's stays");
        let old = Mood {
            old: true,
            ..Mood::default()
        };
        gc(old, json!([])).succeeded();
        assert_eq!(
            agent.leases(),
            1,
            "an agent of an older release finds it by itself"
        );
        gc(Mood::default(), json!([])).succeeded();
        assert_eq!(agent.leases(), 0);
    });
}

/// "If an error is encountered, a plugin should continue; removing as many resources as possible, and report the errors."
#[test]
fn gc_goes_on_after_an_error_and_reports_it() {
    isolated("spec::gc_goes_on_after_an_error_and_reports_it", || {
        let node = TestNode::new();
        let agent = FakeAgent::start(&node, CIDR);
        let second = Netns::new("second").unwrap();
        let netns = second.path().to_str().unwrap();
        let variables = [("CNI_CONTAINERID", "second"), ("CNI_NETNS", netns)];
        node.add("1.1.0");
        node.call_with("ADD", &node.config("1.1.0"), &variables, Stdio::piped())
            .succeeded();
        // A renamed one is found by what it says of itself.
        let index = socket().index_of(&host_name("second", "eth0")).unwrap();
        let change = LinkChange {
            name: Some("renamed"),
            ..LinkChange::default()
        };
        socket().set_link(index, &change).unwrap();
        drop(agent);
        let config = with(node.config("1.1.0"), "cni.dev/valid-attachments", json!([]));
        let text = node.call("GC", &config).failed(11);
        assert!(text.contains("start espalier-agent"), "{text}");
        assert!(espalier_podnet::list().unwrap().is_empty());
        assert_eq!(node.queued(), 2);
    });
}

/// "The plugin must allow for a later chained plugin to have modified networking resources, e.g. routes, on ADD."
#[test]
fn check_allows_what_prev_result_says_that_a_later_plugin_changed() {
    isolated(
        "spec::check_allows_what_prev_result_says_that_a_later_plugin_changed",
        || {
            let node = TestNode::new();
            let _agent = FakeAgent::start(&node, CIDR);
            let mut result = node.add("1.1.0");
            let config = |result: &Value| with(node.config("1.1.0"), "prevResult", result.clone());
            node.pod.run(replace_default_route).unwrap();
            let text = node.call("CHECK", &config(&result)).failed(101);
            assert!(text.contains("route 0.0.0.0/0 is missing"), "{text}");
            result["routes"] = json!([{"dst": "192.0.2.0/24"}]);
            node.call("CHECK", &config(&result)).succeeded();

            node.pod.run(lower_mtu).unwrap();
            let text = node.call("CHECK", &config(&result)).failed(101);
            assert!(text.contains("MTU"), "{text}");
            // Before 1.1.0 a result does not tell the MTU.
            let mut older = node.config("1.0.0");
            for interface in result["interfaces"].as_array_mut().unwrap() {
                interface.as_object_mut().unwrap().remove("mtu");
            }
            older["prevResult"] = result;
            node.call("CHECK", &older).succeeded();
        },
    );
}

fn replace_default_route() {
    let index = socket().index_of("eth0").unwrap();
    let gateway = "10.244.1.1".parse().unwrap();
    let default = RouteEntry::unicast("0.0.0.0/0".parse().unwrap(), Some(gateway), index);
    socket().del_route(&default).unwrap();
    let other = RouteEntry::unicast("192.0.2.0/24".parse().unwrap(), Some(gateway), index);
    socket().add_route(&other).unwrap();
}

fn lower_mtu() {
    let index = socket().index_of("eth0").unwrap();
    socket().set_mtu(index, 1300).unwrap();
}

/// SPEC.md's examples of prevResult have no cniVersion.
#[test]
fn a_prev_result_without_a_version_is_one_of_the_requests_version() {
    isolated(
        "spec::a_prev_result_without_a_version_is_one_of_the_requests_version",
        || {
            let node = TestNode::new();
            let _agent = FakeAgent::start(&node, CIDR);
            let mut result = node.add("1.1.0");
            result.as_object_mut().unwrap().remove("cniVersion");
            let config = with(node.config("1.1.0"), "prevResult", result);
            node.call("CHECK", &config).succeeded();
            node.call("DEL", &config).succeeded();
            let previous = json!({"dns": {"nameservers": ["192.0.2.53"]}});
            for version in Version::ALL {
                let config = with(
                    node.config(version.as_str()),
                    "prevResult",
                    previous.clone(),
                );
                let result = node.call("ADD", &config).succeeded();
                assert_eq!(result["dns"], previous["dns"], "{version}");
                assert_eq!(result["cniVersion"], version.as_str());
                node.call("DEL", &config).succeeded();
            }
        },
    );
}

/// Codes 2, 5 and 6 of "Error".
#[test]
fn what_cannot_be_read_decoded_or_honoured_has_its_own_code() {
    isolated(
        "spec::what_cannot_be_read_decoded_or_honoured_has_its_own_code",
        || {
            let node = TestNode::new();
            let _agent = FakeAgent::start(&node, CIDR);
            let folder = Stdio::from(File::open("/run").unwrap());
            let text = called(&node, "ADD", folder, b"").failed(5);
            assert!(text.contains("stdin"), "{text}");
            let text = called(&node, "ADD", Stdio::piped(), b"{\"cniVersion\":").failed(6);
            assert!(text.contains("not JSON"), "{text}");
            let ipam = json!({"type": "host-local", "subnet": "10.1.0.0/16"});
            let config = with(node.config("1.1.0"), "ipam", ipam);
            for verb in ["ADD", "STATUS"] {
                let text = node.call(verb, &config).failed(2);
                assert!(
                    text.contains("ipam is") && text.contains("host-local"),
                    "{text}"
                );
            }
            // DEL is to the fullest extent possible.
            node.call("DEL", &config).succeeded();
        },
    );
}

fn called(node: &TestNode, verb: &str, stdin: Stdio, input: &[u8]) -> Called {
    let mut child = node
        .command(verb)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).unwrap();
    }
    Called(child.wait_with_output().unwrap())
}

/// docs/cni.md promises a test for each clause: there is one of each name.
#[test]
fn every_test_that_the_documentation_names_is_there() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let page = std::fs::read_to_string(format!("{root}/docs/cni.md")).unwrap();
    let (_, clauses) = page
        .split_once("## The specification, clause by clause")
        .unwrap();
    let rows = clauses.lines().filter(|line| line.starts_with("| "));
    let mut named = 0;
    for row in rows.skip(2) {
        let cell = row.split('|').nth_back(1).unwrap();
        for test in cell.split('`').skip(1).step_by(2) {
            let (file, name) = test.rsplit_once(' ').unwrap_or_else(|| panic!("{row}"));
            let text = std::fs::read_to_string(format!("{root}/{file}"));
            let text = text.unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(
                text.contains(&format!("fn {name}(")),
                "{file} has no {name}"
            );
            named += 1;
        }
    }
    assert!(named > 40, "{named}");
}
