use std::time::UNIX_EPOCH;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// In memory where that is to be had: every write is synced.
fn folder() -> TempDir {
    let memory = TempDir::new_in("/dev/shm");
    memory.or_else(|_| TempDir::new()).unwrap()
}

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
    let dir = folder();
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
    let text =
        String::from_utf8(bytes)
            .unwrap()
            .replacen("espalier-leases 1 ", "espalier-leases 2 ", 1);
    fs::write(&path, text).unwrap();
    let text = open(&dir).unwrap_err().to_string();
    assert!(
        text.contains("format version is \"2\": expected 1"),
        "{text}"
    );
}

#[test]
fn a_second_agent_is_kept_out_while_the_first_lives() {
    let dir = folder();
    let first = open(&dir).unwrap();
    assert!(first.is_new());
    assert!(matches!(open(&dir), Err(StoreError::Locked { .. })));
    drop(first);
    assert!(open(&dir).is_ok());
}

#[test]
fn what_cannot_be_written_has_not_happened() {
    let dir = folder();
    let mut store = open(&dir).unwrap();
    store.allocate(&key(0), Owner::default(), now()).unwrap();
    // Cannot be written; then neither can the lease file be: a folder in its place, for root too.
    let journal = File::open(journal::path(&store.path)).unwrap();
    store.journal.replace_file(journal);
    let aside = dir.path().join("aside");
    fs::rename(&store.path, &aside).unwrap();
    fs::create_dir(&store.path).unwrap();
    for _ in 0..2 {
        assert!(matches!(
            store.allocate(&key(1), Owner::default(), now()),
            Err(StoreError::Io { .. })
        ));
        assert!(matches!(
            store.release(&key(0), now()),
            Err(StoreError::Io { .. })
        ));
        assert_eq!((store.get(&key(1)), store.leases().len()), (None, 1));
    }
    fs::remove_dir(&store.path).unwrap();
    fs::rename(&aside, &store.path).unwrap();
    let left: Vec<_> = fs::read_dir(dir.path().join("state")).unwrap().collect();
    assert_eq!(left.len(), 3, "leases, journal and lock, no temporary file");

    // And as soon as it can be written again, it is.
    let lease = store.allocate(&key(1), Owner::default(), now()).unwrap();
    assert_ne!(lease.addresses[0].address.to_string(), "10.0.0.2");
    drop(store);
    assert_eq!(open(&dir).unwrap().leases().len(), 2);
}

/// What the journal has, without its unused rest.
fn entries(journal: &Path) -> Vec<u8> {
    let mut bytes = fs::read(journal).unwrap();
    bytes.truncate(bytes.iter().rposition(|b| *b != 0).unwrap() + 1);
    bytes
}

/// Whatever of the journal a crash leaves: the node has the leases of a moment that there was, and none that was released and
/// synced comes back.
#[test]
fn a_journal_cut_at_any_offset_is_a_moment_of_the_past() {
    let dir = folder();
    let mut store = open(&dir).unwrap();
    let (path, mut moments) = (store.path.clone(), vec![Vec::new()]);
    for step in 0..6 {
        match step % 3 {
            2 => drop(store.release(&key(step - 2), now()).unwrap()),
            _ => drop(store.allocate(&key(step), Owner::default(), now()).unwrap()),
        }
        moments.push(store.leases().cloned().collect());
    }
    let (leases, journal) = (fs::read(&path).unwrap(), journal::path(&path));
    let bytes = entries(&journal);
    drop(store);
    let mut reached = 0;
    for length in 0..=bytes.len() {
        fs::write(&path, &leases).unwrap();
        fs::write(&journal, &bytes[..length]).unwrap();
        let found: Vec<_> = open(&dir).unwrap().leases().cloned().collect();
        let moment = moments.iter().position(|moment| *moment == found);
        let moment = moment.unwrap_or_else(|| panic!("{length}: {found:?}"));
        assert!(moment >= reached, "{length}: back in time");
        reached = moment;
    }
    assert_eq!(reached, moments.len() - 1);
}

#[test]
fn a_damaged_journal_is_refused_by_name() {
    let (dir, path, _) = filled();
    let journal = journal::path(&path);
    let mut bytes = entries(&journal);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&journal, &bytes).unwrap();
    let error = open(&dir).unwrap_err();
    assert!(
        matches!(&error, StoreError::Damaged { path, .. } if *path == journal),
        "{error}"
    );
    assert_eq!(
        fs::read(&journal).unwrap(),
        bytes,
        "the evidence was changed"
    );
}

#[test]
fn after_many_changes_the_lease_file_has_them_and_the_journal_is_empty() {
    let dir = folder();
    let mut store = open(&dir).unwrap();
    for n in 0..TIDY_AFTER {
        store.allocate(&key(n), Owner::default(), now()).unwrap();
        store.release(&key(n), now()).unwrap();
    }
    store.allocate(&key(0), Owner::default(), now()).unwrap();
    let journal = journal::path(&store.path);
    assert!(entries(&journal).len() > 1000);
    store.tidy().unwrap();
    assert!(entries(&journal).len() < 200);
    store.allocate(&key(1), Owner::default(), now()).unwrap();
    drop(store);
    assert_eq!(open(&dir).unwrap().leases().len(), 2);
}

#[test]
fn gc_takes_what_its_network_leased_and_nobody_has() {
    let dir = folder();
    let mut store = open(&dir).unwrap();
    for (n, network) in [(0, "mesh"), (1, "mesh"), (2, "other"), (3, "")] {
        let owner = Owner {
            network: network.into(),
            ..Owner::default()
        };
        store.allocate(&key(n), owner, now()).unwrap();
    }
    let keep = HashSet::from([key(0)]);
    assert_eq!(store.collect("mesh", &keep, now()).unwrap(), [key(1)]);
    assert!(store.collect("mesh", &keep, now()).unwrap().is_empty());
    drop(store);
    assert_eq!(open(&dir).unwrap().leases().len(), 3);
}

#[test]
fn room_is_what_an_allocation_would_find() {
    let dir = folder();
    let mut store = open(&dir).unwrap();
    for n in 0..13 {
        store.room(now()).unwrap();
        store.allocate(&key(n), Owner::default(), now()).unwrap();
    }
    let text = store.room(now()).unwrap_err().to_string();
    assert!(text.contains("13 of 13 in use"), "{text}");
}

#[test]
fn a_queued_release_is_consumed_once() {
    let dir = folder();
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
        let dir = folder();
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
