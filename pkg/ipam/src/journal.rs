//! What changed since the lease file was written: appended to a file beside it, so that a change costs one write and one sync
//! however many leases there are.
//!
//! The first line is `espalier-journal VERSION DIGEST`, of the lease file that it goes on from; a journal of another one is an
//! old one, whose changes the lease file has. Then an entry a line: `LENGTH SUM JSON`, where the sum is that of the entry before
//! (at first: the digest) and of the JSON, so that none can be missing in between. A crash cuts the last entries off: nobody was
//! told of those. Whatever else is wrong is refused.
//!
//! The file is as long as it is to get from the start, filled with zeros: a sync of a file that does not grow is several times
//! faster, since its length need not be written too.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Key, Lease, envelope};

const KIND: &str = "espalier-journal";
const VERSION: u32 = 1;
/// Length in bytes of a new journal: about 500 changes.
const ROOM: usize = 256 << 10;

/// One change of the leases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// This lease is new.
    Leased(Lease),
    /// This one is gone since so many milliseconds after 1970.
    Released { key: Key, at_ms: u64 },
}

/// When a change must be on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// Before it counts.
    Now,
    /// With the next one that must, or [`Journal::sync`].
    Later,
}

/// The journal's file.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    /// Where the next entry goes.
    end: u64,
    sum: String,
    entries: usize,
    unsynced: bool,
    /// What is in the file is not known: only a new lease file helps.
    broken: bool,
}

impl Journal {
    /// A new one, after the lease file of this digest. Takes the place of the old one.
    pub(crate) fn start(leases: &Path, digest: &str) -> io::Result<Self> {
        let (path, mut bytes) = (path(leases), header(digest).into_bytes());
        let end = bytes.len() as u64;
        bytes.resize(ROOM, 0);
        envelope::write(&path, &bytes)?;
        Ok(Self {
            file: OpenOptions::new().write(true).open(path)?,
            end,
            sum: digest.to_owned(),
            entries: 0,
            unsynced: false,
            broken: false,
        })
    }

    /// How many changes it has.
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// Nothing may be appended any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(crate) fn set_broken(&mut self) {
        self.broken = true;
    }

    /// Appends a change. When that fails the file is [`Self::is_broken`].
    pub(crate) fn append(&mut self, change: &Change, durable: Durable) -> io::Result<()> {
        // Our own types: serialising cannot fail.
        let body = serde_json::to_string(change).unwrap_or_default();
        let sum = chained(&self.sum, body.as_bytes());
        let line = format!("{} {sum} {body}\n", body.len());
        let written = self.file.write_all_at(line.as_bytes(), self.end);
        self.unsynced = true;
        let done = written.and_then(|()| match durable {
            Durable::Now => self.sync(),
            Durable::Later => Ok(()),
        });
        self.broken |= done.is_err();
        done?;
        (self.sum, self.entries) = (sum, self.entries + 1);
        self.end += line.len() as u64;
        Ok(())
    }

    /// Makes durable what is not yet.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if !self.unsynced {
            return Ok(());
        }
        let done = self.file.sync_data();
        self.broken |= done.is_err();
        self.unsynced = done.is_err();
        done
    }

    #[cfg(test)]
    pub(crate) fn replace_file(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file, file)
    }
}

/// The journal of a lease file.
pub(crate) fn path(leases: &Path) -> PathBuf {
    leases.with_extension("journal")
}

/// The changes in a journal after the lease file of this digest, or a sentence that says what is wrong with it.
pub(crate) fn changes(bytes: &[u8], digest: &str) -> Result<Vec<Change>, String> {
    let expected = header(digest);
    let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    let bytes = &bytes[..used];
    if expected.as_bytes().starts_with(bytes) {
        return Ok(Vec::new());
    }
    let Some(mut rest) = bytes.strip_prefix(expected.as_bytes()) else {
        return other_journal(bytes);
    };
    let (mut changes, mut sum) = (Vec::new(), digest.to_owned());
    while let Some((change, next, after)) = entry(rest, &sum)? {
        changes.push(change);
        (sum, rest) = (next, after);
    }
    Ok(changes)
}

/// Of an older lease file: its changes are in the newer one.
fn other_journal(bytes: &[u8]) -> Result<Vec<Change>, String> {
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let [kind, version, digest] = line.split(' ').collect::<Vec<_>>()[..] else {
        return Err(format!(
            "its first line is {line:?}: expected \"{KIND} VERSION SHA-256\""
        ));
    };
    let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    match (kind == KIND, version == VERSION.to_string(), is_digest) {
        (true, true, true) => Ok(Vec::new()),
        (true, false, _) => Err(format!(
            "its format version is {version:?}: expected {VERSION}; another release wrote it"
        )),
        _ => Err(format!("its first line is {line:?}")),
    }
}

type Entry<'a> = (Change, String, &'a [u8]);

/// The first entry with its sum and what comes after it; `None`: it is cut off.
fn entry<'a>(bytes: &'a [u8], before: &str) -> Result<Option<Entry<'a>>, String> {
    let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
        return match overfull(bytes) {
            true => Err("its last entry does not end where it says".to_owned()),
            false => Ok(None),
        };
    };
    let (line, after) = (&bytes[..end], &bytes[end + 1..]);
    // Where a power cut came before the data: JSON has no zeros.
    if line.contains(&0) {
        return Ok(None);
    }
    let (length, sum, body) = parts(line).ok_or("an entry has not the form \"LENGTH SUM JSON\"")?;
    if length != body.len() {
        return Err(format!(
            "an entry has {} bytes: expected {length}",
            body.len()
        ));
    }
    if sum != chained(before, body) {
        return Err("the sum of an entry is wrong, or one before it is missing".to_owned());
    }
    let change = serde_json::from_slice(body)
        .map_err(|error| format!("an entry is not what this release writes: {error}"))?;
    Ok(Some((change, sum.to_owned(), after)))
}

/// Has it more bytes than its entry says, although there is no end of the line?
fn overfull(bytes: &[u8]) -> bool {
    !bytes.contains(&0) && parts(bytes).is_some_and(|(length, _, body)| body.len() > length)
}

fn parts(line: &[u8]) -> Option<(usize, &str, &[u8])> {
    let mut parts = line.splitn(3, |b| *b == b' ');
    let length = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let sum = std::str::from_utf8(parts.next()?).ok()?;
    Some((length, sum, parts.next()?))
}

fn header(digest: &str) -> String {
    format!("{KIND} {VERSION} {digest}\n")
}

fn chained(before: &str, body: &[u8]) -> String {
    envelope::digest(&[before.as_bytes(), body].concat())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn released(n: u64) -> Change {
        Change::Released {
            key: Key::new(format!("container{n}"), "eth0"),
            at_ms: n,
        }
    }

    fn used(bytes: &[u8]) -> Vec<u8> {
        let end = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
        bytes[..end].to_vec()
    }

    fn written(count: u64) -> (tempfile::TempDir, Vec<u8>, String) {
        let dir = tempfile::tempdir().unwrap();
        let (leases, digest) = (dir.path().join("leases"), envelope::digest(b"leases"));
        let mut journal = Journal::start(&leases, &digest).unwrap();
        for n in 0..count {
            journal.append(&released(n), Durable::Now).unwrap();
        }
        assert_eq!(journal.entries(), count as usize);
        (dir, used(&fs::read(path(&leases)).unwrap()), digest)
    }

    #[test]
    fn cut_at_any_offset_it_has_the_entries_that_were_whole() {
        let (_dir, bytes, digest) = written(3);
        let ends: Vec<_> = (0..bytes.len())
            .filter(|at| bytes[*at] == b'\n')
            .map(|at| at + 1)
            .collect();
        for length in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= length).count();
            let expected: Vec<_> = (0..whole.saturating_sub(1) as u64).map(released).collect();
            assert_eq!(
                changes(&bytes[..length], &digest),
                Ok(expected),
                "cut at {length}"
            );
            // The file has its length already and not yet its data.
            let mut zeros = bytes[..length].to_vec();
            zeros.resize(bytes.len(), 0);
            assert!(changes(&zeros, &digest).is_ok(), "zeros from {length}");
        }
    }

    #[test]
    fn with_any_byte_changed_it_is_refused() {
        let (_dir, bytes, digest) = written(2);
        let first = digest.len() + format!("{KIND} {VERSION} ").len() + 1;
        for at in first..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x01;
            assert!(changes(&changed, &digest).is_err(), "byte {at}");
        }
    }

    #[test]
    fn an_entry_that_is_missing_in_between_is_noticed() {
        let (_dir, bytes, digest) = written(3);
        let lines: Vec<_> = bytes.split_inclusive(|b| *b == b'\n').collect();
        let without = [lines[0], lines[1], lines[3]].concat();
        assert!(changes(&without, &digest).unwrap_err().contains("missing"));
    }

    #[test]
    fn an_old_journal_counts_for_nothing_and_a_strange_one_is_refused() {
        let (_dir, bytes, _) = written(3);
        let other = envelope::digest(b"another lease file");
        assert_eq!(changes(&bytes, &other), Ok(Vec::new()));
        for strange in ["what is this\n", "espalier-journal 2 0\n", "x"] {
            assert!(changes(strange.as_bytes(), &other).is_err(), "{strange}");
        }
    }

    #[test]
    fn what_cannot_be_written_breaks_it() {
        let (dir, _, digest) = written(0);
        let leases = dir.path().join("leases");
        let mut journal = Journal::start(&leases, &digest).unwrap();
        journal.replace_file(File::open(path(&leases)).unwrap());
        assert!(journal.append(&released(1), Durable::Later).is_err());
        assert!(journal.is_broken());
    }
}
