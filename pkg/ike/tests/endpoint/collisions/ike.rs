//! Rekeys of an IKE SA between two endpoints: alone, against each other, and against its DELETE.

use super::*;

/// Its message IDs begin anew, and the CHILD_SA is there without an event.
fn assert_moved(net: &mut Net, context: &str) {
    settle_hitless(net, context);
    for node in 0..2 {
        assert_eq!((ups(net, node), downs(net, node)), (1, vec![]), "{context}");
    }
}

#[test]
fn a_rekey_by_either_end_moves_the_child_sa_to_the_new_ike_sa() {
    for asker in [0, 1] {
        let mut net = pair();
        net.rekey_ike(asker, 1 - asker);
        net.exchange(asker, CREATE_CHILD);
        net.exchange(asker, INFORMATIONAL);
        assert_eq!(net.held().len(), 0);
        assert_eq!(maker_of_ike(&mut net), asker);
        let announced = net.take(0, INFORMATIONAL, ASK);
        assert_eq!(announced.kind().2, 0, "message IDs begin anew");
        net.deliver(&announced);
        net.hand(1, INFORMATIONAL, ANSWER);
        assert_moved(&mut net, &format!("by {asker}"));
    }
}

#[test]
fn a_rekey_whose_method_is_not_wanted_is_repeated_with_another() {
    for asker in [0, 1] {
        let mut net = pair();
        disagree(&mut net);
        net.rekey_ike(asker, 1 - asker);
        net.exchange(asker, CREATE_CHILD);
        assert_eq!(net.waiting(asker, INFORMATIONAL, ASK), 0, "not done");
        net.exchange(asker, CREATE_CHILD);
        net.exchange(asker, INFORMATIONAL);
        assert_moved(&mut net, &format!("by {asker}"));
        assert_eq!(maker_of_ike(&mut net), asker);
    }
}

#[test]
fn of_two_rekeys_that_cross_when_they_are_repeated_with_another_method_one_remains() {
    for lowest in NONCES {
        let mut net = pair();
        refuse_both(&mut net, Net::rekey_ike, lowest);
        let winner = cross_again(&mut net, lowest);
        net.hand(1, CREATE_CHILD, ANSWER);
        net.hand(0, CREATE_CHILD, ANSWER);
        assert_moved(&mut net, &format!("lowest {lowest}"));
        assert_eq!(maker_of_ike(&mut net), winner, "lowest {lowest}");
    }
}

#[test]
fn a_repeated_request_that_is_late_finds_the_other_rekey_done() {
    // The late request before the DELETE of the old IKE SA arrives, and after it.
    for deleted in [false, true] {
        let mut net = pair();
        refuse_both(&mut net, Net::rekey_ike, 0);
        let late = net.take(0, CREATE_CHILD, ASK);
        net.exchange(1, CREATE_CHILD);
        if deleted {
            net.exchange(1, INFORMATIONAL);
        }
        net.deliver(&late);
        assert_moved(&mut net, &format!("deleted {deleted}"));
        assert_eq!(maker_of_ike(&mut net), 1);
    }
}

#[test]
fn of_two_rekeys_that_cross_the_one_with_the_lowest_nonce_goes() {
    for lowest in NONCES {
        let mut net = pair();
        let winner = cross(&mut net, Net::rekey_ike, lowest);
        net.hand(1, CREATE_CHILD, ANSWER);
        net.hand(0, CREATE_CHILD, ANSWER);
        assert_moved(&mut net, &format!("lowest {lowest}"));
        assert_eq!(maker_of_ike(&mut net), winner, "lowest {lowest}");
    }
}

/// One end has both answers, and deletes what it has to, before the other one gets its own.
#[test]
fn a_collision_whose_one_answer_is_late_ends_as_if_it_were_not() {
    for lowest in NONCES {
        for order in [0, 1, 2] {
            let mut net = pair();
            let winner = cross(&mut net, Net::rekey_ike, lowest);
            net.hand(0, CREATE_CHILD, ANSWER);
            let late = net.take(1, CREATE_CHILD, ANSWER);
            // The late answer before the DELETE, after it, or never.
            if order == 0 {
                net.deliver(&late);
            }
            net.hand(1, INFORMATIONAL, ASK);
            if order == 1 {
                net.deliver(&late);
            }
            let context = format!("lowest {lowest}, order {order}");
            assert_moved(&mut net, &context);
            assert_eq!(maker_of_ike(&mut net), winner, "{context}");
        }
    }
}

#[test]
fn a_rekey_whose_request_is_lost_gives_way_to_the_other_ends() {
    let mut net = pair();
    drop(overtake(&mut net, Net::rekey_ike));
    net.exchange(1, INFORMATIONAL);
    assert_moved(&mut net, "after");
    assert_eq!(maker_of_ike(&mut net), 1);
}

#[test]
fn a_rekey_that_comes_late_is_refused_and_its_end_has_the_other_one() {
    // Whether the refusal overtakes the DELETE.
    for refusal_first in [false, true] {
        let mut net = pair();
        let late = overtake(&mut net, Net::rekey_ike);
        net.deliver(&late);
        if refusal_first {
            net.hand(1, CREATE_CHILD, ANSWER);
            net.exchange(1, INFORMATIONAL);
        } else {
            net.exchange(1, INFORMATIONAL);
            net.hand(1, CREATE_CHILD, ANSWER);
        }
        assert_moved(&mut net, &format!("refusal first {refusal_first}"));
        assert_eq!(maker_of_ike(&mut net), 1);
    }
}

#[test]
fn a_rekey_while_the_ike_sa_is_deleted_makes_nothing() {
    for rekeys in [0, 1] {
        // The refusal arrives before the DELETE, after it, or never.
        for order in [0, 1, 2] {
            let mut net = pair();
            net.strict = false;
            let deletes = 1 - rekeys;
            net.rekey_ike(rekeys, deletes);
            net.disconnect(deletes, rekeys);
            net.hand(rekeys, CREATE_CHILD, ASK);
            let refusal = net.take(deletes, CREATE_CHILD, ANSWER);
            if order == 0 {
                net.deliver(&refusal);
            }
            net.exchange(deletes, INFORMATIONAL);
            if order == 1 {
                net.deliver(&refusal);
            }
            assert_eq!((open(&net, 0), open(&net, 1)), (0, 0));
            settle(&mut net, &format!("rekeyed by {rekeys}, order {order}"));
            assert_eq!((ups(&net, 0), ups(&net, 1)), (2, 2), "a new handshake");
        }
    }
}

#[test]
fn a_rekey_whose_refusal_comes_and_whose_delete_is_lost_is_not_tried_again() {
    for rekeys in [0, 1] {
        let mut net = pair();
        net.strict = false;
        let deletes = 1 - rekeys;
        net.rekey_ike(rekeys, deletes);
        net.disconnect(deletes, rekeys);
        net.hand(rekeys, CREATE_CHILD, ASK);
        drop(net.take(deletes, INFORMATIONAL, ASK));
        net.hand(deletes, CREATE_CHILD, ANSWER);
        // It would be tried again after a while; the repeated DELETE comes first.
        net.run(Duration::from_secs(1));
        net.exchange(deletes, INFORMATIONAL);
        net.run(limits::REKEY_RETRY * 2);
        assert_eq!(net.waiting(rekeys, CREATE_CHILD, ASK), 0);
        settle(&mut net, &format!("rekeyed by {rekeys}"));
    }
}

/// Beyond strongSwan's: announcements of both ends against the rekey.
#[test]
fn what_is_being_said_while_the_ike_sa_is_rekeyed_arrives() {
    for rekeys in [0, 1] {
        let mut net = pair();
        let says = 1 - rekeys;
        net.announce(says, rekeys, b"news");
        net.rekey_ike(rekeys, says);
        net.hand(rekeys, CREATE_CHILD, ASK);
        net.hand(says, CREATE_CHILD, ANSWER);
        net.exchange(says, INFORMATIONAL);
        assert_moved(&mut net, &format!("rekeyed by {rekeys}"));
        let heard =
            |event: &Event| matches!(event, Event::Announcement { data, .. } if data == b"news");
        assert_eq!(net.count(rekeys, heard), 1);
        assert_eq!(
            maker_of_ike(&mut net),
            rekeys,
            "tried again after the refusal"
        );
    }
}

/// Beyond strongSwan's: the DELETE of a replaced CHILD_SA against the rekey of the IKE SA.
#[test]
fn a_delete_of_a_child_sa_against_a_rekey_of_the_ike_sa_happens_on_either_one() {
    for rekeys in [0, 1] {
        let mut net = pair();
        let deletes = 1 - rekeys;
        net.rekey_child(deletes, rekeys);
        net.exchange(deletes, CREATE_CHILD);
        net.exchange(deletes, INFORMATIONAL);
        net.run(limits::DRAIN + MOMENT);
        net.rekey_ike(rekeys, deletes);
        net.hand(rekeys, CREATE_CHILD, ASK);
        net.hand(deletes, INFORMATIONAL, ASK);
        net.hand(deletes, CREATE_CHILD, ANSWER);
        settle_hitless(&mut net, &format!("rekeyed by {rekeys}"));
        assert_eq!((ups(&net, 0), ups(&net, 1)), (2, 2));
        assert_eq!(maker_of_ike(&mut net), rekeys);
    }
}
