//! Exchanges that meet, each datagram moved by hand: the situations that strongSwan tests, and ours beyond them. The table that
//! maps one to the other, and says where the outcomes differ on purpose, is docs/ike-collisions.md.
//!
//! After each step the simulation checks that no state has two owners, that both ends have the same keys, and that nobody
//! seals with what the other end cannot open; [`settle`] checks what remains.

mod child;
mod child_foreign;
mod ike;
mod multi_ke;

use std::time::Duration;

use espalier_ike::crypto::{KexGroup, KeyExchange};
use espalier_ike::wire::{
    self, Delete, ExchangeType, Nonce, Notify, NotifyType, Payload, ProtocolId, Spi, Transform,
    TransformType,
};
use espalier_ike::{CloseReason, Config, Connect, Event, IkePolicy, Rekeying, Role, limits};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Answer, Raw};
use crate::sim::{ANSWER, ASK, CREATE_CHILD, INFORMATIONAL, Net, address, id};

const LONG: Duration = Duration::from_secs(300);
const MOMENT: Duration = Duration::from_millis(10);
/// Which of the four nonces of a collision is the lowest: of the request of node 0, that of node 1, the answer of node 1, that of
/// node 0. The exchange with the lowest one loses (RFC 7296 §2.8.1).
const NONCES: [usize; 4] = [0, 1, 2, 3];

/// Two connected nodes whose datagrams move by hand from now on.
fn pair() -> Net {
    pair_with(Rekeying::default(), Rekeying::default())
}

fn pair_with(of_0: Rekeying, of_1: Rekeying) -> Net {
    let mut net = Net::psk_mesh(1, 2);
    net.set_rekeying(0, of_0);
    net.set_rekeying(1, of_1);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(1));
    net.by_hand();
    net
}

/// Both nodes begin, and both requests arrive; the answers wait. Returns who wins.
fn cross(net: &mut Net, begin: fn(&mut Net, usize, usize), lowest: usize) -> usize {
    let mark = |net: &Net, node: usize, point: usize| {
        let byte = if point == lowest { 0 } else { 0xff };
        net.nodes[node].first_byte.set(byte);
    };
    mark(net, 0, 0);
    begin(net, 0, 1);
    mark(net, 1, 1);
    begin(net, 1, 0);
    mark(net, 1, 2);
    net.hand(0, CREATE_CHILD, ASK);
    mark(net, 0, 3);
    net.hand(1, CREATE_CHILD, ASK);
    net.nodes.iter().for_each(|node| node.first_byte.free());
    1 - usize::from(lowest % 2 == 1)
}

/// Each end begins with a method that the other one does not want, and both know one more.
fn disagree(net: &mut Net) {
    use KexGroup::{P256, P384, X25519};
    for (node, groups) in [(0, vec![P384, P256]), (1, vec![X25519, P256])] {
        let ike = IkePolicy {
            groups,
            ..IkePolicy::default()
        };
        let config = Config {
            ike,
            ..net.nodes[node].config.clone()
        };
        net.set_config(node, config);
    }
}

/// Both begin and are refused by INVALID_KE_PAYLOAD; the repeated requests wait. `lowest` is about those.
fn refuse_both(net: &mut Net, begin: fn(&mut Net, usize, usize), lowest: usize) {
    disagree(net);
    begin(net, 0, 1);
    begin(net, 1, 0);
    net.hand(0, CREATE_CHILD, ASK);
    net.hand(1, CREATE_CHILD, ASK);
    for node in 0..2 {
        let byte = if node == lowest { 0 } else { 0xff };
        net.nodes[node].first_byte.set(byte);
        net.hand(1 - node, CREATE_CHILD, ANSWER);
    }
}

/// Both repeated requests arrive; the answers wait. Returns who wins.
fn cross_again(net: &mut Net, lowest: usize) -> usize {
    for (node, point) in [(1, 2), (0, 3)] {
        let byte = if point == lowest { 0 } else { 0xff };
        net.nodes[node].first_byte.set(byte);
        net.hand(1 - node, CREATE_CHILD, ASK);
    }
    net.nodes.iter().for_each(|node| node.first_byte.free());
    1 - usize::from(lowest % 2 == 1)
}

/// Node 0 asks, and its request gets stuck; node 1 asks, is answered, and never knew.
fn overtake(net: &mut Net, begin: fn(&mut Net, usize, usize)) -> crate::sim::Packet {
    begin(net, 0, 1);
    let late = net.take(0, CREATE_CHILD, ASK);
    begin(net, 1, 0);
    net.exchange(1, CREATE_CHILD);
    late
}

/// Lets the network finish: what remains is one of each, on both ends, and nothing else.
fn settle(net: &mut Net, context: &str) {
    net.let_go();
    net.run(limits::REKEYED_LINGER + Duration::from_secs(60));
    net.check_spis();
    assert!(net.settled(0, 1), "{context}: not settled");
    net.assert_nothing_orphaned(context);
}

/// The same, and nothing was lost on the way: no new handshake, no CHILD_SA that went without a successor.
fn settle_hitless(net: &mut Net, context: &str) {
    settle(net, context);
    for node in 0..2 {
        let down = |event: &Event| matches!(event, Event::IkeDown { .. });
        assert_eq!(net.count(node, down), 0, "{context}: IkeDown on {node}");
        let all = downs(net, node);
        let replaced = |reason: &CloseReason| *reason == CloseReason::Replaced;
        assert!(all.iter().all(replaced), "{context}: {all:?} on {node}");
    }
}

fn downs(net: &Net, node: usize) -> Vec<CloseReason> {
    let down = |event: &Event| match event {
        Event::ChildDown { reason, .. } => Some(*reason),
        _ => None,
    };
    net.nodes[node].log.iter().filter_map(down).collect()
}

fn ups(net: &Net, node: usize) -> usize {
    net.child_ups(node).len()
}

/// CHILD_SAs in a node's data plane.
fn open(net: &Net, node: usize) -> usize {
    let pair = net.nodes[node].plane.get(&id(1 - node));
    pair.map_or(0, |pair| pair.inbound.len())
}

/// The end that made the CHILD_SA that is left.
fn maker(net: &Net) -> usize {
    let left = &net.nodes[0].plane[&id(1)].inbound;
    let ups = net.child_ups(0);
    let up = ups
        .iter()
        .find(|(_, child, _)| left.contains_key(&child.spi_in));
    let (role, ..) = up.expect("a CHILD_SA that was reported");
    usize::from(*role == Role::Responder)
}

/// The end that made the IKE SA in use: by the initiator flag of what is said on it.
fn maker_of_ike(net: &mut Net) -> usize {
    net.announce(0, 1, b"who am I");
    let last = net.sent.last().unwrap();
    let (exchange, answer, _) = last.kind();
    assert_eq!((exchange, answer), (INFORMATIONAL, false));
    usize::from(last.payload[19] & 0x08 == 0)
}

// --- A peer that is made by hand: node 1's part towards node 0. ---

/// Its inbound SPIs.
const OLD: u32 = 4711;
const NEW: u32 = 4712;

/// Node 0 and a peer with an IKE SA that node 0 knows it has. The real node 1 answers what node 0 begins anew.
fn foreign() -> (Net, Raw) {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = Raw::init(&mut net, address(1), 0, true);
    let child = raw::child(OLD, address(1), address(0));
    let psk = SecretBytes::copy_from(&[7; 32]);
    raw.auth_psk(&mut net, "node-01", &psk, &child).unwrap();
    // It is ready: node 0 seals from here on.
    let ready = Notify::new(NotifyType::EspalierAnnouncement, b"ready");
    let ready = [Payload::Notify(ready)];
    raw.ask(&mut net, ExchangeType::Informational, &ready)
        .unwrap();
    net.connect(0, 1, Connect::Policy);
    (net, raw)
}

/// The peer asks to rekey `old` into `new`.
fn demand(net: &mut Net, raw: &mut Raw, old: u32, new: u32, nonce: u8) -> Answer {
    demand_group(net, raw, (old, new), nonce, 31, KexGroup::X25519)
}

/// The same, offering `group` and with a key of another perhaps.
fn demand_group(
    net: &mut Net,
    raw: &mut Raw,
    (old, new): (u32, u32),
    nonce: u8,
    group: u16,
    key: KexGroup,
) -> Answer {
    let kex = KeyExchange::generate(key, &mut net.rng).unwrap();
    let nonce = [nonce; 32];
    let mut payloads = vec![
        Payload::Notify(Notify::about_esp(NotifyType::RekeySa, old)),
        Payload::Nonce(Nonce(&nonce)),
    ];
    payloads.extend(raw::child(new, address(1), address(0)));
    offer_group(&mut payloads, group);
    payloads.push(Payload::Ke(wire::KeyExchange {
        group: key.transform_id(),
        data: kex.public(),
    }));
    raw.ask(net, ExchangeType::CreateChildSa, &payloads)
        .expect("an answer")
}

fn offer_group(payloads: &mut [Payload<'_>], group: u16) {
    for payload in payloads {
        if let Payload::Sa(sa) = payload {
            let group = Transform::new(TransformType::Ke, group);
            sa.proposals[0].transforms.push(group);
        }
    }
}

/// The peer grants the rekey that node 0 has asked for.
fn grant(net: &mut Net, raw: &mut Raw, new: u32, nonce: u8) {
    let (_, asked) = raw.asked(net);
    let group = asked.payloads().iter().find_map(|payload| match payload {
        Payload::Ke(ke) => KexGroup::from_transform_id(ke.group),
        _ => None,
    });
    let group = group.expect("a KE payload");
    // A real key of the other end: its half of the exchange is not needed here.
    let kex = KeyExchange::generate(group, &mut net.rng).unwrap();
    let nonce = [nonce; 32];
    let selectors = asked.payloads().into_iter();
    let selectors = selectors.filter(|p| matches!(p, Payload::TsI(_) | Payload::TsR(_)));
    let mut payloads = raw::child(new, address(0), address(1));
    payloads.retain(|p| !matches!(p, Payload::TsI(_) | Payload::TsR(_)));
    payloads.extend(selectors);
    offer_group(&mut payloads, group.transform_id());
    payloads.push(Payload::Nonce(Nonce(&nonce)));
    payloads.push(Payload::Ke(wire::KeyExchange {
        group: group.transform_id(),
        data: kex.public(),
    }));
    raw.answer(net, &payloads);
}

fn refuse(net: &mut Net, raw: &mut Raw, kind: NotifyType, data: &[u8]) {
    raw.answer(net, &[Payload::Notify(Notify::new(kind, data))]);
}

fn delete(spi: u32) -> Payload<'static> {
    Payload::Delete(Delete::Child {
        protocol: ProtocolId::Esp,
        spis: vec![spi],
    })
}

/// The peer deletes a CHILD_SA by its own inbound SPI.
fn delete_by_peer(net: &mut Net, raw: &mut Raw, spi: u32) -> Answer {
    raw.ask(net, ExchangeType::Informational, &[delete(spi)])
        .expect("an answer")
}

/// What node 0 last asked to be deleted, by its inbound SPIs.
fn asked_to_delete(net: &Net, raw: &Raw) -> Vec<u32> {
    let (_, asked) = raw.asked(net);
    let spis = |payload: &Payload<'_>| match payload {
        Payload::Delete(Delete::Child { spis, .. }) => Some(spis.clone()),
        _ => None,
    };
    asked.payloads().iter().find_map(spis).unwrap_or_default()
}

/// The inbound SPI that node 0 offered in its last request.
fn offered(net: &Net, raw: &Raw) -> u32 {
    let (_, asked) = raw.asked(net);
    let spi = asked.payloads().iter().find_map(|payload| match payload {
        Payload::Sa(sa) => Some(sa.proposals[0].spi.clone()),
        _ => None,
    });
    match spi {
        Some(Spi::Child(spi)) => spi,
        other => panic!("{other:?}"),
    }
}

/// Node 0 seals with it.
fn seals(net: &Net, spi: u32) -> bool {
    let pair = net.nodes[0].plane.get(&id(1));
    pair.is_some_and(|pair| pair.seals == Some(spi))
}

/// What node 0 has of the peer's inbound SPIs.
fn outbound(net: &Net) -> Vec<u32> {
    let pair = net.nodes[0].plane.get(&id(1));
    let spis = pair.map(|pair| pair.outbound.iter().map(|(spi, _)| *spi).collect());
    spis.unwrap_or_default()
}

/// No new handshake was begun.
fn kept_its_ike_sa(net: &Net) -> bool {
    let down = |event: &Event| matches!(event, Event::IkeDown { .. });
    net.count(0, down) == 0
}
