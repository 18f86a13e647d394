//! Userspace WireGuards, which other benchmarks set Espalier beside: keys, and a daemon that runs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use espalier_testnet::{Netns, Process};

/// A TUN is there within this.
const START: Duration = Duration::from_secs(20);

/// A host's key pair, as `wg` writes it.
#[derive(Debug)]
pub struct Keys {
    /// Nobody's secret.
    pub private: String,
    /// Its public half.
    pub public: String,
}

impl Keys {
    /// Has `wg` make one.
    ///
    /// # Errors
    /// `wg` cannot be run.
    pub fn new(wg: &Path) -> Result<Self> {
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

/// Starts a daemon. Its control socket has the device's name, so both ends' devices have different ones.
///
/// # Errors
/// It does not start.
pub fn start(program: &Path, netns: &Netns, device: &str) -> Result<Process> {
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
    let process = netns.spawn(&mut command)?;
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
