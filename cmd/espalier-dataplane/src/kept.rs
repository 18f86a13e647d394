//! Descriptors that the next program gets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use espalier_handover::{Plane, Role};

/// Copies of the descriptors that are in use, each with what it is. They hold everything open as long as the process lives.
#[derive(Debug, Default)]
pub(crate) struct Kept(Vec<(Role, OwnedFd)>);

impl Kept {
    pub(crate) fn keep(&mut self, role: Role, descriptor: impl AsFd) -> io::Result<()> {
        let copy = descriptor.as_fd().try_clone_to_owned()?;
        self.0.push((role, copy));
        Ok(())
    }

    /// What the descriptors are that go along with this state, in their order.
    pub(crate) fn roles(&self, plane: &Plane) -> Vec<Role> {
        self.along(plane).map(|(role, _)| *role).collect()
    }

    pub(crate) fn descriptors(&self, plane: &Plane) -> Vec<BorrowedFd<'_>> {
        self.along(plane).map(|(_, kept)| kept.as_fd()).collect()
    }

    /// Without an SA of raw ESP nothing waits in raw sockets: the next program opens its own, and may be one that knows of none.
    fn along(&self, plane: &Plane) -> impl Iterator<Item = &(Role, OwnedFd)> {
        let raw = matches!(plane, Plane::Userspace(frozen) if frozen.has_raw());
        let goes = move |(role, _): &&(Role, OwnedFd)| raw || *role != Role::Raw;
        self.0.iter().filter(goes)
    }
}
