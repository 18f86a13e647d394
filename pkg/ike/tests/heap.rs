//! What an endpoint holds on the heap: per established IKE SA with its CHILD_SA, timers and peer configuration, and per half-open
//! one that somebody fills with fragments. Bytes and pieces are counted by the allocator, so nothing is forgotten.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::alloc::System;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use espalier_ike::{
    ChildConfig, Config, Connect, Endpoint, Identity, IkeStatus, Path, PeerAuth, PeerConfig,
    TrafficSelector, limits,
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

#[path = "endpoint/sim/pki.rs"]
#[allow(unreachable_pub, dead_code)] // made for the other tests
mod pki;

const UNIX: Duration = pki::NOW;
const PEERS: usize = 400;

fn name(index: usize) -> Identity {
    format!("worker-{index:05}.example.internal")
        .as_str()
        .into()
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
            others[octets as usize - 2].handle_datagram(now, UNIX, path, datagram);
        });
        for other in &mut others {
            busy |= hand_over(other, |path, datagram| {
                hub.handle_datagram(now, UNIX, path, datagram);
            });
        }
    }
    let established = |index: &usize| hub.status(&name(*index)) == IkeStatus::Established;
    assert_eq!((1..=PEERS).filter(established).count(), PEERS);
    (hub, others, now)
}

/// The allocator counts the whole process: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn an_established_ike_sa_takes_at_most_4096_bytes_of_heap_on_either_side() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
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

/// What `from` says, as the other end sees it.
fn said(from: &mut Endpoint) -> Vec<(Path, Vec<u8>)> {
    let mut datagrams = Vec::new();
    loop {
        while from.poll_event().is_some() {}
        let Some(transmit) = from.poll_transmit() else {
            return datagrams;
        };
        let path = Path {
            local: transmit.path.remote,
            remote: transmit.path.local,
        };
        datagrams.push((path, transmit.payload));
    }
}

/// Allocations of a node with so many peers during a handshake, a rekey of both kinds and a liveness check with one of them.
fn allocations(peers: usize) -> usize {
    #[allow(clippy::disallowed_methods)] // a base to count from; nothing waits
    let mut now = Instant::now();
    let mut hub = endpoint(0);
    for other in 1..=peers {
        hub.put_peer(peer(0, other), now).unwrap();
    }
    let mut other = endpoint(1);
    other.put_peer(peer(1, 0), now).unwrap();
    let before = INSTRUMENTED_SYSTEM.stats().allocations;
    hub.connect(&name(1), Connect::Restart, now);
    let exchange = |hub: &mut Endpoint, other: &mut Endpoint, now: Instant| {
        loop {
            let (there, back) = (said(hub), said(other));
            if there.is_empty() && back.is_empty() {
                return;
            }
            for (path, datagram) in there {
                other.handle_datagram(now, UNIX, path, &datagram);
            }
            for (path, datagram) in back {
                hub.handle_datagram(now, UNIX, path, &datagram);
            }
        }
    };
    exchange(&mut hub, &mut other, now);
    assert_eq!(hub.status(&name(1)), IkeStatus::Established);
    hub.rekey_child(&name(1), now);
    exchange(&mut hub, &mut other, now);
    now += Duration::from_secs(6);
    hub.handle_timeout(now, UNIX);
    exchange(&mut hub, &mut other, now);
    hub.rekey_ike(&name(1), now);
    exchange(&mut hub, &mut other, now);
    now += Duration::from_secs(21);
    hub.handle_timeout(now, UNIX);
    exchange(&mut hub, &mut other, now);
    assert_eq!(hub.ike_sas(), 1);
    INSTRUMENTED_SYSTEM.stats().allocations - before
}

/// The same things with 10 and with 5,000 configured peers.
#[test]
fn what_one_peer_causes_allocates_the_same_with_many_other_peers() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let few = allocations(10);
    let many = allocations(5_000);
    let differ = few.abs_diff(many);
    // A node of a B-tree that is split here and not there.
    assert!(differ <= 8, "{few} with 10 peers, {many} with 5,000");
}

/// Somebody with keys of its own making: IKE_SA_INIT from many addresses, and of each IKE_AUTH all fragments but the last.
#[test]
fn fragments_that_never_become_a_message_take_bounded_memory() {
    const STRANGERS: usize = 60;
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    #[allow(clippy::disallowed_methods)] // a base to count from; nothing waits
    let now = Instant::now();
    let ca = pki::Ca::new("CA");
    // With the names in it, nearly as much as a message may have.
    let large = ca.issue_large(&name(1).0, limits::REASSEMBLY_BYTES / 2);
    let mut hub = endpoint(0);
    let mut kept = 0;
    for stranger in 1..=STRANGERS {
        let config = Config {
            credentials: Some(large.clone()),
            trust: ca.trust(),
            ..Config::new(name(stranger))
        };
        let rng = StdRng::seed_from_u64(stranger as u64);
        let mut other = Endpoint::new(config, Box::new(rng)).unwrap();
        let auth = PeerAuth::Certificate;
        other
            .put_peer(
                PeerConfig {
                    auth,
                    ..peer(stranger, 0)
                },
                now,
            )
            .unwrap();
        other.connect(&name(0), Connect::Restart, now);
        let mut fragments = said(&mut other);
        // IKE_SA_INIT, and what comes between it and IKE_AUTH.
        while fragments.len() <= 10 {
            for (path, datagram) in fragments {
                hub.handle_datagram(now, UNIX, path, &datagram);
            }
            for (path, datagram) in said(&mut hub) {
                other.handle_datagram(now, UNIX, path, &datagram);
            }
            fragments = said(&mut other);
            assert!(!fragments.is_empty());
        }
        for (path, datagram) in &fragments[..fragments.len() - 1] {
            hub.handle_datagram(now, UNIX, *path, datagram);
            kept += datagram.len();
        }
        assert!(said(&mut hub).is_empty());
    }
    assert_eq!(hub.half_open(), STRANGERS);
    let with = live();
    drop(hub);
    let each = (with - live()) / STRANGERS;
    println!(
        "{each} bytes per half-open IKE SA, {} of fragments sent",
        kept / STRANGERS
    );
    assert!(each >= kept / STRANGERS, "the fragments were taken: {each}");
    assert!(each <= limits::REASSEMBLY_BYTES + 8 * 1024, "{each}");
}
