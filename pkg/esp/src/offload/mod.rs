//! Large packets, each standing for many: what the kernel's TCP and UDP hand to a TUN device instead of every segment, and
//! take from it. Taking one apart and putting one together, over byte slices.
//!
//! ```text
//!  TUN ──▶ [virtio][IP][TCP][ payload of 48 segments ] ──▶ Large::write(0..48) ──▶ 48 packets, each framed and sealed
//!  TUN ◀── [virtio][IP][TCP][ payload of 48 segments ] ◀── Coalescer ◀── 48 packets, each opened and checked
//! ```

mod coalesce;
mod large;
mod segment;

pub use coalesce::{Coalescer, Written};
pub use large::Large;

/// What a device understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// Packets alone, without a virtio header.
    #[default]
    None,
    /// Packets behind a virtio header; large ones of TCP.
    Tcp,
    /// The same, and of UDP (`TUN_F_USO4`, `TUN_F_USO6`: Linux 6.2).
    TcpUdp,
}

impl Offload {
    /// Bytes in front of each packet.
    #[must_use]
    pub fn headroom(self) -> usize {
        match self {
            Self::None => 0,
            Self::Tcp | Self::TcpUdp => crate::wire::virtio::LEN,
        }
    }
}

#[cfg(test)]
mod tests;
