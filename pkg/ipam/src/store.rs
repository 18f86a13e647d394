use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use crate::pending::{self, PendingError};
use crate::{Allocator, Error, Key, Lease, Owner, envelope};

const KIND: &str = "espalier-leases";

/// An [`Allocator`] whose every change is on disk before it counts. One process at a time: a lock beside the file goes with
/// the process.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    allocator: Allocator,
    is_new: bool,
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
        let state = match fs::read(path) {
            Ok(bytes) => {
                Some(envelope::open(KIND, &bytes).map_err(|reason| damaged(path, reason))?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => {
                return Err(StoreError::Io {
                    action: "read",
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let is_new = state.is_none();
        let allocator = Allocator::restore(cidrs, reuse_delay, state.unwrap_or_default());
        let allocator = allocator.map_err(|error| match error {
            Error::Contradiction { .. } => damaged(path, error.to_string()),
            other => other.into(),
        })?;
        let mut store = Self {
            path: path.to_owned(),
            allocator,
            is_new,
            _lock: lock,
        };
        store.replace(store.allocator.clone())?;
        Ok(store)
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
        let mut changed = self.allocator.clone();
        let lease = changed.allocate(key, owner, now)?;
        self.replace(changed)?;
        Ok(lease)
    }

    /// [`Allocator::release`], durable.
    ///
    /// # Errors
    /// [`StoreError::Io`], and then nothing is released.
    pub fn release(&mut self, key: &Key, now: SystemTime) -> Result<Option<Lease>, StoreError> {
        let mut changed = self.allocator.clone();
        let lease = changed.release(key, now);
        if lease.is_some() {
            self.replace(changed)?;
        }
        Ok(lease)
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

    /// Disk first: when that fails, memory still says what disk says.
    fn replace(&mut self, allocator: Allocator) -> Result<(), StoreError> {
        let bytes = envelope::seal(KIND, &allocator.state());
        let failed = |source| StoreError::Io {
            action: "write",
            path: self.path.clone(),
            source,
        };
        envelope::write(&self.path, &bytes).map_err(failed)?;
        self.allocator = allocator;
        Ok(())
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
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn key(n: usize) -> Key {
        Key::new(format!("container{n}"), "eth0")
    }

    fn open(dir: &TempDir) -> Result<Store, StoreError> {
        let cidrs = ["10.0.0.0/28".parse().unwrap()];
        Store::open(&dir.path().join("state/leases"), &cidrs, Duration::ZERO)
    }

    fn filled() -> (TempDir, PathBuf, Vec<u8>) {
        let dir = TempDir::new().unwrap();
        let mut store = open(&dir).unwrap();
        let owner = Owner {
            pod_name: "web".into(),
            ..Owner::default()
        };
        (0..3).for_each(|n| drop(store.allocate(&key(n), owner.clone(), now()).unwrap()));
        store.release(&key(1), now()).unwrap();
        let path = store.path.clone();
        let bytes = fs::read(&path).unwrap();
        (dir, path, bytes)
    }

    #[test]
    fn leases_survive_a_restart() {
        let (dir, ..) = filled();
        let mut store = open(&dir).unwrap();
        assert!(!store.is_new());
        let names: Vec<_> = store
            .leases()
            .map(|lease| lease.key.container_id.clone())
            .collect();
        assert_eq!(names, ["container0", "container2"]);
        let lease = store.allocate(&key(0), Owner::default(), now()).unwrap();
        assert_eq!(
            (lease.addresses[0].address.to_string(), lease.owner.pod_name),
            ("10.0.0.2".into(), "web".into())
        );
        let fresh = store.allocate(&key(7), Owner::default(), now()).unwrap();
        assert_eq!(
            fresh.addresses[0].address.to_string(),
            "10.0.0.5",
            "the freed one waits for its turn"
        );
    }

    /// What an unlucky power cut or a full disk leaves must never look like a node without pods.
    #[test]
    fn a_file_cut_at_any_offset_is_refused_by_name() {
        let (dir, path, bytes) = filled();
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            let error = open(&dir).unwrap_err();
            assert!(
                matches!(&error, StoreError::Damaged { path: named, .. } if *named == path),
                "{length}: {error}"
            );
            assert!(error.to_string().contains("drain this node"), "{error}");
            assert_eq!(
                fs::read(&path).unwrap().len(),
                length,
                "the evidence was changed"
            );
        }
        fs::write(&path, &bytes).unwrap();
        assert_eq!(open(&dir).unwrap().leases().len(), 2);
    }

    #[test]
    fn a_file_with_any_byte_changed_is_refused() {
        let (dir, path, bytes) = filled();
        for offset in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[offset] ^= 0x01;
            fs::write(&path, &changed).unwrap();
            assert!(
                matches!(open(&dir), Err(StoreError::Damaged { .. })),
                "byte {offset}"
            );
        }
        fs::write(&path, [bytes.as_slice(), b"x"].concat()).unwrap();
        assert!(
            matches!(open(&dir), Err(StoreError::Damaged { .. })),
            "one byte more"
        );
    }

    #[test]
    fn a_newer_format_is_refused_as_such() {
        let (dir, path, bytes) = filled();
        let text = String::from_utf8(bytes).unwrap().replacen(
            "espalier-leases 1 ",
            "espalier-leases 2 ",
            1,
        );
        fs::write(&path, text).unwrap();
        let text = open(&dir).unwrap_err().to_string();
        assert!(
            text.contains("format version is \"2\": expected 1"),
            "{text}"
        );
    }

    #[test]
    fn a_second_agent_is_kept_out_while_the_first_lives() {
        let dir = TempDir::new().unwrap();
        let first = open(&dir).unwrap();
        assert!(first.is_new());
        assert!(matches!(open(&dir), Err(StoreError::Locked { .. })));
        drop(first);
        assert!(open(&dir).is_ok());
    }

    #[test]
    fn what_cannot_be_written_has_not_happened() {
        let dir = TempDir::new().unwrap();
        let mut store = open(&dir).unwrap();
        store.allocate(&key(0), Owner::default(), now()).unwrap();
        // A folder in the file's place: the rename fails, for root too.
        let aside = dir.path().join("aside");
        fs::rename(&store.path, &aside).unwrap();
        fs::create_dir(&store.path).unwrap();
        assert!(matches!(
            store.allocate(&key(1), Owner::default(), now()),
            Err(StoreError::Io { .. })
        ));
        assert!(matches!(
            store.release(&key(0), now()),
            Err(StoreError::Io { .. })
        ));
        assert_eq!((store.get(&key(1)), store.leases().len()), (None, 1));
        fs::remove_dir(&store.path).unwrap();
        fs::rename(&aside, &store.path).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path().join("state")).unwrap().collect();
        assert_eq!(left.len(), 2, "leases and lock, no temporary file");
    }

    #[test]
    fn a_queued_release_is_consumed_once() {
        let dir = TempDir::new().unwrap();
        let mut store = open(&dir).unwrap();
        store.allocate(&key(0), Owner::default(), now()).unwrap();
        pending::queue(dir.path(), &key(0)).unwrap();
        pending::queue(dir.path(), &key(5)).unwrap();
        fs::write(dir.path().join(pending::FOLDER).join("bad.release"), "torn").unwrap();
        let consumed = store.consume_pending(dir.path(), now());
        assert_eq!(
            (consumed.released, consumed.errors.len()),
            (vec![key(0)], 1)
        );
        assert_eq!(store.leases().len(), 0);
        store.allocate(&key(0), Owner::default(), now()).unwrap();
        assert!(
            store.consume_pending(dir.path(), now()).released.is_empty(),
            "a new lease is not touched"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn memory_and_disk_agree_after_any_sequence(ops in prop::collection::vec((0usize..20, 0u8..3), 1..30)) {
            let dir = TempDir::new().unwrap();
            let mut store = open(&dir).unwrap();
            for (n, op) in ops {
                match op {
                    0 => drop(store.release(&key(n), now()).unwrap()),
                    _ => drop(store.allocate(&key(n), Owner::default(), now())),
                }
                let before: Vec<_> = store.leases().cloned().collect();
                drop(store);
                store = open(&dir).unwrap();
                prop_assert_eq!(store.leases().cloned().collect::<Vec<_>>(), before);
            }
        }
    }
}
