use std::time::Instant;

use espalier_dataplane_core::{
    Direction, Encapsulation, Error, Overlay, Peer, PeerId, Sa, SaMode, Spi,
};

use super::{Control, Ways};
use crate::fixture::{self, PORT, hosts};

fn control() -> Control {
    let mut control = Control::new(Ways::all(PORT));
    control.put_peer(fixture::peer(1, 2)).unwrap();
    control.put_peer(fixture::peer(1, 3)).unwrap();
    control
}

fn node(n: u8) -> PeerId {
    PeerId(format!("node-{n}"))
}

/// The field that a refusal names, and its reason.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> (&'static str, String) {
    match result.unwrap_err() {
        Error::Invalid { field, why } => (field, why),
        other => panic!("expected a field, got {other}"),
    }
}

#[test]
fn putting_and_installing_again_changes_nothing() {
    let mut control = control();
    let (now, sa) = (Instant::now(), fixture::sa(2, Direction::Out, 0x1200));
    control.install_sa(sa.clone(), now).unwrap();
    control.switch_outbound(&node(2), Some(sa.spi)).unwrap();
    let before = control.sas(now);
    control.put_peer(fixture::peer(1, 2)).unwrap();
    control.install_sa(sa, now).unwrap();
    assert_eq!(control.sas(now), before);
    assert!(before[0].active);
}

#[test]
fn removing_what_is_gone_succeeds() {
    let mut control = control();
    control.remove_sa(Direction::In, Spi(0x9999));
    control.remove_peer(&node(9));
    assert_eq!(control.peers().count(), 2);
}

#[test]
fn a_changed_peer_keeps_its_sas_and_counters() {
    let (mut one, _) = hosts();
    let mut moved = fixture::peer(1, 2);
    moved.remote = [192, 0, 2, 77].into();
    one.put_peer(moved).unwrap();
    let tables = one.tables();
    let (_, entry) = &tables.inbound[&0x2100];
    assert_eq!(entry.peer.remote.to_string(), "192.0.2.77");
    assert!(
        entry.state.active.load().is_some(),
        "the outbound SA still seals"
    );
    let owner = tables.routes.lookup("10.244.2.9".parse().unwrap()).unwrap();
    assert!(std::sync::Arc::ptr_eq(owner, entry), "S5 compares these");
}

#[test]
fn removing_a_peer_removes_its_sas_and_only_those() {
    let (mut one, _) = hosts();
    one.install_sa(fixture::sa(3, Direction::In, 0x3100), Instant::now())
        .unwrap();
    one.remove_peer(&node(2));
    let left: Vec<_> = one
        .sas(Instant::now())
        .into_iter()
        .map(|sa| sa.spi)
        .collect();
    assert_eq!(left, [Spi(0x3100)]);
    assert!(
        one.tables()
            .routes
            .lookup("10.244.2.9".parse().unwrap())
            .is_none()
    );
    assert!(matches!(
        one.switch_outbound(&node(2), None),
        Err(Error::NoSuchPeer(_))
    ));
}

#[test]
fn s4_an_outbound_spi_has_no_second_life() {
    let (mut one, _) = hosts();
    let sa = fixture::sa(2, Direction::Out, 0x1200);
    let mut other_key = sa.clone();
    other_key.key = fixture::sa(2, Direction::Out, 0x7777).key;
    assert!(matches!(
        one.install_sa(other_key, Instant::now()),
        Err(Error::SpiReused(Spi(0x1200)))
    ));
    one.remove_sa(Direction::Out, Spi(0x1200));
    assert!(matches!(
        one.install_sa(sa.clone(), Instant::now()),
        Err(Error::SpiReused(Spi(0x1200)))
    ));
    one.remove_peer(&node(2));
    one.put_peer(fixture::peer(1, 2)).unwrap();
    assert!(matches!(
        one.install_sa(sa, Instant::now()),
        Err(Error::SpiReused(Spi(0x1200)))
    ));
}

#[test]
fn s4_a_key_has_no_second_life_under_another_spi() {
    let (mut one, _) = hosts();
    for direction in [Direction::In, Direction::Out] {
        let mut again = fixture::sa(2, direction, 0x8888);
        again.key = fixture::sa(2, direction, 0x1200).key;
        let (field, why) = refused(one.install_sa(again, Instant::now()));
        assert!(field == "key" && why.contains("S4"), "{why}");
    }
}

#[test]
fn an_inbound_key_has_no_second_life_that_would_forget_its_window() {
    let (mut one, _) = hosts();
    one.remove_sa(Direction::In, Spi(0x2100));
    let (field, _) = refused(one.install_sa(fixture::sa(2, Direction::In, 0x2100), Instant::now()));
    assert_eq!(field, "key");
}

#[test]
fn an_inbound_spi_belongs_to_one_sa() {
    let (mut one, _) = hosts();
    let mut other = fixture::sa(3, Direction::In, 0x2100);
    other.key = fixture::sa(3, Direction::In, 0x9999).key;
    let (field, why) = refused(one.install_sa(other, Instant::now()));
    assert!(field == "spi" && why.contains("node-2"), "{why}");
}

#[test]
fn removing_the_active_sa_leaves_none() {
    let (mut one, _) = hosts();
    one.remove_sa(Direction::Out, Spi(0x1200));
    let tables = one.tables();
    let entry = tables.routes.lookup("10.244.2.9".parse().unwrap()).unwrap();
    assert!(entry.state.active.load().is_none());
}

#[test]
fn removing_another_sa_leaves_the_active_one() {
    let (mut one, _) = hosts();
    one.install_sa(fixture::sa(2, Direction::Out, 0x1201), Instant::now())
        .unwrap();
    one.remove_sa(Direction::Out, Spi(0x1201));
    assert!(
        one.sas(Instant::now())
            .iter()
            .any(|sa| sa.spi == Spi(0x1200) && sa.active)
    );
}

#[test]
fn switching_needs_an_sa_of_that_peer() {
    let (one, _) = hosts();
    assert!(matches!(
        one.switch_outbound(&node(9), None),
        Err(Error::NoSuchPeer(_))
    ));
    assert!(matches!(
        one.switch_outbound(&node(2), Some(Spi(0x4444))),
        Err(Error::NoSuchSa(..))
    ));
    assert!(
        matches!(
            one.switch_outbound(&node(3), Some(Spi(0x1200))),
            Err(Error::NoSuchSa(..))
        ),
        "that is node-2's"
    );
    assert!(
        matches!(
            one.switch_outbound(&node(2), Some(Spi(0x2100))),
            Err(Error::NoSuchSa(..))
        ),
        "that is inbound"
    );
}

#[test]
fn an_sa_needs_its_peer() {
    let mut control = Control::new(Ways::all(PORT));
    let refused = control.install_sa(fixture::sa(2, Direction::In, 0x2100), Instant::now());
    assert!(matches!(refused, Err(Error::NoSuchPeer(_))));
}

#[test]
fn overlapping_pod_cidrs_are_refused_by_name() {
    let mut control = control();
    for overlapping in [
        "10.244.2.0/24",
        "10.244.2.128/25",
        "10.0.0.0/8",
        "fd00:3::7/128",
    ] {
        let mut peer = fixture::peer(1, 4);
        peer.pod_cidrs = vec![overlapping.parse().unwrap()];
        let (field, why) = refused(control.put_peer(peer));
        assert!(
            field == "pod_cidrs" && why.contains("node-"),
            "{overlapping}: {why}"
        );
    }
    let mut twice = fixture::peer(1, 4);
    twice.pod_cidrs.push("10.244.4.64/26".parse().unwrap());
    assert_eq!(refused(control.put_peer(twice)).0, "pod_cidrs");
    assert_eq!(
        control.peers().count(),
        2,
        "nothing of a refused peer stays"
    );
}

#[test]
fn s5_a_pod_cidr_never_covers_hosts_or_special_addresses() {
    let mut control = control();
    for cidr in [
        "0.0.0.0/0",
        "127.0.0.0/8",
        "224.0.0.0/4",
        "169.254.7.0/24",
        "::/0",
        "fe80::/64",
        "ff02::/16",
        "::1/128",
        "192.0.2.0/28",
        "192.0.2.4/32",
        "192.0.2.3/32",
        "192.0.2.1/32",
    ] {
        let mut peer = fixture::peer(1, 4);
        peer.pod_cidrs = vec![cidr.parse().unwrap()];
        assert_eq!(refused(control.put_peer(peer)).0, "pod_cidrs", "{cidr}");
    }
    let mut inside = fixture::peer(1, 4);
    inside.remote = [10, 244, 2, 9].into();
    assert_eq!(
        refused(control.put_peer(inside)).0,
        "pod_cidrs",
        "its address is one of node-2's pods"
    );
}

#[test]
fn a_peers_own_fields_are_checked() {
    let mut control = control();
    let mut check = |change: &dyn Fn(&mut espalier_dataplane_core::Peer), field: &str| {
        let mut peer = fixture::peer(1, 4);
        change(&mut peer);
        assert_eq!(refused(control.put_peer(peer)).0, field);
    };
    check(&|peer| peer.id.0.clear(), "id");
    check(
        &|peer| peer.remote = "2001:db8::4".parse().unwrap(),
        "local",
    );
    check(&|peer| peer.remote = peer.local, "remote");
    check(
        &|peer| {
            peer.overlay = Overlay::Vxlan {
                vni: 1 << 24,
                port: 4789,
            }
        },
        "overlay.vni",
    );
    check(
        &|peer| peer.overlay = Overlay::Vxlan { vni: 1, port: 0 },
        "overlay.port",
    );
}

#[test]
fn an_sas_fields_are_checked() {
    let mut control = control();
    let mut check = |change: &dyn Fn(&mut espalier_dataplane_core::Sa), field: &str| {
        let mut sa = fixture::sa(2, Direction::In, 0x5555);
        change(&mut sa);
        assert_eq!(refused(control.install_sa(sa, Instant::now())).0, field);
    };
    let udp = |local_port, remote_port| Encapsulation::Udp {
        local_port,
        remote_port,
    };
    check(&|sa| sa.spi = Spi(255), "spi");
    check(
        &|sa| sa.key = espalier_secret::SecretBytes::copy_from(&[1; 35]),
        "key",
    );
    check(&|sa| sa.replay_window = 0, "replay_window");
    check(&|sa| sa.replay_window = 8193, "replay_window");
    check(
        &|sa| sa.encapsulation = udp(4501, 4500),
        "encapsulation.local_port",
    );
    check(
        &|sa| sa.encapsulation = udp(4500, 0),
        "encapsulation.remote_port",
    );
    check(&|sa| sa.mode = SaMode::Tunnel, "mode");
    control
        .install_sa(fixture::sa(2, Direction::In, 0x5555), Instant::now())
        .unwrap();
}

#[test]
fn native_routing_has_tunnels_and_nothing_else_has() {
    let mut control = control();
    let native = Peer {
        overlay: Overlay::Native,
        ..fixture::peer(1, 2)
    };
    control.put_peer(native).unwrap();
    let sa = || fixture::sa(2, Direction::In, 0x5555);
    let (field, why) = refused(control.install_sa(sa(), Instant::now()));
    assert_eq!(field, "mode");
    assert!(why.contains("expected Tunnel mode"), "{why}");
    let mode = SaMode::Tunnel;
    control
        .install_sa(Sa { mode, ..sa() }, Instant::now())
        .unwrap();
}

#[test]
fn raw_esp_needs_a_raw_socket_of_the_underlays_family() {
    let why = Some("this process may not open raw sockets".to_owned());
    for (no_raw, there) in [
        ([None, None], true),
        ([None, why.clone()], true),
        ([why.clone(), None], false),
        ([why.clone(), why], false),
    ] {
        let mut control = Control::new(Ways { port: PORT, no_raw });
        control.put_peer(fixture::peer(1, 2)).unwrap();
        let installed = control.install_sa(fixture::raw(2, Direction::In, 0x5555), Instant::now());
        if there {
            installed.unwrap();
            continue;
        }
        let (field, why) = refused(installed);
        assert_eq!(field, "encapsulation");
        for said in [
            "protocol 50",
            "192.0.2.2",
            "may not open",
            "udpEncapsulation: Auto",
        ] {
            assert!(why.contains(said), "{why}");
        }
        assert!(!control.opens_raw() && control.sas(Instant::now()).is_empty());
        let udp = fixture::sa(2, Direction::In, 0x5555);
        control.install_sa(udp, Instant::now()).unwrap();
    }
}
