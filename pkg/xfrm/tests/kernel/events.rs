use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use espalier_dataplane_core::{Direction, Event, Spi};
use espalier_testnet::isolated;

use crate::node::{LIMIT, Node, Protect, SERVICE, connect, host, name, pair, passes};

fn protected(spi: u32) -> (Node, Node) {
    let (a, b) = pair();
    let (to_b, to_a) = (a.put(&b, false), b.put(&a, false));
    connect(&a, &b, spi, |_| {});
    for (node, other, reqid, spi) in [(&a, &b, to_b, spi), (&b, &a, to_a, spi + 1)] {
        let protect = Protect {
            v6: false,
            reqid,
            spi: Some(spi),
            ah: false,
        };
        node.protect(other, protect);
    }
    (a, b)
}

fn first(spi: u32) -> Event {
    Event::FirstPacket {
        peer: name(1),
        spi: Spi(spi),
    }
}

/// The soft limit that tells of the first packet marks the state as dying; it opens packets as before.
#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn the_first_packet_is_told_once_and_the_sa_is_unharmed() {
    isolated(
        "events::the_first_packet_is_told_once_and_the_sa_is_unharmed",
        || {
            let (a, b) = protected(0x1000);
            let (service_a, service_b) = (a.bind(false, SERVICE), b.bind(false, SERVICE));
            for n in 0..3000_u32 {
                passes(&service_a, &service_b, &n.to_be_bytes());
            }
            assert_eq!(
                b.events.recv_timeout(Duration::from_secs(5)),
                Ok(first(0x1000))
            );
            let inbound = b.sa(Direction::In, 0x1000);
            assert!(inbound.active && inbound.packets == 3000 && inbound.drops == 0);
            assert_eq!(
                b.events.recv_timeout(Duration::from_millis(500)),
                Err(RecvTimeoutError::Timeout)
            );
        },
    );
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn a_single_packet_is_told_too() {
    isolated("events::a_single_packet_is_told_too", || {
        let (a, b) = protected(0x1000);
        let (service_a, service_b) = (a.bind(false, SERVICE), b.bind(false, SERVICE));
        passes(&service_a, &service_b, b"one");
        b.wait_for(&first(0x1000));
    });
}

/// S6: what is not authenticated is no first packet.
#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn s6_forged_packets_are_no_first_packet() {
    isolated("events::s6_forged_packets_are_no_first_packet", || {
        let (a, b) = pair();
        let to_b = a.put(&b, false);
        let to_a = b.put(&a, false);
        connect(&a, &b, 0x1000, |_| {});
        // Another key under the same SPI, installed by somebody else.
        a.ip("xfrm state delete src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000");
        let key = "0x".to_owned() + &"99".repeat(36);
        a.ip(&format!(
            "xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 reqid {} mode transport \
             replay-window 32 flag esn aead rfc4106(gcm(aes)) {key} 128",
            to_b.0
        ));
        let protect = |reqid, spi| Protect {
            v6: false,
            reqid,
            spi: Some(spi),
            ah: false,
        };
        a.protect(&b, protect(to_b, 0x1000));
        b.protect(&a, protect(to_a, 0x1001));
        let (service_a, service_b) = (a.bind(false, SERVICE), b.bind(false, SERVICE));
        for _ in 0..10 {
            service_a
                .send_to(b"forged", service_b.local_addr().unwrap())
                .unwrap();
        }
        // A genuine packet of the other SA tells that the time was long enough.
        passes(&service_b, &service_a, b"genuine");
        a.wait_for(&Event::FirstPacket {
            peer: name(2),
            spi: Spi(0x1001),
        });
        let inbound = b.sa(Direction::In, 0x1000);
        assert!(!inbound.active && inbound.drops == 10, "{inbound:?}");
        assert!(b.events.try_recv().is_err());
    });
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn at_the_hard_lifetime_an_sa_goes_and_is_told() {
    isolated(
        "events::at_the_hard_lifetime_an_sa_goes_and_is_told",
        || {
            let (a, b) = pair();
            a.put(&b, false);
            b.put(&a, false);
            connect(&a, &b, 0x1000, |sa| sa.hard_seconds = 2);
            assert_eq!(a.sas().len(), 2);
            for (direction, spi) in [(Direction::Out, 0x1000), (Direction::In, 0x1001)] {
                a.wait_for(&Event::Expired {
                    peer: name(2),
                    direction,
                    spi: Spi(spi),
                });
            }
            assert!(a.sas().is_empty());
            assert_eq!(a.ip("xfrm state"), "");
        },
    );
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn a_packet_without_an_sa_asks_for_one() {
    isolated("events::a_packet_without_an_sa_asks_for_one", || {
        let (a, b) = pair();
        let (to_b, to_a) = (a.put(&b, false), b.put(&a, false));
        let protect = |reqid| Protect {
            v6: false,
            reqid,
            spi: None,
            ah: false,
        };
        a.protect(&b, protect(to_b));
        b.protect(&a, protect(to_a));
        let (service_a, service_b) = (a.bind(false, SERVICE), b.bind(false, SERVICE));
        let _ = service_a.send_to(b"dropped", service_b.local_addr().unwrap());
        a.wait_for(&Event::Acquire { peer: name(2) });
        assert!(a.sas().is_empty(), "what the kernel waits for is no SA");
        connect(&a, &b, 0x1000, |_| {});
        passes(&service_a, &service_b, b"passes");
    });
}

/// The kernel has no room for events that nobody reads (ENOBUFS): the list of states tells what they would have told.
#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn events_that_were_lost_are_made_up_for() {
    isolated("events::events_that_were_lost_are_made_up_for", || {
        let (a, b) = pair();
        let (to_b, _) = (a.put(&b, false), b.put(&a, false));
        let protect = Protect {
            v6: false,
            reqid: to_b,
            spi: None,
            ah: false,
        };
        a.protect(&b, protect);
        let held = a.gate.lock().unwrap();
        let _ = a
            .bind(false, SERVICE)
            .send_to(b"asks for an SA", (host(false, 2), SERVICE));
        connect(&a, &b, 0x1000, |sa| sa.hard_seconds = 4);
        let key = "0x".to_owned() + &"99".repeat(36);
        a.ip(&format!(
            "xfrm state add src 192.0.2.1 dst 192.0.2.9 proto esp spi 0x9 reqid 7 mode transport \
             aead rfc4106(gcm(aes)) {key} 128"
        ));
        flood(&a);
        assert!(drops(&a) > 0, "the kernel had room for all");
        let deadline = Instant::now() + LIMIT;
        while a.ip("xfrm state").contains("0x0000100") {
            assert!(Instant::now() < deadline, "the SA does not expire");
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(held);
        for (direction, spi) in [(Direction::In, 0x1001), (Direction::Out, 0x1000)] {
            a.wait_for(&Event::Expired {
                peer: name(2),
                direction,
                spi: Spi(spi),
            });
        }
        assert!(a.sas().is_empty());
    });
}

/// More soft expiries of a foreign state than the plane's socket has room for, each asked for by a message.
fn flood(node: &Node) {
    const EXPIRE: u16 = 0x18;
    // xfrm_user_expire in front of its end: selector 56, daddr 16, SPI, protocol; the family stands at 212.
    let mut message = vec![0; 16 + 232];
    let length = u32::try_from(message.len()).unwrap();
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&EXPIRE.to_ne_bytes());
    message[6..8].copy_from_slice(&1_u16.to_ne_bytes()); // NLM_F_REQUEST
    message[72..76].copy_from_slice(&[192, 0, 2, 9]);
    message[88..92].copy_from_slice(&9_u32.to_be_bytes());
    message[92] = 50;
    message[228..230].copy_from_slice(&2_u16.to_ne_bytes()); // AF_INET
    let many = message.repeat(100);
    let open = || netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_XFRM).unwrap();
    let socket = node.netns.run(open).unwrap();
    for _ in 0..500 {
        socket.send(&many, 0).unwrap();
    }
}

/// Messages that the kernel could not put into XFRM sockets of this namespace.
fn drops(node: &Node) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let table = node.netns.run(read).unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace());
    let xfrm = rows
        .map(Iterator::collect::<Vec<_>>)
        .filter(|row| row[1] == "6");
    xfrm.map(|row| row[8].parse::<u64>().unwrap()).sum()
}

/// Nothing that was lost is missed: here the plane was away all the time.
#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn what_happened_while_no_process_ran_is_found() {
    isolated(
        "events::what_happened_while_no_process_ran_is_found",
        || {
            let (a, mut b) = protected(0x1000);
            b.stop();
            let (service_a, service_b) = (a.bind(false, SERVICE), b.bind(false, SERVICE));
            passes(&service_a, &service_b, b"nobody is told");
            b.restart();
            assert!(b.sa(Direction::In, 0x1000).active);
        },
    );
}
