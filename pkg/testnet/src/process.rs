//! Child processes that do not outlive their handle.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A started process; killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    program: String,
    child: Child,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        Ok(Self { program, child })
    }

    /// The process id, in the sandbox's PID namespace.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The started child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// The kernel does not know the process.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("looking at {}", self.program))
    }

    /// Sends SIGKILL and waits for the end.
    ///
    /// # Errors
    /// The kernel does not know the process.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child
            .wait()
            .with_context(|| format!("waiting for {}", self.program))
    }

    /// Sends SIGTERM, and SIGKILL when it has not ended after `patience`. True: it ended by itself.
    ///
    /// # Errors
    /// The kernel does not know the process.
    pub fn terminate(&mut self, patience: Duration) -> Result<bool> {
        if self.ended()?.is_some() {
            return Ok(true);
        }
        let pid = i32::try_from(self.child.id()).context("process id")?;
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if self.ended()?.is_some() {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill()?;
        Ok(false)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
