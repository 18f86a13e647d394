//! Fragments from somebody who means ill, with and without the keys (RFC 7383 §2.6, §4; S6): nothing is kept that was not
//! verified, and little of what was.

use std::time::Duration;

use espalier_ike::wire::{ExchangeType, Notify, NotifyType, Payload, PayloadType};
use espalier_ike::{Event, limits};
use espalier_secret::SecretBytes;

use crate::sim::raw::{self, Raw};
use crate::sim::{Net, address};

const INFORMATIONAL: ExchangeType = ExchangeType::Informational;

fn secret() -> SecretBytes {
    SecretBytes::copy_from(&[7; 32])
}

/// Node 0 with an IKE SA of a hand-made initiator, which says that it joins fragments or does not.
fn established(supported: &[NotifyType]) -> (Net, Raw) {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = Raw::init_with(&mut net, address(1), 0, true, supported);
    let child = raw::child(4711, address(1), address(0));
    let answer = raw.auth_psk(&mut net, "node-01", &secret(), &child);
    assert!(answer.is_some());
    (net, raw)
}

fn fragmenting() -> (Net, Raw) {
    established(&[NotifyType::FragmentationSupported])
}

/// An announcement behind `padding` bytes that mean nothing.
fn payloads<'a>(padding: &'a [u8], said: &'a [u8]) -> [Payload<'a>; 2] {
    [
        Payload::Notify(Notify::new(NotifyType::Unknown(50_000), padding)),
        Payload::Notify(Notify::new(NotifyType::EspalierAnnouncement, said)),
    ]
}

fn heard(net: &Net, said: &[u8]) -> usize {
    net.count(
        0,
        |event| matches!(event, Event::Announcement { data, .. } if data == said),
    )
}

#[test]
fn fragments_in_any_order_and_any_number_of_times_are_one_request() {
    let (mut net, mut raw) = fragmenting();
    let datagrams = raw.seal(INFORMATIONAL, &payloads(&[1; 900], b"x"), Some(100));
    for datagram in datagrams.iter().skip(1).rev() {
        for _ in 0..3 {
            assert!(raw.deliver(&mut net, datagram.clone()).is_none());
        }
    }
    assert_eq!(heard(&net, b"x"), 0);
    assert!(raw.deliver(&mut net, datagrams[0].clone()).is_some());
    assert_eq!(heard(&net, b"x"), 1);
}

/// RFC 7383 §2.6.1.
#[test]
fn only_the_first_fragment_of_an_answered_request_brings_its_response_again() {
    let (mut net, mut raw) = fragmenting();
    let datagrams = raw.seal(INFORMATIONAL, &payloads(&[1; 900], b"x"), Some(100));
    for datagram in &datagrams {
        raw.deliver(&mut net, datagram.clone());
    }
    let again: Vec<bool> = datagrams
        .iter()
        .map(|datagram| raw.deliver(&mut net, datagram.clone()).is_some())
        .collect();
    assert!(
        again[0] && again[1..].iter().all(|answered| !answered),
        "{again:?}"
    );
    // In other fragments, too, and forged ones not.
    let smaller = raw.seal(INFORMATIONAL, &payloads(&[1; 900], b"x"), Some(50));
    let mut forged = smaller[0].clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(raw.deliver(&mut net, forged).is_none());
    assert!(raw.deliver(&mut net, smaller[1].clone()).is_none());
    assert!(raw.deliver(&mut net, smaller[0].clone()).is_some());
    assert_eq!(heard(&net, b"x"), 1);
}

#[test]
fn forged_fragments_take_no_place() {
    let (mut net, mut raw) = fragmenting();
    let datagrams = raw.seal(INFORMATIONAL, &payloads(&[1; 900], b"x"), Some(200));
    for datagram in &datagrams {
        // SPIs, version and side point elsewhere: no matter of this IKE SA.
        for at in (20..datagram.len()).chain([16, 18]) {
            let mut forged = datagram.clone();
            forged[at] ^= 0x10;
            assert!(raw.deliver(&mut net, forged).is_none(), "byte {at}");
        }
    }
    for datagram in &datagrams[1..] {
        assert!(raw.deliver(&mut net, datagram.clone()).is_none());
    }
    assert!(raw.deliver(&mut net, datagrams[0].clone()).is_some());
    assert_eq!(heard(&net, b"x"), 1);
}

/// The set with more fragments is the newer one, whatever came first (RFC 7383 §2.6).
#[test]
fn of_overlapping_sets_the_one_with_more_fragments_counts() {
    let (mut net, mut raw) = fragmenting();
    let few = raw.seal(INFORMATIONAL, &payloads(&[1; 900], b"few"), Some(300));
    let many = raw.seal(INFORMATIONAL, &payloads(&[1; 900], b"many"), Some(100));
    for datagram in &few[1..] {
        assert!(raw.deliver(&mut net, datagram.clone()).is_none());
    }
    assert!(raw.deliver(&mut net, many[0].clone()).is_none());
    // That was the end of the others.
    for datagram in &few {
        assert!(raw.deliver(&mut net, datagram.clone()).is_none());
    }
    for datagram in &many[1..many.len() - 1] {
        assert!(raw.deliver(&mut net, datagram.clone()).is_none());
    }
    assert!(
        raw.deliver(&mut net, many[many.len() - 1].clone())
            .is_some()
    );
    assert_eq!((heard(&net, b"few"), heard(&net, b"many")), (0, 1));
}

#[test]
fn a_whole_message_makes_its_fragments_superfluous() {
    let (mut net, mut raw) = fragmenting();
    let parts = raw.seal(INFORMATIONAL, &payloads(&[1; 900], b"parts"), Some(100));
    for datagram in &parts[..parts.len() - 1] {
        assert!(raw.deliver(&mut net, datagram.clone()).is_none());
    }
    let whole = raw.seal(INFORMATIONAL, &payloads(&[1; 900], b"whole"), None);
    assert!(raw.deliver(&mut net, whole[0].clone()).is_some());
    assert!(
        raw.deliver(&mut net, parts[parts.len() - 1].clone())
            .is_none()
    );
    assert_eq!((heard(&net, b"parts"), heard(&net, b"whole")), (0, 1));
}

#[test]
fn fragments_of_impossible_form_are_dropped() {
    let (mut net, mut raw) = fragmenting();
    let notify = PayloadType::Notify;
    for (first, numbers) in [
        (notify, (1, 65_535)),
        (PayloadType::None, (65_535, 65_535)),
        (notify, (1, limits::FRAGMENTS_MAX + 1)),
        // The type of the first payload stands in fragment 1 only.
        (notify, (2, 2)),
        (notify, (0, 0)),
        (notify, (3, 2)),
    ] {
        let datagram = raw.fragment(INFORMATIONAL, first, numbers, &[0; 8]);
        assert!(raw.deliver(&mut net, datagram).is_none(), "{numbers:?}");
    }
    // None of them stands in the way of a request with fewer fragments.
    let parts = raw.seal(INFORMATIONAL, &payloads(&[1; 200], b"x"), Some(150));
    assert!(raw.deliver(&mut net, parts[0].clone()).is_none());
    assert!(raw.deliver(&mut net, parts[1].clone()).is_some());
}

#[test]
fn a_message_of_too_many_bytes_is_dropped_and_the_next_one_is_not() {
    let (mut net, mut raw) = fragmenting();
    let large = vec![1; limits::REASSEMBLY_BYTES];
    let parts = raw.seal(INFORMATIONAL, &payloads(&large, b"large"), Some(1000));
    assert!(parts.len() <= usize::from(limits::FRAGMENTS_MAX));
    for datagram in parts {
        assert!(raw.deliver(&mut net, datagram).is_none());
    }
    let large = vec![1; limits::REASSEMBLY_BYTES - 100];
    let parts = raw.seal(INFORMATIONAL, &payloads(&large, b"x"), Some(1000));
    let answers = parts
        .into_iter()
        .filter_map(|part| raw.deliver(&mut net, part))
        .count();
    assert_eq!(
        (answers, heard(&net, b"x"), heard(&net, b"large")),
        (1, 1, 0)
    );
}

#[test]
fn fragments_that_were_not_agreed_on_are_dropped() {
    let (mut net, mut raw) = established(&[]);
    for datagram in raw.seal(INFORMATIONAL, &payloads(&[1; 300], b"x"), Some(100)) {
        assert!(raw.deliver(&mut net, datagram).is_none());
    }
    let whole = raw.seal(INFORMATIONAL, &payloads(&[1; 300], b"x"), None);
    assert!(raw.deliver(&mut net, whole[0].clone()).is_some());
    assert_eq!(heard(&net, b"x"), 1);
}

#[test]
fn an_incomplete_message_is_not_kept_for_ever() {
    let (mut net, mut raw) = fragmenting();
    let parts = raw.seal(INFORMATIONAL, &payloads(&[1; 300], b"x"), Some(200));
    assert!(raw.deliver(&mut net, parts[0].clone()).is_none());
    net.run(limits::REASSEMBLY_TIME);
    assert!(
        raw.deliver(&mut net, parts[1].clone()).is_none(),
        "the first is gone"
    );
    assert!(raw.deliver(&mut net, parts[0].clone()).is_some());
    assert_eq!(heard(&net, b"x"), 1);
}

/// Before AUTH: another message than the one that is expected has no place.
#[test]
fn a_half_open_ike_sa_joins_ike_auth_only() {
    let mut net = Net::psk_mesh(1, 2);
    let supported = [NotifyType::FragmentationSupported];
    let mut raw = Raw::init_with(&mut net, address(1), 0, true, &supported);
    for exchange in [INFORMATIONAL, ExchangeType::CreateChildSa] {
        for datagram in raw.seal(exchange, &payloads(&[1; 300], b"x"), Some(100)) {
            assert!(raw.deliver(&mut net, datagram).is_none());
        }
    }
    let child = raw::child(4711, address(1), address(0));
    let parts = raw.seal_auth("node-01", &secret(), &child, Some(60));
    assert!(parts.len() > 2);
    let answers = parts
        .into_iter()
        .filter_map(|part| raw.deliver(&mut net, part))
        .count();
    assert_eq!(answers, 1);
    raw.next();
    assert_eq!(net.child_ups(0).len(), 1);
    net.run(Duration::from_secs(1));
    let whole = raw.seal(INFORMATIONAL, &payloads(&[1; 300], b"x"), None);
    assert!(raw.deliver(&mut net, whole[0].clone()).is_some());
}

/// RFC 7296 §2.1: a response may be forgotten after several minutes. A peer that never asks anything again would keep it.
#[test]
fn a_large_response_is_kept_for_some_minutes_and_not_for_ever() {
    let mut net = Net::psk_mesh(1, 2);
    let mut raw = Raw::init(&mut net, address(1), 0, false);
    let child = raw::child(4711, address(1), address(0));
    let auth = raw.seal_auth("node-01", &secret(), &child, None).remove(0);
    assert!(raw.deliver(&mut net, auth.clone()).is_some());
    raw.next();
    let mut kept = Vec::new();
    for _ in 0..20 {
        net.run(limits::DPD_IDLE);
        raw.answer(&mut net, &[]);
        kept.push(raw.deliver(&mut net, auth.clone()).is_some());
    }
    let steps = (limits::ANSWER_LINGER.as_secs() / limits::DPD_IDLE.as_secs()) as usize;
    assert!(kept[..steps - 1].iter().all(|kept| *kept), "{kept:?}");
    assert!(!kept[steps + 1], "{kept:?}");
    assert_eq!(net.ike_sas(0), 1);
}
