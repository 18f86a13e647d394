//! What must not happen when things go wrong: a timed-out exchange never deletes CHILD_SAs that carry traffic, INITIAL_CONTACT
//! deletes nothing early, refusals end no more than they name (RFC 7296 §2.4, §2.25).

use std::time::Duration;

use espalier_ike::wire::{ExchangeType, Notify, NotifyType, Payload};
use espalier_ike::{ChildConfig, CloseReason, Connect, Event, IkeStatus, TrafficSelector, limits};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Raw};
use crate::sim::{CREATE_CHILD, Net, address, id, ip};

const LONG: Duration = Duration::from_secs(300);

fn tcp(own: usize, peer: usize) -> ChildConfig {
    let at = |node| TrafficSelector {
        protocol: 6,
        start_port: 0,
        end_port: u16::MAX,
        start: ip(node),
        end: ip(node),
    };
    ChildConfig::new(vec![at(own)], vec![at(peer)])
}

fn connected() -> Net {
    let mut net = Net::psk_mesh(1, 2);
    for own in 0..2 {
        net.add_child(own, 1 - own, 1, tcp(own, 1 - own));
    }
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, |net| net.child_ups(1).len() == 2));
    net.run(Duration::from_secs(15));
    net
}

fn downs(net: &Net, node: usize) -> Vec<CloseReason> {
    let down = |event: &Event| match event {
        Event::ChildDown { reason, .. } => Some(*reason),
        _ => None,
    };
    net.nodes[node].log.iter().filter_map(down).collect()
}

/// Everything that an end can have asked when the other one falls silent.
#[test]
fn a_timed_out_exchange_of_any_kind_deletes_no_child_sa() {
    type Ask = fn(&mut Net);
    let asks: [(&str, Ask); 7] = [
        ("liveness", |_| ()),
        ("announcement", |net| net.announce(0, 1, b"news")),
        ("rekey of a CHILD_SA", |net| net.rekey_child(0, 1)),
        ("rekey of the IKE SA", |net| net.rekey_ike(0, 1)),
        ("further CHILD_SA", |net| {
            let mut other = tcp(0, 1);
            (other.local_ts[0].protocol, other.remote_ts[0].protocol) = (132, 132);
            net.add_child(0, 1, 2, other);
        }),
        ("reauthentication", |net| {
            let now = net.now;
            net.nodes[0].endpoint.reauthenticate(&id(1), now);
            net.pump(0);
        }),
        ("all at once", |net| {
            net.announce(0, 1, b"news");
            net.rekey_child(0, 1);
            net.rekey_ike(0, 1);
        }),
    ];
    for (name, ask) in asks {
        let mut net = connected();
        net.nodes[1].up = false;
        ask(&mut net);
        net.run(Duration::from_secs(150));
        assert_eq!(
            net.nodes[0].endpoint.status(&id(1)),
            IkeStatus::Connecting,
            "{name}"
        );
        let timeout = |event: &Event| {
            matches!(
                event,
                Event::IkeDown {
                    reason: CloseReason::Timeout,
                    ..
                }
            )
        };
        assert_eq!(net.count(0, timeout), 1, "{name}");
        assert_eq!(downs(&net, 0), [], "{name}");
        let held = net.nodes[0].endpoint.holdings();
        assert_eq!((held.orphans, held.children), (2, 0), "{name}");
        net.nodes[1].up = true;
        assert!(net.run_until(LONG, Net::all_settled), "{name}");
        net.run(limits::CHILDREN_PATIENCE * 2);
        let replaced = |reason: &CloseReason| *reason == CloseReason::Replaced;
        assert!(downs(&net, 0).iter().all(replaced), "{name}");
        assert_eq!(net.nodes[0].endpoint.holdings().orphans, 0, "{name}");
    }
}

/// What was replaced may go, as its successor carries the traffic; that one stays when the DELETE gets no answer.
#[test]
fn a_delete_that_times_out_leaves_the_successor() {
    let mut net = connected();
    net.rekey_child(0, 1);
    net.run(Duration::from_secs(1));
    net.nodes[1].up = false;
    net.run(Duration::from_secs(150));
    assert_eq!(downs(&net, 0), [CloseReason::Replaced]);
    let held = net.nodes[0].endpoint.holdings();
    assert_eq!((held.orphans, held.children), (2, 0));
    let newest = net.child_ups(0).pop().unwrap().1;
    assert_eq!(net.nodes[0].plane[&id(1)].seals, Some(newest.spi_out));
}

fn by_hand(net: &mut Net, vendor: bool, spi: u32, more: Option<Payload<'static>>) -> Raw {
    net.strict = false;
    net.nodes[1].up = false;
    let mut raw = Raw::init(net, address(1), 0, vendor);
    let mut child = raw::child(spi, address(1), address(0));
    child.extend(more);
    let secret = SecretBytes::copy_from(&[7; 32]);
    raw.auth_psk(net, "node-01", &secret, &child).unwrap();
    raw
}

#[test]
fn initial_contact_deletes_nothing_before_the_new_child_sa_is_in_use() {
    let mut net = Net::psk_mesh(1, 2);
    by_hand(&mut net, false, 4711, None);
    let contact = Payload::Notify(Notify::new(NotifyType::InitialContact, &[]));
    let mut second = by_hand(&mut net, false, 4712, Some(contact));
    net.run(limits::DRAIN * 2);
    assert_eq!((net.child_ups(0).len(), downs(&net, 0)), (2, vec![]));
    second
        .ask(&mut net, ExchangeType::Informational, &[])
        .unwrap();
    net.run(limits::DRAIN / 2);
    assert_eq!(downs(&net, 0), []);
    net.run(limits::DRAIN);
    assert_eq!(downs(&net, 0), [CloseReason::Replaced]);
}

fn asked(net: &Net, from: usize) -> usize {
    let created =
        |packet: &&crate::sim::Packet| packet.kind().0 == CREATE_CHILD && !packet.kind().1;
    net.sent[from..].iter().filter(created).count()
}

#[test]
fn a_temporary_failure_of_any_request_is_tried_again_and_ends_nothing() {
    type Ask = fn(&mut Net);
    let asks: [(&str, Ask); 3] = [
        ("rekey of a CHILD_SA", |net| net.rekey_child(0, 1)),
        ("rekey of the IKE SA", |net| net.rekey_ike(0, 1)),
        ("further CHILD_SA", |net| {
            net.connect(0, 1, Connect::Policy);
            net.add_child(0, 1, 1, tcp(0, 1));
            net.run_until(Duration::from_secs(1), |net| asked(net, 0) > 0);
        }),
    ];
    for (name, ask) in asks {
        let mut net = Net::psk_mesh(1, 2);
        let mut raw = by_hand(&mut net, true, 4711, None);
        raw.ask(&mut net, ExchangeType::Informational, &[]).unwrap();
        ask(&mut net);
        for round in 1..=3 {
            assert_eq!(asked(&net, 0), round, "{name}");
            let later = Notify::new(NotifyType::TemporaryFailure, &[]);
            raw.answer(&mut net, &[Payload::Notify(later)]);
            assert!(
                !net.run_until(Duration::from_secs(1), |net| asked(net, 0) > round),
                "{name}"
            );
            // Before it is repeated for want of an answer.
            net.run_until(Duration::from_secs(3), |net| asked(net, 0) > round);
        }
        assert_eq!(downs(&net, 0), [], "{name}");
        assert_eq!(
            net.nodes[0].endpoint.status(&id(1)),
            IkeStatus::Established,
            "{name}"
        );
    }
}

#[test]
fn a_child_sa_that_the_peer_has_lost_is_the_only_one_that_ends() {
    let mut net = Net::psk_mesh(1, 2);
    net.add_child(0, 1, 1, tcp(0, 1));
    let mut raw = by_hand(&mut net, true, 4711, None);
    raw.ask(&mut net, ExchangeType::Informational, &[]).unwrap();
    net.connect(0, 1, Connect::Policy);
    // The node asks for the second one; the answer makes both ends have it.
    assert!(net.run_until(Duration::from_secs(1), |net| asked(net, 0) == 1));
    let (_, said) = raw.asked(&net);
    let mut answer = crate::sim::raw::granted(&said, 5001, address(0), address(1));
    for payload in &mut answer {
        if let Payload::TsI(list) | Payload::TsR(list) = payload {
            list.0.iter_mut().for_each(|ts| ts.protocol = 6);
        }
    }
    raw.answer(&mut net, &answer);
    let up = net.child_ups(0)[1].1.clone();
    assert_eq!((up.id.number, up.spi_out), (1, 5001));
    net.run(Duration::from_millis(100));
    raw.answer(&mut net, &[]); // its announcement
    let now = net.now;
    net.nodes[0].endpoint.rekey_child_sa(up.spi_in, now);
    net.pump(0);
    let lost = Notify::about_esp(NotifyType::ChildSaNotFound, up.spi_in);
    raw.answer(&mut net, &[Payload::Notify(lost)]);
    assert_eq!(downs(&net, 0), [CloseReason::Peer]);
    assert_eq!(net.nodes[0].endpoint.status(&id(1)), IkeStatus::Established);
    let before = net.sent.len();
    net.run(Duration::from_secs(1));
    assert!(asked(&net, before) > 0, "it is made anew");
}
