use super::*;

const KEY: [u8; 36] = *b"0123456789abcdefghijklmnopqrstuvwxyz";

fn sa() -> core::Sa {
    core::Sa {
        peer: PeerId("node-b".into()),
        direction: core::Direction::Out,
        spi: Spi(0xc0ff_ee00),
        suite: core::Suite::Aes256Gcm16,
        mode: core::SaMode::Transport,
        key: SecretBytes::copy_from(&KEY),
        esn: true,
        replay_window: 8192,
        encapsulation: core::Encapsulation::Udp {
            local_port: 4500,
            remote_port: 14500,
        },
        hard_seconds: 0,
        cpu: None,
    }
}

fn peer() -> core::Peer {
    core::Peer {
        id: PeerId("node-b".into()),
        local: "10.0.0.1".parse().unwrap(),
        remote: "10.0.0.2".parse().unwrap(),
        pod_cidrs: vec![
            "10.244.2.0/24".parse().unwrap(),
            "fd00:2::/64".parse().unwrap(),
        ],
        own_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        overlay: core::Overlay::Vxlan {
            vni: 4789,
            port: 4789,
        },
        local_mac: [2, 0, 0, 0, 0, 1],
        remote_mac: [2, 0, 0, 0, 0, 2],
    }
}

#[test]
fn kernel_sas_hello_and_events_survive_the_wire() {
    let sa = core::Sa {
        suite: core::Suite::AhHmacSha256,
        mode: core::SaMode::Tunnel,
        key: SecretBytes::copy_from(&KEY[..32]),
        encapsulation: core::Encapsulation::Raw,
        hard_seconds: 86_400,
        cpu: Some(3),
        ..sa()
    };
    assert_eq!(core::Sa::try_from(proto::Sa::from(&sa)).unwrap(), sa);
    let hello = core::Hello {
        instance: 1,
        version: "1".into(),
        digest: "00".repeat(32),
        kind: core::KERNEL.into(),
        device: None,
        pid: 2,
        can: core::Capabilities {
            suites: core::Suite::ALL.to_vec(),
            raw: true,
            raw_untried: true,
            udp: true,
            tunnel: true,
            esn: true,
            max_replay_window: 4096,
            cpus: 2,
            notes: vec!["no offload".into()],
        },
    };
    assert_eq!(
        core::Hello::from(proto::HelloReply::from(hello.clone())),
        hello
    );
    let (peer, spi) = (PeerId("node-b".into()), Spi(300));
    for event in [
        core::Event::FirstPacket {
            peer: peer.clone(),
            spi,
        },
        core::Event::Acquire { peer: peer.clone() },
        core::Event::Expired {
            peer,
            direction: core::Direction::In,
            spi,
        },
    ] {
        let sent = proto::Event::from(event.clone());
        assert_eq!(core::Event::try_from(sent).unwrap(), event);
    }
}

/// The field that the error names.
fn field<T: fmt::Debug>(result: Result<T, Error>) -> &'static str {
    match result.unwrap_err() {
        Error::Invalid { field, .. } => field,
        other => panic!("names no field: {other}"),
    }
}

#[test]
fn an_sa_survives_the_wire() {
    let raw = core::Sa {
        encapsulation: core::Encapsulation::Raw,
        direction: core::Direction::In,
        ..sa()
    };
    for sa in [sa(), raw] {
        assert_eq!(core::Sa::try_from(proto::Sa::from(&sa)).unwrap(), sa);
    }
}

#[test]
fn a_peer_survives_the_wire() {
    let ipip = core::Peer {
        overlay: core::Overlay::Ipip,
        ..peer()
    };
    for peer in [peer(), ipip] {
        assert_eq!(
            core::Peer::try_from(proto::Peer::from(peer.clone())).unwrap(),
            peer
        );
    }
}

#[test]
fn a_dump_survives_the_wire() {
    let info = core::SaInfo {
        peer: PeerId("node-b".into()),
        direction: core::Direction::In,
        spi: Spi(256),
        suite: core::Suite::ChaCha20Poly1305,
        encapsulation: core::Encapsulation::Raw,
        active: true,
        age_s: 1,
        packets: 2,
        bytes: 3,
        drops: 4,
        idle_ms: Some(5),
        cpu: Some(0),
    };
    let dump = core::Dump {
        peers: vec![(
            peer(),
            core::PeerStats {
                no_sa_drops: 1,
                policy_drops: 2,
            },
        )],
        sas: vec![
            core::SaInfo {
                idle_ms: None,
                cpu: None,
                encapsulation: sa().encapsulation,
                ..info.clone()
            },
            info,
        ],
        drops: vec![("truncated".into(), 1), ("unknown_spi".into(), 2)],
    };
    assert_eq!(
        core::Dump::try_from(proto::DumpReply::from(dump.clone())).unwrap(),
        dump
    );
}

#[test]
fn debug_of_the_message_shows_no_key() {
    let shown = format!(
        "{:?} {:#?}",
        proto::Sa::from(&sa()),
        tonic::Request::new(proto::Sa::from(&sa()))
    );
    assert!(
        shown.contains("36 bytes, redacted") && shown.contains("node-b"),
        "{shown}"
    );
    assert!(
        !shown.contains("48") && !shown.contains("0x30") && !shown.contains("0123"),
        "{shown}"
    );
}

#[test]
fn spare_capacity_does_not_leave_the_key_behind() {
    let mut roomy = Vec::with_capacity(100);
    roomy.extend_from_slice(&KEY);
    let secret = take_secret(&mut roomy);
    assert_eq!(secret.expose(), KEY);
    assert!(roomy.is_empty());
    roomy.resize(KEY.len(), 0xff);
    let mut exact = KEY.to_vec().into_boxed_slice().into_vec();
    let address = exact.as_ptr();
    assert_eq!(
        take_secret(&mut exact).expose().as_ptr(),
        address,
        "moved, not copied"
    );
}

#[test]
fn wrong_sa_fields_are_named() {
    let wrong = |change: fn(&mut proto::Sa)| {
        let mut message = proto::Sa::from(&sa());
        change(&mut message);
        field(core::Sa::try_from(message))
    };
    assert_eq!(wrong(|sa| sa.peer.clear()), "peer");
    assert_eq!(wrong(|sa| sa.direction = 0), "direction");
    assert_eq!(wrong(|sa| sa.direction = 9), "direction");
    assert_eq!(wrong(|sa| sa.spi = 255), "spi");
    assert_eq!(wrong(|sa| sa.suite = 0), "suite");
    assert_eq!(wrong(|sa| sa.suite = 77), "suite");
    assert_eq!(wrong(|sa| sa.key.truncate(35)), "key");
    assert_eq!(
        wrong(|sa| sa.udp = Some(proto::UdpPorts {
            local: 0,
            remote: 4500
        })),
        "udp"
    );
    assert_eq!(
        wrong(|sa| sa.udp = Some(proto::UdpPorts {
            local: 4500,
            remote: 65536
        })),
        "udp"
    );
}

#[test]
fn wrong_peer_fields_are_named() {
    let wrong = |change: fn(&mut proto::Peer)| {
        let mut message = proto::Peer::from(peer());
        change(&mut message);
        field(core::Peer::try_from(message))
    };
    assert_eq!(wrong(|peer| peer.id.clear()), "id");
    assert_eq!(wrong(|peer| peer.local = "here".into()), "local");
    assert_eq!(wrong(|peer| peer.remote.clear()), "remote");
    assert_eq!(
        wrong(|peer| peer.pod_cidrs.push("10.0.0.0/33".into())),
        "pod_cidrs"
    );
    assert_eq!(
        wrong(|peer| peer.own_cidrs.push("10.0.0.0/33".into())),
        "own_cidrs"
    );
    assert_eq!(wrong(|peer| peer.overlay = None), "overlay");
    assert_eq!(
        wrong(|peer| peer.overlay = Some(proto::Overlay { kind: None })),
        "overlay"
    );
    assert_eq!(wrong(|peer| peer.local_mac.truncate(5)), "local_mac");
    assert_eq!(wrong(|peer| peer.remote_mac.push(0)), "remote_mac");
}

#[test]
fn a_vni_of_more_than_24_bits_is_refused() {
    let vxlan = proto::Vxlan {
        vni: 1 << 24,
        port: 4789,
    };
    let overlay = proto::Overlay {
        kind: Some(proto::overlay::Kind::Vxlan(vxlan)),
    };
    assert_eq!(field(core::Overlay::try_from(overlay)), "overlay");
}
