//! Two data plane processes, driven over their sockets as an agent does it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use espalier_dataplane_core::{
    Dataplane as _, Direction, Encapsulation, Overlay, Peer, PeerId, Sa, SaMode, Spi, Suite,
    USERSPACE,
};
use espalier_rpc::DataplaneClient;
use espalier_secret::SecretBytes;
use espalier_testnet::Process;

use crate::path::End;

const TUN: &str = "espalier.tun";
const PORT: u16 = 4500;
/// What is around ESP, if it is not raw.
pub(crate) const IN_UDP: Encapsulation = Encapsulation::Udp {
    local_port: PORT,
    remote_port: PORT,
};
/// It serves after this, or never.
const START: Duration = Duration::from_secs(20);

/// Starts both with one queue, and connects them.
pub(crate) fn connect(
    [a, b]: [&End; 2],
    mtu: u16,
    form: (Overlay, Encapsulation),
) -> Result<Vec<Process>> {
    let daemons = vec![start(a, mtu, 1)?, start(b, mtu, 1)?];
    pair([a, b], form)?;
    Ok(daemons)
}

/// Installs SAs in both directions between two that run, and routes their pods to the device.
pub(crate) fn pair(
    [a, b]: [&End; 2],
    (overlay, encapsulation): (Overlay, Encapsulation),
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for (own, other) in [(a, b), (b, a)] {
        runtime.block_on(async {
            let client = DataplaneClient::new(folder(own).join("dataplane.sock"))?;
            ready(&client).await?;
            client.put_peer(peer(own, other, overlay)).await?;
            let sa = |direction| Sa {
                encapsulation,
                ..sa(own, other, direction)
            };
            client.install_sa(sa(Direction::In)).await?;
            let outbound = sa(Direction::Out);
            let (id, spi) = (outbound.peer.clone(), outbound.spi);
            client.install_sa(outbound).await?;
            client.switch_outbound(id, Some(spi)).await?;
            anyhow::Ok(())
        })?;
        own.ip(&format!(
            "route add {}/32 dev {TUN} src {}",
            other.pod, own.pod
        ))?;
    }
    Ok(())
}

fn folder(own: &End) -> PathBuf {
    PathBuf::from(format!("/run/bench-{}", own.n))
}

/// Starts one.
pub(crate) fn start(own: &End, mtu: u16, queues: usize) -> Result<Process> {
    let program = std::env::current_exe()?;
    let bin = program.parent().context("this program's folder")?;
    let mut command = Command::new(bin.join("espalier-dataplane"));
    command
        .args(["--dataplane", "userspace", "--log", "warn"])
        .args(["--mtu", &mtu.to_string(), "--queues", &queues.to_string()])
        .arg("--run-dir")
        .arg(folder(own))
        .stdout(Stdio::inherit());
    own.netns.spawn(&mut command)
}

async fn ready(client: &DataplaneClient) -> Result<()> {
    let deadline = Instant::now() + START;
    loop {
        match client.hello().await {
            Ok(hello) => {
                ensure!(hello.kind == USERSPACE, "the data plane is {}", hello.kind);
                return Ok(());
            }
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn id(end: &End) -> PeerId {
    PeerId(format!("node-{}", end.n))
}

fn peer(own: &End, other: &End, overlay: Overlay) -> Peer {
    let cidr = |end: &End| ipnet_of(end.pod.into());
    Peer {
        id: id(other),
        local: own.underlay.into(),
        remote: other.underlay.into(),
        pod_cidrs: vec![cidr(other)],
        own_cidrs: vec![cidr(own)],
        overlay,
        local_mac: [2, 0, 0, 0, 0, own.n],
        remote_mac: [2, 0, 0, 0, 0, other.n],
    }
}

fn ipnet_of(address: IpAddr) -> ipnet::IpNet {
    address.into()
}

fn sa(own: &End, other: &End, direction: Direction) -> Sa {
    let (sender, receiver) = match direction {
        Direction::In => (other.n, own.n),
        Direction::Out => (own.n, other.n),
    };
    let mut key = [sender; 36];
    key[..8].fill(receiver);
    Sa {
        peer: id(other),
        direction,
        // Both ends' numbers: one node has SAs with several.
        spi: Spi(0x1000 + (u32::from(sender) << 8) + u32::from(receiver)),
        suite: Suite::Aes256Gcm16,
        mode: SaMode::Transport,
        key: SecretBytes::copy_from(&key),
        esn: true,
        replay_window: 8192,
        encapsulation: IN_UDP,
        hard_seconds: 0,
        cpu: None,
    }
}
