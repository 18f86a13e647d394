//! Rekeys of a CHILD_SA between two endpoints: alone, against each other, and against what happens to the IKE SA.

use super::*;

fn short(soft: u64, hard: u64) -> Rekeying {
    Rekeying {
        child_soft: Duration::from_secs(soft),
        child_hard: Duration::from_secs(hard),
        ..Rekeying::default()
    }
}

const HOURS: u64 = 24 * 3600;

#[test]
fn a_rekey_by_either_end_replaces_the_child_sa_step_by_step() {
    for asker in [0, 1] {
        let mut net = pair();
        let old = net.child_ups(0)[0].1.clone();
        net.rekey_child(asker, 1 - asker);
        net.hand(asker, CREATE_CHILD, ASK);
        let seals = |net: &Net, node: usize| net.nodes[node].plane[&id(1 - node)].seals;
        assert_eq!((open(&net, asker), open(&net, 1 - asker)), (1, 2));
        let before = [seals(&net, 0), seals(&net, 1)];
        assert_eq!(before, [Some(old.spi_out), Some(old.spi_in)]);
        net.hand(1 - asker, CREATE_CHILD, ANSWER);
        assert_eq!((open(&net, asker), open(&net, 1 - asker)), (2, 2));
        assert_ne!(seals(&net, asker), before[asker], "it may at once");
        assert_eq!(seals(&net, 1 - asker), before[1 - asker], "not told yet");
        net.exchange(asker, INFORMATIONAL);
        assert_ne!(seals(&net, 1 - asker), before[1 - asker]);
        net.run(limits::DRAIN + MOMENT);
        net.exchange(asker, INFORMATIONAL);
        assert_eq!((open(&net, 0), open(&net, 1)), (1, 1));
        assert_eq!(net.held().len(), 0);
        settle_hitless(&mut net, "after");
        assert_eq!(maker(&net), asker);
    }
}

#[test]
fn a_rekey_whose_method_is_not_wanted_is_repeated_with_another() {
    for asker in [0, 1] {
        let mut net = pair();
        disagree(&mut net);
        net.rekey_child(asker, 1 - asker);
        net.exchange(asker, CREATE_CHILD);
        assert_eq!((ups(&net, 0), ups(&net, 1)), (1, 1), "INVALID_KE_PAYLOAD");
        net.exchange(asker, CREATE_CHILD);
        assert_eq!((ups(&net, 0), ups(&net, 1)), (2, 2));
        settle_hitless(&mut net, &format!("by {asker}"));
        assert_eq!(maker(&net), asker);
    }
}

#[test]
fn a_responder_does_not_rekey_what_was_rekeyed_while_it_waits_for_the_delete() {
    let mut net = pair_with(Rekeying::default(), short(10, HOURS));
    net.rekey_child(0, 1);
    net.hand(0, CREATE_CHILD, ASK);
    // Beyond its soft lifetime, whose timer is gone, and that of the new one, which the initiator may not have.
    net.run(Duration::from_secs(20));
    assert_eq!(net.waiting(1, CREATE_CHILD, ASK), 0);
    net.set_rekeying(1, Rekeying::default());
    settle_hitless(&mut net, "after");
}

#[test]
fn a_responder_whose_old_child_sa_expires_before_the_delete_goes_on_with_the_new_one() {
    let mut net = pair_with(Rekeying::default(), short(HOURS, 8));
    net.rekey_child(0, 1);
    net.set_rekeying(1, Rekeying::default());
    net.exchange(0, CREATE_CHILD);
    net.run(Duration::from_secs(8));
    assert_eq!(
        (downs(&net, 1), open(&net, 1)),
        (vec![CloseReason::Local], 1)
    );
    // Its own DELETE crosses the announcement, and then the initiator's DELETE.
    net.hand(0, INFORMATIONAL, ASK);
    net.hand(1, INFORMATIONAL, ASK);
    assert_eq!((open(&net, 0), open(&net, 1)), (1, 1));
    settle(&mut net, "after");
    assert!(downs(&net, 0) == [CloseReason::Replaced] && ups(&net, 0) == 2);
}

/// The same, but the answer to the rekey is late: the initiator waits for it.
#[test]
fn a_delete_of_the_old_child_sa_that_overtakes_the_answer_of_its_rekey_costs_no_ike_sa() {
    let mut net = pair_with(Rekeying::default(), short(HOURS, 8));
    net.strict = false; // the end whose keys have expired has nothing but the new ones
    net.rekey_child(0, 1);
    net.set_rekeying(1, Rekeying::default());
    net.hand(0, CREATE_CHILD, ASK);
    net.run(Duration::from_secs(8));
    net.exchange(1, INFORMATIONAL);
    assert_eq!(open(&net, 0), 0);
    net.strict = true;
    net.hand(1, CREATE_CHILD, ANSWER);
    assert_eq!(open(&net, 0), 1);
    settle(&mut net, "after");
    assert!(kept_its_ike_sa(&net) && ups(&net, 0) == 2);
}

#[test]
fn a_delete_after_a_rekey_that_is_never_answered_reports_the_old_child_sa_down_once() {
    let mut net = pair();
    let old = net.child_ups(0)[0].1.spi_in;
    net.rekey_child(0, 1);
    net.exchange(0, CREATE_CHILD);
    net.exchange(0, INFORMATIONAL);
    let gone = |event: &Event| matches!(event, Event::ChildDown { spi_in, .. } if *spi_in == old);
    // What is sent from here on is lost: the DELETE is given up, and with it the IKE SA.
    net.run(Duration::from_secs(90));
    let timeout = CloseReason::Timeout;
    let lost = |event: &Event| matches!(event, Event::IkeDown { reason, .. } if *reason == timeout);
    assert_eq!((net.count(0, gone), net.count(0, lost)), (1, 1));
    assert_eq!(open(&net, 0), 1, "what carries traffic stays");
    settle(&mut net, "after");
    assert_eq!(net.count(0, gone), 1);
}

#[test]
fn of_two_rekeys_that_cross_the_one_with_the_lowest_nonce_goes() {
    for lowest in NONCES {
        let mut net = pair();
        let winner = cross(&mut net, Net::rekey_child, lowest);
        net.hand(1, CREATE_CHILD, ANSWER);
        net.hand(0, CREATE_CHILD, ANSWER);
        let loser = 1 - winner;
        assert_eq!((ups(&net, winner), ups(&net, loser)), (3, 2), "{lowest}");
        settle_hitless(&mut net, &format!("lowest {lowest}"));
        assert_eq!(maker(&net), winner, "lowest {lowest}");
    }
}

/// One end is done, and has deleted what it had to, before the other one gets its answer.
#[test]
fn a_collision_whose_one_answer_is_late_ends_as_if_it_were_not() {
    for lowest in NONCES {
        for drained in [false, true] {
            let mut net = pair();
            let context = format!("lowest {lowest}, drained {drained}");
            let winner = cross(&mut net, Net::rekey_child, lowest);
            net.hand(0, CREATE_CHILD, ANSWER);
            // The winner announces, the loser deletes what it made.
            net.exchange(1, INFORMATIONAL);
            if drained {
                net.run(limits::DRAIN + MOMENT);
            }
            if drained && winner == 1 {
                net.exchange(1, INFORMATIONAL);
                assert_eq!((open(&net, 0), open(&net, 1)), (1, 2), "{context}");
            }
            net.hand(1, CREATE_CHILD, ANSWER);
            settle_hitless(&mut net, &context);
            assert_eq!(maker(&net), winner, "{context}");
        }
    }
}

#[test]
fn of_two_rekeys_that_cross_when_they_are_repeated_with_another_method_one_remains() {
    for lowest in NONCES {
        let mut net = pair();
        refuse_both(&mut net, Net::rekey_child, lowest);
        let winner = cross_again(&mut net, lowest);
        net.hand(1, CREATE_CHILD, ANSWER);
        net.hand(0, CREATE_CHILD, ANSWER);
        settle_hitless(&mut net, &format!("lowest {lowest}"));
        assert_eq!(maker(&net), winner, "lowest {lowest}");
    }
}

#[test]
fn a_repeated_request_that_is_late_finds_the_other_rekey_done() {
    for drained in [false, true] {
        let mut net = pair();
        refuse_both(&mut net, Net::rekey_child, 0);
        let late = net.take(0, CREATE_CHILD, ASK);
        net.exchange(1, CREATE_CHILD);
        net.exchange(1, INFORMATIONAL);
        if drained {
            net.run(limits::DRAIN + MOMENT);
            net.exchange(1, INFORMATIONAL);
        }
        net.deliver(&late);
        net.hand(1, CREATE_CHILD, ANSWER);
        settle_hitless(&mut net, &format!("drained {drained}"));
        assert_eq!((ups(&net, 0), ups(&net, 1), maker(&net)), (2, 2, 1));
    }
}

#[test]
fn a_rekey_that_comes_late_is_refused_and_what_the_other_end_made_stays() {
    // Whether the refusal overtakes the DELETE.
    for refusal_first in [true, false] {
        let mut net = pair();
        let late = overtake(&mut net, Net::rekey_child);
        net.exchange(1, INFORMATIONAL);
        net.run(limits::DRAIN + MOMENT);
        net.deliver(&late);
        if refusal_first {
            net.hand(1, CREATE_CHILD, ANSWER);
            net.exchange(1, INFORMATIONAL);
        } else {
            net.exchange(1, INFORMATIONAL);
            net.hand(1, CREATE_CHILD, ANSWER);
        }
        assert_eq!((ups(&net, 0), ups(&net, 1)), (2, 2));
        settle_hitless(&mut net, &format!("refusal first {refusal_first}"));
        assert_eq!(maker(&net), 1);
        assert_eq!((ups(&net, 0), ups(&net, 1)), (2, 2), "it is not repeated");
    }
}

#[test]
fn a_rekey_that_comes_before_the_drain_ends_is_refused_too() {
    let mut net = pair();
    let late = overtake(&mut net, Net::rekey_child);
    net.deliver(&late);
    net.hand(1, CREATE_CHILD, ANSWER);
    assert_eq!((ups(&net, 0), ups(&net, 1)), (2, 2));
    settle_hitless(&mut net, "after");
    assert_eq!(maker(&net), 1);
}

#[test]
fn a_rekey_that_comes_after_the_delete_finds_nothing_and_does_no_harm() {
    let mut net = pair();
    let late = overtake(&mut net, Net::rekey_child);
    net.exchange(1, INFORMATIONAL);
    net.run(limits::DRAIN + MOMENT);
    net.exchange(1, INFORMATIONAL);
    assert_eq!((open(&net, 0), open(&net, 1)), (1, 1));
    net.deliver(&late);
    net.hand(1, CREATE_CHILD, ANSWER);
    settle_hitless(&mut net, "after");
    assert_eq!((ups(&net, 0), ups(&net, 1), maker(&net)), (2, 2, 1));
}

#[test]
fn rekeys_of_the_child_sa_and_of_the_ike_sa_that_cross_are_both_put_off() {
    for child in [0, 1] {
        let mut net = pair();
        net.rekey_child(child, 1 - child);
        net.rekey_ike(1 - child, child);
        net.hand(child, CREATE_CHILD, ASK);
        net.hand(1 - child, CREATE_CHILD, ASK);
        net.hand(1 - child, CREATE_CHILD, ANSWER);
        net.hand(child, CREATE_CHILD, ANSWER);
        assert_eq!((ups(&net, 0), ups(&net, 1)), (1, 1), "neither is granted");
        settle_hitless(&mut net, &format!("child rekeyed by {child}"));
        assert_eq!((ups(&net, 0), ups(&net, 1)), (2, 2), "and then both are");
    }
}

#[test]
fn a_rekey_of_the_child_sa_while_the_ike_sa_is_deleted_makes_nothing() {
    for (rekeys, answer_first) in [(0, true), (0, false), (1, true), (1, false)] {
        let mut net = pair();
        net.strict = false;
        let deletes = 1 - rekeys;
        net.rekey_child(rekeys, deletes);
        net.disconnect(deletes, rekeys);
        net.hand(rekeys, CREATE_CHILD, ASK);
        if answer_first {
            net.hand(deletes, CREATE_CHILD, ANSWER);
        }
        net.exchange(deletes, INFORMATIONAL);
        if !answer_first {
            net.hand(deletes, CREATE_CHILD, ANSWER);
        }
        assert_eq!((open(&net, 0), open(&net, 1)), (0, 0));
        assert_eq!((ups(&net, 0), ups(&net, 1)), (1, 1));
        // The end that was not asked wants it back, and gets it.
        settle(&mut net, &format!("rekeyed by {rekeys}, {answer_first}"));
        assert_eq!((ups(&net, 0), ups(&net, 1)), (2, 2));
    }
}

/// Beyond strongSwan's: the answer is lost, and only the request that is repeated brings it.
#[test]
fn a_lost_answer_comes_again_with_the_repeated_request() {
    for lowest in NONCES {
        let mut net = pair();
        let winner = cross(&mut net, Net::rekey_child, lowest);
        drop(net.take(1, CREATE_CHILD, ANSWER));
        drop(net.take(0, CREATE_CHILD, ANSWER));
        net.run(Duration::from_secs(1));
        for node in 0..2 {
            net.exchange(node, CREATE_CHILD);
        }
        settle_hitless(&mut net, &format!("lowest {lowest}"));
        assert_eq!(maker(&net), winner);
    }
}

/// Beyond strongSwan's: make before break by a new handshake, while a rekey is under way on the IKE SA that it replaces.
#[test]
fn a_new_handshake_supersedes_a_rekey_on_the_older_ike_sa() {
    for late in [false, true] {
        let mut net = pair();
        net.rekey_child(1, 0);
        let asked = net.take(1, CREATE_CHILD, ASK);
        net.restart(0, &crate::sim::psk(7));
        net.connect(0, 1, Connect::Restart);
        for exchange in [crate::sim::INIT, crate::sim::AUTH] {
            net.exchange(0, exchange);
        }
        if late {
            net.deliver(&asked);
        }
        settle(&mut net, &format!("late {late}"));
        assert!(
            downs(&net, 1)
                .iter()
                .all(|why| *why == CloseReason::Replaced)
        );
    }
}
