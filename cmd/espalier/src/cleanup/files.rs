//! Espalier's files on a host, by their names.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::install_cni::PLUGIN;

/// The configuration that the agent writes.
const CONFLIST: &str = "05-espalier.conflist";

/// Locks and sockets by which a process of ours is known to run, and who has them.
const RUN_LOCK: &str = "dataplane.lock";
const STATE_LOCK: &str = "leases.lock";
const SOCKETS: [(&str, &str); 2] = [
    ("agent.sock", "espalier-agent"),
    ("dataplane.sock", "espalier-dataplane"),
];

/// What our processes keep in their folders; files of these names with a suffix (`.new`, `.tmp`) are half written ones.
const IN_RUN: [&str; 6] = [
    "agent.sock",
    "agent-ike.sock",
    "dataplane.sock",
    "dataplane-ike.sock",
    "dataplane.lock",
    "kernel-peers.json",
];
/// `bin`: programs that the data plane was or may be replaced by.
const IN_STATE: [&str; 5] = ["leases", "leases.lock", "pending-release", "bin", PKI];
/// A link to the folder with certificate and key, whose name is this with a suffix; a key that waits for its certificate has one, too.
const PKI: &str = "pki";

/// Where Espalier keeps files on a host.
#[derive(Clone, Debug)]
pub(super) struct Folders {
    pub(super) run: PathBuf,
    pub(super) state: PathBuf,
    pub(super) cni_conf: PathBuf,
    pub(super) cni_bin: PathBuf,
}

/// What was removed, and what was found and is not ours.
#[derive(Debug, Default)]
pub(super) struct Removed {
    pub(super) gone: Vec<String>,
    pub(super) left: Vec<String>,
}

impl Removed {
    pub(super) fn of(kind: &str, names: Vec<String>) -> Self {
        let line = |name: String| format!("{kind} {name}").trim_start().to_owned();
        Self {
            gone: names.into_iter().map(line).collect(),
            left: Vec::new(),
        }
    }

    fn gone(&mut self, path: &Path) {
        self.gone.push(path.display().to_string());
    }
}

impl Folders {
    /// A process of ours that runs here, if there is one.
    pub(super) fn who_runs(&self) -> Option<String> {
        let listens = |(name, who): &(&str, &str)| {
            let path = self.run.join(name);
            UnixStream::connect(&path)
                .is_ok()
                .then(|| format!("{who} runs here: it listens on {}", path.display()))
        };
        let locked = |path: PathBuf, who: &str| {
            is_locked(&path).then(|| format!("{who} runs here: it holds {}", path.display()))
        };
        SOCKETS
            .iter()
            .find_map(listens)
            .or_else(|| locked(self.run.join(RUN_LOCK), "espalier-dataplane"))
            .or_else(|| locked(self.state.join(STATE_LOCK), "espalier-agent"))
    }

    /// The CNI configuration, if it names our plugin, and the plugin.
    pub(super) fn remove_cni(&self) -> Result<Removed> {
        let mut removed = Removed::default();
        // The agent writes the second name first.
        for name in [CONFLIST.to_owned(), format!(".{CONFLIST}.new")] {
            Self::remove_conflist(&self.cni_conf.join(name), &mut removed)?;
        }
        // Half written ones of `install-cni` begin with a dot.
        let half = format!(".{PLUGIN}.");
        for name in names_in(&self.cni_bin)? {
            if name == PLUGIN || name.starts_with(&half) {
                let path = self.cni_bin.join(&name);
                if remove(&path)? {
                    removed.gone(&path);
                }
            }
        }
        Ok(removed)
    }

    fn remove_conflist(path: &Path, removed: &mut Removed) -> Result<()> {
        match fs::read_to_string(path) {
            Ok(text) if text.contains(PLUGIN) || text.is_empty() => {
                if remove(path)? {
                    removed.gone(path);
                }
            }
            Ok(_) => removed
                .left
                .push(format!("{}: it does not name {PLUGIN}", path.display())),
            Err(error) if is_missing(&error) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", path.display()));
            }
        }
        Ok(())
    }

    /// The run and the state folder, the folders themselves if nothing else is in them.
    pub(super) fn remove_own(&self) -> Result<Removed> {
        let mut removed = Removed::default();
        empty(&self.run, &IN_RUN, &mut removed)?;
        empty(&self.state, &IN_STATE, &mut removed)?;
        Ok(removed)
    }
}

fn empty(folder: &Path, ours: &[&str], removed: &mut Removed) -> Result<()> {
    for name in names_in(folder)? {
        let path = folder.join(&name);
        if !ours.iter().any(|own| is_one(&name, own)) {
            removed.left.push(format!("{}: not ours", path.display()));
        } else if remove(&path)? {
            removed.gone(&path);
        }
    }
    match fs::remove_dir(folder) {
        Ok(()) => removed.gone(folder),
        Err(error) if is_missing(&error) => {}
        // A mount point, as in a container: what is in it was ours, it itself is not.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
        Err(error) => return Err(error).with_context(|| format!("removing {}", folder.display())),
    }
    Ok(())
}

/// The file itself, `NAME.new`, or the hidden `.NAME….tmp`.
fn is_one(name: &str, own: &str) -> bool {
    if own == PKI && name.starts_with("pki.") {
        return true;
    }
    let hidden = name
        .strip_prefix('.')
        .and_then(|name| name.strip_prefix(own))
        .is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".tmp"));
    let new = name.strip_suffix(".new") == Some(own);
    name == own || new || hidden
}

/// Nobody holds what does not exist.
fn is_locked(path: &Path) -> bool {
    let file = File::options().write(true).open(path);
    file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let named = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    match fs::read_dir(folder).and_then(|entries| entries.map(named).collect()) {
        Ok(names) => Ok(names),
        Err(error) if is_missing(&error) => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", folder.display())),
    }
}

/// Says whether it was there. What a link leads to stays.
fn remove(path: &Path) -> Result<bool> {
    let outcome = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
