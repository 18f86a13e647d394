//! The binaries under test, beside the test program.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// A folder with ready binaries, for those who build them in another way.
pub const FOLDER: &str = "ESPALIER_E2E_BIN";
const PACKAGES: [&str; 4] = [
    "espalier-agent",
    "espalier-dataplane",
    "espalier-cni",
    "espalier-cli",
];
const BINARIES: [&str; 4] = [
    "espalier-agent",
    "espalier-dataplane",
    "espalier-cni",
    "espalier",
];

/// Builds the binaries, once per process and one process at a time. A build that has nothing to do takes a moment.
pub(crate) fn build() -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let done = DONE.get_or_init(|| build_now().map_err(|error| format!("{error:#}")));
    done.clone().map_err(anyhow::Error::msg)
}

/// Where they are.
pub(crate) fn folder() -> Result<PathBuf> {
    match std::env::var_os(FOLDER) {
        Some(folder) => Ok(folder.into()),
        None => profile_folder(),
    }
}

/// Where failed tests leave their logs.
pub(crate) fn kept_logs(test: &str) -> Result<PathBuf> {
    let target = profile_folder()?;
    let target = target.parent().context("a folder above the profile's")?;
    Ok(target.join("e2e").join(test))
}

fn build_now() -> Result<()> {
    if std::env::var_os(FOLDER).is_none() {
        let folder = profile_folder()?;
        let lock = File::create(folder.join(".espalier-e2e.lock")).context("making the lock")?;
        lock.lock().context("waiting for another test's build")?;
        run_cargo(&folder)?;
    }
    let folder = folder()?;
    for name in BINARIES {
        let path = folder.join(name);
        ensure!(
            path.is_file(),
            "expected the binary {}, found none",
            path.display()
        );
    }
    Ok(())
}

fn run_cargo(folder: &Path) -> Result<()> {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let target = folder
        .parent()
        .context("the profile's folder has none above")?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--profile", profile, "--target-dir"])
        .arg(target)
        .args(PACKAGES.iter().flat_map(|package| ["-p", package]));
    let output = command.output().context("starting cargo")?;
    if !output.status.success() {
        bail!(
            "cargo build: {}:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// `target/debug` when the test program is `target/debug/deps/name-hash`.
fn profile_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding the test program")?;
    let folder = program.parent().and_then(Path::parent);
    Ok(folder
        .with_context(|| format!("{} is in no target folder", program.display()))?
        .to_owned())
}
