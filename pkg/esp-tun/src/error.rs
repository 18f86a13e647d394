use std::io;

/// Why the engine cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/net/tun` is not there.
    #[error(
        "/dev/net/tun is missing, the userspace data plane needs it; load the module (`modprobe tun`), or give the container \
         the device (hostPath /dev/net/tun)"
    )]
    TunMissing,
    /// This process may not make network devices.
    #[error("this process may not make the TUN device {0}; run it as root or with CAP_NET_ADMIN")]
    TunDenied(String),
    /// Another process or another kind of device has the name.
    #[error(
        "the device {0} is taken, probably by another espalier-dataplane; find it with `ip -d link show {0}`, stop its process, \
         or choose another name with --tun"
    )]
    TunBusy(String),
    /// The TUN device cannot be made for another reason.
    #[error("the TUN device {device} with MTU {mtu} cannot be made: {cause}")]
    Tun {
        /// Its name.
        device: String,
        /// Bytes.
        mtu: u16,
        /// What the system said.
        cause: io::Error,
    },
    /// The UDP port cannot be had.
    #[error(transparent)]
    Udp(#[from] espalier_ike_io::Error),
    /// Another process' state cannot be taken over.
    #[error("the state that was handed over does not fit: {0}")]
    State(#[from] espalier_dataplane_core::Error),
    /// A thread or its means to stop it cannot be made.
    #[error(
        "starting a thread of the data plane: {0}; is the process short of file descriptors or threads (ulimit)?"
    )]
    Thread(io::Error),
    /// A descriptor went bad under a running thread.
    #[error(
        "{what} failed under the running data plane: {cause}; was the device deleted? Start the process again"
    )]
    Broken {
        /// TUN device or UDP socket.
        what: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}
