//! A cluster of kind: its nodes are containers of Docker's on this machine.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use espalier_capture::{Capture, Config, Counters, Interfaces, interface_index};
use espalier_e2e::{MARKER, cluster_cidr, complete, one_datagram_a_frame, until_within};
use espalier_testnet::Netns;

use crate::harness::{Harness, said, succeeded};
use crate::images;
use crate::namespaces::capture;

const NAME: &str = "espalier-e2e";
/// In the folder of the logs.
const CONFIG: &str = "kind.yaml";
const KUBECONFIG: &str = "kubeconfig";
const LIMIT: Duration = Duration::from_secs(180);
const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";
const ASIDE: &str = "/etc/kubernetes/kube-apiserver.yaml";

/// The hidden command that makes the cluster.
pub(crate) const INSIDE: &str = "on-kind";

/// The cluster; [`remove`] deletes it.
pub(crate) struct Kind {
    folder: PathBuf,
    nodes: Vec<String>,
    gateway: Ipv4Addr,
    wire: Capture,
    at_gateway: Capture,
}

impl Kind {
    /// Makes it, without a CNI plugin, with kube-proxy.
    pub(crate) fn start(nodes: u8, image: Option<&str>, folder: &Path) -> Result<Self> {
        ready()?;
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join(CONFIG), config_of(nodes))?;
        // One that an interrupted run left.
        delete();
        succeeded(&create(image, folder).output()?, "kind create cluster")?;
        let (bridge, gateway) = network()?;
        let this = Self {
            folder: folder.to_owned(),
            nodes: names()?,
            gateway,
            wire: ports(&bridge)?,
            at_gateway: capture(&bridge)?,
        };
        for node in &this.nodes {
            one_datagram_a_frame(&this.network(node)?)?;
        }
        for archive in images::write(folder)? {
            this.import(&archive)?;
        }
        this.end_deployments()?;
        Ok(this)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.join(KUBECONFIG)
    }

    /// kind's own (DNS, storage) are of no use to the cases, and pods that outlive Espalier keep the devices that it made.
    fn end_deployments(&self) -> Result<()> {
        let columns =
            "jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{\"\\n\"}{end}";
        let list = self.client(
            self.kubectl()
                .args(["get", "deployments", "-A", "-o", columns]),
        )?;
        for line in succeeded(&list, "listing deployments")?.lines() {
            let (namespace, name) = line.split_once(' ').context("a namespace and a name")?;
            let mut scale = self.kubectl();
            scale.args(["scale", "deployment", name, "-n", namespace, "--replicas=0"]);
            succeeded(&self.client(&mut scale)?, "ending a deployment")?;
        }
        Ok(())
    }

    fn control_plane(&self) -> Result<&str> {
        let mut nodes = self.nodes.iter();
        let found = nodes.find(|node| node.ends_with("control-plane"));
        Ok(found.context("kind made no control plane")?)
    }

    fn done(&self, node: &str, program: &str, arguments: &[&str]) -> Result<()> {
        let output = self.on_node(node, program, arguments)?;
        succeeded(&output, &format!("{program} on {node}")).map(drop)
    }
}

impl Harness for Kind {
    fn way_in(&self) -> String {
        format!("kubectl --kubeconfig {}", self.kubeconfig().display())
    }

    fn folder(&self) -> PathBuf {
        self.folder.join("suite")
    }

    fn nodes(&self) -> Vec<String> {
        self.nodes.clone()
    }

    fn outside(&self) -> Ipv4Addr {
        self.gateway
    }

    fn client(&self, command: &mut Command) -> Result<Output> {
        command.env("KUBECONFIG", self.kubeconfig());
        let program = command.get_program().to_string_lossy().into_owned();
        command
            .output()
            .with_context(|| format!("starting {program}"))
    }

    fn kubectl(&self) -> Command {
        Command::new("kubectl")
    }

    fn on_node(&self, node: &str, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("docker");
        command.args(["exec", node, program]).args(arguments);
        command.output().context("starting docker")
    }

    fn network(&self, node: &str) -> Result<Netns> {
        let mut command = Command::new("docker");
        command.args(["inspect", "-f", "{{.State.Pid}}", node]);
        let pid = succeeded(&command.output()?, "docker inspect")?;
        let path = Path::new("/proc").join(pid.trim()).join("ns/net");
        Netns::held_elsewhere(node, &path)
    }

    fn import(&self, archive: &Path) -> Result<()> {
        for node in &self.nodes {
            let mut command = Command::new("docker");
            command.args([
                "exec", "-i", node, "ctr", "-n", "k8s.io", "images", "import", "-",
            ]);
            command.stdin(Stdio::from(std::fs::File::open(archive)?));
            succeeded(&command.output()?, &format!("importing on {node}"))?;
        }
        Ok(())
    }

    fn wire(&self) -> Result<Counters> {
        complete(&self.wire)
    }

    fn gateway(&self) -> Result<Counters> {
        complete(&self.at_gateway)
    }

    fn stop_api(&mut self) -> Result<()> {
        let node = self.control_plane()?;
        self.done(node, "mv", &[MANIFEST, ASIDE])?;
        until_within(LIMIT, "the API server to end", || {
            let asked = self.client(self.kubectl().args(["get", "--raw=/readyz"]))?;
            Ok((!asked.status.success())
                .then_some(())
                .ok_or_else(|| "it answers".to_owned()))
        })
    }

    fn start_api(&mut self) -> Result<()> {
        let node = self.control_plane()?;
        self.done(node, "mv", &[ASIDE, MANIFEST])?;
        until_within(LIMIT, "the API server to be ready", || {
            let asked = self.client(self.kubectl().args(["get", "--raw=/readyz"]))?;
            Ok(asked
                .status
                .success()
                .then_some(())
                .ok_or_else(|| said(&asked)))
        })
    }

    fn stop_kubelet(&mut self, node: &str) -> Result<()> {
        self.done(node, "systemctl", &["stop", "kubelet"])
    }

    fn start_kubelet(&mut self, node: &str) -> Result<()> {
        self.done(node, "systemctl", &["start", "kubelet"])
    }
}

/// Says what is missing, and what to do.
fn ready() -> Result<()> {
    let remedy = "install Docker, kind and kubectl and start Docker, or run `make e2e`, which needs none of them";
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the cases look into the network namespaces of the pods: run as root, as in `sudo make e2e-kind`"
        );
    }
    for (program, arguments) in [
        ("docker", &["info"][..]),
        ("kind", &["version"]),
        ("kubectl", &["version", "--client"]),
    ] {
        match Command::new(program).args(arguments).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => bail!("{program} does not work: {}; {remedy}", said(&output)),
            Err(error) => bail!("{program} cannot be started: {error}; {remedy}"),
        }
    }
    Ok(())
}

fn config_of(nodes: u8) -> String {
    let roles = (0..nodes).map(|index| match index {
        0 => "- role: control-plane\n",
        _ => "- role: worker\n",
    });
    let roles: String = roles.collect();
    let pods = cluster_cidr();
    format!(
        "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n\
         networking: {{disableDefaultCNI: true, podSubnet: \"{pods}\"}}\nnodes:\n{roles}"
    )
}

fn kind(arguments: &[&str]) -> Command {
    let mut command = Command::new("kind");
    command.args(arguments);
    command
}

fn create(image: Option<&str>, folder: &Path) -> Command {
    let mut command = kind(&["create", "cluster", "--name", NAME, "--retain"]);
    command.arg("--config").arg(folder.join(CONFIG));
    command.arg("--kubeconfig").arg(folder.join(KUBECONFIG));
    command.args(image.map(|image| format!("--image={image}")));
    command
}

fn names() -> Result<Vec<String>> {
    let nodes = kind(&["get", "nodes", "--name", NAME]).output()?;
    let nodes = succeeded(&nodes, "kind get nodes")?;
    let mut nodes: Vec<String> = nodes.lines().map(str::to_owned).collect();
    nodes.sort();
    Ok(nodes)
}

/// Deletes the cluster, if there is one, after its logs were put into the folder.
pub(crate) fn remove(logs: &Path) {
    let folder = logs.join("kind");
    let mut export = kind(&["export", "logs", "--name", NAME]);
    let _ = export.arg(folder).output();
    delete();
}

fn delete() {
    let _ = kind(&["delete", "cluster", "--name", NAME]).output();
}

/// The bridge of the network `kind` and its address.
fn network() -> Result<(String, Ipv4Addr)> {
    let mut command = Command::new("docker");
    command.args(["network", "inspect", "kind"]);
    let text = succeeded(&command.output()?, "docker network inspect kind")?;
    let networks: serde_json::Value = serde_json::from_str(&text)?;
    let id = networks[0]["Id"]
        .as_str()
        .context("the network has no ID")?;
    let gateways = networks[0]["IPAM"]["Config"].as_array();
    let mut gateways = gateways.into_iter().flatten();
    let v4 = gateways.find_map(|config| config["Gateway"].as_str()?.parse().ok());
    let bridge = format!("br-{}", id.get(..12).context("a short ID")?);
    Ok((bridge, v4.context("the network has no IPv4 gateway")?))
}

/// Every port of the bridge, where a frame enters once.
fn ports(bridge: &str) -> Result<Capture> {
    let folder = format!("/sys/class/net/{bridge}/brif");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("reading {folder}"))?;
    let ports: Result<Vec<u32>> = entries
        .map(|entry| Ok(interface_index(&entry?.file_name().to_string_lossy())?))
        .collect();
    let capture = Capture::start(Config {
        interfaces: Interfaces::Only(ports?),
        with_outgoing: false,
        pods: vec![cluster_cidr()],
        marker: MARKER.to_vec(),
    });
    capture.context("capturing on the network of kind")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_is_the_control_plane() {
        let config = config_of(3);
        assert_eq!(config.matches("role: worker").count(), 2);
        assert!(config.contains("disableDefaultCNI: true, podSubnet: \"10.244.0.0/16\""));
    }

    #[test]
    fn kind_takes_its_own_image_unless_one_is_named() {
        let images = |image| {
            let command = create(image, Path::new("logs"));
            let arguments = command.get_args().map(|text| text.to_string_lossy());
            let images = arguments.filter(|text| text.starts_with("--image"));
            images.map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(images(Some("local/node:1")), ["--image=local/node:1"]);
        assert!(images(None).is_empty());
    }
}
