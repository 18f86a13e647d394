//! Messages that do not fit into one datagram (RFC 7383): between two nodes, over networks that lose, reorder, repeat, and
//! that drop what is large.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use espalier_ike::wire::{Message, Payload};
use espalier_ike::{
    ChildConfig, Config, Connect, Event, PeerAuth, PeerConfig, TrafficSelector, limits,
};

use crate::sim::pki::Ca;
use crate::sim::{AUTH, INIT, Net, Packet, Weather, classic, id};

const LONG: Duration = Duration::from_secs(300);
/// The first node has a large certificate, the second a larger one.
const CERTIFICATES: [usize; 2] = [4_000, 9_000];

/// Two nodes with certificates that need several datagrams.
fn large(seed: u64) -> Net {
    let ca = Ca::new("CA");
    let mut net = Net::new(seed, 2, None);
    for (node, bytes) in CERTIFICATES.into_iter().enumerate() {
        let config = Config {
            credentials: Some(ca.issue_large(&id(node).0, bytes)),
            trust: ca.trust(),
            ike: classic(),
            ..Config::new(id(node))
        };
        net.nodes[node].endpoint.set_config(config).unwrap();
    }
    net.introduce_all(&PeerAuth::Certificate);
    net
}

/// Number and total, where the datagram is a fragment.
fn fragment(packet: &Packet) -> Option<(u16, u16)> {
    match Message::parse(&packet.payload).unwrap().payloads.last() {
        Some(Payload::Fragment(fragment)) => Some((fragment.number, fragment.total)),
        _ => None,
    }
}

/// A network without datagrams of more than `most` bytes of IKE.
fn narrow(net: &mut Net, most: usize) {
    net.filter = Some(Box::new(move |packet| packet.payload.len() <= most));
}

#[test]
fn large_certificates_come_in_fragments_that_fit_the_least_mtu() {
    let mut net = large(1);
    narrow(&mut net, limits::MESSAGE_V4);
    net.connect(0, 1, Connect::Restart);
    assert!(
        net.run_until(Duration::from_secs(1), Net::all_settled),
        "{:?}",
        net.failures(0)
    );
    let auth = |packet: &&Packet| packet.kind().0 == AUTH;
    let totals: Vec<_> = net
        .sent
        .iter()
        .filter(auth)
        .map(|p| fragment(p).unwrap())
        .collect();
    let requests = totals
        .iter()
        .take_while(|(_, total)| *total == totals[0].1)
        .count();
    assert!(requests >= 4 && totals.len() - requests >= 8, "{totals:?}");
    assert_eq!(requests, usize::from(totals[0].1), "each once");
    assert!(
        net.sent
            .iter()
            .all(|packet| packet.payload.len() <= limits::MESSAGE_V4)
    );
}

#[test]
fn small_messages_are_not_divided() {
    let mut net = Net::psk_mesh(1, 2);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    assert!(net.sent.iter().all(|packet| fragment(packet).is_none()));
}

#[test]
fn lost_reordered_and_repeated_fragments_are_made_up_for() {
    for seed in 0..25 {
        let mut net = large(seed);
        net.weather = Weather {
            loss: 10,
            ..Weather::BAD
        };
        net.connect_all(Connect::Policy);
        assert!(
            net.run_until(LONG, Net::all_settled),
            "seed {seed}: {:?} {:?}",
            net.failures(0),
            net.failures(1)
        );
        net.weather = Weather::FINE;
        net.run(Duration::from_secs(60));
        assert!(net.settled(0, 1), "seed {seed}");
        assert_eq!((net.ike_sas(0), net.ike_sas(1)), (1, 1), "seed {seed}");
    }
}

#[test]
fn each_single_lost_fragment_costs_one_retransmission() {
    let mut net = large(1);
    net.connect(0, 1, Connect::Restart);
    assert!(net.run_until(LONG, Net::all_settled));
    let datagrams = net
        .sent
        .iter()
        .filter(|packet| packet.kind().0 == AUTH)
        .count();
    for lost in 0..datagrams {
        let mut net = large(1);
        let mut seen = 0;
        net.filter = Some(Box::new(move |packet| {
            seen += usize::from(packet.kind().0 == AUTH);
            packet.kind().0 != AUTH || seen != lost + 1
        }));
        net.connect(0, 1, Connect::Restart);
        assert!(
            net.run_until(Duration::from_secs(1), Net::all_settled),
            "fragment {lost}"
        );
        let requests = net.sent.iter().filter(|p| p.kind() == (AUTH, false, 1));
        let firsts = requests.filter(|p| fragment(p).unwrap().0 == 1).count();
        assert_eq!(firsts, 2, "fragment {lost}");
    }
}

/// RFC 7383 §2.5.2, both ways: the request gets smaller by itself, the response because the request did.
#[test]
fn a_path_that_takes_576_bytes_only_is_found_after_some_tries() {
    let mut net = large(1);
    let init = |packet: &Packet| packet.kind().0 == INIT;
    net.filter = Some(Box::new(move |packet| {
        init(packet) || packet.payload.len() <= limits::MESSAGE_SMALL
    }));
    net.connect(0, 1, Connect::Restart);
    assert!(
        net.run_until(Duration::from_secs(10), Net::all_settled),
        "{:?}",
        net.failures(0)
    );
    let whole_size = net.sent.iter().filter(|p| p.kind() == (AUTH, false, 1));
    let large = whole_size.filter(|p| p.payload.len() > limits::MESSAGE_SMALL);
    let each = usize::from(fragment(large.clone().next().unwrap()).unwrap().1) - 1;
    assert!(large.count() >= limits::FULL_SIZE_TRIES as usize * each);
    let last = net
        .sent
        .iter()
        .rev()
        .find(|p| p.kind() == (AUTH, true, 1))
        .unwrap();
    assert!(last.payload.len() <= limits::MESSAGE_SMALL);
}

/// The request arrives, its response is too large: the small fragments of the next tries ask for small ones.
#[test]
fn a_response_that_is_too_large_for_the_path_is_sent_again_in_smaller_fragments() {
    let mut net = large(1);
    net.filter = Some(Box::new(|packet| {
        packet.kind() != (AUTH, true, 1) || packet.payload.len() <= limits::MESSAGE_SMALL
    }));
    net.connect(0, 1, Connect::Restart);
    assert!(
        net.run_until(Duration::from_secs(10), Net::all_settled),
        "{:?}",
        net.failures(0)
    );
    let up = |event: &Event| matches!(event, Event::ChildUp { .. });
    assert_eq!(
        (net.count(0, up), net.count(1, up)),
        (1, 1),
        "answered once"
    );
}

#[test]
fn a_rekeyed_ike_sa_joins_fragments_as_the_one_before() {
    let mut net = large(1);
    net.connect(0, 1, Connect::Restart);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(10));
    let rekeyed = net.sent.len();
    net.rekey_ike(0, 1);
    net.run(Duration::from_secs(10));
    // A path that became narrow: liveness and rekeys go on, and no message is larger than before.
    narrow(&mut net, limits::MESSAGE_SMALL);
    net.rekey_child(0, 1);
    net.run(Duration::from_secs(30));
    assert!(net.settled(0, 1));
    assert!(net.sent.len() > rekeyed);
    assert_eq!(net.child_ups(0).len(), 2);
}

#[test]
fn fragments_over_ipv6_fit_the_least_mtu_of_ipv6() {
    let ca = Ca::new("CA");
    let at = |host: u16| SocketAddr::from((Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host), 4500));
    let selector = |host: u16| TrafficSelector {
        protocol: 17,
        start_port: 0,
        end_port: u16::MAX,
        start: at(host).ip(),
        end: at(host).ip(),
    };
    let mut net = Net::new(1, 0, None);
    for node in 0..2 {
        let config = Config {
            credentials: Some(ca.issue_large(&id(node).0, 5_000)),
            trust: ca.trust(),
            ..Config::new(id(node))
        };
        net.add(at(node as u16), config);
        let peer = 1 - node;
        let child = ChildConfig::new(vec![selector(node as u16)], vec![selector(peer as u16)]);
        let (own, remote) = (at(node as u16), at(peer as u16));
        let peer = PeerConfig::new(id(peer), own, remote, PeerAuth::Certificate, child);
        net.nodes[node].endpoint.put_peer(peer, net.now).unwrap();
    }
    net.connect(0, 1, Connect::Restart);
    assert!(
        net.run_until(LONG, Net::all_settled),
        "{:?}",
        net.failures(0)
    );
    let largest = net.sent.iter().map(|packet| packet.payload.len()).max();
    assert_eq!(largest, Some(limits::MESSAGE_V6));
    assert_eq!(limits::MESSAGE_V6 + 4 + 8 + 40, 1280);
}
