//! The pod's namespace, opened once.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use espalier_netlink::{Errno, visit_netns};

use crate::Error;

/// The calling thread's own.
const OWN: &str = "/proc/thread-self/ns/net";

#[derive(Debug)]
pub(crate) struct PodNetns {
    path: PathBuf,
    file: File,
}

impl PodNetns {
    /// Opens a namespace that must not be the host's.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Netns {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let (theirs, ours) = (
            file.metadata().map_err(failed)?,
            fs::metadata(OWN).map_err(failed)?,
        );
        if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
            return Err(Error::HostNetns {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// For DEL: `None` when it is gone, or its mount is gone and a plain file is left, or it is the host's.
    pub(crate) fn open_if_there(path: &Path) -> Result<Option<Self>, Error> {
        match Self::open(path) {
            Ok(netns) if netns.is_one()? => Ok(Some(netns)),
            Ok(_) | Err(Error::HostNetns { .. }) => Ok(None),
            Err(Error::Netns { source, .. }) if is_gone(&source) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `work` inside.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        visit_netns(&self.file, work).map_err(|error| self.cannot_enter(&error))?
    }

    fn is_one(&self) -> Result<bool, Error> {
        match visit_netns(&self.file, || ()) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(Errno::EINVAL) => Ok(false),
            Err(error) => Err(self.cannot_enter(&error)),
        }
    }

    fn cannot_enter(&self, error: &espalier_netlink::Error) -> Error {
        let source = error
            .errno()
            .map_or_else(|| io::Error::other(error.to_string()), io::Error::from);
        Error::Netns {
            path: self.path.clone(),
            source,
        }
    }
}

/// `/proc/PID/ns/net` of a process that has ended answers ESRCH.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    ) || error.raw_os_error() == Some(Errno::ESRCH as i32)
}
