//! The real binary in network namespaces, driven over its socket as an agent does.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use espalier_dataplane_core::{Dataplane as _, Direction, Error, Event, PeerId, Sa, Spi};
use espalier_rpc::DataplaneClient;
use espalier_secret::SecretBytes;
use espalier_testnet::{Netns, Process, VethEnd, address, veth};
use tokio_stream::StreamExt as _;

use common::{LIMIT, VXLAN, answers, in_sandbox, peer, sa};

fn command(run_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier-dataplane"));
    command.args(["--dataplane", "userspace", "--run-dir"]);
    command.arg(run_dir).stderr(Stdio::piped());
    command
}

/// Starts a data plane and waits for its first answer.
async fn start(netns: &Netns, run_dir: &Path) -> (Process, DataplaneClient) {
    let mut process = netns
        .spawn(command(run_dir).stderr(Stdio::inherit()))
        .unwrap();
    let client = DataplaneClient::new(run_dir.join("dataplane.sock")).unwrap();
    answers(&mut process, &client).await;
    (process, client)
}

/// Runs a data plane that cannot start; what it says.
fn refused(netns: &Netns, command: &mut Command) -> String {
    let mut process = netns.spawn(command).unwrap();
    let mut said = String::new();
    process
        .child()
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(process.child().wait().unwrap().code(), Some(1), "{said}");
    said.lines().last().unwrap_or_default().to_owned()
}

async fn encrypt(client: &DataplaneClient, n: u8, inbound: u32, outbound: u32) {
    client
        .install_sa(sa(n, Direction::In, inbound))
        .await
        .unwrap();
    client
        .install_sa(sa(n, Direction::Out, outbound))
        .await
        .unwrap();
    client
        .switch_outbound(PeerId(format!("node-{n}")), Some(Spi(outbound)))
        .await
        .unwrap();
}

/// A namespace's addresses: eth0 on the underlay, a pod's on lo.
fn configure(netns: &Netns, n: u8) {
    netns
        .run(|| {
            address("eth0", [192, 0, 2, n].into(), 24).unwrap();
            address("lo", [10, 244, n, 2].into(), 32).unwrap();
        })
        .unwrap();
}

fn route_over_tun(netns: &Netns, n: u8, other: u8) {
    let (pods, source) = (format!("10.244.{other}.0/24"), format!("10.244.{n}.2"));
    netns
        .output(Command::new("ip").args([
            "route",
            "add",
            &pods,
            "dev",
            "espalier.tun",
            "src",
            &source,
        ]))
        .unwrap();
}

fn pod(netns: &Netns, n: u8) -> UdpSocket {
    let address: IpAddr = [10, 244, n, 2].into();
    let socket = netns
        .run(|| UdpSocket::bind((address, 7)).unwrap())
        .unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn passes(from: &UdpSocket, to: &UdpSocket, message: &[u8]) {
    from.send_to(message, to.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 2048];
    let (len, source) = to.recv_from(&mut buffer).unwrap();
    assert_eq!(
        (&buffer[..len], source),
        (message, from.local_addr().unwrap())
    );
}

#[test]
fn two_processes_carry_pod_packets_and_outlive_their_agents() {
    in_sandbox(
        "two_processes_carry_pod_packets_and_outlive_their_agents",
        async || {
            let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
            veth(
                VethEnd {
                    netns: &a,
                    name: "eth0",
                },
                VethEnd {
                    netns: &b,
                    name: "eth0",
                },
                1500,
            )
            .unwrap();
            configure(&a, 1);
            configure(&b, 2);
            let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (_process_a, client_a) = start(&a, dir_a.path()).await;
            let (mut process_b, client_b) = start(&b, dir_b.path()).await;
            client_a.put_peer(peer(1, 2, VXLAN)).await.unwrap();
            client_b.put_peer(peer(2, 1, VXLAN)).await.unwrap();
            let mut events = client_b.events().await.unwrap();
            encrypt(&client_a, 2, 0x2100, 0x1200).await;
            encrypt(&client_b, 1, 0x1200, 0x2100).await;
            route_over_tun(&a, 1, 2);
            route_over_tun(&b, 2, 1);

            let (pod_a, pod_b) = (pod(&a, 1), pod(&b, 2));
            passes(&pod_a, &pod_b, b"there");
            passes(&pod_b, &pod_a, b"and back");
            let first = events.next().await.unwrap().unwrap();
            assert_eq!(
                first,
                Event::FirstPacket {
                    peer: PeerId("node-1".into()),
                    spi: Spi(0x1200)
                }
            );

            // The agents go; the data planes do not notice. An agent that comes back finds everything.
            drop((client_a, client_b, events));
            passes(&pod_a, &pod_b, b"without agents");
            let again = DataplaneClient::new(dir_a.path().join("dataplane.sock")).unwrap();
            let dump = again.dump().await.unwrap();
            assert_eq!(dump.peers.len(), 1);
            let outbound = dump
                .sas
                .iter()
                .find(|sa| sa.direction == Direction::Out)
                .unwrap();
            assert!(outbound.active && outbound.packets == 2, "{dump:?}");
            let reused = again
                .install_sa(Sa {
                    key: SecretBytes::new(vec![9; 36]),
                    ..sa(2, Direction::Out, 0x1200)
                })
                .await;
            assert!(
                matches!(reused, Err(Error::SpiReused(Spi(0x1200)))),
                "S4 over the wire: {reused:?}"
            );

            // Stopped, it leaves nothing: no socket, and no device for a pod packet to leave by.
            assert!(process_b.terminate(LIMIT).unwrap());
            assert_eq!(process_b.ended().unwrap().unwrap().code(), Some(0));
            let left: Vec<_> = fs::read_dir(dir_b.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(left, ["dataplane.lock"]);
            assert!(
                b.output(Command::new("ip").args(["link", "show", "espalier.tun"]))
                    .is_err()
            );
            assert!(pod_b.send_to(b"no way out", "10.244.1.2:7").is_err());
        },
    );
}

#[test]
fn sockets_are_private_and_those_of_a_killed_process_are_replaced() {
    in_sandbox(
        "sockets_are_private_and_those_of_a_killed_process_are_replaced",
        async || {
            let (netns, dir) = (Netns::new("a").unwrap(), tempfile::tempdir().unwrap());
            let (mut process, client) = start(&netns, dir.path()).await;
            let before = client.hello().await.unwrap();
            assert_eq!(
                (before.pid, before.device.as_deref()),
                (process.id(), Some("espalier.tun"))
            );
            for socket in ["dataplane.sock", "dataplane-ike.sock"] {
                let found = fs::metadata(dir.path().join(socket)).unwrap();
                assert!(
                    found.file_type().is_socket() && found.permissions().mode() & 0o777 == 0o600,
                    "{socket}"
                );
            }
            process.kill().unwrap();
            assert!(dir.path().join("dataplane.sock").exists(), "left by a kill");
            let (_process, client) = start(&netns, dir.path()).await;
            assert_ne!(client.hello().await.unwrap().instance, before.instance);
        },
    );
}

#[test]
fn what_hinders_the_start_is_named_with_a_remedy() {
    in_sandbox(
        "what_hinders_the_start_is_named_with_a_remedy",
        async || {
            let (netns, dir, other_dir) = (
                Netns::new("a").unwrap(),
                tempfile::tempdir().unwrap(),
                tempfile::tempdir().unwrap(),
            );
            let (_process, client) = start(&netns, dir.path()).await;

            let said = refused(&netns, &mut command(dir.path()));
            assert!(
                said.contains("another espalier-dataplane") && said.contains("--run-dir"),
                "{said}"
            );
            let said = refused(&netns, &mut command(other_dir.path()));
            assert!(
                said.contains("UDP port 4500") && said.contains("ss -ulpn"),
                "{said}"
            );
            let said = refused(
                &netns,
                command(other_dir.path()).args(["--listen-port", "4501"]),
            );
            assert!(
                said.contains("espalier.tun") && said.contains("--tun"),
                "{said}"
            );

            assert!(
                client.hello().await.is_ok(),
                "the running one is not disturbed"
            );
        },
    );
}

#[test]
fn a_deleted_device_ends_the_process_loudly() {
    in_sandbox("a_deleted_device_ends_the_process_loudly", async || {
        let (netns, dir) = (Netns::new("a").unwrap(), tempfile::tempdir().unwrap());
        let mut process = netns.spawn(&mut command(dir.path())).unwrap();
        let client = DataplaneClient::new(dir.path().join("dataplane.sock")).unwrap();
        while client.hello().await.is_err() {
            assert!(process.ended().unwrap().is_none());
        }
        netns
            .output(Command::new("ip").args(["link", "del", "espalier.tun"]))
            .unwrap();
        let mut said = String::new();
        process
            .child()
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(process.child().wait().unwrap().code(), Some(1), "{said}");
        assert!(
            said.contains("TUN device failed") && said.contains("was the device deleted"),
            "{said}"
        );
    });
}
