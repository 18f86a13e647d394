//! Random schedules: rekeys of both kinds from both ends, announcements, disconnects, restarts, over a network that loses, reorders
//! and duplicates. A failing seed is in the message; `seed(N)` alone happens again.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use espalier_ike::{Connect, Event};
use rand::RngExt;

use crate::sim::{Net, Weather, id, psk};

const SEEDS: u64 = 2000;
const ACTS: usize = 8;

/// Every CHILD_SA that both ends had has the same keys on both, and no SPI was given out twice.
fn assert_same_keys(net: &Net) {
    let ups = [net.child_ups(0), net.child_ups(1)];
    let mut inbound = BTreeMap::new();
    for (_, child, _) in &ups[1] {
        let before = inbound.insert(child.spi_in, child);
        assert!(before.is_none(), "an inbound SPI twice");
    }
    for (_, child, _) in &ups[0] {
        if let Some(other) = inbound.get(&child.spi_out) {
            assert_eq!(other.spi_out, child.spi_in);
            assert_eq!(other.keys_in, child.keys_out);
            assert_eq!(other.keys_out, child.keys_in);
            assert_ne!(child.role, other.role);
        }
    }
}

fn act(net: &mut Net, count: u8) {
    let own = net.rng.random_range(0..2);
    match net.rng.random_range(0..10) {
        0..4 => net.rekey_child(own, 1 - own),
        4..7 => net.rekey_ike(own, 1 - own),
        _ => net.announce(own, 1 - own, &[own as u8, count]),
    }
}

fn schedule(seed: u64) {
    let mut net = Net::psk_mesh(seed, 2);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(Duration::from_secs(60), Net::all_settled));
    net.run(Duration::from_secs(1));
    net.weather = Weather {
        latency_ms: (1, net.rng.random_range(1..300)),
        loss: net.rng.random_range(0..25),
        duplication: net.rng.random_range(0..25),
    };
    let restarted = seed % 8 == 1;
    for count in 0..ACTS {
        if restarted && count == ACTS / 2 {
            // A new process on one end, over the data plane of the old one, while anything is under way.
            let own = net.rng.random_range(0..2);
            // Till what it said last has arrived: to the simulation's driver an announcement is about the newest CHILD_SA.
            net.nodes[own].up = false;
            net.run(Duration::from_millis(300));
            net.nodes[own].up = true;
            net.restart(own, &psk(7));
            net.connect(own, 1 - own, Connect::Restart);
        }
        act(&mut net, count as u8);
        // Often at once, sometimes within an exchange, sometimes after it.
        let pause = match net.rng.random_range(0..4) {
            0 => 0,
            1 | 2 => net.rng.random_range(0..200),
            _ => net.rng.random_range(0..8000),
        };
        net.run(Duration::from_millis(pause));
    }
    let deleted = seed.is_multiple_of(8);
    if deleted {
        // A DELETE against whatever is under way; the other end starts again.
        net.strict = false;
        let (own, now) = (net.rng.random_range(0..2), net.now);
        net.nodes[own].endpoint.disconnect(&id(1 - own), now);
        net.pump(own);
        net.run(Duration::from_millis(300));
        net.connect(own, 1 - own, Connect::Policy);
    }
    net.weather = Weather::FINE;
    net.run(Duration::from_secs(150));
    net.check_spis();
    assert_same_keys(&net);
    assert!(net.all_settled(), "not exactly one CHILD_SA pair");
    for node in 0..2 {
        assert_eq!(net.ike_sas(node), 1, "IKE SAs of node {node}");
        let down = |event: &Event| matches!(event, Event::IkeDown { .. });
        assert!(
            deleted || restarted || net.count(node, down) == 0,
            "an IKE SA was lost"
        );
    }
}

#[test]
fn random_schedules_converge() {
    // From another start with ESPALIER_SEED, to look further or at one.
    let from = std::env::var("ESPALIER_SEED").ok();
    let from: u64 = from.map_or(0, |from| from.parse().unwrap());
    for seed in from..from + SEEDS {
        let done = catch_unwind(AssertUnwindSafe(|| schedule(seed)));
        assert!(
            done.is_ok(),
            "schedule with seed {seed} failed: see above; repeat with ESPALIER_SEED={seed}"
        );
    }
}
