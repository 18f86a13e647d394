use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use espalier_dataplane_core::{Direction, Event, Spi};
use espalier_testnet::isolated;

use crate::node::{Node, Protect, SERVICE, connect, name, pair, passes};

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
