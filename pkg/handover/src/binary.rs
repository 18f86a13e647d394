//! Files that may be the next program: who puts them where, and what is checked before one runs.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};
use nix::libc::O_NOFOLLOW;

/// A binary's name is this and its digest.
pub const PREFIX: &str = "espalier-dataplane-";

/// SHA-256 of a binary.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// It is not written as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a SHA-256 as 64 digits from 0 to 9 and a to f")]
pub struct NoDigest;

/// Why a binary cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// The file system refuses.
    #[error("{what} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Others could have changed it.
    #[error(
        "{} is not run: {why}; put it there with `espalier upgrade-dataplane`, or let the agent do it", path.display()
    )]
    Untrusted {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
        let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
        let bytes = bytes.filter(|_| rest.is_empty()).ok_or(NoDigest)?;
        bytes.try_into().map(Self).map_err(|_| NoDigest)
    }
}

impl Digest {
    /// The first 12 digits, for logs: a long run of digits there looks like a key.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

/// Where `digest`'s binary is.
#[must_use]
pub fn path_of(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join(format!("{PREFIX}{digest}"))
}

/// Of a file's whole contents.
///
/// # Errors
/// It cannot be read.
pub fn digest_of(mut file: &File) -> io::Result<Digest> {
    file.rewind()?;
    let (mut context, mut buffer) = (Context::new(&SHA256), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => context.update(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok(Digest(digest))
}

/// Of the program that runs here.
///
/// # Errors
/// `/proc` is not there.
pub fn own_digest() -> io::Result<Digest> {
    File::open("/proc/self/exe").and_then(|file| digest_of(&file))
}

/// Opens `digest`'s binary to be executed by the descriptor: what was checked is what runs. It must be root's (or this user's),
/// nobody else's to write, no link, and have this very digest.
///
/// # Errors
/// [`BinaryError`].
pub fn open(folder: &Path, digest: &Digest) -> Result<File, BinaryError> {
    let path = path_of(folder, digest);
    let failed = |cause| BinaryError::Io {
        what: "opening",
        path: path.clone(),
        cause,
    };
    let untrusted = |why: String| BinaryError::Untrusted {
        path: path.clone(),
        why,
    };
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW)
        .open(&path);
    let file = opened.map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let me = nix::unistd::geteuid().as_raw();
    if !found.is_file() {
        return Err(untrusted("it is no plain file".into()));
    }
    if found.uid() != 0 && found.uid() != me {
        return Err(untrusted(format!("it belongs to user {}", found.uid())));
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o022 != 0 || mode & 0o100 == 0 {
        return Err(untrusted(format!("its mode is {mode:o}, expected 755")));
    }
    let got = digest_of(&file).map_err(failed)?;
    if got != *digest {
        return Err(untrusted(format!("its SHA-256 is {got}")));
    }
    Ok(file)
}

/// Copies `binary` to its name in `folder`, in one step; one that is there already stays.
///
/// # Errors
/// [`BinaryError::Io`].
pub fn install(binary: &Path, folder: &Path) -> Result<Digest, BinaryError> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |cause| BinaryError::Io { what, path, cause }
    };
    let mut source = File::open(binary).map_err(failed("opening", binary))?;
    let digest = digest_of(&source).map_err(failed("reading", binary))?;
    if open(folder, &digest).is_ok() {
        return Ok(digest);
    }
    let mut made = fs::DirBuilder::new();
    made.recursive(true).mode(0o755);
    made.create(folder).map_err(failed("making", folder))?;
    let (pid, now) = (std::process::id(), crate::monotonic_ns());
    let new = folder.join(format!(".{PREFIX}{pid}-{now}"));
    let copied = copy(&mut source, &new, &path_of(folder, &digest));
    copied.map_err(|cause| {
        let _ = fs::remove_file(&new);
        failed("copying the binary to", folder)(cause)
    })?;
    // What was copied is what has the name.
    open(folder, &digest).map(|_| digest)
}

fn copy(source: &mut File, new: &Path, to: &Path) -> io::Result<()> {
    source.rewind()?;
    let mut target = File::create(new)?;
    io::copy(source, &mut target)?;
    target.set_permissions(fs::Permissions::from_mode(0o755))?;
    target.sync_all()?;
    drop(target);
    fs::rename(new, to)
}

/// Removes all binaries but those of `keep`, and half written ones.
///
/// # Errors
/// The folder cannot be read, or a file not be removed.
pub fn prune(folder: &Path, keep: &[Digest]) -> io::Result<()> {
    let keep: Vec<String> = keep.iter().map(|one| format!("{PREFIX}{one}")).collect();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.strip_prefix('.').unwrap_or(&name).starts_with(PREFIX);
        if ours && !keep.contains(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn made(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("program");
        fs::write(&binary, text).unwrap();
        let bin = folder.path().join("bin");
        (folder, bin)
    }

    fn refused(folder: &Path, digest: &Digest) -> String {
        open(folder, digest).unwrap_err().to_string()
    }

    #[test]
    fn a_binary_is_put_under_its_digest_and_found_there() {
        let (folder, bin) = made("program");
        let digest = install(&folder.path().join("program"), &bin).unwrap();
        assert!(digest.to_string().starts_with(&digest.short()));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        open(&bin, &digest).unwrap();
        let before = fs::metadata(path_of(&bin, &digest)).unwrap().ino();
        assert_eq!(
            install(&folder.path().join("program"), &bin).unwrap(),
            digest
        );
        let after = fs::metadata(path_of(&bin, &digest)).unwrap().ino();
        assert_eq!(before, after, "not written again");
        assert_eq!(fs::read_dir(&bin).unwrap().count(), 1);
    }

    #[test]
    fn what_others_could_have_changed_is_not_run() {
        let (folder, bin) = made("program");
        let digest = install(&folder.path().join("program"), &bin).unwrap();
        let path = path_of(&bin, &digest);
        for mode in [0o775, 0o757, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(refused(&bin, &digest).contains("its mode is"), "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&path, "changed").unwrap();
        assert!(refused(&bin, &digest).contains("its SHA-256 is"));
        fs::remove_file(&path).unwrap();
        symlink(folder.path().join("program"), &path).unwrap();
        assert!(refused(&bin, &digest).contains("opening"));
        fs::remove_file(&path).unwrap();
        assert!(refused(&bin, &digest).contains("opening"));
        fs::create_dir(&path).unwrap();
        assert!(refused(&bin, &digest).contains("no plain file"));
    }

    #[test]
    fn old_ones_are_removed_and_other_files_stay() {
        let (folder, bin) = made("one");
        let program = folder.path().join("program");
        let one = install(&program, &bin).unwrap();
        fs::write(&program, "two").unwrap();
        let two = install(&program, &bin).unwrap();
        for name in ["precious", ".espalier-dataplane-77"] {
            fs::write(bin.join(name), "x").unwrap();
        }
        prune(&bin, &[two]).unwrap();
        assert!(open(&bin, &one).is_err() && open(&bin, &two).is_ok());
        assert_eq!(fs::read_dir(&bin).unwrap().count(), 2);
    }

    #[test]
    fn a_digest_is_sixty_four_digits() {
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        for bad in [
            "",
            "ab",
            &good[1..],
            &good.to_uppercase(),
            &"g".repeat(64),
            &good.repeat(2),
        ] {
            assert_eq!(bad.parse::<Digest>(), Err(NoDigest), "{bad}");
        }
    }
}
