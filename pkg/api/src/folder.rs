//! Standalone mode: a folder of manifests, followed live.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::snapshot::{MeshSnapshot, Store};

/// Editors write in several steps; they are taken together.
const SETTLE: Duration = Duration::from_millis(30);
/// Should the kernel have dropped an event.
const RESCAN: Duration = Duration::from_secs(15);
/// A manifest is small; a larger file is a mistake.
const MAX_FILE: u64 = 16 << 20;

/// Every file with its text, or why it cannot be read.
type Files = BTreeMap<String, Result<String, String>>;

/// Why a folder cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is not there or cannot be read.
    #[error(
        "folder of manifests {folder}: {cause}; create it with a Node for every host and an EncryptionPolicy named default"
    )]
    Unreadable {
        /// Which folder.
        folder: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It cannot be watched.
    #[error(
        "folder of manifests {folder} cannot be watched: {cause}; is fs.inotify.max_user_watches exhausted?"
    )]
    Unwatchable {
        /// Which folder.
        folder: PathBuf,
        /// Why.
        cause: notify::Error,
    },
}

/// A folder of manifests. Files `*.yaml` and `*.yml` count, hidden ones do not; replace them by rename or write in place.
#[derive(Debug)]
pub struct FolderSource {
    snapshots: watch::Receiver<MeshSnapshot>,
}

impl FolderSource {
    /// Reads `folder` and follows it until the last receiver is gone. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn start(folder: impl Into<PathBuf>) -> Result<Self, SourceError> {
        let folder = folder.into();
        let (poke, poked) = mpsc::channel(1);
        let watcher = watch_folder(&folder, poke)?;
        let files = read_folder(&folder).map_err(|cause| SourceError::Unreadable {
            folder: folder.clone(),
            cause,
        })?;
        let mut store = Store::default();
        let (sender, snapshots) = watch::channel(store.update(&files));
        let followed = Followed {
            seen: digest(&files),
            folder,
            store,
        };
        tokio::spawn(followed.follow(sender, poked, watcher));
        Ok(Self { snapshots })
    }

    /// What is in force, now and later.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<MeshSnapshot> {
        self.snapshots.clone()
    }
}

fn watch_folder(
    folder: &Path,
    poke: mpsc::Sender<()>,
) -> Result<notify::RecommendedWatcher, SourceError> {
    if let Err(cause) = fs::read_dir(folder) {
        return Err(SourceError::Unreadable {
            folder: folder.to_owned(),
            cause,
        });
    }
    let unwatchable = |cause| SourceError::Unwatchable {
        folder: folder.to_owned(),
        cause,
    };
    let reading = |event: &notify::Event| matches!(event.kind, notify::EventKind::Access(_));
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !event.as_ref().is_ok_and(reading) {
            // A full channel already holds the word.
            let _ = poke.try_send(());
        }
    })
    .map_err(unwatchable)?;
    watcher
        .watch(folder, RecursiveMode::NonRecursive)
        .map_err(unwatchable)?;
    Ok(watcher)
}

/// A folder that is looked at again and again.
struct Followed {
    folder: PathBuf,
    store: Store,
    /// Of the files that the store was last given: what is the same is not parsed again.
    seen: u64,
}

impl Followed {
    async fn follow(
        mut self,
        sender: watch::Sender<MeshSnapshot>,
        mut poked: mpsc::Receiver<()>,
        watcher: notify::RecommendedWatcher,
    ) {
        loop {
            tokio::select! {
                () = sender.closed() => break,
                Some(()) = poked.recv() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(RESCAN) => {}
            }
            // What happened while it settled is read below.
            let _ = poked.try_recv();
            self.look(&sender);
        }
        drop(watcher);
    }

    fn look(&mut self, sender: &watch::Sender<MeshSnapshot>) {
        match read_folder(&self.folder) {
            Ok(files) => {
                let now = digest(&files);
                if now != self.seen {
                    self.seen = now;
                    publish(sender, self.store.update(&files));
                }
            }
            // Never act on a partial list: what is in force stays.
            Err(e) => {
                warn!(folder = %self.folder.display(), error = %e, "folder of manifests cannot be read; nothing changes")
            }
        }
    }
}

fn digest(files: &Files) -> u64 {
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    hasher.finish()
}

fn publish(sender: &watch::Sender<MeshSnapshot>, snapshot: MeshSnapshot) {
    sender.send_if_modified(|old| {
        let changed = *old != snapshot;
        if changed {
            info!(nodes = snapshot.nodes.len(), mode = %snapshot.policy.mode, problems = snapshot.problems.len(), "manifests changed");
            *old = snapshot;
        }
        changed
    });
}

/// Every manifest by file name. Fails only when the folder as a whole cannot be listed.
fn read_folder(folder: &Path) -> std::io::Result<Files> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let is_manifest =
            path.extension().is_some_and(|e| e == "yaml" || e == "yml") && !name.starts_with('.');
        if is_manifest && path.is_file() {
            files.insert(name, read_file(&path));
        }
    }
    Ok(files)
}

fn read_file(path: &Path) -> Result<String, String> {
    let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_FILE {
        return Err(format!("{size} bytes; a manifest has at most {MAX_FILE}"));
    }
    fs::read_to_string(path)
        .map_err(|e| format!("cannot be read: {e}; its last good version stays in force"))
}
