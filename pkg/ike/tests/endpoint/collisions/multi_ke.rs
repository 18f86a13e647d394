//! Rekeys with ML-KEM that meet: a CREATE_CHILD_SA decides, IKE_FOLLOWUP_KE makes (RFC 9370 §2.2.4). Nothing is made before the
//! last key exchange, so the end that lost has nothing to delete: it stops.

use espalier_ike::PostQuantum;

use super::*;
use crate::sim::FOLLOWUP;

const REKEYS: [fn(&mut Net, usize, usize); 2] = [Net::rekey_child, Net::rekey_ike];

fn ml_kem_pair() -> Net {
    let mut net = Net::psk_mesh(1, 2);
    net.post_quantum(PostQuantum::Preferred);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    net.run(Duration::from_secs(1));
    net.by_hand();
    net
}

/// Delivers what waits, in the order in which it was sent, for as long as something does.
fn carry_on(net: &mut Net) {
    while !net.held().is_empty() {
        let packet = net.take_at(0);
        net.deliver(&packet);
    }
}

fn sent(net: &Net, exchange: u8) -> usize {
    let of_kind = |packet: &&crate::sim::Packet| packet.kind().0 == exchange;
    net.sent.iter().filter(of_kind).count()
}

/// The end that made what is left of the rekey.
fn made_by(net: &mut Net, rekey: usize) -> usize {
    match rekey {
        0 => maker(net),
        _ => maker_of_ike(net),
    }
}

#[test]
fn another_method_than_the_first_is_agreed_on_and_ml_kem_follows() {
    for (rekey, begin) in REKEYS.into_iter().enumerate() {
        for own in [0, 1] {
            let mut net = ml_kem_pair();
            disagree(&mut net);
            begin(&mut net, own, 1 - own);
            net.exchange(own, CREATE_CHILD);
            assert_eq!(sent(&net, FOLLOWUP), 0, "INVALID_KE_PAYLOAD makes nothing");
            net.exchange(own, CREATE_CHILD);
            carry_on(&mut net);
            assert!(sent(&net, FOLLOWUP) >= 2);
            settle_hitless(&mut net, &format!("rekey {rekey} by {own}"));
            assert_eq!(made_by(&mut net, rekey), own);
        }
    }
}

#[test]
fn of_two_that_cross_the_one_with_the_lowest_nonce_stops() {
    for (rekey, begin) in REKEYS.into_iter().enumerate() {
        for lowest in NONCES {
            let mut net = ml_kem_pair();
            let winner = cross(&mut net, begin, lowest);
            net.hand(1, CREATE_CHILD, ANSWER);
            net.hand(0, CREATE_CHILD, ANSWER);
            assert!(net.waiting(winner, FOLLOWUP, ASK) > 0);
            assert_eq!(net.waiting(1 - winner, FOLLOWUP, ASK), 0);
            settle_hitless(&mut net, &format!("rekey {rekey}, lowest {lowest}"));
            assert_eq!(made_by(&mut net, rekey), winner, "lowest {lowest}");
        }
    }
}

#[test]
fn one_answer_of_a_collision_that_is_late_changes_nothing() {
    for (rekey, begin) in REKEYS.into_iter().enumerate() {
        for lowest in NONCES {
            for first in [0, 1] {
                let mut net = ml_kem_pair();
                let winner = cross(&mut net, begin, lowest);
                // The answer that `first` waits for, and all that follows from it; then the other one.
                let late = net.take(first, CREATE_CHILD, ANSWER);
                carry_on(&mut net);
                net.deliver(&late);
                settle_hitless(
                    &mut net,
                    &format!("rekey {rekey}, lowest {lowest}, first {first}"),
                );
                assert_eq!(made_by(&mut net, rekey), winner, "lowest {lowest}");
            }
        }
    }
}

/// Node 1 asks while it does without ML-KEM, and answers when it does not any more.
#[test]
fn a_rekey_with_ml_kem_and_one_without_that_cross_leave_one() {
    for (rekey, begin) in REKEYS.into_iter().enumerate() {
        for late in [0, 1] {
            let mut net = ml_kem_pair();
            begin(&mut net, 0, 1);
            net.set_post_quantum(1, PostQuantum::Off);
            begin(&mut net, 1, 0);
            net.set_post_quantum(1, PostQuantum::Preferred);
            net.hand(0, CREATE_CHILD, ASK);
            net.hand(1, CREATE_CHILD, ASK);
            net.hand(late, CREATE_CHILD, ANSWER);
            settle_hitless(&mut net, &format!("rekey {rekey}, {late} answers first"));
        }
    }
}

#[test]
fn a_rekey_whose_ike_sa_is_deleted_between_its_exchanges_leaves_nothing() {
    for begin in REKEYS {
        for deleter in [0, 1] {
            let mut net = ml_kem_pair();
            net.strict = false;
            begin(&mut net, 0, 1);
            net.exchange(0, CREATE_CHILD);
            assert!(net.waiting(0, FOLLOWUP, ASK) > 0);
            net.disconnect(deleter, 1 - deleter);
            carry_on(&mut net);
            // A request that was there before the DELETE may have been granted: that went with the IKE SA, too.
            assert_eq!(ups(&net, 0), 1, "node 0 never had an answer to use");
            assert_eq!((open(&net, 0), open(&net, 1)), (0, 0));
            net.connect(deleter, 1 - deleter, Connect::Policy);
            settle(&mut net, &format!("deleted by {deleter}"));
        }
    }
}
