//! Our node: the agent and the data plane, started as on a host.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use espalier_bench_ike::measure::Usage;
use espalier_bench_ike::pki::{CA_CERT, Ca};
use espalier_bench_ike::plan;
use espalier_rpc::agent::ReadyRequest;
use espalier_rpc::agent::cni_client::CniClient;
use espalier_testnet::{Netns, Process, sysctl};

/// Room for 1,021 pods: addresses that were freed rest for a while.
const POD_CIDR: &str = "100.64.0.0/22";
const CLUSTER: &str = "100.64.0.0/10";
/// What takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// The node's processes; they end with this.
pub(crate) struct Node {
    socket: PathBuf,
    state: PathBuf,
    agent: Process,
    _dataplane: Process,
}

impl Node {
    /// Starts both and waits until pods are taken. Leases are on `disk`.
    pub(crate) fn start(
        netns: &Netns,
        bin: &Path,
        folder: &Path,
        disk: &Path,
        masquerade: bool,
    ) -> Result<Self> {
        let (run_dir, state) = (folder.join("run"), disk.join("espalier"));
        for name in [&folder.join("manifests"), &run_dir, &state] {
            fs::create_dir_all(name)?;
        }
        let [cert, key] = Ca::read(folder)?.issue_pem(plan::HUB_NAME)?;
        fs::write(folder.join("hub.crt"), cert)?;
        fs::write(folder.join("hub.key"), key)?;
        fs::write(folder.join("manifests/all.yaml"), manifests(masquerade))?;
        netns.run(|| sysctl("ipv4/ip_forward", "1"))??;
        let mut dataplane = program(bin, folder, "espalier-dataplane")?;
        let dataplane = netns.spawn(&mut dataplane)?;
        let mut agent = program(bin, folder, "espalier-agent")?;
        agent.args(["--node", plan::HUB_NAME, "--state-dir"]);
        agent.arg(&state);
        for (flag, name) in [
            ("--manifests", "manifests"),
            ("--cert", "hub.crt"),
            ("--key", "hub.key"),
            ("--ca", CA_CERT),
        ] {
            agent.arg(flag).arg(folder.join(name));
        }
        let node = Self {
            socket: run_dir.join("agent.sock"),
            state,
            agent: netns.spawn(&mut agent)?,
            _dataplane: dataplane,
        };
        node.await_ready(folder)?;
        Ok(node)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// CPU time of the agent since its start, in milliseconds, threads that have ended included.
    pub(crate) fn agent_cpu_ms(&self) -> Result<f64> {
        Ok(Usage::of(self.agent.id())?.cpu_ms)
    }

    /// The agent's anonymous memory in KB.
    pub(crate) fn agent_rss_kb(&self) -> Result<f64> {
        Ok(Usage::of(self.agent.id())?.rss_kb)
    }

    fn await_ready(&self, folder: &Path) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while let Err(error) = ready(&self.socket) {
            if Instant::now() > deadline {
                let log = fs::read_to_string(folder.join("espalier-agent.log"));
                bail!(
                    "the agent takes no pods: {error:#}\n{}",
                    log.unwrap_or_default()
                );
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

fn ready(socket: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    runtime.block_on(async {
        let mut client = CniClient::new(espalier_rpc::connect_unix(socket)?);
        let reply = client.ready(ReadyRequest {}).await;
        reply.map(drop).map_err(|e| anyhow!("{}", e.message()))
    })
}

fn manifests(masquerade: bool) -> String {
    let masquerade = if masquerade { "Always" } else { "Never" };
    let (name, address) = (plan::HUB_NAME, plan::HUB);
    format!(
        "apiVersion: espalier.dev/v1alpha1\n\
         kind: EncryptionPolicy\n\
         metadata:\n  name: default\n\
         spec:\n  clusterCIDRs: [{CLUSTER}]\n  mode: Disabled\n  masquerade: {masquerade}\n\
         ---\n\
         apiVersion: v1\n\
         kind: Node\n\
         metadata:\n  name: {name}\n\
         spec:\n  podCIDRs: [{POD_CIDR}]\n\
         status:\n  addresses:\n  - type: InternalIP\n    address: {address}\n"
    )
}

fn program(bin: &Path, folder: &Path, name: &str) -> Result<Command> {
    let log = File::create(folder.join(format!("{name}.log")))?;
    let mut command = Command::new(bin.join(name));
    command
        .args(["--log", "warn", "--run-dir"])
        .arg(folder.join("run"))
        .env("NO_COLOR", "1")
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}
