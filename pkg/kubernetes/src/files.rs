//! A node's certificate, key and CA on disk. A reader never sees a key with another key's certificate: all three are in a folder of
//! their own, and the name that readers know is a symbolic link to it that is replaced at once.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use espalier_pki::{Bundle, Leaf};
use espalier_secret::SecretBytes;

const CERT: &str = "node.crt";
const KEY: &str = "node.key";
const CA: &str = "ca.crt";

/// The files below `<state-dir>/pki`.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    link: PathBuf,
}

impl Files {
    pub(crate) fn new(link: impl Into<PathBuf>) -> Self {
        Self { link: link.into() }
    }

    /// The certificate that is there, when it can be read and has a key.
    pub(crate) fn leaf(&self) -> Option<Leaf> {
        fs::metadata(self.link.join(KEY)).ok()?;
        Leaf::read(&fs::read(self.link.join(CERT)).ok()?).ok()
    }

    /// The CA certificates beside it.
    pub(crate) fn bundle(&self) -> Option<Bundle> {
        Bundle::read(&fs::read(self.link.join(CA)).ok()?).ok()
    }

    /// Replaces the CA certificates, when there is a certificate.
    pub(crate) fn put_bundle(&self, pem: &str) -> io::Result<()> {
        let folder = fs::canonicalize(&self.link)?;
        let fresh = folder.join("ca.crt.new");
        write(&fresh, pem.as_bytes())?;
        fs::rename(fresh, folder.join(CA))
    }

    /// Replaces all three.
    pub(crate) fn install(&self, cert: &[u8], key: &SecretBytes, ca: &str) -> io::Result<()> {
        let parent = self.parent();
        let stem = self.stem();
        let serial = hash_name(cert);
        let fresh = parent.join(format!("{stem}.{serial}"));
        if fs::canonicalize(&self.link).ok() != Some(fresh.clone()) {
            let _ = fs::remove_dir_all(&fresh); // of an attempt that broke off
        }
        make_folder(&fresh)?;
        for (name, bytes) in [(CERT, cert), (KEY, key.expose()), (CA, ca.as_bytes())] {
            write(&fresh.join(name), bytes)?;
        }
        fs::File::open(&fresh)?.sync_all()?;
        self.link_to(&fresh)?;
        self.remove_others(&fresh);
        Ok(())
    }

    fn link_to(&self, folder: &Path) -> io::Result<()> {
        // A folder that somebody made by hand is kept aside: a link cannot replace it.
        if fs::symlink_metadata(&self.link).is_ok_and(|there| there.is_dir()) {
            fs::rename(&self.link, self.link.with_extension("before"))?;
        }
        let fresh = self.link.with_extension("link");
        let _ = fs::remove_file(&fresh);
        symlink(folder.file_name().unwrap_or_default(), &fresh)?;
        fs::rename(fresh, &self.link)?;
        fs::File::open(self.parent())?.sync_all()
    }

    fn remove_others(&self, current: &Path) {
        let stem = format!("{}.", self.stem());
        for entry in fs::read_dir(self.parent()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let hash = name.strip_prefix(&stem);
            let is_ours = hash.is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
            if is_ours && entry.path() != current {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// The key of a request that is under way: an agent that starts again goes on with it.
    pub(crate) fn pending(&self) -> Option<SecretBytes> {
        fs::read(self.pending_path()).ok().map(SecretBytes::new)
    }

    pub(crate) fn put_pending(&self, key: &SecretBytes) -> io::Result<()> {
        fs::create_dir_all(self.parent())?;
        write(&self.pending_path(), key.expose())
    }

    pub(crate) fn remove_pending(&self) {
        let _ = fs::remove_file(self.pending_path());
    }

    fn pending_path(&self) -> PathBuf {
        self.parent().join(format!("{}.pending.key", self.stem()))
    }

    fn parent(&self) -> &Path {
        self.link.parent().unwrap_or(Path::new("."))
    }

    fn stem(&self) -> String {
        let name = self.link.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

fn hash_name(cert: &[u8]) -> String {
    let mut hash = espalier_pki::fingerprint(cert);
    hash.truncate(12);
    hash
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_certificate_replaces_all_and_leaves_no_rest() {
        let state = tempfile::tempdir().unwrap();
        let files = Files::new(state.path().join("pki"));
        let key = |text: &str| SecretBytes::copy_from(text.as_bytes());
        files.put_pending(&key("k1")).unwrap();
        assert_eq!(files.pending(), Some(key("k1")));
        files.install(b"c1", &key("k1"), "ca1").unwrap();
        files.remove_pending();
        let first = fs::canonicalize(state.path().join("pki")).unwrap();
        files.put_bundle("ca2").unwrap();
        assert_eq!(fs::read(first.join(CA)).unwrap(), b"ca2");
        files.install(b"c2", &key("k2"), "ca2").unwrap();
        let now = fs::canonicalize(state.path().join("pki")).unwrap();
        assert_ne!(first, now);
        assert_eq!(fs::read(now.join(KEY)).unwrap(), b"k2");
        assert_eq!(names(state.path()).len(), 2, "{:?}", names(state.path()));
    }

    #[test]
    fn a_folder_made_by_hand_is_kept_aside() {
        let state = tempfile::tempdir().unwrap();
        let link = state.path().join("pki");
        fs::create_dir(&link).unwrap();
        fs::write(link.join("own"), "x").unwrap();
        let files = Files::new(&link);
        files
            .install(b"c", &SecretBytes::copy_from(b"k"), "ca")
            .unwrap();
        assert!(state.path().join("pki.before/own").exists());
        assert_eq!(fs::read(link.join(CERT)).unwrap(), b"c");
    }
}
