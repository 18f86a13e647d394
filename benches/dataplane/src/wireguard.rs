//! Userspace WireGuards that are set up with `wg`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use espalier_testnet::Process;

use crate::path::End;

const PORT: u16 = 51820;
/// A TUN is there within this.
const START: Duration = Duration::from_secs(20);

/// Two daemons of `program`, found in `folder`, with a tunnel.
pub(crate) fn connect(
    [a, b]: [&End; 2],
    mtu: u16,
    wg: Option<&Path>,
    folder: Option<&Path>,
    program: &str,
) -> Result<Vec<Process>> {
    let wg = wg.context("expected --wireguard FOLDER")?.join("wg");
    let folder = folder.with_context(|| format!("expected the folder of {program}"))?;
    let keys = [Keys::new(&wg)?, Keys::new(&wg)?];
    let mut daemons = Vec::new();
    for ((own, other), [mine, theirs]) in [
        ((a, b), [&keys[0], &keys[1]]),
        ((b, a), [&keys[1], &keys[0]]),
    ] {
        let device = format!("wg{}", own.n);
        daemons.push(start(&folder.join(program), own, &device)?);
        let private = format!("/run/{device}.key");
        fs::write(&private, &mine.private)?;
        let words = format!(
            "set {device} listen-port {PORT} private-key {private} peer {} endpoint {}:{PORT} allowed-ips 10.244.0.0/16",
            theirs.public, other.underlay
        );
        own.netns
            .output(Command::new(&wg).args(words.split_whitespace()))?;
        own.ip(&format!("link set {device} mtu {mtu} up"))?;
        own.ip(&format!(
            "route add {}/32 dev {device} src {}",
            other.pod, own.pod
        ))?;
    }
    Ok(daemons)
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
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("starting wg")?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "wg: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Its control socket has the device's name, so both ends' devices have different ones.
fn start(program: &Path, own: &End, device: &str) -> Result<Process> {
    let folder = Path::new("/run/wireguard");
    fs::create_dir_all(folder)?;
    let socket = folder.join(format!("{device}.sock"));
    let _gone = fs::remove_file(&socket);
    let mut command = Command::new(program);
    command
        .args(["--foreground", device])
        .env("WG_SUDO", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if program.ends_with("boringtun-cli") || program.ends_with("gotatun") {
        command.arg("--disable-drop-privileges");
    }
    let process = own.netns.spawn(&mut command)?;
    let deadline = Instant::now() + START;
    while !socket.exists() {
        ensure!(
            Instant::now() < deadline,
            "{} does not start",
            program.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(process)
}
