//! S3: what seals one direction of one pair in one epoch seals nothing else.

use std::collections::HashMap;
use std::time::Duration;

use espalier_ike::{Connect, Event};

use crate::sim::{Net, psk};

const LONG: Duration = Duration::from_secs(300);

/// Every key of every CHILD_SA that a node was ever given, with how often and where.
fn keys(net: &Net) -> HashMap<Vec<u8>, Vec<String>> {
    let mut keys: HashMap<Vec<u8>, Vec<String>> = HashMap::new();
    for node in &net.nodes {
        for event in &node.log {
            if let Event::ChildUp { peer, child, .. } = event {
                let sides = [("in", &child.keys_in), ("out", &child.keys_out)];
                for (direction, own) in sides {
                    let holder = format!("{} {direction} with {peer}", node.id);
                    let key = own.key.expose().to_vec();
                    keys.entry(key).or_default().push(holder);
                }
            }
        }
    }
    keys
}

#[test]
fn s3_keys_are_unique_per_pair_direction_and_epoch() {
    let mut net = Net::psk_mesh(1, 5);
    net.connect_all(Connect::Policy);
    assert!(net.run_until(LONG, Net::all_settled));
    let first = keys(&net).len();
    assert_eq!(first, 2 * 10, "two directions of ten pairs");

    // A second epoch: one node starts anew, under the same PSKs, and replaces what it had.
    net.restart(2, &psk(7));
    (0..5)
        .filter(|peer| *peer != 2)
        .for_each(|peer| net.connect(2, peer, Connect::Restart));
    net.run(LONG);
    assert!(net.all_settled());
    let keys = keys(&net);
    assert!(keys.len() > first, "there were new keys");
    for holders in keys.values() {
        // One end seals with it and the other opens with it (a restarted end's log begins anew), nobody else.
        for direction in [" in ", " out "] {
            let ends = holders.iter().filter(|holder| holder.contains(direction));
            assert!(ends.count() <= 1, "one key, held by {holders:?}");
        }
    }
}
