//! The lease file, as a crash, a full disk or an older release left it.

use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use espalier_ipam::{Key, Owner, Store, pending};
use ipnet::IpNet;

/// The file as it is; then the same bytes as content behind a right first line, so that mutants get past the checksum. Then
/// both as a queued release.
pub fn ipam_store(data: &[u8]) {
    open(data);
    open(&sealed("espalier-leases", data));
    release(data);
    release(&sealed("espalier-release", data));
    journal(data.to_vec());
    journal(entries(data));
}

/// The file's first line with its digest, which a journal's first line and the sum of its first entry hold.
fn empty_store(file: &Path) -> String {
    drop(open_store(file).expect("an empty store"));
    let bytes = fs::read(file.with_extension("journal")).expect("its journal");
    let line = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(line).into_owned()
}

/// A lease file without leases, and these bytes as what changed since.
fn journal(bytes: Vec<u8>) {
    let folder = folder();
    let file = folder.path().join("leases");
    let first = empty_store(&file);
    let (path, bytes) = (
        file.with_extension("journal"),
        [first.as_bytes(), b"\n", &bytes].concat(),
    );
    fs::write(&path, &bytes).expect("a file in a temporary folder");
    match open_store(&file) {
        Some(store) => {
            let before: Vec<_> = store.leases().cloned().collect();
            drop(store);
            let store = open_store(&file).expect("what was written opens");
            assert!(store.leases().eq(&before));
        }
        None => assert_eq!(fs::read(&path).ok(), Some(bytes), "the evidence stays"),
    }
}

/// Each line as an entry with a right sum, so that mutants get past it.
fn entries(data: &[u8]) -> Vec<u8> {
    let folder = folder();
    let first = empty_store(&folder.path().join("leases"));
    let mut sum = first.rsplit(' ').next().unwrap_or_default().to_owned();
    let mut entries = Vec::new();
    for body in data.split(|byte| *byte == b'\n') {
        sum = hex(&[sum.as_bytes(), body].concat());
        entries.extend(format!("{} {sum} ", body.len()).into_bytes());
        entries.extend([body, b"\n"].concat());
    }
    entries
}

/// In memory where that is to be had: the store syncs every write.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary folder")
}

fn cidrs() -> [IpNet; 2] {
    ["10.244.1.0/28", "fd00:10:0:1::/120"].map(|cidr| cidr.parse().expect("a CIDR"))
}

fn open_store(file: &Path) -> Option<Store> {
    Store::open(file, &cidrs(), Duration::ZERO).ok()
}

/// What opens stays the same when it is opened again, and gives out no address twice.
fn open(bytes: &[u8]) {
    let folder = folder();
    let file = folder.path().join("leases");
    fs::write(&file, bytes).expect("a file in a temporary folder");
    let Some(store) = open_store(&file) else {
        assert_eq!(
            fs::read(&file).ok().as_deref(),
            Some(bytes),
            "the evidence stays"
        );
        return;
    };
    let before: Vec<_> = store.leases().cloned().collect();
    drop(store);
    let mut store = open_store(&file).expect("what was written opens");
    assert!(store.leases().eq(&before));
    let key = Key::new("fuzz", "eth0");
    let known = store.get(&key).is_some();
    if let Ok(lease) = store.allocate(&key, Owner::default(), UNIX_EPOCH)
        && !known
    {
        let taken = |address| before.iter().any(|lease| lease.addresses.contains(address));
        assert!(
            !lease.addresses.iter().any(taken),
            "an address was given out twice"
        );
    }
}

fn release(bytes: &[u8]) {
    let folder = folder();
    let queue = folder.path().join(pending::FOLDER);
    fs::create_dir(&queue).expect("a folder in a temporary one");
    fs::write(queue.join("fuzz.release"), bytes).expect("a file in a temporary folder");
    let entries = pending::list(folder.path());
    assert_eq!(entries.len(), 1);
    for entry in entries.into_iter().flatten() {
        entry.done().expect("an entry that was read can be removed");
        assert!(pending::list(folder.path()).is_empty());
    }
}

fn sealed(kind: &str, body: &[u8]) -> Vec<u8> {
    let sum = hex(body);
    [format!("{kind} 1 {} {sum}\n", body.len()).as_bytes(), body].concat()
}

fn hex(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
