//! Rekeys and DELETEs of a CHILD_SA between an endpoint (node 0) and a peer that is made by hand: what two endpoints never say
//! to each other, but a foreign implementation may, or one that errs.

use super::*;

#[test]
fn another_method_that_the_peer_asks_for_is_used_and_the_rekey_completes() {
    let (mut net, mut raw) = foreign();
    net.rekey_child(0, 1);
    refuse(&mut net, &mut raw, NotifyType::InvalidKePayload, &[0, 19]);
    grant(&mut net, &mut raw, NEW, 0xff);
    assert_eq!((outbound(&net), seals(&net, NEW)), (vec![OLD, NEW], true));
    // The acknowledged announcement confirms it, and the old one goes.
    raw.answer(&mut net, &[]);
    net.run(limits::DRAIN + MOMENT);
    assert_eq!(asked_to_delete(&net, &raw).len(), 1);
    raw.answer(&mut net, &[]);
    assert_eq!((outbound(&net), kept_its_ike_sa(&net)), (vec![NEW], true));
}

#[test]
fn a_peer_that_is_asked_for_another_method_gets_its_rekey_with_it() {
    let (mut net, mut raw) = foreign();
    let spis = (OLD, NEW);
    let refused = demand_group(&mut net, &mut raw, spis, 1, 31, KexGroup::P256);
    assert_eq!(refused.notifies(), [NotifyType::InvalidKePayload]);
    assert_eq!(outbound(&net), [OLD]);
    let granted = demand_group(&mut net, &mut raw, spis, 1, 31, KexGroup::X25519);
    assert_eq!(granted.notifies(), [NotifyType::UseTransportMode]);
    assert_eq!((outbound(&net), seals(&net, OLD)), (vec![OLD, NEW], true));
}

/// The responder deletes the new CHILD_SA while both wait for the DELETE of the old one: the old one goes on.
#[test]
fn a_delete_of_the_new_child_sa_leaves_the_old_one_in_use_on_either_end() {
    // Node 0 has asked.
    let (mut net, mut raw) = foreign();
    net.rekey_child(0, 1);
    grant(&mut net, &mut raw, NEW, 0xff);
    delete_by_peer(&mut net, &mut raw, NEW);
    assert_eq!((outbound(&net), seals(&net, OLD)), (vec![OLD], true));
    raw.answer(&mut net, &[]);
    net.run(limits::REKEY_RETRY * 2);
    let (header, _) = raw.asked(&net);
    assert_eq!(header.exchange, ExchangeType::CreateChildSa, "tried again");

    // The peer has asked.
    let (mut net, mut raw) = foreign();
    demand(&mut net, &mut raw, OLD, NEW, 1);
    delete_by_peer(&mut net, &mut raw, NEW);
    assert_eq!((outbound(&net), seals(&net, OLD)), (vec![OLD], true));
    assert!(kept_its_ike_sa(&net));
}

#[test]
fn a_child_sa_that_the_peer_has_lost_goes_and_a_new_handshake_brings_another() {
    let (mut net, mut raw) = foreign();
    net.rekey_child(0, 1);
    refuse(&mut net, &mut raw, NotifyType::ChildSaNotFound, &[]);
    assert_eq!(downs(&net, 0), [CloseReason::Peer]);
    net.run(Duration::from_secs(5));
    assert!(net.settled(0, 1));
}

/// Against the RFC, some responders delete the old CHILD_SA themselves, perhaps faster than their answer arrives.
#[test]
fn a_responder_that_deletes_the_old_child_sa_before_its_answer_arrives_is_waited_for() {
    let (mut net, mut raw) = foreign();
    net.rekey_child(0, 1);
    let answer = delete_by_peer(&mut net, &mut raw, OLD);
    assert!(matches!(answer.payloads()[..], [Payload::Delete(_)]));
    assert_eq!(outbound(&net), [0; 0]);
    // The request is repeated until its answer comes.
    net.run(Duration::from_secs(1));
    grant(&mut net, &mut raw, NEW, 0xff);
    assert_eq!((outbound(&net), seals(&net, NEW)), (vec![NEW], true));
    raw.answer(&mut net, &[]);
    net.run(limits::DRAIN * 2);
    assert_eq!((outbound(&net), kept_its_ike_sa(&net)), (vec![NEW], true));
    net.nodes[0].endpoint.audit().unwrap();
}

#[test]
fn one_that_never_answers_after_it_deleted_the_child_sa_costs_the_ike_sa_and_a_new_one_is_made() {
    let (mut net, mut raw) = foreign();
    net.rekey_child(0, 1);
    delete_by_peer(&mut net, &mut raw, OLD);
    assert!(kept_its_ike_sa(&net));
    net.run(Duration::from_secs(90));
    assert!(!kept_its_ike_sa(&net) && net.settled(0, 1));
    net.assert_nothing_orphaned("after");
}

/// Both have asked, and the peer has deleted the old one and what replaced it before it answers.
#[test]
fn a_peer_that_deletes_both_child_sas_before_it_answers_gets_no_third() {
    for (nonce, refusal) in [(0x00, false), (0xff, false), (0xff, true)] {
        let (mut net, mut raw) = foreign();
        net.rekey_child(0, 1);
        let (_, asked) = raw.asked(&net);
        demand(&mut net, &mut raw, OLD, NEW, nonce);
        delete_by_peer(&mut net, &mut raw, OLD);
        delete_by_peer(&mut net, &mut raw, NEW);
        assert_eq!(outbound(&net), [0; 0]);
        drop(asked);
        if refusal {
            refuse(&mut net, &mut raw, NotifyType::ChildSaNotFound, &[]);
            assert!(!kept_its_ike_sa(&net), "it is of no use any more");
        } else {
            // What it grants all the same is there on both ends.
            grant(&mut net, &mut raw, NEW + 1, nonce);
            assert_eq!(outbound(&net), [NEW + 1]);
        }
        net.nodes[0].endpoint.audit().unwrap();
    }
}

/// Each end wants another method than the other one has chosen first; the repeated requests cross.
#[test]
fn rekeys_that_cross_again_after_invalid_ke_payload_leave_the_one_with_the_higher_nonces() {
    for (peer_wins, nonce) in [(true, 0xff), (false, 0x00)] {
        let (mut net, mut raw) = foreign();
        net.nodes[0].first_byte.set(0x80);
        net.rekey_child(0, 1);
        let spis = (OLD, NEW);
        demand_group(&mut net, &mut raw, spis, nonce, 31, KexGroup::P256);
        refuse(&mut net, &mut raw, NotifyType::InvalidKePayload, &[0, 19]);
        let own = offered(&net, &raw);
        let granted = demand_group(&mut net, &mut raw, spis, nonce, 31, KexGroup::X25519);
        assert_eq!(granted.notifies(), [NotifyType::UseTransportMode]);
        grant(&mut net, &mut raw, NEW + 1, 0xff);
        if peer_wins {
            assert_eq!(outbound(&net), [OLD, NEW]);
            assert_eq!(asked_to_delete(&net, &raw), [own], "its own is redundant");
        } else {
            assert_eq!(outbound(&net), [OLD, NEW, NEW + 1]);
            delete_by_peer(&mut net, &mut raw, NEW);
            assert!(seals(&net, NEW + 1));
        }
        net.nodes[0].endpoint.audit().unwrap();
    }
}

/// The peer's repeated request comes when node 0's rekey is done: it was replaced.
#[test]
fn a_repeated_request_that_comes_when_the_other_rekey_is_done_is_refused() {
    let (mut net, mut raw) = foreign();
    net.rekey_child(0, 1);
    let spis = (OLD, NEW);
    let refused = demand_group(&mut net, &mut raw, spis, 1, 31, KexGroup::P256);
    assert_eq!(refused.notifies(), [NotifyType::InvalidKePayload]);
    refuse(&mut net, &mut raw, NotifyType::InvalidKePayload, &[0, 19]);
    grant(&mut net, &mut raw, NEW + 1, 0xff);
    raw.answer(&mut net, &[]);
    let late = demand(&mut net, &mut raw, OLD, NEW, 1);
    assert_eq!(late.notifies(), [NotifyType::TemporaryFailure]);
    // And when the DELETE of the old one is under way, and when that is done.
    net.run(limits::DRAIN + MOMENT);
    let later = demand(&mut net, &mut raw, OLD, NEW, 1);
    assert_eq!(later.notifies(), [NotifyType::TemporaryFailure]);
    raw.answer(&mut net, &[]);
    let last = demand(&mut net, &mut raw, OLD, NEW, 1);
    assert_eq!(last.notifies(), [NotifyType::ChildSaNotFound]);
    assert_eq!(
        (outbound(&net), seals(&net, NEW + 1)),
        (vec![NEW + 1], true)
    );
}

/// Against the RFC: the loser of a collision deletes the old CHILD_SA before its answer arrives.
#[test]
fn a_loser_that_deletes_the_old_child_sa_before_it_answers_costs_nothing() {
    for nonce in [0x00, 0xff] {
        let (mut net, mut raw) = foreign();
        net.nodes[0].first_byte.set(0x80);
        net.rekey_child(0, 1);
        demand(&mut net, &mut raw, OLD, NEW, nonce);
        delete_by_peer(&mut net, &mut raw, OLD);
        assert_eq!((outbound(&net), seals(&net, NEW)), (vec![NEW], true));
        grant(&mut net, &mut raw, NEW + 1, 0xff);
        let left: &[u32] = if nonce == 0 { &[NEW, NEW + 1] } else { &[NEW] };
        assert_eq!(outbound(&net), left, "nonce {nonce:02x}");
        assert!(kept_its_ike_sa(&net));
        net.nodes[0].endpoint.audit().unwrap();
    }
}

#[test]
fn a_rekey_against_the_delete_of_the_same_child_sa_makes_nothing() {
    // The refusal before the DELETE, and after it.
    for refusal_first in [true, false] {
        let (mut net, mut raw) = foreign();
        net.rekey_child(0, 1);
        let kind = NotifyType::TemporaryFailure;
        if refusal_first {
            refuse(&mut net, &mut raw, kind, &[]);
            assert_eq!(outbound(&net), [OLD]);
        }
        delete_by_peer(&mut net, &mut raw, OLD);
        if !refusal_first {
            refuse(&mut net, &mut raw, kind, &[]);
        }
        assert_eq!(downs(&net, 0), [CloseReason::Peer]);
        net.run(limits::REKEY_RETRY * 4);
        assert!(net.settled(0, 1), "a new handshake brought another");
        net.run(limits::CLOSED_LINGER);
        net.assert_nothing_orphaned("after");
    }
}

/// Node 0 deletes the CHILD_SA that was replaced, the peer asks to rekey it: what strongSwan calls b.
#[test]
fn a_rekey_of_what_this_end_deletes_is_put_off_and_then_not_found() {
    let (mut net, mut raw) = foreign();
    net.rekey_child(0, 1);
    grant(&mut net, &mut raw, NEW, 0xff);
    raw.answer(&mut net, &[]);
    net.run(limits::DRAIN + MOMENT);
    let answer = demand(&mut net, &mut raw, OLD, NEW + 1, 1);
    assert_eq!(answer.notifies(), [NotifyType::TemporaryFailure]);
    // Its own DELETE of it crosses and is answered without the other half, which went already.
    let answer = delete_by_peer(&mut net, &mut raw, OLD);
    assert_eq!(answer.payloads(), []);
    raw.answer(&mut net, &[]);
    assert_eq!((outbound(&net), kept_its_ike_sa(&net)), (vec![NEW], true));
}

#[test]
fn a_refusal_whose_delete_comes_later_is_not_followed_by_another_rekey() {
    let (mut net, mut raw) = foreign();
    net.rekey_child(0, 1);
    refuse(&mut net, &mut raw, NotifyType::TemporaryFailure, &[]);
    net.run(Duration::from_secs(1));
    delete_by_peer(&mut net, &mut raw, OLD);
    let old = raw.spi();
    let rekeys = |net: &Net| {
        let asks = |packet: &&crate::sim::Packet| {
            packet.kind().0 == CREATE_CHILD && packet.payload[..8] == old.to_be_bytes()
        };
        net.sent.iter().filter(asks).count()
    };
    let before = rekeys(&net);
    net.run(limits::REKEY_RETRY * 3);
    assert_eq!(rekeys(&net), before);
}

#[test]
fn a_delete_that_meets_a_rekey_on_its_way_ends_the_child_sa() {
    let (mut net, mut raw) = foreign();
    net.rekey_child(0, 1);
    let answer = delete_by_peer(&mut net, &mut raw, OLD);
    assert!(matches!(answer.payloads()[..], [Payload::Delete(_)]));
    // The rekey arrives after the DELETE is done.
    refuse(&mut net, &mut raw, NotifyType::ChildSaNotFound, &[]);
    assert_eq!((outbound(&net), kept_its_ike_sa(&net)), (vec![], false));
    net.run(Duration::from_secs(5));
    assert!(net.settled(0, 1));
}

#[test]
fn a_delete_of_the_new_child_sa_that_overtakes_the_answer_is_remembered() {
    let (mut net, mut raw) = foreign();
    net.rekey_child(0, 1);
    let answer = delete_by_peer(&mut net, &mut raw, NEW);
    assert_eq!(answer.payloads(), [], "nothing is known of it yet");
    grant(&mut net, &mut raw, NEW, 0xff);
    assert_eq!((outbound(&net), seals(&net, OLD)), (vec![OLD], true));
    assert_eq!(ups(&net, 0), 1, "never handed to the driver");
    net.nodes[0].endpoint.audit().unwrap();
    net.run(limits::REKEY_RETRY * 2);
    let (header, _) = raw.asked(&net);
    assert_eq!(header.exchange, ExchangeType::CreateChildSa, "tried again");
}

/// Deletions of what does not exist, again and again, while a rekey waits: bounded.
#[test]
fn what_is_remembered_of_strange_deletes_is_bounded() {
    let (mut net, mut raw) = foreign();
    net.rekey_child(0, 1);
    for round in 0..50 {
        let spis: Vec<u32> = (0..200).map(|spi| 10_000 + round * 200 + spi).collect();
        let delete = Payload::Delete(Delete::Child {
            protocol: ProtocolId::Esp,
            spis,
        });
        raw.ask(&mut net, ExchangeType::Informational, &[delete])
            .unwrap();
    }
    grant(&mut net, &mut raw, NEW, 0xff);
    assert!(seals(&net, NEW));
}

/// Libreswan does not see that rekeys crossed, and deletes neither its own CHILD_SA that lost nor, always, the old one.
#[test]
fn a_foreign_peer_that_does_not_see_that_rekeys_crossed_keeps_its_own_child_sa() {
    for own_wins in [true, false] {
        let mut net = Net::psk_mesh(1, 2);
        net.strict = false;
        let mut raw = Raw::init(&mut net, address(1), 0, false);
        let child = raw::child(OLD, address(1), address(0));
        let psk = SecretBytes::copy_from(&[7; 32]);
        raw.auth_psk(&mut net, "node-01", &psk, &child).unwrap();
        net.connect(0, 1, Connect::Policy);
        net.nodes[0].first_byte.set(0x80);
        net.rekey_child(0, 1);
        demand(
            &mut net,
            &mut raw,
            OLD,
            NEW,
            if own_wins { 0x00 } else { 0xff },
        );
        grant(&mut net, &mut raw, NEW + 1, 0xff);
        if !own_wins {
            raw.answer(&mut net, &[]);
            assert_eq!(outbound(&net), [OLD, NEW], "its own went at once");
        } else {
            net.run(limits::DRAIN + MOMENT);
            raw.answer(&mut net, &[]);
            assert_eq!(outbound(&net), [NEW, NEW + 1], "it deleted the old one");
        }
        net.run(limits::REDUNDANT_PATIENCE);
        raw.answer(&mut net, &[]);
        assert_eq!((outbound(&net), kept_its_ike_sa(&net)), (vec![NEW], true));
        net.nodes[0].endpoint.audit().unwrap();
    }
}
