//! The frame of a test: its sandbox, its folder, and what is shown when it fails.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::pki::Pki;
use crate::{binaries, secrets};

/// Anything that should happen at all has happened by then, also on a slow machine.
pub const LIMIT: Duration = Duration::from_secs(45);
/// How often [`until`] looks.
const LOOK: Duration = Duration::from_millis(25);
/// How much of each log a failed test prints.
const LAST_LINES: usize = 25;

/// A test's place: folders on the sandbox's private `/run`, and a CA.
#[derive(Debug)]
pub struct Bench {
    /// Folder of the binaries.
    pub bin: PathBuf,
    /// Everything below is gone with the sandbox.
    pub root: PathBuf,
    /// The mesh's CA with all its certificates.
    pub pki: Pki,
}

/// Builds the binaries, then runs `body` in a sandbox. `name` is the test function's name.
///
/// # Panics
/// The body fails or panics, or a key is found in a log.
pub fn test(name: &str, body: impl FnOnce(&Bench) -> Result<()>) {
    if !espalier_testnet::inside()
        && let Err(error) = binaries::build()
    {
        panic!("{error:#}");
    }
    espalier_testnet::isolated(name, || {
        let keep = binaries::kept_logs(name).unwrap_or_else(|error| panic!("{error:#}"));
        if let Err(Failure { error, logs }) = run(&keep, body) {
            panic!("{error}\n{logs}");
        }
    });
}

/// Asks `look` again and again until it says what it found.
///
/// # Errors
/// Nothing within [`LIMIT`]: the text holds what `look` said last.
pub fn until<T>(what: &str, look: impl FnMut() -> Result<Result<T, String>>) -> Result<T> {
    until_within(LIMIT, what, look)
}

/// The same with another limit.
///
/// # Errors
/// As [`until`].
pub fn until_within<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look()? {
            Ok(found) => return Ok(found),
            Err(missing) if Instant::now() > deadline => {
                bail!("expected {what} within {} s; {missing}", limit.as_secs())
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// Why a body failed, for a report and for a terminal.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The error's text.
    pub error: String,
    /// The last lines of all logs, and where they are kept.
    pub logs: String,
}

/// Runs `body` on a bench of its own, inside a sandbox; when it fails, the logs are kept in the folder `keep`.
///
/// # Errors
/// The body failed or panicked, or a key is in a log.
pub fn run(keep: &Path, body: impl FnOnce(&Bench) -> Result<()>) -> Result<(), Failure> {
    let prepared = Bench::new().map_err(|error| Failure {
        error: format!("{error:#}"),
        logs: String::new(),
    })?;
    let result = catch_unwind(AssertUnwindSafe(|| body(&prepared)));
    let result = match result {
        Ok(result) => result.and_then(|()| prepared.no_secrets()),
        // The panic's own text is printed already.
        Err(_) => Err(anyhow::anyhow!("the test panicked, see above")),
    };
    result.map_err(|error| Failure {
        error: format!("{error:#}"),
        logs: prepared.post_mortem(keep),
    })
}

impl Bench {
    fn new() -> Result<Self> {
        let (root, bin) = (PathBuf::from("/run/e2e"), binaries::folder()?);
        fs::create_dir_all(root.join("logs")).context("making the logs' folder")?;
        let pki = Pki::new(&bin, &root.join("pki"))?;
        Ok(Self { bin, root, pki })
    }

    /// Folder of the logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Every log's path.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn log_files(&self) -> Result<Vec<PathBuf>> {
        files_below(&self.logs())
    }

    /// Fails when a log holds a key of this test's PKI, or what looks like a key.
    ///
    /// # Errors
    /// A finding, or a file that cannot be read.
    pub fn no_secrets(&self) -> Result<()> {
        let known = secrets::known(&files_below(&self.root)?)?;
        let found = secrets::in_files(&self.log_files()?, &known)?;
        ensure!(found.is_empty(), "keys in logs: {}", found.join("; "));
        Ok(())
    }

    fn post_mortem(&self, folder: &Path) -> String {
        let logs = self.log_files().unwrap_or_default();
        let kept = keep(&logs, folder).map_or_else(
            |error| format!("the logs could not be kept: {error:#}"),
            |()| format!("whole logs: {}", folder.display()),
        );
        logs.iter().map(|log| tail(log)).collect::<String>() + &kept
    }
}

fn keep(logs: &[PathBuf], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for log in logs {
        fs::copy(log, folder.join(log.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    // Libraries say a lot at level DEBUG.
    let ours = |line: &&str| !line.contains(" DEBUG ") || line.contains("espalier");
    let lines: Vec<&str> = text.lines().filter(ours).collect();
    let last = lines.get(lines.len().saturating_sub(LAST_LINES)..);
    let last = last.unwrap_or_default().join("\n");
    format!("--- {}\n{last}\n", log.display())
}

/// All plain files of a folder and its folders; no sockets.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        for entry in entries {
            let (path, kind) = entry.and_then(|e| Ok((e.path(), e.file_type()?)))?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
