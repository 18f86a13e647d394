//! WireGuard around a pod's packet, by wireguard-go: what is on the wire is the protocol's, the same as the kernel's.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use espalier_testnet::{Netns, Process};

use super::count::{Place, Sizes, socket};
use super::espalier::{say, two_hosts};
use super::shape::Outer;

const PORT: u16 = 51820;
/// A TUN is there within this.
const START: Duration = Duration::from_secs(20);

/// Two hosts with a tunnel.
pub(crate) fn measure(folder: &Path) -> Result<Sizes> {
    let hosts = two_hosts()?;
    let wg = folder.join("wg");
    let keys = [Keys::new(&wg)?, Keys::new(&wg)?];
    let mut daemons = Vec::new();
    for (own, netns) in hosts.iter().enumerate() {
        daemons.push(start(folder, netns, own)?);
        let (peer, other) = (&keys[1 - own].public, 1 - own);
        let private = format!("/run/wg{own}.key");
        fs::write(&private, &keys[own].private)?;
        let words = format!(
            "set wg{own} listen-port {PORT} private-key {private} peer {peer} \
             endpoint 10.99.0.1{}:{PORT} allowed-ips 10.244.0.0/16",
            other + 1
        );
        say(netns, &wg, &words)?;
        for words in [
            format!("address add 10.244.0.{}/24 dev wg{own}", own + 1),
            format!("link set wg{own} mtu 1500 up"),
        ] {
            say(netns, Path::new("ip"), &words)?;
        }
    }
    let [left, right] = &hosts;
    let place = Place {
        sender: socket(left, "10.244.0.1")?,
        to: "10.244.0.2:7000".parse()?,
        netns: right,
        device: "eth0",
        leaving: false,
    };
    let sizes = place.measure(Outer::Udp(PORT));
    drop(daemons);
    sizes
}

/// A host's key pair.
struct Keys {
    private: String,
    public: String,
}

impl Keys {
    fn new(wg: &Path) -> Result<Self> {
        let private = said(Command::new(wg).arg("genkey"), "")?;
        let public = said(Command::new(wg).arg("pubkey"), &private)?;
        Ok(Self {
            public: public.trim().to_owned(),
            private,
        })
    }
}

fn said(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write as _;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "wg: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Its control socket has the device's name, so the hosts' devices have different ones.
fn start(folder: &Path, netns: &Netns, own: usize) -> Result<Process> {
    let device = format!("wg{own}");
    let mut command = Command::new(folder.join("wireguard-go"));
    command
        .args(["--foreground", &device])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let process = netns.spawn(&mut command)?;
    let socket = Path::new("/run/wireguard").join(format!("{device}.sock"));
    let deadline = Instant::now() + START;
    while !socket.exists() {
        ensure!(Instant::now() < deadline, "wireguard-go does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(process)
}
