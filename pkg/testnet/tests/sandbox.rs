//! The sandbox is private, complete, and gone afterwards.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;

use espalier_netlink::{Route, Socket};
use espalier_testnet::{Bridge, Netns, address, inside, isolated};

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn two_hosts() -> (Bridge, Netns, Netns) {
    let bridge = Bridge::new("wire", 1500).unwrap();
    let hosts = [("a", A), ("b", B)].map(|(name, ip)| {
        let netns = Netns::new(name).unwrap();
        bridge.connect(&netns, "eth0", name).unwrap();
        netns
            .run(|| address("eth0", IpAddr::V4(ip), 24))
            .unwrap()
            .unwrap();
        netns
    });
    let [a, b] = hosts;
    (bridge, a, b)
}

#[test]
fn datagrams_cross_the_bridge() {
    isolated("datagrams_cross_the_bridge", || {
        let (_bridge, a, b) = two_hosts();
        let receiver = b.run(|| UdpSocket::bind((B, 9000))).unwrap().unwrap();
        let sender = a.run(|| UdpSocket::bind((A, 0))).unwrap().unwrap();
        sender.send_to(b"hello", (B, 9000)).unwrap();
        let mut buffer = [0; 16];
        let (length, from) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"hello");
        assert_eq!(from.ip(), IpAddr::V4(A));
    });
}

#[test]
fn a_process_runs_in_its_namespace_and_ends_with_its_handle() {
    isolated(
        "a_process_runs_in_its_namespace_and_ends_with_its_handle",
        || {
            let a = Netns::new("a").unwrap();
            let process = a.spawn(Command::new("sleep").arg("600")).unwrap();
            let proc_dir = format!("/proc/{}", process.id());
            let its = std::fs::read_link(format!("{proc_dir}/ns/net")).unwrap();
            let own = a.run(|| std::fs::read_link("/proc/thread-self/ns/net"));
            assert_eq!(its, own.unwrap().unwrap());
            assert_ne!(its, std::fs::read_link("/proc/self/ns/net").unwrap());
            drop(process);
            assert!(!std::path::Path::new(&proc_dir).exists());
        },
    );
}

#[test]
fn a_dropped_namespace_takes_its_devices_along() {
    isolated("a_dropped_namespace_takes_its_devices_along", || {
        let (bridge, a, _b) = two_hosts();
        let path = a.path().to_owned();
        drop(a);
        assert!(!path.exists());
        // The kernel removes a namespace some time after its last user: the port's name becomes free then.
        let free = || {
            let mut socket = Socket::<Route>::open().unwrap();
            socket.link("a").unwrap().is_none()
        };
        let gone = bridge.netns().run(|| {
            let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while !free() && std::time::Instant::now() < end {
                std::thread::yield_now();
            }
            free()
        });
        assert!(gone.unwrap());
    });
}

#[test]
fn outside_a_sandbox_no_namespace_is_made() {
    assert!(!inside());
    let error = Netns::new("a").unwrap_err();
    assert!(error.to_string().contains("found the host"), "{error}");
}

#[test]
#[should_panic(expected = "did not run in its sandbox")]
fn a_wrong_name_is_noticed() {
    isolated("no_such_test", || {});
}

#[test]
#[should_panic(expected = "the inner reason")]
fn an_inner_failure_fails_the_test() {
    if inside() {
        // The outer run must see a failure: leave without libtest's `should_panic`.
        eprintln!("the inner reason");
        std::process::exit(3);
    }
    isolated("an_inner_failure_fails_the_test", || {});
}
