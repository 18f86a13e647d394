//! A process group that ends with its owner.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

const STEP: Duration = Duration::from_millis(20);
/// How long it may take after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(3);

/// A process group that ends with its owner.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    name: String,
}

impl Daemon {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started; the text names the program.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.process_group(0).spawn();
        let child = child.with_context(|| format!("starting {name}"))?;
        Ok(Self { child, name })
    }

    /// With both streams in a file.
    ///
    /// # Errors
    /// The file cannot be made, or as [`Self::spawn`].
    pub fn logged(command: &mut Command, log: &Path) -> Result<Self> {
        let log = File::create(log)?;
        Self::spawn(command.stdout(log.try_clone()?).stderr(log))
    }

    /// Its id, also that of its group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The started child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// It has not ended.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether it ended well.
    ///
    /// # Errors
    /// It has not ended within `limit`; it goes on until it is dropped.
    pub fn wait(&mut self, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            if Instant::now() > end {
                bail!("{} has not ended within {} s", self.name, limit.as_secs());
            }
            std::thread::sleep(STEP);
        }
    }

    /// At once, without a chance to clean up.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _reaped = self.child.wait();
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It may be gone already.
            let _gone = killpg(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.running() {
            self.signal(Signal::SIGTERM);
            let end = Instant::now() + PATIENCE;
            while self.running() && Instant::now() < end {
                std::thread::sleep(STEP);
            }
        }
        self.kill();
    }
}
