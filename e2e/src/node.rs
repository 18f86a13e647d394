//! One node: a network namespace, its folders, its two processes.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, anyhow, bail};
use espalier_dataplane_core::{Dataplane as _, Dump, Hello};
use espalier_handover::binary;
use espalier_rpc::DataplaneClient;
use espalier_rpc::agent::mesh_client::MeshClient;
use espalier_rpc::agent::{PeerStatus, StatusReply, StatusRequest};
use espalier_testnet::{Bridge, Netns, Process, address, route, sysctl};

use crate::bench::{Bench, until};
use crate::plan::{self, Family, Shape};

/// What proves who a node is.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// Certificate, private key, CA. The files need not be there.
    pub certificate: Option<[PathBuf; 3]>,
    /// Folder of PSKs.
    pub psk_dir: Option<PathBuf>,
}

impl Auth {
    /// A node's certificate of the bench's CA, whether it is issued already or not.
    #[must_use]
    pub fn certificate(bench: &Bench, node: &str) -> Self {
        let file = |name: &str| bench.pki.file(name);
        let files = [
            file(&format!("{node}.crt")),
            file(&format!("{node}.key")),
            file("ca.crt"),
        ];
        Self {
            certificate: Some(files),
            psk_dir: None,
        }
    }
}

/// Given to the data plane process as `--dataplane`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// The kernel's where it has ESP, else the other.
    Auto,
    /// XFRM.
    Kernel,
    /// TUN.
    Userspace,
}

impl Plane {
    /// As on the command line and in `StatusReply.dataplane`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// A node of the mesh.
#[derive(Debug)]
pub struct Node {
    /// Place in the plan, from 1.
    pub index: u8,
    /// Given to the agent as `--node`.
    pub name: String,
    /// UID of the Node object and in the certificate.
    pub uid: String,
    /// Its network namespace.
    pub netns: Netns,
    /// What the agent starts with.
    pub auth: Auth,
    /// Instead of manifests: the API server, and who the agent is there.
    pub kubeconfig: Option<PathBuf>,
    /// Given to the agent as `--rekey-seconds`.
    pub rekey_seconds: Option<u32>,
    /// `None`: what the process does without being told.
    pub plane: Option<Plane>,
    /// Given to the agent as `--dataplane-binary`.
    pub carried: Option<PathBuf>,
    /// Given to the data plane process as `--upgrade-dir`: where this node's agent puts what it carries.
    pub programs: PathBuf,
    bin: PathBuf,
    logs: PathBuf,
    dir: PathBuf,
    dataplane: Option<Process>,
    agent: Option<Process>,
}

impl Node {
    /// A host on the wire with a default route, and its folders; nothing of Espalier runs yet, nothing is issued.
    ///
    /// # Errors
    /// The kernel refuses, or the name is taken.
    pub fn create(bench: &Bench, bridge: &Bridge, index: u8, shape: Shape) -> Result<Self> {
        let name = plan::name(index);
        let netns = Netns::new(&name)?;
        bridge.connect(&netns, "eth0", &name)?;
        netns.run(|| host_network(index, shape))??;
        let dir = bench.root.join(&name);
        for folder in ["manifests", "state", "run"] {
            fs::create_dir_all(dir.join(folder)).context("making the node's folders")?;
        }
        Ok(Self {
            index,
            uid: plan::uid(index, 1),
            netns,
            auth: Auth::certificate(bench, &name),
            kubeconfig: None,
            rekey_seconds: None,
            plane: None,
            carried: None,
            programs: dir.join("state").join("bin"),
            bin: bench.bin.clone(),
            logs: bench.logs(),
            dir,
            dataplane: None,
            agent: None,
            name,
        })
    }

    /// Folder of the sockets.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// A folder of the node's own for other files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Puts a manifest into the node's folder, in one step.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_manifest(&self, file: &str, text: &str) -> Result<()> {
        replace(&self.dir.join("manifests").join(file), text)
    }

    /// Deletes one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove_manifest(&self, file: &str) -> Result<()> {
        let path = self.dir.join("manifests").join(file);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    /// Starts both processes.
    ///
    /// # Errors
    /// They cannot be started.
    pub fn start(&mut self) -> Result<()> {
        self.start_dataplane()?;
        self.start_agent()
    }

    /// Starts the data plane.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_dataplane(&mut self) -> Result<()> {
        let mut command = self.command("espalier-dataplane", "dataplane")?;
        command.arg("--run-dir").arg(self.run_dir());
        command.arg("--upgrade-dir").arg(&self.programs);
        if let Some(plane) = self.plane {
            command.args(["--dataplane", plane.word()]);
        }
        if self.plane == Some(Plane::Userspace) {
            one_datagram_a_frame(&self.netns)?;
        }
        self.dataplane = Some(self.netns.spawn(&mut command)?);
        Ok(())
    }

    /// Starts the agent with the node's name and credentials as they are now.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_agent(&mut self) -> Result<()> {
        let mut command = self.command("espalier-agent", "agent")?;
        command.args(["--node", &self.name]);
        match &self.kubeconfig {
            Some(file) => command.arg("--kubernetes").env("KUBECONFIG", file),
            None => command.arg("--manifests").arg(self.dir.join("manifests")),
        };
        command.arg("--state-dir").arg(self.dir.join("state"));
        command.arg("--run-dir").arg(self.run_dir());
        if let Some([cert, key, ca]) = &self.auth.certificate {
            command.arg("--cert").arg(cert).arg("--key").arg(key);
            command.arg("--ca").arg(ca);
        }
        if let Some(folder) = &self.auth.psk_dir {
            command.arg("--psk-dir").arg(folder);
        }
        if let Some(seconds) = self.rekey_seconds {
            command.arg("--rekey-seconds").arg(seconds.to_string());
        }
        if let Some(program) = &self.carried {
            command.arg("--dataplane-binary").arg(program);
        }
        // No test waits for the default.
        command.args(["--raw-retry-seconds", "5"]);
        self.agent = Some(self.netns.spawn(&mut command)?);
        Ok(())
    }

    /// Puts a program where the data plane takes programs from; its SHA-256.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn put_program(&self, program: &Path) -> Result<String> {
        Ok(binary::install(program, &self.programs)?.to_string())
    }

    /// Has the running data plane replaced by the program of this SHA-256, in place.
    ///
    /// # Errors
    /// It says why not.
    pub fn upgrade(&self, sha256: &str) -> Result<()> {
        let socket = self.run_dir().join("dataplane.sock");
        blocking(async {
            let client = DataplaneClient::new(socket)?;
            client.upgrade(sha256).await?;
            Ok(())
        })
    }

    /// Who the data plane says that it is.
    ///
    /// # Errors
    /// It does not answer.
    pub fn hello(&self) -> Result<Hello> {
        let socket = self.run_dir().join("dataplane.sock");
        blocking(async {
            let client = DataplaneClient::new(socket)?;
            Ok(client.hello().await?)
        })
    }

    /// SIGKILL to the agent, if it runs.
    ///
    /// # Errors
    /// The kernel does not know the process.
    pub fn kill_agent(&mut self) -> Result<()> {
        kill(self.agent.take())
    }

    /// SIGKILL to the data plane, if it runs.
    ///
    /// # Errors
    /// The kernel does not know the process.
    pub fn kill_dataplane(&mut self) -> Result<()> {
        kill(self.dataplane.take())
    }

    /// Waits until the data plane has ended by itself.
    ///
    /// # Errors
    /// It runs on.
    pub fn dataplane_ends(&mut self) -> Result<ExitStatus> {
        let process = self
            .dataplane
            .as_mut()
            .context("no data plane was started")?;
        let status = until("the data plane to end", || {
            Ok(process.ended()?.ok_or_else(|| "it still runs".to_owned()))
        })?;
        self.dataplane = None;
        Ok(status)
    }

    /// What the agent says; `Err` inside: it does not answer (yet).
    ///
    /// # Errors
    /// A process that should run has ended.
    pub fn status(&mut self) -> Result<Result<StatusReply, String>> {
        let processes = [
            ("agent", &mut self.agent),
            ("data plane", &mut self.dataplane),
        ];
        for (what, process) in processes {
            if let Some(process) = process
                && let Some(status) = process.ended()?
            {
                bail!("the {what} of {} has ended: {status}", self.name);
            }
        }
        let socket = self.run_dir().join("agent.sock");
        let asked = blocking(async {
            let mut client = MeshClient::new(espalier_rpc::connect_unix(socket)?);
            let reply = client.status(StatusRequest {}).await;
            reply.map_err(|status| anyhow!("{}", status.message()))
        });
        let name = &self.name;
        Ok(asked
            .map(|reply| reply.into_inner())
            .map_err(|error| format!("{name}: its agent does not answer: {error:#}")))
    }

    /// What the agent says of one peer.
    ///
    /// # Errors
    /// The agent does not answer or does not know the peer.
    pub fn peer(&mut self, name: &str) -> Result<PeerStatus> {
        let status = self.status()?.map_err(anyhow::Error::msg)?;
        let found = status.peers.into_iter().find(|peer| peer.name == name);
        found.with_context(|| format!("{} knows no peer {name}", self.name))
    }

    /// What the data plane holds.
    ///
    /// # Errors
    /// It does not answer.
    pub fn dump(&self) -> Result<Dump> {
        let socket = self.run_dir().join("dataplane.sock");
        blocking(async {
            let client = DataplaneClient::new(socket)?;
            Ok(client.dump().await?)
        })
    }

    /// The whole log of `agent` or `dataplane`.
    ///
    /// # Errors
    /// There is none.
    pub fn log(&self, of: &str) -> Result<String> {
        let path = self.log_path(of);
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn log_path(&self, of: &str) -> PathBuf {
        // The plan's name: a node with a forged one keeps its own logs.
        let name = plan::name(self.index);
        self.logs.join(format!("{name}-{of}.log"))
    }

    /// A program of ours with its log going to a file, at level DEBUG.
    fn command(&self, program: &str, log: &str) -> Result<Command> {
        let path = self.log_path(log);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("opening {}", path.display()))?;
        let mut command = Command::new(self.program(program));
        command
            .args(["--log", "debug"])
            .env("NO_COLOR", "1")
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }
}

/// Writes a file as an editor does it: under another name, then renamed.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("renaming to {}", path.display()))
}

/// What `eth0` sends is copied into frames of one datagram each, as on a real wire: what is counted there are packets. And without this
/// a large packet goes to the other node in pages that a capture holds, too; when that node's kernel opens ESP in UDP, it does so in
/// these pages, and the capture reads what was sealed on the wire (skb_unclone in xfrm4_udp_encap_rcv leaves fragments shared).
///
/// # Errors
/// ethtool is missing or refuses.
pub fn one_datagram_a_frame(netns: &Netns) -> Result<()> {
    const OFF: [&str; 4] = ["tx-udp-segmentation", "off", "sg", "off"];
    let mut ethtool = Command::new("ethtool");
    netns
        .output(ethtool.args(["-K", "eth0"]).args(OFF))
        .map(drop)
}

/// What the admin or the cloud does: an address, the default route, forwarding.
fn host_network(index: u8, shape: Shape) -> Result<()> {
    host_addresses(plan::underlay(index), plan::underlay_v6(index), shape)?;
    let (anywhere, gateway): (IpAddr, IpAddr) = match shape.underlay {
        Family::V4 => (Ipv4Addr::UNSPECIFIED.into(), plan::GATEWAY.into()),
        Family::V6 => (Ipv6Addr::UNSPECIFIED.into(), plan::GATEWAY_V6.into()),
    };
    route(anywhere, 0, gateway, "eth0")?;
    if shape.pods.contains(&Family::V6) {
        sysctl("ipv6/conf/all/forwarding", "1")?;
    }
    sysctl("ipv4/ip_forward", "1")
}

/// Addresses of a host on the wire, usable at once: duplicates are not looked for.
pub(crate) fn host_addresses(v4: Ipv4Addr, v6: Ipv6Addr, shape: Shape) -> Result<()> {
    if shape.underlay == Family::V4 {
        return address("eth0", v4.into(), plan::UNDERLAY_PREFIX);
    }
    sysctl("ipv6/conf/eth0/accept_dad", "0")?;
    sysctl("ipv6/conf/eth0/dad_transmits", "0")?;
    address("eth0", v6.into(), plan::UNDERLAY_PREFIX_V6)
}

fn kill(process: Option<Process>) -> Result<()> {
    process.map_or(Ok(()), |mut process| process.kill().map(drop))
}

fn blocking<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    runtime.block_on(work)
}
