//! A state in memory that has no name and no place on a disk: a memfd, which lives as long as somebody has it open.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use zeroize::Zeroizing;

use crate::format::MAX_LEN;

/// Puts `bytes` into a new memfd of fixed size that nobody can execute. Its contents may still be written, to [`wipe`] them.
///
/// # Errors
/// Those of the kernel.
pub fn write(bytes: &[u8]) -> io::Result<File> {
    let plain = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // NOEXEC_SEAL is there since Linux 6.3, and wanted by those who set vm.memfd_noexec.
    let made = memfd_create("espalier-state", plain | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create("espalier-state", plain))?;
    let file = File::from(made);
    file.write_all_at(bytes, 0)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// Takes the bytes out of a memfd: afterwards it is zeros.
///
/// # Errors
/// Those of the kernel; [`io::ErrorKind::InvalidData`]: longer than [`MAX_LEN`].
pub fn take(memfd: OwnedFd) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut file = File::from(memfd);
    let length = file.metadata()?.len();
    let length = usize::try_from(length).ok().filter(|len| *len <= MAX_LEN);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "too long"))?;
    let mut bytes = Zeroizing::new(vec![0; length]);
    file.read_exact(&mut bytes)?;
    wipe(&file)?;
    Ok(bytes)
}

/// Overwrites the contents.
///
/// # Errors
/// Those of the kernel.
pub fn wipe(file: &File) -> io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let (mut at, end) = (0, file.metadata()?.len());
    while at < end {
        let some = usize::try_from(end - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        at += file.write_at(&ZEROS[..some], at)? as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_gone() {
        let secret: Vec<u8> = (0..10_000_u32).map(|n| n as u8 | 1).collect();
        let file = write(&secret).unwrap();
        let same = file.try_clone().unwrap();
        assert_eq!(*take(file.into()).unwrap(), secret);
        let mut left = vec![1; secret.len()];
        same.read_exact_at(&mut left, 0).unwrap();
        assert!(left.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn nobody_can_change_its_length() {
        let file = write(b"state").unwrap();
        assert!(file.set_len(0).is_err());
        assert!(file.write_at(b"more", 5).is_err());
    }
}
