use espalier_dataplane_core::{Dataplane as _, Direction, Error, PeerId, Sa, Spi, Suite};
use espalier_secret::SecretBytes;
use espalier_testnet::isolated;
use espalier_xfrm::{REQIDS, probe};

use crate::node::{Node, Protect, connect, done, name, pair, sa};

const FOREIGN: &str = "src 192.0.2.9 dst 192.0.2.1 proto esp spi 0x9000 reqid 42 mode transport";

fn add_foreign(node: &Node) {
    let key = "0x".to_owned() + &"42".repeat(36);
    node.ip(&format!(
        "xfrm state add {FOREIGN} aead rfc4106(gcm(aes)) {key} 128"
    ));
}

/// Without counters and times.
fn foreign(node: &Node) -> String {
    node.ip("xfrm state get src 192.0.2.9 dst 192.0.2.1 proto esp spi 0x9000")
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn foreign_states_are_not_touched() {
    isolated("ownership::foreign_states_are_not_touched", || {
        let (mut a, b) = pair();
        add_foreign(&a);
        let before = foreign(&a);
        a.restart();
        a.put(&b, false);
        b.put(&a, false);
        connect(&a, &b, 0x1000, |_| {});
        assert!(a.sas().iter().all(|sa| sa.spi != Spi(0x9000)));
        let plane = a.plane();
        // Its SPI is taken, and nothing of ours is known by that SPI.
        let mut peer = a.peer(9, false);
        peer.id = PeerId("node-9".into());
        done(plane.put_peer(peer)).unwrap();
        let taken = done(plane.install_sa(sa(9, Direction::In, 0x9000, Suite::Aes256Gcm16)));
        let text = taken.unwrap_err().to_string();
        assert!(text.contains("another program (reqid 42)"), "{text}");
        for direction in [Direction::In, Direction::Out] {
            done(plane.remove_sa(direction, Spi(0x9000))).unwrap();
        }
        done(plane.remove_peer(name(9))).unwrap();
        done(plane.remove_peer(name(2))).unwrap();
        assert_eq!(foreign(&a), before);
        assert!(a.sas().is_empty());
        assert_eq!(
            a.ip("xfrm state count").split_whitespace().last(),
            Some("1")
        );
    });
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn what_is_as_it_should_be_is_not_written() {
    isolated("ownership::what_is_as_it_should_be_is_not_written", || {
        let (mut a, b) = pair();
        let reqid = a.put(&b, false);
        b.put(&a, false);
        connect(&a, &b, 0x1000, |sa| sa.hard_seconds = 3600);
        let again = |a: &Node| {
            let before = a.plane().writes();
            assert_eq!(a.put(&b, false), reqid);
            for (direction, spi) in [(Direction::In, 0x1001), (Direction::Out, 0x1000)] {
                a.install(Sa {
                    hard_seconds: 3600,
                    ..sa(2, direction, spi, Suite::Aes256Gcm16)
                });
            }
            a.switch(2, 0x1000);
            done(a.plane().remove_sa(Direction::In, Spi(0x7777))).unwrap();
            done(a.plane().remove_peer(name(7))).unwrap();
            assert_eq!(a.plane().writes(), before);
        };
        again(&a);
        let before = (a.sas(), done(a.plane().hello()).unwrap().instance);
        a.restart();
        assert_eq!(a.plane().writes(), 0, "adopting writes nothing");
        let after = (a.sas(), done(a.plane().hello()).unwrap().instance);
        assert_eq!(before.1, after.1);
        assert_eq!(before.0.len(), after.0.len());
        again(&a);
    });
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn s4_an_outbound_sa_has_no_second_life() {
    isolated("ownership::s4_an_outbound_sa_has_no_second_life", || {
        let (mut a, b) = pair();
        a.put(&b, false);
        b.put(&a, false);
        connect(&a, &b, 0x1000, |_| {});
        let other_key = || Sa {
            key: SecretBytes::new(vec![9; 36]),
            ..sa(2, Direction::Out, 0x1000, Suite::Aes256Gcm16)
        };
        let refused = |a: &Node, sa: Sa| {
            let refused = done(a.plane().install_sa(sa));
            assert!(
                matches!(refused, Err(Error::SpiReused(Spi(0x1000)))),
                "{refused:?}"
            );
        };
        let before = a.ip("xfrm state get src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000");
        refused(&a, other_key());
        a.restart();
        refused(&a, other_key());
        let after = a.ip("xfrm state get src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000");
        assert_eq!(before, after, "the counter goes on");
        done(a.plane().remove_sa(Direction::Out, Spi(0x1000))).unwrap();
        refused(&a, other_key());
        refused(&a, sa(2, Direction::Out, 0x1000, Suite::Aes256Gcm16));
        assert_eq!(a.sas().len(), 1);
    });
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn s4_an_outbound_sa_that_somebody_flushed_is_not_put_back() {
    isolated(
        "ownership::s4_an_outbound_sa_that_somebody_flushed_is_not_put_back",
        || {
            let (a, b) = pair();
            a.put(&b, false);
            b.put(&a, false);
            connect(&a, &b, 0x1000, |_| {});
            a.ip("xfrm state flush");
            let out = done(
                a.plane()
                    .install_sa(sa(2, Direction::Out, 0x1000, Suite::Aes256Gcm16)),
            );
            assert!(matches!(out, Err(Error::SpiReused(_))), "{out:?}");
            let inbound =
                done(
                    a.plane()
                        .install_sa(sa(2, Direction::In, 0x1001, Suite::Aes256Gcm16)),
                );
            assert!(
                matches!(inbound, Err(Error::Invalid { field: "spi", .. })),
                "{inbound:?}"
            );
            assert!(a.sas().is_empty());
        },
    );
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn s3_a_key_is_installed_once() {
    isolated("ownership::s3_a_key_is_installed_once", || {
        let (mut a, b) = pair();
        a.put(&b, false);
        b.put(&a, false);
        connect(&a, &b, 0x1000, |_| {});
        a.restart();
        let key = sa(2, Direction::Out, 0x1000, Suite::Aes256Gcm16).key;
        for (direction, spi) in [(Direction::In, 0x5000), (Direction::Out, 0x5001)] {
            let refused = done(a.plane().install_sa(Sa {
                key: key.clone(),
                ..sa(2, direction, spi, Suite::Aes256Gcm16)
            }));
            assert!(
                matches!(refused, Err(Error::Invalid { field: "key", .. })),
                "{refused:?}"
            );
        }
    });
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn a_restarted_process_knows_what_is_active_and_whose_states_these_are() {
    isolated(
        "ownership::a_restarted_process_knows_what_is_active_and_whose_states_these_are",
        || {
            let (mut a, b) = pair();
            let reqid = a.put(&b, false);
            b.put(&a, false);
            connect(&a, &b, 0x1000, |_| {});
            connect(&a, &b, 0x2000, |_| {});
            let protect = Protect {
                v6: false,
                reqid,
                spi: Some(0x2000),
                ah: false,
            };
            a.protect(&b, protect);
            a.restart();
            assert!(!a.sa(Direction::Out, 0x1000).active && a.sa(Direction::Out, 0x2000).active);
            assert_eq!(a.put(&b, false), reqid);

            // The list of peers is lost: the states are told under what is left of the name, and can be removed.
            a.stop();
            std::fs::write(a.run_dir.path().join("kernel-peers.json"), b"\xff{").unwrap();
            a.restart();
            let dump = done(a.plane().dump()).unwrap();
            let stranger = PeerId(format!("reqid-{:08x}", reqid.0));
            assert_eq!(dump.peers.len(), 1);
            assert_eq!(
                (&dump.peers[0].0.id, dump.peers[0].0.remote),
                (&stranger, [192, 0, 2, 2].into())
            );
            assert!(dump.sas.len() == 4 && dump.sas.iter().all(|sa| sa.peer == stranger));
            assert_ne!(a.put(&b, false), reqid, "not while its states are there");
            done(a.plane().remove_peer(stranger)).unwrap();
            assert_eq!(a.ip("xfrm state"), "");
        },
    );
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn a_probe_leaves_nothing_behind_and_removes_what_a_killed_one_left() {
    isolated(
        "ownership::a_probe_leaves_nothing_behind_and_removes_what_a_killed_one_left",
        || {
            let (a, _b) = pair();
            let key = "0x".to_owned() + &"42".repeat(36);
            a.ip(&format!(
                "xfrm state add src 198.51.100.1 dst 203.0.113.1 proto esp spi 0x9000 reqid {} aead rfc4106(gcm(aes)) {key} 128",
                REQIDS.start()
            ));
            let findings = a.netns.run(probe).unwrap();
            println!("{}: {findings:#?}", a.ip("-V").trim());
            assert_eq!(a.ip("xfrm state"), "");
            let can = &findings.can;
            assert_eq!((findings.problem, can.suites.len()), (None, 6));
            assert!(can.raw && can.udp && can.tunnel && can.esn && can.max_replay_window == 4096);
        },
    );
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn what_the_kernel_cannot_do_is_refused_by_field() {
    isolated(
        "ownership::what_the_kernel_cannot_do_is_refused_by_field",
        || {
            let (a, b) = pair();
            a.put(&b, false);
            let base = || sa(2, Direction::In, 0x1000, Suite::Aes256Gcm16);
            let cases = [
                (
                    "spi",
                    Sa {
                        spi: Spi(255),
                        ..base()
                    },
                ),
                (
                    "key",
                    Sa {
                        key: SecretBytes::new(vec![1; 20]),
                        ..base()
                    },
                ),
                (
                    "replay_window",
                    Sa {
                        replay_window: 8192,
                        ..base()
                    },
                ),
                (
                    "cpu",
                    Sa {
                        cpu: Some(1000),
                        ..base()
                    },
                ),
                (
                    "encapsulation",
                    Sa {
                        encapsulation: crate::node::UDP,
                        ..sa(2, Direction::In, 0x1000, Suite::AhHmacSha256)
                    },
                ),
            ];
            for (wanted, sa) in cases {
                match done(a.plane().install_sa(sa)) {
                    Err(Error::Invalid { field, .. }) => assert_eq!(field, wanted),
                    other => panic!("{wanted}: {other:?}"),
                }
            }
            let unknown = Sa {
                peer: name(8),
                ..base()
            };
            assert!(matches!(
                done(a.plane().install_sa(unknown)),
                Err(Error::NoSuchPeer(_))
            ));
            let missing = done(a.plane().switch_outbound(name(2), Some(Spi(0x1234))));
            assert!(matches!(missing, Err(Error::NoSuchSa(_, Spi(0x1234)))));
            assert_eq!(a.ip("xfrm state"), "");
        },
    );
}
