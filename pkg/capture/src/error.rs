//! What can go wrong with a capture.

use std::io;

/// An error of the capture socket.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The socket could not be opened or prepared.
    #[error("{step}: {source}; capturing needs CAP_NET_RAW (run as root)")]
    Open {
        /// What was done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no such interface in the calling thread's network namespace.
    #[error("expected a network interface named {name}, found none: {source}")]
    NoInterface {
        /// The name that was given.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Reading failed.
    #[error("reading captured frames: {0}")]
    Read(#[source] io::Error),
    /// The probe did not come back, so that loss cannot be excluded.
    #[error(
        "the capture's own probe did not come back within {seconds} s: packets may have been lost unseen; \
         is the loopback device up and the machine not overloaded?"
    )]
    NoProbe {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The reading thread has ended.
    #[error("the capture's reading thread has ended: {0}")]
    Ended(String),
}
