//! What the unit tests have in common: two hosts, their peers and SAs.

use std::time::Instant;

use espalier_dataplane_core::{
    Direction, Encapsulation, Overlay, Peer, PeerId, Sa, SaMode, Spi, Suite,
};
use espalier_secret::SecretBytes;

use crate::control::{Control, Ways};

pub(crate) const PORT: u16 = 4500;

/// Peer `n` of host `h`: underlay 192.0.2.h and 192.0.2.n, pods 10.244.n.0/24 and fd00:n::/64.
pub(crate) fn peer(host: u8, n: u8) -> Peer {
    Peer {
        id: PeerId(format!("node-{n}")),
        local: [192, 0, 2, host].into(),
        remote: [192, 0, 2, n].into(),
        pod_cidrs: vec![
            format!("10.244.{n}.0/24").parse().unwrap(),
            format!("fd00:{n}::/64").parse().unwrap(),
        ],
        own_cidrs: vec![
            format!("10.244.{host}.0/24").parse().unwrap(),
            format!("fd00:{host}::/64").parse().unwrap(),
        ],
        overlay: Overlay::Vxlan {
            vni: 4789,
            port: 4789,
        },
        local_mac: [2, 0, 0, 0, 0, host],
        remote_mac: [2, 0, 0, 0, 0, n],
    }
}

/// An SA with peer `n`; the key is that of `spi`.
pub(crate) fn sa(n: u8, direction: Direction, spi: u32) -> Sa {
    let mut key = vec![0x42; 36];
    key[..4].copy_from_slice(&spi.to_be_bytes());
    Sa {
        peer: PeerId(format!("node-{n}")),
        direction,
        spi: Spi(spi),
        suite: Suite::Aes256Gcm16,
        mode: SaMode::Transport,
        key: SecretBytes::new(key),
        esn: true,
        replay_window: 1024,
        encapsulation: Encapsulation::Udp {
            local_port: PORT,
            remote_port: PORT,
        },
        hard_seconds: 0,
        cpu: None,
    }
}

/// The same in IP instead of UDP.
pub(crate) fn raw(n: u8, direction: Direction, spi: u32) -> Sa {
    Sa {
        encapsulation: Encapsulation::Raw,
        ..sa(n, direction, spi)
    }
}

/// Host 1 with peers 2 and 3, host 2 with peers 1 and 3, and a pair of SAs between hosts 1 and 2.
pub(crate) fn hosts() -> (Control, Control) {
    hosts_with(sa)
}

/// [`hosts`], with such SAs.
pub(crate) fn hosts_with(sa: fn(u8, Direction, u32) -> Sa) -> (Control, Control) {
    hosts_of(peer, sa)
}

/// Native routing: ESP in tunnel mode.
pub(crate) fn tunnel_hosts() -> (Control, Control) {
    let native = |host, n| Peer {
        overlay: Overlay::Native,
        ..peer(host, n)
    };
    let tunnel = |n, direction, spi| Sa {
        mode: SaMode::Tunnel,
        ..sa(n, direction, spi)
    };
    hosts_of(native, tunnel)
}

fn hosts_of(peer: fn(u8, u8) -> Peer, sa: fn(u8, Direction, u32) -> Sa) -> (Control, Control) {
    let now = Instant::now();
    let (mut one, mut two) = (Control::new(Ways::all(PORT)), Control::new(Ways::all(PORT)));
    for n in [2, 3] {
        one.put_peer(peer(1, n)).unwrap();
    }
    for n in [1, 3] {
        two.put_peer(peer(2, n)).unwrap();
    }
    one.install_sa(sa(2, Direction::In, 0x2100), now).unwrap();
    one.install_sa(sa(2, Direction::Out, 0x1200), now).unwrap();
    two.install_sa(sa(1, Direction::In, 0x1200), now).unwrap();
    two.install_sa(sa(1, Direction::Out, 0x2100), now).unwrap();
    one.switch_outbound(&PeerId("node-2".into()), Some(Spi(0x1200)))
        .unwrap();
    two.switch_outbound(&PeerId("node-1".into()), Some(Spi(0x2100)))
        .unwrap();
    (one, two)
}

/// A UDP packet between two addresses of one family.
pub(crate) fn pod_packet(source: &str, destination: &str) -> Vec<u8> {
    let udp = [0x13, 0x88, 0, 7, 0, 12, 0, 0, b'p', b'o', b'd', b'!'];
    match (source.parse().unwrap(), destination.parse().unwrap()) {
        (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) => {
            let header = [0x45, 0xb9, 0, 32, 0x12, 0x34, 0x40, 0, 63, 17, 0xab, 0xcd];
            [&header[..], &source.octets(), &destination.octets(), &udp].concat()
        }
        (std::net::IpAddr::V6(source), std::net::IpAddr::V6(destination)) => {
            let header = [0x6b, 0x90, 0, 0, 0, 12, 17, 63];
            [&header[..], &source.octets(), &destination.octets(), &udp].concat()
        }
        _ => panic!("{source} and {destination} are of different families"),
    }
}
