//! Whether anybody changes a namespace's network.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use espalier_testnet::{Netns, Process, address};

use crate::bench::until;
use crate::xfrm::entries;

const END: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 255);

/// `ip monitor`: every change of what it looks at, whoever makes it.
#[derive(Debug)]
pub struct Monitor {
    _process: Process,
    path: PathBuf,
    of: Of,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    Network,
    Ipsec,
}

impl Monitor {
    /// Begins with devices, addresses, routes and rules; every change after this is seen.
    ///
    /// # Errors
    /// `ip` cannot be started, or stays silent.
    pub fn start(logs: &Path, netns: &Netns) -> Result<Self> {
        Self::begin(Of::Network, logs.join("monitor.log"), netns)
    }

    /// The same with IPsec states and policies.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_ipsec(logs: &Path, netns: &Netns) -> Result<Self> {
        Self::begin(Of::Ipsec, logs.join("monitor-ipsec.log"), netns)
    }

    fn begin(of: Of, path: PathBuf, netns: &Netns) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args(match of {
            Of::Network => &["monitor", "link", "address", "route", "rule"][..],
            Of::Ipsec => &["xfrm", "monitor", "nokeys", "SA", "policy"],
        });
        let monitor = Self {
            _process: netns.spawn(command.stdout(File::create(&path)?))?,
            path,
            of,
        };
        let mut tries = 0;
        until("the monitor to run", || {
            tries += 1;
            monitor.mark(netns, Ipv4Addr::new(192, 0, 2, tries))?;
            Ok(monitor
                .since(1)
                .map(drop)
                .ok_or_else(|| "it is silent".to_owned()))
        })?;
        Ok(monitor)
    }

    /// The changes since the start.
    ///
    /// # Errors
    /// `ip` does not see the end.
    pub fn changes(&self, netns: &Netns) -> Result<String> {
        self.mark(netns, END)?;
        until("the monitor to see the end", || {
            let text = std::fs::read_to_string(&self.path)?;
            let done = text.contains(&END.to_string());
            Ok(done.then_some(()).ok_or_else(|| "not yet".to_owned()))
        })?;
        Ok(self.since(0).unwrap_or_default())
    }

    /// A change of our own, to find in the output.
    fn mark(&self, netns: &Netns, own: Ipv4Addr) -> Result<()> {
        match self.of {
            Of::Network => netns.run(|| address("lo", own.into(), 32))?,
            Of::Ipsec => {
                let policy = format!("xfrm policy add src {own} dst {own} dir out action block");
                let added = netns.output(Command::new("ip").args(policy.split(' ')));
                added.map(drop)
            }
        }
    }

    /// Changes of other things than our own marks, when there are at least `least` marks.
    fn since(&self, least: usize) -> Option<String> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        let changes = match self.of {
            Of::Network => text.lines().map(str::to_owned).collect(),
            // The first line of a policy has its addresses, those below begin with a tab.
            Of::Ipsec => entries(&text),
        };
        let (marks, others): (Vec<String>, _) = changes
            .into_iter()
            .partition(|change| change.contains("192.0.2."));
        // Link-local addresses appear by themselves, some time after their device came up.
        let known = ["valid_lft", "fe80::"];
        let other = |change: &String| !known.iter().any(|known| change.contains(known));
        let others: Vec<String> = others.into_iter().filter(other).collect();
        (marks.len() >= least).then(|| others.join("\n"))
    }
}
