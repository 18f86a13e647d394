//! The archive.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::Files;

/// Writes all files below the folder `root`, for this user alone to read.
///
/// # Errors
/// The file is there already, or cannot be written.
pub(super) fn write(path: &Path, root: &str, files: Files) -> Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let file = file.with_context(|| format!("--output {}", path.display()))?;
    pack(file, root, files)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("writing {}", path.display()))
}

/// The archive, into `to`.
pub(super) fn pack<W: Write>(to: W, root: &str, mut files: Files) -> std::io::Result<W> {
    if !files.errors.is_empty() {
        let errors = files.errors.join("\n") + "\n";
        files.texts.insert("errors.txt".to_owned(), errors);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
    for (path, text) in &files.texts {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("{root}/{path}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()
}
