//! What the tests of this program have in common.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::time::Duration;

use espalier_dataplane_core::{
    Dataplane as _, Direction, Encapsulation, Overlay, Peer, PeerId, Sa, SaMode, Spi, Suite,
};
use espalier_rpc::DataplaneClient;
use espalier_secret::SecretBytes;
use espalier_testnet::{Process, isolated};

/// Only to fail instead of hanging.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Runs `test` in a sandbox, on a runtime of one thread.
pub(crate) fn in_sandbox(name: &str, test: impl AsyncFnOnce()) {
    isolated(name, || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    });
}

/// Waits for a data plane's first answer.
pub(crate) async fn answers(process: &mut Process, client: &DataplaneClient) {
    let answer = tokio::time::timeout(LIMIT, async {
        while client.hello().await.is_err() {
            assert!(process.ended().unwrap().is_none(), "it has ended");
            tokio::task::yield_now().await;
        }
    });
    answer.await.unwrap();
}

/// This program with something behind it that nobody reads: another file, the same code.
pub(crate) fn variant(number: u8) -> Vec<u8> {
    let mut bytes = fs::read(env!("CARGO_BIN_EXE_espalier-dataplane")).unwrap();
    bytes.push(number);
    bytes
}

pub(crate) const VXLAN: Overlay = Overlay::Vxlan {
    vni: 4789,
    port: 4789,
};

/// Host `n` as host `own` is told of it: 192.0.2.n, pods 10.244.n.0/24.
pub(crate) fn peer(own: u8, n: u8, overlay: Overlay) -> Peer {
    Peer {
        id: PeerId(format!("node-{n}")),
        local: [192, 0, 2, own].into(),
        remote: [192, 0, 2, n].into(),
        pod_cidrs: vec![format!("10.244.{n}.0/24").parse().unwrap()],
        own_cidrs: vec![format!("10.244.{own}.0/24").parse().unwrap()],
        overlay,
        local_mac: [2, 0, 0, 0, 0, own],
        remote_mac: [2, 0, 0, 0, 0, n],
    }
}

/// An SA with host `n`; both ends derive the key from the SPI.
pub(crate) fn sa(n: u8, direction: Direction, spi: u32) -> Sa {
    let mut key = vec![0x17; 36];
    key[..4].copy_from_slice(&spi.to_be_bytes());
    Sa {
        peer: PeerId(format!("node-{n}")),
        direction,
        spi: Spi(spi),
        suite: Suite::Aes256Gcm16,
        mode: SaMode::Transport,
        key: SecretBytes::new(key),
        esn: true,
        replay_window: 8192,
        encapsulation: Encapsulation::Udp {
            local_port: 4500,
            remote_port: 4500,
        },
        hard_seconds: 0,
        cpu: None,
    }
}
