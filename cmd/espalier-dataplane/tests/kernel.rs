//! The real binary with the kernel as data plane.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::Command;

use espalier_dataplane_core::{
    Dataplane as _, Direction, Error, Event, Hello, KERNEL, PeerId, Sa, Spi, USERSPACE,
};
use espalier_handover::binary;
use espalier_ike_io::relay::AgentEnd;
use espalier_rpc::DataplaneClient;
use espalier_secret::SecretBytes;
use espalier_testnet::{Netns, Process, VethEnd, address, veth};
use tokio_stream::StreamExt as _;

use common::{LIMIT, VXLAN, in_sandbox, peer};

const SERVICE: u16 = 7777;

fn spawn(netns: &Netns, run_dir: &Path, dataplane: &str) -> (Process, DataplaneClient) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier-dataplane"));
    command.args(["--dataplane", dataplane, "--run-dir"]);
    command.arg(run_dir);
    command.arg("--upgrade-dir").arg(run_dir.join("bin"));
    let process = netns.spawn(&mut command).unwrap();
    let client = DataplaneClient::new(run_dir.join("dataplane.sock")).unwrap();
    (process, client)
}

/// The first answer, or the reason why there is none though the process runs.
async fn answer(process: &mut Process, client: &DataplaneClient) -> Result<Hello, String> {
    let mut told = None;
    let answer = tokio::time::timeout(LIMIT, async {
        loop {
            match client.hello().await {
                Ok(hello) => return Ok(hello),
                Err(Error::Unreachable(why)) if why.contains("--dataplane kernel") => {
                    return Err(why);
                }
                Err(error) => told = Some(error),
            }
            assert!(process.ended().unwrap().is_none(), "it has ended: {told:?}");
            tokio::task::yield_now().await;
        }
    });
    answer.await.unwrap()
}

async fn kernel(netns: &Netns, run_dir: &Path) -> (Process, DataplaneClient, Hello) {
    let (mut process, client) = spawn(netns, run_dir, "kernel");
    let hello = answer(&mut process, &client).await.unwrap();
    assert_eq!((&*hello.kind, &hello.device), (KERNEL, &None));
    (process, client, hello)
}

fn host(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

/// With the kernel's window.
fn sa(n: u8, direction: Direction, spi: u32) -> Sa {
    Sa {
        replay_window: 4096,
        ..common::sa(n, direction, spi)
    }
}

/// What an agent does for one pair, its policies written by `ip`.
async fn encrypt(netns: &Netns, client: &DataplaneClient, own: u8, n: u8, spis: (u32, u32)) {
    let (inbound, outbound) = spis;
    let reqid = client.put_peer(peer(own, n, VXLAN)).await.unwrap().0;
    for sa in [
        sa(n, Direction::In, inbound),
        sa(n, Direction::Out, outbound),
    ] {
        client.install_sa(sa).await.unwrap();
    }
    let id = PeerId(format!("node-{n}"));
    client
        .switch_outbound(id, Some(Spi(outbound)))
        .await
        .unwrap();
    let (here, there) = (host(own), host(n));
    for policy in [
        format!(
            "dir out src {here} dst {there} proto udp dport {SERVICE} \
             tmpl src {here} dst {there} proto esp spi {outbound:#x} reqid {reqid} mode transport"
        ),
        format!(
            "dir in src {there} dst {here} proto udp dport {SERVICE} \
             tmpl src {there} dst {here} proto esp reqid {reqid} mode transport"
        ),
    ] {
        let words = policy.split_whitespace();
        netns
            .output(
                Command::new("ip")
                    .args(["xfrm", "policy", "add"])
                    .args(words),
            )
            .unwrap();
    }
}

fn two_nodes() -> (Netns, Netns) {
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    let end = |netns| VethEnd {
        netns,
        name: "eth0",
    };
    veth(end(&a), end(&b), 1500).unwrap();
    for (netns, n) in [(&a, 1), (&b, 2)] {
        netns.run(|| address("eth0", host(n), 24)).unwrap().unwrap();
    }
    (a, b)
}

fn service(netns: &Netns, n: u8) -> UdpSocket {
    let socket = netns
        .run(|| UdpSocket::bind((host(n), SERVICE)).unwrap())
        .unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn passes(from: &UdpSocket, to: &UdpSocket, message: &[u8]) {
    from.send_to(message, to.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 2048];
    let (length, _) = to.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], message);
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn two_processes_drive_the_kernel_and_may_restart_at_any_time() {
    in_sandbox(
        "two_processes_drive_the_kernel_and_may_restart_at_any_time",
        async || {
            let (a, b) = two_nodes();
            let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (mut process_a, client_a, before) = kernel(&a, dir_a.path()).await;
            let (_process_b, client_b, _) = kernel(&b, dir_b.path()).await;
            let mut events = client_b.events().await.unwrap();
            encrypt(&a, &client_a, 1, 2, (0x2100, 0x1200)).await;
            encrypt(&b, &client_b, 2, 1, (0x1200, 0x2100)).await;
            let (service_a, service_b) = (service(&a, 1), service(&b, 2));
            passes(&service_a, &service_b, b"there");
            passes(&service_b, &service_a, b"and back");
            let first = events.next().await.unwrap().unwrap();
            let expected = Event::FirstPacket {
                peer: PeerId("node-1".into()),
                spi: Spi(0x1200),
            };
            assert_eq!(first, expected);

            // Killed: ESP in UDP needs the port's holder, the states are the kernel's.
            process_a.kill().unwrap();
            let (_process_a, client_a, after) = kernel(&a, dir_a.path()).await;
            assert_eq!(before.instance, after.instance);
            assert_ne!(before.pid, after.pid);
            passes(&service_a, &service_b, b"the next process");
            passes(&service_b, &service_a, b"and back");
            let dump = client_a.dump().await.unwrap();
            assert_eq!((dump.peers.len(), dump.sas.len()), (1, 2));
            assert!(
                dump.sas.iter().all(|sa| sa.active && sa.packets == 2),
                "{dump:?}"
            );
            let reused = client_a.install_sa(Sa {
                key: SecretBytes::new(vec![9; 36]),
                ..sa(2, Direction::Out, 0x1200)
            });
            assert!(
                matches!(reused.await, Err(Error::SpiReused(Spi(0x1200)))),
                "S4"
            );
        },
    );
}

/// The port, with what the kernel takes out of it, and the relay go on in the next program; the states are the kernel's.
#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn a_program_is_replaced_in_place_and_nothing_waits_for_it() {
    in_sandbox(
        "a_program_is_replaced_in_place_and_nothing_waits_for_it",
        async || {
            let (a, b) = two_nodes();
            let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (_process_a, client_a, before) = kernel(&a, dir_a.path()).await;
            let (_process_b, client_b, _) = kernel(&b, dir_b.path()).await;
            encrypt(&a, &client_a, 1, 2, (0x2100, 0x1200)).await;
            encrypt(&b, &client_b, 2, 1, (0x1200, 0x2100)).await;
            let (service_a, service_b) = (service(&a, 1), service(&b, 2));
            passes(&service_a, &service_b, b"there");
            let mut program = std::fs::read(env!("CARGO_BIN_EXE_espalier-dataplane")).unwrap();
            program.push(0);
            let path = dir_a.path().join("program");
            std::fs::write(&path, program).unwrap();
            let digest = binary::install(&path, &dir_a.path().join("bin")).unwrap();
            let after = client_a.upgrade(&digest.to_string()).await.unwrap();
            assert_eq!(
                (before.instance, before.pid, digest.to_string()),
                (after.instance, after.pid, after.digest)
            );
            passes(&service_a, &service_b, b"there again");
            passes(&service_b, &service_a, b"and back");
            let dump = client_a.dump().await.unwrap();
            assert_eq!((dump.peers.len(), dump.sas.len()), (1, 2));
            assert!(dump.sas.iter().all(|sa| sa.active), "{dump:?}");
            ike_passes(dir_a.path(), dir_b.path()).await;
        },
    );
}

/// From the agent of node 1 to that of node 2.
async fn ike_passes(run_dir_a: &Path, run_dir_b: &Path) {
    let agent_a = AgentEnd::bind(run_dir_a).unwrap();
    let mut agent_b = AgentEnd::bind(run_dir_b).unwrap();
    let at = |n| std::net::SocketAddr::new(host(n), 4500);
    let path = espalier_ike::Path {
        local: at(1),
        remote: at(2),
    };
    agent_a.send(&path, b"IKE message").await.unwrap();
    let (found, message) = agent_b.recv().await.unwrap();
    assert_eq!(message, b"IKE message");
    assert_eq!((found.local, found.remote), (at(2), at(1)));
}

#[test]
#[ignore = "needs a kernel with ESP: make kernel-test"]
fn ike_passes_beside_esp_on_the_same_port() {
    in_sandbox("ike_passes_beside_esp_on_the_same_port", async || {
        let (a, b) = two_nodes();
        let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (_process_a, _, _) = kernel(&a, dir_a.path()).await;
        let (_process_b, _, _) = kernel(&b, dir_b.path()).await;
        ike_passes(dir_a.path(), dir_b.path()).await;
    });
}

/// On any kernel: where it has ESP, `auto` is the kernel; where it has not, the fallback and the refusal name the reason (S8).
#[test]
fn s8_what_was_chosen_and_why_is_told() {
    in_sandbox("s8_what_was_chosen_and_why_is_told", async || {
        let netns = Netns::new("a").unwrap();
        let problem = netns.run(espalier_xfrm::probe).unwrap().problem;
        let dir = tempfile::tempdir().unwrap();
        let (mut process, client) = spawn(&netns, dir.path(), "auto");
        let hello = answer(&mut process, &client).await.unwrap();
        match &problem {
            None => assert_eq!(hello.kind, KERNEL),
            Some(problem) => {
                assert_eq!(hello.kind, USERSPACE);
                let told = |note: &String| note.contains(problem);
                assert!(hello.can.notes.iter().any(told), "{:?}", hello.can.notes);
            }
        }
        assert!(process.terminate(LIMIT).unwrap());
        let (mut process, client) = spawn(&netns, dir.path(), "kernel");
        match (answer(&mut process, &client).await, problem) {
            (Ok(hello), None) => assert_eq!(hello.kind, KERNEL),
            (Err(why), Some(problem)) => {
                assert!(why.contains(&problem), "{why}");
                let dump = client.dump().await.unwrap_err().to_string();
                assert!(dump.contains(&problem), "{dump}");
            }
            other => panic!("{other:?}"),
        }
        assert!(process.terminate(LIMIT).unwrap());
        assert_eq!(process.ended().unwrap().unwrap().code(), Some(0));
    });
}
