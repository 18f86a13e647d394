//! States of data planes, mostly without their header, which the target puts in front.

use espalier_dataplane_core::{
    Direction, Encapsulation, Frozen, FrozenCounters, FrozenPeer, FrozenSa, FrozenTun, FrozenUsed,
    Overlay, Peer, PeerId, PeerStats, Progress, Sa, SaMode, Spi, Suite,
};
use espalier_handover::format::{HEADER_LEN, write};
use espalier_handover::{Plane, Role, State};
use espalier_secret::SecretBytes;

use crate::{Seed, seeds as of};

fn sa(direction: Direction, progress: Progress) -> FrozenSa {
    let key = match direction {
        Direction::In => 0x11,
        Direction::Out => 0x22,
    };
    FrozenSa {
        sa: Sa {
            peer: PeerId("b".into()),
            direction,
            spi: Spi(0x1200),
            suite: Suite::Aes128Gcm16,
            mode: SaMode::Transport,
            key: SecretBytes::new(vec![key; 20]),
            esn: true,
            replay_window: 64,
            encapsulation: Encapsulation::Udp {
                local_port: 4500,
                remote_port: 4500,
            },
            hard_seconds: 0,
            cpu: None,
        },
        counters: FrozenCounters {
            age_ms: 9,
            last_ms: 8,
            packets: 7,
            bytes: 6,
            drops: 5,
        },
        progress,
    }
}

fn frozen() -> Frozen {
    let peer = Peer {
        id: PeerId("b".into()),
        local: [192, 0, 2, 1].into(),
        remote: [192, 0, 2, 2].into(),
        pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
        own_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        overlay: Overlay::Ipip,
        local_mac: [2, 0, 0, 0, 0, 1],
        remote_mac: [2, 0, 0, 0, 0, 2],
    };
    let opened = Progress::Opened {
        top: 70,
        words: vec![0, 64],
        proven: true,
    };
    Frozen {
        instance: 42,
        peers: vec![FrozenPeer {
            peer,
            stats: PeerStats::default(),
            active: Some(Spi(0x1200)),
        }],
        sas: vec![
            sa(Direction::In, opened),
            sa(Direction::Out, Progress::Sealed { last: 41 }),
        ],
        tun: FrozenTun::Tcp,
        drops: vec![("bad_icv".into(), 5)],
        used: FrozenUsed {
            outbound: vec![Spi(0x1200)],
            keys: vec![[9; 16]],
        },
    }
}

fn whole(plane: Plane) -> Vec<u8> {
    let state = State {
        writer: "1.2.3".into(),
        digest: "5a".repeat(32).parse().unwrap(),
        frozen_at_ns: 77,
        notes: vec!["FALLBACK".into()],
        descriptors: vec![Role::Lock, Role::Listener, Role::Udp],
        plane,
    };
    write(state).to_vec()
}

fn body(change: impl FnOnce(&mut Frozen)) -> Vec<u8> {
    let mut frozen = frozen();
    change(&mut frozen);
    whole(Plane::Userspace(frozen)).split_off(HEADER_LEN)
}

pub(crate) fn seeds() -> Vec<Seed> {
    let mut other_version = whole(Plane::Kernel);
    other_version[11] = 2;
    let mut cut = body(|_| ());
    cut.truncate(cut.len() / 2);
    of(
        "handover_state",
        [
            ("whole", whole(Plane::Userspace(frozen()))),
            ("other-version", other_version),
            ("kernel", whole(Plane::Kernel).split_off(HEADER_LEN)),
            ("userspace", body(|_| ())),
            ("no-sa", body(|state| state.sas.clear())),
            ("no-peer", body(|state| state.peers.clear())),
            (
                "peer-twice",
                body(|state| state.peers.extend(frozen().peers)),
            ),
            ("sa-twice", body(|state| state.sas.extend(frozen().sas))),
            (
                "window-of-another-size",
                body(|state| state.sas[0].sa.replay_window = 128),
            ),
            (
                "other-direction",
                body(|state| state.sas[0].progress = Progress::Sealed { last: 1 }),
            ),
            (
                "active-of-nobody",
                body(|state| state.peers[0].active = Some(Spi(0x4242))),
            ),
            (
                "raw",
                body(|state| {
                    let sas = state.sas.iter_mut();
                    sas.for_each(|sa| sa.sa.encapsulation = Encapsulation::Raw);
                }),
            ),
            ("empty", Vec::new()),
            ("cut", cut),
        ],
    )
}
