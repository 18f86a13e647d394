//! The node that is measured: its folders and its two processes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use espalier_bench_ike::measure::Usage;
use espalier_bench_ike::pki::{CA_CERT, Ca};
use espalier_bench_ike::plan;
use espalier_rpc::agent::StatusReply;
use espalier_testnet::{Netns, Process};

use super::manifests::{self, Policy};
use super::{IDLE_MS, LOOK, ask, until};

/// The node; its processes end with it.
pub(crate) struct Hub {
    folder: PathBuf,
    agent: Process,
    dataplane: Process,
}

impl Hub {
    /// Starts both processes with this node's own manifest and a policy that encrypts nothing.
    pub(crate) fn start(netns: &Netns, bin: &Path, folder: &Path) -> Result<Self> {
        for name in ["manifests", "state", "run"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let [cert, key] = Ca::read(folder)?.issue_pem(plan::HUB_NAME)?;
        fs::write(folder.join("hub.crt"), cert)?;
        fs::write(folder.join("hub.key"), key)?;
        write(folder, "hub.yaml", &manifests::hub())?;
        write(folder, "policy.yaml", &manifests::policy(Policy::Disabled))?;
        let mut dataplane = program(bin, folder, "espalier-dataplane")?;
        let dataplane = netns.spawn(&mut dataplane)?;
        let mut agent = program(bin, folder, "espalier-agent")?;
        agent.args(["--node", plan::HUB_NAME]);
        for (flag, name) in [
            ("--manifests", "manifests"),
            ("--state-dir", "state"),
            ("--cert", "hub.crt"),
            ("--key", "hub.key"),
            ("--ca", CA_CERT),
        ] {
            agent.arg(flag).arg(folder.join(name));
        }
        Ok(Self {
            folder: folder.to_owned(),
            agent: netns.spawn(&mut agent)?,
            dataplane,
        })
    }

    /// Puts a manifest in place, in one step.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        write(&self.folder, name, text)
    }

    pub(crate) fn agent(&self) -> Result<Usage> {
        Usage::of(self.agent.id())
    }

    pub(crate) fn dataplane(&self) -> Result<Usage> {
        Usage::of(self.dataplane.id())
    }

    /// The agent's resident memory with the pages of its program.
    pub(crate) fn whole_rss_kb(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.agent.id());
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        value.with_context(|| format!("expected VmRSS in {path}"))
    }

    /// What the agent says; `Err`: it does not answer (yet).
    pub(crate) fn status(&self) -> Result<StatusReply, String> {
        ask(self.folder.join("run/agent.sock")).map_err(|error| format!("{error:#}"))
    }

    /// Fails when a process has ended; the text is the end of its log.
    pub(crate) fn alive(&mut self) -> Result<()> {
        for (name, process) in [
            ("espalier-agent", &mut self.agent),
            ("espalier-dataplane", &mut self.dataplane),
        ] {
            if let Some(status) = process.ended()? {
                let log = fs::read_to_string(log(&self.folder, name)).unwrap_or_default();
                let start = log.len().saturating_sub(2000);
                bail!(
                    "{name} has ended: {status}\n{}",
                    log.get(start..).unwrap_or_default()
                );
            }
        }
        Ok(())
    }

    /// Waits until the agent knows so many peers, and the kernel is as it should be.
    pub(crate) fn await_peers(&mut self, peers: usize) -> Result<()> {
        until(&format!("an agent with {peers} peers"), || {
            self.alive()?;
            Ok(self.status().and_then(|status| {
                let known = status.peers.len();
                if status.ready && status.mtu > 0 && known == peers {
                    return Ok(());
                }
                Err(format!("it has {known}, {:?}", status.problems))
            }))
        })
    }

    /// Waits until the agent does nothing any more.
    pub(crate) fn await_idle(&mut self) -> Result<()> {
        let mut seen = self.agent()?;
        until("an idle agent", || {
            std::thread::sleep(LOOK);
            self.alive()?;
            let now = self.agent()?;
            let used = (now - seen).cpu_ms;
            seen = now;
            let idle = used <= IDLE_MS;
            Ok(idle.then_some(()).ok_or(format!("{used} ms in one look")))
        })
    }
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let new = folder.join("manifests").join(format!(".{name}.new"));
    fs::write(&new, text).with_context(|| new.display().to_string())?;
    Ok(fs::rename(&new, folder.join("manifests").join(name))?)
}

fn log(folder: &Path, program: &str) -> PathBuf {
    folder.join(format!("{program}.log"))
}

fn program(bin: &Path, folder: &Path, name: &str) -> Result<Command> {
    let log = File::create(log(folder, name))?;
    let mut command = Command::new(bin.join(name));
    command
        .args(["--log", "warn", "--run-dir"])
        .arg(folder.join("run"))
        .env("NO_COLOR", "1")
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}
