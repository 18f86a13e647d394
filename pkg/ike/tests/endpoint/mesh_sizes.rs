//! Meshes whose nodes all start at the same instant over a network that loses, reorders and duplicates: in the end every pair
//! has one IKE SA and one CHILD_SA, on both ends the same, and nothing else is left on any node.
//!
//! `make mesh-1000` runs the test that is ignored here, all 499,500 pairs of 1,000 nodes, with optimisation: it takes minutes
//! and gigabytes.

use std::time::{Duration, Instant};

use espalier_ike::{Connect, limits};

use crate::sim::{Net, Weather, psk};

const ROUGH: Weather = Weather {
    latency_ms: (1, 60),
    loss: 10,
    duplication: 10,
};
/// Until every handshake is through, whatever was lost.
const START: Duration = Duration::from_secs(60);
/// Until all timers of what came and went have run.
const AFTER: Duration = Duration::from_secs(60);

/// `size` nodes of which those know each other that `know` says, which all start now.
fn start(seed: u64, size: usize, why: Connect, know: impl Fn(usize, usize) -> bool) -> Net {
    let mut net = Net::new(seed, size, None);
    net.weather = ROUGH;
    // Hundreds of thousands of events and datagrams are not kept.
    net.record = size <= 100;
    let pairs = |own: usize| {
        let know = &know;
        (0..size).filter(move |peer| *peer != own && know(own, *peer))
    };
    for own in 0..size {
        pairs(own).for_each(|peer| net.introduce_to(own, peer, &psk(7)));
    }
    for own in 0..size {
        pairs(own).for_each(|peer| net.connect(own, peer, why));
    }
    net
}

/// Runs it to its end; every pair is whole, and nothing is left over.
fn finish(net: &mut Net, know: impl Fn(usize, usize) -> bool) -> usize {
    net.run(START);
    net.weather = Weather::FINE;
    net.run(AFTER);
    net.check_spis();
    let size = net.nodes.len();
    let mut pairs = 0;
    for a in 0..size {
        let peers: Vec<usize> = (0..size).filter(|b| *b != a && know(a, *b)).collect();
        for b in peers.iter().filter(|b| **b > a) {
            assert!(net.settled(a, *b), "{a} and {b} have no pair of SAs");
            pairs += 1;
        }
        net.assert_holds(a, peers.len(), "at the end");
    }
    pairs
}

fn full(seed: u64, size: usize, why: Connect) {
    let mut net = start(seed, size, why, |_, _| true);
    let pairs = finish(&mut net, |_, _| true);
    assert_eq!(pairs, size * (size - 1) / 2);
}

/// Each node knows the next so many on a ring, and those before it.
fn near(size: usize, degree: usize) -> impl Fn(usize, usize) -> bool + Copy {
    move |a, b| {
        let way = a.abs_diff(b);
        way.min(size - way) <= degree / 2
    }
}

#[test]
fn twenty_nodes_that_start_together_are_one_mesh() {
    for (seed, why) in [
        (1, Connect::Policy),
        (2, Connect::Restart),
        (3, Connect::Fresh),
    ] {
        full(seed, 20, why);
    }
}

#[test]
fn a_hundred_nodes_that_start_together_are_one_mesh() {
    full(1, 100, Connect::Policy);
}

#[test]
fn a_hundred_nodes_that_restart_together_are_one_mesh() {
    full(2, 100, Connect::Restart);
}

#[test]
fn a_thousand_nodes_with_twenty_peers_each_that_start_together_all_have_them() {
    let know = near(1000, 20);
    let mut net = start(1, 1000, Connect::Policy, know);
    assert_eq!(finish(&mut net, know), 1000 * 20 / 2);
}

/// ESPALIER_MESH: another number of nodes.
#[test]
#[ignore = "make mesh-1000: minutes and gigabytes"]
fn a_thousand_nodes_that_start_together_are_one_mesh() {
    let size = std::env::var("ESPALIER_MESH").ok();
    let size: usize = size.map_or(1000, |size| size.parse().unwrap());
    #[allow(clippy::disallowed_methods)] // how long it really takes is part of the result
    let began = Instant::now();
    let mut net = start(1, size, Connect::Policy, |_, _| true);
    let first = net.now;
    let pairs = size * (size - 1) / 2;
    println!("{size} nodes, {pairs} pairs, loss {} %", ROUGH.loss);
    net.run(START);
    println!(
        "{:?}: started, {:?} of the network's time",
        began.elapsed(),
        net.now - first
    );
    assert_eq!(finish(&mut net, |_, _| true), pairs);
    let held = net.nodes[size / 2].endpoint.holdings();
    println!(
        "{:?}: {pairs} of {pairs} pairs whole, nothing left over; each node holds {held:?}",
        began.elapsed()
    );
    println!("peak memory: {} MiB", peak_mib());
    assert!(limits::CLOSED_LINGER < AFTER);
}

/// Of this process (Linux).
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_default() / 1024
}
