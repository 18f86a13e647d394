//! What pure IKE needs from a host: its two UDP ports, the time, randomness.
//!
//! UDP 500 belongs to the agent ([`udp`]). UDP 4500 carries ESP as well and belongs to the data plane process, which hands IKE
//! messages to the agent and back over unix datagrams ([`relay`]). [`IkeIo`] is both as the agent sees them.

mod host;
mod io;
pub mod nat_t;
pub mod relay;
mod socket;
pub mod udp;

pub use host::{OsRng, unix_now};
pub use io::IkeIo;

use std::io::Error as IoError;
use std::path::PathBuf;

/// Where two processes of a node meet, inside the run directory: the data plane's end.
pub const DATAPLANE_SOCKET: &str = "dataplane-ike.sock";
/// And the agent's end.
pub const AGENT_SOCKET: &str = "agent-ike.sock";

/// What can go wrong when the sockets are made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds the port.
    #[error(
        "UDP port {0} is taken by another process, probably another IKE daemon such as charon (strongSwan) or pluto \
         (Libreswan); find it with `ss -ulpn 'sport = :{0}'` and stop it"
    )]
    PortBusy(u16),
    /// This process may not have the port.
    #[error("UDP port {0} needs root or CAP_NET_BIND_SERVICE; run this as root")]
    PortDenied(u16),
    /// The port cannot be had for another reason.
    #[error("UDP port {port} cannot be opened: {cause}")]
    Port {
        /// Which.
        port: u16,
        /// What the system said.
        cause: IoError,
    },
    /// Another process of the same kind uses the run directory.
    #[error("a running process already uses {}; stop it first or use another --run-dir", .0.display())]
    SocketInUse(PathBuf),
    /// A unix socket cannot be made.
    #[error(
        "cannot make the socket {}: {cause}; its directory must exist, be writable for this user and have a short name", path.display()
    )]
    Socket {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: IoError,
    },
}

impl Error {
    /// Why a UDP port could not be bound, with the remedy.
    #[must_use]
    pub fn from_bind(port: u16, cause: IoError) -> Self {
        match cause.kind() {
            std::io::ErrorKind::AddrInUse => Self::PortBusy(port),
            std::io::ErrorKind::PermissionDenied => Self::PortDenied(port),
            _ => Self::Port { port, cause },
        }
    }
}
