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
