//! Which kernel state this is: the same for as long as the states live, however often this process restarts.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use sha2::{Digest as _, Sha256};

use crate::error::Error;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const NETNS: &str = "/proc/thread-self/ns/net";

/// Of this boot and the calling thread's network namespace. Never 0.
pub(crate) fn instance() -> Result<u64, Error> {
    let boot =
        fs::read_to_string(BOOT_ID).map_err(|e| Error::io(format!("reading {BOOT_ID}"), e))?;
    let netns = fs::metadata(NETNS).map_err(|e| Error::io(format!("looking at {NETNS}"), e))?;
    Ok(of(boot.trim(), netns.dev(), netns.ino()))
}

fn of(boot: &str, device: u64, inode: u64) -> u64 {
    let digest = Sha256::new()
        .chain_update(boot)
        .chain_update(device.to_be_bytes())
        .chain_update(inode.to_be_bytes())
        .finalize();
    let bytes = digest.first_chunk().copied().unwrap_or_default();
    u64::from_be_bytes(bytes).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_changes_with_the_boot_and_with_the_namespace_and_not_by_itself() {
        assert_eq!(instance().unwrap(), instance().unwrap());
        assert_ne!(of("a", 4, 1), of("a", 4, 2));
        assert_ne!(of("a", 4, 1), of("b", 4, 1));
    }
}
