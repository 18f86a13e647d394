//! A Kubernetes control plane on the wire of a guest: etcd, API server and Espalier's controller. No kubelet: Nodes and the agents'
//! pods are objects that this makes, tokens come from the API server as a kubelet gets them.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use espalier_e2e::{Cluster, Mode, node_manifest, policy_manifest, underlay, until_within};
use espalier_testnet::{Netns, Process, address};
use serde_json::{Value, json};

use crate::ground::Ground;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";
const NAMESPACE: &str = "espalier-system";
/// Of the API server's token file; not a secret outside of the guest.
const ADMIN: &str = "admin-of-this-guest";
/// One slow processor starts a large program.
const LIMIT: Duration = Duration::from_secs(240);
const PATIENCE: Duration = Duration::from_secs(20);

/// The processes; they end when it is dropped.
pub(crate) struct Control {
    netns: Netns,
    programs: PathBuf,
    bin: PathBuf,
    root: PathBuf,
    logs: PathBuf,
    api: Option<Process>,
    controller: Option<Process>,
    etcd: Option<Process>,
}

impl Control {
    /// Starts everything and installs what the chart installs; the policy is in `mode`.
    pub(crate) fn start(ground: &Ground<'_>, mesh: &mut Cluster, mode: Mode) -> Result<Self> {
        let kubernetes = ground.plan.kubernetes.as_ref();
        let netns = Netns::new("control")?;
        mesh.bridge.connect(&netns, "eth0", "control")?;
        netns.run(|| address("eth0", ADDRESS.into(), 24))??;
        let mut control = Self {
            netns,
            programs: kubernetes
                .context("no Kubernetes: give --kubernetes, as scripts/kernel.sh does")?
                .clone(),
            bin: ground.bench.bin.clone(),
            root: ground.bench.root.join("control"),
            logs: ground.bench.logs(),
            api: None,
            controller: None,
            etcd: None,
        };
        fs::create_dir_all(&control.root)?;
        control.start_etcd()?;
        control.prepare_api()?;
        control.start_api()?;
        let manifests = ground.plan.manifests.as_deref();
        control.install(manifests.context("give --manifests, too")?, mode)?;
        for node in &mut mesh.nodes {
            node.auth = espalier_e2e::Auth::default();
            node.kubeconfig = Some(control.add_node(node.index, &node.name)?);
        }
        control.start_controller()?;
        Ok(control)
    }

    /// Changes the policy as an admin does.
    pub(crate) fn set_mode(&self, mode: Mode) -> Result<()> {
        let patch = json!({"spec": {"mode": format!("{mode:?}")}}).to_string();
        let words = ["patch", "encryptionpolicy", "default", "--type=merge", "-p"];
        self.kubectl(&[&words[..], &[&patch]].concat()).map(drop)
    }

    /// A JSONPath of an object.
    pub(crate) fn get(&self, object: &[&str], path: &str) -> Result<String> {
        let output = format!("-o=jsonpath={path}");
        self.kubectl(&[&["get"], object, &[&output]].concat())
    }

    /// Ends the API server; everything else goes on.
    pub(crate) fn stop_api(&mut self) -> Result<()> {
        if let Some(mut api) = self.api.take() {
            api.terminate(PATIENCE)?;
        }
        Ok(())
    }

    /// Starts the API server; returns when it is ready.
    pub(crate) fn start_api(&mut self) -> Result<()> {
        let mut command = Command::new(self.programs.join("kube-apiserver"));
        command.args([
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            // There is no controller manager that would make their tokens.
            "--disable-admission-plugins=ServiceAccount",
        ]);
        for (name, value) in [
            ("etcd-servers", ETCD.to_owned()),
            ("bind-address", ADDRESS.to_string()),
            ("secure-port", PORT.to_string()),
            ("cert-dir", self.path("certs")),
            ("token-auth-file", self.path("tokens.csv")),
            ("service-account-key-file", self.path("sa.key")),
            ("service-account-signing-key-file", self.path("sa.key")),
        ] {
            command.arg(format!("--{name}={value}"));
        }
        self.api = Some(self.spawn(command, "kube-apiserver")?);
        until_within(LIMIT, "the API server to be ready", || {
            if let Some(api) = &mut self.api
                && let Some(status) = api.ended()?
            {
                bail!("the API server has ended: {status}; see its log");
            }
            let asked = self.kubectl(&["get", "--raw=/readyz"]);
            Ok(asked.map(drop).map_err(|error| format!("{error:#}")))
        })
    }

    fn start_etcd(&mut self) -> Result<()> {
        let mut command = Command::new("etcd");
        command
            .args([
                "--unsafe-no-fsync",
                "--listen-peer-urls=http://127.0.0.1:2380",
            ])
            .arg(format!("--data-dir={}", self.path("etcd")))
            .arg(format!("--listen-client-urls={ETCD}"))
            .arg(format!("--advertise-client-urls={ETCD}"));
        self.etcd = Some(self.spawn(command, "etcd")?);
        Ok(())
    }

    fn start_controller(&mut self) -> Result<()> {
        let token = self.token("espalier-controller", None)?;
        let kubeconfig = self.kubeconfig("espalier-controller", &token)?;
        let mut command = Command::new(self.bin.join("espalier-controller"));
        command
            .env("KUBECONFIG", kubeconfig)
            .env("POD_NAME", "controller-0")
            .arg(format!("--namespace={NAMESPACE}"));
        self.controller = Some(self.spawn(command, "controller")?);
        Ok(())
    }

    /// Key of the tokens' issuer, and who is admin.
    fn prepare_api(&self) -> Result<()> {
        let mut openssl = Command::new("openssl");
        self.netns
            .output(openssl.args(["genrsa", "-out", &self.path("sa.key"), "2048"]))?;
        fs::write(
            self.root.join("tokens.csv"),
            format!("{ADMIN},admin,1,system:masters\n"),
        )?;
        self.kubeconfig("admin", ADMIN).map(drop)
    }

    /// CRDs, then all of the chart; nobody makes pods of its workloads.
    fn install(&self, manifests: &Path, mode: Mode) -> Result<()> {
        let file = |name: &str| manifests.join(name).display().to_string();
        // The kubectl of a server without CEL does not know its field.
        self.kubectl(&["apply", "--validate=false", "-f", &file("crds")])?;
        self.kubectl(&[
            "wait",
            "--for=condition=established",
            "--timeout=60s",
            "crd",
            "--all",
        ])?;
        self.kubectl(&["create", "namespace", NAMESPACE])?;
        self.kubectl(&["apply", "-f", &file("espalier.yaml")])?;
        self.apply("policy.yaml", &policy_manifest(mode))
    }

    /// A Node and its agent's pod; returns the kubeconfig of that pod.
    fn add_node(&self, index: u8, name: &str) -> Result<PathBuf> {
        let pods = format!("\"{}\"", espalier_e2e::pod_cidr(index));
        let node = node_manifest(name, &espalier_e2e::uid(index, 1), underlay(index), pods);
        self.create(&format!("{name}.yaml"), &node)?;
        let pod = agent_pod(name);
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod, "namespace": NAMESPACE},
            "spec": {
                "nodeName": name, "serviceAccountName": "espalier-agent", "hostNetwork": true,
                "containers": [{"name": "agent", "image": "none"}],
            },
        });
        self.create(&format!("{pod}.json"), &object.to_string())?;
        let token = self.token("espalier-agent", Some(&pod))?;
        self.kubeconfig(name, &token)
    }

    /// A token as a kubelet asks for it, bound to a pod when one is given.
    fn token(&self, account: &str, pod: Option<&str>) -> Result<String> {
        let mut spec = json!({"audiences": ["https://kubernetes.default.svc"]});
        if let Some(pod) = pod {
            let uid = self.get(&["-n", NAMESPACE, "pod", pod], "{.metadata.uid}")?;
            spec["boundObjectRef"] =
                json!({"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid});
        }
        let request =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let file = self.write(&format!("token-{account}.json"), &request.to_string())?;
        let place = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token");
        let reply: Value =
            serde_json::from_str(&self.kubectl(&["create", "--raw", &place, "-f", &file])?)?;
        let token = reply["status"]["token"].as_str();
        Ok(token.context("a TokenRequest without a token")?.to_owned())
    }

    /// For the bearer of `token`; the server is known by the certificate that it made for itself.
    fn kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf> {
        let (authority, file) = (
            self.path("certs/apiserver.crt"),
            format!("{name}.kubeconfig"),
        );
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             clusters: [{{name: x, cluster: {{server: 'https://{ADDRESS}:{PORT}', certificate-authority: '{authority}'}}}}]\n\
             users: [{{name: x, user: {{token: '{token}'}}}}]\n\
             contexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n"
        );
        self.write(&file, &text).map(PathBuf::from)
    }

    fn apply(&self, name: &str, text: &str) -> Result<()> {
        let file = self.write(name, text)?;
        self.kubectl(&["apply", "-f", &file]).map(drop)
    }

    fn create(&self, name: &str, text: &str) -> Result<()> {
        let file = self.write(name, text)?;
        self.kubectl(&["create", "-f", &file]).map(drop)
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        fs::write(self.root.join(name), text).with_context(|| format!("writing {name}"))?;
        Ok(self.path(name))
    }

    fn kubectl(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.env("KUBECONFIG", self.path("admin.kubeconfig"));
        // Its cache of what the server has.
        command.env("HOME", &self.root);
        self.netns.output(command.args(words))
    }

    fn path(&self, file: &str) -> String {
        self.root.join(file).display().to_string()
    }

    fn spawn(&self, mut command: Command, name: &str) -> Result<Process> {
        let path = self.logs.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("opening {}", path.display()))?;
        self.netns
            .spawn(command.stdout(log.try_clone()?).stderr(log))
    }
}

fn agent_pod(node: &str) -> String {
    format!("espalier-agent-{node}")
}
