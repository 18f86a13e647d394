//! Datagram sockets in the run directory that only their owner can write to.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Error;

/// A bound socket; its name goes with it, unless a successor has taken the name by then.
#[derive(Debug)]
pub(crate) struct Name {
    path: PathBuf,
    inode: (u64, u64),
}

impl Name {
    /// Of a socket that this process has, and that has this name already.
    pub(crate) fn of(path: &Path) -> Result<Self, Error> {
        match inode(path) {
            Ok(inode) => Ok(Self {
                path: path.into(),
                inode,
            }),
            Err(cause) => Err(Error::Socket {
                path: path.into(),
                cause,
            }),
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds `path` with mode 0600; replaces a socket that nobody holds any more.
pub(crate) fn bind(path: &Path) -> Result<(UnixDatagram, Name), Error> {
    let failed = |cause| Error::Socket {
        path: path.into(),
        cause,
    };
    match UnixDatagram::unbound().and_then(|probe| probe.connect(path)) {
        Ok(()) => return Err(Error::SocketInUse(path.into())),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) => {}
        Err(error) => return Err(failed(error)),
    }
    bind_privately(path).map_err(failed)
}

/// Binds inside a directory that only this user can enter, sets the mode there and then moves the socket to its name.
fn bind_privately(path: &Path) -> io::Result<(UnixDatagram, Name)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let private =
        PrivateDir::new(path.with_file_name(format!(".{:x}-i{number:x}", std::process::id())))?;
    let hidden = private.0.join("s");
    let socket = UnixDatagram::bind(&hidden)?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))?;
    let inode = inode(&hidden)?;
    fs::rename(&hidden, path)?;
    Ok((
        socket,
        Name {
            path: path.into(),
            inode,
        },
    ))
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

struct PrivateDir(PathBuf);

impl PrivateDir {
    fn new(path: PathBuf) -> io::Result<Self> {
        let _ = fs::remove_dir_all(&path); // of a killed process whose id came again
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_private_and_goes_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent-ike.sock");
        let (_socket, name) = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(bind(&path), Err(Error::SocketInUse(_))));
        drop(name);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_stale_name_is_taken_over_and_left_to_the_successor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent-ike.sock");
        let (socket, old) = bind(&path).unwrap();
        drop(socket); // killed: the name stays
        let (_socket, _new) = bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = bind(Path::new("/nonexistent-directory/agent-ike.sock"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nonexistent-directory/agent-ike.sock") && error.contains("must exist"),
            "{error}"
        );
    }
}
