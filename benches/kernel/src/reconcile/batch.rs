//! The overlay's objects as iproute2 lists them, and as commands that make them.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use espalier_overlay::{PROTOCOL, VXLAN_DEVICE};
use espalier_testnet::Netns;

/// Commands for `ip -batch` and `bridge -batch`, one a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Objects {
    ip: BTreeSet<String>,
    bridge: BTreeSet<String>,
}

impl Objects {
    /// What a namespace has now.
    pub(crate) fn of(netns: &Netns) -> Result<Self> {
        let list = |program: &str, words: &[&str]| {
            let text = netns.output(Command::new(program).args(words))?;
            Ok::<_, anyhow::Error>(text)
        };
        let protocol = PROTOCOL.to_string();
        let routes = list("ip", &["route", "show", "proto", &protocol])?;
        let neighbours = list(
            "ip",
            &["neigh", "show", "dev", VXLAN_DEVICE, "nud", "permanent"],
        )?;
        let fdb = list("bridge", &["fdb", "show", "dev", VXLAN_DEVICE])?;
        let policies = list("ip", &["xfrm", "policy"])?;
        let mut ip = BTreeSet::new();
        ip.extend(lines(&routes).map(|line| format!("route add {line} proto {protocol}")));
        ip.extend(lines(&neighbours).map(|line| neighbour(&line)));
        ip.extend(entries(&policies).map(|line| format!("xfrm policy add {line}")));
        let bridge = lines(&fdb).map(|line| format!("fdb append {}", entry(&line)));
        Ok(Self {
            ip,
            bridge: bridge.collect(),
        })
    }

    /// What is here and not there.
    pub(crate) fn without(&self, there: &Self) -> Self {
        Self {
            ip: self.ip.difference(&there.ip).cloned().collect(),
            bridge: self.bridge.difference(&there.bridge).cloned().collect(),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.ip.len() + self.bridge.len()
    }

    pub(crate) fn first(&self) -> Option<&String> {
        self.ip.first().or(self.bridge.first())
    }

    /// As files, which are written before any time is taken.
    pub(crate) fn batches(&self) -> Result<Batches> {
        Ok(Batches {
            ip: write("ip.batch", &self.ip)?,
            bridge: write("bridge.batch", &self.bridge)?,
        })
    }
}

/// Files with commands.
pub(crate) struct Batches {
    ip: String,
    bridge: String,
}

impl Batches {
    /// Runs both programs to their end.
    pub(crate) fn run(&self, netns: &Netns) -> Result<()> {
        // The device's forwarding entries first: so do we.
        for (program, file) in [("bridge", &self.bridge), ("ip", &self.ip)] {
            let input = File::open(file).with_context(|| file.clone())?;
            let mut command = Command::new(program);
            command.args(["-batch", "-"]).stdin(Stdio::from(input));
            let output = netns.run(|| command.output())??;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{program} -batch: {}", said.trim());
        }
        Ok(())
    }
}

fn write(name: &str, lines: &BTreeSet<String>) -> Result<String> {
    let path = format!("/run/{name}");
    let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
    std::fs::write(&path, text).with_context(|| path.clone())?;
    Ok(path)
}

fn lines(text: &str) -> impl Iterator<Item = String> {
    let words = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    words.filter(|line| !line.is_empty())
}

/// `100.64.1.1 lladdr 02:… PERMANENT`
fn neighbour(line: &str) -> String {
    let line = line.trim_end_matches(" PERMANENT");
    format!("neigh add {line} dev {VXLAN_DEVICE} nud permanent")
}

/// `02:… dst 10.77.0.2 self permanent`
fn entry(line: &str) -> String {
    let (mac, rest) = line.split_once(' ').unwrap_or((line, ""));
    format!("{mac} dev {VXLAN_DEVICE} {rest}")
}

/// A policy's lines are what its command has after `add`; those of sockets are nobody's.
fn entries(text: &str) -> impl Iterator<Item = String> {
    let mut all: Vec<String> = Vec::new();
    for line in text.lines() {
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        match all
            .last_mut()
            .filter(|_| line.starts_with(char::is_whitespace))
        {
            Some(entry) => {
                entry.push(' ');
                entry.push_str(&words);
            }
            None => all.push(words),
        }
    }
    all.into_iter().filter(|entry| entry.contains(" dir "))
}
