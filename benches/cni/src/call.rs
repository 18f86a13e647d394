//! One call of a plugin, as a runtime makes it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use espalier_netlink::{Route, Socket};
use serde_json::Value;

use crate::plugin::{Place, Plugin};

/// Between two looks for a veth that is to go.
const LOOK: Duration = Duration::from_micros(100);
const LIMIT: Duration = Duration::from_secs(30);

/// A pod: a namespace, and what ADD said of it.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) container: String,
    pub(crate) netns: PathBuf,
    /// ADD's result; `Null` while it is not on the node.
    pub(crate) result: Value,
}

impl Pod {
    /// Calls ADD; gives how long it took.
    pub(crate) fn add(&mut self, plugin: Plugin, place: &Place) -> Result<Duration> {
        let began = Instant::now();
        let output = run(
            &mut self.command(plugin, place, "ADD"),
            &plugin.config(place),
        )?;
        let took = began.elapsed();
        self.result = serde_json::from_slice(&output).context("the result of ADD")?;
        ensure!(
            self.host_veth().is_some(),
            "ADD named no veth: {}",
            self.result
        );
        Ok(took)
    }

    /// Calls DEL; gives how long it took until the veth was gone.
    pub(crate) fn del(&mut self, plugin: Plugin, place: &Place) -> Result<Duration> {
        let mut config = plugin.config(place);
        config["prevResult"] = self.result.clone();
        let veth = self.host_veth().context("the pod is not on the node")?;
        let mut socket = Socket::<Route>::open()?;
        let began = Instant::now();
        run(&mut self.command(plugin, place, "DEL"), &config)?;
        while socket.link(&veth)?.is_some() {
            ensure!(began.elapsed() < LIMIT, "{veth} is still there after DEL");
            std::thread::sleep(LOOK);
        }
        let took = began.elapsed();
        self.result = Value::Null;
        Ok(took)
    }

    /// The host's end, of several interfaces outside of the pod (bridge) the last.
    fn host_veth(&self) -> Option<String> {
        let interfaces = self.result["interfaces"].as_array()?;
        let outside = |i: &&Value| i["sandbox"].as_str().unwrap_or_default().is_empty();
        let last = interfaces.iter().rfind(outside)?;
        last["name"].as_str().map(str::to_owned)
    }

    fn command(&self, plugin: Plugin, place: &Place, verb: &str) -> Command {
        let mut command = Command::new(plugin.program(place));
        self.environment(&mut command, place, verb);
        command
    }

    fn environment(&self, command: &mut Command, place: &Place, verb: &str) {
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", &self.netns)
            .env("CNI_PATH", &place.reference)
            .env(
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=pod",
            );
    }

    /// The most memory that a plugin's process had when it has done an ADD, in KB: it waits to tell the result, since nobody
    /// reads yet.
    pub(crate) fn add_memory_kb(&mut self, plugin: Plugin, place: &Place) -> Result<f64> {
        let (mut reader, mut full) = std::io::pipe()?;
        full.write_all(&[b' '; PIPE])?;
        let mut child = self
            .command(plugin, place, "ADD")
            .stdin(Stdio::piped())
            .stdout(full)
            .spawn()?;
        let mut input = child.stdin.take().context("stdin")?;
        input.write_all(plugin.config(place).to_string().as_bytes())?;
        drop(input);
        std::thread::sleep(DONE);
        let most = high_water_kb(child.id())?;
        let mut output = Vec::new();
        reader.read_to_end(&mut output)?;
        ensure!(
            child.wait()?.success(),
            "ADD: {}",
            String::from_utf8_lossy(&output)
        );
        self.result = serde_json::from_slice(&output).context("the result of ADD")?;
        Ok(most)
    }
}

/// Capacity of a pipe (pipe(7)).
const PIPE: usize = 65536;
/// An ADD has done its work by then.
const DONE: Duration = Duration::from_secs(1);

/// Peak resident memory (`VmHWM`).
fn high_water_kb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    value.context("expected VmHWM in /proc/PID/status")
}

/// Starts the program, gives it its configuration, waits, and gives what it wrote.
fn run(command: &mut Command, config: &Value) -> Result<Vec<u8>> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {:?}", command.get_program()))?;
    let mut input = child.stdin.take().context("stdin")?;
    input.write_all(config.to_string().as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(output.stdout)
}

/// CPU time in milliseconds of all children that have ended, and of theirs: fields 16 and 17 of proc_pid_stat(5), in ticks of
/// 10 ms. Many calls together are counted well.
pub(crate) fn children_cpu_ms() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
    let fields: Vec<&str> = after_name.unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok());
    let both = ticks(13).zip(ticks(14));
    let (user, system) = both.context("expected times in /proc/self/stat")?;
    Ok((user + system) * 10.0)
}
