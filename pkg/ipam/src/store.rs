use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;

use crate::journal::{self, Change, Durable, Journal};
use crate::pending::{self, PendingError};
use crate::{Allocator, Error, Key, Lease, Owner, envelope};

const KIND: &str = "espalier-leases";
/// So many changes since the lease file was written are enough to write it again when there is time.
const TIDY_AFTER: usize = 256;
/// So many, and it is written in any case.
const MOST_CHANGES: usize = 4096;

/// An [`Allocator`] whose every change is on disk before it counts: a file with all leases, and beside it a journal of the
/// changes since. One process at a time: a lock beside them goes with the process.
///
/// A new lease is synced before anybody hears of it. That one was released is written at once and synced a little later: a
/// power cut ends every pod, and a lease that came back with it has no interface and is given back again.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    allocator: Allocator,
    is_new: bool,
    journal: Journal,
    _lock: File,
}

/// Why the leases cannot be read, kept or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No address, or CIDRs that cannot work.
    #[error(transparent)]
    Allocator(#[from] Error),
    /// The file is torn or changed. It is never taken for an empty one: addresses in use would be given out again.
    #[error(
        "lease file {} is damaged: {reason}; restore it from a backup, or drain this node of pods, remove the file and start the agent again",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process has the file.
    #[error("lease file {} is in use by another process: stop the other agent of this node", path.display())]
    Locked {
        /// Which file.
        path: PathBuf,
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

/// What [`Store::consume_pending`] did.
#[derive(Debug, Default)]
pub struct Consumed {
    /// Keys that had leases and have none now.
    pub released: Vec<Key>,
    /// What could not be read, released or removed; the rest was done all the same.
    pub errors: Vec<StoreError>,
}

impl Store {
    /// Opens the leases of this node; folders and file are made when there are none yet.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Locked`], [`StoreError::Io`], [`StoreError::Allocator`].
    pub fn open(path: &Path, cidrs: &[IpNet], reuse_delay: Duration) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        let (bytes, journal) = (read(path)?, read(&journal::path(path))?);
        let is_new = bytes.is_none();
        let allocator = restore(path, cidrs, reuse_delay, bytes, journal)?;
        let journal = write_all(path, &allocator)?;
        Ok(Self {
            path: path.to_owned(),
            allocator,
            is_new,
            journal,
            _lock: lock,
        })
    }

    /// Was there no file? Worth a line in the log: whoever removed it loses the leases.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// [`Allocator::allocate`], durable.
    ///
    /// # Errors
    /// [`StoreError::Allocator`]; [`StoreError::Io`], and then nothing is taken.
    pub fn allocate(
        &mut self,
        key: &Key,
        owner: Owner,
        now: SystemTime,
    ) -> Result<Lease, StoreError> {
        if let Some(lease) = self.allocator.get(key) {
            return Ok(lease.clone());
        }
        let lease = self.allocator.allocate(key, owner, now)?;
        let recorded = self.record(&Change::Leased(lease.clone()), Durable::Now);
        if let Err(error) = recorded {
            self.allocator.take_back(key);
            return Err(error);
        }
        Ok(lease)
    }

    /// [`Allocator::release`]; on disk, and durable with the next lease or [`Self::tidy`].
    ///
    /// # Errors
    /// [`StoreError::Io`], and then nothing is released.
    pub fn release(&mut self, key: &Key, now: SystemTime) -> Result<Option<Lease>, StoreError> {
        let Some(lease) = self.allocator.release(key, now) else {
            return Ok(None);
        };
        let change = Change::Released {
            key: key.clone(),
            at_ms: millis(now),
        };
        if let Err(error) = self.record(&change, Durable::Later) {
            self.allocator.put_back(lease)?;
            return Err(error);
        }
        Ok(Some(lease))
    }

    /// Releases what a CNI network leased and none of `keep` has: GC. Gives the keys.
    ///
    /// # Errors
    /// [`StoreError::Io`]; some may be released then.
    pub fn collect(
        &mut self,
        network: &str,
        keep: &HashSet<Key>,
        now: SystemTime,
    ) -> Result<Vec<Key>, StoreError> {
        let stale = |lease: &&Lease| lease.owner.network == network && !keep.contains(&lease.key);
        let stale: Vec<_> = self.leases().filter(stale).map(|l| l.key.clone()).collect();
        for key in &stale {
            self.release(key, now)?;
        }
        Ok(stale)
    }

    /// [`Allocator::room`].
    ///
    /// # Errors
    /// [`StoreError::Allocator`].
    pub fn room(&self, now: SystemTime) -> Result<(), StoreError> {
        Ok(self.allocator.room(now)?)
    }

    /// Makes durable what is not yet, and writes the lease file again after many changes. Call it from time to time.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn tidy(&mut self) -> Result<(), StoreError> {
        if self.journal.is_broken() || self.journal.entries() >= TIDY_AFTER {
            return self.rewrite();
        }
        let synced = self.journal.sync();
        synced.map_err(io_error("sync", &journal::path(&self.path)))
    }

    /// What `key` has.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Lease> {
        self.allocator.get(key)
    }

    /// All leases, by key.
    pub fn leases(&self) -> impl ExactSizeIterator<Item = &Lease> {
        self.allocator.leases()
    }

    /// Releases what the CNI plugin queued in `state_dir` while nobody served it. Call it before serving and from time to
    /// time. No [`Store::allocate`] can come between: the plugin takes its entry back before it asks for addresses, and
    /// an entry is only removed after its release.
    pub fn consume_pending(&mut self, state_dir: &Path, now: SystemTime) -> Consumed {
        let mut consumed = Consumed::default();
        for entry in pending::list(state_dir) {
            match entry
                .map_err(StoreError::from)
                .and_then(|entry| self.consume(entry, now))
            {
                Ok(released) => consumed.released.extend(released),
                Err(error) => consumed.errors.push(error),
            }
        }
        consumed
    }

    fn consume(
        &mut self,
        entry: pending::Pending,
        now: SystemTime,
    ) -> Result<Option<Key>, StoreError> {
        let released = self.release(entry.key(), now)?.map(|lease| lease.key);
        entry.done()?;
        Ok(released)
    }

    /// What memory has is what disk is to have.
    fn record(&mut self, change: &Change, durable: Durable) -> Result<(), StoreError> {
        if self.journal.is_broken() || self.journal.entries() >= MOST_CHANGES {
            return self.rewrite();
        }
        let appended = self.journal.append(change, durable);
        appended.map_err(io_error("write", &journal::path(&self.path)))
    }

    fn rewrite(&mut self) -> Result<(), StoreError> {
        // Should only its second half fail, nothing may be appended to the old journal, which is of the old file.
        self.journal.set_broken();
        self.journal = write_all(&self.path, &self.allocator)?;
        Ok(())
    }
}

/// The lease file, then an empty journal of it: a crash in between leaves the old journal, which is not of this file.
fn write_all(path: &Path, allocator: &Allocator) -> Result<Journal, StoreError> {
    let bytes = envelope::seal(KIND, &allocator.state());
    envelope::write(path, &bytes).map_err(io_error("write", path))?;
    let journal = Journal::start(path, &envelope::digest(&bytes));
    journal.map_err(io_error("write", &journal::path(path)))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// What the two files say. A journal without its lease file counts for nothing: whoever removed that wants to begin anew.
fn restore(
    path: &Path,
    cidrs: &[IpNet],
    reuse_delay: Duration,
    bytes: Option<Vec<u8>>,
    journal: Option<Vec<u8>>,
) -> Result<Allocator, StoreError> {
    let Some(bytes) = bytes else {
        return Ok(Allocator::new(cidrs, reuse_delay)?);
    };
    let state = envelope::open(KIND, &bytes).map_err(|reason| damaged(path, reason))?;
    let contradiction = |path: &Path, error: Error| match error {
        Error::Contradiction { .. } => damaged(path, error.to_string()),
        other => other.into(),
    };
    let mut allocator =
        Allocator::restore(cidrs, reuse_delay, state).map_err(|e| contradiction(path, e))?;
    let path = journal::path(path);
    let changes = journal::changes(&journal.unwrap_or_default(), &envelope::digest(&bytes));
    for change in changes.map_err(|reason| damaged(&path, reason))? {
        match change {
            Change::Leased(lease) => allocator
                .put_back(lease)
                .map_err(|e| contradiction(&path, e))?,
            Change::Released { key, at_ms } => {
                allocator.release(&key, UNIX_EPOCH + Duration::from_millis(at_ms));
            }
        }
    }
    Ok(allocator)
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        action,
        path,
        source,
    }
}

impl From<PendingError> for StoreError {
    fn from(error: PendingError) -> Self {
        match error {
            PendingError::Damaged { path, reason } => Self::Damaged { path, reason },
            PendingError::Io {
                action,
                path,
                source,
            } => Self::Io {
                action,
                path,
                source,
            },
        }
    }
}

fn damaged(path: &Path, reason: String) -> StoreError {
    StoreError::Damaged {
        path: path.to_owned(),
        reason,
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let failed = |action, source| StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|source| failed("make the folder of", source))?;
    }
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path.with_extension("lock"));
    let file = file.map_err(|source| failed("make the lock of", source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(failed("lock", source)),
    }
}

#[cfg(test)]
mod tests;
