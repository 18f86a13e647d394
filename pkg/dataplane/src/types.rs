use std::fmt;
use std::net::IpAddr;

use espalier_secret::SecretBytes;
use ipnet::IpNet;

/// A peer's name: the name of its Node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub String);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Security Parameters Index of an ESP SA, host byte order (RFC 4303 §2.1). 0 to 255 are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi(pub u32);

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Which way an SA works, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Opens what the peer sealed.
    In,
    /// Seals what goes to the peer.
    Out,
}

/// Protocol and algorithm of an SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    /// ESP with AES-128-GCM-16 (RFC 4106): 16-byte key, 4-byte salt.
    Aes128Gcm16,
    /// ESP with AES-256-GCM-16 (RFC 4106): 32-byte key, 4-byte salt.
    Aes256Gcm16,
    /// ESP with ChaCha20-Poly1305 (RFC 7634): 32-byte key, 4-byte salt.
    ChaCha20Poly1305,
    /// ESP with AES-128-GMAC (RFC 4543), integrity only: 16-byte key, 4-byte salt.
    Aes128Gmac,
    /// ESP with AES-256-GMAC (RFC 4543), integrity only: 32-byte key, 4-byte salt.
    Aes256Gmac,
    /// AH with HMAC-SHA2-256-128 (RFC 4302, RFC 4868), integrity only: 32-byte key.
    AhHmacSha256,
}

impl Suite {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Aes128Gcm16,
        Self::Aes256Gcm16,
        Self::ChaCha20Poly1305,
        Self::Aes128Gmac,
        Self::Aes256Gmac,
        Self::AhHmacSha256,
    ];

    /// Key and salt together, in bytes.
    #[must_use]
    pub fn key_material_len(self) -> usize {
        match self {
            Self::Aes128Gcm16 | Self::Aes128Gmac => 20,
            Self::Aes256Gcm16 | Self::ChaCha20Poly1305 | Self::Aes256Gmac => 36,
            Self::AhHmacSha256 => 32,
        }
    }

    /// Whether what it carries cannot be read on the wire; otherwise it is authenticated only.
    #[must_use]
    pub fn encrypts(self) -> bool {
        matches!(
            self,
            Self::Aes128Gcm16 | Self::Aes256Gcm16 | Self::ChaCha20Poly1305
        )
    }

    /// AH, which has no room for UDP encapsulation (RFC 3948 is about ESP only).
    #[must_use]
    pub fn is_ah(self) -> bool {
        self == Self::AhHmacSha256
    }
}

/// Transport or tunnel mode (RFC 4301 §3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SaMode {
    /// Between the outer IP header and what it carries.
    #[default]
    Transport,
    /// Around a whole IP packet.
    Tunnel,
}

/// What stands between the outer IP header and ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// ESP in UDP (RFC 3948), here between these two ports.
    Udp {
        /// Port of this node.
        local_port: u16,
        /// Port of the peer.
        remote_port: u16,
    },
    /// ESP directly in IP (protocol 50).
    Raw,
}

/// What ESP protects: the framing of a pod packet between two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overlay {
    /// UDP 4789, VXLAN, Ethernet, IP (RFC 7348), transport mode.
    Vxlan {
        /// VXLAN Network Identifier, 24 bits.
        vni: u32,
        /// UDP destination port.
        port: u16,
    },
    /// IP in IP: ESP next header 4 or 41, transport mode over the outer header.
    Ipip,
    /// None: tunnel mode SAs over pod CIDRs, native routing.
    Native,
}

/// A peer as the data plane needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Name of its Node.
    pub id: PeerId,
    /// This node's underlay address towards it.
    pub local: IpAddr,
    /// Its underlay address.
    pub remote: IpAddr,
    /// What may be sent to it and what it may be the source of (S5).
    pub pod_cidrs: Vec<IpNet>,
    /// This node's own pods: all that the peer may reach (S5).
    pub own_cidrs: Vec<IpNet>,
    /// Framing.
    pub overlay: Overlay,
    /// MAC address of this node's VTEP, source of inner Ethernet headers.
    pub local_mac: [u8; 6],
    /// MAC address of the peer's VTEP.
    pub remote_mac: [u8; 6],
}

/// One SA with its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sa {
    /// Whose.
    pub peer: PeerId,
    /// Which way.
    pub direction: Direction,
    /// For [`Direction::In`] chosen by this node, for [`Direction::Out`] by the peer.
    pub spi: Spi,
    /// Protocol and algorithm.
    pub suite: Suite,
    /// Transport or tunnel.
    pub mode: SaMode,
    /// Key and salt, [`Suite::key_material_len`] bytes.
    pub key: SecretBytes,
    /// 64-bit sequence numbers (RFC 4303 §2.2.1).
    pub esn: bool,
    /// Packets; only for [`Direction::In`].
    pub replay_window: u32,
    /// What is around ESP.
    pub encapsulation: Encapsulation,
    /// Seconds after which it is removed even when no agent is there to do so; 0: never.
    pub hard_seconds: u32,
    /// For packets that this node sends from this CPU only (RFC 9611); `None`: from all that have none of their own.
    pub cpu: Option<u32>,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Random per process, and kept by one that takes over another's state: another value means that all state is gone.
    pub instance: u64,
    /// Version of the binary.
    pub version: String,
    /// SHA-256 of the binary that runs, in hex; empty: it does not say.
    pub digest: String,
    /// `userspace` or `kernel`.
    pub kind: String,
    /// Device that pod routes point at while a peer is encrypted (userspace), if any.
    pub device: Option<String>,
    /// Process id, for logs and tests.
    pub pid: u32,
    /// What it can do, as probed.
    pub can: Capabilities,
}

impl Hello {
    /// Whether the kernel encrypts: SAs outlive the process that answers, and packets are chosen by policies, not by a device.
    #[must_use]
    pub fn is_kernel(&self) -> bool {
        self.kind == KERNEL
    }
}

/// UDP port of the agents' probes, which tell whether a new SA's packets arrive before anything else is sent with it; in the kernel only.
pub const PROBE_PORT: u16 = 4788;

/// [`Hello::kind`] of the kernel (XFRM).
pub const KERNEL: &str = "kernel";
/// [`Hello::kind`] of the process that seals and opens itself.
pub const USERSPACE: &str = "userspace";

/// What a data plane can do on this node, found out by doing it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Protocols and algorithms, in order of preference.
    pub suites: Vec<Suite>,
    /// ESP directly in IP (protocol 50), which can be tried before packets use it: policies put probes, and nothing else, through an SA.
    pub raw: bool,
    /// The same, which cannot be tried: only where the policy wants nothing else.
    pub raw_untried: bool,
    /// ESP in UDP (RFC 3948).
    pub udp: bool,
    /// Tunnel mode.
    pub tunnel: bool,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Largest replay window, packets.
    pub max_replay_window: u32,
    /// SAs of single CPUs (RFC 9611); how many CPUs there are, 0: it cannot.
    pub cpus: u32,
    /// What it cannot do and why, and other findings, for people.
    pub notes: Vec<String>,
}

/// Tag that ties a peer's kernel states and policies together; 0: the data plane has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reqid(pub u32);

/// An SA as a dump shows it: no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaInfo {
    /// Whose.
    pub peer: PeerId,
    /// Which way.
    pub direction: Direction,
    /// Its SPI.
    pub spi: Spi,
    /// Protocol and algorithm.
    pub suite: Suite,
    /// What is around ESP.
    pub encapsulation: Encapsulation,
    /// True for the outbound SA that seals now; for inbound SAs true once an authenticated packet came in on it.
    pub active: bool,
    /// Seconds since it was installed.
    pub age_s: u64,
    /// Packets sealed or opened.
    pub packets: u64,
    /// Bytes of ESP payload (inner framing included).
    pub bytes: u64,
    /// Packets dropped on this SA: bad ICV, replayed, or a source outside the peer's pod CIDRs.
    pub drops: u64,
    /// Milliseconds since the last packet, if there was one.
    pub idle_ms: Option<u64>,
    /// As [`Sa::cpu`].
    pub cpu: Option<u32>,
}

/// Counters of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// Pod packets dropped because the peer has no outbound SA.
    pub no_sa_drops: u64,
    /// Opened packets dropped because their source or destination is not theirs or ours (S5).
    pub policy_drops: u64,
}

/// Everything a data plane holds, without keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// Peers with their counters.
    pub peers: Vec<(Peer, PeerStats)>,
    /// All SAs.
    pub sas: Vec<SaInfo>,
    /// Node-wide drop counters by reason, such as `unknown_spi` or `truncated`.
    pub drops: Vec<(String, u64)>,
}

/// What a data plane reports by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// First authenticated packet on an inbound SA: the peer encrypts with it.
    FirstPacket {
        /// Whose.
        peer: PeerId,
        /// Which inbound SA.
        spi: Spi,
    },
    /// A packet for a peer found no SA (XFRM ACQUIRE): one is wanted now.
    Acquire {
        /// For whom.
        peer: PeerId,
    },
    /// An SA reached a limit of its own and is gone.
    Expired {
        /// Whose.
        peer: PeerId,
        /// Which way.
        direction: Direction,
        /// Which.
        spi: Spi,
    },
}

/// What can go wrong at the seam.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field does not fit.
    #[error("{field}: {why}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What was expected and what came.
        why: String,
    },
    /// An operation names a peer that is not there.
    #[error("peer {0} is not known to the data plane; put the peer first")]
    NoSuchPeer(PeerId),
    /// An operation names an SA that is not there.
    #[error("SA {1} of peer {0} is not installed")]
    NoSuchSa(PeerId, Spi),
    /// An outbound SPI came again with its counter at zero.
    #[error(
        "outbound SA {0} was installed before in this process; a second life would repeat nonces (S4), negotiate a new SA"
    )]
    SpiReused(Spi),
    /// The data plane process does not answer.
    #[error("the data plane does not answer: {0}; is espalier-dataplane running on this node?")]
    Unreachable(String),
}
