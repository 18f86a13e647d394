//! Two nodes and how they are connected, for the tests of whole engines.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests
#![allow(dead_code, reason = "each test program uses a part")]

use std::net::IpAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use espalier_dataplane_core::{
    Dataplane as _, Direction, Encapsulation, Overlay, Peer, PeerId, Sa, SaMode, Spi, Suite,
};
use espalier_esp_tun::Engine;
use espalier_secret::SecretBytes;

/// The engine's futures are ready when first polled.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("the engine never waits"),
    }
}

/// One end of a pair: node `n` with underlay address, port, and pods 10.244.n.0/24 and fd00:n::/64.
#[derive(Clone, Copy)]
pub(crate) struct Node {
    pub(crate) n: u8,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

impl Node {
    pub(crate) fn id(self) -> PeerId {
        PeerId(format!("node-{}", self.n))
    }

    fn mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 0, self.n]
    }
}

/// `peer` as `node` is told of it.
pub(crate) fn peer(node: Node, peer: Node, overlay: Overlay) -> Peer {
    Peer {
        id: peer.id(),
        local: node.address,
        remote: peer.address,
        pod_cidrs: vec![
            format!("10.244.{}.0/24", peer.n).parse().unwrap(),
            format!("fd00:{}::/64", peer.n).parse().unwrap(),
        ],
        own_cidrs: vec![
            format!("10.244.{}.0/24", node.n).parse().unwrap(),
            format!("fd00:{}::/64", node.n).parse().unwrap(),
        ],
        overlay,
        local_mac: node.mac(),
        remote_mac: peer.mac(),
    }
}

/// An SA of `node` with `peer`; both ends derive the key from the SPI.
pub(crate) fn sa(node: Node, peer: Node, direction: Direction, spi: Spi) -> Sa {
    let mut key = vec![0x42; 36];
    key[..4].copy_from_slice(&spi.0.to_be_bytes());
    Sa {
        peer: peer.id(),
        direction,
        spi,
        suite: Suite::Aes256Gcm16,
        mode: SaMode::Transport,
        key: SecretBytes::new(key),
        esn: true,
        replay_window: 8192,
        encapsulation: Encapsulation::Udp {
            local_port: node.port,
            remote_port: peer.port,
        },
        hard_seconds: 0,
        cpu: None,
    }
}

/// Makes `from` seal towards `to` with `spi`, the receiver first.
pub(crate) fn encrypt(from: (Node, &Engine), to: (Node, &Engine), spi: Spi) {
    encrypt_as(from, to, spi, |sa| sa);
}

/// [`encrypt`], with SAs changed like this at both ends.
pub(crate) fn encrypt_as(
    (from, sealing): (Node, &Engine),
    (to, opening): (Node, &Engine),
    spi: Spi,
    change: fn(Sa) -> Sa,
) {
    now(opening.install_sa(change(sa(to, from, Direction::In, spi)))).unwrap();
    now(sealing.install_sa(change(sa(from, to, Direction::Out, spi)))).unwrap();
    now(sealing.switch_outbound(to.id(), Some(spi))).unwrap();
}

/// For raw ESP.
pub(crate) fn in_ip(sa: Sa) -> Sa {
    Sa {
        encapsulation: Encapsulation::Raw,
        ..sa
    }
}
