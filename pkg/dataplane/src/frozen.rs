//! What must not be forgotten when the process that seals and opens is replaced by another.

use crate::{Encapsulation, Peer, PeerStats, Sa, Spi};

/// The whole state of a data plane whose threads have stopped. Holds keys, which are wiped when it is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    /// [`crate::Hello::instance`], which stays: no SA is lost.
    pub instance: u64,
    /// Peers.
    pub peers: Vec<FrozenPeer>,
    /// SAs of both directions.
    pub sas: Vec<FrozenSa>,
    /// How packets come from the TUN device.
    pub tun: FrozenTun,
    /// Node-wide drop counters by reason.
    pub drops: Vec<(String, u64)>,
    /// What must never be installed again (S3, S4).
    pub used: FrozenUsed,
}

impl Frozen {
    /// Whether there is an SA of raw ESP: the raw sockets belong to the state then.
    #[must_use]
    pub fn has_raw(&self) -> bool {
        let raw = |sa: &FrozenSa| sa.sa.encapsulation == Encapsulation::Raw;
        self.sas.iter().any(raw)
    }
}

/// What the TUN device was told when it was made, which it keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrozenTun {
    /// Packets alone.
    #[default]
    Plain,
    /// Behind virtio headers, with large ones of TCP.
    Tcp,
    /// The same, with large ones of UDP, too.
    TcpUdp,
}

/// A peer with what outlives its being put again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenPeer {
    /// As it was put.
    pub peer: Peer,
    /// Its counters.
    pub stats: PeerStats,
    /// The outbound SA that seals.
    pub active: Option<Spi>,
}

/// An SA and how far it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenSa {
    /// As it was installed.
    pub sa: Sa,
    /// Its counters.
    pub counters: FrozenCounters,
    /// Sequence numbers.
    pub progress: Progress,
}

/// Counters of an SA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrozenCounters {
    /// Milliseconds since it was installed.
    pub age_ms: u64,
    /// Milliseconds from then to the last packet.
    pub last_ms: u64,
    /// Packets sealed or opened.
    pub packets: u64,
    /// Bytes of ESP payload.
    pub bytes: u64,
    /// Packets dropped on it.
    pub drops: u64,
}

/// How far an SA came; which kind it is follows from its direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Outbound.
    Sealed {
        /// The last sequence number used; 0: none.
        last: u64,
    },
    /// Inbound.
    Opened {
        /// Highest sequence number accepted.
        top: u64,
        /// The replay window's bits around it.
        words: Vec<u64>,
        /// An authenticated packet came in.
        proven: bool,
    },
}

/// What was installed in the life of this state, the oldest first; the very oldest may be forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrozenUsed {
    /// Outbound SPIs.
    pub outbound: Vec<Spi>,
    /// Hashes of keys.
    pub keys: Vec<[u8; 16]>,
}
