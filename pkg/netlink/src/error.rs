use std::io;

use nix::errno::Errno;

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a message.
    #[error("{what}: the kernel answered {errno}{}", reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default())]
    Kernel {
        /// Message and object, for example `RTM_NEWROUTE 10.244.2.0/24`.
        what: String,
        /// The errno of the answer.
        errno: Errno,
        /// The kernel's own words, where it gave any.
        reason: Option<String>,
    },
    /// ENOBUFS: the socket's receive buffer was full and answers are lost. What was sent may or may not have happened: dump
    /// and reconcile.
    #[error(
        "netlink answers were lost because the receive buffer was full; read the state again and reconcile"
    )]
    Overrun,
    /// A list changed while it was read, each time that it was tried.
    #[error("{what}: the list kept changing while it was read ({tries} tries); try again later")]
    Unsteady {
        /// The dump's message.
        what: String,
        /// How often it was tried.
        tries: u32,
    },
    /// The kernel did not answer within the time limit.
    #[error("{what}: no answer from the kernel in {seconds} s")]
    Silent {
        /// The message.
        what: String,
        /// The time limit.
        seconds: i64,
    },
    /// An answer that could not be decoded.
    #[error("{what}: the kernel's answer could not be decoded: {reason}")]
    Decode {
        /// The message that was answered.
        what: String,
        /// What was wrong with the answer.
        reason: String,
    },
    /// A system call on the socket or on the namespace failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation.
        what: String,
        /// Its error.
        source: io::Error,
    },
    /// Something that must exist does not.
    #[error("{0} does not exist")]
    Missing(String),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    /// The errno of a refused message or a failed system call.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Overrun => Some(Errno::ENOBUFS),
            Self::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    /// The object was there already.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// The object, or the device it hangs on, was not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        use Errno::{EADDRNOTAVAIL, ENODEV, ENOENT, ENXIO, ESRCH};
        matches!(self, Self::Missing(_))
            || matches!(
                self.errno(),
                Some(ENOENT | ESRCH | ENODEV | EADDRNOTAVAIL | ENXIO)
            )
    }
}
