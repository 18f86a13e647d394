//! Nodes that get another address (the part of RFC 4555 that is built): the IKE SA and its CHILD_SAs move along.

use std::net::SocketAddr;
use std::time::Duration;

use espalier_ike::wire::{ExchangeType, Notify, NotifyType, Payload};
use espalier_ike::{ConfigError, Connect, Event, Path};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Raw};
use crate::sim::{INFORMATIONAL, Net, Packet, Weather, address, id, peer_config, psk};

const LONG: Duration = Duration::from_secs(300);
const INFO: ExchangeType = ExchangeType::Informational;

fn new_home() -> SocketAddr {
    "10.9.7.7:4500".parse().unwrap()
}

/// Two nodes; node 0 may also be at [`new_home`], as node 1 knows.
fn connected(seed: u64) -> Net {
    let mut net = Net::psk_mesh(seed, 2);
    let mut config = peer_config(1, 0, psk(7));
    config.addresses.push(new_home().ip());
    net.nodes[1].endpoint.put_peer(config, net.now).unwrap();
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(10));
    net
}

/// Node 0 is elsewhere from now on.
fn move_0(net: &mut Net) {
    net.readdress(0, new_home());
    let now = net.now;
    let endpoint = &mut net.nodes[0].endpoint;
    endpoint
        .update_address(&id(1), new_home(), address(1), now)
        .unwrap();
    net.pump(0);
}

fn moved(event: &Event) -> bool {
    matches!(event, Event::AddressChanged { .. })
}

fn child_events(net: &Net) -> usize {
    let child = |event: &Event| matches!(event, Event::ChildUp { .. } | Event::ChildDown { .. });
    (0..2).map(|node| net.count(node, child)).sum()
}

#[test]
fn an_address_change_moves_the_ike_sa_and_its_child_sas() {
    // Either end moves: the initiator of the IKE SA, and the responder.
    for seed in 0..6 {
        let mut net = Net::psk_mesh(seed, 2);
        let mut config = peer_config(1, 0, psk(7));
        config.addresses.push(new_home().ip());
        net.nodes[1].endpoint.put_peer(config, net.now).unwrap();
        let (first, second) = if seed % 2 == 0 { (0, 1) } else { (1, 0) };
        net.connect(first, second, Connect::Restart);
        assert!(net.run_until(LONG, Net::all_settled));
        net.run(Duration::from_secs(10));
        let before = child_events(&net);
        move_0(&mut net);
        net.run(Duration::from_secs(5));
        let path = |local, remote| Event::AddressChanged {
            peer: if remote == new_home() { id(0) } else { id(1) },
            path: Path { local, remote },
            udp_encapsulation: None,
        };
        assert_eq!(
            net.count(0, |event| *event == path(new_home(), address(1))),
            1
        );
        assert_eq!(
            net.count(1, |event| *event == path(address(1), new_home())),
            1
        );
        for (from, to) in [(0, 1), (1, 0)] {
            net.announce(from, to, b"from the new home");
        }
        net.run(Duration::from_secs(60));
        let heard = |event: &Event| matches!(event, Event::Announcement { data, .. } if data == b"from the new home");
        assert_eq!((net.count(0, heard), net.count(1, heard)), (1, 1));
        assert_eq!(child_events(&net), before, "nothing else was made or ended");
        assert_eq!((net.count(0, moved), net.count(1, moved)), (1, 1));
        // Rekeys go on from there.
        net.rekey_ike(0, 1);
        net.run(Duration::from_secs(5));
        net.rekey_child(1, 0);
        net.run(Duration::from_secs(20));
        assert!(net.settled(0, 1));
    }
}

#[test]
fn address_changes_in_bad_weather_converge() {
    for seed in 0..40 {
        let mut net = connected(seed);
        net.weather = Weather {
            loss: 20,
            ..Weather::BAD
        };
        if seed % 2 == 0 {
            net.announce(1, 0, b"something under way");
        }
        if seed % 3 == 0 {
            net.rekey_child(1, 0);
        }
        move_0(&mut net);
        let done = |net: &Net| net.count(0, moved) >= 1 && net.count(1, moved) >= 1;
        assert!(net.run_until(Duration::from_secs(90), done), "seed {seed}");
        net.weather = Weather::FINE;
        net.run(Duration::from_secs(60));
        assert!(net.settled(0, 1), "seed {seed}");
    }
}

/// S5: what the peer's Node does not have, it may not move to.
#[test]
fn s5_an_authenticated_peer_moves_only_to_an_address_of_its_node() {
    let mut net = Net::psk_mesh(1, 2);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(10));
    move_0(&mut net);
    net.run(Duration::from_secs(1));
    assert_eq!((net.count(0, moved), net.count(1, moved)), (0, 0));
    // Back home it goes on as if nothing had been.
    net.readdress(0, address(0));
    let now = net.now;
    let endpoint = &mut net.nodes[0].endpoint;
    endpoint
        .update_address(&id(1), address(0), address(1), now)
        .unwrap();
    net.pump(0);
    net.run(Duration::from_secs(60));
    assert!(net.settled(0, 1));
    net.announce(1, 0, b"hello again");
    net.run(Duration::from_secs(1));
    let heard =
        |event: &Event| matches!(event, Event::Announcement { data, .. } if data == b"hello again");
    assert_eq!(net.count(0, heard), 1);
}

#[test]
fn a_move_to_where_the_peer_is_not_is_refused_here() {
    let mut net = connected(1);
    let now = net.now;
    let elsewhere: SocketAddr = "203.0.113.1:4500".parse().unwrap();
    let refused = net.nodes[0]
        .endpoint
        .update_address(&id(1), address(0), elsewhere, now);
    let expected = ConfigError::Address {
        peer: id(1),
        address: elsewhere.ip(),
    };
    assert_eq!(refused, Err(expected));
    net.pump(0);
    net.run(Duration::from_secs(60));
    assert!(net.settled(0, 1));
}

/// The peer shows that it receives at its new address before any CHILD_SA follows it (RFC 4555 §3.7).
#[test]
fn child_sas_follow_only_after_the_cookie_came_back() {
    let mut net = connected(1);
    let before = net.sent.len();
    net.filter = Some(Box::new(|packet| packet.path.remote != new_home()));
    move_0(&mut net);
    net.run(Duration::from_secs(2));
    assert_eq!(net.count(1, moved), 0, "nothing comes from there");
    let checks = net.sent[before..].iter().filter(|packet| {
        packet.path.remote == new_home() && packet.kind().0 == INFORMATIONAL && !packet.kind().1
    });
    assert!(checks.count() > 0);
    net.filter = None;
    net.run(Duration::from_secs(20));
    assert_eq!(net.count(1, moved), 1);
}

#[test]
fn a_peer_without_mobike_gets_a_new_ike_sa_from_the_new_address() {
    let mut net = Net::psk_mesh(1, 2);
    for node in 0..2 {
        let mut config = peer_config(node, 1 - node, psk(7));
        // On port 500 MOBIKE is not offered.
        config.local.set_port(500);
        config.remote.set_port(500);
        if node == 1 {
            config.addresses.push(new_home().ip());
        }
        net.nodes[node].endpoint.put_peer(config, net.now).unwrap();
    }
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(10));
    net.readdress(0, new_home());
    let (now, from) = (net.now, SocketAddr::new(new_home().ip(), 500));
    let to = SocketAddr::new(address(1).ip(), 500);
    let endpoint = &mut net.nodes[0].endpoint;
    endpoint.update_address(&id(1), from, to, now).unwrap();
    net.pump(0);
    net.run(Duration::from_secs(30));
    assert!(net.settled(0, 1), "{:?}", net.failures(0));
    assert_eq!(net.child_ups(0).len(), 2, "make before break");
    assert_eq!((net.ike_sas(0), net.count(0, moved)), (1, 0));
}

fn established(supported: &[Payload<'static>]) -> (Net, Raw) {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = Raw::init(&mut net, address(1), 0, false);
    let mut child = raw::child(4711, address(1), address(0));
    child.extend(supported.iter().cloned());
    let psk = SecretBytes::copy_from(&[7; 32]);
    let answer = raw.auth_psk(&mut net, "node-01", &psk, &child).unwrap();
    let agreed = answer.notifies().contains(&NotifyType::MobikeSupported);
    assert_eq!(agreed, !supported.is_empty());
    (net, raw)
}

fn said(kind: NotifyType, data: &[u8]) -> Payload<'_> {
    Payload::Notify(Notify::new(kind, data))
}

/// By hand: COOKIE2 is returned, other addresses are not learnt, and who has not agreed on MOBIKE does not move.
#[test]
fn notifies_of_mobike_are_answered_as_it_says() {
    let mobike = [said(NotifyType::MobikeSupported, &[])];
    let (mut net, mut raw) = established(&mobike);
    let cookie = [9; 24];
    let answer = raw
        .ask(&mut net, INFO, &[said(NotifyType::Cookie2, &cookie)])
        .unwrap();
    assert_eq!(answer.payloads(), [said(NotifyType::Cookie2, &cookie)]);
    for length in [0, 7, 65] {
        let cookie = vec![9; length];
        let answer = raw
            .ask(&mut net, INFO, &[said(NotifyType::Cookie2, &cookie)])
            .unwrap();
        assert_eq!(answer.payloads(), [], "{length}");
    }
    let others = [
        said(NotifyType::AdditionalIp4Address, &[10, 9, 9, 9]),
        said(NotifyType::AdditionalIp6Address, &[1; 16]),
        said(NotifyType::NoAdditionalAddresses, &[]),
        said(NotifyType::AdditionalIp4Address, &[1]),
    ];
    let answer = raw.ask(&mut net, INFO, &others).unwrap();
    assert_eq!(answer.payloads(), []);
    let nats = [
        said(NotifyType::UpdateSaAddresses, &[]),
        said(NotifyType::NoNatsAllowed, &[1; 12]),
    ];
    let answer = raw.ask(&mut net, INFO, &nats).unwrap();
    assert_eq!(answer.notifies(), [NotifyType::UnexpectedNatDetected]);
    let from_elsewhere = raw.at("203.0.113.5:4500".parse().unwrap());
    let update = [said(NotifyType::UpdateSaAddresses, &[])];
    let answer = from_elsewhere.ask(&mut net, INFO, &update).unwrap();
    assert_eq!(answer.notifies(), [NotifyType::UnacceptableAddresses]);
    assert_eq!(net.count(0, moved), 0);

    let (mut net, mut raw) = established(&[]);
    let answer = raw.ask(&mut net, INFO, &update).unwrap();
    assert_eq!(answer.payloads(), []);
    net.run(Duration::from_secs(5));
    assert_eq!(net.count(0, moved), 0);
}

#[test]
fn a_wrong_cookie_from_the_new_address_ends_the_ike_sa() {
    let mobike = [said(NotifyType::MobikeSupported, &[])];
    let (mut net, mut raw) = established(&mobike);
    let update = [
        said(NotifyType::UpdateSaAddresses, &[]),
        // Another port of the same host.
    ];
    let raw = raw.at(SocketAddr::new(address(1).ip(), 4600));
    assert!(raw.ask(&mut net, INFO, &update).is_some());
    let (_, asked) = raw.asked(&net);
    assert_eq!(asked.notifies(), [NotifyType::Cookie2]);
    raw.answer(&mut net, &[said(NotifyType::Cookie2, &[0; 16])]);
    let down = |event: &Event| matches!(event, Event::IkeDown { .. });
    assert_eq!((net.count(0, moved), net.count(0, down)), (0, 1));
}

/// Behind a NAT, with MOBIKE: the initiator finds out by asking how it is seen (RFC 4555 §3.8).
#[test]
fn a_forgotten_mapping_of_a_nat_is_found_by_the_one_behind_it() {
    use std::cell::Cell;
    use std::rc::Rc;
    let outside: SocketAddr = "192.0.2.1:0".parse().unwrap();
    let port = Rc::new(Cell::new(40_000));
    let mut net = Net::new(1, 2, None);
    let ports = port.clone();
    net.translate = Some(Box::new(move |mut path: Path| {
        if path.local == address(0) {
            path.local = SocketAddr::new(outside.ip(), ports.get());
        }
        if path.remote.ip() == outside.ip() {
            if path.remote.port() != ports.get() {
                return None;
            }
            path.remote = address(0);
        }
        Some(path)
    }));
    for node in 0..2 {
        let mut config = peer_config(node, 1 - node, psk(7));
        if node == 1 {
            config.remote = SocketAddr::new(outside.ip(), 4500);
            config.addresses = vec![outside.ip()];
        }
        net.nodes[node].endpoint.put_peer(config, net.now).unwrap();
    }
    net.connect(0, 1, Connect::Restart);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(50));
    assert_eq!(net.count(1, moved), 0, "nothing has changed");
    port.set(50_000);
    net.run(Duration::from_secs(50));
    let at_new_port = |event: &Event| match event {
        Event::AddressChanged { path, .. } => path.remote == SocketAddr::new(outside.ip(), 50_000),
        _ => false,
    };
    assert_eq!((net.count(1, at_new_port), net.count(1, moved)), (1, 1));
    assert_eq!(net.count(0, moved), 0, "its own ends are the same");
    net.announce(1, 0, b"found");
    net.run(Duration::from_secs(1));
    let found =
        |event: &Event| matches!(event, Event::Announcement { data, .. } if data == b"found");
    assert_eq!(net.count(0, found), 1);
}

#[test]
fn replayed_updates_from_elsewhere_move_nothing() {
    let mut net = connected(1);
    move_0(&mut net);
    net.run(Duration::from_secs(5));
    let (events, recorded) = (net.nodes[1].log.len(), net.sent.clone());
    for packet in recorded
        .iter()
        .filter(|packet| packet.path.remote == address(1))
    {
        for from in [address(0), "203.0.113.9:4500".parse().unwrap()] {
            let path = Path {
                local: from,
                remote: address(1),
            };
            net.deliver(&Packet {
                path,
                ..packet.clone()
            });
        }
    }
    net.run(Duration::from_secs(5));
    assert_eq!(net.nodes[1].log.len(), events);
    assert!(net.settled(0, 1));
}

/// Configured with port 500, gone to 4500 because of a (pretended) NAT: there it stays.
#[test]
fn ike_that_has_gone_to_port_4500_stays_there_when_it_moves() {
    let on_500 = |at: SocketAddr| SocketAddr::new(at.ip(), 500);
    let mut net = Net::new(1, 2, None);
    for node in 0..2 {
        let mut config = peer_config(node, 1 - node, psk(7));
        (config.local, config.remote) = (on_500(config.local), on_500(config.remote));
        config.force_udp_encapsulation = true;
        if node == 1 {
            config.addresses.push(new_home().ip());
        }
        net.nodes[node].endpoint.put_peer(config, net.now).unwrap();
    }
    net.connect(0, 1, Connect::Restart);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(10));
    net.readdress(0, new_home());
    let (now, from, to) = (net.now, on_500(new_home()), on_500(address(1)));
    let endpoint = &mut net.nodes[0].endpoint;
    endpoint.update_address(&id(1), from, to, now).unwrap();
    net.pump(0);
    net.run(Duration::from_secs(5));
    let path = Path {
        local: new_home(),
        remote: address(1),
    };
    let expected = Event::AddressChanged {
        peer: id(1),
        path,
        udp_encapsulation: Some(path),
    };
    assert_eq!(net.count(0, |event| *event == expected), 1);
    assert_eq!(net.count(1, moved), 1);
    assert!(net.settled(0, 1));
}
