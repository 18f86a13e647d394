//! The process that plays all other nodes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use espalier_testnet::Netns;

use super::hub::Hub;
use super::{LIMIT, LOOK};

/// The process; ended when dropped.
pub(crate) struct Spokes {
    child: Child,
    stdin: ChildStdin,
    said: Receiver<String>,
}

impl Spokes {
    /// Starts it and waits until it serves.
    pub(crate) fn start(netns: &Netns, nodes: usize, folder: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["mesh", "--nodes", &nodes.to_string(), "--folder"]);
        command
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = netns
            .run(|| command.spawn())?
            .context("starting the spokes")?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (says, said) = channel();
        let stdout = BufReader::new(stdout.context("its standard output")?);
        std::thread::spawn(move || {
            let lines = stdout.lines().map_while(Result::ok);
            lines.for_each(|line| drop(says.send(line)));
        });
        let stdin = stdin.context("its standard input")?;
        let spokes = Self { child, stdin, said };
        let word = spokes.said.recv_timeout(LIMIT)?;
        ensure!(
            word == "ready",
            "expected spokes that are ready, they said {word:?}"
        );
        Ok(spokes)
    }

    /// From now on they count the time.
    pub(crate) fn begin(&mut self) -> Result<()> {
        Ok(self.stdin.write_all(b"begin\n")?)
    }

    /// Waits for `WORD SECONDS` and gives the seconds.
    pub(crate) fn await_word(&self, word: &str, hub: &mut Hub) -> Result<f64> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.said.recv_timeout(LOOK) {
                Ok(line) => {
                    if let Some((said, seconds)) = line.split_once(' ')
                        && said == word
                    {
                        return Ok(seconds.parse()?);
                    }
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => hub.alive()?,
                Err(_) => bail!("not every node was {word} after {} s", LIMIT.as_secs()),
            }
        }
    }
}

impl Drop for Spokes {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
