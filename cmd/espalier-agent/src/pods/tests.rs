use espalier_testnet::{Netns, isolated};
use tonic::Code;

use super::*;

struct Node {
    _state: tempfile::TempDir,
    _facts: watch::Sender<NodeFacts>,
    pods: Pods,
}

/// Pods of a node that is ready, with one pod CIDR.
fn node(cidr: &str) -> Node {
    let state = tempfile::tempdir().unwrap();
    let facts = NodeFacts {
        pod_cidrs: vec![cidr.parse().unwrap()],
        mtu: 1408,
        not_ready: Vec::new(),
    };
    let (sender, facts) = watch::channel(facts);
    let pods = Pods {
        state_dir: state.path().to_owned(),
        facts,
        store: Mutex::new(None),
        removals: Removals::default(),
    };
    Node {
        _state: state,
        _facts: sender,
        pods,
    }
}

async fn allocate(pods: &Pods, network: &str, container: &str) -> Result<String, Status> {
    let request = AllocateRequest {
        container_id: container.into(),
        ifname: "eth0".into(),
        network: network.into(),
        ..AllocateRequest::default()
    };
    let reply = pods.allocate(Request::new(request)).await?.into_inner();
    Ok(reply.addresses[0].address.clone())
}

fn reference(container: &str) -> ReleaseRequest {
    ReleaseRequest {
        container_id: container.into(),
        ifname: "eth0".into(),
    }
}

/// There is no interface of these containers on the machine that tests.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_without_an_interface_is_given_back_after_a_while() {
    let node = node("10.244.1.0/24");
    allocate(&node.pods, "mesh", "no-such-container")
        .await
        .unwrap();
    let (mut orphans, start) = (Orphans::default(), Instant::now());
    for look in 0..4 {
        node.pods.compare(&mut orphans, start + COMPARE * look);
        assert_eq!(node.pods.leases(), 1, "look {look}");
    }
    node.pods.compare(&mut orphans, start + COMPARE * 4);
    assert_eq!(node.pods.leases(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn detach_without_an_interface_gives_the_address_back() {
    let node = node("10.244.1.0/24");
    allocate(&node.pods, "mesh", "no-such-container")
        .await
        .unwrap();
    for released in [true, false] {
        let request = Request::new(reference("no-such-container"));
        let reply = node.pods.detach(request).await.unwrap().into_inner();
        assert_eq!((reply.found, reply.released), (false, released));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_gives_back_what_its_network_leased() {
    let node = node("10.244.1.0/24");
    for (network, container) in [("mesh", "a"), ("mesh", "b"), ("other", "c")] {
        allocate(&node.pods, network, container).await.unwrap();
    }
    let request = CollectRequest {
        network: "mesh".into(),
        keep: vec![reference("a")],
    };
    let reply = node.pods.collect(Request::new(request)).await.unwrap();
    assert_eq!(reply.into_inner().released, [reference("b")]);
    assert_eq!(node.pods.leases(), 2);
    let nameless = Request::new(CollectRequest::default());
    let refused = node.pods.collect(nameless).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_says_when_addresses_are_exhausted() {
    let node = node("10.244.1.0/30");
    let ready = || Cni::ready(&node.pods, Request::new(ReadyRequest {}));
    ready().await.unwrap();
    allocate(&node.pods, "mesh", "a").await.unwrap();
    let refused = ready().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("1 of 1 in use"), "{refused}");
}

/// A pod CIDR that is added or taken away counts at once; who has an address keeps it.
#[tokio::test(flavor = "multi_thread")]
async fn pod_cidrs_change_under_living_pods() {
    let node = node("10.244.1.0/30");
    let first = allocate(&node.pods, "mesh", "a").await.unwrap();
    assert!(allocate(&node.pods, "mesh", "b").await.is_err());
    let change = |cidrs: &[&str]| {
        let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        node._facts.send_modify(|facts| facts.pod_cidrs = cidrs);
    };
    change(&["10.244.1.0/30", "10.244.2.0/30"]);
    assert_eq!(
        allocate(&node.pods, "mesh", "b").await.unwrap(),
        "10.244.2.2/32"
    );
    change(&["10.244.2.0/30"]);
    assert_eq!(allocate(&node.pods, "mesh", "a").await.unwrap(), first);
    assert_eq!(node.pods.leases(), 2);
}

/// A pod with its interface and its lease. It goes with its namespace.
async fn wired(node: &Node, container: &str) -> Netns {
    let address = allocate(&node.pods, "mesh", container).await.unwrap();
    let netns = Netns::new(container).unwrap();
    let spec = espalier_podnet::PodSpec {
        network: "mesh".into(),
        container_id: container.into(),
        ifname: "eth0".into(),
        netns: netns.path().to_owned(),
        addresses: vec![espalier_podnet::PodAddress {
            address: address.parse::<IpNet>().unwrap().addr(),
            gateway: "10.244.1.1".parse().unwrap(),
        }],
        mtu: 1408,
    };
    espalier_podnet::setup(&spec).unwrap().commit();
    netns
}

/// Runs `body` in a sandbox with a node whose pod CIDR is 10.244.1.0/24. `name` as for [`isolated`].
fn on_a_node<F: Future<Output = ()>>(name: &str, body: impl FnOnce(Arc<Node>) -> F) {
    isolated(name, || {
        espalier_testnet::address("lo", "10.244.1.1".parse().unwrap(), 32).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(body(Arc::new(node("10.244.1.0/24"))));
    });
}

fn there() -> usize {
    espalier_podnet::list().unwrap().len()
}

#[test]
fn pods_that_end_at_once_all_go_with_their_leases() {
    let name = "pods::tests::pods_that_end_at_once_all_go_with_their_leases";
    on_a_node(name, |node| async move {
        let (mut pods, mut ends) = (Vec::new(), tokio::task::JoinSet::new());
        for n in 0..24 {
            pods.push(wired(&node, &format!("pod{n}")).await);
        }
        for n in 0..23 {
            let node = node.clone();
            let request = Request::new(reference(&format!("pod{n}")));
            ends.spawn(async move { node.pods.detach(request).await });
        }
        for reply in ends.join_all().await {
            let reply = reply.unwrap().into_inner();
            assert!(reply.found && reply.released);
        }
        assert_eq!((there(), node.pods.leases()), (1, 1));
    });
}

/// A plugin that was killed, or gave up, may have been followed by an ADD of the same container.
#[test]
fn who_does_not_wait_any_more_has_nothing_removed() {
    let name = "pods::tests::who_does_not_wait_any_more_has_nothing_removed";
    on_a_node(name, |node| async move {
        let _pods = [wired(&node, "left").await, wired(&node, "waits").await];
        let turn = node.pods.removals.take_turn().await;
        let waits = node.pods.detach(Request::new(reference("left")));
        let gave_up = tokio::time::timeout(Duration::from_millis(1), waits).await;
        assert!(gave_up.is_err());
        drop(turn);
        let waits = node.pods.detach(Request::new(reference("waits")));
        assert!(waits.await.unwrap().into_inner().released);
        let left = espalier_podnet::list().unwrap();
        assert_eq!(left[0].owner.as_ref().unwrap().container_id, "left");
        assert_eq!((left.len(), node.pods.leases()), (1, 1));
    });
}

/// Something else has the interface's name: it stays, with its address, and is no reason for others to wait.
#[test]
fn one_that_cannot_go_does_not_keep_the_others() {
    let name = "pods::tests::one_that_cannot_go_does_not_keep_the_others";
    on_a_node(name, |node| async move {
        let _pods = [wired(&node, "one").await, wired(&node, "two").await];
        allocate(&node.pods, "mesh", "foreign").await.unwrap();
        let taken = espalier_podnet::host_name("foreign", "eth0");
        let mut socket = espalier_netlink::Socket::<espalier_netlink::Route>::open().unwrap();
        socket.add_bridge(&taken).unwrap();
        let turn = node.pods.removals.take_turn().await;
        let mut ends = tokio::task::JoinSet::new();
        for container in ["one", "foreign", "two"] {
            let node = node.clone();
            let request = Request::new(reference(container));
            ends.spawn(async move { node.pods.detach(request).await.map(Response::into_inner) });
        }
        tokio::task::yield_now().await;
        drop(turn);
        let replies = ends.join_all().await;
        let refused: Vec<_> = replies.iter().filter_map(|r| r.as_ref().err()).collect();
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].code(), Code::FailedPrecondition);
        assert_eq!((there(), node.pods.leases()), (0, 1));
    });
}
