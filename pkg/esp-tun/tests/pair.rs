//! Two whole engines on loopback; a socket pair stands in for each TUN device.
//!
//! ```text
//!  pods 10.244.1.0/24                                            pods 10.244.2.0/24
//!  socket pair ── engine 1 ── 127.0.0.1:p ═══ESP═══ 127.0.0.2:q ── engine 2 ── socket pair
//! ```

#![allow(clippy::unwrap_used)]

mod common;

use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use espalier_dataplane_core::{Dataplane as _, Direction, Event, Frozen, Overlay, Spi};
use espalier_esp_tun::io::{RawSockets, Udp};
use espalier_esp_tun::{Config, Engine, Error, Report, Several};

use common::{Node, encrypt, now, peer, sa};

const VXLAN: Overlay = Overlay::Vxlan {
    vni: 4789,
    port: 4789,
};

/// Only to fail instead of hanging.
const LIMIT: Duration = Duration::from_secs(20);

struct Host {
    node: Node,
    engine: Engine,
    pods: UnixDatagram,
    reports: mpsc::Receiver<Report>,
    /// The engine's own descriptors, as a successor gets them.
    tun: UnixDatagram,
    udp: OwnedFd,
}

fn host(n: u8) -> Host {
    let (tun, pods) = UnixDatagram::pair().unwrap();
    tun.set_nonblocking(true).unwrap();
    pods.set_read_timeout(Some(LIMIT)).unwrap();
    let udp = Udp::bind(0).unwrap();
    let kept = (
        tun.try_clone().unwrap(),
        udp.as_fd().try_clone_to_owned().unwrap(),
    );
    let (config, reports) = config(n, tun, udp);
    let engine = Engine::start(config).unwrap();
    let node = Node {
        n,
        address: [127, 0, 0, n].into(),
        port: engine.port(),
    };
    Host {
        node,
        engine,
        pods,
        reports,
        tun: kept.0,
        udp: kept.1,
    }
}

fn config(n: u8, tun: UnixDatagram, udp: Udp) -> (Config, mpsc::Receiver<Report>) {
    let (sender, reports) = mpsc::channel();
    let config = Config {
        instance: n.into(),
        version: "test".into(),
        device: "none".into(),
        tun: Several::one(Arc::new(tun)),
        udp: Several::one(udp),
        raw: RawSockets::none("not here"),
        relay: None,
        report: Box::new(move |report| sender.send(report).unwrap_or_default()),
    };
    (config, reports)
}

fn pair(overlay: Overlay) -> (Host, Host) {
    let (one, two) = (host(1), host(2));
    now(one.engine.put_peer(peer(one.node, two.node, overlay))).unwrap();
    now(two.engine.put_peer(peer(two.node, one.node, overlay))).unwrap();
    encrypt(
        (one.node, &one.engine),
        (two.node, &two.engine),
        Spi(0x1200),
    );
    encrypt(
        (two.node, &two.engine),
        (one.node, &one.engine),
        Spi(0x2100),
    );
    (one, two)
}

fn packet(source: [u8; 4], destination: [u8; 4], number: u32) -> Vec<u8> {
    let header = [0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 253, 0, 0];
    [
        &header[..],
        &source,
        &destination,
        &[0; 4],
        &number.to_be_bytes(),
    ]
    .concat()
}

impl Host {
    fn receives(&self, expected: &[u8]) {
        let mut buffer = [0; 2048];
        let len = self.pods.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], expected);
    }

    /// Another engine goes on with what this one leaves.
    fn replace(&mut self) {
        let frozen = self.engine.freeze();
        let udp = Udp::resume(self.udp.try_clone().unwrap()).unwrap();
        // Of the config's instance nothing is left.
        let (config, reports) = config(0, self.tun.try_clone().unwrap(), udp);
        self.engine = Engine::resume(config, frozen).unwrap();
        self.reports = reports;
    }

    fn drops(&self, reason: &str) -> u64 {
        let dump = now(self.engine.dump()).unwrap();
        dump.drops
            .iter()
            .find(|(name, _)| name == reason)
            .map_or(0, |(_, count)| *count)
    }
}

/// Sends a packet to `to` and waits for it: everything sent to it before has then been judged.
fn flush(from: &Host, to: &Host, number: u32) {
    let last = packet([10, 244, from.node.n, 9], [10, 244, to.node.n, 9], number);
    from.pods.send(&last).unwrap();
    to.receives(&last);
}

#[test]
fn packets_pass_both_ways_in_order_and_unchanged() {
    for overlay in [VXLAN, Overlay::Ipip] {
        let (one, two) = pair(overlay);
        for number in 0..200 {
            let there = packet([10, 244, 1, 2], [10, 244, 2, 3], number);
            one.pods.send(&there).unwrap();
            two.receives(&there);
            let back = packet([10, 244, 2, 3], [10, 244, 1, 2], number);
            two.pods.send(&back).unwrap();
            one.receives(&back);
        }
        let dump = now(one.engine.dump()).unwrap();
        assert_eq!(dump.drops, []);
        assert!(
            dump.sas
                .iter()
                .all(|sa| sa.active && sa.packets == 200 && sa.drops == 0 && sa.idle_ms.is_some())
        );
        let framing = if overlay == VXLAN { 30 } else { 0 };
        assert!(dump.sas.iter().all(|sa| sa.bytes == 200 * (28 + framing)));
    }
}

#[test]
fn the_first_packet_of_each_inbound_sa_is_announced() {
    let (one, two) = pair(VXLAN);
    (0..3).for_each(|number| flush(&one, &two, number));
    let Ok(Report::Event(first)) = two.reports.recv_timeout(LIMIT) else {
        unreachable!("an event comes first")
    };
    assert_eq!(
        first,
        Event::FirstPacket {
            peer: one.node.id(),
            spi: Spi(0x1200)
        }
    );
    assert!(two.reports.try_recv().is_err(), "once");
}

#[test]
fn a_rekey_under_traffic_loses_nothing() {
    let (one, two) = pair(VXLAN);
    let sent = 3000;
    std::thread::scope(|scope| {
        let rekeyed = scope.spawn(|| {
            for spi in 0x1201..0x1220 {
                encrypt((one.node, &one.engine), (two.node, &two.engine), Spi(spi));
                now(one.engine.remove_sa(Direction::Out, Spi(spi - 1))).unwrap();
            }
        });
        for number in 0..sent {
            let packet = packet([10, 244, 1, 2], [10, 244, 2, 3], number);
            one.pods.send(&packet).unwrap();
            two.receives(&packet);
        }
        rekeyed.join().unwrap();
    });
    assert_eq!(
        (
            now(one.engine.dump()).unwrap().drops,
            now(two.engine.dump()).unwrap().drops
        ),
        (vec![], vec![])
    );
}

/// Sends numbered packets from one to two, and does `work` with the engines again and again until all are there.
fn under_traffic(one: &mut Host, two: &mut Host, mut work: impl FnMut(&mut Host, &mut Host)) {
    // No more are under way than a socket pair holds, unlike a TUN device.
    let (sent, at_once, arrived) = (5000, 8, AtomicU32::new(0));
    let (sender, receiver) = (one.pods.try_clone().unwrap(), two.pods.try_clone().unwrap());
    let numbered = |number| packet([10, 244, 1, 2], [10, 244, 2, 3], number);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..sent {
                let begun = Instant::now();
                while number - arrived.load(Ordering::Acquire) >= at_once {
                    assert!(begun.elapsed() < LIMIT, "{number} does not get through");
                    std::thread::yield_now();
                }
                sender.send(&numbered(number)).unwrap();
            }
        });
        let received = scope.spawn(|| {
            let mut buffer = [0; 2048];
            for number in 0..sent {
                let len = receiver.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..len], numbered(number), "in order, none lost");
                arrived.fetch_add(1, Ordering::AcqRel);
            }
        });
        while !received.is_finished() {
            work(one, two);
        }
    });
    for host in [one, two] {
        assert_eq!(now(host.engine.dump()).unwrap().drops, []);
    }
}

#[test]
fn a_freeze_that_is_thawed_loses_nothing() {
    let (mut one, mut two) = pair(VXLAN);
    under_traffic(&mut one, &mut two, |one, two| {
        for host in [one, two] {
            let progress = |frozen: Frozen| frozen.sas.into_iter().map(|sa| sa.progress);
            let frozen = progress(host.engine.freeze());
            assert!(frozen.eq(progress(host.engine.snapshot())), "it is still");
            host.engine.thaw().unwrap();
        }
    });
}

#[test]
fn a_successor_takes_over_under_traffic_and_nothing_is_lost() {
    let (mut one, mut two) = pair(VXLAN);
    let mut times = 0;
    under_traffic(&mut one, &mut two, |one, two| {
        one.replace();
        two.replace();
        times += 1;
    });
    assert!(times > 1);
    for host in [&one, &two] {
        let hello = now(host.engine.hello()).unwrap();
        assert_eq!(hello.instance, u64::from(host.node.n), "no SA is lost");
    }
    let dump = now(one.engine.dump()).unwrap();
    let sealed: Vec<_> = dump.sas.iter().map(|sa| sa.packets).collect();
    assert_eq!(sealed, [0, 5000], "counters go on: {dump:?}");
}

#[test]
fn s1_a_peer_without_an_outbound_sa_gets_nothing() {
    let (one, two) = pair(VXLAN);
    now(one.engine.switch_outbound(two.node.id(), None)).unwrap();
    one.pods
        .send(&packet([10, 244, 1, 2], [10, 244, 2, 3], 1))
        .unwrap();
    one.pods
        .send(&packet([10, 244, 1, 2], [10, 244, 7, 3], 2))
        .unwrap();
    // The TX thread takes packets in order, but is not there yet when the SA is: wait for its counters.
    while one.drops("no_peer") == 0 {
        std::thread::yield_now();
    }
    now(one.engine.switch_outbound(two.node.id(), Some(Spi(0x1200)))).unwrap();
    flush(&one, &two, 3);
    let dump = now(one.engine.dump()).unwrap();
    assert_eq!(dump.drops, [("no_peer".into(), 1), ("no_sa".into(), 1)]);
    assert_eq!(dump.peers[0].1.no_sa_drops, 1);
}

#[test]
fn s4_an_outbound_sa_is_never_made_again() {
    let (one, two) = pair(VXLAN);
    let again = sa(one.node, two.node, Direction::Out, Spi(0x1200));
    now(one.engine.install_sa(again.clone())).unwrap();
    flush(&one, &two, 1);
    now(one.engine.remove_sa(Direction::Out, Spi(0x1200))).unwrap();
    let refused = now(one.engine.install_sa(again)).unwrap_err();
    assert!(
        matches!(
            refused,
            espalier_dataplane_core::Error::SpiReused(Spi(0x1200))
        ),
        "{refused}"
    );
}

#[test]
fn s5_spoofed_pods_are_dropped_and_counted() {
    let (one, two) = pair(VXLAN);
    one.pods
        .send(&packet([10, 244, 3, 2], [10, 244, 2, 3], 1))
        .unwrap();
    one.pods
        .send(&packet([10, 244, 2, 9], [10, 244, 2, 3], 2))
        .unwrap();
    flush(&one, &two, 3);
    assert_eq!(two.drops("foreign_source"), 2);
    assert_eq!(now(two.engine.dump()).unwrap().peers[0].1.policy_drops, 2);
}

#[test]
fn s6_strangers_change_nothing() {
    let (one, two) = pair(VXLAN);
    flush(&one, &two, 1);
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = (two.node.address, two.node.port);
    let before = now(two.engine.dump())
        .unwrap()
        .sas
        .iter()
        .map(|sa| sa.packets)
        .sum::<u64>();
    for len in 0..100 {
        let mut garbage = vec![0x5a; len];
        stranger.send_to(&garbage, to).unwrap();
        garbage
            .iter_mut()
            .zip(0x1200_u32.to_be_bytes())
            .for_each(|(byte, spi)| *byte = spi);
        stranger.send_to(&garbage, to).unwrap();
    }
    stranger.send_to(&[0xff], to).unwrap();
    stranger.send_to(b"\0\0\0\0ike for nobody", to).unwrap();
    flush(&one, &two, 2);
    let dump = now(two.engine.dump()).unwrap();
    assert_eq!(
        dump.sas.iter().map(|sa| sa.packets).sum::<u64>(),
        before + 1
    );
    assert_eq!(
        dump.drops.iter().map(|(_, count)| count).sum::<u64>(),
        200 + 1
    );
    assert_eq!(two.drops("ike_relay"), 1);
}

#[test]
fn a_device_that_is_gone_is_reported() {
    struct Gone(UnixDatagram);
    impl std::os::fd::AsFd for Gone {
        fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
    impl espalier_esp_tun::io::PacketIo for Gone {
        fn recv(&self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(77)) // EBADFD, what a deleted TUN device says
        }
        fn send(&self, _: &[u8]) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (sender, reports) = mpsc::channel();
    let _engine = Engine::start(Config {
        instance: 1,
        version: "test".into(),
        device: "gone".into(),
        tun: Several::one(Arc::new(Gone(UnixDatagram::unbound().unwrap()))),
        udp: Several::one(Udp::bind(0).unwrap()),
        raw: RawSockets::none("not here"),
        relay: None,
        report: Box::new(move |report| sender.send(report).unwrap_or_default()),
    })
    .unwrap();
    let report = reports.recv_timeout(LIMIT).unwrap();
    assert!(
        matches!(
            report,
            Report::Failed(Error::Broken {
                what: "TUN device",
                ..
            })
        ),
        "{report:?}"
    );
}

#[test]
fn hello_tells_the_process() {
    let one = host(1);
    let hello = now(one.engine.hello()).unwrap();
    assert_eq!(
        (hello.instance, hello.kind.as_str(), hello.device.as_deref()),
        (1, "userspace", Some("none"))
    );
    assert_eq!(hello.pid, std::process::id());
    assert!(matches!(one.node.address, IpAddr::V4(_)));
}
