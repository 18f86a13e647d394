//! The control plane: etcd, API server, controller manager and scheduler, in a namespace of their own.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use espalier_e2e::{cluster_cidr, until_within};
use espalier_testnet::{Netns, Process};

use crate::pki::Pki;
use crate::programs::Programs;

/// Of the API server and everything else of the control plane.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// The first address of [`SERVICES`]: the Service `kubernetes`.
const FIRST_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const SERVICES: &str = "10.96.0.0/16";
const ISSUER: &str = "https://kubernetes.default.svc";
const ETCD: &str = "http://127.0.0.1:2379";
/// For the API server to be ready, on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);
/// For a process that was asked to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the API server is.
pub(crate) fn server() -> String {
    format!("https://{ADDRESS}:6443")
}

/// The processes; they end when it is dropped.
pub(crate) struct Control {
    netns: Netns,
    programs: Programs,
    logs: PathBuf,
    pki: Pki,
    etcd_data: PathBuf,
    api: Option<Process>,
    others: Vec<Process>,
}

impl Control {
    /// Certificates only; nothing runs.
    pub(crate) fn new(netns: Netns, programs: &Programs, root: &Path, logs: &Path) -> Result<Self> {
        let pki = Pki::new(&root.join("pki"))?;
        let addresses: [IpAddr; 3] = [
            ADDRESS.into(),
            FIRST_SERVICE.into(),
            Ipv4Addr::LOCALHOST.into(),
        ];
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
        ];
        pki.server("apiserver", &names, &addresses)?;
        pki.client("admin", "admin", Some("system:masters"))?;
        pki.client("apiserver-kubelet", "apiserver", Some("system:masters"))?;
        for part in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
            pki.client(part, &format!("system:{part}"), None)?;
            pki.kubeconfig(part, &server())?;
        }
        pki.kubeconfig("admin", &server())?;
        pki.service_accounts()?;
        Ok(Self {
            netns,
            programs: programs.clone(),
            logs: logs.to_owned(),
            pki,
            etcd_data: root.join("etcd"),
            api: None,
            others: Vec::new(),
        })
    }

    /// Starts all; returns when the API server is ready.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.start_etcd()?;
        self.start_api()?;
        self.start_managers()
    }

    /// Where the API server can be asked from.
    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The CA of the cluster.
    pub(crate) fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Ends the API server as its supervisor would; everything else goes on.
    pub(crate) fn stop_api(&mut self) -> Result<()> {
        if let Some(mut process) = self.api.take() {
            process.terminate(PATIENCE)?;
        }
        Ok(())
    }

    /// Starts the API server; returns when it is ready.
    pub(crate) fn start_api(&mut self) -> Result<()> {
        let mut command = self.kubernetes("kube-apiserver");
        command.args([
            "--allow-privileged",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--kubelet-preferred-address-types=InternalIP",
            "--secure-port=6443",
        ]);
        flag(&mut command, "etcd-servers", ETCD);
        flag(&mut command, "bind-address", "0.0.0.0");
        flag(&mut command, "advertise-address", &ADDRESS.to_string());
        flag(&mut command, "service-cluster-ip-range", SERVICES);
        flag(&mut command, "service-account-issuer", ISSUER);
        for (name, file) in [
            ("client-ca-file", "ca.crt"),
            ("tls-cert-file", "apiserver.crt"),
            ("tls-private-key-file", "apiserver.key"),
            ("kubelet-certificate-authority", "ca.crt"),
            ("kubelet-client-certificate", "apiserver-kubelet.crt"),
            ("kubelet-client-key", "apiserver-kubelet.key"),
            ("service-account-key-file", "sa.pub"),
            ("service-account-signing-key-file", "sa.key"),
        ] {
            flag(&mut command, name, &self.path(file));
        }
        self.api = Some(self.spawn(command, "kube-apiserver")?);
        self.await_ready()
    }

    fn await_ready(&mut self) -> Result<()> {
        until_within(LIMIT, "the API server to be ready", || {
            if let Some(api) = &mut self.api
                && let Some(status) = api.ended()?
            {
                anyhow::bail!("the API server has ended: {status}; see its log");
            }
            let asked = self
                .netns
                .output(&mut self.kubectl(&["get", "--raw=/readyz"]));
            Ok(asked.map(drop).map_err(|error| format!("{error:#}")))
        })
    }

    fn start_etcd(&mut self) -> Result<()> {
        let mut command = Command::new("etcd");
        command.args([
            "--unsafe-no-fsync",
            "--listen-peer-urls=http://127.0.0.1:2380",
        ]);
        flag(
            &mut command,
            "data-dir",
            &self.etcd_data.display().to_string(),
        );
        flag(&mut command, "listen-client-urls", ETCD);
        flag(&mut command, "advertise-client-urls", ETCD);
        let etcd = self.spawn(command, "etcd")?;
        self.others.push(etcd);
        Ok(())
    }

    fn start_managers(&mut self) -> Result<()> {
        let mut manager = self.kubernetes("kube-controller-manager");
        manager.args([
            "--allocate-node-cidrs",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--node-cidr-mask-size=24",
        ]);
        flag(&mut manager, "cluster-cidr", &cluster_cidr().to_string());
        flag(&mut manager, "service-cluster-ip-range", SERVICES);
        for (name, file) in [
            ("kubeconfig", "kube-controller-manager.kubeconfig"),
            ("root-ca-file", "ca.crt"),
            ("cluster-signing-cert-file", "ca.crt"),
            ("cluster-signing-key-file", "ca.key"),
            ("service-account-private-key-file", "sa.key"),
        ] {
            flag(&mut manager, name, &self.path(file));
        }
        let mut scheduler = self.kubernetes("kube-scheduler");
        scheduler.arg("--leader-elect=false");
        let config = self.path("kube-scheduler.kubeconfig");
        flag(&mut scheduler, "kubeconfig", &config);
        let manager = self.spawn(manager, "kube-controller-manager")?;
        let scheduler = self.spawn(scheduler, "kube-scheduler")?;
        self.others.extend([manager, scheduler]);
        Ok(())
    }

    /// kubectl as the cluster's admin, to be run in [`Self::netns`].
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.path("kubectl"));
        command.env("KUBECONFIG", self.path("admin.kubeconfig"));
        command.args(arguments);
        command
    }

    fn kubernetes(&self, program: &str) -> Command {
        Command::new(self.programs.path(program))
    }

    fn path(&self, file: &str) -> String {
        self.pki.file(file).display().to_string()
    }

    fn spawn(&self, mut command: Command, name: &str) -> Result<Process> {
        logged(&mut command, &self.logs, name)?;
        self.netns.spawn(&mut command)
    }
}

/// Lets the output go to `NAME.log`.
pub(crate) fn logged(command: &mut Command, logs: &Path, name: &str) -> Result<()> {
    fs::create_dir_all(logs).context("making the folder of logs")?;
    let path = logs.join(format!("{name}.log"));
    let log = File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("opening {}", path.display()))?;
    command.stdout(log.try_clone()?).stderr(log);
    Ok(())
}

/// `--NAME=VALUE`.
pub(crate) fn flag(command: &mut Command, name: &str, value: &str) {
    command.arg(format!("--{name}={value}"));
}
