//! Descriptors that the next program gets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use espalier_handover::Role;

/// Copies of the descriptors that are in use, each with what it is. They hold everything open as long as the process lives.
#[derive(Debug, Default)]
pub(crate) struct Kept(Vec<(Role, OwnedFd)>);

impl Kept {
    pub(crate) fn keep(&mut self, role: Role, descriptor: impl AsFd) -> io::Result<()> {
        let copy = descriptor.as_fd().try_clone_to_owned()?;
        self.0.push((role, copy));
        Ok(())
    }

    pub(crate) fn roles(&self) -> Vec<Role> {
        self.0.iter().map(|(role, _)| *role).collect()
    }

    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(|(_, kept)| kept.as_fd()).collect()
    }
}
