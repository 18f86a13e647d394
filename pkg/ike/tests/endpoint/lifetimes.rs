//! Lifetimes in bytes, packets and time, and how they are spread over a mesh (docs/ike-rekey.md).

use std::time::Duration;

use espalier_ike::{CloseReason, Connect, Event, Rekeying, Role, Volume, limits};

use crate::sim::{AUTH, CREATE_CHILD, INIT, Net, id, peer_config, psk};

const LONG: Duration = Duration::from_secs(300);

fn connected(rekeying: Rekeying, esn: bool) -> Net {
    let mut net = Net::new(1, 2, None);
    for own in 0..2 {
        net.set_rekeying(own, rekeying);
        let mut config = peer_config(own, 1 - own, psk(7));
        config.child.esn = esn;
        let now = net.now;
        net.nodes[own].endpoint.put_peer(config, now).unwrap();
    }
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(10));
    net
}

fn with_volume(child_volume: Volume) -> Rekeying {
    Rekeying {
        child_volume,
        ..Rekeying::default()
    }
}

/// The driver of `node` reports about its newest CHILD_SA.
fn report(net: &mut Net, node: usize, bytes: u64, packets: u64) {
    let spi_in = net.child_ups(node).last().unwrap().1.spi_in;
    let now = net.now;
    let endpoint = &mut net.nodes[node].endpoint;
    endpoint.note_usage(&id(1 - node), spi_in, bytes, packets, now);
    net.pump(node);
}

fn downs(net: &Net, node: usize) -> Vec<CloseReason> {
    let down = |event: &Event| match event {
        Event::ChildDown { reason, .. } => Some(*reason),
        _ => None,
    };
    net.nodes[node].log.iter().filter_map(down).collect()
}

#[test]
fn what_it_has_carried_starts_a_rekey_at_the_soft_limit_of_either_kind() {
    let bytes = Volume {
        soft_bytes: 1_000_000,
        hard_bytes: 2_000_000,
        ..Volume::UNLIMITED
    };
    let packets = Volume {
        soft_packets: 1_000_000,
        hard_packets: 2_000_000,
        ..Volume::UNLIMITED
    };
    for (volume, count) in [(bytes, (1, 0)), (packets, (0, 1))] {
        let mut net = connected(with_volume(volume), true);
        let drawn = [0, 1].map(|node| net.child_ups(node)[0].1.volume);
        let soft = drawn.map(|drawn| drawn.soft_bytes.min(drawn.soft_packets));
        assert!((900_000..=1_000_000).contains(&soft[0]), "{drawn:?}");
        assert!(
            (1_100_000..=1_200_000).contains(&soft[1]),
            "the higher identity's is later"
        );
        for node in [0, 1] {
            let made = net.child_ups(node).len();
            let soft = net.child_ups(node).last().unwrap().1.volume;
            let soft = soft.soft_bytes.min(soft.soft_packets);
            report(&mut net, node, (soft - 1) * count.0, (soft - 1) * count.1);
            net.run(Duration::from_secs(1));
            assert_eq!(net.child_ups(node).len(), made);
            report(&mut net, node, soft * count.0, soft * count.1);
            net.run(limits::DRAIN * 2);
            assert_eq!(net.child_ups(node).len(), made + 1);
            assert_eq!(net.child_ups(node)[made].0, Role::Initiator);
        }
        assert_eq!(downs(&net, 0), [CloseReason::Replaced; 2]);
        assert!(net.all_settled());
    }
}

#[test]
fn nothing_carries_more_than_the_hard_limit() {
    let volume = Volume {
        soft_bytes: u64::MAX,
        hard_bytes: 5000,
        ..Volume::UNLIMITED
    };
    let mut net = connected(with_volume(volume), true);
    let drawn = net.child_ups(1)[0].1.volume;
    assert!(
        drawn.soft_bytes < 5000,
        "a soft limit is below the hard one"
    );
    net.strict = false;
    report(&mut net, 1, 5000, 1);
    assert_eq!(downs(&net, 1), [CloseReason::Local]);
    assert!(
        net.run_until(LONG, Net::all_settled),
        "a new handshake follows"
    );
}

/// A data plane that counts, and a driver that looks at it now and then: the counter never wraps and traffic never stops.
#[test]
fn sequence_numbers_without_esn_never_run_out() {
    let mut net = connected(Rekeying::default(), false);
    let (mut sealed, mut most) = (0_u64, 0);
    for _ in 0..400 {
        let made = net.child_ups(0).len();
        sealed += 1 << 25;
        most = most.max(sealed);
        assert!(sealed < limits::SEQUENCE_HARD);
        report(&mut net, 0, 0, sealed);
        net.run(Duration::from_secs(5));
        if net.child_ups(0).len() > made {
            sealed = 0;
        }
    }
    assert!(
        most > limits::SEQUENCE_SOFT * 8 / 10,
        "not much earlier than needed"
    );
    assert!(net.child_ups(0).len() > 4);
    assert!(
        downs(&net, 0)
            .iter()
            .all(|reason| *reason == CloseReason::Replaced)
    );
    let volume = net.child_ups(0)[0].1.volume;
    assert_eq!(volume.hard_packets, limits::SEQUENCE_HARD);
    let with_esn = connected(Rekeying::default(), true);
    assert_eq!(with_esn.child_ups(0)[0].1.volume, Volume::UNLIMITED);
}

#[test]
fn reporting_often_does_not_put_the_rekey_off() {
    let volume = Volume {
        soft_packets: 1000,
        hard_packets: 1_000_000,
        ..Volume::UNLIMITED
    };
    let mut net = connected(with_volume(volume), true);
    net.filter = Some(Box::new(|packet| packet.kind().0 != CREATE_CHILD));
    for _ in 0..20 {
        report(&mut net, 0, 0, 2000);
        net.run(Duration::from_millis(500));
    }
    net.filter = None;
    for _ in 0..40 {
        if net.child_ups(0).len() == 1 {
            report(&mut net, 0, 0, 2000);
        }
        net.run(Duration::from_millis(500));
    }
    assert_eq!(net.child_ups(0).len(), 2);
    assert_eq!(
        net.count(0, |event| matches!(event, Event::IkeDown { .. })),
        0
    );
}

/// 1,035 pairs with the same lifetimes, made at the same moment.
#[test]
fn a_thousand_sas_are_rekeyed_at_times_that_are_spread() {
    let mut net = Net::psk_mesh(3, 46);
    net.strict = false;
    let pairs = 46 * 45 / 2;
    let rekeying = Rekeying {
        child_soft: Duration::from_secs(100),
        child_volume: Volume {
            soft_bytes: 1_000_000,
            ..Volume::UNLIMITED
        },
        ..Rekeying::default()
    };
    (0..46).for_each(|node| net.set_rekeying(node, rekeying));
    net.connect_all(Connect::Policy);
    net.run(Duration::from_secs(89));
    let created = |net: &Net| {
        let asked =
            |packet: &&crate::sim::Packet| packet.kind().0 == CREATE_CHILD && !packet.kind().1;
        net.sent.iter().filter(asked).count()
    };
    assert_eq!(created(&net), 0);
    let mut counts = Vec::new();
    for _ in 0..12 {
        let before = created(&net);
        net.run(Duration::from_secs(1));
        counts.push(created(&net) - before);
    }
    assert_eq!(counts.iter().sum::<usize>(), pairs, "{counts:?}");
    // An even spread is 103 in a second.
    assert!(
        counts[1..11].iter().all(|count| (60..150).contains(count)),
        "{counts:?}"
    );
    let mut tenths = [0_u32; 10];
    for node in 0..46 {
        for (role, up, _) in net.child_ups(node) {
            if role == Role::Initiator {
                let soft = up.volume.soft_bytes;
                tenths[usize::try_from(soft.saturating_sub(900_000) / 10_001).unwrap()] += 1;
            }
        }
    }
    assert!(
        tenths.iter().all(|count| (140..280).contains(count)),
        "{tenths:?}"
    );
}

fn without_rekeys() -> Rekeying {
    Rekeying {
        ike_soft: Duration::from_secs(1_000_000),
        ike_hard: Duration::from_secs(100),
        ..Rekeying::default()
    }
}

#[test]
fn an_ike_sa_that_is_not_rekeyed_is_replaced_before_its_hard_lifetime_without_a_gap() {
    let mut net = connected(without_rekeys(), true);
    net.run(Duration::from_secs(1000));
    let ups = net.child_ups(0).len();
    assert!((10..=14).contains(&ups), "{ups}");
    assert!(
        downs(&net, 0)
            .iter()
            .all(|reason| *reason == CloseReason::Replaced)
    );
    assert_eq!(
        net.count(0, |event| matches!(event, Event::IkeDown { .. })),
        0
    );
}

#[test]
fn nothing_outlives_the_hard_lifetime_of_its_ike_sa() {
    let mut net = connected(without_rekeys(), true);
    net.strict = false;
    net.filter = Some(Box::new(|packet| ![INIT, AUTH].contains(&packet.kind().0)));
    net.run(Duration::from_secs(85));
    assert_eq!(downs(&net, 0), []);
    net.run(Duration::from_secs(20));
    for node in 0..2 {
        assert_eq!(downs(&net, node).len(), 1);
        assert_eq!(
            net.count(node, |event| matches!(event, Event::IkeDown { .. })),
            1
        );
    }
    net.filter = None;
    assert!(net.run_until(LONG, Net::all_settled));
}
