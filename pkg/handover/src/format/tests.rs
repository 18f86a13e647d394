use espalier_dataplane_core::{
    Direction, Encapsulation, Frozen, FrozenCounters, FrozenPeer, FrozenSa, FrozenTun, FrozenUsed,
    Overlay, Peer, PeerId, PeerStats, Progress, Sa, SaMode, Spi, Suite,
};
use espalier_secret::SecretBytes;
use proptest::prelude::*;

use super::*;
use crate::Digest;

fn sa(direction: Direction, progress: Progress) -> FrozenSa {
    FrozenSa {
        sa: Sa {
            peer: PeerId("node-2".into()),
            direction,
            spi: Spi(0x1200),
            suite: Suite::Aes256Gcm16,
            mode: SaMode::Transport,
            key: SecretBytes::new(vec![0xc4; 36]),
            esn: true,
            replay_window: 128,
            encapsulation: Encapsulation::Udp {
                local_port: 4500,
                remote_port: 4500,
            },
            hard_seconds: 0,
            cpu: None,
        },
        counters: FrozenCounters {
            age_ms: 1000,
            last_ms: 900,
            packets: 7,
            bytes: 700,
            drops: 1,
        },
        progress,
    }
}

fn frozen() -> Frozen {
    let peer = FrozenPeer {
        peer: Peer {
            id: PeerId("node-2".into()),
            local: [192, 0, 2, 1].into(),
            remote: [192, 0, 2, 2].into(),
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
            own_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            overlay: Overlay::Ipip,
            local_mac: [2, 0, 0, 0, 0, 1],
            remote_mac: [2, 0, 0, 0, 0, 2],
        },
        stats: PeerStats {
            no_sa_drops: 3,
            policy_drops: 4,
        },
        active: Some(Spi(0x1200)),
    };
    let opened = Progress::Opened {
        top: 70,
        words: vec![1, 64, 0],
        proven: true,
    };
    Frozen {
        instance: 42,
        peers: vec![peer],
        sas: vec![
            sa(Direction::In, opened),
            sa(Direction::Out, Progress::Sealed { last: u64::MAX }),
        ],
        tun: FrozenTun::TcpUdp,
        drops: vec![("bad_icv".into(), 5)],
        used: FrozenUsed {
            outbound: vec![Spi(0x1200), Spi(7)],
            keys: vec![[9; 16], [8; 16]],
        },
    }
}

fn state(plane: Plane) -> State {
    State {
        writer: "1.2.3".into(),
        digest: "5a".repeat(32).parse::<Digest>().unwrap(),
        frozen_at_ns: 77,
        notes: vec!["FALLBACK".into()],
        descriptors: vec![
            Role::Lock,
            Role::Listener,
            Role::IkeRelay,
            Role::Udp,
            Role::Tun,
        ],
        plane,
    }
}

/// What is said of a state with this change.
fn refused(change: impl FnOnce(&mut proto::State, &mut proto::Userspace)) -> String {
    let mut message = proto::State::from(state(Plane::Kernel));
    let mut userspace = proto::Userspace::from(frozen());
    change(&mut message, &mut userspace);
    if message.plane.is_some() {
        message.plane = Some(proto::state::Plane::Userspace(userspace));
    }
    let bytes = seal(&message.encode_to_vec());
    read(&bytes).unwrap_err().to_string()
}

#[test]
fn a_state_survives() {
    for plane in [
        Plane::Kernel,
        Plane::Userspace(frozen()),
        Plane::Userspace(Frozen::default()),
    ] {
        let state = state(plane);
        assert_eq!(read(&write(state.clone())).unwrap(), state);
    }
}

#[test]
fn no_byte_may_be_missing_and_none_may_follow() {
    let bytes = write(state(Plane::Userspace(frozen())));
    for length in 0..bytes.len() {
        let cut = read(&bytes[..length]).unwrap_err();
        let named = match length {
            ..HEADER_LEN => matches!(cut, FormatError::Truncated(got) if got == length),
            _ => matches!(cut, FormatError::Length { .. }),
        };
        assert!(named, "{length}: {cut}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(read(&longer), Err(FormatError::Length { .. })));
}

#[test]
fn a_change_of_any_byte_is_refused() {
    let bytes = write(state(Plane::Userspace(frozen())));
    for at in 0..bytes.len() {
        let mut changed = bytes.to_vec();
        changed[at] ^= 0x10;
        assert!(read(&changed).is_err(), "byte {at}");
    }
}

#[test]
fn another_version_is_refused_by_its_number() {
    let mut bytes = write(state(Plane::Kernel));
    for version in [0, VERSION + 1, u32::MAX] {
        bytes[8..12].copy_from_slice(&version.to_be_bytes());
        let refused = read(&bytes).unwrap_err();
        assert!(matches!(refused, FormatError::Version(got) if got == version));
        assert!(refused.to_string().contains(&version.to_string()));
    }
}

#[test]
fn several_queues_are_a_version_that_older_programs_refuse() {
    let version = |plane: Plane, more: &[Role]| {
        let mut state = state(plane);
        state.descriptors.extend(more);
        let bytes = write(state.clone());
        assert_eq!(read(&bytes).unwrap(), state);
        u32::from_be_bytes(bytes[8..12].try_into().unwrap())
    };
    let userspace = || Plane::Userspace(frozen());
    assert_eq!(version(userspace(), &[]), 1);
    assert_eq!(version(userspace(), &[Role::Tun]), 2);
    assert_eq!(version(userspace(), &[Role::Udp, Role::Udp]), 2);
    // One socket per address family, always.
    assert_eq!(version(Plane::Kernel, &[Role::Udp]), 1);
}

#[test]
fn raw_esp_is_a_version_that_older_programs_refuse() {
    let version = |change: &dyn Fn(&mut Frozen), more: &[Role]| {
        let mut frozen = frozen();
        change(&mut frozen);
        let mut state = state(Plane::Userspace(frozen));
        state.descriptors.extend(more);
        let bytes = write(state.clone());
        assert_eq!(read(&bytes).unwrap(), state);
        u32::from_be_bytes(bytes[8..12].try_into().unwrap())
    };
    let raw = |frozen: &mut Frozen| frozen.sas[1].sa.encapsulation = Encapsulation::Raw;
    assert_eq!(version(&raw, &[]), 3);
    assert_eq!(version(&raw, &[Role::Raw, Role::Raw]), 3);
    assert_eq!(version(&|_| (), &[Role::Raw]), 3);
    assert_eq!(version(&|_| (), &[]), 1);
}

#[test]
fn fields_are_bounded_and_named() {
    let long = || "x".repeat(5000);
    assert!(refused(|_, plane| plane.used_keys.push(0)).starts_with("used_keys"));
    assert!(refused(|state, _| state.plane = None).starts_with("plane"));
    assert!(refused(|state, _| state.digest = "5a".into()).starts_with("digest"));
    assert!(refused(|state, _| state.writer = long()).starts_with("writer"));
    assert!(refused(|state, _| state.notes[0] = long()).starts_with("notes"));
    assert!(refused(|state, _| state.notes = vec![String::new(); 65]).starts_with("notes"));
    assert!(refused(|state, _| state.descriptors.push(9)).starts_with("descriptors"));
    assert!(refused(|state, _| state.descriptors = vec![1; 300]).starts_with("descriptors"));
    assert!(refused(|_, plane| plane.drops.extend([(long(), 1)])).starts_with("drops"));
    assert!(refused(|_, plane| plane.peers[0].peer = None).starts_with("peer"));
    let id = |plane: &mut proto::Userspace, id: String| {
        plane.peers[0]
            .peer
            .iter_mut()
            .for_each(|peer| peer.id.clone_from(&id));
    };
    assert!(refused(|_, plane| id(plane, long())).starts_with("peer"));
    assert!(refused(|_, plane| id(plane, String::new())).starts_with("id"));
    assert!(refused(|_, plane| plane.sas[0].sa = None).starts_with("sa"));
    assert!(refused(|_, plane| plane.sas[0].progress = None).starts_with("progress"));
    let words = proto::Opened {
        words: vec![0; 1026],
        ..proto::Opened::default()
    };
    let words = proto::sa::Progress::Opened(words);
    assert!(refused(|_, plane| plane.sas[0].progress = Some(words)).starts_with("words"));
}

#[test]
fn no_key_is_shown() {
    let state = state(Plane::Userspace(frozen()));
    let message = proto::State::from(state.clone());
    for shown in [format!("{state:?}"), format!("{message:?}")] {
        assert!(!shown.contains("196") && !shown.contains("c4c4"), "{shown}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read(&bytes).is_err());
        let _ = read(&seal(&bytes));
    }
}
