//! Pods, wired by the real CNI plugin, called as a container runtime calls it.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use espalier_testnet::Netns;
use ipnet::IpNet;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use serde_json::{Value, json};

use crate::bench::until;
use crate::node::Node;
use crate::plan::Family;

/// A pod: a network namespace with `eth0`.
#[derive(Debug)]
pub struct Pod {
    /// Also its namespace's name.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its IPv4 address, if it has one.
    pub address: Ipv4Addr,
    /// All its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Pod {
    /// Makes the namespace and calls ADD, as soon as STATUS says that the node takes pods.
    ///
    /// # Errors
    /// The plugin refuses: the text holds what it printed.
    pub fn add(node: &Node, number: u8) -> Result<Self> {
        let name = format!("pod-{}-{number}", node.index);
        let mut pod = Self {
            netns: Netns::new(&name)?,
            address: Ipv4Addr::UNSPECIFIED,
            addresses: Vec::new(),
            name,
        };
        until(&format!("{} to take pods", node.name), || {
            let output = pod.call(node, "STATUS")?;
            Ok(output
                .status
                .success()
                .then_some(())
                .ok_or_else(|| said(&output)))
        })?;
        let output = pod.call(node, "ADD")?;
        ensure!(
            output.status.success(),
            "ADD of {}: {}",
            pod.name,
            said(&output)
        );
        pod.addresses = addresses_of(&output.stdout).with_context(|| said(&output))?;
        for address in &pod.addresses {
            if let IpAddr::V4(address) = address {
                pod.address = *address;
            }
        }
        Ok(pod)
    }

    /// What STATUS and then ADD say on a node that is to refuse pods; both must fail.
    ///
    /// # Errors
    /// One of them succeeds.
    pub fn refused(node: &Node) -> Result<[String; 2]> {
        let name = format!("refused-{}", node.index);
        let pod = Self {
            netns: Netns::new(&name)?,
            address: Ipv4Addr::UNSPECIFIED,
            addresses: Vec::new(),
            name,
        };
        let call = |verb| {
            let output = pod.call(node, verb)?;
            ensure!(!output.status.success(), "{verb} succeeded");
            Ok(said(&output))
        };
        Ok([call("STATUS")?, call("ADD")?])
    }

    /// A UDP socket in the pod; port 0: any.
    ///
    /// # Errors
    /// The port is taken.
    pub fn socket(&self, port: u16) -> Result<UdpSocket> {
        self.socket_on(Family::V4, port)
    }

    /// Its address of this IP version.
    ///
    /// # Errors
    /// It has none.
    pub fn address_on(&self, family: Family) -> Result<IpAddr> {
        let mut addresses = self.addresses.iter().copied();
        let found = addresses.find(|address| Family::of(*address) == family);
        found.with_context(|| format!("{} has no address of {family:?}", self.name))
    }

    /// As [`Self::socket`], on its address of this IP version.
    ///
    /// # Errors
    /// The port is taken, or there is no such address.
    pub fn socket_on(&self, family: Family, port: u16) -> Result<UdpSocket> {
        let address = self.address_on(family)?;
        let bind = || UdpSocket::bind((address, port));
        let socket = self.netns.run(bind)?;
        let socket = socket.with_context(|| format!("port {port} in {}", self.name))?;
        // Room for what comes while the machine is busy elsewhere; without privilege the usual room must do.
        let _ = setsockopt(&socket, RcvBufForce, &(8 << 20));
        Ok(socket)
    }

    fn call(&self, node: &Node, command: &str) -> Result<Output> {
        let output = node.netns.run(|| self.run(node, command))?;
        output.with_context(|| format!("calling the CNI plugin: {command} {}", self.name))
    }

    fn run(&self, node: &Node, command: &str) -> Result<Output> {
        let socket = node.run_dir().join("agent.sock");
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "espalier",
            "type": "espalier-cni",
            "socket": socket,
        });
        let mut child = Command::new(node.program("espalier-cni"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.name)
            .env("CNI_NETNS", self.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", node.program(""))
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=e2e;K8S_POD_NAME={}",
                    self.name
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(config.to_string().as_bytes())?;
        }
        Ok(child.wait_with_output()?)
    }
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    format!(
        "{}: {} {}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

/// `ips[].address` of a CNI result, without their prefix lengths.
fn addresses_of(result: &[u8]) -> Result<Vec<IpAddr>> {
    let result: Value = serde_json::from_slice(result).context("no JSON")?;
    let ips = result["ips"].as_array().context("no ips")?;
    ips.iter().map(|ip| host_address(&ip["address"])).collect()
}

fn host_address(value: &Value) -> Result<IpAddr> {
    let text = value.as_str().unwrap_or_default();
    let host: IpNet = text.parse().with_context(|| format!("address {text:?}"))?;
    ensure!(
        host.prefix_len() == host.max_prefix_len(),
        "expected the address of one host, found {host}"
    );
    Ok(host.addr())
}
