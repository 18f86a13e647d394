//! Releases that the CNI plugin could not hand to the agent: one small file per interface in `STATE_DIR/pending-release`,
//! whole or refused like the leases themselves. The agent consumes them when it returns
//! ([`crate::Store::consume_pending`]); an ADD of the same interface takes its entry back first ([`cancel`]).

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::{Key, envelope};

/// Name of the folder inside the state folder.
pub const FOLDER: &str = "pending-release";

const KIND: &str = "espalier-release";
const SUFFIX: &str = ".release";

/// A queued release.
#[derive(Debug)]
pub struct Pending {
    key: Key,
    path: PathBuf,
}

/// Why an entry cannot be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum PendingError {
    /// The entry is torn or changed.
    #[error("queued release {} is damaged: {reason}; remove the file: the agent frees the address of an interface that is gone", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system says no.
    #[error("cannot {action} {}: {source}; check the file system's space and permissions", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Queues a release, durably. Queueing twice is queueing once.
///
/// # Errors
/// [`PendingError::Io`].
pub fn queue(state_dir: &Path, key: &Key) -> Result<(), PendingError> {
    let path = path(state_dir, key);
    let make = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir.join(FOLDER));
    make.map_err(io_error("make the folder of", &path))?;
    envelope::write(&path, &envelope::seal(KIND, key)).map_err(io_error("write", &path))
}

/// Takes a queued release back; false when there is none.
///
/// # Errors
/// [`PendingError::Io`].
pub fn cancel(state_dir: &Path, key: &Key) -> Result<bool, PendingError> {
    remove(&path(state_dir, key))
}

/// Every entry; one that cannot be read is an error among them. No folder is no entry.
#[must_use]
pub fn list(state_dir: &Path) -> Vec<Result<Pending, PendingError>> {
    let folder = state_dir.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![Err(io_error("list", &folder)(error))],
    };
    let named = |entry: &io::Result<fs::DirEntry>| match entry {
        Ok(entry) => entry.file_name().to_string_lossy().ends_with(SUFFIX),
        Err(_) => true,
    };
    let entries = entries.filter(named);
    entries
        .filter_map(|e| {
            e.map_err(io_error("list", &folder))
                .and_then(|e| read(e.path()))
                .transpose()
        })
        .collect()
}

impl Pending {
    /// What to release.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Removes the entry: the release is done.
    ///
    /// # Errors
    /// [`PendingError::Io`].
    pub fn done(self) -> Result<(), PendingError> {
        remove(&self.path).map(drop)
    }
}

/// `None`: taken back since it was listed.
fn read(path: PathBuf) -> Result<Option<Pending>, PendingError> {
    match fs::read(&path) {
        Ok(bytes) => match envelope::open(KIND, &bytes) {
            Ok(key) => Ok(Some(Pending { key, path })),
            Err(reason) => Err(PendingError::Damaged { path, reason }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

fn remove(path: &Path) -> Result<bool, PendingError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("remove", path)(error)),
    }
}

/// The name is a digest: container IDs may be longer than a file name.
fn path(state_dir: &Path, key: &Key) -> PathBuf {
    state_dir
        .join(FOLDER)
        .join(envelope::digest(key.to_string().as_bytes()) + SUFFIX)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PendingError {
    let path = path.to_owned();
    move |source| PendingError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new("c0ffee", "eth0")
    }

    fn keys(state_dir: &Path) -> Vec<Key> {
        list(state_dir)
            .into_iter()
            .map(|entry| entry.unwrap().key)
            .collect()
    }

    #[test]
    fn an_entry_is_listed_until_done_or_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(list(dir.path()).is_empty());
        assert!(!cancel(dir.path(), &key()).unwrap());
        queue(dir.path(), &key()).unwrap();
        queue(dir.path(), &key()).unwrap();
        assert_eq!(keys(dir.path()), [key()]);
        assert!(cancel(dir.path(), &key()).unwrap());
        assert!(list(dir.path()).is_empty());
        queue(dir.path(), &key()).unwrap();
        list(dir.path()).remove(0).unwrap().done().unwrap();
        assert!(keys(dir.path()).is_empty());
    }

    #[test]
    fn interfaces_of_one_container_are_apart() {
        let dir = tempfile::tempdir().unwrap();
        queue(dir.path(), &key()).unwrap();
        queue(dir.path(), &Key::new("c0ffee", "net1")).unwrap();
        assert_eq!(keys(dir.path()).len(), 2);
    }

    #[test]
    fn a_torn_entry_is_named_and_the_rest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        queue(dir.path(), &key()).unwrap();
        let file = path(dir.path(), &key());
        let bytes = fs::read(&file).unwrap();
        queue(dir.path(), &Key::new("other", "eth0")).unwrap();
        for length in 0..bytes.len() {
            fs::write(&file, &bytes[..length]).unwrap();
            let (good, bad): (Vec<_>, Vec<_>) =
                list(dir.path()).into_iter().partition(Result::is_ok);
            assert_eq!((good.len(), bad.len()), (1, 1), "{length}");
            assert!(matches!(&bad[0], Err(PendingError::Damaged { path, .. }) if *path == file));
        }
    }

    #[test]
    fn a_file_in_the_making_is_no_entry() {
        let dir = tempfile::tempdir().unwrap();
        queue(dir.path(), &key()).unwrap();
        fs::write(dir.path().join(FOLDER).join(".x.release.1.tmp"), "half").unwrap();
        assert_eq!(keys(dir.path()).len(), 1);
    }
}
