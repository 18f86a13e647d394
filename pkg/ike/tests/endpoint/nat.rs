//! A NAT in front of one node, or one that is only said to be there (RFC 7296 §2.23).

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use espalier_ike::{ChildSa, Connect, Event, Path, PeerConfig};

use crate::sim::{INIT, Net, Packet, Weather, id, ip, peer_config, psk};

const LONG: Duration = Duration::from_secs(300);

fn outside() -> IpAddr {
    "192.0.2.1".parse().unwrap()
}

/// Where the NAT puts this port of the node behind it. `base` changes when it forgets.
fn mapped(base: u16, port: u16) -> u16 {
    base + port / 500
}

/// Two nodes on port 500, the first behind a NAT. The cell is the base of its ports.
fn natted(seed: u64) -> (Net, Rc<Cell<u16>>) {
    let mut net = Net::new(seed, 2, None);
    let base = Rc::new(Cell::new(40_000));
    let bases = base.clone();
    net.translate = Some(Box::new(move |mut path: Path| {
        if path.local.ip() == ip(0) {
            path.local = SocketAddr::new(outside(), mapped(bases.get(), path.local.port()));
        }
        if path.remote.ip() == outside() {
            let ports = [500, 4500];
            let inside = ports
                .into_iter()
                .find(|port| mapped(bases.get(), *port) == path.remote.port())?;
            path.remote = SocketAddr::new(ip(0), inside);
        }
        Some(path)
    }));
    let on_500 = |config: PeerConfig, remote: IpAddr| PeerConfig {
        local: SocketAddr::new(config.local.ip(), 500),
        remote: SocketAddr::new(remote, 500),
        addresses: vec![remote],
        ..config
    };
    let configs = [
        on_500(peer_config(0, 1, psk(7)), ip(1)),
        on_500(peer_config(1, 0, psk(7)), outside()),
    ];
    for (node, config) in configs.into_iter().enumerate() {
        net.nodes[node].endpoint.put_peer(config, net.now).unwrap();
    }
    (net, base)
}

/// As [`natted`], but nothing is translated.
fn direct(seed: u64, force: [bool; 2]) -> Net {
    let mut net = Net::new(seed, 2, None);
    for (node, force_udp_encapsulation) in force.into_iter().enumerate() {
        let mut config = PeerConfig {
            force_udp_encapsulation,
            ..peer_config(node, 1 - node, psk(7))
        };
        config.local.set_port(500);
        config.remote.set_port(500);
        net.nodes[node].endpoint.put_peer(config, net.now).unwrap();
    }
    net
}

fn child(net: &Net, node: usize) -> ChildSa {
    net.child_ups(node).remove(0).1
}

fn ports(packet: &Packet) -> (u16, u16) {
    (packet.path.local.port(), packet.path.remote.port())
}

#[test]
fn behind_a_nat_ike_moves_to_port_4500_before_ike_auth() {
    let (mut net, base) = natted(1);
    net.connect(0, 1, Connect::Restart);
    assert!(
        net.run_until(LONG, Net::all_settled),
        "{:?}",
        net.failures(0)
    );
    for packet in net.sent.iter().filter(|p| p.path.local.ip() == ip(0)) {
        let expected = if packet.kind().0 == INIT { 500 } else { 4500 };
        assert_eq!(ports(packet), (expected, expected));
    }
    // Each end knows between which ends its ESP in UDP goes.
    let at = |ip, port| SocketAddr::new(ip, port);
    let inside = Path {
        local: at(ip(0), 4500),
        remote: at(ip(1), 4500),
    };
    assert_eq!(child(&net, 0).udp_encapsulation, Some(inside));
    let seen = Path {
        local: at(ip(1), 4500),
        remote: at(outside(), mapped(base.get(), 4500)),
    };
    assert_eq!(child(&net, 1).udp_encapsulation, Some(seen));
}

#[test]
fn without_nat_ike_stays_on_port_500_and_esp_needs_no_udp() {
    let mut net = direct(1, [false, false]);
    net.connect(0, 1, Connect::Restart);
    assert!(net.run_until(LONG, Net::all_settled));
    assert!(net.sent.iter().all(|packet| ports(packet) == (500, 500)));
    assert_eq!(child(&net, 0).udp_encapsulation, None);
    assert_eq!(child(&net, 1).udp_encapsulation, None);
}

/// As strongSwan's `encap = yes`: whichever end wants it, both use it.
#[test]
fn a_pretended_nat_makes_both_ends_use_udp() {
    for force in [[true, false], [false, true], [true, true]] {
        let mut net = direct(1, force);
        net.connect(0, 1, Connect::Restart);
        assert!(net.run_until(LONG, Net::all_settled), "{force:?}");
        let auth = net.sent.iter().filter(|packet| packet.kind().0 != INIT);
        assert!(auth.clone().count() > 0);
        assert!(
            auth.into_iter().all(|packet| ports(packet) == (4500, 4500)),
            "{force:?}"
        );
        for node in 0..2 {
            let path = child(&net, node).udp_encapsulation.unwrap();
            assert_eq!(path.local, SocketAddr::new(ip(node), 4500), "{force:?}");
            assert_eq!(
                path.remote,
                SocketAddr::new(ip(1 - node), 4500),
                "{force:?}"
            );
        }
        // CHILD_SAs that follow, too.
        net.run(Duration::from_secs(10));
        net.rekey_child(0, 1);
        net.rekey_ike(0, 1);
        net.run(Duration::from_secs(20));
        let last = net.child_ups(1).pop().unwrap().1;
        assert!(
            net.child_ups(1).len() > 1 && last.udp_encapsulation.is_some(),
            "{force:?}"
        );
    }
}

/// The NAT forgets its mapping: the peer is heard of again from another port.
#[test]
fn a_peer_behind_a_nat_is_followed_when_its_port_changes() {
    for weather in [
        Weather::FINE,
        Weather {
            loss: 10,
            ..Weather::BAD
        },
    ] {
        let (mut net, base) = natted(3);
        net.weather = weather;
        net.connect(0, 1, Connect::Restart);
        assert!(net.run_until(LONG, Net::all_settled));
        net.run(Duration::from_secs(10));
        base.set(50_000);
        let moved = |event: &Event| matches!(event, Event::AddressChanged { .. });
        assert!(net.run_until(Duration::from_secs(60), |net| net.count(1, moved) == 1));
        let event = net.nodes[1].log.iter().find(|event| moved(event)).unwrap();
        let path = Path {
            local: SocketAddr::new(ip(1), 4500),
            remote: SocketAddr::new(outside(), mapped(50_000, 4500)),
        };
        let expected = Event::AddressChanged {
            peer: id(0),
            path,
            udp_encapsulation: Some(path),
        };
        assert_eq!(*event, expected);
        // And it is reached there.
        net.announce(1, 0, b"found");
        net.run(Duration::from_secs(10));
        let found =
            |event: &Event| matches!(event, Event::Announcement { data, .. } if data == b"found");
        assert_eq!(net.count(0, found), 1);
        assert!(net.settled(0, 1));
    }
}

/// Same bytes from elsewhere: replayed, forged, or from an address that is not the peer's.
#[test]
fn only_authentic_news_from_the_peers_own_address_moves_it() {
    let (mut net, _) = natted(1);
    net.connect(0, 1, Connect::Restart);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(10));
    let moved = |event: &Event| matches!(event, Event::AddressChanged { .. });
    let elsewhere = |packet: &Packet, remote: SocketAddr| Packet {
        path: Path {
            local: remote,
            remote: SocketAddr::new(ip(1), 4500),
        },
        ..packet.clone()
    };
    let old = net.sent.clone();
    for packet in old.iter().filter(|p| p.path.local.ip() == ip(0)) {
        let other_port = SocketAddr::new(outside(), 55_555);
        net.deliver(&elsewhere(packet, other_port));
        let mut forged = elsewhere(packet, other_port);
        *forged.payload.last_mut().unwrap() ^= 1;
        net.deliver(&forged);
    }
    assert_eq!(net.count(1, moved), 0);
    // New and authentic, from an address that is not one of the peer's.
    net.filter = Some(Box::new(|_| false));
    net.announce(0, 1, b"news");
    net.filter = None;
    let news = net.sent.last().unwrap().clone();
    net.deliver(&elsewhere(&news, "203.0.113.9:4500".parse().unwrap()));
    let heard =
        |event: &Event| matches!(event, Event::Announcement { data, .. } if data == b"news");
    assert_eq!((net.count(1, heard), net.count(1, moved)), (1, 0));
}

/// Who is not behind a NAT does not move, whatever comes from elsewhere.
#[test]
fn without_nat_nobody_is_followed() {
    let mut net = direct(1, [false, false]);
    net.connect(0, 1, Connect::Restart);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(10));
    net.filter = Some(Box::new(|_| false));
    net.announce(0, 1, b"news");
    net.filter = None;
    let mut news = net.sent.last().unwrap().clone();
    news.path.local.set_port(1234);
    net.deliver(&news);
    let moved = |event: &Event| matches!(event, Event::AddressChanged { .. });
    assert_eq!(net.count(1, moved), 0);
    let answer = net.sent.last().unwrap();
    assert_eq!(
        answer.path.remote.port(),
        1234,
        "the answer goes to where the request came from"
    );
}
