//! Raw or in UDP: agreed for each CHILD_SA, in every exchange that makes one, between two nodes of a mesh (docs/encapsulation.md).

use std::net::SocketAddr;
use std::time::Duration;

use espalier_ike::wire::{Notify, NotifyType, Payload};
use espalier_ike::{
    ChildSa, Connect, Encapsulation, Encapsulations, Event, Path, PeerConfig, PostQuantum, Rekeying,
};

use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Raw};
use crate::sim::{Net, Weather, address, id, ip, peer_config, psk};

const LONG: Duration = Duration::from_secs(300);
const RAW: Encapsulations = Encapsulations {
    raw: true,
    udp: false,
};
const UDP: Encapsulations = Encapsulations {
    raw: false,
    udp: true,
};
const BOTH: Encapsulations = Encapsulations {
    raw: true,
    udp: true,
};

fn config(own: usize, can: Option<Encapsulations>) -> PeerConfig {
    let mut config = peer_config(own, 1 - own, psk(7));
    config.child.encapsulations = can;
    config
}

/// Two nodes that can this.
fn pair(can: [Option<Encapsulations>; 2]) -> Net {
    let mut net = Net::new(1, 2, None);
    for (node, can) in can.into_iter().enumerate() {
        set(&mut net, node, can);
    }
    net
}

fn set(net: &mut Net, node: usize, can: Option<Encapsulations>) {
    let now = net.now;
    let endpoint = &mut net.nodes[node].endpoint;
    endpoint.put_peer(config(node, can), now).unwrap();
}

fn connected(can: [Option<Encapsulations>; 2], by: usize) -> Net {
    let mut net = pair(can);
    net.connect(by, 1 - by, Connect::Restart);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(1));
    net
}

/// The newest CHILD_SA.
fn newest(net: &Net, node: usize) -> ChildSa {
    net.child_ups(node).pop().unwrap().1
}

fn agreed(net: &Net) -> Option<Encapsulation> {
    let [a, b] = [newest(net, 0), newest(net, 1)];
    assert_eq!((a.spi_in, a.encapsulation), (b.spi_out, b.encapsulation));
    let in_udp = a.encapsulation == Some(Encapsulation::Udp);
    assert_eq!(a.udp_encapsulation.is_some(), in_udp);
    assert_eq!(b.udp_encapsulation.is_some(), in_udp);
    a.encapsulation
}

/// Of every CHILD_SA that both ends have they say the same.
fn assert_alike(net: &Net) {
    for (_, a, _) in net.child_ups(0) {
        for (_, b, _) in net.child_ups(1) {
            if a.spi_in == b.spi_out {
                assert_eq!(a.encapsulation, b.encapsulation);
                assert!(a.encapsulation.is_some());
            }
        }
    }
}

#[test]
fn raw_is_agreed_on_where_both_can_else_udp() {
    for (ours, theirs, expected) in [
        (BOTH, BOTH, Encapsulation::Raw),
        (BOTH, RAW, Encapsulation::Raw),
        (RAW, BOTH, Encapsulation::Raw),
        (BOTH, UDP, Encapsulation::Udp),
        (UDP, BOTH, Encapsulation::Udp),
        (UDP, UDP, Encapsulation::Udp),
    ] {
        for by in [0, 1] {
            for childless in [false, true] {
                let mut net = Net::new(1, 2, None);
                for (node, can) in [ours, theirs].into_iter().enumerate() {
                    let config = PeerConfig {
                        childless,
                        ..config(node, Some(can))
                    };
                    net.nodes[node].endpoint.put_peer(config, net.now).unwrap();
                }
                net.connect(by, 1 - by, Connect::Restart);
                assert!(net.run_until(LONG, Net::all_settled));
                assert_eq!(agreed(&net), Some(expected), "{ours} {theirs} {by}");
                net.run(Duration::from_secs(1));
                net.rekey_child(1 - by, by);
                net.run(Duration::from_secs(10));
                assert_eq!(net.child_ups(0).len(), 2);
                assert_eq!(agreed(&net), Some(expected), "rekeyed");
            }
        }
    }
}

#[test]
fn nothing_in_common_is_refused_with_a_remedy_at_either_end() {
    for (ours, theirs) in [(RAW, UDP), (UDP, RAW)] {
        let mut net = pair([Some(ours), Some(theirs)]);
        net.connect(0, 1, Connect::Restart);
        net.run(Duration::from_secs(5));
        assert_eq!(net.child_ups(0).len() + net.child_ups(1).len(), 0);
        let why = net.failures(1).join("; ");
        assert!(why.contains("udpEncapsulation: Auto on both"), "{why}");
        assert!(
            why.contains("raw only") && why.contains("in UDP only"),
            "{why}"
        );
        let told = net.failures(0).join("; ");
        assert!(told.contains("NoProposalChosen"), "{told}");
    }
}

#[test]
fn an_end_that_says_nothing_of_it_leaves_it_to_nat_detection() {
    for can in [[None, Some(UDP)], [Some(BOTH), None], [None, None]] {
        for by in [0, 1] {
            let net = connected(can, by);
            let [a, b] = [newest(&net, 0), newest(&net, 1)];
            assert_eq!((a.encapsulation, b.encapsulation), (None, None));
            assert_eq!((a.udp_encapsulation, b.udp_encapsulation), (None, None));
        }
    }
}

#[test]
fn foreign_peers_are_not_told_and_not_heard() {
    let mut net = pair([Some(BOTH), Some(BOTH)]);
    net.strict = false;
    let mut raw = Raw::init(&mut net, address(1), 0, false);
    let mut child = raw::child(4711, address(1), address(0));
    child.push(Payload::Notify(Notify::new(
        NotifyType::EspalierEncapsulation,
        &[2],
    )));
    let answer = raw
        .auth_psk(
            &mut net,
            "node-01",
            &SecretBytes::copy_from(&[7; 32]),
            &child,
        )
        .unwrap();
    assert_eq!(answer.notifies(), [NotifyType::UseTransportMode]);
    let up = newest(&net, 0);
    assert_eq!((up.encapsulation, up.udp_encapsulation), (None, None));
}

#[test]
fn behind_a_nat_it_is_always_udp() {
    for (ours, theirs, works) in [(BOTH, BOTH, true), (BOTH, RAW, false)] {
        for by in [0, 1] {
            let mut net = Net::new(1, 2, None);
            for (node, can) in [ours, theirs].into_iter().enumerate() {
                let mut config = config(node, Some(can));
                config.force_udp_encapsulation = node == 0;
                net.nodes[node].endpoint.put_peer(config, net.now).unwrap();
            }
            net.connect(by, 1 - by, Connect::Restart);
            net.run(Duration::from_secs(5));
            assert_eq!(net.all_settled(), works, "{by}");
            if works {
                assert_eq!(agreed(&net), Some(Encapsulation::Udp));
            }
        }
    }
}

#[test]
fn the_ports_of_udp_are_4500_whatever_ike_uses() {
    let mut net = Net::new(1, 2, None);
    for node in [0, 1] {
        let mut config = config(node, Some(UDP));
        config.local.set_port(500);
        config.remote.set_port(500);
        net.nodes[node].endpoint.put_peer(config, net.now).unwrap();
    }
    net.connect(0, 1, Connect::Restart);
    assert!(net.run_until(LONG, Net::all_settled));
    let at = |node| SocketAddr::new(ip(node), 4500);
    let path = Path {
        local: at(0),
        remote: at(1),
    };
    assert_eq!(newest(&net, 0).udp_encapsulation, Some(path));
}

#[test]
fn a_rekey_may_agree_on_another_way() {
    for by in [0, 1] {
        let mut net = connected([Some(BOTH), Some(BOTH)], by);
        assert_eq!(agreed(&net), Some(Encapsulation::Raw));
        for (can, expected) in [
            (UDP, Encapsulation::Udp),
            (BOTH, Encapsulation::Raw),
            (UDP, Encapsulation::Udp),
        ] {
            set(&mut net, by, Some(can));
            net.rekey_child(by, 1 - by);
            net.run(Duration::from_secs(10));
            assert_eq!(agreed(&net), Some(expected));
        }
        assert_eq!(
            net.count(0, |event| matches!(event, Event::IkeUp { .. })),
            1
        );
    }
}

#[test]
fn of_rekeys_that_cross_each_keeps_what_it_agreed_on() {
    for seed in 0..30 {
        let mut net = connected([Some(BOTH), Some(BOTH)], 0);
        net.weather = Weather::BAD;
        let post_quantum = seed % 3 == 0;
        if post_quantum {
            net.post_quantum(PostQuantum::Preferred);
        }
        for round in 0..4 {
            // One end would rather have UDP now, the other takes either.
            let can = if round % 2 == 0 { UDP } else { BOTH };
            set(&mut net, seed % 2, Some(can));
            net.rekey_child(0, 1);
            net.rekey_child(1, 0);
            net.run(Duration::from_secs(30));
            assert_alike(&net);
        }
        net.weather = Weather::FINE;
        net.run(Duration::from_secs(60));
        assert_alike(&net);
        assert!(net.all_settled(), "seed {seed}");
    }
}

#[test]
fn further_child_sas_have_a_way_of_their_own() {
    let mut net = connected([Some(BOTH), Some(BOTH)], 0);
    for node in [0, 1] {
        let child = config(node, Some(UDP)).child;
        net.add_child(node, 1 - node, 1, child);
    }
    net.run(Duration::from_secs(10));
    assert_eq!((net.child_ups(0).len(), net.child_ups(1).len()), (2, 2));
    assert_eq!(agreed(&net), Some(Encapsulation::Udp));
    assert_eq!(newest(&net, 0).id.number, 1);
    // Each is rekeyed as what it is.
    let ups = net.child_ups(0);
    for (_, old, _) in ups {
        let now = net.now;
        net.nodes[0].endpoint.rekey_child_sa(old.spi_in, now);
        net.pump(0);
        net.run(Duration::from_secs(10));
        assert_eq!(agreed(&net), old.encapsulation);
        assert_eq!(newest(&net, 0).id, old.id);
    }
    // They come again under a new IKE SA.
    let short = Rekeying {
        reauth: Some(Duration::from_secs(20)),
        ..Rekeying::default()
    };
    net.set_rekeying(0, short);
    net.nodes[0].endpoint.reauthenticate(&id(1), net.now);
    net.pump(0);
    net.run(Duration::from_secs(60));
    assert_alike(&net);
    net.strict = false; // one end ends what the other still uses
    for node in [0, 1] {
        net.remove_child(node, 1 - node, 1);
    }
    net.run(Duration::from_secs(20));
    assert!(net.all_settled());
}
