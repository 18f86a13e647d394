//! Commands with a time limit; processes that are stopped, by pid, when their owner is dropped.

use std::ffi::OsStr;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
pub(crate) use espalier_guest::Daemon;

/// A command has ended within this.
const LIMIT: Duration = Duration::from_secs(60);
/// A program listens or answers within this: on a busy machine too, and with libraries that nobody has read yet.
pub(crate) const STARTS: Duration = Duration::from_secs(60);

/// What a command said.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) ok: bool,
    /// Both streams.
    pub(crate) text: String,
}

impl Output {
    /// What it said, if it succeeded; else an error with its last line. `what` is the command, for the error.
    pub(crate) fn must(self, what: &str) -> Result<Self> {
        if self.ok {
            return Ok(self);
        }
        let last = self.text.trim().lines().last().unwrap_or_default();
        bail!("{what}: {last}");
    }
}

/// A command line of one string's words, with `tail` after it.
pub(crate) fn words(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("true"));
    command.args(words);
    command
}

/// Runs it to its end, whatever that is.
pub(crate) fn capture(command: &mut Command) -> Result<Output> {
    let (mut reader, writer) = std::io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut guard = Daemon::spawn(command)?;
    // The command holds writers, too; without them the end of the pipe is seen.
    *command = Command::new("true");
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _read = reader.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let ok = guard.wait(LIMIT)?;
    drop(guard);
    let text = reading.join().unwrap_or_default();
    Ok(Output { ok, text })
}

/// Runs it; what is no success is an error with its output.
pub(crate) fn run(line: &str) -> Result<String> {
    let output = capture(&mut words(line))?;
    if !output.ok {
        bail!("{line}: {}", output.text.trim());
    }
    Ok(output.text)
}

/// Asks `check` until it says yes.
pub(crate) fn until(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + limit;
    while !check()? {
        if Instant::now() > end {
            bail!("not within {} s: {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// `nsenter` into a named network namespace; /sys and the mounts stay those of the caller.
pub(crate) fn inside(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{namespace}"))
        .arg(program);
    command
}
