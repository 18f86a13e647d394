//! One file that is whole or refused: a line `KIND VERSION LENGTH SHA-256`, then JSON of exactly that length and digest.
//! Written beside its place, synced, renamed over it, and the folder synced: a crash leaves the old or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// Version of the format that this crate writes and reads.
const VERSION: u32 = 1;

/// The file's bytes.
pub(crate) fn seal<T: Serialize>(kind: &str, value: &T) -> Vec<u8> {
    // Our own types: string keys, no maps with other keys, so serialising cannot fail.
    let mut body = serde_json::to_vec(value).unwrap_or_default();
    body.push(b'\n');
    let mut bytes = format!("{kind} {VERSION} {} {}\n", body.len(), digest(&body)).into_bytes();
    bytes.extend(body);
    bytes
}

/// What [`seal`] was given, or a sentence that says what is wrong with the bytes.
pub(crate) fn open<T: DeserializeOwned>(kind: &str, bytes: &[u8]) -> Result<T, String> {
    let end = bytes
        .iter()
        .position(|b| *b == b'\n')
        .ok_or("its first line is cut off")?;
    let (line, body) = (String::from_utf8_lossy(&bytes[..end]), &bytes[end + 1..]);
    let [found, version, length, sum] = line.split(' ').collect::<Vec<_>>()[..] else {
        return Err(format!(
            "its first line is {line:?}: expected \"{kind} VERSION LENGTH SHA-256\""
        ));
    };
    if found != kind {
        return Err(format!("it is a {found:?} file: expected {kind:?}"));
    }
    if version != VERSION.to_string() {
        return Err(format!(
            "its format version is {version:?}: expected {VERSION}; another release wrote it"
        ));
    }
    if length != body.len().to_string() {
        return Err(format!(
            "it has {} bytes of content: expected {length}",
            body.len()
        ));
    }
    if sum != digest(body) {
        return Err(format!("its checksum is {}: expected {sum}", digest(body)));
    }
    serde_json::from_slice(body)
        .map_err(|error| format!("its content is not what this release writes: {error}"))
}

/// Puts a file in place as a whole, readable by root only.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path
        .parent()
        .ok_or_else(|| io::Error::other("the path has no folder"))?;
    let temporary = temporary(path);
    let written = write_synced(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_folder(folder)
}

/// Makes what happened to a folder's entries durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// SHA-256, in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A name beside `path` that no other process uses.
fn temporary(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}
