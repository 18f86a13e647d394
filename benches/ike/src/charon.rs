//! A round of strongSwan's charon against itself, by its load-tester plugin, with the settings that suit it best.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use espalier_testnet::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ours::Cost;
use espalier_bench_ike::measure::{Usage, quiet};
use espalier_bench_ike::pki::{CA_CERT, CA_KEY};
use espalier_bench_ike::plan::{self, Case};
use espalier_bench_ike::wire::Wire;

/// Where the build puts PID files: each daemon sees one of its own there.
const PID_FOLDER: &str = "/run/charon";
/// A round takes tens of seconds, minutes on a busy machine; one that takes this long hangs.
const LIMIT: Duration = Duration::from_secs(600);
/// A daemon serves after this, or never.
const START: Duration = Duration::from_secs(20);

/// An installed strongSwan.
#[derive(Debug)]
pub(crate) struct Charon {
    prefix: PathBuf,
    folder: PathBuf,
    version: String,
}

/// One round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// Without the load-tester's own work of issuing certificates.
    pub(crate) initiator: Cost,
    /// The same.
    pub(crate) responder: Cost,
    /// From the start of the initiator to the last datagram.
    pub(crate) seconds: f64,
    /// What issuing certificates took per handshake: initiator, responder.
    pub(crate) issuing_ms: [f64; 2],
}

impl Charon {
    /// The one in `prefix`; its files go to `folder`.
    pub(crate) fn new(prefix: &Path, folder: &Path) -> Result<Self> {
        let charon = prefix.join("libexec/ipsec/charon");
        let output = Command::new(&charon).arg("--version").output();
        let output = output.with_context(|| {
            format!(
                "starting {}; build it with scripts/charon.sh",
                charon.display()
            )
        })?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // The package's version, which the folder is named after, says more than charon itself.
        let name = prefix.file_name().unwrap_or_default().to_string_lossy();
        let package = name
            .rsplit_once("strongswan-")
            .map_or("", |(_, version)| version);
        fs::create_dir_all(PID_FOLDER)?;
        Ok(Self {
            prefix: prefix.to_owned(),
            folder: folder.to_owned(),
            version: format!("{said} (Debian source package {package}, {})", openssl()),
        })
    }

    /// For the report.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Runs one round: the responder where our hub is, one initiating daemon where the spokes are.
    pub(crate) fn round(&self, wire: &Wire, case: Case, sas: usize) -> Result<Round> {
        let mut responder = self.start(&wire.hub, "responder", case, 0)?;
        self.serves(&mut responder)?;
        // Idle, with all plugins loaded: what the initiator, which begins at once, costs before the first handshake.
        let idle = Usage::of(responder.id())?;
        let begin = Instant::now();
        let initiator = self.start(&wire.spokes, "initiator", case, sas)?;
        let deadline = begin + LIMIT;
        let last = loop {
            let last = quiet(initiator.id(), deadline)?;
            let counts = (self.established(&initiator)?, self.established(&responder)?);
            if counts == (sas, sas) {
                break last;
            }
            ensure!(
                Instant::now() < deadline,
                "charon: {counts:?} of {sas} SAs came up"
            );
        };
        let usage = |daemon: &Daemon| Usage::of(daemon.id()).map(|usage| usage - idle);
        let (first, second) = (usage(&initiator)?, usage(&responder)?);
        let issuing = [initiator.stop()?, responder.stop()?];
        let cost = |usage: Usage, issuing: f64| {
            let cpu_ms = usage.cpu_ms - issuing;
            Cost::per(Usage { cpu_ms, ..usage }, sas)
        };
        Ok(Round {
            initiator: cost(first, issuing[0]),
            responder: cost(second, issuing[1]),
            seconds: last.duration_since(begin).as_secs_f64(),
            issuing_ms: issuing.map(|ms| ms / sas as f64),
        })
    }

    fn start(&self, netns: &Netns, name: &'static str, case: Case, sas: usize) -> Result<Daemon> {
        let settings = self.folder.join(format!("charon-{name}.conf"));
        fs::write(&settings, self.settings(name, case, sas))?;
        let errors = self.folder.join(format!("charon-{name}.err"));
        let mut command = Command::new("unshare");
        let script = format!("mount -t tmpfs none {PID_FOLDER} && exec \"$0\"");
        command.args(["--mount", "sh", "-c", &script]);
        command.arg(self.prefix.join("libexec/ipsec/charon"));
        command.env("STRONGSWAN_CONF", &settings);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&errors)?);
        let child = netns.run(|| command.spawn())?.context("starting charon")?;
        Ok(Daemon {
            child,
            name,
            errors,
        })
    }

    /// See conf/plugins/load-tester.opt and conf/options/charon.opt of strongSwan. The order of the plugins is that of preference:
    /// sha3 comes before openssl, whose SHAKE begins anew for each piece of output before OpenSSL 3.3 and makes ML-KEM slow.
    fn settings(&self, name: &str, case: Case, sas: usize) -> String {
        let folder = self.folder.display();
        let initiators = if sas == 0 { 0 } else { INITIATORS };
        format!(
            "charon {{
  threads = {THREADS}
  load = load-tester random nonce sha3 openssl ml hmac kdf gcm pem pkcs1 pkcs8 x509 pubkey constraints kernel-netlink \
             socket-default vici
  dos_protection = no
  cookie_threshold = 0
  cookie_threshold_ip = 0
  block_threshold = 0
  half_open_timeout = 600
  ikesa_table_size = 8192
  ikesa_table_segments = 16
  reuse_ikesa = no
  flush_auth_cfg = yes
  install_routes = no
  process_route = no
  retransmit_timeout = 8
  retransmit_tries = 6
  syslog {{
    daemon {{ default = -1 }}
    auth {{ default = -1 }}
  }}
  plugins {{
    vici {{ socket = unix://{folder}/charon-{name}.vici }}
    load-tester {{
      enable = yes
      fake_kernel = yes
      socket = unix://{folder}/charon-{name}.ldt
      initiators = {initiators}
      iterations = {iterations}
      initiator = {initiator}
      responder = {responder}
      version = 2
      proposal = {proposal}
      esp = aes256gcm16-esn
      mode = transport
      initiator_auth = {auth}
      responder_auth = {auth}
      preshared_key = a-pre-shared-key-of-at-least-256-bits-for-a-benchmark
      issuer_cert = {folder}/{CA_CERT}
      issuer_key = {folder}/{CA_KEY}
      digest = sha256
      child_rekey = 0
    }}
  }}
}}
",
            iterations = sas / INITIATORS,
            initiator = plan::spoke(0).ip(),
            responder = plan::HUB,
            proposal = case.strongswan_proposal(),
            auth = case.strongswan_auth(),
        )
    }

    fn serves(&self, daemon: &mut Daemon) -> Result<()> {
        let deadline = Instant::now() + START;
        while self.established(daemon).is_err() {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("charon ended with {status}: {}", daemon.said());
            }
            if Instant::now() > deadline {
                bail!("charon does not serve: {}", daemon.said());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Established IKE SAs.
    fn established(&self, daemon: &Daemon) -> Result<usize> {
        let socket = format!(
            "unix://{}/charon-{}.vici",
            self.folder.display(),
            daemon.name
        );
        let mut swanctl = Command::new(self.prefix.join("sbin/swanctl"));
        let output = swanctl.args(["--stats", "--uri", &socket]).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // IKE_SAs: 1000 total, 0 half-open
        let counts = said.lines().find_map(|line| line.strip_prefix("IKE_SAs: "));
        let mut counts = counts
            .into_iter()
            .flat_map(|line| line.split(", "))
            .map_while(|count| count.split(' ').next()?.parse::<usize>().ok());
        let (total, half) = (counts.next(), counts.next());
        let established = total.zip(half).map(|(total, half)| total - half);
        established.with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("asking charon for its SAs: {}", said.trim())
        })
    }
}

/// The library that does most of its cryptography.
fn openssl() -> String {
    let output = Command::new("pkg-config")
        .args(["--modversion", "libcrypto"])
        .output();
    let version = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!("OpenSSL {}", version.as_deref().unwrap_or("?"))
}

/// Worker threads: with 16, the default, a handshake costs up to a fifth more.
const THREADS: usize = 8;
/// Of these, threads that initiate.
const INITIATORS: usize = 2;

/// A running charon; ended when dropped.
struct Daemon {
    child: Child,
    name: &'static str,
    errors: PathBuf,
}

impl Daemon {
    /// `unshare` and the shell replace themselves by charon: the ID stays.
    fn id(&self) -> u32 {
        self.child.id()
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// Ends it; returns the CPU milliseconds that it spent on issuing certificates.
    fn stop(mut self) -> Result<f64> {
        kill(Pid::from_raw(i32::try_from(self.id())?), Signal::SIGTERM)?;
        let deadline = Instant::now() + LIMIT;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "charon does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
        let said = self.said();
        let nanoseconds = said.lines().find_map(|line| {
            let rest = line.strip_prefix("load-tester issued ")?;
            rest.split(' ').nth(3)?.parse::<f64>().ok()
        });
        let nanoseconds = nanoseconds.with_context(|| {
            format!("expected charon to say what issuing certificates cost, it said {said:?}")
        })?;
        Ok(nanoseconds / 1e6)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
