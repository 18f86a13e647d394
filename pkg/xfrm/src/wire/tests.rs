//! Byte vectors: `testdata/request-*` are what iproute2 6.1 sends for `ip xfrm state add`, `testdata/answer-*` what kernel 7.2
//! answers about such states.

use std::collections::BTreeMap;

use espalier_dataplane_core::{Direction, SaMode, Spi, Suite};

use super::attr::Attributes;
use super::expire::Expire;
use super::new_state::NewState;
use super::policy::{self, Pinned};
use super::state::State;
use super::{ParseError, acquire};
use crate::notice::{self, Notice};

const REQID: u32 = 0x4553_0007;

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|c| c.to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

macro_rules! vector {
    ($name:literal) => {
        unhex(include_str!(concat!("../../testdata/", $name, ".hex")))
    };
}

fn key(length: u8) -> Vec<u8> {
    (1..=length).collect()
}

fn base(key: &[u8]) -> NewState<'_> {
    NewState {
        direction: Direction::In,
        source: [192, 0, 2, 2].into(),
        destination: [192, 0, 2, 1].into(),
        spi: Spi(0x1002),
        reqid: REQID,
        suite: Suite::Aes256Gcm16,
        key,
        mode: SaMode::Transport,
        esn: true,
        window: 128,
        ports: None,
        hard_seconds: 0,
        cpu: None,
        offload: None,
        tell_direction: false,
    }
}

/// The order of attributes has no meaning.
fn same(ours: &NewState<'_>, theirs: &[u8]) {
    let message = ours.message();
    let parts = |bytes: &[u8]| {
        let (fixed, attributes) = bytes.split_at(224);
        let attributes: BTreeMap<_, _> = Attributes::new(attributes)
            .map(Result::unwrap)
            .map(|(kind, value)| (kind, value.to_vec()))
            .collect();
        (fixed.to_vec(), attributes)
    };
    assert_eq!(parts(&message.body), parts(theirs));
}

#[test]
fn an_inbound_state_in_udp_is_encoded_as_iproute2_does() {
    let key = key(36);
    let ours = NewState {
        ports: Some((4500, 4501)),
        hard_seconds: 3600,
        ..base(&key)
    };
    same(&ours, &vector!("request-in-udp"));
}

#[test]
fn a_tunnel_is_encoded_as_iproute2_does() {
    let key = key(36);
    let ours = NewState {
        direction: Direction::Out,
        source: "2001:db8::1".parse().unwrap(),
        destination: "2001:db8::2".parse().unwrap(),
        spi: Spi(0x1003),
        suite: Suite::ChaCha20Poly1305,
        mode: SaMode::Tunnel,
        esn: false,
        ..base(&key)
    };
    same(&ours, &vector!("request-tunnel-ipv6"));
}

#[test]
fn ah_over_ipv4_is_encoded_as_iproute2_does() {
    let key = key(32);
    let ours = NewState {
        direction: Direction::Out,
        source: [192, 0, 2, 1].into(),
        destination: [192, 0, 2, 2].into(),
        spi: Spi(0x1005),
        suite: Suite::AhHmacSha256,
        ..base(&key)
    };
    same(&ours, &vector!("request-ah"));
}

#[test]
fn direction_and_cpu_go_in_attributes_and_an_outbound_state_has_no_window_then() {
    let key = key(36);
    let ours = NewState {
        direction: Direction::Out,
        cpu: Some(3),
        tell_direction: true,
        ..base(&key)
    };
    let state = State::parse(&ours.message().body).unwrap();
    assert_eq!(
        (state.direction, state.cpu, state.window),
        (Direction::Out, Some(3), 0)
    );
}

#[test]
fn what_is_encoded_is_read_back() {
    for suite in Suite::ALL {
        let key = vec![0x5a; suite.key_material_len()];
        let ours = NewState {
            suite,
            ports: (!suite.is_ah()).then_some((4500, 4501)),
            ..base(&key)
        };
        let message = ours.message();
        let state = State::parse(&message.body).unwrap();
        assert_eq!((state.suite, state.key.expose()), (Some(suite), &*key));
        assert_eq!((state.ports, state.window), (ours.ports, 128));
        assert_eq!((state.reqid, state.spi()), (REQID, Spi(0x1002)));
        let shown = format!("{message:?} {state:?}");
        assert!(
            !shown.contains("90, 90") && !shown.contains("5a5a"),
            "{shown}"
        );
    }
}

#[test]
fn the_kernels_answers_are_read() {
    let state = State::parse(&vector!("answer-in-udp")).unwrap();
    assert_eq!((state.spi(), state.reqid), (Spi(0x1002), REQID));
    assert_eq!(state.suite, Some(Suite::Aes256Gcm16));
    assert_eq!(state.direction, Direction::In, "by the soft limit");
    assert_eq!(
        (state.ports, state.window, state.hard_seconds),
        (Some((4500, 4500)), 128, 3600)
    );
    assert_eq!((state.esn, state.key.expose()), (true, &*key(36)));

    let state = State::parse(&vector!("answer-used")).unwrap();
    assert_eq!((state.packets, state.suite), (2, Some(Suite::Aes128Gcm16)));
    assert!(state.last_used >= state.added && state.added > 1 << 30);

    let state = State::parse(&vector!("answer-tunnel")).unwrap();
    assert_eq!(
        (state.mode, state.suite, state.keyed),
        (SaMode::Tunnel, Some(Suite::ChaCha20Poly1305), true)
    );

    let state = State::parse(&vector!("answer-ah")).unwrap();
    assert_eq!(state.suite, Some(Suite::AhHmacSha256));

    let state = State::parse(&vector!("answer-cbc")).unwrap();
    assert!(state.keyed && state.id.protocol == 50);

    let state = State::parse(&vector!("answer-larval")).unwrap();
    assert!(!state.keyed && state.suite.is_none() && state.id.spi == 0);
}

#[test]
fn policies_pin_and_those_for_probes_do_not() {
    let pinned = policy::pinned(&vector!("answer-policy")).unwrap();
    let spi = Some(0x1001);
    assert_eq!(pinned, [Pinned { reqid: REQID, spi }]);
    for other in [vector!("answer-policy-probe"), vector!("answer-policy-in")] {
        assert_eq!(policy::pinned(&other), Ok(Vec::new()));
    }
}

#[test]
fn what_the_kernel_says_by_itself_is_read() {
    let [Notice::Acquire(reqids)] = &notice::parse(&vector!("event-acquire"))[..] else {
        panic!("ACQUIRE");
    };
    assert_eq!(reqids[..], [REQID + 1]);
    for (event, hard) in [
        (vector!("event-expire-soft"), false),
        (vector!("event-expire-hard"), true),
    ] {
        let [Notice::Expire(expire)] = &notice::parse(&event)[..] else {
            panic!("EXPIRE");
        };
        assert_eq!((expire.hard, expire.state.reqid), (hard, REQID));
    }
}

#[test]
fn what_is_cut_is_an_error_or_has_less_to_say() {
    let whole = vector!("answer-in-udp");
    for length in 0..224 {
        let cut = &whole[..length];
        assert!(matches!(
            State::parse(cut),
            Err(ParseError::Truncated { expected: 224, .. })
        ));
        assert!(Expire::parse(cut).is_err() && acquire::reqids(cut).is_err());
    }
    for length in 224..whole.len() {
        let _ = State::parse(&whole[..length]);
    }
}
