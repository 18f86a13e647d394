//! A node: a network namespace, a mount namespace with folders of its own, containerd, kubelet and kube-proxy.
//!
//! ```text
//!  Machine ── spawns ──▶ hold: unshare(mount) ─ overlays on /etc /opt /var, own /run ─ containerd ─ shims ─ pods
//!     └── nsenter into hold's mounts ──▶ kubelet, kube-proxy, commands of the cases
//! ```

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use espalier_e2e::{cluster_cidr, until_within};
use espalier_testnet::{Netns, Process};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::control::{self, flag, logged};
use crate::images;
use crate::pki::Pki;
use crate::programs::{Programs, ProxyMode};

const CONTAINERD_LIMIT: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// Of Debian's containernetworking-plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// Printed by [`hold`] when the mounts are there.
const READY: &str = "ready";
/// What kubelet writes when it finds other values; it finds these, so that the machine's own stay as they are.
const KERNEL: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// What a node is made of.
pub(crate) struct Plan<'a> {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) netns: Netns,
    /// Its folders; on a file system that overlays can be on.
    pub(crate) root: PathBuf,
    pub(crate) logs: PathBuf,
    pub(crate) programs: Programs,
    pub(crate) proxy_mode: ProxyMode,
    /// Control group of its pods.
    pub(crate) cgroup: String,
    pub(crate) pki: &'a Pki,
}

/// A node.
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    logs: PathBuf,
    programs: Programs,
    proxy_mode: ProxyMode,
    kubelet_config: PathBuf,
    kubeconfig: PathBuf,
    proxy_kubeconfig: PathBuf,
    address: Ipv4Addr,
    holder: Process,
    kubelet: Option<Process>,
    proxy: Option<Process>,
}

impl Machine {
    /// Mounts and containerd; no kubelet yet.
    pub(crate) fn start(plan: Plan<'_>) -> Result<Self> {
        let Plan { name, root, .. } = &plan;
        for folder in [
            "etc",
            "opt",
            "var",
            "containerd",
            "kubelet",
            "run",
            "kernel",
        ] {
            fs::create_dir_all(root.join(folder)).context("making the node's folders")?;
        }
        reference_plugins(&root.join("opt/cni/bin"))?;
        let user = format!("system:node:{name}");
        plan.pki.client(&user, &user, Some("system:nodes"))?;
        let server = format!("kubelet-{name}");
        plan.pki.server(&server, &[name], &[plan.address.into()])?;
        let kubelet_config = root.join("kubelet.yaml");
        fs::write(&kubelet_config, plan.kubelet_config(&server))?;
        fs::write(root.join("containerd.toml"), containerd_config())?;
        let holder = hold_mounts(&plan)?;
        let machine = Self {
            kubeconfig: plan.pki.kubeconfig(&user, &control::server())?,
            proxy_kubeconfig: plan.pki.file("kube-proxy.kubeconfig"),
            kubelet_config,
            name: plan.name,
            netns: plan.netns,
            logs: plan.logs,
            programs: plan.programs,
            proxy_mode: plan.proxy_mode,
            address: plan.address,
            holder,
            kubelet: None,
            proxy: None,
        };
        machine.await_containerd()?;
        Ok(machine)
    }

    /// kubelet and kube-proxy; the node registers itself.
    pub(crate) fn join(&mut self) -> Result<()> {
        let mut kubelet = self.command(&shown(&self.programs.path("kubelet")));
        kubelet.arg("--v=2");
        if self.programs.names_its_runtime() {
            kubelet.arg("--container-runtime=remote");
        }
        let endpoint = format!("unix://{CONTAINERD_SOCKET}");
        flag(&mut kubelet, "container-runtime-endpoint", &endpoint);
        flag(&mut kubelet, "kubeconfig", &shown(&self.kubeconfig));
        flag(&mut kubelet, "config", &shown(&self.kubelet_config));
        flag(&mut kubelet, "hostname-override", &self.name);
        flag(&mut kubelet, "node-ip", &self.address.to_string());
        self.kubelet = Some(self.spawn(kubelet, "kubelet")?);
        if self.proxy.is_none() {
            self.start_proxy()?;
        }
        Ok(())
    }

    /// Ends kubelet; pods run on.
    pub(crate) fn leave(&mut self) -> Result<()> {
        if let Some(mut kubelet) = self.kubelet.take() {
            kubelet.terminate(PATIENCE)?;
        }
        Ok(())
    }

    /// Runs a command on the node to its end.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::null());
        let output = self.netns.run(|| command.output())?;
        output.with_context(|| format!("running {program} on {}", self.name))
    }

    /// Imports an archive into containerd.
    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        let archive = shown(archive);
        let output = self.run("ctr", &["-n", "k8s.io", "images", "import", &archive])?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("{}: importing {archive}: {said}", self.name);
        }
        Ok(())
    }

    fn start_proxy(&mut self) -> Result<()> {
        let mut proxy = self.command(&shown(&self.programs.path("kube-proxy")));
        // The table of connections is the machine's: its size is not ours to change.
        proxy.args([
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
            "--oom-score-adj=0",
        ]);
        flag(&mut proxy, "proxy-mode", self.proxy_mode.name());
        flag(&mut proxy, "cluster-cidr", &cluster_cidr().to_string());
        flag(&mut proxy, "hostname-override", &self.name);
        flag(&mut proxy, "kubeconfig", &shown(&self.proxy_kubeconfig));
        self.proxy = Some(self.spawn(proxy, "kube-proxy")?);
        Ok(())
    }

    fn await_containerd(&self) -> Result<()> {
        until_within(CONTAINERD_LIMIT, "containerd to answer", || {
            let asked = self.run("ctr", &["version"])?;
            let said = || String::from_utf8_lossy(&asked.stderr).into_owned();
            Ok(asked.status.success().then_some(()).ok_or_else(said))
        })
    }

    /// In the node's mounts; the network namespace is to be entered by who starts it.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command.args(["--", program]);
        command
    }

    fn spawn(&self, mut command: Command, what: &str) -> Result<Process> {
        logged(&mut command, &self.logs, &format!("{}-{what}", self.name))?;
        self.netns.spawn(&mut command)
    }
}

impl Plan<'_> {
    fn kubelet_config(&self, certificate: &str) -> String {
        let of = |name: &str| shown(&self.pki.file(name));
        let (ca, cgroup) = (of("ca.crt"), &self.cgroup);
        let (crt, key) = (
            of(&format!("{certificate}.crt")),
            of(&format!("{certificate}.key")),
        );
        let refusal = if self.programs.may_refuse_cgroup_v1() {
            "failCgroupV1: false\n"
        } else {
            ""
        };
        format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\n\
             kind: KubeletConfiguration\n\
             authentication:\n  anonymous: {{enabled: false}}\n  webhook: {{enabled: true}}\n  x509: {{clientCAFile: {ca}}}\n\
             authorization: {{mode: Webhook}}\n\
             tlsCertFile: {crt}\n\
             tlsPrivateKeyFile: {key}\n\
             cgroupDriver: cgroupfs\n\
             cgroupRoot: /{cgroup}\n\
             failSwapOn: false\n\
             oomScoreAdj: 0\n\
             enforceNodeAllocatable: []\n\
             imageGCHighThresholdPercent: 100\n\
             evictionHard: {{}}\n\
             registerNode: true\n\
             resolvConf: \"\"\n\
             volumePluginDir: /var/lib/kubelet/volume-plugins\n\
             {refusal}"
        )
    }
}

/// As on any node: the runtime calls `loopback` itself, and `portmap` and `bandwidth` are there to be chained.
fn reference_plugins(to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let entries = fs::read_dir(PLUGINS).with_context(|| format!("reading {PLUGINS}"))?;
    for entry in entries {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// No CAP_SYS_RESOURCE where this runs in a container: what needs it is off.
fn containerd_config() -> String {
    let pause = images::PAUSE;
    format!(
        "version = 2\n\
         disabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \
         \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.internal.v1.opt\", \"io.containerd.internal.v1.tracing\"]\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = \"{pause}\"\n\
         restrict_oom_score_adj = true\n\
         disable_apparmor = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"/opt/cni/bin\"\n\
         conf_dir = \"/etc/cni/net.d\"\n"
    )
}

fn hold_mounts(plan: &Plan<'_>) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("node").arg(&plan.root);
    logged(
        &mut command,
        &plan.logs,
        &format!("{}-containerd", plan.name),
    )?;
    command.stdout(Stdio::piped());
    let mut holder = plan.netns.spawn(&mut command)?;
    let mut said = String::new();
    if let Some(pipe) = holder.child().stdout.take() {
        BufReader::new(pipe).read_line(&mut said)?;
    }
    if said.trim() != READY {
        bail!("the mounts of {} failed; see its log", plan.name);
    }
    Ok(holder)
}

/// Arguments of the process that holds a node's mounts.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Holder {
    root: PathBuf,
}

/// Makes the mounts, starts containerd, and is the parent of what containerd leaves behind.
pub(crate) fn hold(holder: &Holder) -> Result<ExitCode> {
    mounts(&holder.root)?;
    nix::sys::prctl::set_child_subreaper(true).context("becoming the subreaper")?;
    let mut containerd = Command::new("containerd");
    containerd
        .arg("--config")
        .arg(holder.root.join("containerd.toml"));
    containerd.stdout(Stdio::null()).process_group(0).spawn()?;
    println!("{READY}");
    loop {
        if nix::sys::wait::wait().is_err() {
            bail!("containerd has ended");
        }
    }
}

fn mounts(root: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
    propagate(MsFlags::MS_PRIVATE)?;
    for folder in ["etc", "opt", "var"] {
        overlay(root, folder)?;
    }
    // The machine's own network plugins (podman's) are none of this node's.
    empty(Path::new("/etc/cni/net.d"))?;
    bind(&root.join("containerd"), Path::new("/var/lib/containerd"))?;
    bind(&root.join("kubelet"), Path::new("/var/lib/kubelet"))?;
    for (key, value) in KERNEL {
        let file = root.join("kernel").join(key.replace('/', "."));
        fs::write(&file, format!("{value}\n"))?;
        let real = Path::new("/proc/sys").join(key);
        if real.exists() {
            bind(&file, &real)?;
        }
    }
    fs::create_dir_all(root.join("run/netns"))?;
    bind(&root.join("run"), Path::new("/run"))?;
    propagate(MsFlags::MS_SHARED)
}

fn propagate(how: MsFlags) -> Result<()> {
    let none: Option<&Path> = None;
    mount(none, "/", none, MsFlags::MS_REC | how, none).context("propagation of mounts")
}

/// The machine's folder to read, changes to a folder of the node's own.
fn overlay(root: &Path, folder: &str) -> Result<()> {
    let (upper, work) = (root.join(folder), root.join(format!("{folder}.work")));
    fs::create_dir_all(&work)?;
    let options = format!(
        "lowerdir=/{folder},upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    mount(
        Some("overlay"),
        &Path::new("/").join(folder),
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .with_context(|| format!("an overlay on /{folder}"))
}

/// Removes what is in a folder, if there is one.
fn empty(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
    }
    let none: Option<&Path> = None;
    mount(Some(from), to, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("binding {} to {}", from.display(), to.display()))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
