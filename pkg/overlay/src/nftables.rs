//! The kernel's nf_tables, as long as it has them.

use std::os::fd::{AsFd, OwnedFd};

use espalier_netlink::{Errno, Error, Netfilter, Socket};

/// Opened when it is first needed; a kernel module may come later than we do.
#[derive(Debug)]
pub(crate) struct Nftables {
    netns: Option<OwnedFd>,
    socket: Option<Socket<Netfilter>>,
    writes: usize,
}

impl Nftables {
    pub(crate) fn new(netns: Option<OwnedFd>) -> Self {
        Self {
            netns,
            socket: None,
            writes: 0,
        }
    }

    /// Messages that changed something. What the kernel refused has not.
    pub(crate) fn writes(&self) -> usize {
        self.writes
    }

    /// The next work begins with another socket.
    pub(crate) fn reopen(&mut self) {
        self.socket = None;
    }

    pub(crate) fn counted<T>(
        &mut self,
        work: impl FnOnce(&mut Socket<Netfilter>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let netns = self.netns.as_ref().map(AsFd::as_fd);
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(match netns {
                Some(netns) => Socket::open_in(netns)?,
                None => Socket::open()?,
            }),
        };
        let before = socket.writes();
        let done = work(socket)?;
        self.writes += socket.writes() - before;
        Ok(done)
    }
}

/// A table of ours, as it is told of.
pub(crate) fn in_words(table: &str) -> String {
    format!("nf_tables table inet {table}")
}

/// Where there are no nf_tables there is nothing to find in them.
pub(crate) fn none_is_fine<T: Default>(found: Result<T, Error>) -> Result<T, Error> {
    match found {
        Err(e) if lacks(&e) => Ok(T::default()),
        other => other,
    }
}

/// EPROTONOSUPPORT: no netfilter; EINVAL: no nf_tables; EOPNOTSUPP and ENOENT: not what is asked of them, such as one table for both IP
/// families, or NAT.
pub(crate) fn lacks(e: &Error) -> bool {
    use Errno::{EINVAL, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT};
    matches!(
        e.errno(),
        Some(EPROTONOSUPPORT | EINVAL | EOPNOTSUPP | ENOENT)
    )
}
