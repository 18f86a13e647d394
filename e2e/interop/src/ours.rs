//! Our side of a case: the probe as a process, its commands and events.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command::{Daemon, inside};
use crate::probe::ProbeConfig;

/// A running probe.
#[derive(Debug)]
pub(crate) struct Ours {
    _daemon: Daemon,
    stdin: ChildStdin,
    events: Receiver<Value>,
    /// All events so far.
    seen: Vec<Value>,
    /// How many of them somebody has waited for.
    taken: usize,
    record: PathBuf,
    /// What the engine logs.
    pub(crate) log: PathBuf,
}

/// SPIs of a CHILD_SA, ours first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spis {
    pub(crate) inbound: String,
    pub(crate) outbound: String,
}

impl Ours {
    pub(crate) fn start(namespace: &str, folder: &Path, config: &ProbeConfig) -> Result<Self> {
        let file = folder.join("probe.json");
        std::fs::write(&file, serde_json::to_vec(config)?)?;
        let program = std::env::current_exe()?.with_file_name("espalier-ike-probe");
        let log = folder.join("probe.log");
        let mut command = inside(namespace, program);
        command
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?);
        let mut daemon = Daemon::spawn(&mut command)?;
        let stdin = daemon.child().stdin.take().context("the probe's stdin")?;
        let stdout = daemon.child().stdout.take().context("the probe's stdout")?;
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str(&line) else {
                    continue;
                };
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        let record = config.record.clone();
        let mut ours = Self {
            _daemon: daemon,
            stdin,
            events,
            seen: Vec::new(),
            taken: 0,
            record,
            log,
        };
        ours.wait("ready", 60)?;
        Ok(ours)
    }

    /// Tells the probe and waits until it has obeyed.
    pub(crate) fn tell(&mut self, command: &str) -> Result<()> {
        let at = self.seen.len().max(self.taken);
        writeln!(self.stdin, "{command}").context("the probe is gone")?;
        let done = |event: &Value| event["event"] == "done" && event["command"] == command;
        self.find(at, &format!("done {command}"), 10, done)
            .map(drop)
    }

    /// The next event of this name after those that were waited for.
    pub(crate) fn wait(&mut self, name: &str, seconds: u64) -> Result<Value> {
        let (at, event) = self.find(self.taken, name, seconds, |event| event["event"] == name)?;
        self.taken = at + 1;
        Ok(event)
    }

    /// The next CHILD_SA.
    pub(crate) fn wait_child(&mut self, seconds: u64) -> Result<Spis> {
        let event = self.wait("child-up", seconds)?;
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        Ok(Spis {
            inbound: text("spi_in"),
            outbound: text("spi_out"),
        })
    }

    /// Until this CHILD_SA is gone.
    pub(crate) fn wait_down(&mut self, spis: &Spis, seconds: u64) -> Result<Value> {
        let gone =
            |event: &Value| event["event"] == "child-down" && event["spi_in"] == *spis.inbound;
        let what = format!("child-down {}", spis.inbound);
        Ok(self.find(0, &what, seconds, gone)?.1)
    }

    /// Until packets go out on this CHILD_SA.
    pub(crate) fn wait_switched(&mut self, spis: &Spis, seconds: u64) -> Result<()> {
        let to = |event: &Value| event["event"] == "switched" && event["spi_out"] == *spis.outbound;
        let what = format!("switched to {}", spis.outbound);
        self.find(0, &what, seconds, to).map(drop)
    }

    /// CHILD_SAs that are up and not down, oldest first.
    pub(crate) fn children(&mut self) -> Vec<Spis> {
        self.seen.extend(self.events.try_iter());
        let mut up = Vec::new();
        for event in &self.seen {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            if event["event"] == "child-up" {
                up.push(Spis {
                    inbound: text("spi_in"),
                    outbound: text("spi_out"),
                });
            } else if event["event"] == "child-down" {
                up.retain(|spis: &Spis| spis.inbound != text("spi_in"));
            }
        }
        up
    }

    /// What was said so far is not waited for any more.
    pub(crate) fn skip(&mut self) {
        self.seen.extend(self.events.try_iter());
        self.taken = self.seen.len();
    }

    /// Finds an event from number `from` on, those still to come included.
    fn find(
        &mut self,
        from: usize,
        what: &str,
        seconds: u64,
        is: impl Fn(&Value) -> bool,
    ) -> Result<(usize, Value)> {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut at = from;
        loop {
            while let Some(event) = self.seen.get(at) {
                if is(event) {
                    return Ok((at, event.clone()));
                }
                at += 1;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) => self.seen.push(event),
                Err(RecvTimeoutError::Timeout) => bail!(
                    "the probe did not say {what:?} within {seconds} s; it said {}",
                    self.last()
                ),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the probe ended before {what:?}; it said {}", self.last())
                }
            }
        }
    }

    /// The last few events, for messages.
    fn last(&self) -> String {
        let last = self.seen.iter().rev().take(4).rev();
        let last: Vec<String> = last.map(ToString::to_string).collect();
        last.join(" ")
    }

    /// The IKE messages so far: (direction, own port, bytes).
    pub(crate) fn messages(&self) -> Result<Vec<Recorded>> {
        let text = std::fs::read_to_string(&self.record)?;
        let read = |line: &str| -> Result<Recorded> {
            let value: Value = serde_json::from_str(line)?;
            Ok(Recorded {
                inbound: value["dir"] == "in",
                bytes: hex::decode(value["message"].as_str().unwrap_or_default())?,
            })
        };
        // The last line may be half there.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(read).collect()
    }
}

/// One IKE message.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) inbound: bool,
    pub(crate) bytes: Vec<u8>,
}

impl Recorded {
    /// First payload type and exchange type (RFC 7296 §3.1).
    pub(crate) fn kinds(&self) -> (u8, u8) {
        let byte = |at: usize| self.bytes.get(at).copied().unwrap_or(0);
        (byte(16), byte(18))
    }
}
