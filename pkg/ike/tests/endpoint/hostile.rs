//! Others on the network: what is not authenticated changes nothing, allocates within bounds and never panics (S6); what is
//! authenticated by the wrong one, or at the wrong time, is refused.

use std::net::SocketAddr;
use std::time::Duration;

use espalier_ike::wire::{
    self, ExchangeType, Flags, Header, Notify, NotifyType, Payload, PayloadType,
};
use espalier_ike::{Connect, Event, Path, limits};
use rand::{Rng, RngExt};

use crate::sim::raw::{self, ask};
use crate::sim::{INIT, Net, Packet, Weather, address, id};

const LONG: Duration = Duration::from_secs(300);

fn connected(seed: u64) -> Net {
    let mut net = Net::psk_mesh(seed, 2);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled), "seed {seed}");
    net.run(Duration::from_secs(10));
    net
}

fn events(net: &Net) -> usize {
    net.nodes.iter().map(|node| node.log.len()).sum()
}

/// Both ends still understand each other, on the IKE SA that they had.
fn assert_untouched(net: &mut Net, events_before: usize, context: &str) {
    assert_eq!(events(net), events_before, "{context}");
    let now = net.now;
    for node in 0..2 {
        net.nodes[node]
            .endpoint
            .announce(&id(1 - node), b"still here".to_vec(), now);
        net.pump(node);
    }
    net.run(Duration::from_secs(2));
    for node in 0..2 {
        let heard = |event: &Event| matches!(event, Event::Announcement { data, .. } if data == b"still here");
        assert_eq!(net.count(node, heard), 1, "{context}");
    }
    net.run(Duration::from_secs(90));
    assert_eq!(events(net), events_before + 4, "{context}");
    assert_eq!((net.ike_sas(0), net.ike_sas(1)), (1, 1), "{context}");
}

#[test]
fn replayed_datagrams_change_nothing() {
    let mut net = connected(1);
    let before = events(&net);
    let recorded = net.sent.clone();
    let elsewhere: SocketAddr = "192.0.2.1:4500".parse().unwrap();
    for _ in 0..3 {
        for packet in &recorded {
            net.deliver(packet);
            let path = Path {
                local: elsewhere,
                remote: packet.path.remote,
            };
            net.deliver(&Packet {
                path,
                ..packet.clone()
            });
        }
    }
    assert_untouched(&mut net, before, "replay");
}

#[test]
fn tampered_datagrams_change_nothing() {
    let mut net = connected(1);
    let before = events(&net);
    for packet in net.sent.clone() {
        for at in 0..packet.payload.len() {
            let mut tampered = packet.clone();
            tampered.payload[at] ^= 1 << (at % 8);
            let sent = net.sent.len();
            net.deliver(&tampered);
            let answered = net.sent.len() > sent;
            // Other SPIs, another version, another side: an IKE SA that is not known here.
            let stray = at < 16 || at == 17 || at == 19;
            assert!(
                !answered || packet.kind().0 == INIT || stray,
                "{:?}, byte {at}",
                packet.kind()
            );
        }
        for length in 0..packet.payload.len() {
            let mut cut = packet.clone();
            cut.payload.truncate(length);
            net.deliver(&cut);
        }
    }
    assert_untouched(&mut net, before, "tampering");
}

/// A message under keys of this IKE SA, changed on the way while the genuine one is held back.
#[test]
fn a_tampered_request_does_not_take_the_place_of_the_genuine_one() {
    let mut net = connected(1);
    let now = net.now;
    let sent = net.sent.len();
    net.filter = Some(Box::new(|_| false));
    net.nodes[0]
        .endpoint
        .announce(&id(1), b"genuine".to_vec(), now);
    net.pump(0);
    net.filter = None;
    let genuine = net.sent[sent].clone();
    let before = events(&net);
    for at in 0..genuine.payload.len() {
        let mut tampered = genuine.clone();
        tampered.payload[at] ^= 0x10;
        net.deliver(&tampered);
    }
    assert_eq!(events(&net), before);
    net.deliver(&genuine);
    assert_eq!(events(&net), before + 1);
}

/// Every error notify, unprotected, with the right SPIs, as response and as request, in every state.
#[test]
fn unauthenticated_notifies_tear_nothing_down() {
    let kinds = (1..=48)
        .map(NotifyType::from)
        .filter(|kind| kind.is_error());
    let kinds: Vec<NotifyType> = kinds.collect();
    for stage in 1..=6 {
        let mut net = Net::psk_mesh(1, 2);
        net.connect(0, 1, Connect::Restart);
        assert!(net.run_until(LONG, |net| net.sent.len() >= stage));
        let (spi_i, spi_r) = spis(&net);
        for kind in &kinds {
            for to in 0..2 {
                for response in [true, false] {
                    for exchange in [34, 35, 36, 37].map(ExchangeType::from) {
                        let flags = Flags {
                            initiator: to == 1,
                            response,
                            version: false,
                        };
                        for message_id in 0..3 {
                            let next_payload = PayloadType::None;
                            let header = Header {
                                spi_i,
                                spi_r,
                                next_payload,
                                exchange,
                                flags,
                                message_id,
                            };
                            let payload =
                                wire::emit(&header, &[Payload::Notify(Notify::new(*kind, &[]))]);
                            let path = Path {
                                local: address(1 - to),
                                remote: address(to),
                            };
                            net.deliver(&Packet { path, payload });
                        }
                    }
                }
            }
        }
        assert!(
            net.run_until(Duration::from_secs(2), Net::all_settled),
            "stage {stage}"
        );
        assert_eq!(net.failures(0), [""; 0], "stage {stage}");
    }
}

fn spis(net: &Net) -> (u64, u64) {
    let last = &net.sent.last().unwrap().payload;
    let spi = |at: usize| u64::from_be_bytes(last[at..at + 8].try_into().unwrap());
    (spi(0), spi(8))
}

#[test]
fn an_answer_that_proves_nothing_is_named_when_no_other_comes() {
    let mut net = Net::psk_mesh(1, 2);
    net.nodes[1].up = false;
    net.connect(0, 1, Connect::Restart);
    let (spi_i, _) = spis(&net);
    let flags = Flags {
        initiator: false,
        response: true,
        version: false,
    };
    let exchange = ExchangeType::IkeSaInit;
    let header = Header {
        spi_i,
        spi_r: 0,
        next_payload: PayloadType::None,
        exchange,
        flags,
        message_id: 0,
    };
    let payload = wire::emit(
        &header,
        &[Payload::Notify(Notify::new(
            NotifyType::NoProposalChosen,
            &[],
        ))],
    );
    net.deliver(&Packet {
        path: Path {
            local: address(1),
            remote: address(0),
        },
        payload,
    });
    net.run(Duration::from_secs(60));
    assert!(
        net.failures(0)[0].contains("it answered NoProposalChosen"),
        "{:?}",
        net.failures(0)
    );
}

/// Without cookies from anywhere, with cookies from real addresses, and from the peers' own addresses.
#[test]
fn a_flood_of_half_open_ike_sas_stays_within_its_limits_and_peers_still_get_through() {
    let mut net = Net::psk_mesh(1, 4);
    let node = net.nodes[0].address;
    let bound = limits::HALF_OPEN_UNKNOWN + 3 * limits::HALF_OPEN_PER_ADDRESS;
    for spi in 1..=3000u64 {
        let host = spi.to_be_bytes();
        let stranger = SocketAddr::from(([172, 16, host[6], host[7]], 500));
        for from in [stranger, address(1 + (spi % 3) as usize)] {
            let path = Path {
                local: from,
                remote: node,
            };
            let (kex, nonce, datagram) = raw::init_request(&mut net, &[], spi, true);
            let answer = ask(&mut net, path, datagram);
            // One in three strangers is really there and returns its cookie.
            if let Some(cookie) = answer
                .filter(|_| from == stranger && spi % 3 == 0)
                .and_then(|a| cookie(&a))
            {
                ask(
                    &mut net,
                    path,
                    raw::init_datagram(&kex, &nonce, &cookie, spi, true),
                );
            }
        }
        assert!(net.nodes[0].endpoint.half_open() <= bound);
    }
    assert!(net.nodes[0].endpoint.half_open() >= limits::HALF_OPEN_UNKNOWN);
    net.connect_all(Connect::Policy);
    assert!(
        net.run_until(Duration::from_secs(3), Net::all_settled),
        "{:?}",
        net.failures(1)
    );
    net.run(limits::HALF_OPEN_LIFETIME + limits::CLOSED_LINGER);
    assert_eq!(net.nodes[0].endpoint.half_open(), 0);
    assert_eq!(net.ike_sas(0), 3);
}

fn cookie(answer: &[u8]) -> Option<Vec<u8>> {
    let message = wire::Message::parse(answer).unwrap();
    message.payloads.iter().find_map(|payload| match payload {
        Payload::Notify(notify) if notify.kind == NotifyType::Cookie => Some(notify.data.to_vec()),
        _ => None,
    })
}

#[test]
fn an_initiator_returns_the_cookie_that_it_is_asked_for() {
    assert_eq!(inits_against_a_crowd(0), 2);
}

#[test]
fn a_configured_peer_needs_no_cookie_however_many_strangers_there_are() {
    assert_eq!(inits_against_a_crowd(limits::HALF_OPEN), 1);
}

fn set_threshold(net: &mut Net, node: usize, threshold: usize) {
    let node = &mut net.nodes[node];
    node.config.cookie_threshold = threshold;
    node.endpoint.set_config(node.config.clone()).unwrap();
}

/// Asks as the stranger of this number; whether a cookie is wanted.
fn needs_cookie(net: &mut Net, node: SocketAddr, stranger: u64) -> bool {
    let path = Path {
        local: SocketAddr::from(([172, 16, 0, stranger as u8], 500)),
        remote: node,
    };
    let (_, _, datagram) = raw::init_request(net, &[], stranger, true);
    cookie(&ask(net, path, datagram).unwrap()).is_some()
}

/// How many IKE_SA_INITs a node needs to connect to one that has [`limits::HALF_OPEN`] half-open IKE SAs.
fn inits_against_a_crowd(threshold: usize) -> usize {
    let mut net = Net::psk_mesh(1, 2);
    let node = net.nodes[1].address;
    for stranger in 1..=limits::HALF_OPEN as u64 {
        assert!(!needs_cookie(&mut net, node, stranger));
    }
    set_threshold(&mut net, 1, threshold);
    let before = net.sent.len();
    net.connect(0, 1, Connect::Restart);
    assert!(net.run_until(Duration::from_secs(2), Net::all_settled));
    net.sent[before..]
        .iter()
        .filter(|packet| packet.kind() == (INIT, false, 0))
        .count()
}

#[test]
fn a_raised_threshold_saves_strangers_the_cookie() {
    let mut net = Net::psk_mesh(1, 2);
    let node = net.nodes[1].address;
    for stranger in 1..=limits::HALF_OPEN as u64 {
        assert!(!needs_cookie(&mut net, node, stranger));
    }
    assert!(needs_cookie(&mut net, node, 200));
    set_threshold(&mut net, 1, limits::HALF_OPEN + 1);
    assert!(!needs_cookie(&mut net, node, 200));
    assert!(needs_cookie(&mut net, node, 201));
}

/// All peers of a node that is back start towards it at the same instant: none is asked for a cookie, none is turned away.
#[test]
fn all_configured_peers_get_in_at_once() {
    const OTHERS: usize = 150;
    let mut net = Net::new(1, OTHERS + 1, None);
    for other in 1..=OTHERS {
        for (own, peer) in [(0, other), (other, 0)] {
            let config = crate::sim::peer_config(own, peer, crate::sim::psk(7));
            let now = net.now;
            net.nodes[own].endpoint.put_peer(config, now).unwrap();
        }
    }
    for other in 1..=OTHERS {
        net.connect(other, 0, Connect::Restart);
    }
    net.run(Duration::from_secs(2));
    let inits = net
        .sent
        .iter()
        .filter(|packet| packet.kind() == (INIT, false, 0));
    assert_eq!(inits.count(), OTHERS);
    assert!((1..=OTHERS).all(|other| net.settled(0, other)));
}

/// A man on the side adds a changed copy of each datagram, sometimes before the genuine one.
#[test]
fn mutated_handshakes_neither_panic_nor_last() {
    for seed in 0..150 {
        let mut net = Net::psk_mesh(seed, 2);
        net.weather = Weather {
            latency_ms: (1, 50),
            loss: 5,
            duplication: 20,
        };
        net.connect_all(Connect::Restart);
        let until = net.now + Duration::from_secs(20);
        let mut copied = 0;
        while net.now < until && net.step() {
            while copied < net.sent.len() {
                let packet = net.sent[copied].clone();
                let mutated = mutate(&mut net, packet);
                net.carry(mutated);
                copied += 1;
            }
        }
        assert!(
            net.run_until(LONG, Net::all_settled),
            "seed {seed}: {:?}",
            net.failures(0)
        );
    }
}

fn mutate(net: &mut Net, mut packet: Packet) -> Packet {
    for _ in 0..net.rng.random_range(1..4) {
        let at = net.rng.random_range(0..packet.payload.len());
        match net.rng.random_range(0..4) {
            0 => packet.payload[at] ^= 1 << net.rng.random_range(0..8),
            1 => packet.payload[at] = net.rng.random(),
            2 => packet.payload.truncate(at.max(28)),
            _ => packet.payload.insert(at, net.rng.random()),
        }
    }
    // A correct length gets it past the first check.
    let length = u32::try_from(packet.payload.len()).unwrap().to_be_bytes();
    if packet.payload.len() >= 28 {
        packet.payload[24..28].copy_from_slice(&length);
    }
    packet
}

#[test]
fn random_bytes_do_nothing() {
    let mut net = connected(1);
    let before = events(&net);
    for _ in 0..20_000 {
        let mut payload = vec![0; net.rng.random_range(0..300)];
        net.rng.fill_bytes(&mut payload);
        if payload.len() >= 28 && net.rng.random_range(0..4) > 0 {
            let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
            payload[24..28].copy_from_slice(&length);
            payload[17] = 0x20;
            payload[18] = net.rng.random_range(34..38);
        }
        net.deliver(&Packet {
            path: Path {
                local: address(1),
                remote: address(0),
            },
            payload,
        });
    }
    assert_untouched(&mut net, before, "random bytes");
}
