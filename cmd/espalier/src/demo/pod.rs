//! Pods, wired by the real CNI plugin, called as a container runtime calls it.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use espalier_testnet::Netns;
use serde_json::{Value, json};

use super::node::Node;

/// How long a call of the plugin may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pod: a network namespace with `eth0`.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) container_id: String,
    pub(super) netns: Netns,
    pub(super) address: Ipv4Addr,
}

impl Pod {
    /// Makes the namespace and calls ADD; also tells how long ADD took.
    pub(super) fn add(node: &Node, number: u8) -> Result<(Self, Duration)> {
        let name = format!("{}-pod-{number}", node.name);
        let mut pod = Self {
            netns: Netns::new(&name)?,
            container_id: format!(
                "{:032x}{:032x}",
                rand::random::<u128>(),
                rand::random::<u128>()
            ),
            address: Ipv4Addr::UNSPECIFIED,
            name,
        };
        let begin = Instant::now();
        let result = pod.call(node, "ADD")?;
        let took = begin.elapsed();
        pod.address = address_of(&result).with_context(|| {
            format!("the CNI plugin's result of ADD for {}: {result}", pod.name)
        })?;
        Ok((pod, took))
    }

    /// Calls DEL; the namespace stays.
    pub(super) fn del(&self, node: &Node) -> Result<()> {
        self.call(node, "DEL").map(drop)
    }

    fn call(&self, node: &Node, command: &str) -> Result<Value> {
        let output = node
            .netns
            .run(|| self.run(node, command))?
            .with_context(|| format!("calling the CNI plugin: {command} {}", self.name))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "CNI {command} of {}: {}: {} {}",
                self.name,
                output.status,
                text.trim(),
                said.trim()
            );
        }
        match text.trim() {
            "" => Ok(Value::Null),
            text => serde_json::from_str(text)
                .with_context(|| format!("CNI {command} printed {text:?}")),
        }
    }

    fn run(&self, node: &Node, command: &str) -> Result<Output> {
        let config = config(node).to_string();
        let mut child = Command::new(node.program("espalier-cni"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.container_id)
            .env("CNI_NETNS", self.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", node.program(""))
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=demo;K8S_POD_NAME={}",
                    self.name
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(config.as_bytes())?;
        }
        await_end(&mut child)?;
        Ok(child.wait_with_output()?)
    }
}

/// A plugin that hangs is killed, as a runtime does it.
fn await_end(child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("expected its end within {} s; killed", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn config(node: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "espalier",
        "type": "espalier-cni",
        "socket": node.run_dir().join("agent.sock"),
        "stateDir": node.state_dir(),
    })
}

/// `ips[0].address` of a CNI result, without its prefix length.
fn address_of(result: &Value) -> Result<Ipv4Addr> {
    let address = result["ips"][0]["address"].as_str();
    let address = address.ok_or_else(|| anyhow!("expected ips[0].address, found none"))?;
    let (address, prefix) = address.split_once('/').unwrap_or((address, ""));
    if prefix != "32" {
        bail!("expected an address with /32, found {prefix:?}");
    }
    address
        .parse()
        .with_context(|| format!("{address:?} is no IPv4 address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_the_result() {
        let result = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.244.1.2/32", "gateway": "10.244.1.1"}]});
        assert_eq!(address_of(&result).unwrap(), Ipv4Addr::new(10, 244, 1, 2));
        assert!(address_of(&json!({"ips": []})).is_err());
        assert!(address_of(&json!({"ips": [{"address": "10.244.1.2/24"}]})).is_err());
    }
}
