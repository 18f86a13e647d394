//! The run directory, held by one data plane at a time.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// A claimed run directory. The lock goes with the process, however it ends; the sockets of a killed one are replaced.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    lock: File,
}

impl RunDir {
    /// Makes the directory if it is not there, and locks it.
    pub(crate) fn claim(path: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .with_context(|| {
                format!(
                    "making {}: give another --run-dir, or run this as root",
                    path.display()
                )
            })?;
        let lock_path = path.join("dataplane.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| {
                format!(
                    "opening {}: give another --run-dir, or run this as root",
                    lock_path.display()
                )
            })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                lock,
            }),
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "another espalier-dataplane runs in {}; stop it first or give another --run-dir",
                    path.display()
                )
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("locking {}", lock_path.display()))
            }
        }
    }

    /// Goes on with the lock of the program before, which this process has had all the time.
    pub(crate) fn resume(path: &Path, lock: OwnedFd) -> Self {
        Self {
            path: path.to_owned(),
            lock: lock.into(),
        }
    }

    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the agent finds the gRPC service.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("dataplane.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/when/missing");
        let first = RunDir::claim(&path).unwrap();
        let refused = RunDir::claim(&path).unwrap_err().to_string();
        assert!(
            refused.contains("another espalier-dataplane") && refused.contains("--run-dir"),
            "{refused}"
        );
        drop(first);
        RunDir::claim(&path).unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = format!(
            "{:#}",
            RunDir::claim(&file.path().join("below")).unwrap_err()
        );
        assert!(
            refused.contains("below") && refused.contains("--run-dir"),
            "{refused}"
        );
    }
}
