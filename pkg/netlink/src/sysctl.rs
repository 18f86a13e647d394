//! Kernel settings under `/proc/sys`. Those under `net/` belong to the network namespace of the thread that touches them.
//!
//! In a container `/proc/sys` is read-only. What is refused for that reason is written by way of [`HOST`], where the host's
//! `/proc/sys/net` is to be mounted; it shows the namespace of whoever looks, too.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::BorrowedFd,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};

use crate::{Error, in_netns};

/// Where a container has the host's `/proc/sys`, or its `net` alone.
pub const HOST: &str = "/host/proc/sys";

/// Reads a setting, for example `net/ipv4/ip_forward`; `netns: None` means the calling thread's namespace. `Ok(None)`: the
/// kernel has no such setting.
///
/// # Errors
/// When the setting exists and cannot be read.
pub fn read(netns: Option<BorrowedFd<'_>>, key: &str) -> Result<Option<String>, Error> {
    let path = path(key);
    let result = within(netns, || fs::read_to_string(&path))?;
    match result {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("read {path}"), e)),
    }
}

/// Writes a setting.
///
/// # Errors
/// When there is no such setting, or it cannot be written (a read-only `/proc/sys` in a container without [`HOST`] is the usual
/// cause).
pub fn write(netns: Option<BorrowedFd<'_>>, key: &str, value: &str) -> Result<(), Error> {
    let path = path(key);
    within(netns, || put(&path, key, value))?
        .map_err(|e| Error::io(format!("write {value} to {path}"), e))
}

/// Its error is the one of the usual way.
fn put(path: &str, key: &str, value: &str) -> io::Result<()> {
    fs::write(path, value).or_else(|refused| match refused.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            fs::write(format!("{HOST}/{key}"), value).map_err(|_| refused)
        }
        _ => Err(refused),
    })
}

/// Writes a setting if it is another now; says whether it was. A setting that the kernel does not have is left alone.
///
/// # Errors
/// As [`read`] and [`write`].
pub fn ensure(netns: Option<BorrowedFd<'_>>, key: &str, value: &str) -> Result<bool, Error> {
    match read(netns, key)? {
        Some(now) if now != value => write(netns, key, value).map(|()| true),
        _ => Ok(false),
    }
}

/// Writes a setting without looking first. For those that cost the kernel nothing to set again. A setting that the kernel does
/// not have is left alone.
///
/// # Errors
/// As [`write()`].
pub fn put_if_there(key: &str, value: &str) -> Result<(), Error> {
    match write(None, key, value) {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

/// As [`put_if_there`], for several settings of one folder (`net/ipv6/conf/eth0`): the kernel looks for the way there once. That
/// takes the longer, the more network namespaces there are.
///
/// # Errors
/// As [`write()`].
pub fn put_all_if_there(folder: &str, settings: &[(&str, &str)]) -> Result<(), Error> {
    let place = path(folder);
    let failed = |what: &str, e: Errno| Error::io(format!("{what} {place}"), io::Error::from(e));
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = match open(place.as_str(), flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        opened => opened.map_err(|e| failed("look into", e))?,
    };
    for (name, value) in settings {
        match openat(
            &opened,
            *name,
            OFlag::O_WRONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        ) {
            Ok(setting) => File::from(setting)
                .write_all(value.as_bytes())
                .map_err(|e| Error::io(format!("write {value} to {place}/{name}"), e))?,
            Err(Errno::ENOENT) => {}
            Err(Errno::EROFS) => put_if_there(&format!("{folder}/{name}"), value)?,
            Err(e) => return Err(failed(&format!("open {name} in"), e)),
        }
    }
    Ok(())
}

fn path(key: &str) -> String {
    format!("/proc/sys/{key}")
}

fn within<T: Send>(
    netns: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, Error> {
    match netns {
        Some(netns) => in_netns(netns, work),
        None => Ok(work()),
    }
}
