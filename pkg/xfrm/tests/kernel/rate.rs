use std::time::Instant;

use espalier_dataplane_core::{Dataplane as _, Direction, PeerId, Sa, Suite};
use espalier_testnet::isolated;

use crate::node::{done, pair, sa};

const PEERS: u16 = 1000;

/// Prints rates; no time is asserted.
#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn a_thousand_peers() {
    isolated("rate::a_thousand_peers", || {
        let (mut a, _b) = pair();
        let plane = a.plane();
        let id = |n: u16| PeerId(format!("peer-{n}"));
        let started = Instant::now();
        for n in 0..PEERS {
            let [high, low] = n.to_be_bytes();
            let mut peer = a.peer(2, false);
            (peer.id, peer.remote) = (id(n), [198, 18, high, low].into());
            done(plane.put_peer(peer)).unwrap();
        }
        tell("peers put", PEERS.into(), started);
        let started = Instant::now();
        for n in 0..PEERS {
            for (direction, base) in [(Direction::In, 0x10_0000), (Direction::Out, 0x20_0000)] {
                let spi = base + u32::from(n);
                done(plane.install_sa(Sa {
                    peer: id(n),
                    ..sa(2, direction, spi, Suite::Aes256Gcm16)
                }))
                .unwrap();
            }
        }
        tell("SAs installed", 2 * u32::from(PEERS), started);
        let started = Instant::now();
        assert_eq!(a.sas().len(), 2 * usize::from(PEERS));
        tell("SAs dumped", 2 * u32::from(PEERS), started);
        let started = Instant::now();
        a.restart();
        tell(
            "SAs adopted by a new process",
            2 * u32::from(PEERS),
            started,
        );
        let started = Instant::now();
        for n in 0..PEERS {
            done(a.plane().remove_peer(id(n))).unwrap();
        }
        tell("peers removed with their SAs", PEERS.into(), started);
        assert_eq!(a.ip("xfrm state"), "");
    });
}

fn tell(what: &str, count: u32, started: Instant) {
    let took = started.elapsed();
    let rate = f64::from(count) / took.as_secs_f64();
    println!("rate: {count} {what} in {took:?}, {rate:.0}/s");
}
