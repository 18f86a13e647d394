//! One node: a network namespace, its folders, its two processes.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use espalier_rpc::agent::StatusReply;
use espalier_testnet::{Bridge, Netns, Process, address, route, sysctl};

use super::plan;
use super::pod::Pod;
use crate::mesh;

/// Everything of ours at debug, without the frames of the sockets between our own processes.
const LOG: &str = "debug,h2=info,hyper=info,hyper_util=info,tonic=info,tower=info";

/// What all nodes share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    /// Folder of the Espalier binaries.
    pub(super) bin_dir: PathBuf,
    /// Folder of the nodes' folders; private, in memory.
    pub(super) root: PathBuf,
    /// Where the CA and all certificates are made.
    pub(super) pki: PathBuf,
    /// Folder of the logs; it stays.
    pub(super) logs: PathBuf,
}

/// A node of the mesh.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) index: u8,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) netns: Netns,
    pub(super) pods: Vec<Pod>,
    shared: Shared,
    dir: PathBuf,
    dataplane: Option<Process>,
    agent: Option<Process>,
}

impl Node {
    /// A host on the wire with a default route, and its folders; nothing of Espalier runs yet.
    pub(super) fn create(index: u8, bridge: &Bridge, shared: &Shared) -> Result<Self> {
        let name = plan::name(index);
        let netns = Netns::new(&name)?;
        bridge.connect(&netns, "eth0", &name)?;
        netns.run(|| host_network(index))??;
        let dir = shared.root.join(&name);
        for folder in ["manifests", "state", "run"] {
            fs::create_dir_all(dir.join(folder)).context("creating the node's folders")?;
        }
        let node = Self {
            index,
            uid: uid(),
            netns,
            pods: Vec::new(),
            shared: shared.clone(),
            dir,
            dataplane: None,
            agent: None,
            name,
        };
        node.issue_certificate()?;
        Ok(node)
    }

    pub(super) fn underlay(&self) -> IpAddr {
        IpAddr::V4(plan::underlay(self.index))
    }

    /// Folder of the sockets.
    pub(super) fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Folder of what outlives the agent.
    pub(super) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Path of one of Espalier's programs.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.shared.bin_dir.join(name)
    }

    pub(super) fn logs(&self) -> &Path {
        &self.shared.logs
    }

    /// Puts a manifest into the node's folder, or another text in its place.
    pub(super) fn write_manifest(&self, file: &str, text: &str) -> Result<()> {
        plan::write_in_one_step(&self.dir.join("manifests").join(file), text)
    }

    pub(super) fn remove_manifest(&self, file: &str) -> Result<()> {
        let path = self.dir.join("manifests").join(file);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    pub(super) fn start_dataplane(&mut self) -> Result<()> {
        let mut command = self.command("espalier-dataplane", "dataplane")?;
        command.arg("--run-dir").arg(self.run_dir());
        self.dataplane = Some(self.netns.spawn(&mut command)?);
        Ok(())
    }

    pub(super) fn start_agent(&mut self) -> Result<()> {
        let mut command = self.command("espalier-agent", "agent")?;
        let certificate = |suffix: &str| self.shared.pki.join(format!("{}.{suffix}", self.name));
        command.args(["--node", &self.name]);
        command.arg("--manifests").arg(self.dir.join("manifests"));
        command.arg("--state-dir").arg(self.state_dir());
        command.arg("--run-dir").arg(self.run_dir());
        command.arg("--cert").arg(certificate("crt"));
        command.arg("--key").arg(certificate("key"));
        command.arg("--ca").arg(self.shared.pki.join("ca.crt"));
        self.agent = Some(self.netns.spawn(&mut command)?);
        Ok(())
    }

    /// SIGKILL.
    pub(super) fn kill_agent(&mut self) -> Result<()> {
        self.agent
            .take()
            .map_or(Ok(()), |mut agent| agent.kill().map(drop))
    }

    /// SIGKILL.
    pub(super) fn kill_dataplane(&mut self) -> Result<()> {
        self.dataplane
            .take()
            .map_or(Ok(()), |mut dataplane| dataplane.kill().map(drop))
    }

    /// SIGTERM to both; the names of those that had to be killed.
    pub(super) fn stop(&mut self) -> Result<Vec<String>> {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
        let mut stubborn = Vec::new();
        for (what, process) in [
            ("agent", self.agent.take()),
            ("dataplane", self.dataplane.take()),
        ] {
            if let Some(mut process) = process
                && !process.terminate(PATIENCE)?
            {
                stubborn.push(format!("{} of {} ignored SIGTERM", what, self.name));
            }
        }
        Ok(stubborn)
    }

    /// What the agent says, or `None` while it does not answer.
    ///
    /// # Errors
    /// A process that should run has ended.
    pub(super) fn status(&mut self) -> Result<Option<StatusReply>> {
        let processes = [
            ("agent", &mut self.agent),
            ("dataplane", &mut self.dataplane),
        ];
        for (what, process) in processes {
            if let Some(process) = process
                && let Some(status) = process.ended()?
            {
                bail!("the {what} of {} has ended: {status}", self.name);
            }
        }
        Ok(mesh::status(&self.run_dir().join("agent.sock")).ok())
    }

    /// A program of ours with its log going to a file.
    fn command(&self, program: &str, log: &str) -> Result<Command> {
        let path = self.shared.logs.join(format!("{}-{log}.log", self.name));
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let mut command = Command::new(self.program(program));
        command
            .env("ESPALIER_LOG", LOG)
            .env("NO_COLOR", "1")
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }

    fn issue_certificate(&self) -> Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["pki", "issue", "--node", &self.name, "--uid", &self.uid]);
        command.arg("--dir").arg(&self.shared.pki);
        pki(&mut command)
    }
}

/// Makes the CA in `shared.pki`, by the same command as on a real host.
pub(super) fn make_ca(shared: &Shared) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["pki", "init", "--dir"]).arg(&shared.pki);
    pki(&mut command)
}

fn pki(command: &mut Command) -> Result<()> {
    let output = command.output().context("starting `espalier pki`")?;
    if !output.status.success() {
        bail!(
            "espalier pki: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// What the administrator or the cloud does: an address, the default route, forwarding.
fn host_network(index: u8) -> Result<()> {
    address(
        "eth0",
        IpAddr::V4(plan::underlay(index)),
        plan::UNDERLAY_PREFIX,
    )?;
    route(
        IpAddr::from([0, 0, 0, 0]),
        0,
        IpAddr::V4(plan::GATEWAY),
        "eth0",
    )?;
    sysctl("ipv4/ip_forward", "1")
}

/// A random UUID (RFC 9562 §5.4), as the API server would give.
fn uid() -> String {
    let bits = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let parts =
        [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or_default());
    parts.join("-")
}

#[cfg(test)]
mod tests {
    #[test]
    fn uids_are_version_4() {
        let uid = super::uid();
        let parts: Vec<_> = uid.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uid.as_bytes()[19]), "{uid}");
    }
}
