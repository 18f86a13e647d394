//! Two engines with real TUN devices in two network namespaces, and applications that know nothing of it.
//!
//! ```text
//!  netns a                                             netns b
//!  10.244.1.1/32 on lo                                 10.244.2.1/32 on lo
//!  espalier.tun ── engine ── eth0 192.0.2.1 ═══ESP═══ 192.0.2.2 eth0 ── engine ── espalier.tun
//! ```

#![allow(clippy::unwrap_used)]

mod common;

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use espalier_dataplane_core::{Dataplane as _, Overlay, Spi};
use espalier_esp_tun::io::{RawSockets, Tun, Udp};
use espalier_esp_tun::{Config, Engine, Error, Several};
use espalier_ike_io::relay::DataplaneEnd;
use espalier_testnet::{Netns, VethEnd, address, isolated, sysctl, veth};

use common::{Node, encrypt, now, peer};

const TUN: &str = "espalier.tun";

fn node(netns: &Netns, n: u8, other: u8) -> (Node, Engine) {
    let underlay = [192, 0, 2, n];
    let engine = netns
        .run(|| {
            address("eth0", underlay.into(), 24).unwrap();
            address("lo", [10, 244, n, 1].into(), 32).unwrap();
            start(n)
        })
        .unwrap();
    let pods = format!("10.244.{other}.0/24");
    let gateway = format!("10.244.{n}.1");
    netns
        .output(Command::new("ip").args(["route", "add", &pods, "dev", TUN, "src", &gateway]))
        .unwrap();
    (
        Node {
            n,
            address: underlay.into(),
            port: engine.port(),
        },
        engine,
    )
}

fn start(n: u8) -> Engine {
    Engine::start(Config {
        instance: n.into(),
        version: "test".into(),
        device: TUN.into(),
        tun: Several::one(Arc::new(Tun::open(TUN, 1408).unwrap())),
        udp: Several::one(Udp::bind(4500).unwrap()),
        raw: RawSockets::none("not here"),
        relay: None,
        report: Box::new(|_| {}),
    })
    .unwrap()
}

fn socket(netns: &Netns, at: &str) -> UdpSocket {
    let socket = netns.run(|| UdpSocket::bind(at).unwrap()).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    socket
}

#[test]
fn udp_between_two_namespaces_is_esp_on_the_wire() {
    isolated("udp_between_two_namespaces_is_esp_on_the_wire", || {
        let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
        veth(
            VethEnd {
                netns: &a,
                name: "eth0",
            },
            VethEnd {
                netns: &b,
                name: "eth0",
            },
            1500,
        )
        .unwrap();
        let (one, engine_one) = node(&a, 1, 2);
        let (two, engine_two) = node(&b, 2, 1);
        let overlay = Overlay::Vxlan {
            vni: 4789,
            port: 4789,
        };
        now(engine_one.put_peer(peer(one, two, overlay))).unwrap();
        now(engine_two.put_peer(peer(two, one, overlay))).unwrap();
        encrypt((one, &engine_one), (two, &engine_two), Spi(0x1200));
        encrypt((two, &engine_two), (one, &engine_one), Spi(0x2100));

        let (client, server) = (socket(&a, "10.244.1.1:5000"), socket(&b, "10.244.2.1:7"));
        let mut buffer = [0; 2048];
        // The largest unfragmented datagram of a pod, and one that IP has to fragment on its way into the TUN device.
        for len in [0, 1, 100, 1380, 2000] {
            let request: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
            client.send_to(&request, "10.244.2.1:7").unwrap();
            let (got, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(
                (&buffer[..got], from),
                (&request[..], "10.244.1.1:5000".parse().unwrap()),
                "{len} bytes"
            );
            server.send_to(&request, from).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), request.len());
        }
        let dump = now(engine_two.dump()).unwrap();
        assert!(
            dump.sas.iter().all(|sa| sa.packets >= 5 && sa.active),
            "{dump:?}"
        );
        assert_eq!(
            dump.drops
                .iter()
                .filter(|(reason, _)| reason != "multicast")
                .count(),
            0,
            "{dump:?}"
        );

        let tun_is_there = |netns: &Netns| {
            netns
                .output(Command::new("ip").args(["link", "show", TUN]))
                .is_ok()
        };
        assert!(tun_is_there(&a));
        drop(engine_one);
        assert!(
            !tun_is_there(&a),
            "the device, and every route over it, goes with the engine"
        );
    });
}

#[test]
fn ipv6_underlay_and_pods_work_as_well() {
    isolated("ipv6_underlay_and_pods_work_as_well", || {
        let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
        veth(
            VethEnd {
                netns: &a,
                name: "eth0",
            },
            VethEnd {
                netns: &b,
                name: "eth0",
            },
            1500,
        )
        .unwrap();
        let nodes = [(&a, 1), (&b, 2)].map(|(netns, n)| {
            let underlay: IpAddr = format!("2001:db8::{n}").parse().unwrap();
            let engine = netns.run(|| {
                // Addresses are usable at once: nobody else is here.
                sysctl("ipv6/conf/eth0/accept_dad", "0").unwrap();
                address("eth0", underlay, 64).unwrap();
                address("lo", format!("fd00:{n}::1").parse().unwrap(), 128).unwrap();
                start(n)
            });
            let engine = engine.unwrap();
            let (pods, gateway) = (format!("fd00:{}::/64", 3 - n), format!("fd00:{n}::1"));
            let route = ["route", "add", &pods, "dev", TUN, "src", &gateway];
            netns.output(Command::new("ip").args(route)).unwrap();
            (
                Node {
                    n,
                    address: underlay,
                    port: engine.port(),
                },
                engine,
            )
        });
        let [(one, engine_one), (two, engine_two)] = &nodes;
        for overlay in [
            Overlay::Vxlan {
                vni: 4789,
                port: 4789,
            },
            Overlay::Ipip,
        ] {
            now(engine_one.put_peer(peer(*one, *two, overlay))).unwrap();
            now(engine_two.put_peer(peer(*two, *one, overlay))).unwrap();
            let spi = if overlay == Overlay::Ipip {
                0x3000
            } else {
                0x4000
            };
            encrypt((*one, engine_one), (*two, engine_two), Spi(spi));
            let (client, server) = (socket(&a, "[fd00:1::1]:0"), socket(&b, "[fd00:2::1]:7"));
            let mut buffer = [0; 2048];
            client.send_to(b"over IPv6", "[fd00:2::1]:7").unwrap();
            let (got, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(
                (&buffer[..got], from),
                (&b"over IPv6"[..], client.local_addr().unwrap())
            );
        }
    });
}

#[test]
fn ike_passes_between_the_port_and_the_agent() {
    isolated("ike_passes_between_the_port_and_the_agent", || {
        let netns = Netns::new("a").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let engine = netns
            .run(|| {
                Engine::start(Config {
                    instance: 1,
                    version: "test".into(),
                    device: TUN.into(),
                    tun: Several::one(Arc::new(Tun::open(TUN, 1408).unwrap())),
                    udp: Several::one(Udp::bind(4500).unwrap()),
                    raw: RawSockets::none("not here"),
                    relay: Some(DataplaneEnd::bind(dir.path()).unwrap()),
                    report: Box::new(|_| {}),
                })
                .unwrap()
            })
            .unwrap();
        // The agent's end, as plain as the wire format.
        let agent =
            std::os::unix::net::UnixDatagram::bind(dir.path().join(espalier_ike_io::AGENT_SOCKET))
                .unwrap();
        agent
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let remote = socket(&netns, "127.0.0.9:0");
        remote
            .send_to(b"\0\0\0\0request", "127.0.0.1:4500")
            .unwrap();
        let mut buffer = [0; 2048];
        let len = agent.recv(&mut buffer).unwrap();
        let (path, message) = espalier_ike_io::relay::decode(&buffer[..len]).unwrap();
        assert_eq!(message, b"request");
        assert_eq!(
            (path.local.to_string().as_str(), path.remote),
            ("127.0.0.1:4500", remote.local_addr().unwrap())
        );

        let response = espalier_ike_io::relay::encode(&path, b"response").unwrap();
        agent
            .send_to(
                &response,
                dir.path().join(espalier_ike_io::DATAPLANE_SOCKET),
            )
            .unwrap();
        let (len, from) = remote.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..len], from),
            (&b"\0\0\0\0response"[..], path.local)
        );
        drop(engine);
    });
}

#[test]
fn what_is_taken_is_named_with_a_remedy() {
    isolated("what_is_taken_is_named_with_a_remedy", || {
        let netns = Netns::new("a").unwrap();
        netns
            .run(|| {
                let _tun = Tun::open(TUN, 1408).unwrap();
                let busy = Tun::open(TUN, 1408).map(|_| ()).unwrap_err();
                assert!(matches!(busy, Error::TunBusy(_)), "{busy}");
                let other_kind = Tun::open("lo", 1408).map(|_| ()).unwrap_err();
                assert!(matches!(other_kind, Error::TunBusy(_)), "{other_kind}");
                let too_long = Tun::open("a-name-of-more-than-15", 1408)
                    .map(|_| ())
                    .unwrap_err();
                assert!(
                    too_long.to_string().contains("a-name-of-more-than-15"),
                    "{too_long}"
                );
                let _port = Udp::bind(4500).unwrap();
                assert!(Udp::bind(4500).unwrap_err().to_string().contains("4500"));
            })
            .unwrap();
    });
}

#[test]
fn the_device_has_the_mtu_and_lets_both_paths_of_a_pair_in() {
    isolated(
        "the_device_has_the_mtu_and_lets_both_paths_of_a_pair_in",
        || {
            let netns = Netns::new("a").unwrap();
            netns
                .run(|| {
                    let _tun = Tun::open(TUN, 1388).unwrap();
                    let read = |path: String| std::fs::read_to_string(path).unwrap();
                    assert_eq!(
                        netns
                            .output(
                                Command::new("cat")
                                    .arg(format!("/proc/sys/net/ipv4/conf/{TUN}/rp_filter"))
                            )
                            .unwrap(),
                        "2\n"
                    );
                    assert!(read("/proc/thread-self/net/dev".into()).contains(TUN));
                    let link = netns
                        .output(Command::new("ip").args(["link", "show", TUN]))
                        .unwrap();
                    assert!(link.contains("mtu 1388") && link.contains("UP"), "{link}");
                })
                .unwrap();
        },
    );
}
