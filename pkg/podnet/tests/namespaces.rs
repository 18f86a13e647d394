//! Pod interfaces in real namespaces:
//!
//! ```text
//!  sandbox (the host)                      │ Netns "pod"
//!  lo 10.244.1.1/32   esp… ────────────────┼──── eth0 10.244.1.5/32 (fd00:1::5/128)
//! ```
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use espalier_netlink::{Link, LinkChange, Route, RouteEntry, RouteFilter, Socket};
use espalier_podnet::{
    Error, Identity, PodAddress, PodSpec, ROUTE_PROTOCOL, check, exists, host_name, list, setup,
    teardown,
};
use espalier_testnet::{Netns, isolated};

const MTU: u32 = 1408;
/// `RTPROT_KERNEL`.
const KERNEL: u8 = 2;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn spec(netns: &Netns, addresses: &[(&str, &str)]) -> PodSpec {
    let address = |(address, gateway): &(&str, &str)| PodAddress {
        address: ip(address),
        gateway: ip(gateway),
    };
    PodSpec {
        network: "mesh".into(),
        container_id: "c0ffee".into(),
        ifname: "eth0".into(),
        netns: netns.path().to_owned(),
        addresses: addresses.iter().map(address).collect(),
        mtu: MTU,
    }
}

const V4: (&str, &str) = ("10.244.1.5", "10.244.1.1");
const V6: (&str, &str) = ("fd00:1::5", "fe80::1");

/// The host with its gateway address, and a pod.
fn host_and_pod() -> Netns {
    espalier_testnet::address("lo", ip("10.244.1.1"), 32).unwrap();
    Netns::new("pod").unwrap()
}

fn socket() -> Socket<Route> {
    Socket::open().unwrap()
}

/// Everything that an ADD could leave, on both sides. Routes that the kernel makes by itself go with their device and come
/// a moment after it.
fn traces(pod: &Netns) -> (Vec<Link>, Vec<RouteEntry>, Vec<Link>, Vec<RouteEntry>) {
    let look = || {
        let mut routes = socket().routes(RouteFilter::default()).unwrap();
        routes.retain(|route| route.protocol != KERNEL);
        (socket().links().unwrap(), routes)
    };
    let ((host_links, host_routes), (pod_links, pod_routes)) = (look(), pod.run(look).unwrap());
    (host_links, host_routes, pod_links, pod_routes)
}

/// One byte from the pod to the host and back.
fn reaches(pod: &Netns, listen: SocketAddr, connect: SocketAddr) {
    let listener = TcpListener::bind(listen).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (mut target, mut byte) = (connect, [0]);
    target.set_port(port);
    let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(10)).unwrap();
    let mut inside = pod.run(connect).unwrap();
    let (mut outside, _) = listener.accept().unwrap();
    inside.write_all(&[7]).unwrap();
    outside.read_exact(&mut byte).unwrap();
    outside.write_all(&[byte[0] + 1]).unwrap();
    inside.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [8]);
}

#[test]
fn a_pod_reaches_its_gateway_and_leaves_nothing() {
    isolated("a_pod_reaches_its_gateway_and_leaves_nothing", || {
        let pod = host_and_pod();
        let before = traces(&pod);
        let spec = spec(&pod, &[V4]);
        let made = setup(&spec).unwrap().commit();
        assert_eq!(made.host_name, host_name("c0ffee", "eth0"));
        assert_eq!(check(&spec).unwrap(), Vec::<String>::new());
        reaches(
            &pod,
            "10.244.1.1:0".parse().unwrap(),
            "10.244.1.1:0".parse().unwrap(),
        );

        let link = socket().link(&made.host_name).unwrap().unwrap();
        assert_eq!((link.mtu, link.mac), (MTU, Some(made.host_mac)));
        let ours = socket()
            .routes(RouteFilter {
                protocol: Some(ROUTE_PROTOCOL),
                oif: None,
            })
            .unwrap();
        assert_eq!(
            ours.iter().map(|r| r.to.to_string()).collect::<Vec<_>>(),
            ["10.244.1.5/32"]
        );
        let owner = Identity {
            network: "mesh".into(),
            container_id: "c0ffee".into(),
            ifname: "eth0".into(),
        };
        let listed: Vec<_> = list()
            .unwrap()
            .into_iter()
            .map(|veth| (veth.name, veth.owner))
            .collect();
        assert_eq!(listed, [(made.host_name, Some(owner))]);

        for _ in 0..2 {
            teardown("c0ffee", "eth0", Some(pod.path())).unwrap();
            assert_eq!(traces(&pod), before);
        }
        assert!(!exists("c0ffee", "eth0").unwrap());
    });
}

#[test]
fn a_dual_stack_pod_reaches_its_link_local_gateway() {
    isolated("a_dual_stack_pod_reaches_its_link_local_gateway", || {
        let pod = host_and_pod();
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            eprintln!("this kernel has no IPv6");
            return;
        }
        // What some runtimes do in every namespace.
        pod.run(|| espalier_testnet::sysctl("ipv6/conf/default/disable_ipv6", "1"))
            .unwrap()
            .unwrap();
        let spec = spec(&pod, &[V4, V6]);
        let made = setup(&spec).unwrap().commit();
        assert_eq!(check(&spec).unwrap(), Vec::<String>::new());
        let inside = pod.run(|| socket().index_of("eth0")).unwrap().unwrap();
        let outside = socket().index_of(&made.host_name).unwrap();
        let gateway =
            |scope| SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 0, 0, scope));
        reaches(&pod, gateway(outside), gateway(inside));
        teardown("c0ffee", "eth0", None).unwrap();
        assert!(list().unwrap().is_empty());
    });
}

#[test]
fn what_is_not_committed_is_taken_back() {
    isolated("what_is_not_committed_is_taken_back", || {
        let pod = host_and_pod();
        pod.run(|| down("lo")).unwrap();
        let before = traces(&pod);
        let pending = setup(&spec(&pod, &[V4])).unwrap();
        assert_eq!(pending.interface().host_name, host_name("c0ffee", "eth0"));
        assert_ne!(traces(&pod), before);
        drop(pending);
        assert_eq!(traces(&pod), before);
    });
}

#[test]
fn a_refused_step_takes_back_the_ones_before() {
    isolated("a_refused_step_takes_back_the_ones_before", || {
        let pod = host_and_pod();
        let spec = spec(&pod, &[V4]);
        let fails = |part: &str| {
            let before = traces(&pod);
            let error = setup(&spec).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(traces(&pod), before, "after: {error}");
            error
        };

        pod.run(|| socket().add_bridge("eth0")).unwrap().unwrap();
        assert!(matches!(
            fails("choose another CNI_IFNAME"),
            Error::PodNameTaken { .. }
        ));
        pod.run(|| remove("eth0")).unwrap();

        pod.run(|| elsewhere("0.0.0.0/0")).unwrap();
        fails("pod-route");
        pod.run(|| remove("br9")).unwrap();

        elsewhere("10.244.1.5/32");
        fails("host-route");
        remove("br9");

        socket().add_bridge(&host_name("c0ffee", "eth0")).unwrap();
        assert!(matches!(
            fails("DEL it before"),
            Error::HostNameTaken { .. }
        ));
        let error = teardown("c0ffee", "eth0", None).unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        remove(&host_name("c0ffee", "eth0"));

        drop(setup(&spec).unwrap());
    });
}

#[test]
fn the_hosts_own_namespace_is_never_a_pods() {
    isolated("the_hosts_own_namespace_is_never_a_pods", || {
        let pod = host_and_pod();
        let before = traces(&pod);
        let mut spec = spec(&pod, &[V4]);
        spec.netns = PathBuf::from("/proc/self/ns/net");
        assert!(matches!(setup(&spec), Err(Error::HostNetns { .. })));
        spec.netns = PathBuf::from("/run/netns/nobody");
        assert!(matches!(setup(&spec), Err(Error::Netns { .. })));
        spec.netns = PathBuf::from("/proc/self/ns/mnt");
        assert!(matches!(setup(&spec), Err(Error::Netns { .. })));
        assert_eq!(traces(&pod), before);
        teardown("c0ffee", "eth0", Some("/proc/self/ns/net".as_ref())).unwrap();
    });
}

#[test]
fn teardown_needs_no_namespace() {
    isolated("teardown_needs_no_namespace", || {
        let pod = host_and_pod();
        let gone = pod.path().to_owned();
        let before = socket().links().unwrap();
        setup(&spec(&pod, &[V4])).unwrap().commit();
        teardown("c0ffee", "eth0", None).unwrap();
        assert_eq!(socket().links().unwrap(), before);

        drop(pod);
        teardown("c0ffee", "eth0", Some(&gone)).unwrap();
        std::fs::write(&gone, "").unwrap();
        assert_ne!(std::fs::metadata(&gone).unwrap().ino(), 0);
        teardown("c0ffee", "eth0", Some(&gone)).unwrap();
        teardown("c0ffee", "eth0", Some(&gone.join("below"))).unwrap();
    });
}

#[test]
fn a_renamed_host_end_is_found_from_the_pods_side() {
    isolated("a_renamed_host_end_is_found_from_the_pods_side", || {
        let pod = host_and_pod();
        let before = socket().links().unwrap();
        let made = setup(&spec(&pod, &[V4])).unwrap().commit();
        let index = socket().index_of(&made.host_name).unwrap();
        socket()
            .set_link(
                index,
                &LinkChange {
                    name: Some("renamed"),
                    ..LinkChange::default()
                },
            )
            .unwrap();
        teardown("c0ffee", "eth1", Some(pod.path())).unwrap();
        assert!(
            socket().link("renamed").unwrap().is_some(),
            "another interface was asked for"
        );
        teardown("c0ffee", "eth0", Some(pod.path())).unwrap();
        assert_eq!(socket().links().unwrap(), before);
    });
}

#[test]
fn check_names_every_difference() {
    isolated("check_names_every_difference", || {
        let pod = host_and_pod();
        let spec = spec(&pod, &[V4]);
        let differs = |part: &str| {
            let found = check(&spec).unwrap().join("; ");
            assert!(found.contains(part), "{part:?} is missing in {found:?}");
        };
        differs("pod: interface eth0 is missing");
        let made = setup(&spec).unwrap().commit();
        differs("");

        pod.run(|| {
            change(
                "eth0",
                LinkChange {
                    mtu: Some(1300),
                    ..LinkChange::default()
                },
            )
        })
        .unwrap();
        differs("pod: interface eth0 has MTU 1300: expected 1408");
        pod.run(|| {
            let index = socket().index_of("eth0").unwrap();
            socket()
                .del_address(index, "10.244.1.5/32".parse().unwrap())
                .unwrap();
        })
        .unwrap();
        differs("pod: address 10.244.1.5/32 is missing");
        pod.run(|| down("eth0")).unwrap();
        differs("pod: interface eth0 is down");
        differs("pod: route 0.0.0.0/0 is missing");
        down(&made.host_name);
        differs("host: route 10.244.1.5/32 is missing");
        differs("host: neighbour 10.244.1.5 is missing");
        teardown("c0ffee", "eth0", Some(pod.path())).unwrap();
        differs("host: interface esp");
    });
}

fn change(name: &str, change: LinkChange<'_>) {
    let index = socket().index_of(name).unwrap();
    socket().set_link(index, &change).unwrap();
}

fn down(name: &str) {
    change(
        name,
        LinkChange {
            up: Some(false),
            ..LinkChange::default()
        },
    );
}

fn remove(name: &str) {
    let index = socket().index_of(name).unwrap();
    socket().del_link(index).unwrap();
}

/// A route of somebody else over the bridge `br9`.
fn elsewhere(to: &str) {
    socket().add_bridge("br9").unwrap();
    let index = socket().index_of("br9").unwrap();
    socket()
        .add_route(&RouteEntry::unicast(to.parse().unwrap(), None, index))
        .unwrap();
}
