//! What an endpoint holds on the heap: per established IKE SA with its CHILD_SA, timers and peer configuration, and per half-open
//! one that is being filled. Bytes are counted by the allocator, so nothing is forgotten.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::alloc::System;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use espalier_ike::{
    ChildConfig, Config, Connect, Endpoint, Identity, IkeStatus, Path, PeerAuth, PeerConfig,
    TrafficSelector,
};
use espalier_secret::SecretBytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What the system's allocator adds to each piece: its header, and half a step of rounding.
const PER_PIECE: usize = 16;

/// Bytes on the heap now.
fn live() -> usize {
    let stats = INSTRUMENTED_SYSTEM.stats();
    let pieces = stats.allocations - stats.deallocations;
    stats.bytes_allocated - stats.bytes_deallocated + pieces * PER_PIECE
}

const PEERS: usize = 400;

fn name(index: usize) -> Identity {
    Identity(format!("worker-{index:05}.example.internal").into())
}

fn address(index: usize) -> SocketAddr {
    let [_, b, c, d] = u32::try_from(index + 1).unwrap().to_be_bytes();
    SocketAddr::from(([10, b, c, d], 4500))
}

fn peer(own: usize, peer: usize) -> PeerConfig {
    let selector = |index: usize| TrafficSelector {
        protocol: 17,
        start_port: 0,
        end_port: u16::MAX,
        start: address(index).ip(),
        end: address(index).ip(),
    };
    let auth = PeerAuth::Psk(SecretBytes::copy_from(&[7; 32]));
    let child = ChildConfig::new(vec![selector(own)], vec![selector(peer)]);
    PeerConfig {
        uid: Some("11111111-2222-3333-4444-555555555555".into()),
        announcement: vec![1; 16],
        ..PeerConfig::new(name(peer), address(own), address(peer), auth, child)
    }
}

fn endpoint(own: usize) -> Endpoint {
    let rng = StdRng::seed_from_u64(own as u64);
    Endpoint::new(Config::new(name(own)), Box::new(rng)).unwrap()
}

/// Hands on what `from` has to say until it has said all.
fn hand_over(from: &mut Endpoint, mut take: impl FnMut(Path, &[u8])) -> bool {
    let mut any = false;
    loop {
        while from.poll_event().is_some() {}
        let Some(transmit) = from.poll_transmit() else {
            return any;
        };
        any = true;
        let path = Path {
            local: transmit.path.remote,
            remote: transmit.path.local,
        };
        take(path, &transmit.payload);
    }
}

/// A hub with IKE SAs to `PEERS` others, which all began or were all begun with, after everything has been said.
fn connected(hub_begins: bool) -> (Endpoint, Vec<Endpoint>, Instant) {
    #[allow(clippy::disallowed_methods)] // a base to count from; nothing waits
    let now = Instant::now();
    let unix = Duration::from_secs(1_800_000_000);
    let mut hub = endpoint(0);
    let mut others: Vec<Endpoint> = (1..=PEERS).map(endpoint).collect();
    for (index, other) in (1..).zip(&mut others) {
        hub.put_peer(peer(0, index), now).unwrap();
        other.put_peer(peer(index, 0), now).unwrap();
        if hub_begins {
            hub.connect(&name(index), Connect::Restart, now);
        } else {
            other.connect(&name(0), Connect::Restart, now);
        }
    }
    let mut busy = true;
    while busy {
        busy = hand_over(&mut hub, |path, datagram| {
            let octets = match path.local.ip() {
                std::net::IpAddr::V4(v4) => u32::from(v4) & 0x00ff_ffff,
                std::net::IpAddr::V6(_) => unreachable!("this test is IPv4 only"),
            };
            others[octets as usize - 2].handle_datagram(now, unix, path, datagram);
        });
        for other in &mut others {
            busy |= hand_over(other, |path, datagram| {
                hub.handle_datagram(now, unix, path, datagram);
            });
        }
    }
    let established = |index: &usize| hub.status(&name(*index)) == IkeStatus::Established;
    assert_eq!((1..=PEERS).filter(established).count(), PEERS);
    (hub, others, now)
}

/// One test, since the allocator counts the whole process.
#[test]
fn an_established_ike_sa_takes_at_most_4096_bytes_of_heap_on_either_side() {
    for hub_begins in [true, false] {
        let (hub, others, _) = connected(hub_begins);
        let with = live();
        drop(hub);
        let each = (with - live()) / PEERS;
        let role = if hub_begins { "initiator" } else { "responder" };
        println!("{role}: {each} bytes per IKE SA with CHILD_SA, timers and peer configuration");
        assert!(each <= 4096, "{role}: {each} bytes");
        drop(others);
    }
}
