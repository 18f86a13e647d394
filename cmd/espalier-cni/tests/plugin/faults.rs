//! What goes wrong, and what must not be left then.

use std::process::Stdio;

use espalier_netlink::RouteEntry;
use espalier_podnet::host_name;
use espalier_testnet::isolated;
use serde_json::Value;

use crate::support::{CONTAINER, FakeAgent, Mood, TestNode, Traces, broken_stdout};
use crate::{CIDR, remove, socket, with};

/// Steps at which debug builds can be made to fail (`ESPALIER_FAULT`), in order.
const STEPS: [&str; 16] = [
    "open-netlink",
    "loopback",
    "veth",
    "host-settings",
    "pod-settings",
    "open-pod-netlink",
    "find-pod-end",
    "pod-up",
    "pod-address",
    "pod-neighbour",
    "pod-route",
    "host-up",
    "host-gateway",
    "host-neighbour",
    "host-route",
    "carrier",
];

#[test]
fn an_add_that_fails_at_any_step_leaves_nothing() {
    isolated(
        "faults::an_add_that_fails_at_any_step_leaves_nothing",
        || {
            let node = TestNode::new();
            let agent = FakeAgent::start(&node, "10.244.1.0/24,fd00:1::/64");
            let config = node.config("1.1.0");
            let before = node.traces();
            for step in STEPS {
                let called =
                    node.call_with("ADD", &config, &[("ESPALIER_FAULT", step)], Stdio::piped());
                let text = called.failed(100);
                assert!(
                    text.contains(&format!("{step}: fault injected")),
                    "{step}: {text}"
                );
                assert_eq!(node.traces(), before, "{step}");
                assert_eq!((agent.leases(), node.queued()), (0, 0), "{step}");
            }
            node.add("1.1.0");
        },
    );
}

#[test]
fn an_add_that_the_kernel_or_the_runtime_stops_leaves_nothing() {
    isolated(
        "faults::an_add_that_the_kernel_or_the_runtime_stops_leaves_nothing",
        || {
            let node = TestNode::new();
            let agent = FakeAgent::start(&node, CIDR);
            let config = node.config("1.1.0");
            let clean = |before: &Traces| {
                assert_eq!(&node.traces(), before);
                assert_eq!((agent.leases(), node.queued()), (0, 0));
            };

            let before = node.traces();
            let called = node.call_with("ADD", &config, &[], broken_stdout());
            assert_eq!(called.0.status.code(), Some(1));
            clean(&before);

            for (netns, part) in [
                ("/run/netns/nobody", "No such file"),
                ("/proc/self/ns/net", "the host's own"),
            ] {
                let text = node
                    .call_with("ADD", &config, &[("CNI_NETNS", netns)], Stdio::piped())
                    .failed(4);
                assert!(text.contains(part) && text.contains("CNI_NETNS"), "{text}");
                clean(&before);
            }

            agent.mood(Mood {
                nonsense: true,
                ..Mood::default()
            });
            let text = node.call("ADD", &config).failed(102);
            assert!(text.contains("the gateway \"nowhere\""), "{text}");
            clean(&before);
            agent.mood(Mood::default());

            node.pod
                .run(|| socket().add_bridge("eth0").unwrap())
                .unwrap();
            let before = node.traces();
            assert!(
                node.call("ADD", &config)
                    .failed(100)
                    .contains("choose another CNI_IFNAME")
            );
            clean(&before);

            socket().add_bridge("br9").unwrap();
            let index = socket().index_of("br9").unwrap();
            socket()
                .add_route(&RouteEntry::unicast(
                    "10.244.1.0/24".parse().unwrap(),
                    None,
                    index,
                ))
                .unwrap();
            (4..8).for_each(|n| taken_route(index, n));
            node.pod.run(|| remove("eth0")).unwrap();
            let before = node.traces();
            assert!(node.call("ADD", &config).failed(100).contains("host-route"));
            clean(&before);
        },
    );
}

/// Somebody else's route to an address that is next in turn.
fn taken_route(index: u32, n: u8) {
    let to = format!("10.244.1.{n}/32").parse().unwrap();
    socket()
        .add_route(&RouteEntry::unicast(to, None, index))
        .unwrap();
}

#[test]
fn a_second_add_neither_harms_nor_frees_the_first() {
    isolated(
        "faults::a_second_add_neither_harms_nor_frees_the_first",
        || {
            let node = TestNode::new();
            let agent = FakeAgent::start(&node, CIDR);
            node.add("1.1.0");
            let before = node.traces();
            let text = node.call("ADD", &node.config("1.1.0")).failed(100);
            assert!(text.contains("DEL it before the next ADD"), "{text}");
            assert_eq!((node.traces() == before, agent.leases()), (true, 1));
            node.assert_pod_reaches_gateway();
        },
    );
}

#[test]
fn without_an_agent_add_says_so_and_del_is_kept_for_later() {
    isolated(
        "faults::without_an_agent_add_says_so_and_del_is_kept_for_later",
        || {
            let node = TestNode::new();
            let config = node.config("1.1.0");
            let before = node.traces();
            // The first step of making an interface: it is not even begun.
            let fault = [("ESPALIER_FAULT", "open-netlink")];
            let called = node.call_with("ADD", &config, &fault, Stdio::piped());
            let text = called.failed(11);
            assert!(
                text.contains("/run/test/agent.sock") && text.contains("start espalier-agent"),
                "{text}"
            );
            assert!(
                node.call("STATUS", &config)
                    .failed(50)
                    .contains("/run/test/agent.sock")
            );
            assert_eq!(
                (node.traces() == before, node.queued()),
                (true, 0),
                "nothing happened, nothing is owed"
            );

            let agent = FakeAgent::start(&node, CIDR);
            let first = node.add("1.1.0");
            drop(agent);
            let text = node
                .call("CHECK", &with(config.clone(), "prevResult", first.clone()))
                .failed(11);
            assert!(text.contains("start espalier-agent"), "{text}");
            for _ in 0..2 {
                assert_eq!(node.call("DEL", &config).succeeded(), Value::Null);
                assert_eq!((node.traces() == before, node.queued()), (true, 1));
            }

            let agent = FakeAgent::start(&node, CIDR);
            assert_eq!(agent.leases(), 1);
            let consumed = agent.consume(&node);
            assert_eq!((consumed.released.len(), consumed.errors.len()), (1, 0));
            assert_eq!((agent.leases(), node.queued()), (0, 0));
        },
    );
}

#[test]
fn an_add_takes_its_queued_release_back() {
    isolated("faults::an_add_takes_its_queued_release_back", || {
        let node = TestNode::new();
        let agent = FakeAgent::start(&node, CIDR);
        node.add("1.1.0");
        drop(agent);
        node.call("DEL", &node.config("1.1.0")).succeeded();
        node.call("ADD", &node.config("1.1.0")).failed(11);
        assert_eq!(node.queued(), 1, "an ADD that fails owes the release still");

        let agent = FakeAgent::start(&node, CIDR);
        node.add("1.1.0");
        assert!(agent.consume(&node).released.is_empty());
        assert_eq!((agent.leases(), node.queued()), (1, 0));
        node.assert_pod_reaches_gateway();
    });
}

#[test]
fn an_agent_that_fails_halfway_is_owed_a_release() {
    isolated(
        "faults::an_agent_that_fails_halfway_is_owed_a_release",
        || {
            let node = TestNode::new();
            let agent = FakeAgent::start(&node, CIDR);
            let config = node.config("1.1.0");
            let before = node.traces();
            agent.mood(Mood {
                fails_after_allocate: true,
                ..Mood::default()
            });
            assert!(
                node.call("ADD", &config)
                    .failed(11)
                    .contains("the agent is stopping")
            );
            assert_eq!((agent.leases(), node.queued()), (0, 0), "released at once");

            agent.mood(Mood {
                fails_after_allocate: true,
                fails_release: true,
                ..Mood::default()
            });
            node.call("ADD", &config).failed(11);
            assert_eq!(
                (node.traces() == before, agent.leases(), node.queued()),
                (true, 1, 1)
            );
            agent.consume(&node);
            assert_eq!((agent.leases(), node.queued()), (0, 0));

            agent.mood(Mood {
                fails_release: true,
                ..Mood::default()
            });
            node.add("1.1.0");
            assert_eq!(node.call("DEL", &config).succeeded(), Value::Null);
            assert_eq!(
                (node.traces() == before, agent.leases(), node.queued()),
                (true, 1, 1)
            );
            agent.mood(Mood::default());
            node.call("DEL", &config).succeeded();
            assert_eq!(
                (agent.leases(), node.queued()),
                (0, 0),
                "a later DEL settles it"
            );
        },
    );
}

#[test]
fn an_interface_that_stays_keeps_its_address() {
    isolated("faults::an_interface_that_stays_keeps_its_address", || {
        let node = TestNode::new();
        let agent = FakeAgent::start(&node, CIDR);
        node.add("1.1.0");
        let host = host_name(CONTAINER, "eth0");
        remove(&host);
        socket().add_bridge(&host).unwrap();
        let text = node.call("DEL", &node.config("1.1.0")).failed(100);
        assert!(text.contains("not a veth of ours but bridge"), "{text}");
        assert_eq!((agent.leases(), node.queued()), (1, 0));
        remove(&host);
        node.call("DEL", &node.config("1.1.0")).succeeded();
        assert_eq!(agent.leases(), 0);
    });
}
