//! One guest, from its start to its end.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::daemon::Daemon;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// Program that boots it: scripts/kernel/boot.sh.
    pub boot: &'a Path,
    /// Folder of its kernel, as scripts/kernel/fetch.sh printed it.
    pub kernel: &'a Path,
    /// Folder for the script that it runs; what the guest leaves there comes back.
    pub folder: &'a Path,
    /// What else it needs where it does not see this machine's files; this program is among them already.
    pub files: &'a [PathBuf],
    /// Words of the command that it runs; this program itself is put before them.
    pub arguments: &'a [&'a str],
    /// Longer than this it does not run.
    pub limit: Duration,
}

/// Runs this program with other arguments in a guest. The guest does not outlive this process, however that ends.
///
/// # Errors
/// It could not be started, did not come to its end, or was ended at the limit.
pub fn boot(guest: &Guest<'_>) -> Result<()> {
    let program = std::env::current_exe().context("finding this program's own path")?;
    let script = guest.folder.join("guest.sh");
    let words = guest.arguments.join(" ");
    std::fs::write(&script, format!("exec {} {words}\n", program.display()))
        .with_context(|| format!("writing {}", script.display()))?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM"])
        .arg(guest.boot)
        .arg(guest.kernel)
        .arg(&script)
        .arg(&program)
        .args(guest.files)
        .stdin(Stdio::null());
    let ended_well = Daemon::spawn(&mut command)?.wait(guest.limit)?;
    ensure!(ended_well, "the guest did not come to its end");
    Ok(())
}
