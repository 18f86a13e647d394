use espalier_dataplane_core::Frozen;

use crate::Digest;

/// Everything that the next program must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Version of the program that wrote it, for logs.
    pub writer: String,
    /// The program that reads it.
    pub digest: Digest,
    /// `CLOCK_MONOTONIC` in nanoseconds when the old one's threads had stopped.
    pub frozen_at_ns: u64,
    /// What a hello tells people beside the findings.
    pub notes: Vec<String>,
    /// What the descriptors are that come along, in their order.
    pub descriptors: Vec<Role>,
    /// Who encrypts.
    pub plane: Plane,
}

/// Who encrypts, with what must not be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plane {
    /// The kernel, which has the SAs.
    Kernel,
    /// The process.
    Userspace(Frozen),
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Lock of the run directory.
    Lock,
    /// Where the gRPC service is asked.
    Listener,
    /// The data plane's end of the IKE relay.
    IkeRelay,
    /// A socket of the UDP port.
    Udp,
    /// The TUN device.
    Tun,
    /// A raw socket of ESP, of either family.
    Raw,
}
