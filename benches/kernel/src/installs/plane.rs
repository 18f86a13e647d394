//! The data plane process, and SAs for it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use espalier_dataplane_core::{
    Dataplane, Direction, Encapsulation, Overlay, Peer, PeerId, Sa, SaMode, Spi, Suite,
};
use espalier_peers::vtep_mac;
use espalier_rpc::DataplaneClient;
use espalier_secret::SecretBytes;
use espalier_testnet::{Netns, Process as Running};
use espalier_xfrm::{Config, KernelPlane, probe};
use tokio::runtime::Runtime;

const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// It serves after this, or never.
const START: Duration = Duration::from_secs(20);
/// The largest that the kernel has.
const WINDOW: u32 = 4096;

/// `espalier-dataplane` in a namespace; ended when dropped.
pub(crate) struct Process {
    client: DataplaneClient,
    runtime: Runtime,
    _running: Running,
}

impl Process {
    pub(crate) fn start(netns: &Netns, bin: &Path) -> Result<Self> {
        let folder = Path::new("/run/bench-plane");
        let mut command = Command::new(bin.join("espalier-dataplane"));
        command
            .args(["--dataplane", "kernel", "--log", "warn", "--run-dir"])
            .arg(folder)
            .stdout(Stdio::inherit());
        let running = netns.spawn(&mut command)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client =
            runtime.block_on(async { DataplaneClient::new(folder.join("dataplane.sock")) })?;
        let deadline = Instant::now() + START;
        loop {
            match runtime.block_on(client.hello()) {
                Ok(hello) => {
                    ensure!(hello.is_kernel(), "the data plane is {}", hello.kind);
                    break;
                }
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        Ok(Self {
            client,
            runtime,
            _running: running,
        })
    }

    /// Puts peers, then installs a pair of SAs for each; gives the seconds that the SAs took.
    pub(crate) fn install(&self, pairs: usize) -> Result<f64> {
        self.runtime.block_on(fill(&self.client, pairs))
    }
}

/// Without a process between; gives the seconds that the SAs took.
pub(crate) fn direct(netns: &Netns, pairs: usize) -> Result<f64> {
    let folder = Path::new("/run/bench-direct");
    std::fs::create_dir_all(folder)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    netns.run(|| {
        let plane = KernelPlane::open(Config {
            run_dir: folder.to_owned(),
            version: "bench".to_owned(),
            port: 4500,
            findings: probe(),
            report: Box::new(drop),
        })?;
        runtime.block_on(fill(&plane, pairs))
    })?
}

/// As an agent does it: one after the other, inbound first, sealing last.
pub(crate) async fn fill(plane: &impl Dataplane, pairs: usize) -> Result<f64> {
    let pairs = u32::try_from(pairs)?;
    for n in 1..=pairs {
        plane.put_peer(peer(n)).await?;
    }
    let began = Instant::now();
    for n in 1..=pairs {
        let (inbound, outbound) = (sa(n, Direction::In), sa(n, Direction::Out));
        let (id, spi) = (outbound.peer.clone(), outbound.spi);
        plane.install_sa(inbound).await?;
        plane.install_sa(outbound).await?;
        let switched = plane.switch_outbound(id, Some(spi)).await;
        switched.with_context(|| format!("pair {n}"))?;
    }
    Ok(began.elapsed().as_secs_f64())
}

fn peer(n: u32) -> Peer {
    let pods = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + n * 256);
    Peer {
        id: id(n),
        local: LOCAL.into(),
        remote: IpAddr::V4(Ipv4Addr::from(u32::from(LOCAL) + n)),
        pod_cidrs: vec![ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert(pods, 24))],
        own_cidrs: vec![ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert(
            Ipv4Addr::new(100, 64, 0, 0),
            24,
        ))],
        overlay: Overlay::Vxlan {
            vni: 4789,
            port: 4789,
        },
        local_mac: vtep_mac("node-0"),
        remote_mac: vtep_mac(&id(n).0),
    }
}

fn sa(n: u32, direction: Direction) -> Sa {
    let (first, salt) = match direction {
        Direction::In => (0x1000_0000, 1),
        Direction::Out => (0x2000_0000, 2),
    };
    let mut key = [salt; 36];
    key[..4].copy_from_slice(&n.to_be_bytes());
    Sa {
        peer: id(n),
        direction,
        spi: Spi(first + n),
        suite: Suite::Aes256Gcm16,
        mode: SaMode::Transport,
        key: SecretBytes::copy_from(&key),
        esn: true,
        replay_window: WINDOW,
        encapsulation: Encapsulation::Raw,
        hard_seconds: 86_400,
        cpu: None,
    }
}

fn id(n: u32) -> PeerId {
    PeerId(format!("node-{n}"))
}
