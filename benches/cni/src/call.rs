//! One call of a plugin, as a runtime makes it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use espalier_netlink::{Route, Socket};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
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
        let output = run(&mut self.command(plugin, place, "ADD"), &plugin.config(place))?;
        let took = began.elapsed();
        self.result = serde_json::from_slice(&output).context("the result of ADD")?;
        ensure!(self.host_veth().is_some(), "ADD named no veth: {}", self.result);
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

    /// The most memory that a plugin has during an ADD, in KB.
    pub(crate) fn add_memory_kb(&mut self, plugin: Plugin, place: &Place) -> Result<f64> {
        let file = place.disk.join("memory");
        let mut command = Command::new(std::env::current_exe()?);
        self.environment(&mut command, place, "ADD");
        command.arg("memory").arg(&file).arg(plugin.program(place));
        let output = run(&mut command, &plugin.config(place))?;
        self.result = serde_json::from_slice(&output).context("the result of ADD")?;
        Ok(fs::read_to_string(&file)?.parse()?)
    }
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

/// CPU time in milliseconds of all children that have ended, and of theirs.
pub(crate) fn children_cpu_ms() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(micros as f64 / 1000.0)
}

/// Runs a program with this process' own input and output.
#[derive(Args, Debug)]
pub(crate) struct Memory {
    /// Gets the most resident memory of the program or one of its children, in KB.
    file: PathBuf,
    program: PathBuf,
}

impl Memory {
    pub(crate) fn run(&self) -> Result<()> {
        let status = Command::new(&self.program).status()?;
        ensure!(status.success(), "{}: {status}", self.program.display());
        let most = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
        write(&self.file, &most.to_string())
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}
