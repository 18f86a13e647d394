//! The real binary replaced in place by others.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, Permissions};
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use espalier_dataplane_core::{
    Dataplane as _, Direction, Encapsulation, Error, Hello, Overlay, Peer, PeerId, Sa,
};
use espalier_handover::{Digest, binary};
use espalier_ike_io::relay::AgentEnd;
use espalier_rpc::{DataplaneClient, UpgradeError};
use espalier_testnet::{Netns, Process};

use common::{answers, in_sandbox, sa, variant};

/// Only to fail instead of hanging.
const LIMIT: Duration = Duration::from_secs(30);

/// A data plane, its folder of binaries, and who asks it.
struct Plane {
    process: Process,
    client: DataplaneClient,
    dir: tempfile::TempDir,
}

impl Plane {
    async fn start(netns: &Netns) -> Self {
        Self::start_with(netns, "1").await
    }

    async fn start_with(netns: &Netns, queues: &str) -> Self {
        let command = Command::new(env!("CARGO_BIN_EXE_espalier-dataplane"));
        Self::start_by(netns, command, queues).await
    }

    async fn start_by(netns: &Netns, mut command: Command, queues: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        command.args(["--dataplane", "userspace", "--run-dir"]);
        command
            .arg(dir.path())
            .arg("--upgrade-dir")
            .arg(dir.path().join("bin"))
            .args(["--queues", queues]);
        let mut process = netns.spawn(&mut command).unwrap();
        let client = DataplaneClient::new(dir.path().join("dataplane.sock")).unwrap();
        answers(&mut process, &client).await;
        Self {
            process,
            client,
            dir,
        }
    }

    /// A program of these bytes in the folder of binaries.
    fn put(&self, bytes: &[u8]) -> Digest {
        let program = self.dir.path().join("program");
        fs::write(&program, bytes).unwrap();
        binary::install(&program, &self.dir.path().join("bin")).unwrap()
    }

    async fn refuses(&mut self, digest: &str) -> String {
        let before = self.client.hello().await.unwrap();
        let refused = self.client.upgrade(digest).await.unwrap_err();
        assert!(matches!(refused, UpgradeError::Refused(_)), "{refused}");
        assert_eq!(self.client.hello().await.unwrap(), before);
        assert!(self.process.ended().unwrap().is_none());
        refused.to_string()
    }
}

fn peer() -> Peer {
    Peer {
        id: PeerId("node-2".into()),
        local: [127, 0, 0, 1].into(),
        remote: [127, 0, 0, 2].into(),
        pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
        own_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        overlay: Overlay::Ipip,
        local_mac: [2, 0, 0, 0, 0, 1],
        remote_mac: [2, 0, 0, 0, 0, 2],
    }
}

fn outbound(port: u16) -> Sa {
    Sa {
        replay_window: 0,
        encapsulation: Encapsulation::Udp {
            local_port: 4500,
            remote_port: port,
        },
        ..sa(2, Direction::Out, 0x1200)
    }
}

/// Sends a packet of a pod and gives the sequence number under which it is on the wire.
fn sealed(netns: &Netns, wire: &UdpSocket) -> u64 {
    let send = || {
        let pod = UdpSocket::bind("10.244.1.2:0").unwrap();
        pod.send_to(b"packet", "10.244.2.2:9").unwrap();
    };
    netns.run(send).unwrap();
    let mut buffer = [0; 256];
    let length = wire.recv(&mut buffer).unwrap();
    assert!(length > 16 && buffer[..4] == 0x1200_u32.to_be_bytes());
    u64::from_be_bytes(buffer[8..16].try_into().unwrap())
}

fn same_process(before: &Hello, after: &Hello, digest: Digest) {
    let expected = Hello {
        digest: digest.to_string(),
        ..before.clone()
    };
    assert_eq!(after, &expected);
}

#[test]
fn s4_a_program_is_replaced_and_its_sas_go_on() {
    in_sandbox("s4_a_program_is_replaced_and_its_sas_go_on", async || {
        let netns = Netns::new("a").unwrap();
        netns
            .run(|| espalier_testnet::address("lo", IpAddr::from([10, 244, 1, 2]), 32).unwrap())
            .unwrap();
        let wire = netns
            .run(|| UdpSocket::bind("127.0.0.2:0").unwrap())
            .unwrap();
        wire.set_read_timeout(Some(LIMIT)).unwrap();
        let mut plane = Plane::start(&netns).await;
        let mut route = Command::new("ip");
        route.args("route add 10.244.2.0/24 dev espalier.tun src 10.244.1.2".split(' '));
        netns.output(&mut route).unwrap();
        let client = plane.client.clone();
        client.put_peer(peer()).await.unwrap();
        let sa = outbound(wire.local_addr().unwrap().port());
        client.install_sa(sa.clone()).await.unwrap();
        client
            .switch_outbound(peer().id, Some(sa.spi))
            .await
            .unwrap();
        assert_eq!(sealed(&netns, &wire), 1);

        let mut agent = AgentEnd::bind(plane.dir.path()).unwrap();
        let before = client.hello().await.unwrap();
        for round in 0..4 {
            let digest = plane.put(&variant(round % 2));
            let after = client.upgrade(&digest.to_string()).await.unwrap();
            same_process(&before, &after, digest);
            assert_eq!(sealed(&netns, &wire), u64::from(round) + 2);
            // An IKE message passes both ways.
            let port = UdpSocket::bind_in(&netns);
            port.send_to(b"\0\0\0\0hello", "127.0.0.1:4500").unwrap();
            let (path, message) = agent.recv().await.unwrap();
            assert_eq!(message, b"hello");
            agent.send(&path, b"hello, too").await.unwrap();
            let mut buffer = [0; 64];
            let length = port.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"\0\0\0\0hello, too");
        }
        let dump = client.dump().await.unwrap();
        assert!(dump.sas[0].active && dump.sas[0].packets == 5, "{dump:?}");
        client.remove_sa(Direction::Out, sa.spi).await.unwrap();
        let again = client.install_sa(sa).await;
        assert!(matches!(again, Err(Error::SpiReused(_))), "{again:?}");

        // It ends as one that was never replaced.
        assert!(plane.process.terminate(LIMIT).unwrap());
        assert_eq!(plane.process.ended().unwrap().unwrap().code(), Some(0));
        let sockets = ["dataplane.sock", "dataplane-ike.sock"];
        assert!(
            sockets
                .iter()
                .all(|name| !plane.dir.path().join(name).exists())
        );
    });
}

trait BindIn {
    fn bind_in(netns: &Netns) -> Self;
}

impl BindIn for UdpSocket {
    fn bind_in(netns: &Netns) -> Self {
        let socket = netns.run(|| Self::bind("127.0.0.1:0").unwrap()).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }
}

#[test]
fn what_cannot_go_on_is_refused_and_the_old_one_does() {
    in_sandbox(
        "what_cannot_go_on_is_refused_and_the_old_one_does",
        async || {
            let netns = Netns::new("a").unwrap();
            let mut plane = Plane::start(&netns).await;
            plane.client.put_peer(peer()).await.unwrap();
            let bin = plane.dir.path().join("bin");

            let said = plane.refuses("5a").await;
            assert!(said.contains("64 digits"), "{said}");
            let said = plane.refuses(&"5a".repeat(32)).await;
            assert!(said.contains("opening") && said.contains("5a5a"), "{said}");

            let garbage = plane.put(b"no program").to_string();
            let said = plane.refuses(&garbage).await;
            assert!(said.contains("starting it"), "{said}");
            // Programs that know nothing of states: one says nothing, one says something else.
            for other in ["/bin/true", "/bin/echo"] {
                let other = plane.put(&fs::read(other).unwrap()).to_string();
                let said = plane.refuses(&other).await;
                assert!(said.contains("no espalier-dataplane"), "{said}");
            }
            let ends = plane.put(&fs::read("/bin/false").unwrap()).to_string();
            let said = plane.refuses(&ends).await;
            assert!(said.contains("exit status: 1"), "{said}");

            let writable = plane.put(&variant(7));
            let path = binary::path_of(&bin, &writable);
            fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
            let said = plane.refuses(&writable.to_string()).await;
            assert!(said.contains("777"), "{said}");

            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            plane.client.upgrade(&writable.to_string()).await.unwrap();
            assert_eq!(plane.client.dump().await.unwrap().peers.len(), 1);
            // What it is already needs no file.
            fs::remove_file(&path).unwrap();
            plane.client.upgrade(&writable.to_string()).await.unwrap();
        },
    );
}

/// Of a container without the capability.
#[test]
fn without_cap_net_raw_everything_works_but_raw_esp() {
    in_sandbox(
        "without_cap_net_raw_everything_works_but_raw_esp",
        async || {
            let netns = Netns::new("a").unwrap();
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set", "-net_raw", "--inh-caps", "-net_raw"]);
            command.arg(env!("CARGO_BIN_EXE_espalier-dataplane"));
            let plane = Plane::start_by(&netns, command, "1").await;
            let client = &plane.client;
            let mut lacking = client.hello().await.unwrap().can;
            assert!(lacking.udp && !lacking.raw_untried);
            let note = lacking.notes.pop().unwrap();
            assert!(note.contains("CAP_NET_RAW"), "{note}");
            client.put_peer(peer()).await.unwrap();
            let raw = Sa {
                encapsulation: Encapsulation::Raw,
                ..outbound(4500)
            };
            let refused = client.install_sa(raw).await.unwrap_err().to_string();
            for said in ["encapsulation", "CAP_NET_RAW", "udpEncapsulation: Auto"] {
                assert!(refused.contains(said), "{refused}");
            }
            client.install_sa(outbound(4500)).await.unwrap();
            // The next program has as little.
            let digest = plane.put(&variant(3));
            client.upgrade(&digest.to_string()).await.unwrap();
            assert!(!client.hello().await.unwrap().can.raw_untried);
            let whole = Plane::start(&Netns::new("b").unwrap()).await;
            let can = whole.client.hello().await.unwrap().can;
            assert!(can.raw_untried && !can.raw, "nothing is tried here");
        },
    );
}

/// A program that was executed and cannot go on ends: packets are dropped, none is sent in clear.
#[test]
fn a_state_that_does_not_fit_ends_the_program_with_the_reason() {
    in_sandbox(
        "a_state_that_does_not_fit_ends_the_program_with_the_reason",
        async || {
            let dir = tempfile::tempdir().unwrap();
            for flag in ["--resume", "--resume-check"] {
                let mut command = Command::new(env!("CARGO_BIN_EXE_espalier-dataplane"));
                command.arg(flag).arg("--run-dir").arg(dir.path());
                let ended = command.stdin(Stdio::null()).output().unwrap();
                let said = String::from_utf8_lossy(&ended.stderr);
                assert_eq!(ended.status.code(), Some(1), "{said}");
                assert!(
                    said.contains("standard input is not what a data plane leaves"),
                    "{said}"
                );

                let memfd = espalier_handover::memory::write(b"ESPALIER no state").unwrap();
                let stdin = espalier_handover::carry::for_child(std::os::fd::AsFd::as_fd(&memfd));
                let mut command = Command::new(env!("CARGO_BIN_EXE_espalier-dataplane"));
                command.arg(flag).arg("--run-dir").arg(dir.path());
                let ended = command.stdin(stdin.unwrap()).output().unwrap();
                let said = String::from_utf8_lossy(&ended.stderr);
                assert_eq!(ended.status.code(), Some(1), "{said}");
                assert!(said.contains("expected 52 bytes of header"), "{said}");
            }
            assert!(leftovers(dir.path()).is_empty());
        },
    );
}

fn leftovers(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}
